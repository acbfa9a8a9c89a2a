"""Pictures as they come: of any depth, with damaged metadata, from decoders that raise anything."""

import dataclasses
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from eqx_vit.train.pictures import open_image, read_image
from eqx_vit.weights import Preprocessing, preprocessing

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)


def exif(*fields: tuple[int, int, int, bytes]) -> bytes:
    """Little-endian EXIF of (tag, type, count, the four bytes of value or offset) fields."""
    directory = b"".join(struct.pack("<HHI", *field[:3]) + field[3] for field in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + directory + b"\0\0\0\0"


def write_png(path: Path, pixels: np.ndarray, metadata: bytes) -> None:
    """A PNG with this EXIF, written as it is."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    whole = content.getvalue()
    chunk = b"eXIf" + metadata.removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(whole[:33] + chunk + whole[33:])  # after the signature and the header


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda pixels: pixels),
        (2, np.fliplr),
        (3, lambda pixels: np.rot90(pixels, 2)),
        (4, np.flipud),
        (5, lambda pixels: pixels.swapaxes(0, 1)),
        (6, lambda pixels: np.rot90(pixels, -1)),
        (7, lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
        (8, np.rot90),
        (9, lambda pixels: pixels),
    ],
)
@pytest.mark.parametrize(
    "damaged",
    [
        (),
        ((0x011A, 2, 4, b"abc\0"),),  # a resolution as text, which Pillow's own rewriting of EXIF does not survive
        ((0x011A, 5, 1, b"\xff\xff\xff\x7f"), (0x8769, 4, 1, b"\xff\xff\0\0")),  # both lie beyond the end
    ],
)
def test_images_are_turned_upright_whatever_else_their_exif_says(
    orientation: int,
    upright: Callable[[np.ndarray], np.ndarray],
    damaged: tuple[tuple[int, int, int, bytes], ...],
    tmp_path: Path,
) -> None:
    turn = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    write_png(tmp_path / "turned.png", COLOURS, exif(turn, *damaged))
    np.testing.assert_array_equal(open_image(tmp_path / "turned.png", 3), upright(COLOURS))


@pytest.mark.parametrize(
    "metadata",
    [
        exif((0x0112, 2, 4, b"six\0")),
        exif((0x0112, 5, 1, b"\xff\xff\xff\x7f")),
        exif((0x0112, 3, 2**32 - 1, b"\x06\0\0\0")),
        exif((0x0112, 99, 1, b"\x06\0\0\0")),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0",
    ],
)
def test_images_lie_as_they_are_where_the_orientation_is_damaged(metadata: bytes, tmp_path: Path) -> None:
    write_png(tmp_path / "picture.png", COLOURS, metadata)
    np.testing.assert_array_equal(open_image(tmp_path / "picture.png", 3), COLOURS)


def test_mutated_exif_never_costs_the_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    whole = exif((0x0112, 3, 1, b"\x06\0\0\0"), (0x0110, 2, 3, b"cam\0"), (0x8769, 4, 1, b"\x1a\0\0\0"))
    pixels = sorted(COLOURS.reshape(-1, 3).tolist())
    for _ in range(100):
        mutated = np.frombuffer(whole, np.uint8).copy()
        mutated[random.integers(6, len(whole), 3)] = random.integers(0, 256, 3)
        write_png(tmp_path / "picture.png", COLOURS, mutated.tobytes())
        assert sorted(np.asarray(open_image(tmp_path / "picture.png", 3)).reshape(-1, 3).tolist()) == pixels


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("no\nimage item"),
        NotImplementedError(),
        TypeError("x" * 5000),
        MemoryError(),
        ZeroDivisionError("0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_one_unreadable_file(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(COLOURS).save(path)

    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"picture\.png is damaged: \w+") as refusal:
        read_image(path, (4, 4), 3)
    message = str(refusal.value)
    assert len(message) < len(str(path)) + 300
    assert "\n" not in message


def test_damaged_files_of_decoders_that_raise_their_own_are_named(tmp_path: Path) -> None:
    for format, position, byte in (("DDS", 80, 0x80), ("BLP", 8, 0xFF)):
        path = tmp_path / f"picture.{format.lower()}"
        picture = Image.fromarray(COLOURS)
        (picture.quantize() if format == "BLP" else picture).save(path, format=format)
        content = bytearray(path.read_bytes())
        content[position] = byte
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"picture.{format.lower()} is damaged"):
            open_image(path, 3)


def test_large_photographs_are_read_and_too_large_ones_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "picture.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 18)  # Pillow warns above it, and refuses above twice that
    assert open_image(tmp_path / "picture.png", 3).size == (7, 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(ValueError, match=r"picture\.png is too large: .*35 pixels"):
        open_image(tmp_path / "picture.png", 3)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a regular file"):
        open_image(Path("/dev/null"), 3)


def rule(channels: int) -> Preprocessing:
    return Preprocessing(
        image_size=GREY.shape,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        interpolation="bicubic",
        crop=1.0,
        classes=2,
    )


@pytest.mark.parametrize(
    "deep",
    [GREY.astype(np.uint16) * 257, GREY.astype(np.int32) * 257, GREY.astype(np.uint16), GREY / np.float32(255)],
    ids=["16 bits", "32 bits", "8 bits in 16", "floats"],
)
def test_deep_grey_is_not_white(deep: np.ndarray, tmp_path: Path) -> None:
    picture = Image.fromarray(deep)
    for channels in (1, 3):
        np.testing.assert_allclose(rule(channels).apply(picture), np.stack([GREY / 255] * channels, -1), atol=1e-6)
    picture.save(tmp_path / "deep.tiff")
    np.testing.assert_array_equal(open_image(tmp_path / "deep.tiff", 1), GREY)
    if deep.dtype == np.uint16:
        picture.save(tmp_path / "deep.png")
        with Image.open(tmp_path / "deep.png") as opened:
            np.testing.assert_allclose(rule(1).apply(opened)[..., 0], GREY / 255, atol=1e-6)


def test_grey_beyond_16_bits_is_refused() -> None:
    for value in (1e6, np.nan, -1.0):
        with pytest.raises(ValueError, match="its grey values reach"):
            rule(1).apply(Image.fromarray(np.full(GREY.shape, value, np.float32)))


def test_images_of_any_number_of_channels_are_prepared() -> None:
    for channels in (1, 2, 4, 13):
        pixels = np.random.default_rng(0).integers(0, 256, (*GREY.shape, channels), dtype=np.uint8)
        np.testing.assert_allclose(rule(channels).apply(pixels), pixels / 255, atol=1e-6)
        for wrong in (pixels[..., :0], pixels[:0], pixels[..., None], np.zeros((8, 8, 5), np.uint8)):
            with pytest.raises(ValueError, match=rf"array of \(height, width, {channels}\), given uint8"):
                rule(channels).apply(wrong)
    assert rule(4).apply(Image.new("RGBA", (10, 6), "white")).shape == (6, 10, 4)
    assert rule(3).apply(GREY[..., None]).shape == (6, 10, 3)
    assert rule(1).apply(COLOURS).shape == (6, 10, 1)
    with pytest.raises(ValueError, match=r"\(height, width, 13\), given 10 x 6 pixels of R, G, B"):
        rule(13).apply(Image.new("RGB", (10, 6)))
    with pytest.raises(ValueError, match="given 0 x 6 pixels"):
        rule(3).apply(Image.new("RGB", (0, 6)))
    with pytest.raises(ValueError, match=r"1 x 60000 pixels would become .*: crop it first"):
        dataclasses.replace(rule(1), image_size=(224, 224)).apply(Image.new("L", (1, 60_000)))


def test_a_description_tells_the_preprocessing_of_its_channels(tmp_path: Path) -> None:
    def describe(channels: int, **plain: object) -> Path:
        described = {"architecture": "vit_tiny_patch16_224", "num_classes": 2, "model_args": {"in_chans": channels}}
        described["pretrained_cfg"] = {"input_size": [channels, 224, 224], **plain}
        (tmp_path / "config.json").write_text(json.dumps(described))
        return tmp_path

    for channels in (1, 4, 13):
        given = {"mean": [channels / 40] * channels, "std": [0.25] * channels}
        expected = preprocessing(describe(channels, **given))
        assert (expected.mean, expected.std) == (tuple(given["mean"]), tuple(given["std"]))
        # Those of three channels, where they are equal, stand for any number, as timm has it for one.
        expected = preprocessing(describe(channels, mean=[0.5] * 3, std=[1, 1, 1]))
        assert (expected.mean, expected.std) == ((0.5,) * channels, (1.0,) * channels)
        with pytest.raises(ValueError, match=rf"does not tell the mean of its {channels} channels"):
            preprocessing(describe(channels))
    assert preprocessing(describe(3)).mean == (0.485, 0.456, 0.406)
    for wrong, words in (
        ({"std": [0]}, "std above 0"),
        ({"std": "none"}, "does not tell the std of its 3 channels"),
        ({"crop_pct": "all"}, "crop_pct of .* must be a number, given 'all'"),
        ({"crop_pct": 2}, "at most 1, given 2.0"),
        ({"interpolation": None}, "interpolation must be"),
    ):
        with pytest.raises(ValueError, match=words):
            preprocessing(describe(3, **wrong))
