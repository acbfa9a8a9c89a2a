"""The README: its Python runs, its numbers are those of the library, and what it names exists."""

import re
from typing import Any

from cases import having
from test_docs import ROOT, python_blocks, run

from eqx_vit import MODELS

README = (ROOT / "README.md").read_text()


def test_the_first_model_runs() -> None:
    names: dict[str, Any] = {"__name__": "README"}
    run(python_blocks(README), names)
    assert names["logits"].shape == (8, 10)
    assert names["seen"]["blocks.attention.weights[class]"].shape == (8, 12, 3, 197)


def test_the_numbers_are_those_of_the_library() -> None:
    rows = [MODELS[name] for name in having("SEED_CALLS")]  # vit-flax's calls
    assert f"of the {len(rows)} architectures of vit-flax | {len(rows)} |" in README
    assert f"with released weights | {sum(bool(row.weights) for row in rows)} |" in README


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_version_is_one() -> None:
    (stated,) = re.findall(r"version = \{([\d.]+)\}", README)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{stated}"' in project
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {stated}")
