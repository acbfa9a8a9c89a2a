"""Leaving the library: a model as a program for JAX alone (StableHLO) and for ONNX Runtime, each tried at once.

A folder for timm or transformers is written by `eqx_vit.weights.export`.
"""

from eqx_vit.export.to_onnx import onnx as onnx
from eqx_vit.export.to_stablehlo import load as load, stablehlo as stablehlo
