"""Seeing inside a model: what is seen is what was computed, it can be differentiated, and nothing else changes."""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import Array, PyTree
from test_models import drawn, every_model, images_for
from tiny import slow_but_for, tiny_size

import eqx_vit
from eqx_vit.layers import Stack, attend, merge_heads, split_heads

WEIGHTS, FIRST_ROW = "blocks.attention.weights", "blocks.attention.weights[class]"
# Of these, the forward pass has kernels for a CPU that sum in another order than what can be observed.
TOLERANCE = {"region_vit": 1e-6, "twins_svt": 1e-6}

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@functools.cache
def ready(name: str) -> tuple[Any, eqx.nn.State]:
    """The tiny model in inference mode, with random parameters."""
    model, state = drawn(name)
    return eqx_vit.inference_mode(model), state


@functools.cache
def look(name: str, names: tuple[str, ...] = ("*",)) -> tuple[Array, dict[str, Any]]:
    return eqx_vit.observe(*ready(name), images_for(name), names)


def look_at_shapes(model: Any, state: eqx.nn.State, names: Any, **more: Any) -> dict[str, Any]:
    """What `observe` gives of two images, traced alone: its errors come without a compilation."""
    images = jnp.zeros((2, *tiny_size("vit"), 3))
    return eqx.filter_eval_shape(eqx_vit.observe, model, state, images, names, **more)[1]


def weigh(attention: Any, tokens: Array) -> Array:
    """The weights of an ordinary attention, by the formula."""
    query, key, _ = split_heads(attention.qkv(tokens), 3, attention.heads)
    return jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5)


def random_like(tree: PyTree, seed: int = 0) -> PyTree:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), tree)


@every_model
def test_every_value_is_listed_with_its_shape(name: str) -> None:
    model, state = ready(name)
    listed = eqx_vit.observable(model, state, tiny_size(name))
    _, seen = eqx.filter_eval_shape(eqx_vit.observe, model, state, images_for(name), "*")
    batched = jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), listed)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), seen) == batched
    points = [*model.feature_points(*tiny_size(name)), model.cam_point(*tiny_size(name))]
    weights = {point.module + ".weights" for point in model.attention_points(*tiny_size(name))}
    assert {point.module for point in points} | weights <= set(listed)


@slow_but_for("vit", "levit", "cait", "nest")
def test_looking_at_everything_changes_nothing(name: str) -> None:
    logits, seen = look(name)
    expected, _ = eqx.filter_jit(eqx_vit.forward)(*ready(name), images_for(name))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE.get(name, 0))
    _, swapped = eqx_vit.observe(*ready(name), images_for(name)[::-1], "*")
    jax.tree.map(lambda value, other: close(other[::-1], value, atol=1e-4, err_msg=name), seen, swapped)
    for path in [path for path in seen if path.endswith(".weights")]:
        jax.tree.map(lambda weights: close(jnp.sum(weights, axis=-1), 1), seen[path])
        jax.tree.map(lambda weights, row: close(row, weights[..., 0, :]), seen[path], seen[f"{path}[class]"])


def test_what_is_seen_is_what_the_model_computes() -> None:
    model, _ = ready("vit")
    logits, seen = look("vit")
    tokens = jax.vmap(lambda image: model.embed(image, key=None))(images_for("vit"))
    for index, block in enumerate(model.blocks):
        close(seen["blocks.norm1"][:, index], jax.vmap(block.norm1)(tokens))
        weights = jax.vmap(lambda tokens, block=block: weigh(block.attention, block.norm1(tokens)))(tokens)
        close(seen[WEIGHTS][:, index], weights)
        close(seen[FIRST_ROW][:, index], weights[:, :, 0])
        tokens = jax.vmap(block)(tokens)
        close(seen["blocks"][:, index], tokens)
    close(logits, jax.vmap(model.head)(model.norm(tokens)[:, 0]))
    np.testing.assert_array_equal(seen["head"], logits)


