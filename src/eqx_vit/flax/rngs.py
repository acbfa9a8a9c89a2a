"""Flax's random streams: one key, or a dict of keys by the name of their stream."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from eqx_vit.surface import checked_key


def params_key(rngs: Any) -> PRNGKeyArray:
    """The key that initialises: `rngs` itself, or its stream `params`.

    **Raises:** `ValueError` where that stream is missing, or what is given is no key.
    """
    if not isinstance(rngs, Mapping):
        return checked_key(rngs)
    if "params" not in rngs:
        raise ValueError(f"init needs the stream 'params' in rngs, given {sorted(rngs) or 'none'}")
    return checked_key(rngs["params"])


def dropout_key(rngs: Any) -> PRNGKeyArray | None:
    """The key of dropout: `rngs` itself, or its stream `dropout` with the other streams folded in by sorted name.

    None where there are no streams but `params`: dropout is off then.

    **Raises:** `ValueError` where other streams are given but `dropout` is missing, or what is given is no key.
    """
    if rngs is None:
        return None
    if not isinstance(rngs, Mapping):
        return checked_key(rngs)
    others = sorted(set(rngs) - {"params", "dropout"})
    if "dropout" not in rngs:
        if others:
            raise ValueError(f"the stream 'dropout' is missing in rngs, given {sorted(rngs)}")
        return None
    key = checked_key(rngs["dropout"])
    for name in others:
        key = jax.random.fold_in(key, jax.random.bits(checked_key(rngs[name])))
    return key
