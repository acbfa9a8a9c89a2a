"""LeViT's names in the official code (facebookresearch/LeViT), timm and transformers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eqx_vit.layers.config import per_stage
from eqx_vit.models.levit import LeViTConfig, distances
from eqx_vit.weights.rules import Constant, Rule, Spellings, batch_norm, inside, rearranged, same, stack


@dataclass(frozen=True)
class _Names:
    """What one source calls the parts; the prefixes are functions of the stage, and of the block in it."""

    stem: tuple[str, ...]
    stem_conv: str
    linear: str
    norm: str
    attention: Callable[[int, int], str]
    mlp: Callable[[int, int], str]
    shrink: Callable[[int], str]
    shrink_mlp: Callable[[int], str]
    qkv: str
    projection: str
    query: str
    key_value: str
    expand: str
    contract: str
    heads: tuple[str, str]
    head_linear: str
    saves_index: bool = False  # the official code keeps its index tables among the weights


def _official(config: LeViTConfig) -> list[Rule | Constant]:
    depths = per_stage(config.depth, config.stages)
    # Blocks are numbered flat: attention and MLP in turn, then the shrinking attention, its MLP, the next stage ...
    start = [2 * (sum(depths[:stage]) + stage) for stage in range(config.stages)]
    names = _Names(
        stem=tuple(f"patch_embed.{2 * index}" for index in range(4)),
        stem_conv="c",
        linear="c",
        norm="bn",
        attention=lambda stage, block: f"blocks.{start[stage] + 2 * block}.m.",
        mlp=lambda stage, block: f"blocks.{start[stage] + 2 * block + 1}.m.",
        shrink=lambda stage: f"blocks.{start[stage + 1] - 2}.",
        shrink_mlp=lambda stage: f"blocks.{start[stage + 1] - 1}.m.",
        qkv="qkv",
        projection="proj.1",
        query="q.1",
        key_value="kv",
        expand="0",
        contract="2",
        heads=("head", "head_dist"),
        head_linear="l",
        saves_index=True,
    )
    return _rules(config, names)


def _timm(config: LeViTConfig) -> list[Rule | Constant]:
    names = _Names(
        stem=tuple(f"stem.conv{index + 1}" for index in range(4)),
        stem_conv="linear",
        linear="linear",
        norm="bn",
        attention=lambda stage, block: f"stages.{stage}.blocks.{block}.attn.",
        mlp=lambda stage, block: f"stages.{stage}.blocks.{block}.mlp.",
        shrink=lambda stage: f"stages.{stage + 1}.downsample.attn_downsample.",
        shrink_mlp=lambda stage: f"stages.{stage + 1}.downsample.mlp.",
        qkv="qkv",
        projection="proj.ln",
        query="q.ln",
        key_value="kv",
        expand="ln1",
        contract="ln2",
        heads=("head", "head_dist"),
        head_linear="linear",
    )
    return _rules(config, names)


def _hf(config: LeViTConfig) -> list[Rule | Constant]:
    depths = per_stage(config.depth, config.stages)
    layer = "levit.encoder.stages.{}.layers.{}."
    names = _Names(
        stem=tuple(f"levit.patch_embeddings.embedding_layer_{index + 1}" for index in range(4)),
        stem_conv="convolution",
        linear="linear",
        norm="batch_norm",
        attention=lambda stage, block: layer.format(stage, 2 * block) + "module.",
        mlp=lambda stage, block: layer.format(stage, 2 * block + 1) + "module.",
        shrink=lambda stage: layer.format(stage, 2 * depths[stage]),
        shrink_mlp=lambda stage: layer.format(stage, 2 * depths[stage] + 1) + "module.",
        qkv="queries_keys_values",
        projection="projection",
        query="queries",
        key_value="keys_values",
        expand="linear_up",
        contract="linear_down",
        heads=("classifier", "classifier_distill"),
        head_linear="linear",
    )
    return _rules(config, names)


def _rules(config: LeViTConfig, names: _Names) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for index, name in enumerate(names.stem):
        rules += [
            same(f"stem.{index}.conv.weight", f"{name}.{names.stem_conv}.weight"),
            *batch_norm(f"stem.{index}.norm", f"{name}.{names.norm}"),
        ]
    for stage, depth in enumerate(per_stage(config.depth, config.stages)):
        ours = f"stages.{stage}"
        attention = [names.attention(stage, block) for block in range(depth)]
        mlp = [names.mlp(stage, block) for block in range(depth)]
        rules += stack(ours, attention, _attention(config, stage, names))
        rules += stack(ours, mlp, _mlp(names))
    for stage in range(config.stages - 1):
        rules += inside(f"shrinks.{stage}.", names.shrink(stage), _shrink(config, stage, names))
        rules += inside(f"shrinks.{stage}.", names.shrink_mlp(stage), _mlp(names))
    for ours, theirs in zip(("head", "head_dist"), names.heads, strict=True):
        rules += [
            *batch_norm(f"{ours}.norm", f"{theirs}.{names.norm}"),
            same(f"{ours}.linear.weight", f"{theirs}.{names.head_linear}.weight"),
            same(f"{ours}.linear.bias", f"{theirs}.{names.head_linear}.bias"),
        ]
    return rules


def _attention(config: LeViTConfig, stage: int, names: _Names) -> list[Rule | Constant]:
    heads, key_dim, value_dim = (
        per_stage(value, config.stages)[stage] for value in (config.heads, config.dim_key, config.dim_value)
    )
    return [
        *_linear_norm("attention.qkv", names.qkv, names, _head_major(heads, key_dim, key_dim, value_dim)),
        same("attention.position_bias", "attention_biases"),
        *_linear_norm("attention.projection", names.projection, names),
        *_index(config, stage, 1, names),
    ]


def _shrink(config: LeViTConfig, stage: int, names: _Names) -> list[Rule | Constant]:
    heads, key_dim = config.heads_of_shrinks[stage], per_stage(config.dim_key, config.stages)[stage]
    order = _head_major(heads, key_dim, config.values_of_shrinks[stage])
    return [
        *_linear_norm("attention.key_value", names.key_value, names, order),
        *_linear_norm("attention.query", names.query, names),
        same("attention.position_bias", "attention_biases"),
        *_linear_norm("attention.projection", names.projection, names),
        *_index(config, stage, 2, names),
    ]


def _mlp(names: _Names) -> list[Rule | Constant]:
    return [
        *_linear_norm("mlp.expand", names.expand, names),
        *_linear_norm("mlp.contract", names.contract, names),
    ]


def _linear_norm(ours: str, theirs: str, names: _Names, order: list[int] | None = None) -> list[Rule | Constant]:
    return [
        rearranged(f"{ours}.linear.weight", f"{theirs}.{names.linear}.weight", order=order),
        *batch_norm(f"{ours}.norm", f"{theirs}.{names.norm}", order),
    ]


def _head_major(heads: int, *sizes: int) -> list[int]:
    """The rows of a projection stored head by head (each with its q, k, v), in our order: q, k, v, then heads."""
    rows = np.arange(heads * sum(sizes)).reshape(heads, -1)
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return [int(row) for part in parts for row in part.ravel()]


def _index(config: LeViTConfig, stage: int, stride: int, names: _Names) -> list[Rule | Constant]:
    table = distances(config.grids[stage], stride).astype(np.int64)
    return [Constant("attention_bias_idxs", table)] if names.saves_index else []


NAMES = {"official": _official, "timm": _timm, "hf": _hf}

# The ports once saved the official code's index tables too.
_TABLES: Spellings = [(r".*\.attention_bias_idxs", None)]

SPELLINGS = {"timm": _TABLES, "hf": _TABLES}
