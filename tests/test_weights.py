"""Weights in and out: every map both ways, requests, files good and bad, the hub's cache, folders for others."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

import eqx_vit
from eqx_vit import MODELS
from eqx_vit.cli import main as command_line
from eqx_vit.counting import multiply_adds
from eqx_vit.create import make_skeleton
from eqx_vit.files import cache_folder, read_arrays, write_arrays
from eqx_vit.layers import resize_grid, resize_grid_corners
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import find_preset
from eqx_vit.weights import export, load_state_dict, preprocessing, read_weights, to_state_dict
from eqx_vit.weights.checkpoints import find_checkpoints
from eqx_vit.weights.convert import convert, main, weights_in
from eqx_vit.weights.hub import fetch
from eqx_vit.weights.names import canonical_name, find_renames, name_map

KEY = jax.random.key(0)
VIT = eqx_vit.ViTConfig(image_size=16, patch_size=4, num_classes=5, dim=8, depth=2, heads=2, mlp_dim=12)

# Configs as changes to TINY, and the layouts whose code can make such a model: all others refuse it.
VIT_PYTORCH = {"qkv_bias": False, "patch_norm": True}
VARIANTS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "vit": [
        ({}, "timm official hf flax"),
        ({"num_classes": 0}, "timm official hf flax"),
        ({"pool": "mean"}, "timm hf flax"),
        ({"pool": "mean", "class_token": False}, "timm flax"),
        ({"distillation": True}, "timm official hf"),
        ({"distillation": True, "prefix_positions": False}, ""),
        ({"register_tokens": 2}, "timm"),
        ({"prefix_positions": False}, "timm official"),
        ({"prefix_positions": False, "layer_scale": 0.1}, "timm official"),
        ({"layer_scale": 0.1}, "timm"),
        ({"qk_norm": True}, "timm"),
        ({"pre_norm": True, "prefix_positions": False}, "timm"),
        ({"pre_norm": True, "quick_gelu": True, "num_classes": 0}, "timm hf"),
        ({"pool": "map"}, "timm"),
        ({"pool": "map", "class_token": False, "num_classes": 0}, "timm hf"),
        ({"layer_scale": 0.1, "num_classes": 0}, "timm hf"),
        ({"layer_scale": 0.1, "num_classes": 0, "swiglu": True}, "timm hf"),
        (
            {"layer_scale": 0.1, "num_classes": 0, "prefix_positions": False, "register_tokens": 2},
            "timm hf",
        ),
        ({"representation_size": 6}, "timm official flax"),
        ({"qkv_bias": False}, "timm official hf"),
        ({"dim_head": 6}, "timm"),
    ],
    "dinov3": [
        ({}, "timm"),
        ({"num_classes": 0}, "timm official hf"),
        ({"num_classes": 0, "swiglu": True, "qkv_bias": False}, "timm official hf"),
        ({"num_classes": 0, "layer_scale": None, "register_tokens": 0}, "timm official"),
    ],
    "simple_vit": [
        ({}, "official official_scan flax timm"),
        ({"pool": "map"}, "official official_scan flax timm"),
        ({"pool": "cls", "learned_positions": True}, "official official_scan flax timm"),
        ({"representation_size": 6}, "official official_scan flax timm"),
        ({"dim_head": 6}, "timm"),
    ],
    "cait": [
        ({}, "official timm"),
        ({"qkv_bias": False, "cls_depth": 1, "cls_mlp_dim": 12}, "official timm"),
        ({"dim_head": 6}, ""),
    ],
    "crossformer": [({}, "official"), ({"cooling": True, "qkv_bias": False}, "official")],
    "cross_vit": [
        ({}, "official timm"),
        ({"cross_attn_depth": 0, "qkv_bias": False}, "official timm"),
        ({"lg_enc_dim_head": 4}, ""),
        ({"cross_attn_dim_head": 3}, ""),
    ],
    "cvt": [({}, "official hf"), ({"class_token": False, "qkv_bias": False}, "official hf")],
    "deepvit": [
        ({}, "official"),
        ({"re_attention_depth": 0, "convolutional_stem": False, "qkv_bias": False}, "official"),
        ({"re_attention_depth": None, "re_attention_indices": (0,)}, "official"),
        ({"dim_head": 6}, ""),
    ],
    "levit": [
        ({}, "official timm"),
        ({"stages": 3}, "official timm hf"),
        ({"stages": 3, "dim_value": 6}, "official timm"),
        ({"num_distill_classes": 5}, "official timm"),
        ({"mlp_mult": 3}, "official"),
        ({"mlp_mult": 3, "downsample_mlp_mult": 2}, "official timm"),
        ({"dim_key": (4, 8)}, "official"),
        ({"downsample_heads": (3,)}, "official"),
    ],
    "nest": [
        ({}, "official flax timm"),
        ({"qkv_bias": False}, "official flax timm"),
        ({"multi_query": True}, "official flax"),
        ({"pool_padding": "symmetric"}, "timm"),
        ({"dim_head": 3}, ""),
    ],
    "parallel_vit": [
        ({"layer_scale": 0.1}, "timm official"),
        ({"num_parallel_branches": 1, "qkv_bias": False}, "timm official"),
        ({"num_parallel_branches": 3}, "timm"),
        ({"pool": "mean", "class_token": False}, "timm"),
        ({"pool": "mean", "pool_norm": True}, "timm"),
        ({"prefix_positions": True}, "timm"),
        ({"dim_head": 6}, "timm"),
    ],
    "parallel_vit_hmlp": [({}, "official"), ({"prefix_positions": True}, "")],
    "patch_merger": [
        ({}, "timm"),
        ({"patch_merge_norm": False}, "timm"),
        ({"project_out": False}, ""),
        ({"patch_norm": True}, ""),
        (VIT_PYTORCH, "vit_pytorch"),
        ({**VIT_PYTORCH, "patch_merge_norm": False}, ""),
        ({**VIT_PYTORCH, "heads": 1}, ""),
        ({**VIT_PYTORCH, "heads": 1, "project_out": False}, "vit_pytorch"),
    ],
    "pit": [
        ({}, "official timm"),
        ({"distillation": False, "qkv_bias": False}, "official timm"),
        ({"dim_head": 3}, ""),
    ],
    "scalable_vit": [({}, "official"), ({"head_dim": None, "qkv_bias": False}, "official")],
    "t2t": [
        ({}, "official"),
        ({"tokens_type": "transformer", "qkv_bias": True}, "official"),
        ({"t2t_layers": ((7, 4), (3, 2))}, ""),
        ({"random_features": 3}, ""),
        ({"dim_head": 6}, ""),
    ],
    "twins_svt": [
        ({"qkv_bias": False}, "official timm"),
        ({"local_attention": False}, "official timm"),
        ({"peg_kernel_size": 5}, ""),
    ],
    "vit_small_datasets": [
        ({"dim_head": 5}, "official"),
        ({"shifted_patches": False, "locality_attention": False}, "official"),
    ],
    "region_vit": [
        ({}, "official"),
        ({"tokenize_local_3_conv": False, "use_peg": False, "qkv_bias": False}, "official"),
    ],
}


def filled(config: Any, seed: int = 0) -> tuple[Any, Any]:
    """The model and state of a config with random arrays, made by numpy: nothing is compiled."""
    random = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.asarray(random.standard_normal(leaf.shape).astype(leaf.dtype))
        return leaf

    return jax.tree.map(draw, make_skeleton(config))


def leaves_of(model: Any, state: Any) -> dict[str, Any]:
    return named_leaves(model) | named_statistics(model, state)


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# The maps


ONE_LINE = r"^[^\n]{,600}$"


def test_every_layout_is_in_the_table() -> None:
    table = {name: {word for _, layouts in variants for word in layouts.split()} for name, variants in VARIANTS.items()}
    assert table == {name: set(find_checkpoints(config).names) for name, config in TINY.items()}


@pytest.mark.parametrize(
    ("name", "changes", "layouts"),
    [pytest.param(name, *row, id=f"{name}-{row[0]}") for name, variants in VARIANTS.items() for row in variants],
)
def test_a_layout_holds_a_model_exactly_or_refuses_it(name: str, changes: dict[str, Any], layouts: str) -> None:
    config = dataclasses.replace(TINY[name], **changes)
    model, state = filled(config)
    for source in find_checkpoints(config).names:
        if source in layouts.split():
            there = to_state_dict(model, state, source)
            loaded = load_state_dict(*filled(config, seed=1), there, source=source)
            assert_equal(leaves_of(*loaded), leaves_of(model, state))
            assert_equal(to_state_dict(*loaded, source), there)
            assert not any(name.startswith(PREFIXES[:2]) for name in there)
            assert not any(all(name.startswith(prefix) for name in there) for prefix in PREFIXES)
            continue
        with pytest.raises(ValueError, match=ONE_LINE):
            to_state_dict(model, state, source)
        with pytest.raises(ValueError, match=ONE_LINE):
            load_state_dict(model, state, {}, source=source)


# What wraps a model in other programs: names of a layout that began so, the first two in any and the others in all,
# would lose it.
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "backbone.", "encoder.", "trunk.", "visual.", "student.")


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, "module._orig_mod.", "module.model._orig_mod.", "visual.trunk.", "state_dict.model.net."]
)
@pytest.mark.parametrize("source", ["timm", "hf", "flax"])
def test_what_stands_before_all_names_does_not_count(source: str, prefix: str) -> None:
    model, state = filled(VIT)
    weights = {f"{prefix}{name}": array for name, array in to_state_dict(model, state, source).items()}
    loaded = load_state_dict(*filled(VIT, seed=1), weights, source=source)
    assert_equal(leaves_of(*loaded), leaves_of(model, state))
    # Patterns name the arrays with it or without.
    bias = next(name for name in weights if name.endswith(("head.bias", "classifier.bias", "head/bias")))
    extra = {f"{prefix}extra.x": np.zeros(1), "epoch": np.zeros(())}
    load_state_dict(model, state, weights | extra, source=source, skip=["extra.*", "epoch"])
    del weights[bias]
    with pytest.raises(ValueError, match=rf"do not fit this ViT:\n  missing {bias.removeprefix(prefix)}$"):
        load_state_dict(model, state, weights, source=source)


def test_a_prefix_of_a_part_is_named() -> None:
    model, state = filled(VIT)
    weights = {f"teacher.backbone.{name}": array for name, array in to_state_dict(model, state, "timm").items()}
    weights |= {f"decoder.{index}.weight": np.zeros(3) for index in range(1000)}
    way = "{name.removeprefix('teacher.backbone.'): array for name, array in weights.items()}"
    with pytest.raises(ValueError, match=r"have 'teacher\.backbone\.' before them, but not all") as error:
        load_state_dict(model, state, weights, source="timm")
    assert way in str(error.value)
    assert str(error.value).endswith("more")
    assert len(str(error.value)) < 5000
    stripped = {name.removeprefix("teacher.backbone."): array for name, array in weights.items()}
    load_state_dict(model, state, stripped, source="timm", skip=["decoder.*"])
    # Names of another model: no prefix is made up.
    with pytest.raises(ValueError, match="\n  missing cls_token") as error:
        load_state_dict(model, state, {f"decoder.{index}.weight": np.zeros(3) for index in range(9)}, source="timm")
    assert "before them" not in str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_is_covered_by_the_layout_of_its_weights(name: str) -> None:
    row = MODELS[name]
    seen = set()
    for preset_name, source in row.weights.items():
        config = row.presets[preset_name]
        sized = dataclasses.asdict(config).get("image_size", source.image_size)
        assert preprocessing(preset_name).image_size == ((sized, sized) if isinstance(sized, int) else sized)
        switches = tuple(value if isinstance(value, bool) else value is None for value in dataclasses.astuple(config))
        if switches not in seen:  # presets that differ in sizes alone have the same names
            names = {rule.beside for rule in name_map(config, source.layout)}
            assert set(leaves_of(*make_skeleton(config))) <= names, preset_name
        seen.add(switches)


OLDER = {
    "vit.encoder.layer.3.attention.attention.query.weight": "vit.layers.3.attention.q_proj.weight",
    "vit.encoder.layer.3.attention.attention.value.bias": "vit.layers.3.attention.v_proj.bias",
    "vit.encoder.layer.3.attention.output.dense.weight": "vit.layers.3.attention.o_proj.weight",
    "vit.encoder.layer.3.intermediate.dense.bias": "vit.layers.3.mlp.fc1.bias",
    "vit.encoder.layer.3.output.dense.bias": "vit.layers.3.mlp.fc2.bias",
    "vit.encoder.layer.3.layernorm_before.weight": "vit.layers.3.layernorm_before.weight",
    "vit.pooler.dense.bias": None,
    "classifier.bias": "classifier.bias",
}
GOOGLE = {
    "opt/target/Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/bias": (
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/bias"
    ),
    "Transformer/encoderblock_0/MlpBlock_3/Dense_1/kernel": "Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel",
    "Transformer/encoderblock_0/LayerNorm_2/scale": "Transformer/encoderblock_0/LayerNorm_1/scale",
    "Transformer/encoderblock_0/LayerNorm_0/scale": "Transformer/encoderblock_0/LayerNorm_0/scale",
    "params/head/kernel": "head/kernel",
}


def test_older_spellings_are_known() -> None:
    for names, source in ((OLDER, "hf"), (GOOGLE, "flax")):
        assert {name: canonical_name(find_renames(VIT, source), name) for name in names} == names
    assert canonical_name(find_renames(VIT, "timm"), "module._orig_mod.blocks.0.gamma_2") == "blocks.0.ls2.gamma"
    assert canonical_name(find_renames(TINY["cait"], "timm"), "module.blocks.0.gamma_2") == "blocks.0.gamma_2"
    assert canonical_name(find_renames(TINY["pit"], "timm"), "pools.1.conv.bias") == "transformers.2.pool.conv.bias"
    assert canonical_name(find_renames(TINY["cross_vit"], "timm"), "cls_token.1") == "cls_token_1"
    assert canonical_name(find_renames(TINY["levit"], "timm"), "stages.0.blocks.1.attn.attention_bias_idxs") is None


def test_one_report_names_every_problem_and_nothing_changes() -> None:
    model, state = filled(VIT)
    weights = to_state_dict(model, state, "timm")
    del weights["norm.bias"]
    weights |= {"head.bias": np.zeros(7, np.float32), "extra": np.zeros(1), "cls_token": np.zeros((1, 1, 8), np.int64)}
    weights["module.extra"] = np.zeros(1)
    with pytest.raises(ValueError, match="do not fit this ViT") as error:
        load_state_dict(model, state, weights, source="timm")
    for text in (
        "missing norm.bias",
        "unexpected extra",
        "head.bias has shape (7,), the model needs (5,)",
        "cls_token has dtype int64",
        "module.extra is given twice",
    ):
        assert text in str(error.value)
    weights = to_state_dict(model, state, "timm")
    del weights["norm.bias"]
    load_state_dict(
        model, state, weights | {"extra": np.zeros(1)}, source="timm", skip=["ext*"], allow_missing=["norm.*"]
    )
    with pytest.raises(ValueError, match="has no 'keras' layout: its sources are timm, official, hf, flax"):
        load_state_dict(model, state, weights, source="keras")


# Requests


@pytest.mark.parametrize("name", ["vit", "levit", "cross_vit"])
def test_another_number_of_classes_on_request_only(name: str) -> None:
    config = TINY[name]
    source = "official"
    model, state = filled(config)
    weights = to_state_dict(model, state, source)
    mine = dataclasses.replace(config, num_classes=3)
    own, own_state = filled(mine, seed=1)
    with pytest.raises(ValueError, match="the model needs \\(3,"):
        load_state_dict(own, own_state, weights, source=source)
    loaded, after = load_state_dict(own, own_state, weights, source=source, num_classes=3)
    found, before, there = leaves_of(loaded, after), leaves_of(own, own_state), leaves_of(model, state)
    for path, array in found.items():
        kept = before if path.startswith("head") else there
        np.testing.assert_array_equal(array, kept[path], err_msg=path)
    # The checkpoint's head is kept where it has as many classes as asked for, and may be absent where it has not.
    same, after = load_state_dict(*filled(config, seed=1), weights, source=source, num_classes=5)
    assert_equal(leaves_of(same, after), there)
    headless = {key: array for key, array in weights.items() if not key.startswith("head")}
    load_state_dict(own, own_state, headless, source=source, num_classes=3)


def test_a_fresh_head_needs_a_key() -> None:
    model, state = filled(VIT)
    weights = to_state_dict(model, state, "timm")
    with pytest.raises(ValueError, match="key must be one random key"):
        load_state_dict(model, state, weights, source="timm", num_classes=3)
    loaded, _ = load_state_dict(model, state, weights, source="timm", num_classes=3, key=KEY)
    assert loaded.config.num_classes == 3
    assert loaded.head.weight.shape == (3, 8)
    headless, _ = load_state_dict(model, state, weights, source="timm", num_classes=0, key=KEY)
    assert headless.config.num_classes == 0


@pytest.mark.parametrize("source", ["timm", "official", "hf", "flax"])
def test_another_image_size_by_the_rule_of_the_source(source: str) -> None:
    model, state = filled(VIT)
    weights = to_state_dict(model, state, source)
    loaded, _ = load_state_dict(*filled(VIT, seed=1), weights, source=source, image_size=(24, 8))
    assert loaded.config.image_size == (24, 8)
    old = model.position_embedding
    rule = {"timm": resize_grid, "flax": resize_grid_corners}.get(source)
    rule = rule or (lambda grid, size: resize_grid(grid, size, antialias=False))
    expected = jnp.concatenate([old[:1], rule(old[1:].reshape(4, 4, 8), (6, 2)).reshape(12, 8)])
    np.testing.assert_allclose(loaded.position_embedding, expected, atol=1e-6)
    with pytest.raises(ValueError, match="not a multiple"):
        load_state_dict(model, state, weights, source=source, image_size=30)


def test_tables_without_a_rule_are_not_resized() -> None:
    model, state = filled(TINY["levit"])
    with pytest.raises(ValueError, match="LeViT cannot be resized"):
        load_state_dict(model, state, to_state_dict(model, state, "timm"), source="timm", image_size=96)


@pytest.mark.parametrize("source", ["timm", "flax"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_another_number_of_channels_by_timms_rule(source: str, channels: int) -> None:
    model, state = filled(VIT)
    weights = to_state_dict(model, state, source)
    loaded, _ = load_state_dict(*filled(VIT, seed=1), weights, source=source, channels=channels)
    assert loaded.config.channels == channels
    old = np.asarray(model.patch_embedding.linear.weight).reshape(8, 16, 3)
    new = np.asarray(loaded.patch_embedding.linear.weight).reshape(8, 16, channels)
    expected = old.sum(-1, keepdims=True) if channels == 1 else (np.tile(old, 2) * 3 / channels)[..., :channels]
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loaded.patch_embedding.linear.bias, model.patch_embedding.linear.bias)


def test_channels_of_models_with_statistics_and_of_those_without_a_rule() -> None:
    model, state = filled(TINY["levit"])
    weights = to_state_dict(model, state, "timm")
    loaded, after = load_state_dict(model, state, weights, source="timm", channels=1)
    kernel = weights["stem.conv1.linear.weight"].sum(1, keepdims=True)
    np.testing.assert_allclose(loaded.stem[0].conv.weight, kernel, rtol=1e-6)
    assert_equal(named_statistics(loaded, after), named_statistics(model, state))
    del weights["stem.conv1.linear.weight"]
    with pytest.raises(ValueError, match=r"missing stem.conv1.linear.weight"):
        load_state_dict(model, state, weights, source="timm", channels=1, allow_missing=["*"])
    shifted, state = filled(TINY["vit_small_datasets"])
    weights = to_state_dict(shifted, state, "official")
    with pytest.raises(ValueError, match="no rule adapts"):
        load_state_dict(shifted, state, weights, source="official", channels=1)


# Files


def test_safetensors_come_back_in_every_dtype(tmp_path: Path) -> None:
    arrays = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "bfloat": np.ones(3, jnp.bfloat16),
        "integer": np.array(7),
        "empty": np.zeros((0, 4), np.float16),
        "bool": np.array([True, False]),
    }
    write_arrays(tmp_path / "a.safetensors", arrays, {"text": "note"})
    found, metadata = read_arrays(tmp_path / "a.safetensors")
    assert_equal(found, arrays)
    assert {name: array.dtype for name, array in found.items()} == {name: a.dtype for name, a in arrays.items()}
    assert metadata == {"text": "note"}
    with pytest.raises(ValueError, match=r"cannot hold these arrays: wave \(complex64\)"):
        write_arrays(tmp_path / "b.safetensors", arrays | {"wave": np.ones(2, np.complex64)}, {})
    assert not (tmp_path / "b.safetensors").exists()


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"\0\0\0",
    "no header": struct.pack("<Q", 0),
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the file": safetensors_file(described(), bytes(8), length=10_000),
    "not JSON": safetensors_file(b"\xff\xfe{}", bytes(8)),
    "deep JSON": safetensors_file(b"[" * 100_000, bytes(8)),
    "a list": safetensors_file([1, 2]),
    "truncated": safetensors_file(described(), bytes(7)),
    "more than described": safetensors_file(described(), bytes(9)),
    "huge shape": safetensors_file(described(shape=[2**40, 2**40]), bytes(8)),
    "huge empty shape": safetensors_file(described(shape=[0, 2**62, 2**62], data_offsets=[0, 0])),
    "many axes": safetensors_file(described(shape=[1] * 70 + [2]), bytes(8)),
    "offsets beyond the file": safetensors_file(described(shape=[2**33], data_offsets=[0, 2**35]), bytes(8)),
    "negative shape": safetensors_file(described(shape=[-1, -2]), bytes(8)),
    "float shape": safetensors_file(described(shape=[2.0]), bytes(8)),
    "true as a number": safetensors_file(described(shape=[2, True]), bytes(8)),
    "unknown dtype": safetensors_file(described(dtype="O"), bytes(8)),
    "no offsets": safetensors_file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "metadata of the wrong kind": safetensors_file({"__metadata__": [], **described()}, bytes(8)),
    "overlap": safetensors_file({**described(), "b": described()["a"]}, bytes(8)),
    "hole": safetensors_file(described(data_offsets=[4, 12]), bytes(12)),
    "a name twice": safetensors_file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD_SAFETENSORS[name])
    with pytest.raises(ValueError, match="is damaged, or not a safetensors file"):
        read_weights(path)


def npz(members: dict[str, Any], compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else npy(content))
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_header(text: str, data: bytes = bytes(8)) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


ONES = np.ones(4, np.float32)
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }\n"
BAD_NPZ = {
    "empty": b"",
    "not a zip": b"x" * 100,
    "truncated": npz({"a.npy": ONES})[:-30],
    "damaged data": npz({"a.npy": ONES}).replace(ONES.tobytes(), bytes(16)),
    "objects": npz({"a.npy": np.array([{"a": 1}, None], dtype=object)}),
    "text": npz({"a.npy": np.array(["meta"])}),
    "climbing name": npz({"../a.npy": ONES}),
    "absolute name": npz({"/etc/a.npy": ONES}),
    "backslashes": npz({"..\\a.npy": ONES}),
    "a drive": npz({"C:/a.npy": ONES}),
    "other files": npz({"a.txt": b"hello"}),
    "no array": npz({"a.npy": b"hello"}),
    "empty member": npz({"a.npy": b""}),
    "huge shape": npz({"a.npy": npy_header(HUGE % 10**12)}),
    "negative shape": npz({"a.npy": npy_header(HUGE % -2)}),
    "evaluated header": npz({"a.npy": npy_header("__import__('os').getcwd()\n")}),
    "long header": npz({"a.npy": npy_header("(" * 60_000)}),
    "unhashable header": npz({"a.npy": npy_header("{[]: 1}\n")}),
    "objects by header": npz({"a.npy": npy_header(HUGE.replace("<f4", "|O") % 1)}),
    "bomb": npz({"a.npy": np.zeros(2**26, np.uint8), "b.npy": np.zeros(2**20, np.uint8)}, zipfile.ZIP_DEFLATED),
    "lzma": npz({"a.npy": ONES}, zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(BAD_NPZ[name])
    with pytest.raises(ValueError, match=r"is damaged, or not an \.npz file of weights"):
        read_weights(path)


def test_no_damage_raises_anything_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"a/b": random.standard_normal((3, 4)), "c": np.arange(5)}
    write_arrays(tmp_path / "a.safetensors", arrays, {"text": "note"})
    whole = {
        "a.safetensors": (tmp_path / "a.safetensors").read_bytes(),
        "a.npz": npz({f"{k}.npy": v for k, v in arrays.items()}),
    }
    for name, content in whole.items():
        for _ in range(300):
            damaged = bytearray(content)
            for place in random.integers(len(content), size=random.integers(1, 4)):
                damaged[place] = random.integers(256)
            (tmp_path / name).write_bytes(
                damaged[: random.integers(len(content)) or None] if random.random() < 0.2 else damaged
            )
            with contextlib.suppress(ValueError):
                read_weights(tmp_path / name)


def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(ONES))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(ONES))
    with pytest.raises(ValueError, match="twice"):
        read_weights(tmp_path / "a.npz")


def test_npz_as_numpy_writes_them(tmp_path: Path) -> None:
    arrays = {"a/b": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "c": np.float32(2), "d": np.ones(2, jnp.bfloat16)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        assert_equal(read_weights(tmp_path / "a.npz"), arrays)


def test_other_paths_are_refused_in_words(tmp_path: Path) -> None:
    model, state = filled(VIT)
    eqx_vit.save(tmp_path / "own.safetensors", model, state)
    os.mkfifo(tmp_path / "pipe.npz")
    for name, error, text in (
        (
            "model.pth",
            ValueError,
            r"is a pickle: run python -m eqx_vit.weights.convert .*model\.pth model\.safetensors",
        ),
        ("model.h5", ValueError, "neither a .safetensors nor a .npz"),
        ("absent.npz", FileNotFoundError, "there is no file"),
        ("pipe.npz", ValueError, "not a regular file"),
        ("own.safetensors", ValueError, "was written by eqx_vit.save"),
    ):
        with pytest.raises(error, match=text):
            read_weights(tmp_path / name)


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, small_preset: Any) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 346284714\n"
    (tmp_path / "weights").mkdir()
    for name in ("model.safetensors", "model.npz", "model.safetensors.index.json", "weights/model.safetensors"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, not the file itself: run git lfs pull"):
            read_weights(tmp_path / name)
    with pytest.raises(ValueError, match="run git lfs pull"):
        eqx_vit.create(TINY_PRESET, pretrained=tmp_path / "weights", key=KEY)
    with pytest.raises(ValueError, match="run git lfs pull"):
        eqx_vit.load(tmp_path / "model.safetensors")


def write_parts(folder: Path, arrays: dict[str, Any], parts: int = 3) -> dict[str, str]:
    """A model in several files, as transformers and timm save large ones; returns the index's map."""
    names = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    places = {name: names[index % parts] for index, name in enumerate(arrays)}
    folder.mkdir(exist_ok=True)
    for file in names:
        write_arrays(folder / file, {name: array for name, array in arrays.items() if places[name] == file}, {})
    write_index(folder, places)
    return places


