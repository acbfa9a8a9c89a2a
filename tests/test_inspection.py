"""Seeing inside a model: what is seen is what was computed, it can be differentiated, and nothing else changes."""

import functools
import re
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import Array, PyTree
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
from eqx_vit.layers import Stack, attend, merge_heads, split_heads
from eqx_vit.paths import named_statistics, with_named_statistics

WEIGHTS, FIRST_ROW = "blocks.attention.weights", "blocks.attention.weights[class]"
# Of these the forward pass has a kernel for CPUs that sums in another order than the plain formulation.
TOLERANCE = {"region_vit": 1e-6, "twins_svt": 1e-6}
every_model = pytest.mark.parametrize("name", TINY)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
forward = eqx.filter_jit(eqx_vit.forward)


def images_for(name: str, batch: int = 2) -> Array:
    return jax.random.normal(jax.random.key(7), (batch, *tiny_size(name), TINY[name].channels))


IMAGES = images_for("vit")


def draw(config: Any) -> tuple[Any, eqx.nn.State]:
    """A model with random parameters, whose initialisation is not compiled, and its fresh state."""
    model, state = eqx_vit.create_abstract(config)
    random = np.random.default_rng(3)

    def fill(leaf: Any) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype) if is_shape else leaf

    model, statistics = jax.tree.map(fill, model), named_statistics(model, state)
    fresh = {name: jnp.full(leaf.shape, name.endswith("var"), leaf.dtype) for name, leaf in statistics.items()}
    return model, with_named_statistics(model, state, fresh)


@functools.cache
def ready(name: str) -> tuple[Any, eqx.nn.State]:
    """The tiny model in inference mode."""
    model, state = draw(TINY[name])
    return eqx_vit.inference_mode(model), state


@functools.cache
def look(name: str, names: str | tuple[str, ...] = "*", batch: int = 2) -> tuple[Array, dict[str, Any]]:
    return eqx_vit.observe(*ready(name), images_for(name, batch), names)


def trace(model: Any, state: eqx.nn.State, names: Any, **more: Any) -> dict[str, Any]:
    """The shapes of what would be seen: errors come without a compilation."""
    return eqx.filter_eval_shape(eqx_vit.observe, model, state, IMAGES, names, **more)[1]


def weigh(attention: Any, tokens: Array) -> Array:
    """The weights of an ordinary attention, by their formula."""
    query, key, _ = split_heads(attention.qkv(tokens), 3, attention.heads)
    return jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5)


def compute(model: Any) -> dict[str, Array]:
    """What is to be seen in the blocks of a ViT, block by block."""
    normed, weights = list[Array](), list[Array]()
    tokens = [jax.vmap(lambda image: model.embed(image, key=None))(IMAGES)]
    for block in model.blocks:
        normed.append(block.norm1(tokens[-1]))
        weights.append(jax.vmap(functools.partial(weigh, block.attention))(normed[-1]))
        tokens.append(jax.vmap(block)(tokens[-1]))
    values = {"blocks.norm1": normed, WEIGHTS: weights, "blocks": tokens[1:]}
    return {name: jnp.stack(each, axis=1) for name, each in values.items()}


def random_like(tree: PyTree) -> PyTree:
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), tree)


@every_model
def test_every_value_is_listed_with_its_shape(name: str) -> None:
    model, state = ready(name)
    listed = eqx_vit.observable(model, state, tiny_size(name))
    _, seen = eqx.filter_eval_shape(eqx_vit.observe, model, state, images_for(name), "*")
    batched = jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), listed)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), seen) == batched
    points = [*model.feature_points(*tiny_size(name)), model.cam_point(*tiny_size(name))]
    weights = {f"{point.module}.weights" for point in model.attention_points(*tiny_size(name))}
    assert {point.module for point in points} | weights <= set(listed)


