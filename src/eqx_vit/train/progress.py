"""The progress of a run on the screen: lines of log, and below them on a terminal a live bar."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressLog:
    """A log and a progress bar, as a context manager; `quiet=True` shows nothing, and a `process` that is not the first
    nothing but its warnings.
    """

    def __init__(self, *, quiet: bool = False, process: int = 0) -> None:
        self._process = process
        self._console = _Console(quiet=quiet or process > 0, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, note="")

    def __enter__(self) -> "ProgressLog":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def closed(self) -> bool:
        """Whether nobody reads the log any more, as after `| head`."""
        return self._console.closed

    def write(self, text: str) -> None:
        """Write a line above the bar."""
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Write a line that only this process knows of."""
        if self._process > 0:
            print(f"process {self._process}: {text}", flush=True)
        else:
            self.write(text)

    def show_reading(self, done: int, total: int) -> None:
        """Show how many files of an image folder have been read."""
        self._bar.update(self._task, description="reading images", completed=done, total=total)

    def start_training(self, step: int, total: int) -> None:
        """Show that training starts, or goes on, after `step` steps; the first one compiles."""
        self._bar.reset(self._task, total=total, completed=step, description="compiling")

    def show_step(self, step: int, epoch: int, epochs: int, loss: float, note: str = "") -> None:
        """Show that a step is done; `loss` is that of its batch, `note` whatever else there is to say."""
        note = f"loss {loss:.3f}" + (f", {note}" if note else "")
        self._bar.update(self._task, completed=step, description=f"epoch {epoch}/{epochs}", note=note)


class _Console(Console):
    closed = False

    def on_broken_pipe(self) -> None:
        """Note it; rich's own method would end the program, and what it was training would be lost."""
        self.quiet = self.closed = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
