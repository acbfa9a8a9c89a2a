"""What a type checker tells a user of the pages' Python, and of the models that `create` makes (`nox -s types`)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, ROOT, python_blocks

pytest.importorskip("pyright", reason="run by nox -s types")

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


def check(folder: Path) -> list[tuple[str, str]]:
    """(severity, message) of what pyright finds in a user's files, but for libraries that are not installed."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(folder)]
    report = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout
    found = json.loads(report)["generalDiagnostics"]
    return [(one["severity"], one["message"]) for one in found if one.get("rule") != "reportMissingImports"]


def test_the_python_of_every_page_has_the_types_that_it_needs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "own_architecture.py", tmp_path)
    for page in [*PAGES, ROOT / "README.md"]:
        blocks = [block for block in python_blocks(page.read_text()) if not block.startswith(">>>")]
        (tmp_path / f"page_{page.stem}.py").write_text("".join(blocks))
    assert check(tmp_path) == []


def test_a_checker_knows_what_comes_out(tmp_path: Path) -> None:
    lines = [
        "from typing import Any",
        "import equinox as eqx, jax, jax.numpy as jnp, eqx_vit",
        "key, image, fields = jax.random.key(0), jnp.zeros((16, 16, 3)), dict[str, Any]()",
        "state = eqx.nn.State(None)",
        *(f"reveal_type({expression})" for expression in REVEALED),
    ]
    (tmp_path / "user.py").write_text("\n".join(lines))
    found = check(tmp_path)
    assert [message.split(" is ")[1] for _, message in found] == [f'"{expected}"' for expected in REVEALED.values()]