@slow_but_for("vit", "levit", "cait")
def test_looking_at_everything_changes_nothing(name: str) -> None:
    logits, seen = look(name)
    expected, _ = forward(*ready(name), images_for(name))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE.get(name, 0))
    _, swapped = eqx_vit.observe(*ready(name), images_for(name)[::-1], "*")
    jax.tree.map(lambda value, other: close(other[::-1], value, atol=1e-4), seen, swapped)
    for path in [path for path in seen if path.endswith(".weights")]:
        jax.tree.map(lambda weights: close(jnp.sum(weights, axis=-1), 1), seen[path])
        jax.tree.map(lambda weights, row: close(row, weights[..., 0, :]), seen[path], seen[f"{path}[class]"])


def test_what_is_seen_is_what_the_model_computes() -> None:
    model, _ = ready("vit")
    logits, seen = look("vit")
    for name, value in compute(model).items():
        close(seen[name], value)
    close(logits, model.head(model.norm(seen["blocks"][:, -1, 0])))
    np.testing.assert_array_equal(seen["head"], logits)


def test_windows_come_after_the_depth() -> None:
    for stage in range(2):
        name = f"stages.{stage}.blocks"
        for index, block in enumerate(ready("nest")[0].stages[stage].blocks):
            of_windows = jax.vmap(jax.vmap(functools.partial(weigh, block.attention.attention)))
            weights = of_windows(look("nest")[1][f"{name}.norm1"][:, index])
            close(look("nest")[1][f"{name}.attention.attention.weights"][:, index], weights)


def test_training_is_seen_with_its_dropout_and_the_statistics_of_the_batch() -> None:
    model, state = draw(replace(TINY["parallel_vit_hmlp"], dropout=0.2))
    images, key = images_for("parallel_vit_hmlp"), jax.random.key(1)
    dropout = "encoder.blocks.attentions.layer.attention_dropout"
    logits, seen = eqx_vit.observe(model, state, images, ("patch_embedding.*.0", dropout), key)
    np.testing.assert_array_equal(logits, forward(model, state, images, key)[0])
    x, norm = np.asarray(seen["patch_embedding.cuts.0"], np.float64), model.patch_embedding.norms[0]
    normed = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + norm.eps)
    close(seen["patch_embedding.norms.0"], normed * np.asarray(norm.weight) + np.asarray(norm.bias))
    dropped = np.asarray(seen[dropout]) == 0
    assert 0.1 < dropped.mean() < 0.3
    assert not np.array_equal(dropped[0], dropped[1])


TRACED: list[Any] = []


class Counted(eqx.Module):
    """A head that notes when it is traced."""

    head: Any

    def __call__(self, x: Array) -> Array:
        TRACED.append(x)
        return self.head(x)


def test_what_is_asked_again_is_not_traced_again() -> None:
    model, state = ready("vit")
    model = eqx.tree_at(lambda m: m.head, model, Counted(model.head))
    counts, see = list[int](), eqx.filter_jit(eqx_vit.observe)
    for images, classes in ((IMAGES, 0), (IMAGES + 1, [3, 1])):
        assert list(eqx_vit.observe(model, state, images, ["head.head", "norm"])[1]) == ["head.head", "norm"]
        assert list(see(model, state, images, ("norm", "head"))[1]) == ["head", "norm"]
        eqx_vit.grad_cam(model, state, images, classes)
        counts.append(len(TRACED))
    assert counts[1] == counts[0] > 0


def test_an_ensemble_and_a_set_of_batches_are_seen_under_vmap() -> None:
    model, state = ready("vit")
    names, batches = ("blocks", FIRST_ROW), jnp.stack([IMAGES, 2 * IMAGES])
    halved = jax.tree.map(lambda leaf: leaf / 2 if eqx.is_array(leaf) else leaf, model)
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], model, halved)
    of_batches = jax.vmap(lambda images: eqx_vit.observe(model, state, images, names))(batches)
    of_models = eqx.filter_vmap(lambda model: eqx_vit.observe(model, state, IMAGES, names))(models)
    for found, one, images in ((of_batches, model, 2 * IMAGES), (of_models, halved, IMAGES)):
        expected = look("vit", names), eqx_vit.observe(one, state, images, names)
        jax.tree.map(lambda both, *each: [close(both[i], each[i]) for i in (0, 1)], found, *expected)


