"""Weights in and out, by name."""

from eqx_vit.weights.engine import load_state_dict as load_state_dict, to_state_dict as to_state_dict
from eqx_vit.weights.export import export as export
from eqx_vit.weights.preprocessing import Preprocessing as Preprocessing, preprocessing as preprocessing
from eqx_vit.weights.read import read_weights as read_weights
