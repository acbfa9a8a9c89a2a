"""What the linen modules of google-research's ViT codes (vision_transformer, big_vision) call their arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eqx_vit.weights.rules import Constant, KeyRenames, Rule, copy, relayout


def dense(ours: str, theirs: str) -> list[Rule | Constant]:
    """A linear map."""
    return [
        relayout(f"{ours}.weight", f"{theirs}/kernel", "dim out -> out dim"),
        copy(f"{ours}.bias", f"{theirs}/bias"),
    ]


def layer_norm(ours: str, theirs: str) -> list[Rule | Constant]:
    """LayerNorm."""
    return [copy(f"{ours}.weight", f"{theirs}/scale"), copy(f"{ours}.bias", f"{theirs}/bias")]


def patch_embedding(ours: str, theirs: str, patch_size: tuple[int, int]) -> list[Rule | Constant]:
    """A convolution whose kernel is its stride, held here as a linear map of flattened patches."""
    axes = {"height": patch_size[0], "width": patch_size[1]}
    pattern = "height width channels dim -> dim (height width channels)"
    return [
        relayout(f"{ours}.linear.weight", f"{theirs}/kernel", pattern, axes),
        copy(f"{ours}.linear.bias", f"{theirs}/bias"),
    ]


def projections(ours: str, theirs: Sequence[str], heads: int) -> list[Rule | Constant]:
    """Projections to heads, fused in ours: rows ordered projection, head, size."""
    if len(theirs) == 1:
        weight, bias = "dim heads size -> (heads size) dim", "heads size -> (heads size)"
    else:
        weight, bias = "parts dim heads size -> (parts heads size) dim", "parts heads size -> (parts heads size)"
    axes = {"heads": heads} | ({} if len(theirs) == 1 else {"parts": len(theirs)})
    return [
        relayout(f"{ours}.weight", [f"{name}/kernel" for name in theirs], weight, axes),
        relayout(f"{ours}.bias", [f"{name}/bias" for name in theirs], bias, axes),
    ]


def from_heads(ours: str, theirs: str, heads: int) -> list[Rule | Constant]:
    """The projection of the heads side by side back to a token."""
    return [
        relayout(f"{ours}.weight", f"{theirs}/kernel", "heads size dim -> dim (heads size)", {"heads": heads}),
        copy(f"{ours}.bias", f"{theirs}/bias"),
    ]


def mlp(ours: str, theirs: str) -> list[Rule | Constant]:
    """`MlpBlock`."""
    return [*dense(f"{ours}.fc1", f"{theirs}/Dense_0"), *dense(f"{ours}.fc2", f"{theirs}/Dense_1")]


def block(heads: int) -> list[Rule | Constant]:
    """`Encoder1DBlock`."""
    attention = "MultiHeadDotProductAttention_0"
    return [
        *layer_norm("norm1", "LayerNorm_0"),
        *projections("attention.qkv", [f"{attention}/{name}" for name in ("query", "key", "value")], heads),
        *from_heads("attention.projection.linear", f"{attention}/out", heads),
        *layer_norm("norm2", "LayerNorm_1"),
        *mlp("mlp", "MlpBlock_0"),
    ]


def scan_stack(ours: str, theirs: str, rules: Iterable[Rule | Constant]) -> list[Rule | Constant]:
    """The rules of one block, for a `Stack` called `ours` that linen's scan stores stacked too, under one prefix."""
    result: list[Rule | Constant] = []
    for rule in rules:
        assert isinstance(rule, Rule)
        assert rule.order is None
        (names,) = rule.theirs
        pattern = rule.pattern
        if pattern is not None:
            left, right = pattern.split(" -> ")
            # Of a merger the first axis counts the parts: the depth is each part's own first axis.
            left = left.replace(" ", " depth ", 1) if len(names) > 1 else f"depth {left}"
            pattern = f"{left} -> depth {right}"
        moved = tuple(theirs + name for name in names)
        result.append(replace(rule, ours=f"{ours}.block.{rule.ours}", theirs=(moved,), pattern=pattern))
    return result


# Released files may be whole training states, and those of 2020 number the parts of a block as linen did not yet.
RENAMES: KeyRenames = [
    (r"^(opt/target|optimizer/target|target|params)/", ""),
    (r"(encoderblock(_\d+)?)/MultiHeadDotProductAttention_1/", r"\1/MultiHeadDotProductAttention_0/"),
    (r"(encoderblock(_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
    (r"(encoderblock(_\d+)?)/MlpBlock_3/", r"\1/MlpBlock_0/"),
    (r"opt/state/.*|opt/step|optimizer/state/.*|step", None),
]