def test_gradients_of_what_is_seen_reach_the_parameters() -> None:
    model, state = ready("vit")
    cotangents = {name: random_like(look("vit")[1][name]) for name in ("blocks", WEIGHTS)}

    def see(model: Any) -> dict[str, Array]:
        return eqx_vit.observe(model, state, IMAGES, tuple(cotangents))[1]

    def differentiate(function: Any) -> PyTree:
        total = lambda model: sum(jnp.sum(function(model)[name] * cotangents[name]) for name in cotangents)  # noqa: E731
        return eqx.filter_jit(eqx.filter_grad(total))(model)

    found = differentiate(see)
    jax.tree.map(lambda a, b: close(a, b, atol=1e-4), found, differentiate(compute))
    assert np.any(np.abs(found.patch_embedding.linear.weight) > 0.1)


@eqx.filter_jit
def differentiate(model: Any, added: dict[str, Array]) -> PyTree:
    """((score, what is seen), the score's gradients with respect to that)."""

    def score(added: dict[str, Array]) -> tuple[Array, PyTree]:
        logits, seen = eqx_vit.observe(model, ready("vit")[1], IMAGES, tuple(added), perturbations=added)
        return jnp.sum(logits * random_like(logits)), seen

    return jax.value_and_grad(score, has_aux=True)(added)


def test_gradients_with_respect_to_what_is_seen_are_slopes() -> None:
    model, values = ready("vit")[0], {name: look("vit")[1][name] for name in ("blocks", WEIGHTS, FIRST_ROW)}
    zeros, directions, step = jax.tree.map(jnp.zeros_like, values), random_like(values), 3e-3
    (_, seen), gradients = differentiate(model, zeros)
    jax.tree.map(close, seen, values)
    for name, direction in directions.items():
        up, down = (differentiate(model, zeros | {name: sign * step * direction})[0] for sign in (1, -1))
        slope = jnp.sum(gradients[name] * direction)
        assert abs(slope) > 0.02
        np.testing.assert_allclose((up[0] - down[0]) / (2 * step), slope, rtol=2e-2)
        close(up[1][name][:, 0], values[name][:, 0] + step * direction[:, 0])
    close(gradients[FIRST_ROW], gradients[WEIGHTS][..., 0, :])


@pytest.mark.parametrize("way", [{"remat": True}, {"unroll": True}], ids=str)
def test_how_a_stack_runs_does_not_matter(way: dict[str, Any]) -> None:
    model, _ = ready("vit")
    stack, zeros = model.blocks, {name: jnp.zeros_like(look("vit")[1][name]) for name in ("blocks", WEIGHTS, FIRST_ROW)}
    other = Stack(stack.block, stack.depth, **way)
    assert (other.remat, other.unroll) != (stack.remat, stack.unroll)
    found = differentiate(eqx.tree_at(lambda m: m.blocks, model, other), zeros)
    jax.tree.map(close, found, differentiate(model, zeros))


def test_a_cast_model_is_seen_in_its_own_dtype() -> None:
    model, state = ready("vit")
    logits, seen = eqx_vit.observe(eqx_vit.cast(model, jnp.bfloat16), state, IMAGES, "*")
    assert logits.dtype == seen["blocks"].dtype == seen["blocks.mlp.fc1"].dtype == jnp.bfloat16
    assert seen[WEIGHTS].dtype == seen[FIRST_ROW].dtype == jnp.float32  # as the softmax is
    rough = functools.partial(np.testing.assert_allclose, atol=0.2)
    jax.tree.map(lambda a, b: rough(a.astype(jnp.float32), b), (logits, seen), look("vit"))


