"""`eqx-vit`: train, evaluate, predict, models. Every error is one line on standard error, and exit code 2."""

import os
import re
import sys
from collections.abc import Sequence

from eqx_vit.cli.arguments import join_lines, make_parser

# What `pip install 'eqx_vit[train]'` brings: imported only by the commands that need them.
EXTRAS = ("optax", "safetensors", "PIL", "sklearn", "rich", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    options = make_parser().parse_args(arguments)
    try:
        return options.command(options)
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
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ValueError as error:
        message = re.sub(r"\bSettings\.(\w+)", lambda name: "--" + name[1].replace("_", "-"), str(error))
    except RuntimeError as error:  # JAX has no type of its own for this
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = "out of memory: give a smaller --batch-size or --image-size"
    print(f"eqx-vit {options.command_name}: {join_lines(message)}", file=sys.stderr)
    return 2
