"""T2T-ViT's names in the official code (yitu-opensource/T2T-ViT)."""

from eqx_vit.layers.config import check
from eqx_vit.models.t2t import T2TViTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import Constant, Rule, copy, relayout, stack, timm_block, token, weight_and_bias, with_prefix


def _official(config: T2TViTConfig) -> list[Rule | Constant]:
    code = "the official T2T-ViT"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    splits, features = ((7, 4, 2), (3, 2, 1), (3, 2, 1)), config.token_dim // 2
    check(config.splits == splits, f"{code} has t2t_layers {splits}, given {config.splits}")
    check(
        config.tokens_type == "transformer" or config.num_random_features == features,
        f"{code} has token_dim // 2 = {features} random_features, this model {config.num_random_features}",
    )
    *kernels, last = (kernel for kernel, *_ in config.splits)
    layer = _performer if config.tokens_type == "performer" else _transformer
    rules = [
        token("class_token", "cls_token"),
        token("position_embedding.array", "pos_embed"),
        _unfolded("projection.weight", "tokens_to_token.project.weight", last),
        copy("projection.bias", "tokens_to_token.project.bias"),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], timm_block()),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]
    for index, kernel in enumerate(kernels):
        rules += with_prefix(f"token_layers.{index}.", f"tokens_to_token.attention{index + 1}.", layer(config, kernel))
    return rules


def _performer(config: T2TViTConfig, kernel: int) -> list[Rule | Constant]:
    dim = config.token_dim
    order = [*range(dim, 2 * dim), *range(dim), *range(2 * dim, 3 * dim)]  # theirs are k, q, v
    return [
        *_norm("norm1", kernel),
        _unfolded("qkv.weight", "kqv.weight", kernel, order),
        relayout("qkv.bias", "kqv.bias", order=order),
        copy("features.array", "w"),
        *weight_and_bias("projection.linear", "proj"),
        *weight_and_bias("norm2", "norm2"),
        *weight_and_bias("mlp.fc1", "mlp.0"),
        *weight_and_bias("mlp.fc2", "mlp.2"),
    ]


def _transformer(config: T2TViTConfig, kernel: int) -> list[Rule | Constant]:
    return [
        *_norm("norm1", kernel),
        _unfolded("qkv.weight", "attn.qkv.weight", kernel),
        *weight_and_bias("projection.linear", "attn.proj"),
        *weight_and_bias("norm2", "norm2"),
        *weight_and_bias("mlp.fc1", "mlp.fc1"),
        *weight_and_bias("mlp.fc2", "mlp.fc2"),
    ]


def _unfolded(ours: str, theirs: str, kernel: int, order: list[int] | None = None) -> Rule:
    """A linear map of unfolded tokens: theirs have the channel outermost, ours innermost."""
    pattern = "out (channels height width) -> out (height width channels)"
    return relayout(ours, theirs, pattern, {"height": kernel, "width": kernel}, order)


def _norm(name: str, kernel: int) -> list[Rule | Constant]:
    """The norm of unfolded tokens."""
    pattern, axes = "(channels height width) -> (height width channels)", {"height": kernel, "width": kernel}
    return [relayout(f"{name}.{part}", f"{name}.{part}", pattern, axes) for part in ("weight", "bias")]


CHECKPOINTS = Checkpoints(names={"official": _official})
