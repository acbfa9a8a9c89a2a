"""The README: its Python runs, its numbers are those of the library, and what it names exists."""

import re
from typing import Any

from test_docs import ROOT, python_blocks, run

from eqx_vit import MODELS

README = (ROOT / "README.md").read_text()


def test_the_first_model_runs() -> None:
    names: dict[str, Any] = {"__name__": "README"}
    run(python_blocks(README), names)
    assert names["logits"].shape == (8, 10)
    assert names["seen"]["blocks.attention.weights[class]"].shape == (8, 12, 3, 197)


def test_the_numbers_are_those_of_the_library() -> None:
    papers = {row.model.__module__ for row in MODELS.values()}
    released = {row.model.__module__ for row in MODELS.values() if row.weights}
    assert f"of our {len(papers)} architectures | {len(papers)} |" in README
    assert f"with released weights | {len(released)} |" in README


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
