"""`eqx-vit`: train, evaluate, predict, look, models. Every error is one line on standard error, and exit code 2."""

import io
import os
import re
import sys
from collections.abc import Sequence

import jax

from eqx_vit.cli.arguments import join_lines, make_parser
from eqx_vit.cli.imports import import_by_name

# What `pip install 'eqx_vit[train]'` brings: imported only by the commands that need them.
EXTRAS = ("optax", "PIL", "sklearn", "rich", "matplotlib", "grain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code: 0, 2 after an error, 130 where it was stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the name of a class need not be in the alphabet of the screen
    options = make_parser().parse_args(arguments)
    try:
        _check_device()
        for name in options.imports:
            import_by_name(name)
        code = options.command(options)
        sys.stdout.flush()  # here, where a closed pipe is understood
        return code
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        message = f"this needs {error.name}: pip install 'eqx_vit[train]'"
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    except ValueError as error:
        message = re.sub(r"\bSettings\.(\w+)", lambda name: "--" + name[1].replace("_", "-"), str(error))
    except RuntimeError as error:  # JAX has no type of its own for this
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = "out of memory: give a smaller --batch-size or --image-size"
    print(f"eqx-vit {options.command_name}: {join_lines(message)}", file=sys.stderr)
    return 2


def _check_device() -> None:
    """Raise `ValueError` unless JAX can compute on the device that it was told to use."""
    try:
        jax.devices()
    # Without its plugin, JAX fails for cuda by an assertion of its own, or under python -O by what comes after.
    except (RuntimeError, AssertionError, AttributeError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = f" ({error})" if isinstance(error, RuntimeError) else ""
        raise ValueError(
            f"JAX finds no device for JAX_PLATFORMS={platforms}{reason}: unset it to compute on what there is"
        ) from error
