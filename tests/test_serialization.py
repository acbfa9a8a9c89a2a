"""`save` and `load`: every bit comes back, damaged and foreign files are refused, a failed save changes nothing."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from tiny import TINY

import eqx_vit
from eqx_vit.create import make_skeleton
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import config_to_json
from eqx_vit.weights import load_state_dict, read_weights, to_state_dict


@pytest.mark.parametrize("name", ["vit", "levit"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_save_and_load_keep_every_bit(name: str, dtype: DTypeLike, tmp_path: Path) -> None:
    model, state = eqx_vit.create(TINY[name], key=jax.random.key(0))
    size = TINY[name].image_size
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    _, state = eqx_vit.forward(model, state, images)  # so that BatchNorm has seen something
    model = eqx_vit.cast(model, dtype)
    eqx_vit.save(tmp_path / "model.safetensors", model, state)
    loaded, loaded_state = eqx_vit.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    expected = named_leaves(model) | named_statistics(model, state)
    found = named_leaves(loaded) | named_statistics(loaded, loaded_state)
    assert expected.keys() == found.keys()
    for key, array in expected.items():
        assert (array.dtype, np.asarray(array).tobytes()) == (found[key].dtype, np.asarray(found[key]).tobytes()), key
    inference = eqx.nn.inference_mode
    np.testing.assert_array_equal(
        eqx_vit.forward(inference(loaded), loaded_state, images)[0].astype(jnp.float32),
        eqx_vit.forward(inference(model), state, images)[0].astype(jnp.float32),
    )


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model, state = eqx_vit.create(TINY["vit"], key=jax.random.key(0))
    path = tmp_path / "model.safetensors"
    eqx_vit.save(path, model, state)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole[4:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged, or not a safetensors file"):
            eqx_vit.load(path)
    save_file({"weight": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(ValueError, match=r"was not written by eqx_vit\.save"):
        eqx_vit.load(path)
    path.write_bytes(whole.replace(b'\\"dim\\": 16', b'\\"dim\\": 18'))
    with pytest.raises(ValueError, match=r"does not fit its own config: .*class_token has shape"):
        eqx_vit.load(path)
    path.write_bytes(whole.replace(b'\\"vit\\"', b'\\"vot\\"'))
    with pytest.raises(ValueError, match="there is no architecture 'vot'"):
        eqx_vit.load(path)
    with pytest.raises(ValueError, match="is a folder"):
        eqx_vit.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        eqx_vit.load(tmp_path / "nope.safetensors")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    eqx_vit.save(path, *eqx_vit.create(TINY["vit"], key=jax.random.key(0)))
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # of a weight, which stays finite
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its content has changed since it was written"):
        eqx_vit.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = eqx_vit.create(TINY["vit"], key=jax.random.key(0))
    path = tmp_path / "model.safetensors"
    eqx_vit.save(path, model, state)
    whole = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        eqx_vit.save(path, model, state)
    assert path.read_bytes() == whole


def filled(name: str) -> tuple[Any, eqx.nn.State]:
    """A tiny model and its state with arrays of ones: nothing is compiled."""
    return jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        make_skeleton(TINY[name]),
    )


def saved(path: Path, name: str = "vit") -> tuple[dict[str, Any], bytes]:
    """The header and the arrays of a file that `save` wrote."""
    eqx_vit.save(path, *filled(name))
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def forge(path: Path, header: object, arrays: bytes) -> None:
    """A safetensors file with any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + arrays)


def refuse(read: Callable[[], object], match: str) -> None:
    """It raises one `ValueError`, of one line that a reader can use."""
    with pytest.raises(ValueError, match=match) as error:
        read()
    assert type(error.value) is ValueError
    assert len(str(error.value)) < 2500
    assert str(error.value).isprintable()


