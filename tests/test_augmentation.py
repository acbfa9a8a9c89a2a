"""What training does to its images, against timm: crops, RandAugment, 3-Augment, colour jitter, Mixup, CutMix, erasing.

`golden/augmentation.npz` was recorded with timm 1.0.31, torchvision 0.29.1 and Pillow 11.3.0 on one synthetic image of
24 x 20 pixels. What is drawn at random was fixed where one result is compared (levels, signs, boxes, lambdas). Where
the draws themselves are compared, `moments` holds the mean and the standard deviation of each third pixel and of its
square, over 20,000 results of timm (RandAugment, its crop, Mixup, RandomErasing), torchvision (ColorJitter), and
torchvision's parts put together as DeiT III's augment.py does (3-Augment, the simple random crop).
"""

import itertools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from eqx_vit.train import policies
from eqx_vit.train.crops import _cut_out, _draw_box, centre_crop, random_resized_crop, simple_random_crop
from eqx_vit.train.mixing import _choose_fitting, _keep_outside, _mix, erase_randomly, mix_batch
from eqx_vit.train.policies import OPERATIONS, RandAugment, Strength, jitter_colours, rand_augment, three_augment

with np.load(golden_files.FOLDER / "augmentation.npz", allow_pickle=False) as file:
    GOLDEN = dict(file)
IMAGE = Image.fromarray(GOLDEN["image"])
FILL = (124, 116, 104)
SIZE = (24, 20)
BATCH = jnp.asarray(GOLDEN["batch"])
MIXING = {"mix": (0.8, 1.0, 0.3, 0.9), "mixup": (0.2, 0.0), "cutmix": (0.0, 1.0)}
METHODS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
RANDOM: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "rand-m9-mstd0.5-inc1": lambda rng: rand_augment(IMAGE, rng, RandAugment(9.0, 0.5, 2, True), FILL),
    "rand-m5-n3": lambda rng: rand_augment(IMAGE, rng, RandAugment(5.0, 0.0, 3, False), FILL),
    "three_augment": lambda rng: three_augment(IMAGE, rng),
    "jitter_colours": lambda rng: jitter_colours(IMAGE, rng, 0.4),
    "random_resized_crop": lambda rng: random_resized_crop(IMAGE, (16, 14), rng),
    "simple_random_crop": lambda rng: simple_random_crop(IMAGE, (16, 16), rng),
}


def compare_moments(name: str, values: np.ndarray) -> None:
    """The means of the results and of their squares, within five standard errors of those recorded."""
    draws = np.stack([values, values**2 / 255], axis=1)
    mean, deviation = GOLDEN[f"moments/{name}"]
    error = deviation * np.sqrt(1 / len(draws) + 1 / 20_000) + 1e-6
    assert np.abs((draws.mean(axis=0) - mean) / error).max() < 5


# --- pictures


@pytest.mark.parametrize("name", RANDOM)
def test_random_changes_are_as_frequent_and_as_strong_as_in_the_reference(name: str) -> None:
    rng = np.random.default_rng(1)
    compare_moments(name, np.stack([np.asarray(RANDOM[name](rng), dtype=np.float64)[::3, ::3] for _ in range(3000)]))


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_decides_what_is_drawn(name: str) -> None:
    rngs = map(np.random.default_rng, (3, 3, 4))
    first, again, other = ([RANDOM[name](rng).tobytes() for _ in range(20)] for rng in rngs)
    assert first == again
    assert first != other
    assert len(set(first)) > 2


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_timms(name: str, mode: str, increasing: bool) -> None:
    operation = OPERATIONS[name].increasing if increasing else OPERATIONS[name].plain
    kind = "Increasing" if increasing and f"{mode}/{name}Increasing" in GOLDEN else ""
    fill = FILL if mode == "RGB" else (120,)
    for case, expected in zip(
        itertools.product((3.7, 10.0), (1, -1), METHODS), GOLDEN[f"{mode}/{name}{kind}"], strict=True
    ):
        changed = operation(IMAGE.convert(mode), Strength(*case, fill))
        assert changed.mode == mode
        # Rounding inside of Pillow may differ by version.
        np.testing.assert_allclose(np.asarray(changed, dtype=int), expected, atol=1, err_msg=f"{case}")


