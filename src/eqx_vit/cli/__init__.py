"""`eqx-vit`: train, evaluate, predict, look, probe, export, models. An error is one line, and exit code 2."""

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import jax

from eqx_vit.cli.arguments import join_lines, make_parser
from eqx_vit.cli.cache import keep_compiled
from eqx_vit.cli.imports import import_by_name
from eqx_vit.train.processes import LOST, describe_error, join, leave, means_lost

# What `pip install 'eqx_vit[train]'` brings: imported only by the commands that need them.
EXTRAS = ("optax", "PIL", "sklearn", "rich", "matplotlib", "grain")
# And 'eqx_vit[export]'.
EXPORT_EXTRAS = ("flatbuffers", "jax2onnx", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code: 0, 2 after an error, 130 where it was stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the name of a class need not be in the alphabet of the screen
    options = make_parser().parse_args(arguments)
    try:
        if options.command_name == "train":
            join(options.coordinator, options.processes, options.process_id, options.join_timeout)
        _check_device()
        for name in options.imports:
            import_by_name(name)
        with keep_compiled() if getattr(options, "cache", False) else nullcontext():
            code = options.command(options)
        sys.stdout.flush()  # here, where a closed pipe is understood
        return code
    except KeyboardInterrupt:
        return leave(130, None)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return leave(0, None)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        message = _describe(error)
        if message is None:
            raise
        if message:
            print(f"eqx-vit {options.command_name}: {join_lines(message)}", file=sys.stderr)
        return leave(2, error)


def _describe(error: Exception) -> str | None:
    """What to say of an error; nothing, where another process of the run says it; None for one that is a bug."""
    if means_lost(error):
        return f"{LOST} ({str(error)[:200]})"
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
        extra = "train" if name in EXTRAS else "export" if name in EXPORT_EXTRAS else None
        return extra and f"this needs {error.name}: pip install 'eqx_vit[{extra}]'"
    if isinstance(error, RuntimeError):  # JAX has no type of its own for this
        return (
            "out of memory: give a smaller --batch-size or --image-size" if "RESOURCE_EXHAUSTED" in str(error) else None
        )
    if isinstance(error, ValueError):
        return re.sub(r"\bSettings\.(\w+)", lambda name: "--" + name[1].replace("_", "-"), str(error))
    return describe_error(error)


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
