"""The house: imports run one way, and the tables agree with the files."""

import ast
from pathlib import Path

import pytest

import eqx_vit
from eqx_vit import MODELS

PACKAGE = Path(eqx_vit.__file__).parent
# Each part may import those before it.
ORDER = [
    "layers",
    "models",
    "files",
    "paths",
    "surface",
    "counting",
    "weights",
    "create",
    "testing",
    "flax",
    "train",
    "listing",
    "cli",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("eqx_vit.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        assert ORDER.index(name.split(".")[1]) <= ORDER.index(part), f"{path.name} imports {name}"


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_imports_no_sibling(name: str) -> None:
    path = Path(MODELS[name].model.__module__.replace(".", "/")).name
    found = imports(PACKAGE / "models" / f"{path}.py")
    assert {module for module in found if module.startswith("eqx_vit.models.")} <= {
        module for module in found if module.startswith("eqx_vit.models.source")
    }


def test_every_architecture_is_in_the_table_and_at_the_top() -> None:
    files = {path.stem for path in (PACKAGE / "models").glob("*.py")} - {"__init__", "source"}
    assert {row.model.__module__.rsplit(".", 1)[1] for row in MODELS.values()} == files
    for row in MODELS.values():
        assert getattr(eqx_vit, row.model.__name__) is row.model
        assert getattr(eqx_vit, row.config.__name__) is row.config


def test_preset_names_are_unique_and_listed() -> None:
    names = eqx_vit.list_models()
    assert len(set(names)) == len(names) == sum(len(row.presets) for row in MODELS.values())
    assert eqx_vit.list_models("deit3*") == [name for name in names if name.startswith("deit3")]
    assert eqx_vit.list_models("nothing") == []
