"""NesT's names in the official Flax code (google-research/nested-transformer) and timm."""

from itertools import accumulate

from eqx_vit.layers.config import check, pair
from eqx_vit.models.nest import NesTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, inside, patch_embedding, rearranged, same, stack


def _timm(config: NesTConfig) -> list[Rule | Constant]:
    check(not config.multi_query, "timm has no NesT with multi_query=True: use source='official'")
    rules = patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size))
    for level, depth in enumerate(config.depths):
        block = [
            *affine("norm1", "norm1"),
            *affine("attention.qkv", "attn.qkv"),
            # timm merges the heads with the head innermost.
            rearranged(
                "attention.projection.weight",
                "attn.proj.weight",
                "dim (size heads) -> dim (heads size)",
                {"heads": config.heads_of_levels[level]},
            ),
            same("attention.projection.bias", "attn.proj.bias"),
            *affine("norm2", "norm2"),
            *affine("mlp.expand", "mlp.fc1"),
            *affine("mlp.contract", "mlp.fc2"),
        ]
        parts = [
            _table("position_embedding", "pos_embed"),
            *affine("aggregation.conv", "pool.conv"),
            *affine("aggregation.norm", "pool.norm"),
            *stack("blocks", [f"transformer_encoder.{index}." for index in range(depth)], block),
        ]
        rules += inside(f"levels.{level}.", f"levels.{level}.", parts)
    return [*rules, *affine("norm", "norm"), *affine("head", "head")]


def _flax(config: NesTConfig) -> list[Rule | Constant]:
    rules = _conv("patch_embedding.linear", "PatchEmbedding_0/Conv_0", "out (height width dim)", config.patch_size)
    for level, (depth, end) in enumerate(zip(config.depths, accumulate(config.depths), strict=True)):
        heads = config.heads_of_levels[level]
        block = [
            *_norm("norm1", "LayerNorm_0"),
            *(_multi_query(heads) if config.multi_query else _multi_head(config, level)),
            *_norm("norm2", "LayerNorm_1"),
            *_dense("mlp.expand", "MlpBlock_0/Dense_0"),
            *_dense("mlp.contract", "MlpBlock_0/Dense_1"),
        ]
        # Blocks are numbered through all levels.
        prefixes = [f"EncoderNDBlock_{index}/" for index in range(end - depth, end)]
        parts = [
            _table("position_embedding", f"PositionEmbedding_{level}/pos_embedding"),
            *_conv("aggregation.conv", f"ConvPool_{level - 1}/Conv_0", "out dim height width", 3),
            *_norm("aggregation.norm", f"ConvPool_{level - 1}/LayerNorm_0"),
            *stack("blocks", prefixes, block),
        ]
        rules += inside(f"levels.{level}.", "", parts)
    return [*rules, *_norm("norm", "LayerNorm_0"), *_dense("head", "Dense_0")]


def _multi_head(config: NesTConfig, level: int) -> list[Rule | Constant]:
    name, heads = "MultiHeadAttention_0", config.heads_of_levels[level]
    size = config.dim_head or config.dims[level] // heads
    # The second map holds keys and values, side by side in each head.
    parts, axes = [f"{name}/DenseGeneral_{index}" for index in (0, 1)], {"three": 3, "heads": heads}
    return [
        rearranged(
            "attention.qkv.weight",
            [f"{part}/kernel" for part in parts],
            "dim heads (three size) -> (three heads size) dim",
            axes,
            joined=(size, 2 * size),
        ),
        rearranged(
            "attention.qkv.bias",
            [f"{part}/bias" for part in parts],
            "heads (three size) -> (three heads size)",
            axes,
            joined=(size, 2 * size),
        ),
        *_projection(name, heads),
    ]


def _multi_query(heads: int) -> list[Rule | Constant]:
    name, axes = "MultiQueryAttention_0", {"heads": heads}
    return [
        rearranged(
            "attention.query.weight", f"{name}/DenseGeneral_0/kernel", "dim heads size -> (heads size) dim", axes
        ),
        rearranged("attention.query.bias", f"{name}/DenseGeneral_0/bias", "heads size -> (heads size)", axes),
        *_dense("attention.key_value", f"{name}/Dense_0"),
        *_projection(name, heads),
    ]


def _projection(name: str, heads: int) -> list[Rule | Constant]:
    pattern = "heads size dim -> dim (heads size)"
    return [
        rearranged("attention.projection.weight", f"{name}/proj_kernel", pattern, {"heads": heads}),
        same("attention.projection.bias", f"{name}/bias"),
    ]


def _table(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, "one windows positions dim -> (one windows) positions dim", {"one": 1})


def _conv(ours: str, theirs: str, layout: str, size: int | tuple[int, int]) -> list[Rule | Constant]:
    height, width = pair(size)
    axes = {"height": height, "width": width}
    return [
        rearranged(f"{ours}.weight", f"{theirs}/kernel", f"height width dim out -> {layout}", axes),
        same(f"{ours}.bias", f"{theirs}/bias"),
    ]


def _dense(ours: str, theirs: str) -> list[Rule | Constant]:
    return [
        rearranged(f"{ours}.weight", f"{theirs}/kernel", "dim out -> out dim"),
        same(f"{ours}.bias", f"{theirs}/bias"),
    ]


def _norm(ours: str, theirs: str) -> list[Rule | Constant]:
    return [same(f"{ours}.weight", f"{theirs}/scale"), same(f"{ours}.bias", f"{theirs}/bias")]


NAMES = {"official": _flax, "flax": _flax, "timm": _timm}