def test_windows_come_after_the_depth() -> None:
    model, seen = ready("nest")[0], look("nest")[1]
    for stage, name in enumerate(("stages.0.blocks", "stages.1.blocks")):
        for index, block in enumerate(model.stages[stage].blocks):
            of_windows = jax.vmap(jax.vmap(functools.partial(weigh, block.attention.attention)))
            weights = of_windows(seen[f"{name}.norm1"][:, index])
            close(seen[f"{name}.attention.attention.weights"][:, index], weights)


def test_training_is_seen_with_its_dropout_and_the_statistics_of_the_batch() -> None:
    model, state = drawn("levit", 0.2)
    images, key = images_for("levit", batch=4), jax.random.key(1)
    logits, seen = eqx_vit.observe(model, state, images, ("stem.0.*", "stages.0.attention.attention_dropout"), key)
    np.testing.assert_array_equal(logits, eqx.filter_jit(eqx_vit.forward)(model, state, images, key)[0])
    x, norm = np.asarray(seen["stem.0.conv"], np.float64), model.stem[0].norm
    normed = (x - x.mean((0, 1, 2), keepdims=True)) / np.sqrt(x.var((0, 1, 2), keepdims=True) + norm.eps)
    scale, shift = (np.asarray(array)[None, None, None] for array in (norm.weight, norm.bias))
    close(seen["stem.0.norm"], normed * scale + shift)
    dropped = np.asarray(seen["stages.0.attention.attention_dropout"]) == 0
    assert 0.1 < dropped.mean() < 0.3
    assert not np.array_equal(dropped[0], dropped[1])


TRACED: list[str] = []


class Counted(eqx.Module):
    """A head that notes when it is traced."""

    head: Any

    def __call__(self, x: Array) -> Array:
        TRACED.append("head")
        return self.head(x)


def test_what_is_asked_again_is_not_traced_again() -> None:
    model, state = ready("vit")
    model, images = eqx.tree_at(lambda m: m.head, model, Counted(model.head)), images_for("vit")

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=2)
    def see(model: Any, names: tuple[str, ...], images: Array) -> Any:
        return eqx_vit.observe(model, state, images, names)[1]

    def ask(images: Array, classes: Any) -> None:
        eqx_vit.observe(model, state, images, ["head.head", "norm"])
        assert list(see(model, ("head.head",), images)) == ["head.head"]
        assert list(see(model, ("norm",), images)) == ["norm"]
        eqx_vit.grad_cam(model, state, images, classes)

    ask(images, 0)
    count = len(TRACED)
    assert count > 0
    ask(images + 1, [3, 1])
    assert len(TRACED) == count


def test_an_ensemble_and_a_set_of_batches_are_seen_under_vmap() -> None:
    model, state = ready("vit")
    names, batches = ("blocks", FIRST_ROW), jnp.stack([images_for("vit"), 2 * images_for("vit")])
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]) if eqx.is_array(leaf) else leaf, model)
    halved = jax.tree.map(lambda leaf: leaf / 2 if eqx.is_array(leaf) else leaf, model)
    of_batches = jax.vmap(lambda images: eqx_vit.observe(model, state, images, names))(batches)
    of_models = eqx.filter_vmap(lambda model: eqx_vit.observe(model, state, batches[0], names))(models)
    for results, one, images in ((of_batches, model, batches[1]), (of_models, halved, batches[0])):
        jax.tree.map(lambda found, expected: close(found[0], expected), results, look("vit", names))
        expected = eqx_vit.observe(one, state, images, names)
        jax.tree.map(lambda found, expected: close(found[1], expected), results, expected)


