"""Training on a mesh: one device's losses, each device's share of the memory, and runs that move to other devices."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from test_train import GIVEN, QUIET, train
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
from eqx_vit.cli import main
from eqx_vit.layers import sharding as rule
from eqx_vit.paths import named_leaves
from eqx_vit.train.augment import InputSpec
from eqx_vit.train.loop import train_run
from eqx_vit.train.optimiser import make_optimiser
from eqx_vit.train.placement import Placement
from eqx_vit.train.run_folder import claim_folder, lock_folder
from eqx_vit.train.settings import Settings
from eqx_vit.train.start import resume_run, start_run
from eqx_vit.train.step import initial_state, make_train_step

MESHES = {"one": None, "data": eqx_vit.make_mesh(), "fsdp": eqx_vit.make_mesh(data=2, fsdp=4)}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays of a tiny model are sharded too."""
    monkeypatch.setattr(rule, "SMALLEST_SHARDED", 1)


def prepare(name: str, mesh: Any, **changes: Any) -> tuple[Any, Any, Placement]:
    """(compiled step, state before it, placement) of a tiny model."""
    config = TINY[name]
    settings = Settings(model=name, changes={}, epochs=1, learning_rate=1e-3, warmup=0.0, **changes)
    optimiser = make_optimiser(config, settings, 20)
    spec = InputSpec(tiny_size(name), config.channels, (0.5,) * config.channels, (0.5,) * config.channels)
    placement = Placement(config, mesh)
    step = make_train_step(config, optimiser, settings, spec, keep=placement.keep)
    return step, placement.make(lambda: initial_state(config, optimiser, 0)), placement


def losses(name: str, mesh: Any, steps: int, **changes: Any) -> list[float]:
    step, state, placement = prepare(name, mesh, **changes)
    random, found = np.random.default_rng(0), []
    with placement.in_force():
        for _ in range(steps):
            images = random.integers(0, 256, (16, *tiny_size(name), TINY[name].channels)).astype(np.uint8)
            labels = random.integers(0, TINY[name].num_classes, 16).astype(np.int32)
            state, numbers = step(state, *placement.place_batch(images, labels))
            found.append(float(numbers.loss))
    return found


@slow_but_for("vit")
def test_the_losses_are_those_of_one_device(name: str) -> None:
    expected = losses(name, None, 20)
    for kind in ("data", "fsdp"):
        np.testing.assert_allclose(losses(name, MESHES[kind], 20), expected, atol=1e-5)


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    expected = losses("vit", None, 5)
    np.testing.assert_allclose(losses("vit", None, 5, accumulate=4), expected, atol=1e-5)
    np.testing.assert_allclose(losses("vit", MESHES["fsdp"], 5, accumulate=2), expected, atol=1e-5)


def test_a_device_holds_its_share_and_collects_one_block_at_a_time() -> None:
    texts, sizes = {}, {}
    for kind, mesh in MESHES.items():
        step, state, placement = prepare("vit", mesh)
        images = np.zeros((16, *tiny_size("vit"), TINY["vit"].channels), dtype=np.uint8)
        with placement.in_force():
            lowered = step.compiled.lower(state, *placement.place_batch(images, np.zeros(16, dtype=np.int32)), None)
            compiled = lowered.compile()
        texts[kind], sizes[kind] = compiled.as_text(), compiled.memory_analysis().argument_size_in_bytes
    assert "all-reduce" in texts["data"]
    assert "all-gather" not in texts["data"]
    assert sizes["data"] > 0.9 * sizes["one"]
    assert sizes["fsdp"] < 0.4 * sizes["one"]
    depth = TINY["vit"].depth
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", texts["fsdp"])
    assert gathered
    # With an axis of depth, it would be all blocks at once.
    stacked = {
        leaf.shape for name, leaf in named_leaves(eqx_vit.create_abstract(TINY["vit"])[0]).items() if "block." in name
    }
    assert not {tuple(map(int, shape.split(","))) for shape in gathered} & {
        shape for shape in stacked if shape[0] == depth
    }