def write_index(folder: Path, places: Any) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_with_parts_is_read(tmp_path: Path, small_preset: Any) -> None:
    model, state = filled(VIT)
    weights = to_state_dict(model, state, "timm")
    folder = tmp_path / "parts"
    places = write_parts(folder, weights)
    for path in (folder, folder / "model.safetensors.index.json"):
        assert_equal(read_weights(path), weights)
        loaded = eqx_vit.create(TINY_PRESET, pretrained=path, key=KEY)
        assert_equal(leaves_of(*loaded), leaves_of(model, state))
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    text = "names 3 files, of which 2 are not beside it: model-00002-of-00003.safetensors, model-00003-of"
    with pytest.raises(FileNotFoundError, match=text):
        read_weights(folder)
    write_parts(folder, weights)
    write_index(folder, {**places, "extra": "model-00001-of-00003.safetensors"})
    with pytest.raises(ValueError, match=r"00001-of-00003.safetensors has not the arrays .* says: extra"):
        read_weights(folder)
    write_arrays(folder / "model.safetensors", {"whole": np.ones(1)}, {})
    assert set(read_weights(folder)) == {"whole"}


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/etc/a.safetensors", "a/b.safetensors", "..\\a.safetensors", "a.bin", "", 3, None],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, place: Any) -> None:
    write_arrays(tmp_path / "model.safetensors", {"a": ONES}, {})
    (tmp_path / "in").mkdir()
    write_index(tmp_path / "in", {"a": place})
    with pytest.raises(ValueError, match=r"is damaged, or not an index of \.safetensors files: .* is not the name of"):
        read_weights(tmp_path / "in")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"weight_map": []}', b"\xff{", b"[" * 100_000])
