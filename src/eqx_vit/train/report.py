"""What a run says while it goes: a live bar on a terminal, and a line an epoch everywhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Report:
    """The progress of a run, as a context manager; `quiet=True` says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None, note="")

    def __enter__(self) -> "Report":
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False)

    def reading(self, done: int, total: int) -> None:
        """So many files of an image folder have been read."""
        self.progress.update(self.task, description="reading images", completed=done, total=total)

    def started(self, step: int, total: int) -> None:
        """Training begins, or goes on, after `step` steps; the first one compiles."""
        self.progress.reset(self.task, total=total, completed=step, description="compiling")

    def stepped(self, step: int, epoch: int, epochs: int, loss: float) -> None:
        """A step is done; `loss` is the mean of the epoch so far."""
        self.progress.update(self.task, completed=step, description=f"epoch {epoch}/{epochs}", note=f"loss {loss:.3f}")

    def epoch(self, entry: dict[str, Any], epochs: int, best: bool) -> None:
        """An epoch is done; `entry` is its line of metrics.jsonl."""
        width = len(str(epochs))
        self.say(
            f"epoch {entry['epoch']:{width}d}/{epochs}  "
            f"train loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:6.2%}  "
            f"validation loss {entry['validation_loss']:.4f} accuracy {entry['validation_accuracy']:6.2%}"
            f"{'  best' if best else ''}"
        )
