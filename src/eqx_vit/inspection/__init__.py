"""Seeing inside a model: any value, features of each stage, attention maps, Grad-CAM, and pictures of them."""

from eqx_vit.inspection.attention import (
    attention_maps as attention_maps,
    attention_rollout as attention_rollout,
    has_constant_tokens as has_constant_tokens,
    resize_maps as resize_maps,
)
from eqx_vit.inspection.colours import features_to_rgb as features_to_rgb
from eqx_vit.inspection.features import (
    FeatureInfo as FeatureInfo,
    feature_info as feature_info,
    intermediates as intermediates,
)
from eqx_vit.inspection.grad_cam import grad_cam as grad_cam
from eqx_vit.inspection.observe import observable as observable, observe as observe
from eqx_vit.inspection.token_features import forward_features as forward_features
