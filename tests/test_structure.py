"""The imports run one way, and the tables agree with the files."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import eqx_vit
from eqx_vit import MODELS

PACKAGE = Path(eqx_vit.__file__).parent
# Each part may import those before it.
ORDER = [
    "layers",
    "arguments",
    "paths",
    "inputs",
    "points",
    "model",
    "models",
    "preset_names",
    "registry",
    "files",
    "parameters",
    "sharding",
    "optimisers",
    "create",
    "forward",
    "inspection",
    "exchange",
    "surgery",
    "serialization",
    "functional",
    "counting",
    "latency",
    "weights",
    "export",
    "testing",
    "flax",
    "train",
    "cli",
    "__main__",
]
# The one import of what comes later, inside the function that loads released weights.
LATER = {("create", "weights")}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            modules = {name for name in whole if name.removeprefix("eqx_vit.") in FILES}
            found |= modules if len(modules) == len(whole) else {node.module, *modules}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.removeprefix("eqx_vit.") for name in found if name.startswith("eqx_vit.")}


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module: str) -> None:
    part = module.split(".")[0]
    for name in imports(FILES[module]):
        other = name.split(".")[0]
        assert ORDER.index(other) <= ORDER.index(part) or (module, other) in LATER, f"{module} imports {name}"


def test_imports_make_no_circle() -> None:
    """Inside the folders too."""
    edges = {module: {name for name in imports(path) if name in FILES} for module, path in FILES.items()}
    late = {
        module: {name for name in names if (module, name.split(".")[0]) in LATER} for module, names in edges.items()
    }
    graphlib.TopologicalSorter({module: names - late[module] for module, names in edges.items()}).prepare()


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_imports_no_sibling(name: str) -> None:
    found = imports(FILES[MODELS[name].model.__module__.removeprefix("eqx_vit.")])
    assert {module for module in found if module.startswith("models.")} <= {"models.source"}


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


# In a process of its own: other tests have imported all of them.
ON_FIRST_USE = """
import sys
import eqx_vit

late = {"export", "flax", "testing", "weights"}
assert not {f"eqx_vit.{name}" for name in late} & set(sys.modules)
assert late <= set(dir(eqx_vit))
assert not hasattr(eqx_vit, "weightz")
eqx_vit.export.load, eqx_vit.flax.LeViT, eqx_vit.testing.shapes, eqx_vit.weights.load_state_dict
"""


def test_the_rest_of_the_package_is_imported_on_first_use() -> None:
    found = subprocess.run([sys.executable, "-c", ON_FIRST_USE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
