"""What the arguments of `apply` say: which method runs, whether it trains, and which collections come back."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import numpy as np

from eqx_vit.create import make_skeleton
from eqx_vit.layers.config import no_type_check
from eqx_vit.registry import AnyConfig

METHODS = ("__call__", "features", "logits_pair")
COLLECTIONS = ("params", "batch_stats", "buffers")
Method: TypeAlias = str | Callable[..., Any]
Mutable: TypeAlias = bool | str | Iterable[str]


@no_type_check
def read_method(method: Method | None, config: AnyConfig) -> str:
    """The name of the method of a config's model that is to run: given by its name, or as the class's function.

    **Raises:** `ValueError` for what is not one of `METHODS`.
    """
    model = type(make_skeleton(config)[0])
    if method is None:
        return "__call__"
    for name in METHODS:
        if (isinstance(method, str) and method == name) or method is getattr(model, name):
            return name
    given = repr(method) if isinstance(method, str) else f"a {type(method).__name__}"
    raise ValueError(
        f"method must be one of {METHODS}, or that function of eqx_vit.{model.__name__}, given {given}: other "
        "steps are those of the native model, model, state = v.to_equinox(variables)"
    )


@no_type_check
def read_training(train: bool | None, deterministic: bool | None) -> bool | None:
    """Whether to train; None where neither argument says it.

    **Raises:** `ValueError` for what is no bool, as under `jax.jit`, and where the two contradict each other.
    """
    for name, flag in (("train", train), ("deterministic", deterministic)):
        if isinstance(flag, jax.Array):
            raise ValueError(
                f"{name} must be True or False while JAX traces, given an array: make it static (static_argnames or "
                "static_argnums), or give it with functools.partial"
            )
        if flag is not None and not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, given a {type(flag).__name__}")
    if train is not None and train == deterministic:
        raise ValueError(f"train={train} and deterministic={deterministic} contradict each other: give one")
    chosen = train if deterministic is None else not deterministic
    return None if chosen is None else bool(chosen)


@no_type_check
def read_mutable(mutable: Mutable) -> tuple[str, ...]:
    """The collections that a `mutable` argument names: a bool, one name, or several.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(mutable, bool):
        return COLLECTIONS if mutable else ()
    if isinstance(mutable, str):
        return (mutable,)
    if isinstance(mutable, Iterable) and not isinstance(mutable, jax.Array | np.ndarray):
        names = tuple(mutable)
        if all(isinstance(name, str) for name in names):
            return names
    kind = type(mutable).__name__
    raise ValueError(f"mutable must be a bool, the name of a collection or a list of names, given a {kind}")