def test_gradients_of_what_is_seen_reach_the_parameters() -> None:
    model, state = ready("vit")
    images = images_for("vit")
    cotangents = random_like(eqx.filter_eval_shape(look_at_shapes, model, state, ("blocks", WEIGHTS)))

    def seen(model: Any) -> Array:
        _, seen = eqx_vit.observe(model, state, images, ("blocks", WEIGHTS))
        return sum(jnp.sum(seen[name] * cotangents[name]) for name in cotangents)

    def by_hand(model: Any) -> Array:
        total, tokens = jnp.zeros(()), jax.vmap(lambda image: model.embed(image, key=None))(images)
        for index, block in enumerate(model.blocks):
            weights = jax.vmap(lambda tokens, block=block: weigh(block.attention, block.norm1(tokens)))(tokens)
            tokens = jax.vmap(block)(tokens)
            total += jnp.sum(weights * cotangents[WEIGHTS][:, index]) + jnp.sum(tokens * cotangents["blocks"][:, index])
        return total

    found, expected = (eqx.filter_jit(eqx.filter_grad(function))(model) for function in (seen, by_hand))
    jax.tree.map(lambda a, b: close(a, b, atol=1e-4), found, expected)
    assert np.any(np.abs(found.patch_embedding.linear.weight) > 0.1)
    assert not np.any(found.head.weight)


def test_gradients_with_respect_to_what_is_seen_are_slopes() -> None:
    model, state = ready("vit")
    values = look("vit", ("blocks", WEIGHTS, FIRST_ROW))[1]
    cotangent = random_like(jnp.zeros((2, 5)))

    @jax.jit
    def score(added: dict[str, Array]) -> Array:
        return jnp.sum(eqx_vit.observe(model, state, images_for("vit"), (), perturbations=added)[0] * cotangent)

    zeros = jax.tree.map(jnp.zeros_like, values)
    gradients, directions, step = jax.jit(jax.grad(score))(zeros), random_like(values), 3e-2
    for name in values:
        up, down = (score(zeros | {name: sign * step * directions[name]}) for sign in (1, -1))
        slope = jnp.sum(gradients[name] * directions[name])
        assert abs(slope) > 0.1
        np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=2e-2)
    close(gradients[FIRST_ROW], gradients[WEIGHTS][..., 0, :])
    _, seen = eqx_vit.observe(model, state, images_for("vit"), "blocks", perturbations={"blocks": directions["blocks"]})
    close(seen["blocks"][:, 0], values["blocks"][:, 0] + directions["blocks"][:, 0])


def test_a_cast_model_is_seen_in_its_own_dtype() -> None:
    model, state = ready("vit")
    model = eqx_vit.cast(model, jnp.bfloat16)
    logits, seen = eqx_vit.observe(model, state, images_for("vit"), "*")
    assert logits.dtype == seen["blocks"].dtype == seen["blocks.mlp.fc1"].dtype == jnp.bfloat16
    assert seen[WEIGHTS].dtype == seen[FIRST_ROW].dtype == jnp.float32  # a softmax is float32
    np.testing.assert_array_equal(logits, eqx.filter_jit(eqx_vit.forward)(model, state, images_for("vit"))[0])
    np.testing.assert_array_equal(logits, seen["head"])
    for name, value in look("vit")[1].items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.2), seen[name], value)


@pytest.mark.parametrize("way", [{"remat": True}, {"unroll": True}, {"remat": True, "unroll": True}], ids=str)
def test_how_a_stack_runs_does_not_matter(way: dict[str, bool]) -> None:
    model, state = ready("vit")
    values = look("vit", ("blocks", WEIGHTS))[1]

    @eqx.filter_jit
    def differentiate(model: Any) -> PyTree:
        def score(added: dict[str, Array]) -> tuple[Array, PyTree]:
            logits, seen = eqx_vit.observe(model, state, images_for("vit"), tuple(values), perturbations=added)
            return jnp.sum(jnp.square(logits)), seen

        return jax.grad(score, has_aux=True)(jax.tree.map(jnp.zeros_like, values))

    other = Stack(model.blocks.block, model.blocks.depth, **way)
    assert (other.remat, other.unroll) == (way.get("remat", False), 2 if way.get("unroll") else 1)
    found, expected = (differentiate(eqx.tree_at(lambda m: m.blocks, model, each)) for each in (other, model.blocks))
    jax.tree.map(close, found, expected)
    jax.tree.map(close, found[1], values)