def test_operations_are_drawn_alike_and_done_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Strength]] = []
    for name in OPERATIONS:
        increasing = lambda image, strength, name=name: done.append((name, strength)) or image  # noqa: E731
        monkeypatch.setitem(OPERATIONS, name, policies.Variants(lambda *_: pytest.fail("plain"), increasing))
    rng, images = np.random.default_rng(0), 4000
    for _ in range(images):
        assert rand_augment(IMAGE, rng, RandAugment(9.0, 0.5, 3, True, 0.4), FILL) is IMAGE
    assert abs(len(done) / images - 3 * 0.4) < 0.05
    counts = Counter(name for name, _ in done)
    assert len(counts) == 15
    assert max(abs(count / len(done) * 15 - 1) for count in counts.values()) < 0.25
    levels = np.array([strength.level for _, strength in done])
    expected = np.clip(np.random.default_rng(1).normal(9, 0.5, 100_000), 0, 10)
    np.testing.assert_allclose([levels.mean(), levels.std()], [expected.mean(), expected.std()], atol=0.03)
    assert levels.max() == 10
    choices = [(strength.sign == 1, strength.resample == Image.Resampling.BICUBIC) for _, strength in done]
    np.testing.assert_allclose(np.mean(choices, axis=0), 0.5, atol=0.03)
    done.clear()
    for _ in range(images):  # so large a deviation means a uniform magnitude
        rand_augment(IMAGE, rng, RandAugment(8.0, 101.0, 1, True, 1.0), FILL)
    assert len(done) == images
    quartiles = np.quantile([strength.level for _, strength in done], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quartiles, [0, 2, 4, 6, 8], atol=0.2)


def test_policies_are_spelt_as_in_timm() -> None:
    assert policies.parse_rand_augment("rand-m9-mstd0.5-inc1") == (9, 0.5, 2, True, 0.5)
    assert policies.parse_rand_augment("rand-n3-p0.25-m7-inc0") == (7, 0, 3, False, 0.25)
    assert policies.parse_rand_augment("rand") == (10, 0, 2, False, 0.5)
    for text in ("", "m9", "rand-m", "rand-m9-m8", "rand-x1", "rand-n0", "rand-n1.5", "rand-inc2", "rand-p1.5", "v0"):
        with pytest.raises(ValueError, match=rf"rand-m9-mstd0.5-inc1.*given '{text}'$"):
            policies.parse_rand_augment(text)


def test_three_augment_and_jitter_are_made_of_known_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = IMAGE.convert("L")
    for image in (IMAGE, grey):
        rng = np.random.default_rng(0)
        counts = Counter(three_augment(image, rng).tobytes() for _ in range(90))
        known = [counts.pop(part.tobytes()) for part in (grey.convert(image.mode), ImageOps.solarize(image, 128))]
        assert min(known) > 18
        spreads = [np.frombuffer(blurred, np.uint8).std() for blurred in counts]
        assert len(spreads) > 18
        soft, sharp = (np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).std() for radius in (2.1, 0))
        assert soft < min(spreads) < 1.02 * soft < max(spreads) <= sharp
    rng, done = np.random.default_rng(0), []
    assert jitter_colours(IMAGE, rng, 0.0).tobytes() == IMAGE.tobytes()
    assert jitter_colours(grey, rng, 0.4).mode == "L"
    with pytest.raises(ValueError, match="amount must not be negative, given -1"):
        jitter_colours(IMAGE, rng, -1.0)
    for name in ("Brightness", "Contrast", "Color"):
        kind = SimpleNamespace(enhance=lambda factor, name=name: done.append(name) or IMAGE)
        monkeypatch.setattr(ImageEnhance, name, lambda image, kind=kind: kind)
    for _ in range(600):
        jitter_colours(IMAGE, rng, 0.4)
    orders = Counter(tuple(done[start : start + 3]) for start in range(0, len(done), 3))
    assert sorted(map(sorted, orders)) == [["Brightness", "Color", "Contrast"]] * 6
    assert min(orders.values()) > 70


# --- crops


def test_crops_are_timms() -> None:
    for size in ((16, 14), (30, 33)):
        for index, box in enumerate([(3, 2, 15, 11), (0, 0, 20, 24), (7, 1, 12, 23)]):
            cropped = np.asarray(_cut_out(IMAGE, box, size), dtype=int)
            np.testing.assert_allclose(cropped, GOLDEN[f"crop/{size[0]}x{size[1]}"][index], atol=1)
    for name in [name for name in GOLDEN if name.startswith("centre/")]:
        _, size, fraction, turned = name.split("/")
        height, width = map(int, size.split("x"))
        image = IMAGE.transpose(Image.Transpose.ROTATE_90) if turned == "1" else IMAGE
        cropped = centre_crop(image, (height, width), float(fraction))
        np.testing.assert_allclose(np.asarray(cropped, dtype=int), GOLDEN[name], atol=1, err_msg=name)
    with pytest.raises(ValueError, match="above 0 and at most 1, given 0"):
        centre_crop(IMAGE, (8, 8), 0.0)


