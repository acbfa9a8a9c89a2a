"""An architecture in a user's own file: registered, saved, loaded, trained from the command line; parts exchanged."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from tiny import TINY, tiny_size

import eqx_vit
from eqx_vit import registry
from eqx_vit.cli import main
from eqx_vit.layers import MLP, BatchNorm
from eqx_vit.paths import named_leaves
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import Constant, Rule, copy

KEY = jax.random.key(0)
EXAMPLE = Path(__file__).parent.parent / "examples" / "own_architecture.py"


class Mine(eqx.Module):
    """An attention of a user's own; with `extra` it returns an axis too many."""

    linear: eqx.nn.Linear
    extra: bool = eqx.field(static=True)

    def __init__(self, config: eqx_vit.ViTConfig, *, key: Array, extra: bool = False) -> None:
        self.linear = eqx.nn.Linear(config.dim, config.dim, key=key)
        self.extra = extra

    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        mixed = jax.vmap(self.linear)(tokens) + jnp.mean(tokens, axis=0, keepdims=True)
        return mixed[:, None] if self.extra else mixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineConfig(eqx_vit.ViTConfig):
    """A ViT's, of an architecture of its own."""


def make_mine(config: MineConfig, *, key: Array) -> eqx_vit.ViT:
    return eqx_vit.ViT(config, key=key, attention=Mine)


CONFIG = MineConfig(**dataclasses.asdict(TINY["vit"]))
ARCHITECTURE = eqx_vit.Architecture("mine", make_mine, MineConfig, presets={"mine_tiny": CONFIG})


@pytest.fixture
def registered() -> Iterator[None]:
    eqx_vit.register(ARCHITECTURE)
    yield
    registry.MODELS.pop("mine", None)


def test_every_function_knows_it(registered: None, tmp_path: Path) -> None:
    assert eqx_vit.list_models("mine*") == ["mine_tiny"]
    model, state = eqx_vit.create("mine_tiny", key=KEY, num_classes=3)
    images = jax.random.normal(KEY, (2, *tiny_size("vit"), 3))
    logits, _ = eqx_vit.forward(eqx_vit.inference_mode(model), state, images)
    assert logits.shape == (2, 3)
    eqx_vit.save(tmp_path / "mine.safetensors", model, state)
    loaded, loaded_state = eqx_vit.load(tmp_path / "mine.safetensors")
    again, _ = eqx_vit.forward(eqx_vit.inference_mode(loaded), loaded_state, images)
    np.testing.assert_array_equal(again, logits)
    swapped: Any = eqx_vit.resize(eqx_vit.replace_head(loaded, 7, key=KEY), 32)
    assert isinstance(swapped.blocks.block.attention, Mine)
    assert eqx_vit.forward(eqx_vit.inference_mode(swapped), state, jnp.zeros((1, 32, 32, 3)))[0].shape == (1, 7)
    transformed = eqx_vit.transform(CONFIG)
    params, rest = transformed.init(KEY)
    assert transformed.apply(params, rest, None, images)[0].shape == (2, CONFIG.num_classes)
    flax: Any = eqx_vit.flax
    variables = flax.Mine(**dataclasses.asdict(CONFIG)).init(KEY, images)
    assert "linear" in variables["params"]["blocks"]["block"]["attention"]
    _, seen = eqx_vit.observe(swapped, state, jnp.zeros((1, 32, 32, 3)), "blocks.attention.linear", KEY)
    assert seen["blocks.attention.linear"].shape[:2] == (1, CONFIG.depth)


def test_a_file_says_what_has_to_be_imported(registered: None, tmp_path: Path) -> None:
    eqx_vit.save(tmp_path / "mine.safetensors", *eqx_vit.create("mine_tiny", key=KEY))
    registry.MODELS.pop("mine")
    message = r"architecture 'mine' is registered by 'test_own_architecture', which is not imported: import it first"
    with pytest.raises(ValueError, match=message):
        eqx_vit.load(tmp_path / "mine.safetensors")


