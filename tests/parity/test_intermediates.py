"""Features and what is said of them, beside timm's `forward_intermediates` and `feature_info`: `nox -s parity`."""

import zlib
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_vit
from eqx_vit.registry import change_config, find_preset
from eqx_vit.weights import load_state_dict

torch = pytest.importorskip("torch", reason="run by nox -s parity")
timm = pytest.importorskip("timm", reason="run by nox -s parity")

from comparison import TOLERANCE, randomised, skeleton

pytestmark = pytest.mark.parity

# One small preset for each of timm's classes and kinds of prefix, and (height, width) of its images: small, and of
# two lengths wherever timm takes them, so that rows cannot pass for columns.
VITS = {  # timm's VisionTransformer, which alone gives prefix tokens
    "vit_tiny_patch16_224": (32, 64),
    "deit_tiny_distilled_patch16_224": (48, 32),
    "deit3_small_patch16_224": (32, 48),
    "vit_wee_patch16_reg1_gap_256": (48, 64),
    "vit_medium_patch16_gap_256": (32, 48),
    "vit_small_patch16_18x2_224": (32, 48),
}
OTHERS_WITH_TOKENS = {"cait_xxs24_224": (32, 48), "crossvit_tiny_240": (120, 240)}
WITH_TOKENS = VITS | OTHERS_WITH_TOKENS  # whose output_fmt timm lets be NLC
WITHOUT_TOKENS = {
    "levit_128s": (96, 160),
    "nest_tiny": (64, 64),
    "pit_ti_224": (64, 96),
    "pit_ti_distilled_224": (64, 96),
    "twins_svt_small": (64, 96),
    "twins_pcpvt_small": (64, 96),
}
SIZES = WITH_TOKENS | WITHOUT_TOKENS
ANY = {name: SIZES[name] for name in ("vit_tiny_patch16_224", "pit_ti_224")}  # for rules that are one for all


class Pair(NamedTuple):
    """timm's model and ours with its weights, and images for both."""

    theirs: Any
    ours: eqx.Module
    state: eqx.nn.State
    images: np.ndarray  # (batch, height, width, channels)

    def intermediates(self, **arguments: Any) -> list[Any]:
        return eqx_vit.intermediates(self.ours, self.state, jnp.asarray(self.images), **arguments)

    def forward_intermediates(self, **arguments: Any) -> list[Any]:
        """timm's, with the channels still first."""
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.images, -1, 1)))
        with torch.inference_mode():
            return self.theirs.forward_intermediates(images, intermediates_only=True, **arguments)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    """The models of one preset, which tests that follow one another share."""
    name, size = request.param, SIZES[request.param]
    config = find_preset(name)
    sized = {"image_size": size} if hasattr(config, "image_size") else {}  # Twins takes any
    config = change_config(config, sized)
    theirs = timm.create_model(name, num_classes=config.num_classes, img_size=size).eval()
    ours, state = load_state_dict(*skeleton(config), randomised(theirs, name), source="timm")
    # Two images, so that what goes wrong with a batch shows.
    random = np.random.default_rng(zlib.crc32(name.encode()))
    images = random.standard_normal((2, *size, config.channels), dtype=np.float32)
    return Pair(theirs, eqx.nn.inference_mode(ours), state, images)


def _for_presets(names: dict[str, tuple[int, int]]) -> pytest.MarkDecorator:
    # The scope has pytest run all tests of a preset before those of the next.
    return pytest.mark.parametrize("pair", names, indirect=True, scope="module")


@_for_presets(SIZES)
@pytest.mark.parametrize("norm", [False, True], ids=["bare", "norm"])
def test_all_equal_timms(pair: Pair, norm: bool, request: pytest.FixtureRequest, record_property: Any) -> None:
    name = request.node.callspec.params["pair"]
    record_property("preset", name)
    record_property("theirs", f"timm {name} forward_intermediates(norm={norm})")
    difference = _compare_maps(pair.intermediates(norm=norm), pair.forward_intermediates(norm=norm))
    record_property("feature difference", f"{difference:.1e}")


