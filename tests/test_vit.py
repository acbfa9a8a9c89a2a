"""ViT beyond the tables: its tokens, its pair of heads and its position tables."""

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.vit import BASE, GOLDEN, TINY

import eqx_vit
from eqx_vit import ViT
from eqx_vit.layers import resize_table
from eqx_vit.layers.init import normal
from eqx_vit.models import vit
from eqx_vit.paths import named_leaves


@pytest.mark.parametrize("name", ["vit-cls", "vit-gap", "vit-reg4gap", "vit-qknorm", "vit-distilled"])
def test_features_are_the_golden_tokens(name: str) -> None:
    golden, model, _ = golden_files.loaded(name, *GOLDEN[name])
    tokens = eqx.filter_vmap(model.features)(golden.image_batch())
    golden_files.close(tokens, golden.arrays["aux/tokens"], 2e-5, name)


def test_heads_are_the_golden_pair() -> None:
    golden, model, _ = golden_files.loaded("vit-distilled", *GOLDEN["vit-distilled"])
    logits, distilled = eqx.filter_vmap(model.logits_pair)(golden.image_batch())
    golden_files.close(logits, golden.arrays["output_cls"], 2e-5, "output_cls")
    golden_files.close(distilled, golden.arrays["output_dist"], 2e-5, "output_dist")


@pytest.mark.parametrize(("name", "trained", "used"), [("up", 32, (56, 40)), ("down", 64, (40, 24))])
def test_resize_as_timm(name: str, trained: int, used: tuple[int, int]) -> None:
    golden, model, _ = golden_files.loaded(f"vit-interp-{name}", replace(BASE, image_size=trained), "timm")
    model = eqx_vit.resize(model, used)
    golden_files.close(eqx.filter_vmap(model)(golden.image_batch()), golden.arrays["output"], 2e-5, name)


def test_tables_resize_as_timm_and_hugging_face() -> None:
    golden = golden_files.read("vit-posembed")
    for case, grids in golden.meta["config"].items():
        old = jnp.asarray(golden.arrays[f"{case}/old"][0])
        for method, antialias in (("bicubic_antialias", True), ("bicubic", False)):
            table = resize_table(old, tuple(grids["old_grid"]), tuple(grids["new_grid"]), antialias=antialias)
            golden_files.close(table, golden.arrays[f"{case}/{method}"][0], 2e-5, f"{case}/{method}")


def test_few_calls_lie_between_the_model_and_the_product_of_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    package, einsum = str(Path(eqx_vit.__file__).parent), jnp.einsum
    stacks = []

    def record(subscripts: str, *operands: Any, **options: Any) -> Any:
        if subscripts == "hqd,hkd->hqk":
            stacks.append([frame for frame in traceback.extract_stack() if frame.filename.startswith(package)])
        return einsum(subscripts, *operands, **options)

    monkeypatch.setattr(jnp, "einsum", record)
    config = replace(TINY, dim=20, heads=5)  # that nothing else has traced
    model = eqx.filter_eval_shape(ViT, config, key=jax.random.key(0))
    eqx.filter_eval_shape(eqx.nn.inference_mode(model), jnp.zeros((16, 16, 3)))
    assert stacks
    for frames in stacks:
        assert frames[0].name == "__call__"
        assert len(frames) - 1 <= 6, traceback.format_list(frames)


def test_every_layer_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from one distribution, heads start equal where they share a key."""
    for name in ("constant", "lecun_normal", "xavier_uniform"):
        monkeypatch.setattr(vit, name, lambda *_: normal(1.0))
    for changes in ({"representation_size": 16}, {"distillation": True}):
        model = ViT(replace(TINY, num_classes=16, mlp_dim=16, **changes), key=jax.random.key(0))
        leaves = jax.tree.leaves(jax.tree.map(np.asarray, named_leaves(model)))
        weights = [leaf.reshape(-1)[:16] for leaf in leaves if np.std(leaf)]
        assert len(np.unique(weights, axis=0)) == len(weights)
