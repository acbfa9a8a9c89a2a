"""Training from weights that exist: optimisers, frozen parts, rates of their own, losses and teachers."""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from jaxtyping import PyTree
from PIL import Image
from safetensors.numpy import save_file
from test_train import GIVEN, QUIET, compiled_once as compiled_once, train

import eqx_vit
from eqx_vit import decay_mask, layer_numbers, muon_dimension_numbers, per_layer, trainable
from eqx_vit.files import read_arrays
from eqx_vit.functional import flatten, from_dicts, to_dicts
from eqx_vit.paths import named_leaves, path_name
from eqx_vit.registry import AnyModel
from eqx_vit.train.initial_weights import load_start
from eqx_vit.train.losses import classify_loss, distil_loss, make_objective
from eqx_vit.train.optimiser import make_optimiser, schedule
from eqx_vit.train.run_folder import BEST, LAST, TRAINING_STATE, Run, read_run
from eqx_vit.train.settings import Settings
from eqx_vit.train.start import start_run
from eqx_vit.train.step import initial_state, make_train_step
from eqx_vit.train.teacher import load_teacher
from eqx_vit.weights import to_state_dict

CONFIG = dataclasses.replace(CASES["vit"].TINY, depth=2)
STILL: dict[str, Any] = {"rotate": 0.0, "shift": 0.0, "zoom": 0.0}
TINY: dict[str, Any] = GIVEN["changes"] | {"dropout": 0.0}


def make_settings(**given: Any) -> Settings:
    plain: dict[str, Any] = {"model": "vit", "changes": {}, "epochs": 1, "learning_rate": 0.25, "warmup": 0.0}
    return Settings(**(plain | given))


def random_like(tree: PyTree, seed: int) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=x.shape), dtype=x.dtype) for x in leaves])


@pytest.fixture(scope="module")
def model() -> tuple[AnyModel, eqx.nn.State]:
    return eqx_vit.create(CONFIG, key=jax.random.key(1))


def two_updates(optimiser: optax.GradientTransformation, params: PyTree, gradients: list[PyTree]) -> list[PyTree]:
    @jax.jit
    def run(params: PyTree, gradients: list[PyTree]) -> list[PyTree]:
        state, found = optimiser.init(params), []
        for gradient in gradients:
            updates, state = optimiser.update(gradient, state, params)
            params = eqx.apply_updates(params, updates)
            found.append(updates)
        return found

    with jax.numpy_dtype_promotion("standard"):
        return run(params, gradients)


def own_updates(settings: Settings, model: tuple[AnyModel, eqx.nn.State]) -> list[dict[str, np.ndarray]]:
    """The first two updates of the program's optimiser, by name."""
    params = to_dicts(*model)[0]
    gradients = [to_dicts(random_like(trainable(model[0]), seed), model[1])[0] for seed in range(2)]
    found = two_updates(make_optimiser(model[0].config, settings, 10), params, gradients)
    return [{name: np.asarray(leaf) for name, leaf in flatten("params", updates).items()} for updates in found]


# --- optimisers


def optax_chain(name: str) -> optax.GradientTransformation:
    """What the settings of the test below say, for the parameters of an Equinox model, in optax's own words."""
    rate = optax.cosine_decay_schedule(0.25, 10, alpha=0.01)
    match name:
        case "adamw":
            rule = optax.adamw(rate, weight_decay=0.3, mask=decay_mask)
        case "lamb":
            rule = per_layer(optax.lamb(rate, eps=1e-6, weight_decay=0.3, mask=decay_mask))
        case "sgd":
            rule = optax.chain(
                optax.add_decayed_weights(0.3, mask=decay_mask), optax.sgd(rate, momentum=0.8, nesterov=True)
            )
        case _:
            rule = optax.contrib.muon(
                rate,
                beta=0.8,
                weight_decay=0.3,
                weight_decay_mask=decay_mask,
                muon_weight_dimension_numbers=muon_dimension_numbers,
                consistent_rms=0.2,
            )
    return optax.chain(optax.clip_by_global_norm(2.0), rule)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "muon"])