def test_boxes_are_within_the_image_and_their_ranges() -> None:
    rng, ratio = np.random.default_rng(0), (3 / 4, 4 / 3)
    for width, height, *expected in GOLDEN["fallback"].tolist():
        assert list(_draw_box(width, height, rng, (4.0, 4.0), ratio)) == expected  # no box is as large
        left, top, right, bottom = _draw_box(width, height, rng, (0.01, 1.0), ratio)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    ratio = (0.6, 4 / 3)
    boxes = np.array([_draw_box(1000, 900, rng, (0.1, 0.3), ratio) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, aspects = widths * heights / 900_000, np.log(widths / heights)
    for values, (low, high) in ((shares, (0.1, 0.3)), (aspects, np.log(ratio))):  # both uniform
        np.testing.assert_allclose(np.quantile(values, [0, 0.5, 1]), [low, (low + high) / 2, high], atol=0.02)
    assert abs(np.corrcoef(shares, aspects)[0, 1]) < 0.06


@pytest.mark.parametrize("size", [(16, 16), (12, 17), (19, 10)])
def test_the_simple_crop_is_a_window_of_the_whole_image_with_mirrored_edges(size: tuple[int, int]) -> None:
    for mode in ("RGB", "L"):
        whole = centre_crop(IMAGE.convert(mode), size, 1.0)
        crops = [simple_random_crop(IMAGE.convert(mode), size, np.random.default_rng(seed)) for seed in range(300)]
        assert {(crop.mode, crop.size) for crop in crops} == {(mode, whole.size)}
        assert whole.tobytes() in {crop.tobytes() for crop in crops}


# --- batches


def test_batches_are_mixed_as_by_timm() -> None:
    targets = jax.nn.one_hot(jnp.array([3, 0, 4, 1]), 5) * 0.9 + 0.1 / 5
    mixed = {"mixup": jnp.full((12, 10), 0.3)}
    for name, share, centre in (("inside", 0.75, (6, 5)), ("corner", 0.4375, (1, 9)), ("odd", 0.4375, (6, 4))):
        mixed[f"cutmix-{name}"] = _keep_outside((12, 10), jnp.float32(share), jnp.array(centre))
    for name, weights in mixed.items():
        np.testing.assert_allclose(_mix(BATCH, weights), GOLDEN[f"{name}/images"], atol=1e-6)
        np.testing.assert_allclose(_mix(targets, weights.mean()), GOLDEN[f"{name}/targets"], atol=1e-6)


@pytest.mark.parametrize("name", MIXING)
def test_shares_and_rectangles_are_drawn_as_by_timm(name: str) -> None:
    images = jnp.stack([jnp.ones((*SIZE, 1)), jnp.zeros((*SIZE, 1))])
    keys = jax.random.split(jax.random.key(0), 5000)
    draw = jax.jit(jax.vmap(lambda key: mix_batch(key, images, jnp.eye(2), *MIXING[name])))
    mixed, targets = draw(keys)
    shares = targets[:, 0, 0]
    np.testing.assert_allclose(mixed.mean(axis=(2, 3, 4))[:, 0], shares, atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=2), jnp.ones((5000, 2)), atol=1e-6)
    pixels = np.asarray(mixed[:, 0, ::3, ::3, 0], dtype=np.float64).reshape(5000, -1)
    compare_moments(name, np.concatenate([pixels, np.asarray(shares, dtype=np.float64)[:, None]], axis=1))


def test_without_mixing_and_erasing_a_batch_is_as_it_was() -> None:
    for arguments in ((0.0, 0.0), (0.8, 1.0, 0.5, 0.0)):
        images, targets = mix_batch(jax.random.key(0), BATCH, jnp.eye(4), *arguments)
        np.testing.assert_array_equal(images, BATCH)
        np.testing.assert_array_equal(targets, jnp.eye(4))
    np.testing.assert_array_equal(erase_randomly(jax.random.key(0), BATCH, 0.0), BATCH)


def test_a_rectangle_of_noise_is_erased_as_by_timm() -> None:
    images = jnp.full((5000, *SIZE, 3), 9.0)
    erase = jax.jit(erase_randomly, static_argnums=2)
    erased = np.asarray(erase(jax.random.key(0), images, 0.5), dtype=np.float64)
    assert np.array_equal(erased, erase(jax.random.key(0), images, 0.5))
    assert not np.array_equal(erased, erase(jax.random.key(1), images, 0.5))
    areas = (erase(jax.random.key(2), images, 1.0) != 9)[..., 0].mean(axis=(1, 2))
    assert 0 < areas.min() < 0.025
    chosen = erased != 9
    assert np.array_equal(chosen.all(axis=3), chosen.any(axis=3))
    noise = erased[chosen]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    rows, columns = chosen.any(axis=(2, 3)), chosen.any(axis=(1, 3))
    np.testing.assert_array_equal(chosen.all(axis=3), rows[:, :, None] & columns[:, None])  # rectangles
    compare_moments("erase", chosen[..., 0].astype(np.float64))
    assert _choose_fitting(SIZE, jnp.array([24.0, 3.0, 9.6, 2.0]), jnp.array([5.0, 19.6, 4.4, 2.0])) == (10, 4)
    assert _choose_fitting(SIZE, jnp.array([24.0]), jnp.array([5.0])) == (0, 0)
