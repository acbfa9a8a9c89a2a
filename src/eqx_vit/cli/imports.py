"""`--import`: a user's file or module, run before the command, for the architectures that it registers."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path


def import_by_name(name: str) -> None:
    """Import a file (`my_vit.py`, `models/my_vit.py`) under its name without the ending, or a module by its own.

    **Raises:** `ValueError` for one that is not there, or that fails, with the line where it does.
    """
    path = Path(name)
    if path.suffix == ".py" and not path.is_file():
        raise ValueError(f"--import {name}: there is no such file")
    sys.path.insert(
        0, str(path.resolve().parent if path.is_file() else Path.cwd())
    )  # what lies beside it, it may import
    try:
        importlib.import_module(path.stem if path.is_file() else name)
    except Exception as error:  # anything that a user's file raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" (line {last.lineno} of {Path(last.filename).name})" if last.filename.endswith(".py") else ""
        raise ValueError(f"--import {name} failed: {type(error).__name__}: {error}{where}") from error