def test_weights_go_in_and_out_by_a_map_of_its_own(registered: None) -> None:
    model, state = eqx_vit.create("mine_tiny", key=KEY)
    with pytest.raises(ValueError, match="'mine' was registered without checkpoints"):
        eqx_vit.weights.to_state_dict(model, state, "mine")

    def rename(config: MineConfig) -> list[Rule | Constant]:
        return [copy(name, f"theirs.{name}") for name in named_leaves(eqx_vit.create_abstract(config)[0])]

    eqx_vit.register(dataclasses.replace(ARCHITECTURE, checkpoints=Checkpoints(names={"mine": rename})))
    arrays = eqx_vit.weights.to_state_dict(model, state, "mine")
    assert all(name.startswith("theirs.") for name in arrays)
    loaded, _ = eqx_vit.weights.load_state_dict(*eqx_vit.create_abstract(CONFIG), arrays, source="mine")
    assert eqx.tree_equal(eqx.filter(loaded, eqx.is_array), eqx.filter(model, eqx.is_array))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (dataclasses.replace(ARCHITECTURE, name="vit"), "there is an architecture 'vit' already"),
        (
            eqx_vit.Architecture("other", make_mine, eqx_vit.ViTConfig),
            r"is the config of architecture 'vit': give 'other' one of its own, class OtherConfig\(ViTConfig\)",
        ),
        (eqx_vit.Architecture("other", make_mine, MineConfig), "MineConfig is the config of architecture 'mine'"),
        (
            dataclasses.replace(ARCHITECTURE, presets={"vit_tiny_patch16_224": CONFIG}),
            "there is a preset 'vit_tiny_patch16_224' already",
        ),
        (dataclasses.replace(ARCHITECTURE, presets={"one": TINY["vit"]}), "preset 'one' .* must be a MineConfig"),
        (eqx_vit.Architecture("other", make_mine, eqx_vit.ViT), "must be a subclass of eqx_vit"),  # pyright: ignore[reportArgumentType]
        (3, "register: architecture must be"),
    ],
)
def test_what_cannot_be_registered(registered: None, architecture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eqx_vit.register(architecture)


def test_an_unregistered_config_is_told_how() -> None:
    with pytest.raises(ValueError, match="MineConfig belongs to no architecture"):
        eqx_vit.create(CONFIG, key=KEY)


def test_a_function_that_makes_another_model_is_refused(registered: None) -> None:
    eqx_vit.register(dataclasses.replace(ARCHITECTURE, model=lambda config, *, key: eqx.nn.Identity()))
    with pytest.raises(ValueError, match=r"must make a model of that config, .* a Identity"):
        eqx_vit.create(CONFIG, key=KEY)


def test_packages_register_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class EntryPoint:
        value = "a_package"

        def __init__(self, load: Any) -> None:
            self.load = load

    def fail() -> None:
        raise ImportError("it lacks something")

    points = [EntryPoint(lambda: ARCHITECTURE), EntryPoint(fail)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    registry.load_entry_points.cache_clear()
    with pytest.warns(UserWarning, match="architectures of a_package are not there: it lacks something"):
        assert eqx_vit.list_models("mine*") == ["mine_tiny"]
    registry.MODELS.pop("mine")
    registry.load_entry_points.cache_clear()


def test_the_command_line_imports_it(tmp_path: Path) -> None:
    """In a process of its own, as the registration outlives the command."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "eqx_vit"]
    train = ["train", "--import", EXAMPLE, "--model", "talking_digits", "--set", "depth=1", "--epochs", "1"]
    subprocess.run([*command, *train, "--output", run], check=True, capture_output=True)
    assert json.loads((run / "config.json").read_text())["model"]["import"] == "own_architecture"
    refused = subprocess.run([*command, "evaluate", run], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "registered by 'own_architecture', which is not imported" in refused.stderr
    done = subprocess.run([*command, "evaluate", run, "--import", EXAMPLE], capture_output=True, text=True, check=True)
    assert "359 test images" in done.stdout


def test_imports_that_fail_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken_file.py"
    broken.write_text("import math\n\nmath.nothing\n")
    (tmp_path / "json.py").write_text("")
    for name, words in (
        (tmp_path / "nope.py", "there is no such file"),
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (broken, "failed: AttributeError: module 'math' has no attribute 'nothing' (line 3 of broken_file.py)"),
        (tmp_path / "json.py", "there is another module 'json', rename the file"),
    ):
        assert main(["models", "vit_tiny*", "--import", str(name)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vit", "blocks.attention"),
        ("cross_vit", "blocks.0.branches.1.mlp"),
        ("nest", "stages.1.blocks.attention.attention"),
        ("parallel_vit", "encoder.blocks.attentions.layer"),
    ],
)
def test_a_part_is_replaced_wherever_it_stands(name: str, path: str) -> None:
    model, state = eqx_vit.create(TINY[name], key=KEY)
    images = jax.random.normal(KEY, (2, *tiny_size(name), 3))
    _, seen = eqx_vit.observe(eqx_vit.inference_mode(model), state, images, path)
    dim = seen[path].shape[-1]

    def make(*, key: Array) -> Mine:
        return Mine(dataclasses.replace(TINY["vit"], dim=dim, heads=1), key=key)

    new = eqx_vit.inference_mode(eqx_vit.replace(model, path, make, key=KEY, image_size=tiny_size(name)))
    logits, after = eqx_vit.observe(new, state, images, [path, f"{path}.linear"])
    assert after[path].shape == seen[path].shape
    assert jnp.all(jnp.isfinite(logits))
    linear = after[f"{path}.linear"]
    assert len(np.unique(np.asarray(linear.reshape(-1, dim)), axis=0)) > 2  # each from a key of its own


def test_a_part_that_does_not_fit_is_named_by_its_axis() -> None:
    model, _ = eqx_vit.create(TINY["vit"], key=KEY)
    config = TINY["vit"]
    for path, make, message in (
        (
            "blocks.attention",
            lambda *, key: Mine(config, key=key, extra=True),
            r"must return \(tokens, dim\) = \(5, 16\)",
        ),
        ("blocks.atention", lambda *, key: Mine(config, key=key), "did you mean blocks.attention"),
        ("norm", lambda *, key: eqx.nn.Linear(3, 3, key=key), r"fails when it is called with shape \(5, 16\)"),
        ("norm", lambda *, key: BatchNorm(16), "has BatchNorm, for which the model's state has no place"),
        (3, lambda *, key: None, "replace: path must be"),
    ):
        with pytest.raises(ValueError, match=message):
            eqx_vit.replace(model, path, make, key=KEY)  # pyright: ignore[reportArgumentType]


def test_a_replaced_part_has_the_models_dtype_and_mode() -> None:
    model, state = eqx_vit.create(TINY["vit"], key=KEY)
    model = eqx_vit.cast(eqx_vit.inference_mode(model), jnp.bfloat16)
    new = eqx_vit.replace(model, "blocks.mlp", lambda *, key: MLP(16, 8, dropout=0.5, key=key), key=KEY)
    assert eqx_vit.forward(new, state, jnp.zeros((1, *tiny_size("vit"), 3)))[0].dtype == jnp.bfloat16
