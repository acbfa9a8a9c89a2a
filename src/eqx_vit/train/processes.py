"""A run in several processes, each with devices of its own: joining them, and doing things in all of them or in none.

JAX does the work (`jax.distributed`). What is here sees to it that whatever goes wrong in one process ends all of them,
with one line.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from eqx_vit.layers.config import check

Value = TypeVar("Value")
LOST = "another process of this run has ended or cannot be reached: --resume goes on from what was saved last"
# How runtimes begin what they say of a connection that is gone.
_LOST_PREFIXES = (
    "UNKNOWN",
    "INTERNAL",
    "UNAVAILABLE",
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
)


class SharedError(ValueError):
    """An error that every process of the run knows of; its text is empty in all but the one that says it."""


def join(coordinator: str | None, count: int | None, index: int | None, timeout: int) -> None:
    """Join the other processes of the run: those that the cluster tells of (SLURM, Open MPI, Kubernetes, Cloud TPU), or
    `count` of them, of which this is number `index`, that meet at process 0's address `coordinator`, HOST:PORT.

    Without any of this, the process stays alone. It has to be called before JAX is used. Where the others have not come
    within `timeout` seconds, a line says so and the program ends with exit code 2.

    **Raises:** `ValueError` for arguments that do not fit together, or a cluster that tells too little.
    """
    given = {"--coordinator": coordinator, "--processes": count, "--process-id": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if _cluster() is not None:
            _initialise(timeout, f"{_cluster()} says", None, None, None)
        return
    check(not missing, f"--coordinator, --processes and --process-id go together: give {', '.join(missing)} too")
    assert coordinator is not None
    assert count is not None
    assert index is not None
    host, _, port = coordinator.rpartition(":")
    check(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        f"--coordinator takes HOST:PORT, such as 10.0.0.1:1234, given {coordinator}",
    )
    check(index < count, f"--process-id is a number from 0 to {count - 1}, with --processes {count}, given {index}")
    if count > 1:
        _initialise(timeout, f"--coordinator is {coordinator}", coordinator, count, index)


def _cluster() -> str | None:
    """What tells of other processes: JAX can ask it the rest."""
    variables = os.environ
    if "SLURM_STEP_NODELIST" in variables and int(variables.get("SLURM_NTASKS", "1")) > 1:
        return "SLURM"
    if int(variables.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        return "Kubernetes"
    if "," in variables.get("TPU_WORKER_HOSTNAMES", "") or int(variables.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return "Cloud TPU"
    return None


def _initialise(timeout: int, place: str, coordinator: str | None, count: int | None, index: int | None) -> None:
    def give_up() -> None:
        print(f"eqx-vit train: not all processes of the run have come together within {timeout} s ({place})",
              file=sys.stderr, flush=True)  # fmt: skip
        os._exit(2)

    _shorten_last_words()
    # JAX's own time-out aborts the process with a stack trace.
    alarm = threading.Timer(timeout, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=timeout + 60)
    except (RuntimeError, KeyError) as error:  # what the detection of a cluster raises
        raise ValueError(f"the processes of the run cannot meet ({place}): {error}") from error
    finally:
        alarm.cancel()


_SHORTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ended = False
for line in sys.stdin.buffer:
    polled = line.startswith(b"E") and b"coordination_service" in line
    lost = polled or b"JAX distributed service detected fatal errors" in line
    if lost and not ended:
        line, ended = sys.argv[1].encode() + b"\\n", True
    elif ended or line.startswith(b"[Gloo]"):
        continue
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
"""


def _shorten_last_words() -> None:
    """Let this process's standard error go through another one: JAX aborts a process where another one is lost, in the
    middle of anything, with a stack trace, of which one line is enough.
    """
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SHORTENING, f"eqx-vit train: {LOST}"], stdin=subprocess.PIPE
    )
    assert reader.stdin is not None
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    reader.returncode = 0  # nobody waits for it: it ends with this process


def is_first() -> bool:
    """Whether this process is the one that writes files, and speaks."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """The texts that all processes give at this point, in their order."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), dtype=np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(own), dtype=np.int32)))
    padded = np.pad(own, (0, int(lengths.max()) - len(own) + 1))  # +1: no array is empty
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is up in any process."""
    if jax.process_count() == 1:
        return flags
    rows = np.asarray(multihost_utils.process_allgather(np.asarray(flags, dtype=np.int32)))
    return tuple(bool(up > 0) for up in rows.reshape(-1, len(flags)).max(axis=0))


def do_together(work: Callable[[], Value]) -> Value:
    """What `work` gives, once it has succeeded in every process.

    **Raises:** `SharedError` in all of them where it raises `ValueError`, `OSError` or `ImportError` in any.
    """
    if jax.process_count() == 1:
        return work()
    error, found = None, None
    try:
        found = work()
    except (ValueError, OSError, ImportError) as raised:
        error = raised
    said = exchange("" if error is None else describe_error(error))
    first = next((index for index, text in enumerate(said) if text), None)
    if first is None:
        return found  # pyright: ignore[reportReturnType]
    raise SharedError(said[first] if first == jax.process_index() else "") from error


def check_same(facts: Mapping[str, object]) -> None:
    """Raise `SharedError` in all processes where one has another value of a fact than the first."""
    texts = exchange(json.dumps(facts, default=str))
    for index, text in enumerate(texts):
        own, first = json.loads(text), json.loads(texts[0])
        differing = [name for name in first if own.get(name) != first[name]]
        if differing:
            name = differing[0]
            raise share_error(
                f"the processes of a run need the same settings: {name} is {first[name]!r} in process 0, and "
                f"{own.get(name)!r} in process {index}"
            )


def share_error(text: str) -> SharedError:
    """An error that every process finds by itself, and the first one says."""
    return SharedError(text if is_first() else "")


def describe_error(error: Exception) -> str:
    """An error in a line of words, never empty."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ImportError):
        return f"this needs {error.name}: pip install 'eqx_vit[train]'"
    return str(error) or type(error).__name__


def means_lost(error: Exception) -> bool:
    """Whether an error of the runtime says that another process is gone."""
    prefixes = tuple(f"{prefix}:" for prefix in _LOST_PREFIXES)
    return jax.distributed.is_initialized() and str(error).startswith(prefixes)


def leave(code: int, error: Exception | None) -> int:
    """The exit code, where the process is to end. It ends here, where the others do not know of that: to take leave of
    them, as JAX does at the end of a program, would be to wait for them.
    """
    if jax.distributed.is_initialized() and not isinstance(error, SharedError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
