"""Marked values handed out of a function beside its result: through `jit`, `vmap`, `scan`, `remat` and `cond`.

The function is traced, and its operations are run once more, one by one (the recipe of JAX's tutorial on writing an
interpreter of jaxprs). Those that hold a marked value inside are made anew, with that value as one more result.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.marks import mark_p

Leaves = tuple[Array, ...]
Operand = TypeVar("Operand")
Jaxpr: TypeAlias = Any  # what JAX calls them has changed from version to version


class Mark(NamedTuple):
    """A marked value: its name, and how its arrays make up what the module returned."""

    name: str
    structure: Any  # of `jax.tree.structure`


@no_type_check
def lift_marks(
    function: Callable[..., PyTree], *arguments: PyTree, add: Callable[[Sequence[Mark]], list[Leaves | None]]
) -> tuple[PyTree, list[Mark], list[Leaves]]:
    """The result of `function(*arguments)`, the marks in the order of the program, and their values.

    Loops put their axis first. `add` gives, for each mark, what is added to its arrays, or None.
    """
    leaves, structure = jax.tree.flatten(arguments)
    dynamic = [index for index, leaf in enumerate(leaves) if eqx.is_array(leaf)]

    def call(*arrays: Array) -> PyTree:
        whole = list(leaves)
        for index, array in zip(dynamic, arrays, strict=True):
            whole[index] = array
        result, static = eqx.partition(function(*jax.tree.unflatten(structure, whole)), eqx.is_array)
        statics.append(static)
        return result

    statics: list[PyTree] = []
    arrays = [leaves[index] for index in dynamic]
    jaxpr, shape = jax.make_jaxpr(call, return_shape=True)(*arrays)
    marks = list(find_marks(jaxpr))
    results, values = _run(jaxpr, arrays, add(marks))
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(shape), results), statics[-1]), marks, values


@no_type_check
def find_marks(jaxpr: Jaxpr) -> Iterator[Mark]:
    """The marks inside a jaxpr, in the order of its operations; of a choice between backends, those of the default."""
    for eqn in _open(jaxpr).eqns:
        if eqn.primitive is mark_p:
            yield Mark(eqn.params["name"], eqn.params["structure"])
        for inner in _inner(eqn):
            yield from find_marks(inner)


@no_type_check
def _inner(eqn: Any) -> list[Jaxpr]:
    """The jaxprs inside an operation. Of branches that mark the same, one counts for all."""
    if eqn.primitive.name == "cond":
        branches = eqn.params["branches"]
        found = [list(find_marks(branch)) for branch in branches]
        default = find_default_branch(eqn)
        if default is not None:
            return [default]
        if any(other != found[0] for other in found):
            names = sorted({mark.name for marks in found for mark in marks})
            raise ValueError(
                f"{', '.join(names)} cannot be observed: it is computed in one branch of a jax.lax.cond only"
            )
        return [branches[0]]
    parameters = [value if isinstance(value, list | tuple) else (value,) for value in eqn.params.values()]
    return [value for values in parameters for value in values if hasattr(value, "jaxpr") or hasattr(value, "eqns")]


@no_type_check
def find_default_branch(eqn: Any) -> Jaxpr | None:
    """The branch of `jax.lax.platform_dependent` for all other backends; None for an ordinary choice."""
    platforms = eqn.params.get("branches_platforms")
    return eqn.params["branches"][platforms.index(None)] if platforms and None in platforms else None


@no_type_check
def _run(jaxpr: Jaxpr, arguments: Sequence[Array], add: Sequence[Leaves | None]) -> tuple[list[Array], list[Leaves]]:
    """The results of a jaxpr, and the values of the marks inside it, for each of which `add` has an entry."""
    env: dict[Any, Array] = dict(zip(_open(jaxpr).constvars, getattr(jaxpr, "consts", ()), strict=True))
    env |= dict(zip(_open(jaxpr).invars, arguments, strict=True))
    values: list[Leaves] = []

    def read(variable: Any) -> Array:
        return variable.val if isinstance(variable, Literal) else env[variable]

    for eqn in _open(jaxpr).eqns:
        operands = [read(variable) for variable in eqn.invars]
        if eqn.primitive is mark_p:
            given = add[len(values)]
            results = operands if given is None else [x + y for x, y in zip(operands, given, strict=True)]
            values.append(tuple(results))
        else:
            count = sum(len(list(find_marks(inner))) for inner in _inner(eqn))
            run = _run_marked if count else _run_plain
            with eqn.ctx.manager:
                results, inner_values = run(eqn, operands, add[len(values) : len(values) + count])
            values += inner_values
        env |= dict(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in _open(jaxpr).outvars], values


@no_type_check
def _run_plain(eqn: Any, operands: list[Array], _: object) -> tuple[list[Array], list[Leaves]]:
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return (results if eqn.primitive.multiple_results else [results]), []


@no_type_check
def _run_marked(eqn: Any, operands: list[Array], add: Sequence[Leaves | None]) -> tuple[list[Array], list[Leaves]]:
    """An operation with marks inside, made anew."""
    params = eqn.params
    (inner, *more) = _inner(eqn)
    match eqn.primitive.name if not more else "":
        case "jit" | "pjit" | "closed_call":
            return _run(inner, operands, add)
        case "remat2" | "remat" | "checkpoint":
            again = jax.checkpoint(
                functools.partial(_run, inner), prevent_cse=params["prevent_cse"], policy=params["policy"]
            )
            return again(operands, add)
        case "scan":
            return _run_scan(params, inner, operands, add)
        case "cond" if find_default_branch(eqn) is not None:
            # What exists for speed alone may cut a value in chunks: the plain formulation has it whole.
            return _run(inner, operands[1:], add)
        case "cond":
            branches = [functools.partial(_run, branch) for branch in params["branches"]]
            return jax.lax.switch(operands[0], branches, operands[1:], add)
    names = sorted({mark.name for jaxpr in (inner, *more) for mark in find_marks(jaxpr)})
    raise ValueError(
        f"{', '.join(names)} cannot be observed: it is computed inside a JAX operation, {eqn.primitive.name}, that no "
        "value can be taken out of; jit, vmap, scan, map, cond and checkpoint are those that it can"
    )


@no_type_check
def _run_scan(
    params: dict[str, Any], body: Jaxpr, operands: list[Array], add: Sequence[Leaves | None]
) -> tuple[list[Array], list[Leaves]]:
    consts, carry, xs = split_scan_operands(params, operands)

    def step(carry: list[Array], per_step: PyTree) -> tuple[list[Array], PyTree]:
        xs, add = per_step
        results, values = _run(body, [*consts, *carry, *xs], add)
        return results[: len(carry)], (results[len(carry) :], values)

    carry, (ys, values) = jax.lax.scan(
        step, carry, (xs, add), length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *ys], values


@no_type_check
def split_scan_operands(
    params: dict[str, Any], operands: list[Operand]
) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """What each step of a scan is given whole, what it hands on to the next, and what is cut into steps."""
    if "ft_in" in params:  # JAX 0.11 and later
        consts_count, carry_count = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
        consts_count, carry_count = params["num_consts"], params["num_carry"]
    end = consts_count + carry_count
    return operands[:consts_count], operands[consts_count:end], operands[end:]


@no_type_check
def _open(jaxpr: Jaxpr) -> Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)
