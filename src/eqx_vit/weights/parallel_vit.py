"""Parallel ViT's names in timm (`ParallelThingsBlock`) and in DeiT's official code (`models_v2.py`)."""

from eqx_vit.layers.config import check, pair
from eqx_vit.models.parallel_vit import ParallelViTConfig, ParallelViTHMLPConfig
from eqx_vit.weights.rules import Constant, Rule, affine, batch_norm, patch_embedding, rearranged, stack

_TOKEN = "one tokens dim -> (one tokens) dim"
# What the leaves of a branch are called, under the three names (norm, layer, scale) that a source gives its parts.
_ATTENTION = {"attention.qkv": "qkv", "attention.projection": "proj"}
_MLP = {"mlp.expand": "fc1", "mlp.contract": "fc2"}


def _timm(config: ParallelViTConfig) -> list[Rule | Constant]:
    branches = range(config.num_parallel_branches)
    attentions = [(f"attns.{index}.norm", f"attns.{index}.attn", f"attns.{index}.ls.gamma") for index in branches]
    mlps = [(f"ffns.{index}.norm", f"ffns.{index}.mlp", f"ffns.{index}.ls.gamma") for index in branches]
    if config.num_parallel_branches == 1:  # timm's 36x1 is made of its ordinary blocks
        attentions, mlps = [("norm1", "attn", "ls1.gamma")], [("norm2", "mlp", "ls2.gamma")]
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *_encoder(config, attentions, mlps),
    ]


def _official(config: ParallelViTConfig) -> list[Rule | Constant]:
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *_official_encoder(config),
    ]


def _official_hmlp(config: ParallelViTHMLPConfig) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for index, size in enumerate((4, 2, 2)):
        rules += patch_embedding(f"patch_embedding.cuts.{index}", f"patch_embed.proj.{3 * index}", (size, size))
        rules += batch_norm(f"patch_embedding.norms.{index}", f"patch_embed.proj.{3 * index + 1}")
    return [*rules, *_official_encoder(config)]


def _official_encoder(config: ParallelViTConfig | ParallelViTHMLPConfig) -> list[Rule | Constant]:
    branches = config.num_parallel_branches
    check(branches <= 2, f"the official layout has one or two branches, not {branches}: use 'timm'")
    attentions = [("norm1", "attn", "gamma_1"), ("norm11", "attn1", "gamma_1_1")][:branches]
    mlps = [("norm2", "mlp", "gamma_2"), ("norm21", "mlp1", "gamma_2_1")][:branches]
    return _encoder(config, attentions, mlps)


def _encoder(
    config: ParallelViTConfig | ParallelViTHMLPConfig,
    attentions: list[tuple[str, str, str]],
    mlps: list[tuple[str, str, str]],
) -> list[Rule | Constant]:
    block = [*_branches("attentions", attentions, _ATTENTION), *_branches("mlps", mlps, _MLP)]
    return [
        rearranged("class_token", "cls_token", _TOKEN, {"one": 1}),
        rearranged("position_embedding", "pos_embed", _TOKEN, {"one": 1}),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]


def _branches(ours: str, theirs: list[tuple[str, str, str]], layers: dict[str, str]) -> list[Rule | Constant]:
    """The rules of the branches of one block, each given as the names of its norm, layer and scale."""
    names = {f"{ours}.block.scale.scale": [scale for _, _, scale in theirs]}
    for end in ("weight", "bias"):
        names[f"{ours}.block.norm.{end}"] = [f"{norm}.{end}" for norm, _, _ in theirs]
        for mine, foreign in layers.items():
            names[f"{ours}.block.{mine}.{end}"] = [f"{layer}.{foreign}.{end}" for _, layer, _ in theirs]
    # Several parts are stacked along a first axis; a single one needs that axis put before it.
    pattern = "... -> 1 ..." if len(theirs) == 1 else None
    return [rearranged(mine, foreign, pattern) for mine, foreign in names.items()]


NAMES = {"timm": _timm, "official": _official}
HMLP_NAMES = {"official": _official_hmlp}