# More scores, and more hidden features, than a CPU computes at a time.
LONG = eqx_vit.ViTConfig(image_size=32, patch_size=1, num_classes=3, dim=8, depth=1, heads=1, mlp_dim=256)


@functools.cache
def long_model() -> tuple[Any, eqx.nn.State, Array]:
    model, state = eqx_vit.create(LONG, key=jax.random.key(0))
    head = random_like(model.head)  # it starts at zero
    return eqx.tree_at(lambda m: m.head, model, head), state, jax.random.normal(jax.random.key(1), (1, 32, 32, 3))


@functools.cache
def long_logits() -> Array:
    return eqx.filter_jit(eqx_vit.forward)(*long_model())[0]


def test_long_attention_shows_its_weights_and_the_first_row_without_them() -> None:
    model, state, images = long_model()
    logits, seen = eqx_vit.observe(model, state, images, (WEIGHTS, FIRST_ROW, "blocks.norm1"))
    np.testing.assert_allclose(logits, long_logits(), atol=1e-6)
    expected = weigh(model.blocks[0].attention, seen["blocks.norm1"][0, 0])
    np.testing.assert_allclose(seen[WEIGHTS][0, 0], expected, rtol=1e-4)
    logits, row = eqx_vit.observe(model, state, images, FIRST_ROW)
    np.testing.assert_allclose(logits, long_logits(), atol=1e-6)
    assert row[FIRST_ROW].shape == (1, 1, 1, 1025)
    for found in (seen, row):
        np.testing.assert_allclose(found[FIRST_ROW][0, 0], expected[:, 0], rtol=1e-4)
    programs = [
        eqx.filter_jit(lambda images, asked=asked: eqx_vit.observe(model, state, images, asked)).lower(images).as_text()
        for asked in (WEIGHTS, FIRST_ROW)
    ]
    assert ["1025x1025x" in program for program in programs] == [True, False]


def test_what_is_computed_in_chunks_is_seen_whole() -> None:
    model, state, images = long_model()
    logits, seen = eqx_vit.observe(model, state, images, ("blocks.norm2", "blocks.mlp.fc1"))
    np.testing.assert_allclose(logits, long_logits(), atol=1e-6)
    close(seen["blocks.mlp.fc1"][0, 0], model.blocks[0].mlp.fc1(seen["blocks.norm2"][0, 0]))


def test_nothing_is_added_where_nobody_looks() -> None:
    model, state = ready("vit")
    logits, seen = look("vit", ())
    assert seen == {}
    np.testing.assert_array_equal(logits, eqx.filter_jit(eqx_vit.forward)(model, state, images_for("vit"))[0])
    for function in (eqx_vit.forward, functools.partial(eqx_vit.observe, names="*")):
        program = str(eqx.filter_make_jaxpr(function)(model, state, images_for("vit"))[0])
        assert "softmax" in program or "exp" in program
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
        x = merge_heads(attend(*split_heads(jax.vmap(self.qkv)(tokens), 3, 2)))
        x = jax.lax.map(self.mapped, x)
        x = jax.lax.cond(self.positive, jax.vmap(self.chosen), lambda x: jax.vmap(self.chosen)(-x), x)
        twice = jax.checkpoint(jax.vmap(self.twice))
        return twice(twice(x))


