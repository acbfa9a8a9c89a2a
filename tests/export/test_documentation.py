"""The Python of docs/export.md runs."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

pytest.importorskip("jax2onnx", reason="run by nox -s export")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, names)
            assert names["logits"].shape == (2, 10)