# More scores, and more hidden features, than a CPU computes at a time.
LONG = eqx_vit.ViTConfig(image_size=32, patch_size=1, num_classes=3, dim=8, depth=1, heads=1, mlp_dim=256)


LONG_IMAGE = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))


def test_what_is_computed_in_chunks_is_seen_whole() -> None:
    model, state = draw(LONG)
    block, names = model.blocks[0], (WEIGHTS, FIRST_ROW, "blocks.norm1", "blocks.norm2", "blocks.mlp.fc1")
    logits, seen = eqx_vit.observe(model, state, LONG_IMAGE, names)
    np.testing.assert_allclose(logits, forward(model, state, LONG_IMAGE)[0], atol=1e-6)
    close(seen["blocks.mlp.fc1"][0, 0], block.mlp.fc1(seen["blocks.norm2"][0, 0]))
    weights = weigh(block.attention, seen["blocks.norm1"][0, 0])
    np.testing.assert_allclose(seen[WEIGHTS][0, 0], weights, rtol=1e-4)
    np.testing.assert_allclose(seen[FIRST_ROW][0, 0], weights[:, 0], rtol=1e-4)


def test_the_first_row_of_long_attention_comes_without_the_others() -> None:
    model, state = draw(LONG)
    logits, seen = eqx_vit.observe(model, state, LONG_IMAGE, (FIRST_ROW, "blocks.norm1"))
    np.testing.assert_allclose(logits, forward(model, state, LONG_IMAGE)[0], atol=1e-6)
    weights = weigh(model.blocks[0].attention, seen["blocks.norm1"][0, 0])
    np.testing.assert_allclose(seen[FIRST_ROW][0, 0], weights[:, 0], rtol=1e-4)
    see: Any = eqx.filter_jit(eqx_vit.observe)
    programs = [see.lower(model, state, LONG_IMAGE, name).as_text() for name in (WEIGHTS, FIRST_ROW)]
    assert ["1025x1025x" in program for program in programs] == [True, False]


def test_nothing_is_added_where_nobody_looks() -> None:
    logits, seen = look("vit", ())
    assert seen == {}
    np.testing.assert_array_equal(logits, forward(*ready("vit"), IMAGES)[0])
    for function in (eqx_vit.forward, functools.partial(eqx_vit.observe, names="*")):
        program = str(eqx.filter_make_jaxpr(function)(*ready("vit"), IMAGES)[0])
        assert "dot_general" in program
        assert not re.search(r"\bmark\b", program)


class Own(eqx.Module):
    """A user's attention, of Equinox's layers and JAX's control flow."""

    qkv: eqx.nn.Linear
    mapped: eqx.nn.Linear
    chosen: eqx.nn.Linear
    twice: eqx.nn.Linear
    unused: eqx.nn.Linear
    positive: Array

    def __init__(self, *, key: Array) -> None:
        keys = jax.random.split(key, 5)
        self.qkv = eqx.nn.Linear(16, 48, key=keys[0])
        self.mapped, self.chosen, self.twice, self.unused = (eqx.nn.Linear(16, 16, key=each) for each in keys[1:])
        self.positive = jnp.array(True)

    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        x = jitted_attend(*split_heads(jax.vmap(self.qkv)(tokens), 3, 2))
        x = jax.lax.map(self.mapped, merge_heads(x))
        x = jax.lax.cond(self.positive, jax.vmap(self.chosen), lambda x: jax.vmap(self.chosen)(-x), x)
        twice = jax.checkpoint(jax.vmap(self.twice))
        return twice(twice(x))


jitted_attend = jax.jit(attend)


class Hidden(eqx.Module):
    """A user's attention with a linear map where no value can be taken out."""

    linear: eqx.nn.Linear
    operation: str = eqx.field(static=True)

    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        function = jax.vmap(self.linear)
        if self.operation == "while":
            return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, function, tokens)
        if self.operation == "cond":
            return jax.lax.cond(self.linear.weight[0, 0] > 0, function, lambda x: x, tokens)
        rule = jax.custom_jvp(function)
        rule.defjvp(functools.partial(jax.jvp, function))
        return rule(tokens)


