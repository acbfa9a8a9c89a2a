"""Weights in and out, by name."""

from eqx_vit.weights.engine import load_state_dict as load_state_dict
from eqx_vit.weights.engine import to_state_dict as to_state_dict
