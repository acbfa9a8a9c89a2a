"""How every architecture starts: the distributions of the official code."""

import fnmatch

import jax
import numpy as np
import pytest
from cases import CASES, having

import eqx_vit
from eqx_vit.paths import named_leaves


@pytest.mark.parametrize("name", having("INITIAL"))
def test_initialisation_is_the_official_one(name: str) -> None:
    config, table = CASES[name].INITIAL
    leaves = named_leaves(eqx_vit.create(config, key=jax.random.key(0))[0])
    for pattern, (kind, number) in table.items():
        matching = fnmatch.filter(leaves, pattern)
        assert matching, f"{pattern} names no parameter of {sorted(leaves)}"
        for path in matching:
            check(np.asarray(leaves[path]), kind, number, path)


def check(array: np.ndarray, kind: str, number: float, path: str) -> None:
    """The array may be a sample of the distribution: its standard deviation is off by five standard errors at most."""
    if kind == "constant":
        np.testing.assert_array_equal(array, np.full(array.shape, number, array.dtype), err_msg=path)
        return
    limit, deviation = (number, number / np.sqrt(3)) if kind == "uniform" else (np.inf, number)
    assert np.abs(array).max() <= limit, f"{path} goes up to {np.abs(array).max()}, not {limit}"
    error = deviation * np.sqrt((0.8 if kind == "uniform" else 2) / array.size / 4)
    assert abs(np.std(array) - deviation) <= 5 * error, f"{path} has deviation {np.std(array)}, not {deviation}"
    if kind == "normal" and array.size > 200:
        assert np.abs(array).max() > np.sqrt(3) * deviation, f"{path} is uniform, not normal"
