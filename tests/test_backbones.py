"""DINOv2, DINOv3, CLIP and SigLIP: features by name, rotary positions, gated MLPs, and how others hold them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.cait import TINY as CAIT
from cases.dinov3 import TINY as DINOV3
from cases.vit import TINY as VIT

import eqx_vit
from eqx_vit import MODELS
from eqx_vit.files import write_arrays
from eqx_vit.layers import SwiGLU, resize_table, rotary_2d, rotate
from eqx_vit.paths import named_leaves
from eqx_vit.registry import AnyConfig
from eqx_vit.testing import randomise
from eqx_vit.weights import export, load_state_dict, preprocessing, to_state_dict

DINOV2 = dataclasses.replace(VIT, num_classes=0, layer_scale=0.1)
REGISTERS = dataclasses.replace(DINOV2, register_tokens=3, prefix_positions=False)
CLIP = dataclasses.replace(VIT, num_classes=0, pre_norm=True, quick_gelu=True, norm_eps=1e-5)
SIGLIP = dataclasses.replace(VIT, num_classes=0, pool="map", class_token=False, approximate_gelu=True)
KIN: dict[str, AnyConfig] = {
    "dinov2": DINOV2,
    "giant": dataclasses.replace(DINOV2, swiglu=True),
    "registers": REGISTERS,
    "clip": CLIP,
    "siglip": SIGLIP,
    "dinov3": dataclasses.replace(DINOV3, num_classes=0),
    "dinov3 plus": dataclasses.replace(DINOV3, num_classes=0, swiglu=True, pool="mean"),
}
every_kin = pytest.mark.parametrize("name", KIN)


def drawn(config: Any) -> tuple[Any, eqx.nn.State]:
    """The model with every parameter random, in inference mode."""
    model, state = randomise(config, 0.0)
    return eqx.nn.inference_mode(model), state


def images_of(config: Any, size: tuple[int, int] = (16, 16)) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (2, *size, config.channels))


@every_kin
def test_features_have_names(name: str) -> None:
    config: Any = KIN[name]
    model, state = drawn(config)
    images = images_of(config)
    found = eqx_vit.forward_features(model, state, images)
    tokens = jax.vmap(model.features)(images)
    has_class_token = name != "siglip"
    registers = getattr(config, "register_tokens", 0)
    assert (found.class_token is not None) == has_class_token
    assert found.register_tokens.shape == (2, registers, config.dim)
    assert found.patch_tokens.shape == (2, 4, config.dim)
    parts = [found.register_tokens, found.patch_tokens]
    if found.class_token is not None:
        parts = [found.class_token[:, None], *parts]
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), tokens)
    np.testing.assert_array_equal(found.pooled, eqx_vit.forward(model, state, images)[0])
    # What a head reads is the same.
    whole = eqx_vit.replace_head(model, 3, key=jax.random.key(0))
    np.testing.assert_array_equal(eqx_vit.forward_features(whole, state, images).pooled, found.pooled)


@pytest.mark.parametrize("name", ["registers", "siglip", "dinov3 plus"])
def test_pooled_features_are_what_the_source_pools(name: str) -> None:
    config: Any = KIN[name]
    model, state = drawn(config)
    found = eqx_vit.forward_features(model, state, images_of(config))
    if config.pool == "cls":
        np.testing.assert_array_equal(found.pooled, found.class_token)
    elif config.pool == "mean":
        np.testing.assert_allclose(found.pooled, found.patch_tokens.mean(axis=1), atol=1e-6)
    else:
        assert not np.allclose(found.pooled, found.patch_tokens.mean(axis=1), atol=0.1)


def test_other_models_say_that_they_name_no_features() -> None:
    model, state = eqx_vit.create_abstract(CAIT)
    with pytest.raises(ValueError, match="CaiT does not name its features"):
        eqx.filter_eval_shape(eqx_vit.forward_features, eqx.nn.inference_mode(model), state, images_of(CAIT))


@pytest.mark.parametrize("name", ["siglip", "dinov3"])
def test_blocks_are_seen_and_attention_has_maps(name: str) -> None:
    config: Any = KIN[name]
    model, state = drawn(config)
    images = images_of(config)
    maps = eqx_vit.intermediates(model, state, images, indices=1, norm=True)
    np.testing.assert_allclose(
        maps[0].reshape(2, 4, -1), eqx_vit.forward_features(model, state, images).patch_tokens, atol=1e-5
    )
    attention = eqx_vit.attention_maps(model, state, images)
    assert [layer.shape for layer in attention] == [(2, config.heads, 2, 2)] * config.depth


# Rotary positions


def test_rotation_keeps_lengths_and_leaves_the_prefix() -> None:
    x = jax.random.normal(jax.random.key(0), (2 + 6, 3, 8))
    turned = rotate(x, rotary_2d(2, 3, 8, prefix=2))
    np.testing.assert_array_equal(turned[:2], x[:2])
    assert not np.allclose(turned[2:], x[2:], atol=0.1)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6)


def test_angles_are_of_centres_between_minus_one_and_one() -> None:
    rotation = rotary_2d(2, 1, 8)
    # Rows at -1/2 and 1/2, the column at 0; periods 1 and 100 ** (1 / 2).
    angles = 2 * np.pi * np.array([[-0.5, -0.05, 0, 0], [0.5, 0.05, 0, 0]])
    np.testing.assert_allclose(rotation.sine, np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(rotation.cosine, np.cos(angles), atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    query, key = jax.random.normal(jax.random.key(1), (2, 1, 1, 8))
    rotation = rotary_2d(1, 5, 8)
    queries, keys = (rotate(jnp.broadcast_to(x, (5, 1, 8)), rotation)[:, 0] for x in (query, key))
    scores = queries @ keys.T
    for distance in range(1, 4):
        along = jnp.diagonal(scores, distance)
        np.testing.assert_allclose(along, jnp.full_like(along, along[0]), atol=1e-5)
    assert abs(float(scores[0, 1] - scores[0, 2])) > 1e-3


def test_dinov3_takes_images_of_any_multiple_of_its_patches() -> None:
    model, state = drawn(DINOV3)
    wide = images_of(DINOV3, (24, 40))
    logits, _ = eqx_vit.forward(model, state, wide)
    resized = eqx_vit.resize(model, (24, 40))
    assert resized.config.image_size == (24, 40)
    np.testing.assert_array_equal(eqx_vit.forward(resized, state, wide)[0], logits)
    (attention, _) = eqx_vit.attention_maps(model, state, wide)
    assert attention.shape == (2, 2, 3, 5)


def test_patches_of_dinov3_know_where_they_are() -> None:
    model, _ = drawn(dataclasses.replace(DINOV3, num_classes=0, pool="cls"))
    image = images_of(DINOV3)[0]
    moved = jnp.roll(image, 8, axis=0)
    assert not np.allclose(model(image), model(moved), atol=1e-3)


def test_keys_of_dinov3_have_no_bias() -> None:
    model, _ = drawn(DINOV3)
    names = [name for name in named_leaves(model.blocks.block.attention) if "bias" in name]
    assert names == ["query_bias", "value_bias", "projection.linear.bias"]
    assert eqx_vit.create_abstract(DINOV3, qkv_bias=False)[0].blocks.block.attention.query_bias is None


def test_swiglu_is_its_formula() -> None:
    mlp = SwiGLU(6, 10, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 6))
    gate, value = x @ mlp.fc1.weight[:10].T, x @ mlp.fc1.weight[10:].T
    np.testing.assert_allclose(mlp(x), (gate * jax.nn.sigmoid(gate) * value) @ mlp.fc2.weight.T, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"approximate_gelu": True, "quick_gelu": True}, {"quick_gelu": True, "swiglu": True}]
)
def test_one_activation_only(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of approximate_gelu, quick_gelu and swiglu"):
        dataclasses.replace(VIT, **changes)


# Elsewhere


@every_kin
def test_a_folder_for_transformers_is_read_back(name: str, tmp_path: Path) -> None:
    config: Any = KIN[name]
    if config.pool == "mean":
        with pytest.raises(ValueError, match="pools by its class token"):
            export(tmp_path / "model", *drawn(config), target="hf")
        config = dataclasses.replace(config, pool="cls")
    if getattr(config, "swiglu", False) and name == "giant":
        config = dataclasses.replace(config, mlp_dim=48)  # two thirds of 4 * 16, up to a multiple of 8
    elif name in ("dinov2", "registers"):
        config = dataclasses.replace(config, mlp_dim=32)
    model, state = drawn(config)
    export(tmp_path / "model", model, state, target="hf")
    # The description alone tells activation, eps, biases, pool and size.
    asked = dataclasses.replace(config, image_size=24, norm_eps=1e-3)
    if name == "clip":
        asked = dataclasses.replace(asked, quick_gelu=False, num_classes=4)
    if name == "siglip":
        asked = dataclasses.replace(asked, approximate_gelu=False)
    if name.startswith("dinov3"):
        asked = dataclasses.replace(asked, pool="mean", qkv_bias=False)
    found, _ = eqx_vit.create(asked, pretrained=tmp_path / "model", key=jax.random.key(0))
    images = images_of(config)
    np.testing.assert_array_equal(jax.vmap(eqx.nn.inference_mode(found))(images), jax.vmap(model)(images))


def test_the_position_of_the_class_token_is_added_to_it() -> None:
    """transformers' DINOv2 with registers has one, timm's has not."""
    model, state = drawn(REGISTERS)
    arrays = to_state_dict(model, state, "hf")
    table = arrays["embeddings.position_embeddings"]
    assert table.shape == (1, 5, 16)
    np.testing.assert_array_equal(table[:, 0], 0)
    position = np.full((1, 1, 16), 0.25, np.float32)
    moved = {**arrays, "embeddings.position_embeddings": np.concatenate([position, table[:, 1:]], axis=1)}
    loaded, _ = load_state_dict(*eqx_vit.create_abstract(REGISTERS), moved, source="hf")
    np.testing.assert_array_equal(loaded.class_token, model.class_token + 0.25)
    np.testing.assert_array_equal(loaded.position_embedding, model.position_embedding)


def test_the_gated_mlp_of_released_files_is_one_array() -> None:
    model, state = drawn(KIN["giant"])
    arrays = to_state_dict(model, state, "hf")
    old = {name: array for name, array in arrays.items() if ".mlp." not in name}
    for index in range(2):
        place = f"encoder.layer.{index}.mlp."
        for kind in ("weight", "bias"):
            parts = [arrays[f"{place}{part}.{kind}"] for part in ("gate_proj", "up_proj")]
            old[f"{place}weights_in.{kind}"] = np.concatenate(parts)
            old[f"{place}weights_out.{kind}"] = arrays[f"{place}down_proj.{kind}"]
    loaded, _ = load_state_dict(*eqx_vit.create_abstract(KIN["giant"]), old, source="hf")
    assert eqx.tree_equal(eqx.nn.inference_mode(loaded), model)


@pytest.mark.parametrize(("config", "antialias"), [(DINOV2, False), (REGISTERS, True), (CLIP, False), (SIGLIP, False)])
def test_tables_are_resized_as_transformers_does(config: Any, antialias: bool) -> None:
    config = dataclasses.replace(config, image_size=40)
    model, state = drawn(config)
    arrays = to_state_dict(model, state, "hf")
    table: Any = named_leaves(model)["position_embedding"]
    skeleton = eqx_vit.create_abstract(config)
    small: Any = load_state_dict(*skeleton, arrays, source="hf", image_size=24)[0]
    expected = resize_table(table, (5, 5), (3, 3), antialias=antialias)
    np.testing.assert_array_equal(small.position_embedding, expected)
    own = to_state_dict(model, state, "timm")
    of_timm: Any = load_state_dict(*skeleton, own, source="timm", image_size=24)[0]
    np.testing.assert_array_equal(of_timm.position_embedding, resize_table(table, (5, 5), (3, 3), antialias=True))


def test_a_whole_clip_gives_its_image_tower(tmp_path: Path) -> None:
    """The repositories of CLIP and SigLIP hold both towers, and describe them in parts."""
    config = dataclasses.replace(CLIP, num_classes=6)
    model, state = drawn(config)
    with pytest.raises(ValueError, match="a projection without a bias"):
        to_state_dict(model, state, "hf")
    model = eqx.tree_at(lambda model: model.head.bias, model, jnp.zeros(6))
    arrays = to_state_dict(model, state, "hf")
    assert {name.partition(".")[0] for name in arrays} == {"vision_model", "visual_projection"}
    texts = ("text_model.encoder.layers.0.mlp.fc1.weight", "text_projection.weight", "logit_scale")
    more = {name: np.zeros(1, np.float32) for name in (*texts, "vision_model.embeddings.position_ids")}
    write_arrays(tmp_path / "model.safetensors", arrays | more, {})
    vision = {"image_size": 17, "patch_size": 8, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    described = {"model_type": "clip", "projection_dim": 6, "vision_config": vision, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    found, _ = eqx_vit.create(dataclasses.replace(CLIP, quick_gelu=False), pretrained=tmp_path, key=jax.random.key(0))
    assert found.config == config
    assert eqx.tree_equal(eqx.nn.inference_mode(found), model)


def test_the_official_bias_of_keys_is_masked() -> None:
    config = dataclasses.replace(DINOV3, num_classes=0)
    model, state = drawn(config)
    arrays = to_state_dict(model, state, "official")
    bias, mask = (arrays[f"blocks.1.attn.qkv.bias{ending}"] for ending in ("", "_mask"))
    np.testing.assert_array_equal(mask, np.repeat([1, 0, 1], 16))
    np.testing.assert_array_equal(bias[16:32], 0)
    # Released files have NaN in the mask where it is 0, and any bias there.
    given = {**arrays, "blocks.1.attn.qkv.bias": np.where(mask == 0, 7, bias), "rope_embed.periods": np.zeros(2)}
    loaded, _ = load_state_dict(*eqx_vit.create_abstract(config), given, source="official")
    assert eqx.tree_equal(eqx.nn.inference_mode(loaded), model)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_base_patch16_siglip_224", "vit_7b_patch16_dinov3"])
def test_images_are_prepared_as_the_weights_expect(name: str) -> None:
    found = preprocessing(name)
    architecture = next(row for row in MODELS.values() if name in row.presets)
    config: Any = architecture.presets[name]
    assert found.image_size == (config.image_size, config.image_size)
    assert found.classes == config.num_classes == 0


def test_released_towers_have_a_head_as_wide_as_their_weights() -> None:
    for row in (MODELS["vit"], MODELS["dinov3"]):
        for name, source in row.weights.items():
            assert row.presets[name].num_classes == source.classes, name
