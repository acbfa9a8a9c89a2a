"""Parallel ViT's names in timm (`ParallelThingsBlock`) and in DeiT's official code (`models_v2.py`)."""

from eqx_vit.layers.config import check, pair
from eqx_vit.models.parallel_vit import HMLP_CUTS, EitherConfig, ParallelViTConfig, ParallelViTHMLPConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim, check_held, resize_grid_bicubic
from eqx_vit.weights.rules import (
    Constant,
    Rule,
    batch_norm,
    patch_embedding,
    relayout,
    stack,
    token,
    weight_and_bias,
    with_prefix,
)

# What the linear maps of a branch's layer are called, in ours and in theirs.
_ATTENTION = {"qkv": "qkv", "projection.linear": "proj"}
_MLP = {"fc1": "fc1", "fc2": "fc2"}


def _timm(config: ParallelViTConfig) -> list[Rule | Constant]:
    branches = range(config.num_parallel_branches)
    attentions = [(f"attns.{index}.norm", f"attns.{index}.attn", f"attns.{index}.ls.gamma") for index in branches]
    mlps = [(f"ffns.{index}.norm", f"ffns.{index}.mlp", f"ffns.{index}.ls.gamma") for index in branches]
    if config.num_parallel_branches == 1:  # timm's 36x1 is made of its ordinary blocks
        attentions, mlps = [("norm1", "attn", "ls1.gamma")], [("norm2", "mlp", "ls2.gamma")]
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *_encoder(config, "fc_norm" if config.pool_norm else "norm", attentions, mlps),
    ]


def _official(config: ParallelViTConfig) -> list[Rule | Constant]:
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *_official_encoder(config),
    ]


def _official_hmlp(config: ParallelViTHMLPConfig) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for index, size in enumerate(HMLP_CUTS):
        rules += patch_embedding(f"patch_embedding.cuts.{index}", f"patch_embed.proj.{3 * index}", (size, size))
        rules += batch_norm(f"patch_embedding.norms.{index}", f"patch_embed.proj.{3 * index + 1}")
    return [*rules, *_official_encoder(config)]


def _official_encoder(config: EitherConfig) -> list[Rule | Constant]:
    branches = config.num_parallel_branches
    check(branches <= 2, f"the official layout has one or two branches, not {branches}: use 'timm'")
    check_head_dim("DeiT's ViT", config.dim, config.heads, config.dim_head)
    check_held("DeiT's ViT", config, {"class_token": True, "prefix_positions": False, "pool_norm": False})
    attentions = [("norm1", "attn", "gamma_1"), ("norm11", "attn1", "gamma_1_1")][:branches]
    mlps = [("norm2", "mlp", "gamma_2"), ("norm21", "mlp1", "gamma_2_1")][:branches]
    return _encoder(config, "norm", attentions, mlps)


def _encoder(
    config: EitherConfig,
    norm: str,
    attentions: list[tuple[str, str, str]],
    mlps: list[tuple[str, str, str]],
) -> list[Rule | Constant]:
    block = [*_branches("attentions", attentions, _ATTENTION), *_branches("mlps", mlps, _MLP)]
    encoder = [
        token("class_token", "cls_token"),
        token("position_embedding", "pos_embed"),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", norm),
    ]
    return [*with_prefix("encoder.", "", encoder), *weight_and_bias("head", "head")]


def _branches(ours: str, theirs: list[tuple[str, str, str]], layers: dict[str, str]) -> list[Rule | Constant]:
    """The rules of the branches of one block, each given as the names of its norm, layer and scale."""
    names = {f"{ours}.block.layer_scale.gamma": [scale for _, _, scale in theirs]}
    for end in ("weight", "bias"):
        names[f"{ours}.block.norm.{end}"] = [f"{norm}.{end}" for norm, _, _ in theirs]
        for mine, foreign in layers.items():
            names[f"{ours}.block.layer.{mine}.{end}"] = [f"{layer}.{foreign}.{end}" for _, layer, _ in theirs]
    # Several parts are stacked along a first axis; a single one needs that axis put before it.
    pattern = "... -> 1 ..." if len(theirs) == 1 else None
    return [relayout(mine, foreign, pattern) for mine, foreign in names.items()]


_RESIZE = {"official": resize_grid_bicubic}  # facebookresearch/deit is older than antialiasing in PyTorch

CHECKPOINTS = Checkpoints(names={"timm": _timm, "official": _official}, resize=_RESIZE)
HMLP_CHECKPOINTS = Checkpoints(names={"official": _official_hmlp}, resize=_RESIZE)
