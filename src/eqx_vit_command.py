"""Where the command `eqx-vit` starts: outside the package, whose import takes seconds that Ctrl-C has to end too."""

import gc
import os
import sys


def main() -> int:
    """Run the command line of this process, and return its exit code, which is 130 after Ctrl-C at any time."""
    sys.unraisablehook = _handle_lost
    try:
        gc.disable()  # what is imported stays: to look through it again and again takes a fifth of the time
        from eqx_vit import cli

        gc.freeze()
        gc.enable()
        return cli.main()
    except KeyboardInterrupt:
        return 130


def _handle_lost(lost: "sys.UnraisableHookArgs") -> None:
    """End the process where Ctrl-C came within a callback, such as JAX's at each collection: Python drops it."""
    if lost.exc_type is KeyboardInterrupt:
        os._exit(130)
    sys.__unraisablehook__(lost)
