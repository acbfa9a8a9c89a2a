"""ScalableViT's names in the official code (Yangr116/ScalableViT)."""

from eqx_vit.models.scalable_vit import ScalableViTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, inside, rearranged, same, stack


def _official(config: ScalableViTConfig) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = [*affine("norm", "norm")]
    for stage, depth in enumerate(config.depth):
        ours = f"stages.{stage}."
        windowed, scalable = _block(config, stage, windowed=True), _block(config, stage, windowed=False)
        blocks = [f"stages.{stage}.{index}." for index in range(depth)]
        paired = blocks[1 : 1 + 2 * ((depth - 1) // 2)]
        rules += [
            *affine(f"{ours}patch_embedding", f"patch_embeds.{stage}.proj"),
            *affine(f"{ours}norm", f"patch_embeds.{stage}.norm"),
            *affine(f"{ours}position", f"pos_block.{stage}.proj.0"),
            *inside(f"{ours}first.", blocks[0], windowed),
            *stack(f"{ours}pairs", paired[::2], inside("scalable.", "", scalable)),
            *stack(f"{ours}pairs", paired[1::2], inside("windowed.", "", windowed)),
            *(inside(f"{ours}last.", blocks[-1], scalable) if depth % 2 == 0 else []),
        ]
    if config.head_dim is None:
        return [*rules, *affine("head", "head")]
    return [
        *rules,
        *affine("head.expand", "head.0"),
        *affine("head.norm", "head.1"),
        *affine("head.contract", "head.3"),
    ]


def _block(config: ScalableViTConfig, stage: int, *, windowed: bool) -> list[Rule | Constant]:
    if windowed and config.windows[stage] != 1:
        attention = [*affine("qkv", "qkv"), *affine("interaction", "lim_func")]
    elif config.reductions[stage] > 1:
        pattern = "out channels height width -> out (channels height width)"
        attention = [
            *affine("query", "q"),
            *affine("reduction", "reduction.0"),
            rearranged("stretch.weight", "reduction.1.weight", pattern, {"height": 1, "width": 1}),
            same("stretch.bias", "reduction.1.bias"),
            *affine("norm", "norm_act.0"),
            *affine("key", "k"),
            *affine("value", "v"),
        ]
    else:
        attention = [*affine("query", "q"), *affine("key_value", "kv")]
    return [
        *affine("norm1", "norm1"),
        *inside("attention.", "attn.", [*attention, *affine("projection", "proj")]),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]


NAMES = {"official": _official}
