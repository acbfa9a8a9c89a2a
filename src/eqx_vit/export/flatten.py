"""A traced program as plain operations, one after the other: what other runtimes convert.

Calls are written out, loops run step by step (a stack of blocks becomes separate blocks), of a choice between backends
the default one is taken, the plain formulation, and what depends on no input is computed here. `eqx_vit.inspection`
reads programs in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from eqx_vit.inspection.lifting import find_default_branch, split_scan_operands
from eqx_vit.layers.config import no_type_check

Value = Array | np.ndarray
Form = Callable[..., Array]  # what an operation is written as: called with its operands and parameters

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "remat", "checkpoint")
NOTHING = ("name", "stop_gradient", "optimization_barrier")  # what they do matters to derivatives and compilers alone


@no_type_check
def flatten(program: ClosedJaxpr, forms: Mapping[str, Form]) -> ClosedJaxpr:
    """The program without calls, loops and choices; `forms` are other ways to write operations, by primitive."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    return jax.make_jaxpr(lambda *inputs: _run(program.jaxpr, program.consts, inputs, forms))(*shapes)


@no_type_check
def _run(jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value], forms: Mapping[str, Form]) -> list[Value]:
    """The results of a program for these inputs."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _run_equation(equation, [read(variable) for variable in equation.invars], forms)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


@no_type_check
def _run_equation(equation: JaxprEqn, operands: list[Value], forms: Mapping[str, Form]) -> Sequence[Value]:
    name, parameters = equation.primitive.name, equation.params
    if name in NOTHING:
        return operands
    if name == "platform_index":
        return [np.zeros((), np.int32)]  # the choice that it is for is made below
    if name in CALLS:
        inner = next(parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters)
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands, forms)
    if name == "cond":
        branch = find_default_branch(equation)
        if branch is None and not isinstance(operands[0], Tracer):
            branch = parameters["branches"][int(operands[0])]
        if branch is not None:
            return _run(branch.jaxpr, branch.consts, operands[1:], forms)
    if name == "scan":
        return _run_scan(parameters, operands, forms)
    if _is_known(equation, operands):
        with jax.ensure_compile_time_eval():
            return _bind(equation, operands)
    return [forms[name](*operands, **parameters)] if name in forms else _bind(equation, operands)


@no_type_check
def _bind(equation: JaxprEqn, operands: list[Value]) -> Sequence[Array]:
    primitive = equation.primitive
    results = primitive.bind(*map(jnp.asarray, operands), **primitive.get_bind_params(equation.params))
    return results if primitive.multiple_results else [results]


@no_type_check
def _run_scan(parameters: dict[str, Any], operands: list[Value], forms: Mapping[str, Form]) -> list[Value]:
    consts, carry, rows = split_scan_operands(parameters, operands)
    body, results = parameters["jaxpr"], []
    steps = range(parameters["length"])
    for step in reversed(steps) if parameters["reverse"] else steps:
        own = [row[step] if isinstance(row, Tracer) else np.asarray(row)[step] for row in rows]
        found = _run(body.jaxpr, body.consts, [*consts, *carry, *own], forms)
        carry = found[: len(carry)]
        results.append(found[len(carry) :])
    if parameters["reverse"]:
        results.reverse()
    return [*carry, *(jnp.stack(values) for values in zip(*results, strict=True))]


@no_type_check
def _shape(variable: Var) -> Sequence[Any]:
    return getattr(variable.aval, "shape", ())


@no_type_check
def _is_known(equation: JaxprEqn, operands: list[Value]) -> bool:
    """Whether the results of an operation depend on no input, the size of the batch included."""
    sizes = [size for variable in equation.outvars for size in _shape(variable)]
    return not any(isinstance(operand, Tracer) for operand in operands) and all(isinstance(size, int) for size in sizes)
