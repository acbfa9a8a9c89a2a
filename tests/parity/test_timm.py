"""Every preset that timm has, and those that timm's classes can be made to: `nox -s parity`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eqx_vit import MODELS
from eqx_vit.registry import find_preset

pytest.importorskip("torch", reason="run by nox -s parity")
timm = pytest.importorskip("timm", reason="run by nox -s parity")

from comparison import Case, compare
from timm.models.twins import Twins
from timm.models.vision_transformer import Block, ParallelThingsBlock, VisionTransformer

pytestmark = pytest.mark.parity


def _registered(name: str) -> Callable[[Any, bool], Any]:
    def build(config: Any, reduced: bool) -> Any:
        depth = {"depth": config.depth} if reduced else {}
        # The classes are given, since timm builds a model without a head where its default weights have none.
        return timm.create_model(name, pretrained=False, num_classes=config.num_classes, **depth)

    return build


def _vision_transformer(config: Any, **more: Any) -> Any:
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=(config.mlp_dim or 4 * config.dim) / config.dim,
        **more,
    )


def _simple_vit(config: Any, reduced: bool) -> Any:
    # The official code has the tanh form of GELU, which timm has to be asked for.
    return _vision_transformer(config, class_token=False, global_pool="avg", fc_norm=False, act_layer="gelu_tanh")


def _parallel_vit(config: Any, reduced: bool) -> Any:
    block = Block if config.num_parallel_branches == 1 else ParallelThingsBlock
    return _vision_transformer(
        config,
        block_fn=block,
        init_values=config.layer_scale,
        no_embed_class=not config.prefix_positions,
        class_token=config.class_token,
        global_pool="token" if config.pool == "cls" else "avg",
        fc_norm=config.pool_norm,
    )


def _twins(config: Any, reduced: bool) -> Any:
    stages = config.stages
    return Twins(
        embed_dims=tuple(stage.dim for stage in stages),
        num_heads=tuple(stage.heads for stage in stages),
        mlp_ratios=tuple(stage.hidden_dim // stage.dim for stage in stages),
        depths=tuple(stage.depth for stage in stages),
        sr_ratios=tuple(stage.reduction for stage in stages),
        wss=tuple(stage.window for stage in stages),
    )


def _changed(name: str, build: Callable[[Any, bool], Any], theirs: str, **changes: Any) -> Case:
    """A preset changed to what timm's classes can be asked for, and no preset has."""
    config = replace(find_preset(name), **changes)
    return Case(f"{name} {' '.join(changes)}", "timm", f"timm {theirs}", build, config)


CHANGED = [
    _changed("vit_small_patch16_18x2_224", _parallel_vit, "VisionTransformer", depth=2, pool="mean", pool_norm=True),
    _changed(
        "vit_small_patch16_18x2_224",
        _parallel_vit,
        "VisionTransformer",
        depth=2,
        pool="mean",
        class_token=False,
        pool_norm=True,
    ),
    _changed("deit_small_patch16_18x2_LS", _parallel_vit, "VisionTransformer", depth=2, pool="mean", class_token=False),
    _changed("twins_svt_small", _twins, "Twins", pairs=False, s1_depth=3, s2_depth=1, s3_depth=4, s4_depth=1),
    _changed("twins_svt_small", _twins, "Twins", s2_local_patch_size=1, s3_depth=1),
]


def _cases() -> list[Case]:
    registered = set(timm.list_models())
    cases: list[Case] = []
    for architecture, row in MODELS.items():
        for name, config in row.presets.items():
            if name in registered:
                cases.append(Case(name, "timm", f"timm {name}", _registered(name), config))
            elif architecture == "simple_vit" and config.representation_size is None:
                # timm has no fixed table: there it is a parameter that holds ours.
                theirs = "timm VisionTransformer"
                cases.append(Case(name, "timm", theirs, _simple_vit, config, fixed=("pos_embed",)))
            elif architecture == "parallel_vit":
                cases.append(Case(name, "timm", "timm VisionTransformer", _parallel_vit, config))
    return cases


@pytest.mark.parametrize("name", [name for row in MODELS.values() for name in row.weights if timm.is_model(name)])
def test_weights_are_timms_default(name: str) -> None:
    """The checkpoint that `timm.create_model(name, pretrained=True)` takes, and what its images are."""
    source = next(row.weights[name] for row in MODELS.values() if name in row.weights)
    # Of CLIP the towers as they were released, where timm's default is one that was fine-tuned, or another's.
    tag = source.hub.rpartition(".")[2] if "_clip_" in name else None
    theirs = timm.get_pretrained_cfg(name if tag is None else f"{name}.{tag}")
    assert source.hub == theirs.hf_hub_id
    found = (source.mean, source.std, source.interpolation, source.crop, source.classes, source.license)
    crop = theirs.crop_pct
    assert found == (theirs.mean, theirs.std, theirs.interpolation, crop, theirs.num_classes, theirs.license)


@pytest.mark.parametrize("case", [*_cases(), *CHANGED], ids=str)
def test_equals_timm(case: Case, record_property: Any) -> None:
    compare(case, record_property)
