"""The pages that follow from the package: architectures, recipes, the API. What is new there appears by itself."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from cases import CASES
from ideas import draw

import eqx_vit
from eqx_vit import MODELS, Architecture
from eqx_vit.inputs import image_size_of
from eqx_vit.train.recipes import Recipe, list_recipes
from eqx_vit.train.reported import find_reported
from eqx_vit.weights.checkpoints import find_checkpoints

ROOT = Path(__file__).parent.parent
# Where the public names of a module stand; those of a module that is not here get a page of that module's name.
CONCEPTS = {
    "models": ("Models", "make them, run them", ("create", "forward", "model", "registry", "functional", "latency")),
    "training": ("Parameters and optimisers", "what is trained, and how", ("parameters", "optimisers", "sharding")),
    "inspection": ("Seeing inside", "values by name, features, attention", ("inspection", "points")),
    "surgery": ("Changing a model", "heads, sizes, parts", ("surgery", "exchange", "equinox")),
    "files": (
        "Saving, loading, weights",
        "files, released weights, timm and transformers",
        ("serialization", "weights"),
    ),
}
DATA_SETS = {"digits": "Digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
DATA_SETS |= {"imagenet": "ImageNet-1k", "tiny": "Tiny ImageNet"}  # by the first word of a recipe's name
EQUINOX = "Equinox's: the model with dropout and BatchNorm as in inference, or with `value=False` as in training."
INSIDE = ("cli", "inspection", "models", "train")  # packages whose public names are at the top, or in the command line
OF_ARCHITECTURES = "models"  # whose public names stand on the pages of the architectures


def pages() -> dict[str, str]:
    """Every page made here, by its path."""
    own = {name: row for name, row in MODELS.items() if row.config.__module__.startswith("eqx_vit.")}
    return {
        "architectures/index.md": _architectures(own),
        **{f"architectures/{name}.md": _architecture(row) for name, row in own.items()},
        "recipes.md": _recipes(list_recipes()),
        **_api(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _code(text: str) -> str:
    """Code in a cell of a table, where a bar would end it."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


# Architectures


def _papers(row: Architecture) -> str:
    """Links to the papers that the file's docstring names, the first one foremost."""
    numbers = dict.fromkeys(re.findall(r"\b(\d{4}\.\d{5})\b", _file(row).__doc__ or ""))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)


def _file(row: Architecture) -> ModuleType:
    return sys.modules[row.config.__module__]


def _counts(row: Architecture) -> dict[str, int]:
    """The parameters of each preset, as the file states them; a test holds them against the models."""
    source = inspect.getsource(_file(row))
    found = {name: re.search(rf'"{re.escape(name)}":[^#]*# ([\d,]+)', source) for name in row.presets}
    return {name: int(match[1].replace(",", "")) for name, match in found.items() if match}


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count < 1e8 else f"{count / 1e6:,.0f} M"


def _layouts(row: Architecture) -> str:
    return ", ".join(find_checkpoints(next(iter(row.presets.values()))).names)


def _architectures(own: dict[str, Architecture]) -> str:
    rows = []
    for name, row in own.items():
        counts = sorted(_counts(row).values())
        size = f"{counts[0] / 1e6:,.1f} - {_millions(counts[-1])}"
        released = f"{len(row.weights)}" if row.weights else "none"
        rows.append([f"[`{row.title}`]({name}.md)", _papers(row), len(row.presets), size, released, _layouts(row)])
    header = ["model", "paper", "presets", "parameters", "released weights", "checkpoints read"]
    return f"""# Architectures

Each is one file, `src/eqx_vit/models/<name>.py`, that can be read beside its paper. `eqx_vit.list_models("cait*")` and
`eqx-vit models 'cait*'` list the presets; `eqx_vit.create(name, key=key)` makes one. Image sizes are (height, width) or
one number; images and patches that are not square work wherever the paper's model allows them.

{_table(header, rows)}
"Released weights" counts the presets whose weights `create(..., pretrained=True)` finds. "Checkpoints read" are the
layouts that `eqx_vit.weights.load_state_dict(..., source=)` takes and `to_state_dict` writes.
"""


