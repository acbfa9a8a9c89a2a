"""The README's Python runs, and its error messages are the real ones."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqx_vit import MODELS

README = (Path(__file__).parent.parent / "README.md").read_text()


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def section(heading: str) -> str:
    return README.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_first_model_runs_and_the_errors_are_as_printed() -> None:
    names: dict[str, Any] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(python_blocks(section("A first model"))[0], names)
    assert names["logits"].shape == (8, 10)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(python_blocks(section("Seeing inside"))[0], names)
    assert names["seen"]["blocks.attention.weights[class]"].shape == (8, 12, 3, 197)
    assert [one.shape for one in names["features"]] == [(8, 14, 14, 192)] * 4
    assert names["where"].shape == (8, 14, 14)
    (transcript,) = python_blocks(section("When a shape is wrong"))
    for call, message in re.findall(r">>> (.*?)\nValueError: (.*?)(?=\n>>>|\Z)", transcript, flags=re.DOTALL):
        words = r"\s+".join(map(re.escape, message.split()))
        with pytest.raises(ValueError, match=f"^{words}$"):
            eval(call, names | {"jnp": jnp})


def test_every_architecture_has_its_row() -> None:
    table = section("Architectures")
    rows = {row.model.__name__ for row in MODELS.values()}
    assert {name for name in rows if f"`{name}`" not in table} == set()


def test_paths_that_the_readme_names_exist() -> None:
    root = Path(__file__).parent.parent
    for path in re.findall(r"`(examples/\w+\.py|tests/\w+\.py)`", README):
        assert (root / path).exists(), path
