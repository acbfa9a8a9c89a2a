"""`save` and `load`: every bit comes back, damaged and foreign files are refused, a failed save changes nothing."""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from tiny import TINY

import eqx_vit
from eqx_vit.paths import named_leaves, named_statistics


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
