"""The layers where they promise more than the golden files show."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import Array
from jax.extend.core import jaxprs_in_params

from eqx_vit.layers import (
    BATCH_AXIS,
    MLP,
    Attention,
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    Linear,
    PeriodicStack,
    Stack,
    attend,
    convolve,
    from_windows,
    kernels,
    max_pool,
    patchify,
    relative_position_index,
    to_windows,
)
from eqx_vit.layers.init import normal, truncated_normal


class Doubling(eqx.nn.StatefulLayer):
    """A block with BatchNorm: what a stack of stateful blocks is tested with."""

    norm: BatchNorm
    linear: Linear

    def __init__(self, key: Any) -> None:
        self.norm = BatchNorm(4)
        self.linear = Linear(4, 4, key=key)

    def __call__(self, x: Any, state: Any, scale: Any, *, key: Any = None) -> Any:
        x, state = self.norm(x + self.linear(x) * scale, state)
        return x, state


def test_stack_equals_the_loop_over_its_blocks() -> None:
    stack = Stack.build(lambda key: MLP(6, 9, key=key), 4, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 6))
    expected = x
    for block in stack:
        expected = block(expected)
    unrolled, remat = Stack(stack.block, 4, unroll=True), Stack(stack.block, 4, remat=True)
    assert "unroll=1\n" in str(jax.make_jaxpr(stack)(x))
    assert "unroll=4\n" in str(jax.make_jaxpr(unrolled)(x))
    variants = [stack, unrolled, remat, Stack.from_blocks([*stack])]
    for variant in variants:
        np.testing.assert_allclose(variant(x), expected, rtol=1e-6, atol=1e-7)
        gradient = jax.grad(lambda x, variant=variant: jnp.sum(variant(x) ** 2))(x)
        np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.sum(stack(x) ** 2))(x), rtol=1e-5, atol=1e-7)


def test_stack_is_a_sequence() -> None:
    stack = Stack.build(lambda key: Linear(3, 3, key=key), 3, key=jax.random.key(0))
    assert len(stack) == len(list(stack)) == 3
    np.testing.assert_array_equal(stack[-1].weight, stack.block.weight[2])
    with pytest.raises(IndexError):
        stack[3]
    with pytest.raises(ValueError, match="block 1 differs from block 0"):
        Stack.from_blocks([Linear(3, 3, key=jax.random.key(0)), Linear(3, 4, key=jax.random.key(0))])
    with pytest.raises(ValueError, match="given none"):
        Stack.from_blocks([])


def test_a_stack_may_be_empty() -> None:
    stack = Stack.build(lambda key: MLP(6, 9, key=key), 0, key=jax.random.key(0))
    x = jnp.ones((5, 6))
    np.testing.assert_array_equal(stack(x), x)
    assert list(stack) == []


class Scaling(eqx.Module):
    """A block of which some have a bias."""

    linear: Linear
    dropout: Dropout

    def __init__(self, use_bias: bool, *, key: Any) -> None:
        self.linear = Linear(6, 6, use_bias=use_bias, weight_init=normal(1.0), bias_init=normal(1.0), key=key)
        self.dropout = Dropout(0.5)

    def __call__(self, x: Any, scale: Any, *, key: Any = None) -> Any:
        return x + self.dropout(jnp.tanh(self.linear(x)) * scale, key=key)


def make_alternating(index: int, *, key: Any) -> Scaling:
    return Scaling(index % 3 == 1, key=key)


@pytest.mark.parametrize(("depth", "count"), [(8, None), (6, None), (9, 1), (4, 0), (2, None), (0, None)])
def test_periodic_stack_equals_the_loop_over_its_blocks(depth: int, count: int | None) -> None:
    stack = PeriodicStack.build(make_alternating, depth, 3, count=count, key=jax.random.key(0))
    blocks, whole = [*stack], depth // 3 if count is None else count
    assert len(stack) == len(blocks) == depth
    assert (0 if stack.periods is None else len(stack.periods)) == whole
    assert [block.linear.bias is not None for block in blocks] == [index % 3 == 1 for index in range(depth)]
    weights = [block.linear.weight.tobytes() for block in blocks]
    assert len(set(weights)) == depth, "blocks that start equal"
    x, scales = jax.random.normal(jax.random.key(1), (5, 6)), jnp.linspace(0.1, 1.0, depth)

    def loop(blocks: list[Scaling], x: jax.Array) -> jax.Array:
        for block, scale in zip(blocks, scales, strict=True):
            x = block(x, scale)
        return x

    frozen = eqx.nn.inference_mode(stack)
    assert str(jax.make_jaxpr(lambda x: frozen(x, xs=(scales,)))(x)).count(" scan[") == (whole > 0)
    np.testing.assert_allclose(frozen(x, xs=(scales,)), loop([*frozen], x), rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(frozen(x, xs=(scales,)) ** 2))(x)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.sum(loop([*frozen], x) ** 2))(x), rtol=1e-4, atol=1e-5)


def test_periodic_stack_gives_every_block_a_key_of_its_own() -> None:
    stack = PeriodicStack.build(make_alternating, 8, 3, key=jax.random.key(0))
    kept = []
    for index in range(8):
        scales = jnp.zeros(8).at[index].set(1.0)  # every other block leaves x as it is
        out = stack(jnp.ones((5, 6)), xs=(scales,), key=jax.random.key(1))
        kept.append(np.asarray(out != 1).tobytes())
    assert len(set(kept)) == 8
    with pytest.raises(ValueError, match="got no key"):
        stack(jnp.ones((5, 6)), xs=(jnp.ones(8),))


def test_periodic_stack_is_a_sequence() -> None:
    stack = PeriodicStack.build(make_alternating, 8, 3, key=jax.random.key(0))
    assert eqx.tree_equal(stack[-1], stack.rest[1])
    assert eqx.tree_equal(stack[4], stack[-4])
    with pytest.raises(IndexError):
        stack[8]


def test_stack_compiles_once_when_called_eagerly() -> None:
    traces = []

    class Counting(eqx.Module):
        weight: jax.Array

        def __call__(self, x: Any, *, key: Any = None) -> Any:
            traces.append(x)
            return x * self.weight

    stack = Stack.build(lambda key: Counting(jax.random.normal(key)), 3, key=jax.random.key(0))
    for _ in range(3):
        stack(jnp.ones(()))
    assert len(traces) == 1


def test_stack_threads_state_through_its_blocks() -> None:
    stack, state = eqx.nn.make_with_state(Stack.build)(Doubling, 3, key=jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (7, 2, 4))
    scales = jnp.array([1.0, 0.5, 2.0])

    def batched(call: Any) -> Any:
        return jax.vmap(call, in_axes=(0, None), out_axes=(0, None), axis_name=BATCH_AXIS)

    scanned, after = batched(lambda x, state: stack.with_state(x, state, xs=(scales,)))(images, state)
    expected, statistics = images, []
    for index, block in enumerate(stack):
        call = batched(lambda x, state, block=block, index=index: block(x, state, scales[index]))
        expected, block_state = call(expected, stack.state_at(state, index))
        statistics.append(block_state.get(block.norm.statistics))
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-6)
    for index in range(3):
        found = stack.state_at(after, index).get(stack[index].norm.statistics)
        np.testing.assert_allclose(found, statistics[index], rtol=1e-5, atol=1e-6)


def test_batch_norm_is_pytorch_s() -> None:
    norm, state = eqx.nn.make_with_state(BatchNorm)(3)
    images = 2 + 3 * jax.random.normal(jax.random.key(0), (4, 5, 3))
    call = jax.vmap(norm, in_axes=(0, None), out_axes=(0, None), axis_name=BATCH_AXIS)
    normal, after = call(images, state)
    flat = np.asarray(images).reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(normal.reshape(-1, 3), expected, atol=1e-5)
    mean, variance = after.get(norm.statistics)
    np.testing.assert_allclose(mean, 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    frozen, unchanged = eqx.nn.inference_mode(norm)(images[0], after)
    expected = (images[0] - jnp.broadcast_to(mean, (5, 3))) / jnp.sqrt(jnp.broadcast_to(variance, (5, 3)) + 1e-5)
    np.testing.assert_allclose(frozen, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(unchanged.get(norm.statistics), (mean, variance))


def test_batch_norm_has_the_derivatives_of_its_formula() -> None:
    norm, state = eqx.nn.make_with_state(BatchNorm)(3)
    images, direction, weights = jax.random.normal(jax.random.key(0), (3, 4, 5, 3))
    weight, bias = jnp.arange(1.0, 4.0), jnp.ones(3)

    def ours(images: Any, weight: Any, bias: Any) -> Any:
        layer = eqx.tree_at(lambda norm: (norm.weight, norm.bias), norm, (weight, bias))
        call = jax.vmap(layer, in_axes=(0, None), out_axes=(0, None), axis_name=BATCH_AXIS)
        return jnp.sum(weights * jnp.sin(call(images, state)[0]))

    def formula(images: Any, weight: Any, bias: Any) -> Any:
        flat = images.reshape(-1, 3)
        mean, variance = jnp.mean(flat, axis=0, keepdims=True), jnp.var(flat, axis=0, keepdims=True)
        normal = (flat - mean) / jnp.sqrt(variance + 1e-5) * weight[None] + bias[None]
        return jnp.sum(weights * jnp.sin(normal).reshape(images.shape))

    def both_orders(function: Any) -> Any:
        gradient = jax.grad(function, argnums=(0, 1, 2))
        return jax.jvp(lambda images: gradient(images, weight, bias), (images,), (direction,))

    for found, expected in zip(*map(jax.tree.leaves, map(both_orders, (ours, formula))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_float32_statistics_in_bfloat16() -> None:
    norm, state = eqx.nn.make_with_state(BatchNorm)(3)
    norm = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, norm)
    images = (100 + jax.random.normal(jax.random.key(0), (64, 3))).astype(jnp.bfloat16)
    call = jax.vmap(norm, in_axes=(0, None), out_axes=(0, None), axis_name=BATCH_AXIS)
    normal, after = call(images, state)
    assert normal.dtype == jnp.bfloat16
    mean, _ = after.get(norm.statistics)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.1 * np.asarray(images, np.float32).mean(0), rtol=1e-5)


def test_dropout_keeps_the_mean() -> None:
    x = jnp.ones(20_000)
    dropped = Dropout(0.25)(x, key=jax.random.key(0))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.isclose(np.mean(dropped), 1, atol=0.02)
    odd = Dropout(0.1)(jnp.ones((100, 3, 67)), key=jax.random.key(1))
    assert np.all(np.isclose(np.mean(odd == 0, axis=0), 0.1, atol=0.13))
    assert np.isclose(np.mean(odd), 1, atol=0.01)
    assert Dropout(1 - 1e-9)(jnp.ones(()), key=jax.random.key(1)).shape == ()
    np.testing.assert_array_equal(eqx.nn.inference_mode(Dropout(0.25))(x), x)
    with pytest.raises(ValueError, match=r"Dropout with rate 0\.25 is in training mode and got no key"):
        Dropout(0.25)(x)


def test_drop_path_drops_whole_branches() -> None:
    keys = jax.random.split(jax.random.key(0), 10_000)
    dropped = jax.vmap(lambda key: DropPath(0.5)(jnp.ones(2), 0.5, key=key))(keys)
    assert np.isclose(np.mean(dropped), 1, atol=0.02)
    assert np.isclose(np.mean(dropped == 0), 0.25, atol=0.02)
    np.testing.assert_array_equal(dropped[:, 0], dropped[:, 1])


def test_attend_against_the_formula() -> None:
    shapes = [(3, 2, 4), (5, 2, 4), (5, 2, 6)]
    query, key, value = (jax.random.normal(jax.random.key(index), shape) for index, shape in enumerate(shapes))
    bias = jax.random.normal(jax.random.key(9), (2, 3, 5))
    mask = jnp.broadcast_to(jnp.array([[[True, True, False, True, False]]]), (1, 3, 5))
    found = attend(query, key, value, bias=bias, mask=mask)
    scores = np.einsum("qhd,khd->hqk", query, key) / 2 + bias
    weights = np.where(mask, np.exp(scores - scores.max()), 0)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("hqk,khd->qhd", weights, value), rtol=1e-5, atol=1e-6)


# Functions whose CPU form differs from the plain one, and the shapes of their arguments.
KERNELS: dict[str, tuple[Callable[..., Array], list[tuple[int, ...]]]] = {
    "softmax": (kernels.softmax, [(2, 3, 5)]),
    "per_image": (lambda bias, x: x * jnp.broadcast_to(kernels.per_image(bias, x), x.shape), [(3, 5), (3, 5)]),
    "attend": (functools.partial(attend, max_scores=0), [(140, 3, 4), (9, 3, 4), (9, 3, 4)]),
    "attend, wider values": (functools.partial(attend, max_scores=0), [(140, 3, 4), (9, 3, 4), (9, 3, 5)]),
    "attend, bias": (
        lambda query, key, value, bias: attend(query, key, value, bias=bias, scale=0.3, max_scores=0),
        [(140, 3, 4), (9, 3, 4), (9, 3, 4), (1, 140, 9)],
    ),
    "attend, mask": (
        lambda query, key, value, noise: attend(query, key, value, mask=noise > -0.5, max_scores=0),
        [(140, 3, 4), (9, 3, 4), (9, 3, 4), (3, 140, 9)],
    ),
    "map_queries without default": (
        lambda query, key: kernels.map_queries(
            lambda query, bias, mask, _: attend(query, key, key), query, None, None, None, default=None
        ),
        [(140, 3, 4), (9, 3, 4)],
    ),
    "map_rows": (lambda x, w: kernels.map_rows(lambda x, _: jnp.sin(x) @ w, x, None, 4), [(7, 5, 3), (3, 3)]),
    "map_windows": (lambda x, w: kernels.map_windows(lambda x, _: jnp.sin(x) @ w, x, None), [(6, 5, 3), (3, 3)]),
    "depthwise": (
        functools.partial(convolve, stride=(2, 1), padding=((1, 0), (2, 2)), groups=4),
        [(7, 8, 4), (8, 1, 3, 5)],
    ),
    "depthwise, stride of the kernel": (
        functools.partial(convolve, stride=(2, 3), groups=4),
        [(5, 7, 4), (8, 1, 2, 3)],
    ),
    "max_pool": (lambda x: kernels.max_pool(x, 3, 2, (0, 1)), [(6, 8, 3)]),
    "scale_about_mean": (kernels.scale_about_mean, [(5, 4, 3), (3,), (3,), (3,)]),
    "mean_square_about": (lambda x: kernels.mean_square_about(x, jnp.mean(x, axis=(0, 1))), [(5, 4, 3)]),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_the_plain_formulation(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, gradients and tangents of the gradients, which show custom derivatives, of one image and of a batch."""
    monkeypatch.setattr(kernels, "MAX_HIDDEN", 16)
    function, shapes = KERNELS[kernel]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(key, (2, *shape)) for key, shape in zip(keys, shapes, strict=True)]
    used = []

    def results(choice: str) -> Any:
        def choose(*operands: Any, **branches: Callable[..., Any]) -> Any:
            used.append(choice)
            return branches[choice](*operands)

        monkeypatch.setattr(kernels, "choose_by_backend", choose)
        batched = jax.vmap(lambda *arrays: function(*arrays))
        gradient = jax.grad(lambda arrays: jnp.sum(jnp.sin(batched(*arrays))))
        return jax.jit(lambda: (batched(*arrays), jax.jvp(gradient, (arrays,), (arrays,))))()

    cpu, default = jax.tree.leaves(results("cpu")), jax.tree.leaves(results("default"))
    assert set(used) == {"cpu", "default"}
    for one, other in zip(cpu, default, strict=True):
        assert np.all(np.isfinite(one))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_backend_gets_its_own_branch_when_lowering() -> None:
    choose = jax.jit(lambda x: kernels.choose_by_backend(x, cpu=jnp.sin, default=jnp.cos))
    for platform, present, absent in (("cpu", "sine", "cosine"), ("cuda", "cosine", "sine"), ("tpu", "cosine", "sine")):
        text = jax.export.export(choose, platforms=[platform])(jnp.ones(3)).mlir_module()
        assert f"stablehlo.{present}" in text
        assert f"stablehlo.{absent}" not in text


