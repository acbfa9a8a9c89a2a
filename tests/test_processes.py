"""Two real processes on one machine: the losses of one, and one line whatever goes wrong in either."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import eqx_vit
from eqx_vit.cli import main
from eqx_vit.train import processes
from eqx_vit.train.processes import SharedError, any_of, check_same, do_together, exchange, join

OPTIONS = ["--epochs", "2", "--batch-size", "256", "--crop", "random", "--set", "dim=8", "--set", "mlp_dim=8"]
OPTIONS += ["--set", "depth=1", "--set", "heads=2", "--set", "dropout=0.1"]


def start(output: Path, *options: Sequence[str]) -> list[subprocess.Popen[str]]:
    """As many processes of one run as there are lists of options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(Path(eqx_vit.__file__).parents[1]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "eqx_vit.cli", "train", "--output", str(output), "--processes", str(len(options))]
    return [
        subprocess.Popen(
            [*command, "--coordinator", f"127.0.0.1:{port}", "--process-id", str(index), *own],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, own in enumerate(options)
    ]


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """(exit code, lines of its standard error)."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors.splitlines()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(folder: Path, whole: Path) -> None:
    for found, expected in zip(metrics(folder), metrics(whole), strict=True):
        for name, value in expected.items():
            if "loss" in name or "accuracy" in name:
                np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", "--output", str(folder), "--mesh", "data=8", *OPTIONS]) == 0
    return folder


def test_two_processes_have_the_losses_of_one(whole: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--mesh", "fsdp=2", "--keep", "1"]
    for process in start(tmp_path / "run", options, options):
        assert end(process) == (0, [])
    assert_same(tmp_path / "run", whole)
    assert [path.name for path in (tmp_path / "run").glob("epoch_*")] == ["epoch_0002.safetensors"]
    expected, found = (eqx_vit.load(folder / "last.safetensors")[0] for folder in (whole, tmp_path / "run"))
    assert eqx_vit.count_params(found) == eqx_vit.count_params(expected)


def test_where_one_is_killed_the_other_ends_with_a_line_and_one_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    first, second = start(folder, OPTIONS, OPTIONS)
    while first.poll() is None and not (folder / "training_state.safetensors").exists():
        time.sleep(0.01)
    second.kill()
    code, lines = end(first)
    assert (code, len(lines)) == (2, 1)
    assert "--resume goes on" in lines[0]
    end(second)
    assert len(metrics(folder)) == 1
    assert main(["train", "--resume", str(folder), "--mesh", "data=8"]) == 0
    assert_same(folder, whole)


def test_other_settings_are_refused_by_one_line_of_one_process(tmp_path: Path) -> None:
    first, second = start(tmp_path / "run", OPTIONS, [*OPTIONS, "--seed", "3"])
    assert end(second) == (2, [])
    code, lines = end(first)
    assert (code, len(lines)) == (2, 1)
    assert "seed is 0 in process 0, and 3 in process 1" in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there_is_named(tmp_path: Path) -> None:
    first, second = start(tmp_path / "run", ["--mesh", "data=none"], ["--join-timeout", "1"])
    assert end(first)[0] == 2  # at once: it has never been there
    code, lines = end(second)
    assert (code, len(lines)) == (2, 1)
    assert "not all processes of the run have come together within 1 s" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("127.0.0.1:1234", None, None), "give --processes, --process-id too"),
        (("127.0.0.1", 2, 0), "takes HOST:PORT, such as 10.0.0.1:1234, given 127.0.0.1"),
        (("host:99999", 2, 0), "takes HOST:PORT"),
        (("host:1234", 2, 2), "a number from 0 to 1, with --processes 2, given 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        join(*arguments, 1)


@pytest.mark.parametrize(
    ("variables", "cluster"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),  # a batch script, outside srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, "SLURM"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_clusters_are_told_by_their_variables(
    variables: dict[str, str], cluster: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes._cluster() == cluster


def test_of_a_stack_trace_one_line_is_left() -> None:
    text = (
        "a warning\n[Gloo] Rank 0 is connected\nE1129 coordination_service.cc:1518] [5300276] Use error polling to\n1\n"
        "F1129 client.h:80] Terminating process because the JAX distributed "
        "service detected fatal errors. This most\n\n*** Check failure stack trace: ***\n    @ 0x7f51cc240634\n"
    )
    command = [sys.executable, "-I", "-S", "-c", processes._SHORTENING, "eqx-vit train: lost"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stderr == "a warning\neqx-vit train: lost\n"


def test_one_process_does_all_alone() -> None:
    assert exchange("text") == ["text"]
    assert any_of(True, False) == (True, False)
    check_same({"seed": 0})
    with pytest.raises(OSError, match="gone"):
        do_together(lambda: (_ for _ in ()).throw(OSError("gone")))


def test_an_error_of_one_is_said_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As process 0 and process 1 of two see it, where the second fails."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "exchange", lambda text: ["", "no folder"])
    with pytest.raises(SharedError, match=r"^$"):
        do_together(lambda: 1)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(SharedError, match=r"^no folder$"):
        do_together(lambda: (_ for _ in ()).throw(ValueError("no folder")))