def test_damaged_indices_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged, or not an index"):
        read_weights(tmp_path)


# The converter


class Tensor:
    """As much of a PyTorch tensor as the converter uses."""

    dtype = "float32"

    def __init__(self, array: Any) -> None:
        self.array = array

    def detach(self) -> "Tensor":
        return self

    cpu = contiguous = detach

    def numpy(self) -> Any:
        return self.array


def test_pickles_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def load(file: Path, map_location: str, weights_only: bool) -> Any:
        assert weights_only
        if file.read_bytes() != b"weights":
            raise RuntimeError("Unsupported operand 149\nmore")
        return {"model": {"module.a": Tensor(ONES)}, "optimizer": {"step": 3}}

    torch = types.ModuleType("torch")
    torch.__dict__.update(load=load, Tensor=Tensor, bfloat16="bfloat16")
    monkeypatch.setitem(sys.modules, "torch", torch)
    file, out = tmp_path / "a.pth", tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    assert main([str(file), str(out)]) == 0
    assert_equal(read_weights(out), {"module.a": ONES})
    assert main([str(file), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    file.write_bytes(b"else")
    assert main([str(file), str(tmp_path / "b.safetensors")]) == 2
    assert capsys.readouterr().err.endswith("read safely: Unsupported operand 149\n")
    assert main([str(tmp_path / "absent.pth"), str(tmp_path / "b.safetensors")]) == 2
    assert main([str(file), str(tmp_path / "b.npz")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


def test_the_converter_says_that_it_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"weights")
    assert main([str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 2
    assert "reading pickles needs PyTorch: pip install torch" in capsys.readouterr().err


def test_a_real_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"a": torch.ones(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert_equal(read_weights(tmp_path / "a.safetensors"), {"a": np.ones((3, 2)), "b": np.ones(2)})


def test_what_holds_several_sets_or_none_is_refused() -> None:
    weights = {"a": 1}
    assert weights_in(weights, int) == weights_in({"state_dict": weights, "epoch": 3}, int) == weights
    both = {"model": weights, "model_ema": {"b": 2}}
    assert weights_in(both, int, "model_ema") == {"b": 2}
    for content, key, text in (
        (both, None, "several sets of weights: choose with --key, one of model, model_ema"),
        (both, "state_dict", "no weights under 'state_dict'"),
        ({"epoch": "3"}, None, "more than weights: epoch"),
        ({}, None, "nothing"),
        ([1], None, "found a list"),
    ):
        with pytest.raises(ValueError, match=text):
            weights_in(content, int, key)


# The hub


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "web"))
    return tmp_path / "hub"


def put_in_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """Files of a repository, laid out as huggingface_hub lays them out: blobs, and a snapshot that links to them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(commit)
    for name, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / blob).write_bytes(content)
        (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob}")


TINY_PRESET = "vit_wee_patch16_reg1_gap_256"


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A preset and its released weights, shrunk so that the tests are quick."""
    row = MODELS["vit"]
    monkeypatch.setitem(row.presets, TINY_PRESET, VIT)
    source = eqx_vit.Source(hub="timm/small.in1k", classes=5)
    monkeypatch.setitem(row.weights, TINY_PRESET, source)
    return source


def safetensors_bytes(arrays: dict[str, Any], folder: Path) -> bytes:
    write_arrays(folder / "temporary.safetensors", arrays, {})
    return (folder / "temporary.safetensors").read_bytes()


def test_released_weights_come_from_the_cache(
    offline_cache: Path, tmp_path: Path, small_preset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not in the cache .* and cannot be downloaded .* run: hf download"):
        eqx_vit.create(TINY_PRESET, pretrained=True, key=KEY)
    model, state = filled(VIT)
    content = safetensors_bytes(to_state_dict(model, state, "timm"), tmp_path)
    put_in_cache(offline_cache, "timm/small.in1k", {"model.safetensors": content})
    loaded = eqx_vit.create(TINY_PRESET, pretrained=True, key=KEY)
    assert_equal(leaves_of(*loaded), leaves_of(model, state))
    changed, _ = eqx_vit.create(
        TINY_PRESET, pretrained=True, key=KEY, num_classes=3, image_size=8, channels=1, dropout=0.5
    )
    assert changed.config == dataclasses.replace(VIT, num_classes=3, image_size=8, channels=1, dropout=0.5)
    np.testing.assert_array_equal(named_leaves(changed)["norm.weight"], model.norm.weight)
    row = MODELS["vit"].weights
    good = dataclasses.replace(small_preset, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(row, TINY_PRESET, good)
    eqx_vit.create(TINY_PRESET, pretrained=True, key=KEY)
    monkeypatch.setitem(row, TINY_PRESET, dataclasses.replace(good, sha256="0" * 64))
    with pytest.raises(ValueError, match="its sha256 is not 000"):
        eqx_vit.create(TINY_PRESET, pretrained=True, key=KEY)


def test_predict_prepares_pictures_as_released_weights_expect(
    offline_cache: Path, tmp_path: Path, small_preset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image_module.fromarray(pixels).save(tmp_path / "photo.png")
    command = ["predict", TINY_PRESET, str(tmp_path / "photo.png"), "--top", "2"]
    assert command_line(command) == 2
    assert "is not in the cache" in capsys.readouterr().err
    model, state = filled(VIT)
    content = safetensors_bytes(to_state_dict(model, state, "timm"), tmp_path)
    put_in_cache(offline_cache, "timm/small.in1k", {"model.safetensors": content})
    prepared = preprocessing(TINY_PRESET).apply(pixels)
    expected = np.asarray(jax.nn.softmax(eqx.nn.inference_mode(model)(jnp.asarray(prepared))))
    best, second = np.argsort(-expected)[:2]
    lines = [f"  {expected[index]:7.2%}  class {index}" for index in (best, second)]
    assert command_line(command) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "photo.png"), *lines]
    labels = {"architecture": TINY_PRESET, "num_classes": 5, "label_names": ["ant", "bee", "cat", "dog", "eel"]}
    put_in_cache(offline_cache, "timm/small.in1k", {"config.json": json.dumps(labels).encode()})
    assert command_line(command) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(f"%  {labels['label_names'][best]}")


def test_any_repository_of_timm_or_transformers(offline_cache: Path, tmp_path: Path, small_preset: Any) -> None:
    mine = dataclasses.replace(VIT, num_classes=3, image_size=(8, 16), channels=1)
    model, state = filled(mine)
    config = {
        "architecture": TINY_PRESET,
        "num_classes": 3,
        "pretrained_cfg": {
            "input_size": [1, 8, 16],
            "mean": [0.1],
            "std": [0.2],
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        },
    }
    content = safetensors_bytes(to_state_dict(model, state, "timm"), tmp_path)
    put_in_cache(offline_cache, "me/mine", {"model.safetensors": content, "config.json": json.dumps(config).encode()})
    loaded, after = eqx_vit.create(TINY_PRESET, pretrained="hf-hub:me/mine", key=KEY)
    assert loaded.config == mine
    assert_equal(leaves_of(loaded, after), leaves_of(model, state))
    write_parts(tmp_path / "parts", to_state_dict(model, state, "timm"))
    parts = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    put_in_cache(offline_cache, "me/parts", parts | {"config.json": json.dumps(config).encode()})
    loaded, after = eqx_vit.create(TINY_PRESET, pretrained="hf-hub:me/parts", key=KEY)
    assert_equal(leaves_of(loaded, after), leaves_of(model, state))
    headed, _ = eqx_vit.create(TINY_PRESET, pretrained="hf-hub:me/mine@main", key=KEY, num_classes=7)
    assert headed.config == dataclasses.replace(mine, num_classes=7)
    expected = preprocessing("hf-hub:me/mine")
    assert (expected.image_size, expected.mean, expected.crop, expected.classes) == ((8, 16), (0.1,), 1.0, 3)
    with pytest.raises(ValueError, match="differs from the requested model in \\['dim'"):
        eqx_vit.create(dataclasses.replace(VIT, dim=16), pretrained="hf-hub:me/mine", key=KEY)
    with pytest.raises(ValueError, match="not the name of a repository"):
        eqx_vit.create(TINY_PRESET, pretrained="hf-hub:a/b/c", key=KEY)

    plain = {"model_type": "vit", "id2label": {"0": "a", "1": "b"}, "image_size": 16, "layer_norm_eps": 1e-12}
    model, state = filled(dataclasses.replace(VIT, num_classes=2))
    older = {f"module.{name}": array for name, array in to_state_dict(model, state, "hf").items()}
    put_in_cache(
        offline_cache,
        "me/other",
        {"model.safetensors": safetensors_bytes(older, tmp_path), "config.json": json.dumps(plain).encode()},
    )
    loaded, after = eqx_vit.create(TINY_PRESET, pretrained="hf-hub:me/other", key=KEY)
    assert loaded.config == dataclasses.replace(VIT, num_classes=2, norm_eps=1e-12)
    assert_equal(leaves_of(loaded, after), leaves_of(model, state))


def test_local_files_and_sources(tmp_path: Path, small_preset: Any) -> None:
    model, state = filled(VIT)
    write_arrays(tmp_path / "a.safetensors", to_state_dict(model, state, "timm"), {})
    older = {f"opt/target/{name}.npy": array for name, array in to_state_dict(model, state, "flax").items()}
    (tmp_path / "a.npz").write_bytes(npz(older))
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.npz")):
        loaded = eqx_vit.create(TINY_PRESET, pretrained=path, key=KEY)
        assert_equal(leaves_of(*loaded), leaves_of(model, state))
    with pytest.raises(ValueError, match=r"layout of .*a.safetensors is not known: give pretrained=eqx_vit.Source"):
        eqx_vit.create(VIT, pretrained=tmp_path / "a.safetensors", key=KEY)
    write_arrays(tmp_path / "b.safetensors", to_state_dict(model, state, "hf"), {})
    source = eqx_vit.Source(hub=str(tmp_path), file="b.safetensors", layout="hf", classes=5)
    loaded = eqx_vit.create(VIT, pretrained=source, key=KEY)
    assert_equal(leaves_of(*loaded), leaves_of(model, state))
    with pytest.raises(ValueError, match="missing cls_token"):
        eqx_vit.create(TINY_PRESET, pretrained=tmp_path / "b.safetensors", key=KEY)
    with pytest.raises(ValueError, match="pretrained=True needs the name of a preset"):
        eqx_vit.create(VIT, pretrained=True, key=KEY)
    with pytest.raises(ValueError, match="no weights of vit_giant_patch14_224 are released: released are"):
        eqx_vit.create("vit_giant_patch14_224", pretrained=True, key=KEY)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        eqx_vit.create(TINY_PRESET, pretrained=tmp_path / "absent.safetensors", key=KEY)


def test_urls_are_downloaded_once(tmp_path: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    class Answer(io.BytesIO):
        headers = {"Content-Length": "4"}  # noqa: RUF012

    class Page(Answer):
        headers = {"Content-Type": "text/html; charset=utf-8"}  # noqa: RUF012

    answers = [Answer(b"abc"), Page(b"Confirm"), Answer(b"abcd")]
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: answers.pop(0))
    url = "https://somewhere.example/folder/weights.npz"
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set: download https"):
        fetch(url, "weights.npz")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match="the connection ended after 3 of 4 bytes"):
        fetch(url, "weights.npz")
    with pytest.raises(FileNotFoundError, match="a web page, perhaps one that wants"):
        fetch(url, "weights.npz")
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]
    path = fetch(url, "weights.npz", sha256=hashlib.sha256(b"abcd").hexdigest())
    assert path.read_bytes() == b"abcd"
    assert fetch(url, "weights.npz") == path
    assert not answers


# Preprocessing


def test_preprocessing_is_timms_rule() -> None:
    image = pytest.importorskip("PIL.Image").fromarray(
        np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    )
    rule = preprocessing("vit_base_patch16_224")
    assert (rule.image_size, rule.crop, rule.classes, rule.mean) == ((224, 224), 0.9, 1000, (0.5, 0.5, 0.5))
    pixels = rule.apply(image)
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.float32)
    # 224 / 0.9 = 248.9: the shorter side becomes 248, the longer int(248 * 400 / 300) = 330; the crop begins at 12, 53.
    resized = np.asarray(image.resize((330, 248), 3))[12 : 12 + 224, 53 : 53 + 224]
    np.testing.assert_allclose(pixels, (resized / np.float32(255) - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_array_equal(rule.apply(np.asarray(image)), pixels)
    wide = dataclasses.replace(rule, image_size=(90, 180), crop=1.0)
    assert wide.apply(image.convert("L")).shape == (90, 180, 3)
    for wrong in (np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), "image.png"):
        with pytest.raises(ValueError, match="expected a Pillow image"):
            rule.apply(wrong)
    with pytest.raises(ValueError, match="no weights of vit_giant_patch14_224 are released"):
        preprocessing("vit_giant_patch14_224")
    with pytest.raises(ValueError, match="neither a preset"):
        preprocessing("vit_unknown")
    assert preprocessing("cvt-13-384").image_size == (384, 384)


# Export


def test_a_folder_for_timm_comes_back(tmp_path: Path, small_preset: Any) -> None:
    mine = dataclasses.replace(VIT, num_classes=2, image_size=(8, 16), dropout=0.1)
    model, state = filled(mine)
    folder = tmp_path / "mine"
    with pytest.raises(ValueError, match="needs architecture="):
        export(folder, model, state, target="timm")
    with pytest.raises(ValueError, match="is not a vit_tiny_patch16_224: it differs in patch_size, dim, depth"):
        export(folder, model, state, target="timm", architecture="vit_tiny_patch16_224")
    assert not folder.exists()
    rule = dataclasses.replace(preprocessing(TINY_PRESET), crop=0.7)
    export(folder, model, state, target="timm", architecture=TINY_PRESET, preprocessing=rule, class_names=["a", "b"])
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == TINY_PRESET
    assert config["model_args"] == {"img_size": [8, 16]}
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 16]
    assert config["label_names"] == ["a", "b"]
    loaded, after = eqx_vit.create(TINY_PRESET, pretrained=folder, key=KEY, dropout=0.1)
    assert loaded.config == mine
    assert_equal(leaves_of(loaded, after), leaves_of(model, state))
    assert preprocessing(folder) == dataclasses.replace(rule, image_size=(8, 16), classes=2)
    with pytest.raises(FileExistsError):
        export(folder, model, state, target="timm", architecture=TINY_PRESET)


def test_folders_for_transformers(tmp_path: Path) -> None:
    deit = dataclasses.replace(VIT, distillation=True, norm_eps=1e-12)
    cvt = dataclasses.replace(TINY["cvt"], quick_gelu=False)
    levit = eqx_vit.LeViTConfig(dim=(16, 24, 32), depth=1, heads=2, dim_key=8, dim_value=16, num_classes=5)
    for config, kind, told in (
        (deit, "deit", {"hidden_size": 8, "intermediate_size": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}),
        (cvt, "cvt", {"embed_dim": [8, 12, 16], "patch_padding": [2, 1, 1], "cls_token": [False, False, True]}),
        (levit, "levit", {"key_dim": [8, 8, 8], "attention_ratio": [2, 2, 2], "mlp_ratio": [2, 2, 2]}),
    ):
        model, state = filled(config)
        export(tmp_path / kind, model, state, target="hf")
        written = json.loads((tmp_path / kind / "config.json").read_text())
        assert written["model_type"] == kind
        assert len(written["id2label"]) == 5
        assert told.items() <= written.items()
        assert_equal(read_weights(tmp_path / kind / "model.safetensors"), to_state_dict(model, state, "hf"))
    for config, text in (
        (dataclasses.replace(VIT, pool="mean", layer_scale=0.1), "cannot have this model's pool, layer_scale"),
        (TINY["cvt"], "exact GELU"),
        (TINY["cait"], "transformers has no CaiT"),
    ):
        with pytest.raises(ValueError, match=text):
            export(tmp_path / "refused", *filled(config), target="hf")
    assert not (tmp_path / "refused").exists()


# Costs


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_tiny_patch16_224", 1_254), ("levit_128s", 305), ("pit_ti_224", 699)]
)
def test_multiply_adds_are_those_that_papers_count(name: str, millions: int) -> None:
    assert round(multiply_adds(find_preset(name)) / 1e6) == millions
