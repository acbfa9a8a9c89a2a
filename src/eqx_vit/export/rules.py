"""What jax2onnx writes as many small operations, as the one that ONNX has for it; and shapes as constants.

Rules of onnxscript's rewriter: `pattern` is what is looked for, `rewrite` what stands in its place. The numbers stay
the same up to rounding, as the check of what is exported holds them to.
"""

# onnx_ir and onnxscript need not be installed where types are checked; rules are called with what their patterns name.
# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import re

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet, rewrite
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules, materialize_reshape_shape_rule

from eqx_vit.layers.config import no_type_check

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
TO_THE_END = np.iinfo(np.int64).max


@no_type_check
def simplify(model: ir.Model) -> ir.Model:
    """The model with fewer operations, the same function of the same inputs."""
    # Not onnxscript's optimize: to it a small number is zero, and the epsilon of the Performer's attention is lost.
    model = rewrite(model, expand_before_binary_op_rules)
    model = rewrite(model, [materialize_reshape_shape_rule])
    fold_constants(model)
    _fix_slices(model.graph)
    _shrink_constants(model.graph)
    rules = (LinearLayer, Softmax, Gelu, Normalise, Scale, Shift)
    model = rewrite(model, RewriteRuleSet([rule.rule() for rule in rules]))
    tidy = (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    )
    return ir.passes.Sequential(*tidy)(model).model


@no_type_check
def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is not None