class Hidden(eqx.Module):
    """A user's attention with a linear map where nothing can be taken out."""

    linear: eqx.nn.Linear
    operation: str = eqx.field(static=True)

    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        function, carry = jax.vmap(self.linear), (0, tokens)
        if self.operation == "while":
            return jax.lax.while_loop(
                lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, function(carry[1])), carry
            )[1]
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
    choice = jnp.array([True, False])
    model = eqx.tree_at(lambda m: m.blocks.block.attention.positive, model, choice)
    logits, seen = eqx_vit.observe(model, state, images_for("vit"), ("blocks.attention*", "blocks.norm1"))
    np.testing.assert_array_equal(logits, eqx.filter_jit(eqx_vit.forward)(model, state, images_for("vit"))[0])
    for index, sign in enumerate((1, -1)):
        own = model.blocks[index].attention
        for image in range(2):
            at = {name: jax.tree.map(lambda leaf: leaf[image, index], value) for name, value in seen.items()}  # noqa: B023
            qkv = jax.vmap(own.qkv)(at["blocks.norm1"])
            close(at["blocks.attention.qkv"], qkv)
            query, key, value = split_heads(qkv, 3, 2)
            weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", query, key) / 8**0.5)
            close(at[WEIGHTS], weights)
            close(at[FIRST_ROW], weights[:, 0])
            mapped = jax.vmap(own.mapped)(merge_heads(jnp.einsum("hqk,khd->qhd", weights, value)))
            close(at["blocks.attention.mapped"], mapped)
            chosen = jax.vmap(own.chosen)(sign * mapped)
            close(at["blocks.attention.chosen"], chosen)
            first, second = at["blocks.attention.twice"]
            close(first, jax.vmap(own.twice)(chosen))
            close(second, jax.vmap(own.twice)(first))
            np.testing.assert_array_equal(at["blocks.attention"], second)
    assert "blocks.attention.unused" not in seen


@pytest.mark.parametrize("operation", ["while", "custom_jvp", "cond"])
def test_what_cannot_be_taken_out_is_told(operation: str) -> None:
    model, state = with_attention(lambda key: Hidden(eqx.nn.Linear(16, 16, key=key), operation))
    with pytest.raises(ValueError, match=rf"blocks\.attention\.linear cannot be observed: .* {operation}"):
        look_at_shapes(model, state, "blocks.attention.linear")
    assert list(look_at_shapes(model, state, ("blocks.attention", "norm"))) == ["blocks.attention", "norm"]


def test_a_name_that_there_is_not_is_refused_with_the_nearest() -> None:
    model, state = with_attention(Own)
    nothing = r"ViT has nothing to observe called '{}': did you mean (.* or )?{}\b.*eqx_vit\.observable\(model\) lists"
    for wrong, nearest in {
        "blocks.atention": "blocks.attention",
        "blocks.0.mlp": "blocks.mlp",
        "blocks.mlp.weights": "blocks.mlp",
        "blocks.attention.unused": "blocks.attention",
        "heads*": "head",
    }.items():
        with pytest.raises(ValueError, match=nothing.format(re.escape(wrong), re.escape(nearest))):
            look_at_shapes(model, state, ("norm", wrong))
    with pytest.raises(ValueError, match=nothing.format("bloks", "blocks")):
        look_at_shapes(model, state, "norm", perturbations={"bloks": jnp.zeros((2, 2, 5, 16))})


