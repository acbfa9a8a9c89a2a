"""The recipes: each is valid, says where it is from, and trains in miniature; errors name the file and the field."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, marks_but_for, tiny_size

from eqx_vit.registry import MODELS, AnyConfig, find_architecture
from eqx_vit.train.config import make_model_config
from eqx_vit.train.loop import train_run
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.recipes import TEXTS, Recipe, describe_recipes, list_recipes, load_recipe
from eqx_vit.train.reported import REPORTED, find_reported
from eqx_vit.train.run_folder import METRICS, FinalMetrics, claim_folder
from eqx_vit.train.settings import make_settings
from eqx_vit.train.start import start_run

RECIPES = {recipe.name: recipe for recipe in list_recipes()}
QUICK = ("cifar100_sl_vit", "imagenet_deit3_small", "imagenet_deit_small_distilled")  # each with its own loss
QUIET = ProgressLog(quiet=True)

every_recipe = pytest.mark.parametrize("name", RECIPES)
every_recipe_in_miniature = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks_but_for(QUICK, name)) for name in RECIPES]
)


def train(folder: Path, given: dict[str, Any]) -> FinalMetrics | None:
    with ExitStack() as held:
        run, data = start_run(given, QUIET)
        held.enter_context(claim_folder(folder, run))
        return train_run(folder, run, data, QUIET, lambda: False)


def full_config(recipe: Recipe, classes: int = 1000) -> AnyConfig:
    settings = make_settings(recipe.settings)
    return make_model_config(settings.model, settings.changes, settings.image_size, classes)[0]


def miniature(recipe: Recipe) -> dict[str, Any]:
    """The recipe with the smallest model of its architecture, which keeps all of the config that is no size."""
    full = full_config(recipe)
    name = find_architecture(full).name
    tiny = TINY[name]
    changes = {
        field.name: getattr(full if isinstance(getattr(full, field.name), bool | float | str) else tiny, field.name)
        for field in dataclasses.fields(tiny)
        if field.name not in ("num_classes", "num_distill_classes")
    }
    if getattr(full, "num_distill_classes", None):
        changes["num_distill_classes"] = 2
    size = {} if "image_size" in changes else {"image_size": tiny_size(name)}
    settings = {key: value for key, value in recipe.settings.items() if key != "image_size"}
    return settings | size | {"model": name, "changes": changes, "epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures: eight to train on, so two steps, and four to validate and test."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run in place of a preset with released weights."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    changes = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    assert train(folder, {"data": str(images), "image_size": 16, "epochs": 1, "batch_size": 4, "changes": changes})
    return str(folder)


@every_recipe
def test_every_recipe_says_what_it_is_and_where_it_is_from(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe == load_recipe(name)
    assert not [text for text in TEXTS if not getattr(recipe, text)]
    assert "arXiv" in recipe.paper
    accuracy, _, rest = recipe.accuracy.partition(" % top-1 on ")
    assert 50 < float(accuracy) < 100
    assert rest


@every_recipe
def test_every_recipe_gives_settings_and_a_model_for_any_number_of_classes(name: str) -> None:
    recipe = RECIPES[name]
    settings = make_settings(recipe.settings)
    assert settings.epochs == recipe.settings["epochs"]
    assert settings.data is None  # the user's
    if "measured here" not in recipe.accuracy:
        assert (settings.rotate, settings.shift, settings.zoom) == (0, 0, 0)  # defaults of ours, and of no paper
    for classes in (10, 100, 1000):
        assert full_config(recipe, classes).num_classes == classes
    if settings.teacher is not None:
        assert settings.teacher in {preset for row in MODELS.values() for preset in row.weights}


@every_recipe_in_miniature
def test_every_recipe_trains_in_miniature(name: str, images: Path, teacher: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    given = miniature(recipe) | {"data": str(images)}
    if "teacher" in given:
        given["teacher"] = teacher
    result = train(tmp_path / "run", given)
    assert result is not None
    assert np.isfinite(result.test_loss)
    assert '"step": 2' in (tmp_path / "run" / METRICS).read_text()


def test_the_list_names_every_recipe_and_says_how_to_run_one() -> None:
    text = describe_recipes()
    lines = text.splitlines()
    for recipe in RECIPES.values():
        (line,) = [line for line in lines if line.startswith(f"{recipe.name} ")]
        accuracy, _, _ = recipe.accuracy.partition(" top-1")
        for part in (recipe.settings["model"], recipe.settings["epochs"], accuracy):
            assert str(part) in line
    assert "eqx-vit train --recipe NAME --data FOLDER" in text
    assert max(map(len, lines[: len(RECIPES) + 1])) <= 120


def test_a_file_of_ones_own_needs_settings_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[settings]\nmodel = "pit"\nepochs = 3\n[settings.changes]\nimage_size = 24\npatch_size = 8\ndim = 8\n'
        "depth = [1, 2]\nheads = [2, 4]\n"
    )
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.title, recipe.paper) == ("mine", "mine", "")
    assert recipe.settings["epochs"] == 3
    settings = make_settings(recipe.settings)
    config, size = make_model_config(settings.model, settings.changes, None, 7)
    assert (config.num_classes, size) == (7, (24, 24))
    path.write_text('[recipe]\ntitle = "Mine"\n[settings]\n')  # the model may come from the command line
    assert load_recipe(str(path)).title == "Mine"


WRONG = {
    "[settings]\nepochs = \n": "is no TOML",
    "[recipe]\ntitle = 'x'\n": r"has no table \[settings\]",
    "[setings]\nepochs = 1\n": "the file has 'setings', which it cannot have: did you mean settings",
    "settings = 3\n": "settings must be a table",
    "[recipe]\ntitel = 'x'\n[settings]\n": r"\[recipe\] has 'titel', which it cannot have: did you mean title",
    "[recipe]\nhours = 5\n[settings]\n": r"hours in \[recipe\] must be text in quotes, given 5",
    "[settings]\nlearning_rat = 0.1\n": r"\[settings\] has 'learning_rat', .* did you mean learning_rate",
    "[settings]\nxyz = 0.1\n": r"\[settings\] has 'xyz', which it cannot have: it takes model, changes, data",
    "[settings]\nepochs = 0\n": "Settings.epochs must be at least 1, given 0",
    "[settings]\nepochs = 'many'\n": r"Settings.epochs must be int, given 'many' \(str\)",
    "[settings]\nmodel = ['a']\n": r"model in \[settings\] must be text in quotes, given \['a'\]",
    "[settings]\nmodel = 'deit_smal_patch16_224'\n": "there is no model .*did you mean deit_small_patch16_224",
    "[settings]\nmodel = 'pit'\n[settings.changes]\ndrop_pth = 0.1\n": "no field .drop_pth.: did you mean drop_path",
}


@pytest.mark.parametrize(("content", "message"), WRONG.items())
def test_what_is_wrong_in_a_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}.*{message}") as raised:
        load_recipe(str(path))
    assert "\n" not in str(raised.value)


def test_names_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    def refuse(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_recipe(name)

    refuse("cifar100_slvit", "there is no recipe 'cifar100_slvit': did you mean cifar100_sl_vit")
    refuse("zzz", "there is no recipe 'zzz': `eqx-vit recipes` lists them")
    refuse("../recipes/cifar100_sl_vit", "there is no recipe")
    refuse(str(tmp_path / "none.toml"), r"there is no file .*none\.toml")
    (tmp_path / "folder.toml").mkdir()
    refuse(str(tmp_path / "folder.toml"), r"folder\.toml cannot be read")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    refuse(str(tmp_path / "bytes.toml"), r"bytes\.toml is no TOML")


def test_reported_accuracies_are_of_presets_with_released_weights() -> None:
    released = {preset for row in MODELS.values() for preset in row.weights}
    assert set(REPORTED) <= released
    assert all(50 < accuracy < 90 and source for accuracy, source in REPORTED.values())
    assert find_reported("deit_small_patch16_224") == (79.9, "README_deit.md of facebookresearch/deit")
    assert find_reported("digits") is None
