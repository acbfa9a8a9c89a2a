"""Recipes: the settings of a paper, or of what was measured here, as TOML files in `eqx_vit/recipes`."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, cast

from eqx_vit.layers.config import check, shorten
from eqx_vit.train.config import make_model_config
from eqx_vit.train.settings import Settings, make_settings

FOLDER = Path(__file__).parent.parent / "recipes"
ENDING = ".toml"
TABLES = ("recipe", "settings")
SETTINGS = tuple(field.name for field in fields(Settings) if field.name != "recipe")  # which is for the record alone


class Recipe(NamedTuple):
    """How a model was trained, and how well it did.

    **Attributes:**

    - `name`: of the file, without its ending.
    - `title`: the model and the data, for people; `paper`, that it comes from.
    - `accuracy`: what the authors report; `source`, where that and the settings stand.
    - `data`: the images, and the folders that they have to be in.
    - `devices`, `hours`: what the authors trained on, and how long.
    - `differences`: what is not as the authors have it.
    - `settings`: fields of `Settings` and their values, as the file has them.
    """

    name: str
    title: str
    paper: str
    accuracy: str
    source: str
    data: str
    devices: str
    hours: str
    differences: str
    settings: dict[str, object]


TEXTS = tuple(name for name in Recipe._fields if name not in ("name", "settings"))


def list_recipes() -> list[Recipe]:
    """All recipes of this library, by name."""
    return [_read_recipe(path) for path in sorted(FOLDER.glob(f"*{ENDING}"))]


def load_recipe(name: str) -> Recipe:
    """A recipe of this library by its name, or one of your own by the path of a file that ends in `.toml`.

    A file of your own may leave out any text, or the whole table `[recipe]`: the texts are then empty, and the title
    is the name.

    **Raises:** `ValueError` for an unknown name, a file that cannot be read, and what no run could take: it names the
    file, the field and the nearest that there is.
    """
    if name.endswith(ENDING):
        return _read_recipe(Path(name))
    names = _list_names()
    hint = _hint(name, names) or "`eqx-vit recipes` lists them"
    check(name in names, f"there is no recipe {shorten(name)}: {hint} (a file of your own ends in {ENDING})")
    return _read_recipe(FOLDER / f"{name}{ENDING}")


def describe_recipes() -> str:
    """The recipes as a table, and how to run one: what `eqx-vit recipes` prints."""
    rows = [("recipe", "model", "epochs", "data", "top-1")]
    for recipe in list_recipes():
        model, epochs = recipe.settings["model"], recipe.settings["epochs"]
        data, _, _ = recipe.data.partition(",")
        accuracy, _, _ = recipe.accuracy.partition(" top-1")
        rows.append((recipe.name, str(model), str(epochs), data, accuracy))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    end = (
        "",
        "eqx-vit train --recipe NAME --data FOLDER trains one; further options change settings of it.",
        f"A recipe of your own is a file: --recipe my_recipe{ENDING}. Those above are in {FOLDER}:",
        "each says where its numbers come from, what the authors trained on, and what differs here.",
    )
    return "\n".join([*table, *end])


def _read_recipe(path: Path) -> Recipe:
    tables = _read_tables(path)
    texts, settings = tables.get("recipe", {}), tables["settings"]
    _check_names(path, "[recipe]", texts, TEXTS)
    _check_names(path, "[settings]", settings, SETTINGS)
    for name, text in texts.items():
        check(isinstance(text, str), f"{path}: {name} in [recipe] must be text in quotes, given {shorten(text)}")
    model = settings.get("model", "")
    check(isinstance(model, str), f"{path}: model in [settings] must be text in quotes, given {shorten(model)}")
    try:
        made = make_settings(settings)
        if "model" in settings:
            # How many classes there are is not known before the data: one is what every model can tell.
            make_model_config(made.model, made.changes, made.image_size, 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    given = cast(dict[str, str], texts)
    own = {name: given.get(name, "") for name in TEXTS if name != "title"}
    return Recipe(name=path.stem, title=given.get("title", path.stem), settings=settings, **own)


def _read_tables(path: Path) -> dict[str, dict[str, object]]:
    """The tables of a file. There is at least `settings`."""
    check(path.exists(), f"there is no file {path}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of bytes that are no text, of lists in lists in lists
        raise ValueError(f"{path} is no TOML: {error}") from error
    _check_names(path, "the file", content, TABLES)
    check("settings" in content, f"{path} has no table [settings], which says what to train, such as epochs = 10")
    for name, table in content.items():
        check(isinstance(table, dict), f"{path}: {name} must be a table, written [{name}], given {shorten(table)}")
    return content


def _check_names(path: Path, place: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        check(
            name in known,
            f"{path}: {place} has {shorten(name)}, which it cannot have: "
            f"{_hint(name, known) or 'it takes ' + ', '.join(known)}",
        )


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(near)}?" if near else ""


def _list_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob(f"*{ENDING}"))