@every_model
def test_the_list_of_features_is_what_intermediates_gives(name: str) -> None:
    model, state = ready(name)
    info = eqx_vit.feature_info(model, state, tiny_size(name))
    found = eqx.filter_eval_shape(
        lambda *arguments: eqx_vit.intermediates(*arguments, prefix_tokens=True), model, state, images_for(name)
    )
    assert [(map_.shape, prefix.shape) for map_, prefix in found] == [
        ((2, *entry.shape), (2, entry.prefix_tokens, entry.channels)) for entry in info
    ]
    assert len({entry.name for entry in info}) == len(info) or name == "cross_vit"  # which has two of each name
    for entry in info:
        (height, width), reduction = tiny_size(name), np.broadcast_to(entry.reduction, 2)
        assert entry.shape == (-(-height // reduction[0]), -(-width // reduction[1]), entry.channels)


PRESETS = {
    "twins_svt_small": [(f"stages.{stage}", 64 * 2**stage, 4 * 2**stage) for stage in range(4)],
    "levit_128s": [("stages.0", 128, 16), ("stages.1", 256, 32), ("stages.2", 384, 64)],
    "vit_tiny_patch16_224": [(f"blocks.{block}", 192, 16) for block in range(12)],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_features_of_presets(preset: str) -> None:
    model, state = eqx_vit.create_abstract(preset)
    info = eqx.filter_eval_shape(eqx_vit.feature_info, model, state)
    assert [(entry.name, entry.channels, entry.reduction) for entry in info] == PRESETS[preset]
    assert [entry.shape[:2] for entry in info] == [(-(-224 // entry.reduction),) * 2 for entry in info]


def test_intermediates_are_the_blocks() -> None:
    model, state = ready("vit")
    images, blocks = images_for("vit"), look("vit")[1]["blocks"]
    take = functools.partial(eqx_vit.intermediates, model, state, images)
    for indices, expected in ((None, [0, 1]), (1, [1]), (2, [0, 1]), ([-1, 0, 1], [1, 0, 1]), ([-2], [0])):
        found = take(indices, prefix_tokens=True)
        assert len(found) == len(expected)
        for (map_, prefix), index in zip(found, expected, strict=True):
            close(map_, blocks[:, index, 1:].reshape(2, 2, 2, 16))
            close(prefix, blocks[:, index, :1])
    for tokens, map_ in zip(take(layout="tokens"), take(), strict=True):
        np.testing.assert_array_equal(tokens, map_.reshape(2, 4, 16))
    features = jax.vmap(model.features)(images)
    ((map_, prefix),) = take([-1], norm=True, prefix_tokens=True)
    close(jnp.concatenate([prefix, map_.reshape(2, 4, 16)], axis=1), features)
    close(take([0], norm=True, layout="tokens")[0], model.norm(blocks[:, 0])[:, 1:])
    for wrong in ([2], [0, -3], 3, 0, -1):
        with pytest.raises(ValueError, match=r"there is no feature|asks for the last"):
            take(wrong)
    with pytest.raises(ValueError, match="layout must be"):
        take(layout="rows")


@slow_but_for("vit", "simple_vit")
def test_attention_maps_are_the_weights(name: str) -> None:
    model, state = ready(name)
    points = model.attention_points(*tiny_size(name))
    if not points:
        with pytest.raises(ValueError, match="no token that attends to all patches: eqx_vit.grad_cam explains"):
            eqx_vit.attention_maps(model, state, images_for(name))
        return
    maps, seen = eqx_vit.attention_maps(model, state, images_for(name)), look(name)[1]
    for map_ in maps:
        sums = jnp.sum(map_, axis=(-2, -1))
        assert map_.shape[0] == 2
        assert jnp.all((sums > 0) & (sums < 1 + 1e-5))
    expected = list[Array]()
    for point in points:
        weights = seen[f"{point.module}.weights"]
        rows = weights[..., 0, :] if point.class_token else weights.mean(axis=-2)
        layers = rows if rows.ndim > 3 else rows[:, None]
        expected += [layers[:, index].reshape(2, -1, rows.shape[-1]) for index in range(layers.shape[1])]
    for map_, rows, point in zip(maps, expected, points * len(maps), strict=False):
        close(map_, rows[..., -map_[0, 0].size :].reshape(map_.shape))
        assert point.prefix == rows.shape[-1] - map_[0, 0].size


@pytest.mark.parametrize("name", ["vit", "simple_vit", "parallel_vit"])
def test_rollout_is_the_product_of_the_mixings(name: str) -> None:
    model, state = ready(name)
    (point,) = model.attention_points(*tiny_size(name))
    rollout, weights = (
        eqx_vit.attention_rollout(model, state, images_for(name)),
        look(name)[1][f"{point.module}.weights"],
    )
    for image in range(2):
        product = identity = np.eye(weights.shape[-1])
        for layer in np.asarray(weights[image]):
            product = (layer.reshape(-1, *identity.shape).mean(axis=0) + identity) / 2 @ product
        row = product[0] if point.class_token else product.mean(axis=0)
        close(rollout[image], row[point.prefix :].reshape(2, 2))


def test_maps_are_enlarged_between_their_centres() -> None:
    enlarged = eqx_vit.resize_maps(jnp.arange(8.0).reshape(2, 2, 2), (2, 4))
    close(enlarged[1], [[4, 4.25, 4.75, 5], [6, 6.25, 6.75, 7]])


def test_grad_cam_is_its_equation() -> None:
    model, state = ready("simple_vit")
    logits, seen = look("simple_vit")
    block = model.blocks[1]

    def score(normed: Array, before: Array, label: Array) -> Array:
        x = before + block.attention(normed)
        return model.head(jnp.mean(model.norm(x + block.mlp(block.norm2(x))), axis=0))[label]

    features = np.asarray(seen["blocks.norm1"][:, 1])
    for classes in (None, 3, [4, 1]):
        labels = jnp.argmax(logits, axis=1) if classes is None else jnp.broadcast_to(jnp.array(classes), (2,))
        slopes = np.asarray(jax.vmap(jax.grad(score))(features, seen["blocks"][:, 0], labels))
        expected = np.maximum((features * slopes.mean(axis=1, keepdims=True)).sum(axis=-1), 0).reshape(2, 2, 2)
        close(eqx_vit.grad_cam(model, state, images_for("simple_vit"), classes), expected)
        assert np.any(expected)


@slow_but_for("vit", "cait", "levit")
def test_grad_cam_finds_evidence_for_some_class(name: str) -> None:
    images = jnp.repeat(images_for(name, batch=1), 5, axis=0)
    maps = np.asarray(eqx_vit.grad_cam(*ready(name), images, range(5)))
    assert np.all(np.isfinite(maps))
    assert np.all(maps >= 0)
    assert len({each.tobytes() for each in maps if np.any(each)}) > 1


def test_what_there_is_not_to_explain_is_refused() -> None:
    model, state = ready("vit")
    images = images_for("vit")
    for classes in (5, -1, [0, 1, 2], [0, 7], 1.5):
        with pytest.raises(ValueError, match=r"classes must be one number for all 2 images or one each, 0 to 4, given"):
            eqx_vit.grad_cam(model, state, images, classes)
    headless = eqx_vit.replace_head(model, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"this ViT has no head \(num_classes=0\)"):
        eqx_vit.grad_cam(headless, state, images)
    for function in (eqx_vit.attention_maps, eqx_vit.attention_rollout):
        with pytest.raises(ValueError, match="LeViT has no token that attends to all patches: eqx_vit.grad_cam"):
            function(*ready("levit"), images_for("levit"))
    with pytest.raises(ValueError, match="the tokens of PiT are not the same in all layers"):
        eqx_vit.attention_rollout(*ready("pit"), images_for("pit"))
    with pytest.raises(ValueError, match="there is no feature 2"):
        eqx_vit.attention_maps(model, state, images, [2])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@slow_but_for("vit")
def test_a_sharded_batch_is_seen_as_any_other(name: str, kind: AxisType) -> None:
    model, state = ready(name)
    images = images_for(name, batch=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    sharded = jax.device_put(images, NamedSharding(mesh, P("data")))
    names = ("*",)
    expected = eqx_vit.observe(model, state, images, names)
    with jax.set_mesh(mesh):
        found = eqx_vit.observe(model, state, sharded, names)
    jax.tree.map(close, found, expected)
    assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(found))