def test_a_cpu_maps_chunks() -> None:
    """On this machine's CPU, by `attend` itself: a loop, and the numbers of all queries at once."""
    query, key, value = (jax.random.normal(jax.random.key(n), (n, 3, 4)) for n in (70, 9, 9))
    chunked = functools.partial(attend, max_scores=0)
    assert "scan" in str(jax.make_jaxpr(chunked)(query, key, value))
    np.testing.assert_allclose(jax.jit(chunked)(query, key, value), attend(query, key, value), atol=1e-5)


def test_mlp_in_chunks_draws_a_dropout_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MAX_HIDDEN", 16)
    mlp = MLP(3, 4, dropout=0.5, key=jax.random.key(0))
    out = mlp(jnp.ones((40, 3)), key=jax.random.key(1))
    first, second = out[:4], out[4:8]
    assert not jnp.array_equal(first, second)


def test_attention_in_chunks_draws_a_dropout_for_each() -> None:
    ones = jnp.ones((256, 1, 1))
    attended = attend(ones, ones, ones, dropout=Dropout(0.5), dropout_key=jax.random.key(0), max_scores=0)
    assert len(np.unique(attended[:128])) > 1
    assert not np.array_equal(attended[:128], attended[128:])
    assert abs(float(jnp.mean(attended)) - 1) < 0.05


