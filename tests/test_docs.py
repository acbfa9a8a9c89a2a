"""Every Python block of every page runs, in order, and every error that a page shows is the real one.

A page is a module of its own name: its blocks share their names, and run in an empty folder with a `photo.jpg`.
Released weights come from a hub that has random numbers for them. A page stops at a library that is not installed:
`nox -s flax` and `parity` have those.
"""

import builtins
import re
import sys
from pathlib import Path
from typing import Any

import generate
import jax
import numpy as np
import pytest
from golden_files import zeros
from PIL import Image
from safetensors.numpy import save_file

import eqx_vit
from eqx_vit import MODELS, registry

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
PEERS = {"flax", "onnx", "onnxruntime", "jax2onnx", "timm", "torch", "transformers"}
SLOW = ("own_architecture", "train_on_my_images")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(blocks: list[str], names: dict[str, Any]) -> None:
    """Run what is a program, and hold what is a dialogue of calls and errors against its words."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            if not block.startswith(">>>"):
                exec(compile(block, names["__name__"], "exec"), names)
                continue
            dialogue = re.findall(r">>> (.*?)\n(\w+Error): (.*?)(?=\n>>>|\Z)", block, flags=re.DOTALL)
            assert len(dialogue) == block.count(">>>")
            for call, kind, message in dialogue:
                # Under it JAX may say that it has left out some of its frames.
                words = r"\s+".join(map(re.escape, message.split()))
                with pytest.raises(getattr(builtins, kind), match=rf"^{words}(\n-{{20}}|$)"):
                    eval(call, names)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the Hugging Face hub: every released file is there, with random numbers."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def download(repository: str, file: str, revision: str | None = None) -> str:
        row, preset = next(
            (row, name) for row in MODELS.values() for name, source in row.weights.items() if source.hub == repository
        )
        config, layout = row.presets[preset], row.weights[preset].layout
        path = tmp_path / f"{preset}.safetensors"
        random, empty = np.random.default_rng(0), eqx_vit.weights.to_state_dict(*zeros(config), layout)
        save_file(
            {name: random.uniform(0, 0.1, array.shape).astype(array.dtype) for name, array in empty.items()}, path
        )
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with a photograph, and the examples within reach."""
    here = tmp_path / "here"
    here.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(here / "photo.jpg")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture
def unregistered() -> Any:
    """What a page registers is forgotten."""
    before = dict(registry.MODELS)
    yield
    registry.MODELS.clear()
    registry.MODELS.update(before)
    sys.modules.pop("own_architecture", None)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else ()) for page in PAGES],
    ids=lambda page: page.stem,
)
@pytest.mark.usefixtures("folder", "hub", "unregistered")
def test_the_python_of_a_page_runs(page: Path) -> None:
    blocks = python_blocks(page.read_text())
    try:
        run(blocks, {"__name__": page.stem})
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        pytest.skip(f"{error.name} is not installed: what stands before it ran")


@pytest.mark.usefixtures("folder")
def test_every_architecture_has_its_page() -> None:
    made = generate.pages()
    for name, row in MODELS.items():
        page = made[f"architectures/{name}.md"]
        assert f"]({name}.md)" in made["architectures/index.md"]
        assert row.presets.keys() <= set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE))
        (block,) = python_blocks(page)
        preset = re.search(r'create\("([\w-]+)", key=jax.random.key\(0\)\)', block)
        assert preset is not None
        assert preset[1] in row.presets


def test_every_public_name_is_in_the_api() -> None:
    pages = [text for path, text in generate.pages().items() if path.startswith("api/")]
    found = {
        name for page in pages for name in re.findall(r"(?:heading:|^##) eqx_vit\.([\w.]+)", page, flags=re.MULTILINE)
    }
    functions = {name for name in dir(eqx_vit) if name[0].islower() and callable(getattr(eqx_vit, name))}
    assert functions <= found
    assert {"ImageModel", "weights.export", "layers.Attention", "testing.check_contracts"} <= found


def test_paths_that_pages_name_exist() -> None:
    for page in [*PAGES, ROOT / "README.md"]:
        for path in re.findall(r"`((?:examples|tests|src/eqx_vit)/\w[\w/.]*\w/?)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
