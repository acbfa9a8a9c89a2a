"""What a type checker tells a user of the README's Python, and of the models that `create` makes (`nox -s types`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import README, python_blocks

pytest.importorskip("pyright", reason="run by nox -s types")

# What the README's later blocks take for granted.
GIVEN = """
import numpy as np
from eqx_vit.layers import Linear

key = key1 = key2 = key3 = jax.random.key(0)
arrays: dict[str, np.ndarray] = {}
config = TINY = eqx_vit.ViTConfig(image_size=8, patch_size=4, num_classes=10, dim=32, depth=2, heads=2, mlp_dim=64)
MyViTConfig = eqx_vit.ViTConfig


class Mine(eqx.Module):
    linear: Linear

    def __init__(self, config: eqx_vit.ViTConfig, *, key: jax.Array) -> None:
        self.linear = Linear(config.dim, config.dim, key=key)

    def __call__(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return self.linear(tokens)


def make_stem(*, key: jax.Array) -> Linear:
    return Linear(3, config.dim, key=key)


def make_my_vit(config: eqx_vit.ViTConfig, *, key: jax.Array) -> eqx_vit.ViT:
    return eqx_vit.ViT(config, key=key)
"""
REVEALED = {
    "eqx_vit.create(eqx_vit.ViTConfig(**fields), key=key)[0]": "ViT",
    "eqx_vit.create(eqx_vit.LeViTConfig(), key=key)[0]": "LeViT",
    "eqx_vit.create('vit_tiny_patch16_224', key=key)[0](image)": "Array",
    "eqx_vit.create('vit_tiny_patch16_224', key=key)[0].features(image)": "Array",
    "eqx_vit.create('vit_tiny_patch16_224', key=key)[0].config.num_classes": "int",
    "eqx_vit.create(eqx_vit.ViTConfig(**fields), key=key)[0].config": "ViTConfig",
    "eqx_vit.create(eqx_vit.ViTConfig(**fields), key=key)[0].features(image)": "Array",
    "eqx_vit.create(eqx_vit.ViTConfig(**fields), key=key)[0].blocks[1].attention.qkv.weight": "Array | Any",
    "eqx_vit.create(eqx_vit.LeViTConfig(), key=key)[0](image, state)": "tuple[Array, State]",
    "eqx_vit.replace_head(eqx_vit.create(eqx_vit.LeViTConfig(), key=key)[0], 5, key=key)": "LeViT",
}


def check(file: Path, code: str) -> list[tuple[str, str]]:
    """(severity, message) of what pyright finds in a user's file."""
    file.write_text(code)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    report = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, check=False).stdout
    return [(found["severity"], found["message"]) for found in json.loads(report)["generalDiagnostics"]]


def test_the_readmes_python_has_the_types_that_it_needs(tmp_path: Path) -> None:
    first, *rest = [block for block in python_blocks(README) if not block.startswith(">>>")]
    assert check(tmp_path / "readme.py", first + GIVEN + "".join(rest)) == []


def test_a_checker_knows_what_comes_out(tmp_path: Path) -> None:
    lines = [
        "from typing import Any",
        "import equinox as eqx, jax, jax.numpy as jnp, eqx_vit",
        "key, image, fields = jax.random.key(0), jnp.zeros((16, 16, 3)), dict[str, Any]()",
        "state = eqx.nn.State(None)",
        *(f"reveal_type({expression})" for expression in REVEALED),
    ]
    found = check(tmp_path / "user.py", "\n".join(lines))
    assert [message.split(" is ")[1] for _, message in found] == [f'"{expected}"' for expected in REVEALED.values()]