def test_each_optimiser_is_that_of_optax_on_the_model(name: Any, model: tuple[AnyModel, eqx.nn.State]) -> None:
    settings = make_settings(optimiser=name, weight_decay=0.3, clip_norm=2.0, momentum=0.8)
    params = trainable(model[0])
    gradients = [random_like(params, seed) for seed in range(2)]
    expected = two_updates(optax_chain(name), params, gradients)
    found = own_updates(settings, model)
    for updates, own in zip(expected, found, strict=True):
        named: dict[str, Any] = {**named_leaves(updates)}
        assert own.keys() == named.keys()
        for path, update in named.items():
            assert np.abs(own[path]).max() > 0
            np.testing.assert_allclose(own[path], update, rtol=1e-5, atol=1e-7, err_msg=path)


def test_the_schedules_at_chosen_steps() -> None:
    def fractions(steps: list[int], **given: Any) -> list[float]:
        rule = schedule(make_settings(epochs=6, **given), 60)
        return [float(rule(step)) for step in steps]

    half = 0.01 + 0.99 / 2
    assert fractions([0, 30, 60], schedule="cosine") == pytest.approx([1, half, 0.01])
    assert fractions([0, 3, 6, 33, 60], schedule="cosine", warmup=0.1, final_fraction=0.0) == pytest.approx(
        [0, 0.5, 1, 0.5, 0], abs=1e-6
    )
    assert fractions([0, 30, 59], schedule="constant") == [1, 1, 1]
    assert fractions([3, 6, 59], schedule="constant", warmup=0.1) == [0.5, 1, 1]
    by_two_epochs: dict[str, Any] = {"schedule": "step", "decay_epochs": 2, "decay_rate": 0.5}
    assert fractions([0, 19, 20, 39, 40, 59], **by_two_epochs) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert fractions([3, 6, 19, 20, 59], warmup=0.1, **by_two_epochs) == [0.5, 1, 1, 0.5, 0.25]


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        (("backbone",), lambda name: not name.startswith("head.")),
        (
            ("patch_embedding", "blocks.attention"),
            lambda name: name.startswith(("patch_embedding.", "blocks.block.attention.")),
        ),
    ],
)
def test_frozen_parts_get_no_update_and_the_others_their_own(
    freeze: tuple[str, ...], still: Any, model: tuple[AnyModel, eqx.nn.State]
) -> None:
    free = own_updates(make_settings(clip_norm=0.0), model)
    frozen = own_updates(make_settings(clip_norm=0.0, freeze=freeze), model)
    names = {name for name in frozen[0] if still(name)}
    assert 0 < len(names) < len(frozen[0])
    for expected, found in zip(free, frozen, strict=True):
        for name, update in found.items():
            np.testing.assert_array_equal(update, 0 * expected[name] if name in names else expected[name])


def test_parts_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"no parameters at bloks: they are in .*blocks") as caught:
        make_optimiser(CONFIG, make_settings(freeze=("head", "bloks")), 10)
    assert "\n" not in str(caught.value)


def test_layer_decay_and_the_heads_rate_scale_the_updates_exactly(model: tuple[AnyModel, eqx.nn.State]) -> None:
    plain = own_updates(make_settings(optimiser="sgd"), model)[0]
    scaled = own_updates(make_settings(optimiser="sgd", layer_decay=0.5, head_learning_rate=1.0), model)[0]
    leaves = jax.tree_util.tree_leaves_with_path(layer_numbers(model[0]))
    numbers = {path_name(path): number for path, number in leaves}
    assert {int(np.max(number)) for number in numbers.values()} == {0, 2, 3}
    for name, update in scaled.items():
        factor = np.asarray(0.5 ** (3 - np.asarray(numbers[name])) * (4 if name.startswith("head.") else 1))
        np.testing.assert_array_equal(update, plain[name] * factor.astype(np.float32), err_msg=name)