def test_a_run_goes_on_with_other_devices(tmp_path: Path) -> None:
    given = GIVEN | {"epochs": 3}
    run, data = start_run(given, QUIET)
    steps = iter(range(100))
    assert train(tmp_path / "whole", given) is not None
    with claim_folder(tmp_path / "run", run) as folder:
        assert train_run(folder, run, data, QUIET, lambda: next(steps) >= 4, mesh=MESHES["fsdp"]) is None
    with lock_folder(folder):
        run, data = resume_run(folder, {}, QUIET)
        steps = iter(range(100))
        assert train_run(folder, run, data, QUIET, lambda: next(steps) >= 3, mesh=MESHES["data"]) is None
    assert train(folder) is not None
    for name in ("last.safetensors", "best.safetensors"):
        moved, whole = (named_leaves(eqx_vit.load(path / name)[0]) for path in (folder, tmp_path / "whole"))
        for key, array in whole.items():
            if not key.endswith("qkv.bias"):  # that of the keys has no gradient but rounding, which Adam makes large
                np.testing.assert_allclose(np.asarray(moved[key]), np.asarray(array), atol=1e-4, err_msg=key)


def test_a_sharded_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model, state = eqx_vit.create(TINY["levit"], key=jax.random.key(0))
    mesh = MESHES["fsdp"]
    sharded = eqx_vit.shard(model, mesh)
    leaves: list[Any] = jax.tree.leaves(eqx.filter(sharded, eqx.is_array))
    assert any("fsdp" in leaf.sharding.spec for leaf in leaves if isinstance(leaf.sharding, NamedSharding))
    eqx_vit.save(tmp_path / "one.safetensors", model, state)
    eqx_vit.save(tmp_path / "sharded.safetensors", sharded, state)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "sharded.safetensors").read_bytes()


def test_depth_is_never_sharded() -> None:
    mesh = MESHES["fsdp"]
    model, _ = eqx_vit.create_abstract(eqx_vit.ViTConfig(
        image_size=8, patch_size=4, num_classes=4, dim=6, depth=64, heads=2, mlp_dim=6
    ))  # fmt: skip
    for path, sharding in jax.tree_util.tree_leaves_with_path(eqx_vit.parameter_shardings(model, mesh)):
        name = jax.tree_util.keystr(path)
        assert "blocks" not in name or sharding.spec[:1] in ((), (None,)), name


def test_meshes_and_batches_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="data=3, fsdp=1 has 3 devices, and there are 8"):
        eqx_vit.make_mesh(data=3)
    other = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    model, _ = eqx_vit.create_abstract(TINY["vit"])
    with pytest.raises(ValueError, match="no axis fsdp, but model"):
        eqx_vit.parameter_shardings(model, other)
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared equally by the 8 devices"):
        eqx_vit.shard_batch(np.zeros((12, 2)), MESHES["data"])
    for options, words in (
        (["--mesh", "data=3"], "there are 8"),
        (["--mesh", "rows=8"], "takes data=N, fsdp=N"),
        (["--batch-size", "30", "--mesh", "data=8"], "give --batch-size 24"),
    ):
        output = tmp_path / "run"
        try:
            code = main(["train", "--output", str(output), *options])
        except SystemExit as error:
            code = error.code
        assert code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
        assert not output.exists()


def test_other_meshes_are_left_to_the_user() -> None:
    """A mesh with other axes gets no constraints of ours: tensor parallelism is the user's own."""
    model, state = eqx_vit.create(TINY["vit"], key=jax.random.key(0))
    images = np.zeros((8, *tiny_size("vit"), 3), dtype=np.float32)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        batch = jax.device_put(images, NamedSharding(mesh, P("data")))
        text = str(jax.make_jaxpr(lambda images: eqx_vit.forward(model, state, images)[0])(batch))
    assert "sharding_constraint" not in text
    with jax.set_mesh(MESHES["data"]):
        text = str(jax.make_jaxpr(lambda images: eqx_vit.forward(model, state, images)[0])(images))
    assert "sharding_constraint" in text
