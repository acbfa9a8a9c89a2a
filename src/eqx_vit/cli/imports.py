"""`--import`: a user's file or module, run before the command, for the architectures that it registers."""

import importlib
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
    module = path.stem if path.is_file() else name
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if path.is_file() and module in sys.modules and Path(loaded or "").resolve() != path.resolve():
        raise ValueError(f"--import {name}: there is another module {module!r}, rename the file")
    folder = path.resolve().parent if path.is_file() else Path.cwd()
    sys.path.insert(0, str(folder))  # what lies beside the file, it may import
    try:
        importlib.import_module(module)
    except Exception as error:  # anything that a user's file raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" (line {last.lineno} of {Path(last.filename).name})" if last.filename.endswith(".py") else ""
        raise ValueError(f"--import {name} failed: {type(error).__name__}: {error}{where}") from error