@_for_presets(SIZES)
@pytest.mark.parametrize("indices", [2, [0, -2]], ids=["last two", "first and last but one"])
def test_chosen_equal_timms(pair: Pair, indices: int | list[int]) -> None:
    _compare_maps(pair.intermediates(indices=indices), pair.forward_intermediates(indices=indices))


@_for_presets(ANY)
@pytest.mark.parametrize("indices", [[-1, 0], [1, 1]], ids=["out of order", "twice"])
def test_order_is_timms(pair: Pair, indices: list[int]) -> None:
    """Each feature once, in the order of the depth, however they are asked for."""
    _compare_maps(pair.intermediates(indices=indices), pair.forward_intermediates(indices=indices))


@_for_presets(VITS)
@pytest.mark.parametrize("norm", [False, True], ids=["bare", "norm"])
def test_prefix_tokens_equal_timms(pair: Pair, norm: bool) -> None:
    found = pair.intermediates(prefix_tokens=True, norm=norm)
    expected = pair.forward_intermediates(return_prefix_tokens=True, norm=norm)
    if pair.theirs.num_prefix_tokens:
        maps, prefixes = zip(*expected, strict=True)
        _compare([prefix for _, prefix in found], prefixes)
    else:  # timm has no pairs then, and ours hold no tokens
        maps = expected
        assert all(prefix.shape == (len(pair.images), 0, map_.shape[-1]) for map_, prefix in found)
    _compare_maps([map_ for map_, _ in found], maps)


@_for_presets(WITH_TOKENS)
def test_tokens_equal_timms(pair: Pair) -> None:
    _compare(pair.intermediates(layout="tokens"), pair.forward_intermediates(output_fmt="NLC"))


@_for_presets(WITHOUT_TOKENS)
def test_tokens_are_the_rows_of_timms_maps(pair: Pair) -> None:
    expected = [map_.flatten(2).transpose(1, 2) for map_ in pair.forward_intermediates()]
    _compare(pair.intermediates(layout="tokens"), expected)


@_for_presets(SIZES)
def test_feature_info_equals_timms(pair: Pair) -> None:
    found = eqx_vit.feature_info(pair.ours, pair.state, pair.images.shape[1:3])
    expected = pair.theirs.feature_info
    assert [entry.channels for entry in found] == [entry["num_chs"] for entry in expected]
    assert [entry.reduction for entry in found] == [entry["reduction"] for entry in expected]
    shapes = [tuple(map_.shape) for map_ in pair.forward_intermediates()]
    assert [(entry.channels, *entry.shape[:2]) for entry in found] == [shape[1:] for shape in shapes]


@_for_presets(VITS)
def test_prefix_counts_equal_timms(pair: Pair) -> None:
    assert {entry.prefix_tokens for entry in eqx_vit.feature_info(pair.ours)} == {pair.theirs.num_prefix_tokens}


def _compare_maps(found: list[Any], expected: Any) -> float:
    return _compare(found, [map_.movedim(1, -1) for map_ in expected])


def _compare(found: list[Any], expected: Any) -> float:
    """Assert that all are equal; the largest difference, of the scale of its own feature."""
    assert [feature.shape for feature in found] == [tuple(feature.shape) for feature in expected]
    differences = [_difference(ours, theirs.numpy()) for ours, theirs in zip(found, expected, strict=True)]
    wrong = {index: f"{difference:.1e}" for index, difference in enumerate(differences) if difference > TOLERANCE}
    assert not wrong, f"features that differ, by how much of their scale: {wrong}"
    return max(differences)


def _difference(found: Any, expected: np.ndarray) -> float:
    scale = float(np.abs(expected).max())
    assert 0.01 < scale < 1000, f"features of scale {scale} show nothing"
    return float(np.abs(np.asarray(found) - expected).max()) / scale