def nested(depth: int) -> str:
    """A list in a list in a list ..."""
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "entry",
    [
        nested(100_000),
        '{"architecture": [], "config": {}}',
        '{"architecture": "vit", "config": [1]}',
        json.dumps({"architecture": "v" * 10_000, "config": {}}),
        json.dumps({"architecture": "vit", "config": {"dim" * 10_000: 1}}),
        '{"architecture": "vit", "config": ' + nested(500) + "}",
        "null",
        "1" * 10_000,
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header, arrays = saved(path)
    forge(path, header | {"__metadata__": {"eqx_vit.model": entry}}, arrays)
    refuse(lambda: eqx_vit.load(path), "the config inside .* is not understood")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        *[("vit", field, size) for field in ("dim", "depth", "image_size") for size in (10**12, 10**400)],
        ("vit", "depth", json.loads(nested(200))),
        ("vit", "mlp_dim", "9" * 5000),
        ("vit", "image_size", [8] * 100_000),
        ("levit", "stages", 10**6),
        ("levit", "dim", [8] * 1000),
        ("levit", "mlp_mult", 1e30),
        ("nest", "num_hierarchies", 10**6),
        ("cross_vit", "cross_attn_depth", 10**6),
        ("cross_vit", "depth", 10**6),
        ("crossformer", "dim", [64] * 1000),
        ("crossformer", "mlp_ratio", 1e30),
        ("pit", "depth", [1] * 1000),
    ],
)
def test_sizes_in_a_config_are_checked_before_anything_is_built(
    name: str, field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    plain = config_to_json(TINY[name])
    plain["config"][field] = value
    monkeypatch.setattr("eqx_vit.serialization.make_skeleton", lambda _: pytest.fail("the model was built"))
    forge(path, {"__metadata__": {"eqx_vit.model": json.dumps(plain)}}, b"")
    refuse(lambda: eqx_vit.load(path), rf"is not understood: \w+\.{field} must ")


def test_sizes_that_are_impossible_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    plain = config_to_json(TINY["levit"])
    plain["config"] |= {"dim": 2**20, "depth": 2**20, "heads": 2**20, "dim_key": 2**20, "dim_value": 2**20}
    forge(path, {"__metadata__": {"eqx_vit.model": json.dumps(plain)}}, b"")
    refuse(lambda: eqx_vit.load(path), "is not understood|does not fit its own config")


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        nested(100_000),
        {"x" * 600: F32},
        {"two\nlines": F32},
        '{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        {"x": F32 | {"shape": [2**62] * 100_000}},
        {"x": F32 | {"shape": [1] * 40}},
        {"x": F32 | {"shape": [2**62, 4], "data_offsets": [0, 2**66]}},
        {"x": F32 | {"dtype": "C64"}},
        {"x": {"a" * 100_000: 1}},
        [F32] * 10_000,
    ],
)
def test_a_header_that_describes_no_weights_is_refused_in_one_line(header: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    forge(path, header, bytes(4))
    refuse(lambda: read_weights(path), "is damaged, or not a safetensors file")


def test_messages_about_many_names_are_short(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header, arrays = saved(path)
    many = {f"own.{'x' * 300}.{index}": F32 | {"shape": [0], "data_offsets": [0, 0]} for index in range(2000)}
    forge(path, header | many, arrays)
    refuse(lambda: eqx_vit.load(path), "does not fit its own config: unexpected own.* and 1,990 more$")
    forge(path, {"__metadata__": header["__metadata__"]} | many, b"")
    refuse(lambda: eqx_vit.load(path), r"missing \S+; missing .* and \d+ more; unexpected own")


def npy(header: str) -> bytes:
    """An array of numpy's format with any header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), ",  # TokenError
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 900 + ")" * 900 + "), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000,), }",
        "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,), }",  # IndexError
        "{'descr': [], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': {}, 'fortran_order': False, 'shape': (1,), }",
        "{[]: 1}",
        "  1\n 2",
        "\x00",
        "",
    ],
)
def test_an_npz_header_that_describes_no_array_is_refused_in_one_line(header: str, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(header))
    refuse(lambda: read_weights(path), "is damaged, or not an .npz file of weights")


def test_names_that_no_array_has_are_refused_in_an_npz(tmp_path: Path) -> None:
    path, content = tmp_path / "model.npz", io.BytesIO()
    np.save(content, np.zeros(1, dtype=np.float32))
    for name in ("x" * 60_000, "two\nlines", "\x1b[2J", "../x"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.npy", content.getvalue())
        refuse(lambda: read_weights(path), "is not the name of an array")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn])
def test_weights_that_are_not_finite_are_named(dtype: DTypeLike, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model, state = filled("levit")
    model = eqx_vit.cast(eqx.tree_at(lambda m: m.head.linear.bias, model, jnp.full(5, jnp.nan)), dtype)
    if dtype == jnp.float32:
        mean, variance = state.get(model.head.norm.statistics)
        state = state.set(model.head.norm.statistics, (mean / 0, variance))
    eqx_vit.save(path, model, state)
    refuse(lambda: eqx_vit.load(path), r"has infinite or NaN weights: .*head\.linear\.bias.*; allow_nonfinite=True")
    loaded, loaded_state = eqx_vit.load(path, allow_nonfinite=True)
    for key, array in (named_leaves(model) | named_statistics(model, state)).items():
        found = (named_leaves(loaded) | named_statistics(loaded, loaded_state))[key]
        assert np.asarray(found).tobytes() == np.asarray(array).tobytes(), key


def test_foreign_weights_that_are_not_finite_are_named() -> None:
    model, state = filled("vit")
    weights = to_state_dict(model, state, "timm")
    weights["blocks.1.norm1.bias"] = np.full(16, -np.inf, dtype=np.float32)
    message = r"blocks\.1\.norm1\.bias has infinite or NaN weights \(allow_nonfinite=True takes them\)"
    with pytest.raises(ValueError, match=message) as error:
        load_state_dict(model, state, weights, source="timm")
    assert "norm2" not in str(error.value)
    loaded, _ = load_state_dict(model, state, weights, source="timm", allow_nonfinite=True)
    np.testing.assert_array_equal(loaded.blocks.block.norm1.bias[1], -np.inf)
    unused = weights | {"blocks.1.norm1.bias": np.zeros(16, dtype=np.float32), "extra": np.array(np.nan)}
    load_state_dict(model, state, unused, source="timm", skip=["extra"])


def test_what_is_no_model_state_or_path_is_refused(tmp_path: Path) -> None:
    model, state = filled("vit")
    path = tmp_path / "model.safetensors"
    save: Any = eqx_vit.save
    load: Any = eqx_vit.load
    refuse(lambda: save(path, None, state), "save: model must be a model of this library, .* given None")
    refuse(lambda: save(path, model, None), "save: state must be the state that eqx_vit.create returned .* given None")
    refuse(lambda: save(path, state, model), r"save: model must be a model of this library, .* given State\(\)")
    refuse(lambda: save(model, state, path), r"save: path must be of type str \| .*PathLike.*, given ViT")
    refuse(lambda: load(None), r"load: path must be of type str \| .*PathLike.*, given None")
    refuse(lambda: eqx_vit.save(path, *make_skeleton(TINY["vit"])), "save takes arrays with values")
    refuse(lambda: eqx.filter_jit(eqx_vit.save)(path, model, state), "call it outside of jax.jit")
    assert not list(tmp_path.iterdir())
    eqx_vit.save(path, jax.device_get(model), state)
    assert jax.tree.structure(eqx_vit.load(path)[0]) == jax.tree.structure(model)


def test_a_save_to_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(OSError, match=re.escape(str(folder))):
        eqx_vit.save(folder, *filled("vit"))
    assert list(tmp_path.iterdir()) == [folder]
