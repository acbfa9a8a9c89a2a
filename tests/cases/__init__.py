"""What the tests know of each architecture, as data: a module each, named as in `MODELS`, found by listing the folder.

A module holds these tables, of which only the first is required; one function of `tests/` runs each:

- `TINY`: the smallest sensible config, which every generic test runs (`test_models.py`, `test_flax.py`, ...).
- `IMAGE_SIZE`: (height, width) of the images for `TINY`, of a model that takes any size; else the config has it.
- `GOLDEN`: {golden file: (config, source)}, or (config, source, entries that no model reads), for `test_golden.py`.
- `FULL_SIZE`: {"<golden file>/<variant>": (config, source)}, in the slow session, for `test_golden.py`.
- `SEED_CALLS`: {config: exact number of parameters}, for `test_seed_calls.py`.
- `INITIAL`: (config, {pattern of parameter names: distribution}), for `test_initialisation.py`. A distribution is
  ("normal", standard deviation), ("uniform", limit) or ("constant", value).
- `shapes()`: a Hypothesis strategy of (config, image size, shape of `features`), for `test_shapes.py`.
- `REFUSED`: [(changes to TINY, message)], `REFUSED_SIZES`: [(changes to TINY, (height, width), message)], and
  `refused()`: a Hypothesis strategy of (changes to TINY, message), for `test_refusals.py`. A message is a pattern.

What is particular to an architecture, the mathematics of its paper above all, is tested in `test_<architecture>.py`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

FILES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
CASES: dict[str, ModuleType] = {name: importlib.import_module(f"cases.{name}") for name in FILES}


def having(table: str) -> list[str]:
    """The architectures that have a table."""
    return [name for name, case in CASES.items() if hasattr(case, table)]


def rows(table: str) -> list[tuple[str, Any]]:
    """(architecture, row) of a table of all architectures; of a dict its keys."""
    return [(name, row) for name in having(table) for row in getattr(CASES[name], table)]
