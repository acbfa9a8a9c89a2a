"""Several runs in one program: each is the run that it would be by itself, and their folder says what they reached."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_train import GIVEN, QUIET, Killed, compiled_once as compiled_once, metrics, train

import eqx_vit
from eqx_vit.cli import commands, main
from eqx_vit.files import read_arrays
from eqx_vit.functional import to_dicts
from eqx_vit.layers.config import check
from eqx_vit.train.batches import EvaluationExamples
from eqx_vit.train.data import load_digits
from eqx_vit.train.inference import evaluate, evaluate_run
from eqx_vit.train.members import make_members, split_members
from eqx_vit.train.population import MEMBERS, PopulationMetrics, train_population
from eqx_vit.train.run_folder import (
    BEST,
    CURVES,
    LAST,
    METRICS,
    Member,
    claim_folder,
    lock_folder,
    read_run,
)
from eqx_vit.train.settings import make_settings
from eqx_vit.train.start import resume_run, start_run
from eqx_vit.train.step import make_eval_step

CHANGES = {"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 8, "drop_path_ramp": False}
ALIKE = GIVEN | {"changes": CHANGES}
LISTS = {"learning_rate": (2e-3, 8e-3), "drop_path": (0.0, 0.2)}
COUNT = 8  # of two seeds


def train_members(
    folder: Path,
    given: dict[str, Any] = ALIKE,
    seeds: int = 2,
    lists: dict[str, tuple[float, ...]] = LISTS,
    stopped: Callable[[], bool] = lambda: False,
) -> PopulationMetrics | None:
    """Start runs in the folder, or go on with those that are there."""
    with ExitStack() as held:
        if folder.exists():
            held.enter_context(lock_folder(folder))
            run, data = resume_run(folder, {}, QUIET)
        else:
            run, data = start_run(given, QUIET, seeds, lists)
            held.enter_context(claim_folder(folder, run))
        return train_population(folder, run, data, QUIET, stopped)


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """All arrays of all files."""
    return {str(path.relative_to(folder)): read_arrays(path)[0] for path in sorted(folder.rglob("*.safetensors"))}


def assert_same(folder: Path, other: Path) -> None:
    own, others = contents(folder), contents(other)
    assert len(own) == 2 * COUNT + 3
    assert own.keys() == others.keys()
    for name, arrays in own.items():
        assert arrays.keys() == others[name].keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, others[name][key], err_msg=f"{name} {key}")
    assert metrics(folder) == metrics(other)


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PopulationMetrics]:
    folder = tmp_path_factory.mktemp("runs") / "all"
    result = train_members(folder)
    assert result is not None
    return folder, result


@pytest.fixture(scope="module")
def folder(population: tuple[Path, PopulationMetrics]) -> Path:
    return population[0]


def test_members_are_every_combination_from_the_runs_own_seed_on(folder: Path) -> None:
    members = read_run(folder).members
    assert members == tuple(
        Member(seed, rate, 0.05, drop_path) for rate in (2e-3, 8e-3) for drop_path in (0.0, 0.2) for seed in (0, 1)
    )
    own = split_members(read_run(folder))
    assert [(one.settings.seed, one.settings.learning_rate) for one in own] == [member[:2] for member in members]
    _, more = make_members(make_settings({"seed": 5}), 1, {"weight_decay": (0.0, 0.1, 0.2)})
    assert [(member.seed, member.weight_decay, member.drop_path) for member in more] == [
        (5, 0.0, None),
        (5, 0.1, None),
        (5, 0.2, None),
    ]


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"learning_rate": (1e-3, -1.0)}, "Settings.learning_rate must be above 0, given -1.0"),
        ({"weight_decay": (0.0, -0.1)}, "Settings.weight_decay must not be negative"),
        ({"drop_path": (0.1, -0.1)}, "drop_path must be from 0"),
        ({"drop_path": (0.1, 1.5)}, "drop_path must be from 0"),
    ],
)
def test_impossible_members_are_refused(lists: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_members(make_settings({}), 2, lists)


@pytest.mark.parametrize("place", [0, 7])
def test_each_member_is_the_run_by_itself(place: int, folder: Path, tmp_path: Path) -> None:
    seed, rate, _, drop_path = read_run(folder).members[place]
    # Of the rate 0 in a list, the run without any.
    given = ALIKE | {"seed": seed, "learning_rate": rate, "changes": CHANGES | {"drop_path": drop_path}}
    assert train(tmp_path / "run", given) is not None
    alone, together = metrics(tmp_path / "run"), metrics(folder)
    for one, all_of_them in zip(alone[:-1], together[:-1], strict=True):
        for name in ("train_loss", "validation_loss", "gradient_norm", "learning_rate"):
            assert all_of_them[name]["values"][place] == pytest.approx(one[name], rel=1e-4), name
        for name in ("epoch", "step"):
            assert all_of_them[name] == one[name]
    for name in (BEST, LAST):
        expected = read_arrays(tmp_path / "run" / name)[0]
        for key, array in read_arrays(folder / MEMBERS / f"{place:02d}" / name)[0].items():
            if key.endswith("qkv.bias"):  # that of the keys has no gradient but rounding, which Adam makes large
                continue
            np.testing.assert_allclose(array, expected[key], rtol=1e-3, atol=1e-4, err_msg=key)


def test_members_differ_in_what_is_varied_alone(folder: Path) -> None:
    first = metrics(folder)[0]
    assert len(set(first["train_loss"]["values"])) == COUNT
    rates = first["learning_rate"]["values"]
    np.testing.assert_allclose(rates, [rates[0]] * 4 + [4 * rates[0]] * 4)


def test_the_metrics_summarise_the_members(population: tuple[Path, PopulationMetrics]) -> None:
    folder, result = population
    *epochs, final = metrics(folder)
    assert [line["epoch"] for line in epochs] == [1, 2]
    for line in [*epochs, final]:
        summaries = [entry for entry in line.values() if isinstance(entry, dict)]
        assert len(summaries) == (6 if "epoch" in line else 2)
        for entry in summaries:
            assert len(entry["values"]) == COUNT
            assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
            assert entry["std"] == pytest.approx(np.std(entry["values"], ddof=1), abs=1e-12)
    scores = [
        max(
            (line["validation_accuracy"]["values"][place], -line["validation_loss"]["values"][place]) for line in epochs
        )
        for place in range(COUNT)
    ]
    assert final["best"] == result.best == scores.index(max(scores))
    assert final["test_accuracy"]["values"] == list(result.test_accuracies)
    told = [Member(*(one[name] for name in Member._fields)) for one in final["members"]]
    assert tuple(told) == read_run(folder).members
    assert [one["test_loss"] for one in final["members"]] == list(result.test_losses)
    with Image.open(folder / CURVES) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 30


def test_every_checkpoint_loads_and_reaches_what_is_said_of_it(population: tuple[Path, PopulationMetrics]) -> None:
    folder, result = population
    run, data = read_run(folder), load_digits()
    examples = EvaluationExamples(data.images, data.labels, data.test)
    step = make_eval_step(run.config, run.input_spec)
    for place in range(COUNT):
        for name in (BEST, LAST):
            model, state = eqx_vit.load(folder / MEMBERS / f"{place:02d}" / name)
            found = evaluate(step, to_dicts(model, state), examples, 359)
            if name == BEST:
                assert found.accuracy == pytest.approx(result.test_accuracies[place])
                assert found.loss == pytest.approx(result.test_losses[place], rel=1e-4)
    for name in (BEST, LAST):
        assert (folder / name).read_bytes() == (folder / MEMBERS / f"{result.best:02d}" / name).read_bytes()
    report = evaluate_run(folder, "best", "test", None)
    assert f"accuracy {result.test_accuracies[result.best]:.2%}" in report


def test_members_that_are_stopped_or_killed_go_on_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    assert train_members(tmp_path / "run", stopped=lambda: next(steps) >= 2) is None
    replace, left = os.replace, iter(range(2 * COUNT + 4 + 9))  # an epoch's writes, and some of the next

    def killed(*paths: Any) -> None:
        if next(left, None) is None:
            raise Killed
        replace(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train_members(tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 1
    assert train_members(tmp_path / "run") is not None
    assert_same(tmp_path / "run", folder)
    before = (tmp_path / "run" / METRICS).read_text()
    assert train_members(tmp_path / "run") is not None
    assert (tmp_path / "run" / METRICS).read_text() == before


def test_a_population_fine_tunes_with_a_teacher(folder: Path, tmp_path: Path) -> None:
    given = ALIKE | {"pretrained": str(folder), "freeze": ("backbone",), "teacher": str(folder), "epochs": 1}
    steps = iter(range(100))
    assert train_members(tmp_path / "run", given, 2, {}, lambda: next(steps) >= 1) is None
    assert train_members(tmp_path / "run") is not None
    before = read_arrays(folder / BEST)[0]
    after = [read_arrays(tmp_path / "run" / MEMBERS / f"{place:02d}" / LAST)[0] for place in range(2)]
    for name, array in before.items():
        check(all(own[name].shape == array.shape for own in after), name)
        changed = [not np.array_equal(own[name], array) for own in after]
        assert changed == [name.startswith("head.")] * 2, name
    assert not np.array_equal(after[0]["head.weight"], after[1]["head.weight"])


def test_a_diverging_member_is_named(tmp_path: Path) -> None:
    given = ALIKE | {"warmup": 0.0, "clip_norm": 1e30}
    with pytest.raises(
        ValueError, match=r"the run with seed 0, learning rate 1e\+30, .* is nan after step 3: .*smaller"
    ):
        train_members(tmp_path / "run", given, 1, {"learning_rate": (1e-3, 1e30)})
    assert not (tmp_path / "run").exists()


def test_a_population_of_one_is_a_single_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "make_mesh", lambda **_: None)
    sizes = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
    rest = ["--epochs", "1", "--batch-size", "256", *sizes, "--output", str(tmp_path / "run")]
    assert main(["train", "--seeds", "1", *rest]) == 0
    assert "; the run is in" in capsys.readouterr().out
    assert read_run(tmp_path / "run").members == ()
    assert metrics(tmp_path / "run")[-1].keys() == {"checkpoint", "epoch", "test_loss", "test_accuracy"}