def test_truncated_normals_have_no_outliers() -> None:
    """Cut at -2, far out, one draw in 2 ** 23 of `jax.random.truncated_normal` is the cut itself."""
    assert np.abs(truncated_normal(0.02)(jax.random.key(0), (2**25,))).max() < 0.12


def test_a_stack_saves_products_and_no_activation() -> None:
    """The arrays that the scan of a gradient stacks for the backward pass: of hidden width only the product."""
    stack = Stack.build(lambda key: MLP(5, 7, key=key), 3, key=jax.random.key(0))
    step = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(stack(x))))(jnp.ones((2, 5)))
    (forward, *_) = [equation for equation in _equations(step.jaxpr) if equation.primitive.name == "scan"]
    kept = [variable.aval.shape for variable in forward.outvars if variable.aval.ndim == 3]
    assert kept.count((3, 2, 7)) == 1, kept


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_attention_says_by_axis_name_what_is_wrong() -> None:
    attention = Attention(8, 2, key=jax.random.key(0))
    with pytest.raises(Exception, match="'tokens dim'"):
        attention(jnp.ones((2, 3, 8)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_against_the_sum_over_its_window(groups: int, stride: int) -> None:
    conv = Conv(4, 8, (3, 2), stride=stride, padding=((1, 1), (0, 1)), groups=groups, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 5, 4))
    padded = np.pad(x, ((1, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), axis=(0, 1))[::stride, ::stride]
    grouped = windows.reshape(*windows.shape[:2], groups, 4 // groups, 3, 2)
    weight = np.asarray(conv.weight).reshape(groups, 8 // groups, 4 // groups, 3, 2)
    expected = np.einsum("xygihw,goihw->xygo", grouped, weight).reshape(*windows.shape[:2], 8) + np.asarray(conv.bias)
    np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-5)


def convolved_by_xla(x: Any, weight: Any, stride: tuple[int, int], padding: Any, groups: int) -> Any:
    return jax.lax.conv_general_dilated(
        x[None], weight, stride, padding, dimension_numbers=("NHWC", "OIHW", "NHWC"), feature_group_count=groups
    )[0]


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    kernel=st.sampled_from([(1, 1), (2, 2), (3, 3), (3, 5), (4, 4), (8, 7)]),
    stride=st.sampled_from([(1, 1), (2, 2), (4, 4), (2, 3)]),
    padding=st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 2), (3, 1))]),
    filters=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
)
def test_convolution_and_its_gradients_are_those_of_xla(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: Any, filters: int, groups: int
) -> None:
    random = np.random.RandomState(0)
    x = jnp.asarray(random.standard_normal((8, *size, 4)), jnp.float32)
    weight = jnp.asarray(random.standard_normal((4 * filters, 4 // groups, *kernel)), jnp.float32)

    def summed(function: Any, x: Any, weight: Any) -> Any:
        y = jax.vmap(lambda x: function(x, weight))(x)
        return jnp.sum(jnp.sin(y)), y

    ours = functools.partial(convolve, stride=stride, padding=padding, groups=groups)
    theirs = functools.partial(convolved_by_xla, stride=stride, padding=padding, groups=groups)
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(summed, function), argnums=(0, 1), has_aux=True))(x, weight)
        for function in (ours, theirs)
    )
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_depthwise_tangent_is_that_of_xla() -> None:
    x, weight = (
        jax.random.normal(jax.random.key(0), (2, 7, 8, 4)),
        jax.random.normal(jax.random.key(1), (2, 4, 1, 3, 5)),
    )
    stride, padding = (2, 1), ((1, 0), (2, 2))
    ours = functools.partial(convolve, stride=stride, padding=padding, groups=4)
    theirs = functools.partial(convolved_by_xla, stride=stride, padding=padding, groups=4)
    found, expected = (jax.jvp(function, (x[0], weight[0]), (x[1], weight[1])) for function in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3])
