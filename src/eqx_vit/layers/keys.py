"""Random keys that may be absent."""

import jax
from jaxtyping import PRNGKeyArray


def split_or_none(key: PRNGKeyArray | None, num: int = 2) -> tuple[PRNGKeyArray | None, ...]:
    """`num` independent keys, or `num` times None where no key is given (inference, or every rate 0)."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))