# --- initial weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert train(folder, GIVEN | {"epochs": 1, "changes": TINY}) is not None
    return folder


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three classes of grey images."""
    folder, rng = tmp_path_factory.mktemp("letters"), np.random.default_rng(0)
    for name in "abc":
        (folder / name).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(folder / name / f"{number}.png")
    return str(folder)


def start(**given: Any) -> Run:
    return start_run({"model": "digits", "changes": TINY, "epochs": 1, "batch_size": 4} | given, QUIET)[0]


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_run_or_a_saved_model_is_what_another_run_starts_from(
    kind: str, trained: Path, letters: str, tmp_path: Path
) -> None:
    old, _ = eqx_vit.load(trained / BEST)
    place = trained
    if kind == "file":
        place = tmp_path / "saved.safetensors"
        eqx_vit.save(place, *eqx_vit.load(trained / BEST))
    run = start(data=letters, image_size=16, pretrained=str(place))
    loaded = load_start(run)
    assert loaded is not None
    expected = named_leaves(eqx_vit.resize(old, 16))
    found = flatten("params", loaded[0])
    assert found["head.weight"].shape == (3, 8)
    assert found["position_embedding"].shape == (16, 8)
    for name in found.keys() - {"head.weight", "head.bias"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    spec = read_run(trained).input_spec
    assert ((run.input_spec.mean, run.input_spec.std) == (spec.mean, spec.std)) == (kind == "run")
    optimiser = make_optimiser(run.config, run.settings, 3)
    state = initial_state(run.config, optimiser, 0, loaded)
    for name, leaf in flatten("params", state.ema["params"]).items():
        np.testing.assert_array_equal(leaf, found[name])


def test_a_checkpoint_of_timms_names_gets_a_head_and_positions_of_the_run(letters: str, tmp_path: Path) -> None:
    model: Any
    model, state = eqx_vit.create("vit_tiny_patch16_224", depth=1, key=jax.random.key(3))
    arrays = to_state_dict(model, state, target="timm")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "timm.safetensors")
    changes = {"depth": 1}
    given: dict[str, Any] = {"model": "vit_tiny_patch16_224", "changes": changes, "image_size": 32, "data": letters}
    run = start(**given, pretrained=str(tmp_path / "timm.safetensors"))
    loaded = load_start(run)
    assert loaded is not None
    found: Any = from_dicts(run.config, *loaded)[0]
    assert found.config == run.config
    for own, other in (
        (found.blocks, model.blocks),
        (found.norm, model.norm),
        (found.patch_embedding, model.patch_embedding),
    ):
        assert eqx.tree_equal(own, other)
    assert found.head.weight.shape == (3, 192)
    assert found.position_embedding.shape == (5, 192)
    with pytest.raises(ValueError, match="there are no released weights of digits"):
        start(pretrained="released")


def test_weights_of_another_model_are_refused(trained: Path, letters: str) -> None:
    for changes, words in (
        (TINY | {"dim": 16}, r"best\.safetensors holds another model than --model digits: ViTConfig"),
        (TINY | {"channels": 3}, "holds another model"),
    ):
        with pytest.raises(ValueError, match=words):
            load_start(start(data=letters, changes=changes, pretrained=str(trained)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_start(start(pretrained="nowhere.safetensors"))


def test_weights_of_half_precision_are_trained_in_full(trained: Path, tmp_path: Path) -> None:
    model, state = eqx_vit.load(trained / BEST)
    eqx_vit.save(tmp_path / "half.safetensors", eqx_vit.cast(model, jnp.bfloat16), state)
    loaded = load_start(start(pretrained=str(tmp_path / "half.safetensors")))
    assert loaded is not None
    for name, leaf in flatten("params", loaded[0]).items():
        assert leaf.dtype == jnp.float32, name
        half = np.asarray(named_leaves(model)[name]).astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(leaf, half)


def test_a_frozen_backbone_keeps_its_bits_and_the_run_resumes(trained: Path, tmp_path: Path) -> None:
    given = GIVEN | {"changes": TINY, "pretrained": str(trained), "freeze": ("backbone",), "ema": 0.5}
    steps = iter(range(100))
    assert train(tmp_path / "run", given, lambda: next(steps) >= 4) is None
    assert train(tmp_path / "run") is not None
    before = read_arrays(trained / BEST)[0]
    for name in (BEST, LAST):
        after = read_arrays(tmp_path / "run" / name)[0]
        assert after.keys() == before.keys()
        changed = {name for name, array in after.items() if not np.array_equal(array, before[name])}
        assert changed == {"head.weight", "head.bias"}
    state = read_arrays(tmp_path / "run" / TRAINING_STATE)[0]
    assert not [name for name in state if name.startswith("optimiser.") and "blocks" in name]


# --- teachers


@pytest.mark.parametrize("heads", [1, 2])
def test_a_student_learns_from_its_teacher_by_its_last_head(heads: int, trained: Path) -> None:
    two = {"pool": "cls", "class_token": True, "distillation": True}
    kind: dict[str, Any] = {"distillation": "hard"} if heads == 2 else {"distillation": "soft", "temperature": 2.0}
    changes = TINY | (two if heads == 2 else {})
    given = GIVEN | STILL | kind | {"changes": changes, "teacher": str(trained), "distillation_weight": 0.25}
    given |= {"warmup": 0.0}
    run, data = start_run(given, QUIET)
    teacher = load_teacher(str(trained), 10, run.input_spec)
    optimiser = make_optimiser(run.config, run.settings, 10)
    fresh = initial_state(run.config, optimiser, 0)
    start = (random_like(fresh.params, 0), fresh.state)  # a fresh head is zero, and the logits with it
    state = initial_state(run.config, optimiser, 0, start)
    images, labels = data.images[data.train[:8]], data.labels[data.train[:8]]
    before = {name: np.array(leaf) for name, leaf in flatten("params", state.params).items()}

    batch = (jnp.asarray(images, dtype=jnp.float32) / 255 - run.input_spec.mean[0]) / run.input_spec.std[0]
    their_model, their_state = eqx_vit.load(trained / BEST)
    their_logits, _ = eqx_vit.forward(eqx_vit.inference_mode(their_model), their_state, batch)
    student, _ = from_dicts(run.config, state.params, state.state)
    pair: Any = jax.vmap(lambda image: student.logits_pair(image) if heads == 2 else (student(image), student(image)))
    own, distilled = pair(batch)
    objective = make_objective(run.settings)
    expected = 0.75 * classify_loss(objective, own, jax.nn.one_hot(labels, 10)) + 0.25 * distil_loss(
        objective, distilled, their_logits
    )
    step = make_train_step(run.config, optimiser, run.settings, run.input_spec, teacher)
    assert float(expected) > 3
    state, numbers = step(state, images, labels)
    assert float(numbers.loss) == pytest.approx(float(expected), rel=1e-4)
    after = flatten("params", state.params)
    unchanged = [name for name, leaf in before.items() if np.array_equal(leaf, after[name])]
    assert not unchanged


def test_a_teacher_is_shown_the_images_as_it_knows_them(trained: Path) -> None:
    spec = read_run(trained).input_spec
    shades = np.random.default_rng(0).random((3, 1, 1, 1)).astype(np.float32)
    pixels = jnp.asarray(np.broadcast_to(shades, (3, 8, 8, 1)))
    own = (pixels - spec.mean[0]) / spec.std[0]
    model, state = eqx_vit.load(trained / BEST)
    expected, _ = eqx_vit.forward(eqx_vit.inference_mode(model), state, own)
    student = spec._replace(mean=(0.5,), std=(0.25,))
    teacher = load_teacher(str(trained), 10, student)
    found = jax.jit(teacher.apply)(teacher.arrays, (pixels - 0.5) / 0.25)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    larger = (jnp.asarray(np.broadcast_to(shades, (3, 16, 16, 1))) - 0.5) / 0.25
    teacher = load_teacher(str(trained), 10, student._replace(size=(16, 16)))
    np.testing.assert_allclose(jax.jit(teacher.apply)(teacher.arrays, larger), expected, rtol=1e-4, atol=1e-5)


def test_teachers_that_cannot_teach_are_refused(trained: Path, tmp_path: Path) -> None:
    spec = read_run(trained).input_spec
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    for place, classes, student, words in (
        (trained, 7, spec, "tells 10 classes apart, the run 7"),
        (trained, 10, spec._replace(channels=3), "takes images of 1 channels, the run has 3"),
        (tmp_path / "none", 10, spec, "neither a run's folder nor a preset"),
        (tmp_path, 10, spec, "has no best.safetensors yet"),
        (tmp_path.parent, 10, spec, "is not a run folder"),
    ):
        with pytest.raises(ValueError, match=words):
            load_teacher(str(place), classes, student)


def test_bf16_trains_a_model_with_buffers(tmp_path: Path) -> None:
    config = CASES["t2t"].TINY
    run = start(
        model="t2t",
        changes={"image_size": 16, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "token_dim": 8, "channels": 1},
        precision="bf16",
    )
    assert type(run.config) is type(config)
    optimiser = make_optimiser(run.config, run.settings, 10)
    state = initial_state(run.config, optimiser, 0)
    buffers = {name: np.array(leaf) for name, leaf in flatten("buffers", state.state["buffers"]).items()}
    assert buffers
    step = make_train_step(run.config, optimiser, run.settings, run.input_spec)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    state, numbers = step(state, images, np.arange(4, dtype=np.int32))
    assert np.isfinite(float(numbers.loss))
    assert float(numbers.gradient_norm) > 0
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    for name, leaf in flatten("buffers", state.state["buffers"]).items():
        np.testing.assert_array_equal(leaf, buffers[name])
