"""The constructor calls of the task's seed, as configs: the official structure has exactly so many parameters."""

from typing import Any

import equinox as eqx
import jax
import pytest
from cases import CASES, rows

import eqx_vit
from eqx_vit import MODELS


@pytest.mark.parametrize(("name", "config"), rows("SEED_CALLS"))
def test_seed_call_has_the_official_structure(name: str, config: Any) -> None:
    model = eqx.filter_eval_shape(MODELS[name].model, config, key=jax.random.key(0))
    # The shapes of the initial BatchNorm statistics are still in it.
    assert eqx_vit.count_params(eqx.nn.delete_init_state(model)) == CASES[name].SEED_CALLS[config]