def _architecture(row: Architecture) -> str:
    first, _, rest = (inspect.getdoc(_file(row)) or "").partition("\n")
    picture = draw(row.name)
    shapes = inspect.cleandoc(row.model.__doc__ or "")
    preset = next(iter(row.presets))
    return "\n".join(
        [
            f"# {row.title}\n",
            f"{first}\n" if not re.fullmatch(rf"{row.title}\W*", first) else "",
            f"Papers: arXiv {_papers(row)}. File: `{_path(_file(row))}`.\n",
            _prose(rest),
            f'\n<div class="idea" markdown="0">{picture}</div>\n' if picture else "",
            "## From an image to logits\n",
            _prose(shapes),
            "\n```python\nimport jax, eqx_vit\n",
            f'model, state = eqx_vit.create("{preset}", key=jax.random.key(0))\n```\n',
            "## Presets\n",
            _presets(row),
            f"## {row.config.__name__}\n",
            _fields(row),
            "## What it is held against\n",
            _evidence(row),
        ]
    )


def _path(module: ModuleType) -> str:
    return "src/" + module.__name__.replace(".", "/") + ".py"


def _prose(text: str) -> str:
    """A docstring as Markdown: what is indented in it is a table of plain text, and stays one."""
    return (
        "\n\n".join(
            "```text\n" + inspect.cleandoc(part) + "\n```" if part.startswith("    ") else part
            for part in re.split(r"\n\s*\n", text.strip("\n"))
        )
        + "\n"
    )


def _presets(row: Architecture) -> str:
    counts, rows = _counts(row), []
    for name, config in row.presets.items():
        source, reported = row.weights.get(name), find_reported(name)
        side = source.image_size if source else 224
        size = image_size_of(config, (side, side))
        where = "" if source is None else f"`{source.hub}`" if "://" not in source.hub else f"[official]({source.hub})"
        rows.append(
            [
                f"`{name}`",
                f"{counts[name]:,}",
                f"{size[0]}" if size[0] == size[1] else f"{size[0]} x {size[1]}",
                where or "-",
                f"{reported[0]:.1f}" if reported else "-",
            ]
        )
    sources = sorted({reported[1] for name in row.presets if (reported := find_reported(name))})
    licenses = sorted({source.license for source in row.weights.values()})
    terms = f"License of the released weights: {', '.join(licenses)}. " if licenses else ""
    note = (
        f"Top-1: percent on ImageNet-1k of the released weights, as stated in {'; '.join(sources)}.\n"
        if sources
        else ""
    )
    return _table(["preset", "parameters", "pixels", "released weights", "top-1"], rows) + "\n" + terms + note


FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = ([^#]+?))?\s*(?:#\s*(.*))?$", flags=re.MULTILINE)


def _fields(row: Architecture) -> str:
    said: dict[str, tuple[str, str, str]] = {}
    for kind in reversed(row.config.__mro__):
        if dataclasses.is_dataclass(kind):
            said |= {name: rest for name, *rest in FIELD.findall(inspect.getsource(kind))}
    rows = []
    for field in dataclasses.fields(row.config):
        annotation, default, comment = said.get(field.name, (str(field.type), "", ""))
        required = field.default is dataclasses.MISSING
        shown = "required" if required else _code(default or str(field.default))
        rows.append([f"`{field.name}`", _code(annotation), shown, comment])
    return _table(["field", "type", "default", ""], rows)


def _evidence(row: Architecture) -> str:
    case = CASES[row.name]
    golden, full = getattr(case, "GOLDEN", {}), getattr(case, "FULL_SIZE", {})
    lines = [
        f"- {len(golden)} golden files with logits, and where the code can be trained, gradients and statistics: "
        + ", ".join(f"`{file}` ({source})" for file, (_, source, *_) in golden.items())
    ]
    if full:
        variants = sorted({name.split("/")[1] for name in full})
        lines.append(
            f"- at full size, the logits of {len(variants)} models of the official code: {', '.join(variants)}"
        )
    lines.append("- what this means, and the tolerances: [How faithful it is](../faithful.md)")
    return "\n".join(lines) + "\n"


# Recipes


def _recipes(recipes: Sequence[Recipe]) -> str:
    by_data: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        by_data.setdefault(recipe.name.split("_")[0], []).append(recipe)
    parts = [
        "# Recipes\n",
        "The settings of a paper, or of what was measured here, as files in `src/eqx_vit/recipes/`. `eqx-vit recipes`",
        "lists them, `eqx-vit train --recipe NAME` runs one. [Training](training.md#recipes) says how to change one or",
        "write your own.\n",
    ]
    for data, group in by_data.items():
        parts.append(f"## {DATA_SETS.get(data, data)}\n")
        header = ["recipe", "model", "accuracy", "trained on"]
        parts.append(_table(header, [[f"`{one.name}`", one.title, one.accuracy, one.devices] for one in group]))
        differing = dict.fromkeys(" ".join(one.differences.split()) for one in group)
        if len(differing) == 1:
            parts.append(f"Not as in the papers, for all of these: {next(iter(differing))}\n")
        else:
            parts.append("What is not as the authors have it:\n")
            parts += [f"- `{one.name}`: {' '.join(one.differences.split())}" for one in group]
            parts.append("")
    return "\n".join(parts)


# The API


def _public(module: ModuleType) -> dict[str, str]:
    """The public names of a module whose objects are this package's own, with where each is defined."""
    found = {}
    for name in dir(module):
        value = getattr(module, name)
        home = getattr(value, "__module__", "")
        own = (isinstance(home, str) and home.startswith("eqx_vit.")) or name == "inference_mode"
        if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
            found[name] = f"{home}.{value.__qualname__}"
    return found


def _api() -> dict[str, str]:
    grouped: dict[str, dict[str, str]] = {page: {} for page in CONCEPTS}
    at_home = {home: page for page, (_, _, modules) in CONCEPTS.items() for home in modules}
    places = {"eqx_vit": eqx_vit}
    places |= {
        f"eqx_vit.{found.name}": importlib.import_module(f"eqx_vit.{found.name}")
        for found in pkgutil.iter_modules(eqx_vit.__path__)
        if found.ispkg and found.name not in INSIDE
    }
    for prefix, module in places.items():
        for name, home in _public(module).items():
            part = prefix.partition(".")[2] or home.split(".")[1 if home.startswith("eqx_vit") else 0]
            if part != OF_ARCHITECTURES and not (prefix == "eqx_vit.flax" and name in _titles()):
                grouped.setdefault(at_home.get(part, part), {})[f"{prefix}.{name}"] = home
    result = {}
    for page, names in grouped.items():
        title, idea, _ = CONCEPTS.get(page, (f"eqx_vit.{page}", "", ()))
        about = f"{idea[0].upper()}{idea[1:]}.\n" if idea else _prose(inspect.getdoc(places[f"eqx_vit.{page}"]) or "")
        entries = [_entry(name, home) for name, home in names.items()]
        result[f"api/{page}.md"] = "\n".join([f"# {title}\n", about, *entries])
    return result


def _titles() -> set[str]:
    return {row.title for row in MODELS.values()}


def _entry(name: str, home: str) -> str:
    if not home.startswith("eqx_vit."):
        return f"## {name}\n\n{EQUINOX}\n"
    module, _, _ = home.rpartition(".")
    value = getattr(sys.modules[module], home.rsplit(".", 1)[1])
    members = (
        [key for key, one in vars(value).items() if not key.startswith("_") and inspect.isroutine(one) and one.__doc__]
        if inspect.isclass(value)
        else []
    )
    options = f"      heading: {name}\n      toc_label: {name.rsplit('.', 1)[1]}\n      heading_level: 2\n"
    if members:
        options += f"      members: [{', '.join(members)}]\n"
    return f"::: {home}\n    options:\n{options}"