def with_attention(make: Any) -> tuple[Any, eqx.nn.State]:
    model, state = ready("vit")
    stack = Stack.build(make, 2, key=jax.random.key(2))
    return eqx.tree_at(lambda m: m.blocks.block.attention, model, stack.block), state


def test_a_module_of_ones_own_shows_what_is_inside() -> None:
    model, state = with_attention(Own)
    choices = jnp.array([True, False])
    model = eqx.tree_at(lambda m: m.blocks.block.attention.positive, model, choices)
    _, seen = eqx_vit.observe(model, state, IMAGES, ("blocks.attention*", "blocks.norm1"))
    for index, sign in enumerate((1, -1)):
        own, at = model.blocks[index].attention, jax.tree.map(lambda leaf: leaf[1, index], seen)  # noqa: B023
        query, key, value = split_heads(jax.vmap(own.qkv)(at["blocks.norm1"]), 3, 2)
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key) / 8**0.5)
        mapped = jax.vmap(own.mapped)(merge_heads(jnp.einsum("hqk,khd->qhd", weights, value)))
        chosen = jax.vmap(own.chosen)(sign * mapped)
        first = jax.vmap(own.twice)(chosen)
        twice = first, jax.vmap(own.twice)(first)
        expected = {".mapped": mapped, ".chosen": chosen, ".twice": twice, ".weights": weights, "": twice[1]}
        for name, result in (expected | {".weights[class]": weights[:, 0]}).items():
            jax.tree.map(close, at[f"blocks.attention{name}"], result)
    assert "blocks.attention.unused" not in seen


def test_what_was_traced_before_does_not_matter() -> None:
    """JAX keeps what it has traced of a function, such as `jitted_attend`: with marks or without them."""
    model, state = with_attention(Own)
    for name in (WEIGHTS, FIRST_ROW, WEIGHTS):
        assert list(trace(model, state, name)) == [name]
        assert "mark" not in str(jax.make_jaxpr(lambda x: eqx_vit.forward(model, state, x)[0])(IMAGES))


@pytest.mark.parametrize("operation", ["while", "custom_jvp", "cond"])
def test_what_cannot_be_taken_out_is_told(operation: str) -> None:
    model, state = with_attention(lambda key: Hidden(eqx.nn.Linear(16, 16, key=key), operation))
    with pytest.raises(ValueError, match=rf"blocks\.attention\.linear cannot be observed: .*\b{operation}"):
        trace(model, state, "blocks.attention.linear")
    assert list(trace(model, state, ("blocks.attention", "norm"))) == ["blocks.attention", "norm"]


def test_a_name_that_there_is_not_is_refused_with_the_nearest() -> None:
    model, state = with_attention(Own)
    nothing = r"ViT has nothing to observe called '{}': did you mean (.* or )?{}\b.*eqx_vit\.observable\(model\) lists"
    for wrong, nearest in {
        "blocks.atention": "blocks.attention",
        "blocks.mlp.weights": "blocks.mlp",
        "blocks.attention.unused": "blocks.attention",
        "heads*": "head",
    }.items():
        with pytest.raises(ValueError, match=nothing.format(re.escape(wrong), re.escape(nearest))):
            trace(model, state, ("norm", wrong))
    with pytest.raises(ValueError, match=nothing.format("bloks", "blocks")):
        trace(model, state, "norm", perturbations={"bloks": jnp.zeros((2, 2, 5, 16))})


def test_a_pattern_is_no_name_to_add_to() -> None:
    with pytest.raises(ValueError, match=re.escape("nor*")):
        trace(*ready("vit"), "norm", perturbations={"nor*": jnp.zeros((2, 5, 16))})


