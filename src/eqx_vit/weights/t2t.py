"""T2T-ViT's names in the official code (yitu-opensource/T2T-ViT)."""

from eqx_vit.models.t2t import T2TViTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, inside, rearranged, same, stack


def _official(config: T2TViTConfig) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    *kernels, last = (kernel for kernel, *_ in config.splits)
    layer = _performer if config.tokens_type == "performer" else _transformer
    rules = [
        _token("class_token", "cls_token"),
        _token("position_embedding.array", "pos_embed"),
        _unfolded("projection.weight", "tokens_to_token.project.weight", last),
        same("projection.bias", "tokens_to_token.project.bias"),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]
    for index, kernel in enumerate(kernels):
        rules += inside(f"token_layers.{index}.", f"tokens_to_token.attention{index + 1}.", layer(config, kernel))
    return rules


def _performer(config: T2TViTConfig, kernel: int) -> list[Rule | Constant]:
    dim = config.token_dim
    order = [*range(dim, 2 * dim), *range(dim), *range(2 * dim, 3 * dim)]  # theirs are k, q, v
    return [
        *_norm("norm1", kernel),
        _unfolded("qkv.weight", "kqv.weight", kernel, order),
        rearranged("qkv.bias", "kqv.bias", order=order),
        same("features.array", "w"),
        *affine("projection", "proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.0"),
        *affine("mlp.contract", "mlp.2"),
    ]


def _transformer(config: T2TViTConfig, kernel: int) -> list[Rule | Constant]:
    return [
        *_norm("norm1", kernel),
        _unfolded("qkv.weight", "attn.qkv.weight", kernel),
        *affine("projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]


def _unfolded(ours: str, theirs: str, kernel: int, order: list[int] | None = None) -> Rule:
    """A linear map of unfolded tokens: theirs have the channel outermost, ours innermost."""
    pattern = "out (channels height width) -> out (height width channels)"
    return rearranged(ours, theirs, pattern, {"height": kernel, "width": kernel}, order)


def _norm(name: str, kernel: int) -> list[Rule | Constant]:
    """The norm of unfolded tokens."""
    pattern, axes = "(channels height width) -> (height width channels)", {"height": kernel, "width": kernel}
    return [rearranged(f"{name}.{part}", f"{name}.{part}", pattern, axes) for part in ("weight", "bias")]


def _token(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, "one tokens dim -> (one tokens) dim", {"one": 1})


NAMES = {"official": _official}
