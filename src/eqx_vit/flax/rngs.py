"""Flax's random streams: one key, or a dict of keys by the name of their stream."""

from collections.abc import Mapping
from typing import TypeAlias

import jax
from jaxtyping import PRNGKeyArray

from eqx_vit.layers import check_key
from eqx_vit.layers.config import no_type_check

Rngs: TypeAlias = PRNGKeyArray | Mapping[str, PRNGKeyArray]


@no_type_check
def params_key(rngs: Rngs) -> PRNGKeyArray:
    """The key that initialises: `rngs` itself, or its stream `params`.

    **Raises:** `ValueError` where that stream is missing, or what is given is not a key.
    """
    if not isinstance(rngs, Mapping):
        return check_key(rngs)
    if "params" not in rngs:
        raise ValueError(f"init needs the stream 'params' in rngs, given {list(rngs) or 'none'}")
    return check_key(rngs["params"])


@no_type_check
def dropout_key(rngs: Rngs | None) -> PRNGKeyArray | None:
    """The key of dropout: `rngs` itself, or its stream `dropout` with the other streams folded in by sorted name.

    None where there are no streams but `params`: dropout is off then.

    **Raises:** `ValueError` where other streams are given but `dropout` is missing, or what is given is not a key.
    """
    if rngs is None:
        return None
    if not isinstance(rngs, Mapping):
        return check_key(rngs)
    others = sorted((name for name in rngs if name not in ("params", "dropout")), key=str)
    if "dropout" not in rngs:
        if others:
            raise ValueError(f"the stream 'dropout' is missing in rngs, given {list(rngs)}")
        return None
    key = check_key(rngs["dropout"])
    for name in others:
        key = jax.random.fold_in(key, jax.random.bits(check_key(rngs[name])))
    return key