def test_depthwise_sums_run_in_float32_and_come_back_in_bfloat16(kernel: int) -> None:
    random = np.random.RandomState(0)
    x = jnp.asarray(random.standard_normal((6, 6, 4)), jnp.bfloat16)
    weight = jnp.asarray(random.standard_normal((4, 1, kernel, kernel)), jnp.bfloat16)
    y = convolve(x, weight, stride=(2, 2), groups=4)
    assert y.dtype == jnp.bfloat16
    exact = convolved_by_xla(x.astype(jnp.float32), weight.astype(jnp.float32), (2, 2), ((0, 0), (0, 0)), 4)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("padding", [(0, 1), (1, 1)])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_max_pool_is_that_of_xla(padding: tuple[int, int], size: tuple[int, int]) -> None:
    x = jax.random.normal(jax.random.key(0), (*size, 3))
    around = (padding, padding, (0, 0))
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), around)
    np.testing.assert_array_equal(max_pool(x, 3, 2, padding), expected)


def test_windows_and_patches_come_back() -> None:
    x = jax.random.normal(jax.random.key(0), (6, 8, 3))
    windows = to_windows(x, (2, 4))
    assert windows.shape == (6, 8, 3)
    np.testing.assert_array_equal(windows[1].reshape(2, 4, 3), x[:2, 4:])
    np.testing.assert_array_equal(from_windows(windows, (2, 4), (6, 8)), x)
    np.testing.assert_array_equal(patchify(x, (2, 4))[0, 1], x[:2, 4:].reshape(-1))


def test_relative_positions_count_from_the_upper_left_corner() -> None:
    index = relative_position_index(2, 3)
    assert index[0, 0] == 7  # offset (0, 0) is the middle of a 3 x 5 table
    assert index[5, 0] == 14  # one row down, two columns right: the last
    assert index[0, 5] == 0