@every_model
def test_the_list_of_features_is_what_intermediates_gives(name: str) -> None:
    model, state = ready(name)
    info = eqx_vit.feature_info(model, state, tiny_size(name))
    take = functools.partial(eqx_vit.intermediates, prefix_tokens=True)
    found = eqx.filter_eval_shape(take, model, state, images_for(name))
    for (map_, prefix), entry in zip(found, info, strict=True):
        assert (map_.shape, prefix.shape) == ((2, *entry.shape), (2, entry.prefix_tokens, entry.channels))
        cells = -(-np.array(tiny_size(name)) // np.broadcast_to(entry.reduction, 2))
        # The patches of PiT overlap, and none reaches over the edge.
        assert entry.shape[:2] == tuple(cells - (name == "pit" and entry.name == "stages.0"))


PRESETS = {
    "twins_svt_small": [(f"stages.{stage}", 64 * 2**stage, 4 * 2**stage) for stage in range(4)],
    "levit_128s": [("stages.0", 128, 16), ("stages.1", 256, 32), ("stages.2", 384, 64)],
    "vit_tiny_patch16_224": [(f"blocks.{block}", 192, 16) for block in range(12)],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_features_of_presets(preset: str) -> None:
    info = eqx.filter_eval_shape(eqx_vit.feature_info, *eqx_vit.create_abstract(preset))
    assert [(entry.name, entry.channels, entry.reduction) for entry in info] == PRESETS[preset]
    assert [entry.shape[:2] for entry in info] == [(-(-224 // entry.reduction),) * 2 for entry in info]


def test_intermediates_are_the_blocks() -> None:
    model, state = ready("vit")
    blocks, take = look("vit")[1]["blocks"], functools.partial(eqx_vit.intermediates, model, state, IMAGES)
    for indices, expected in ((None, [0, 1]), (1, [1]), (2, [0, 1]), ([-1, 0, 1], [0, 1]), ([-2], [0])):
        for (map_, prefix), index in zip(take(indices, prefix_tokens=True), expected, strict=True):
            close(map_, blocks[:, index, 1:].reshape(2, 2, 2, 16))
            close(prefix, blocks[:, index, :1])
    for tokens, map_ in zip(take(layout="tokens"), take(), strict=True):
        np.testing.assert_array_equal(tokens, map_.reshape(2, 4, 16))
    first, last = take(norm=True, layout="tokens")
    close(first, model.norm(blocks[:, 0])[:, 1:])
    close(last, jax.vmap(model.features)(IMAGES)[:, 1:])
    for wrong in ([2], [0, -3], 3, 0, -1):
        with pytest.raises(ValueError, match=r"there is no feature|asks for the last"):
            take(wrong)


@slow_but_for("vit", "simple_vit")
def test_attention_maps_are_the_weights(name: str) -> None:
    model, state = ready(name)
    points = model.attention_points(*tiny_size(name))
    if not points:
        with pytest.raises(ValueError, match="has no token that attends to all patches"):
            eqx_vit.attention_maps(model, state, images_for(name))
        return
    expected = list[Array]()
    for point in points:
        weights = look(name)[1][f"{point.module}.weights"]
        rows = weights[..., 0, :] if point.class_token else weights.mean(axis=-2)
        layers = rows if weights.ndim > 4 else rows[:, None]
        maps = layers[..., point.prefix :].reshape(2, layers.shape[1], -1, *point.grid)
        expected += [maps[:, layer] for layer in range(maps.shape[1])]
    found = eqx_vit.attention_maps(model, state, images_for(name))
    jax.tree.map(close, found, expected)
    assert all(jnp.all(jnp.sum(map_, axis=(-2, -1)) < 1 + 1e-5) for map_ in found)
    close(eqx_vit.attention_maps(model, state, images_for(name), [-1])[0], expected[-1])


@pytest.mark.parametrize("name", ["vit", "simple_vit", "parallel_vit"])
def test_rollout_is_the_product_of_the_mixings(name: str) -> None:
    model, state = ready(name)
    (point,) = model.attention_points(*tiny_size(name))
    rollout, seen = eqx_vit.attention_rollout(model, state, images_for(name)), look(name)[1]
    for image, weights in enumerate(np.asarray(seen[f"{point.module}.weights"])):
        product = identity = np.eye(weights.shape[-1])
        for layer in weights:
            product = (layer.reshape(-1, *identity.shape).mean(axis=0) + identity) / 2 @ product
        row = product[0] if point.class_token else product.mean(axis=0)
        close(rollout[image], row[point.prefix :].reshape(2, 2))


def test_maps_are_enlarged_between_their_centres() -> None:
    enlarged = eqx_vit.resize_maps(jnp.arange(8.0).reshape(2, 2, 2), (2, 4))
    close(enlarged[1], [[4, 4.25, 4.75, 5], [6, 6.25, 6.75, 7]])


def test_grad_cam_is_its_equation() -> None:
    model, state = ready("simple_vit")
    logits, seen = look("simple_vit")
    block, features = model.blocks[1], seen["blocks.norm1"][:, 1]

    @jax.jit
    @jax.vmap
    @jax.grad
    def slope(normed: Array, before: Array, label: Array) -> Array:
        x = before + block.attention(normed)
        return model.head(jnp.mean(model.norm(x + block.mlp(block.norm2(x))), axis=0))[label]

    for classes in (None, 3, [4, 1]):
        labels = np.argmax(logits, axis=1) if classes is None else np.broadcast_to(classes, 2)
        slopes = np.asarray(slope(features, seen["blocks"][:, 0], labels))
        expected = np.maximum(np.sum(features * slopes.mean(axis=1, keepdims=True), axis=-1), 0)
        close(eqx_vit.grad_cam(model, state, images_for("simple_vit"), classes), expected.reshape(2, 2, 2))
        assert np.any(expected)


@slow_but_for("cait", "levit")
def test_grad_cam_finds_evidence_for_some_class(name: str) -> None:
    images = jnp.repeat(images_for(name, batch=1), 5, axis=0)
    maps = np.asarray(eqx_vit.grad_cam(*ready(name), images, range(5)))
    assert np.all(np.isfinite(maps) & (maps >= 0))
    assert len({each.tobytes() for each in maps if np.any(each)}) > 1


def test_what_there_is_not_to_explain_is_refused() -> None:
    model, state = ready("vit")
    wrong: list[Any] = [5, -1, [0, 1, 2], [0, 7], [0.0, 1.0]]
    for classes in wrong:
        with pytest.raises(ValueError, match=r"classes must be one number for all 2 images or one each, 0 to 4, given"):
            eqx_vit.grad_cam(model, state, IMAGES, classes)
    with pytest.raises(ValueError, match=r"this ViT has no head \(num_classes=0\)"):
        eqx_vit.grad_cam(eqx_vit.replace_head(model, 0, key=jax.random.key(0)), state, IMAGES)
    with pytest.raises(ValueError, match="there is no feature 2"):
        eqx_vit.attention_maps(model, state, IMAGES, [2])
    for function in (eqx_vit.attention_maps, eqx_vit.attention_rollout):
        with pytest.raises(ValueError, match="LeViT has no token that attends to all patches"):
            function(*ready("levit"), images_for("levit"))
    with pytest.raises(ValueError, match="the tokens of PiT are not the same in all layers"):
        eqx_vit.attention_rollout(*ready("pit"), images_for("pit"))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@slow_but_for("vit")
def test_a_sharded_batch_is_seen_as_any_other(name: str, kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    images = jax.device_put(images_for(name, batch=8), NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = eqx_vit.observe(*ready(name), images, "*")
    jax.tree.map(lambda a, b: close(a, b, atol=1e-4), found, look(name, batch=8))
    assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(found))