@no_type_check
def _constant(value: ir.Value | None) -> np.ndarray:
    """The array that a value of the graph always is."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None, "the value depends on the input"
    return tensor.numpy()


@no_type_check
def _holds(condition: bool) -> MatchResult:
    return MatchResult() if condition else MatchResult().fail("another operation")


@no_type_check
def _is_number(value: ir.Value, number: float) -> bool:
    return _is_constant(value) and _constant(value).size == 1 and bool(np.isclose(_constant(value).item(), number))


@no_type_check
def _fix_slices(graph: ir.Graph) -> None:
    """Slices that take the whole batch, told so by a constant in place of its size."""
    for node in graph:
        ends = node.inputs[2] if node.op_type == "Slice" else None
        concat = None if ends is None else ends.producer()
        if concat is None or concat.op_type != "Concat" or not _is_constant(node.inputs[1]):
            continue
        starts, limits = _constant(node.inputs[1]), concat.inputs
        if all(_is_constant(limit) or start == 0 for limit, start in zip(limits, starts, strict=True)):
            fixed = [_constant(limit).item() if _is_constant(limit) else TO_THE_END for limit in limits]
            _replace_constant(graph, node, 2, np.array(fixed))


@no_type_check
def _shrink_constants(graph: ir.Graph) -> None:
    """A bias that is stored once for every position, as one that is broadcast to them."""
    for node in graph:
        operands = list(node.inputs) if node.op_type in BROADCASTING else []
        for place, (own, other) in enumerate(zip(operands, reversed(operands), strict=True)):
            if not _is_constant(own) or _is_constant(other) or other is None or other.shape is None:
                continue
            small = array = _constant(own)
            if len(other.shape) < array.ndim:
                continue
            for axis, size in zip(
                range(-array.ndim, 0), list(other.shape)[len(other.shape) - array.ndim :], strict=True
            ):
                first = small.take([0], axis)
                small = first if size == small.shape[axis] and (small == first).all() else small
            while small.ndim and small.shape[0] == 1:
                small = small[0]
            if small.ndim < array.ndim:
                _replace_constant(graph, node, place, small)


@no_type_check
def _replace_constant(graph: ir.Graph, node: ir.Node, place: int, array: np.ndarray) -> None:
    name = f"{node.outputs[0].name}_operand_{place}"
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    node.replace_input_with(place, value)


@no_type_check
class LinearLayer(RewriteRuleClassBase):
    """A product with a weight of two axes: MatMul, which runtimes are fastest at, in place of Einsum."""

    def pattern(self, op, x, weight):
        return op.Einsum(x, weight, _allow_other_attributes=True, _outputs=["product"])

    def check(self, context, x, weight, product):
        equation = product.producer().attributes["equation"].as_string()
        self.transposed = re.fullmatch(r"(\w+)(\w),(\w)\2->\1\3", equation) is not None
        straight = re.fullmatch(r"(\w+)(\w),\2(\w)->\1\3", equation) is not None
        return _holds(_is_constant(weight) and (self.transposed or straight))

    def rewrite(self, op, x, weight, product):
        if self.transposed:
            turned = np.ascontiguousarray(_constant(weight).T)
            weight = op.initializer(ir.tensor(turned), name=f"{product.name}_weight")
        return op.MatMul(x, weight)


@no_type_check
class Softmax(RewriteRuleClassBase):
    """`exp(x - max) / sum(exp(x - max))` over one axis."""

    def pattern(self, op, x, least, axes, sum_axes, shape, sum_shape):
        largest = op.Reshape(op.Max(least, op.ReduceMax(x, axes, keepdims=0)), shape, _outputs=["largest"])
        exponentials = op.Exp(op.Sub(x, largest))
        return op.Div(exponentials, op.Reshape(op.ReduceSum(exponentials, sum_axes, keepdims=0), sum_shape))

    def check(self, context, x, least, axes, sum_axes, largest, **_):
        if not _is_constant(axes) or _constant(axes).size != 1 or x.shape is None:
            return _holds(False)
        self.axis = int(_constant(axes).item())
        kept = [1 if at == self.axis else size for at, size in enumerate(x.shape)]
        alike = _is_number(sum_axes, self.axis) and largest.shape is not None and list(largest.shape)[1:] == kept[1:]
        return _holds(alike and self.axis > 0)

    def rewrite(self, op, x, **_):
        return op.Softmax(x, axis=self.axis)


@no_type_check
class Gelu(RewriteRuleClassBase):
    """`x / 2 * (1 + erf(x / sqrt 2))` in the order in which runtimes look for it."""

    def pattern(self, op, x, half, one, root):
        return op.Mul(op.Mul(half, x), op.Add(one, op.Erf(op.Mul(x, root))))

    def check(self, context, x, half, one, root):
        return _holds(_is_number(half, 0.5) and _is_number(one, 1) and _is_number(root, 0.5**0.5))

    def rewrite(self, op, x, half, one, root):
        dtype = _constant(root).dtype
        return op.Mul(
            op.Mul(x, op.Add(op.Erf(op.Div(x, op.Constant(value=ir.tensor(np.array(2**0.5, dtype))))), one)), half
        )


@no_type_check
class Normalise(RewriteRuleClassBase):
    """`(x - mean) / sqrt(variance + eps)` over the last axis: a LayerNormalization whose weights are one."""

    def pattern(self, op, x, axes, square_axes, shape, square_shape, length, square_length, eps, one):
        mean = op.Div(op.Reshape(op.ReduceSum(x, axes, keepdims=0), shape), length)
        centred = op.Sub(x, mean)
        squares = op.ReduceSumSquare(centred, square_axes, keepdims=0)
        variance = op.Div(op.Reshape(squares, square_shape), square_length)
        return op.Mul(centred, op.Div(one, op.Sqrt(op.Add(variance, eps))))

    def check(self, context, x, axes, square_axes, length, square_length, eps, one, **_):
        if x.shape is None or not _is_constant(eps):
            return _holds(False)
        size, last = x.shape[-1], len(x.shape) - 1
        axes_fit = all(_is_number(value, last) for value in (axes, square_axes))
        return _holds(
            axes_fit and all(_is_number(value, size) for value in (length, square_length)) and _is_number(one, 1)
        )

    def rewrite(self, op, x, eps, **_):
        weight = op.initializer(ir.tensor(np.ones(x.shape[-1], dtype=_constant(eps).dtype)), name=f"{x.name}_ones")
        return op.LayerNormalization(x, weight, axis=-1, epsilon=float(_constant(eps).item()))


@no_type_check
class Scale(RewriteRuleClassBase):
    """The weights of a layer norm, in place of ones."""

    def pattern(self, op, x, ones, weight):
        return op.Mul(
            op.LayerNormalization(x, ones, axis=-1, _allow_other_attributes=True, _outputs=["normal"]), weight
        )

    def check(self, context, x, ones, weight, **_):
        alike = _is_constant(weight) and _constant(weight).size == _constant(ones).size
        return _holds(alike and bool((_constant(ones) == 1).all()))

    def rewrite(self, op, x, ones, weight, normal):
        flat = op.initializer(ir.tensor(_constant(weight).reshape(-1)), name=f"{normal.name}_weight")
        return op.LayerNormalization(x, flat, axis=-1, epsilon=normal.producer().attributes["epsilon"].as_float())


@no_type_check
class Shift(RewriteRuleClassBase):
    """The bias of a layer norm."""

    def pattern(self, op, x, weight, bias):
        return op.Add(
            op.LayerNormalization(x, weight, axis=-1, _allow_other_attributes=True, _outputs=["normal"]), bias
        )

    def check(self, context, x, weight, bias, **_):
        return _holds(_is_constant(bias) and _constant(bias).size == _constant(weight).size)

    def rewrite(self, op, x, weight, bias, normal):
        flat = op.initializer(ir.tensor(_constant(bias).reshape(-1)), name=f"{normal.name}_bias")
        epsilon = normal.producer().attributes["epsilon"].as_float()
        return op.LayerNormalization(x, weight, flat, axis=-1, epsilon=epsilon)
