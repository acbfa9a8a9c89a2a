"""What a model costs: the multiply-adds of one image, counted in the program that JAX traces."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, PyTree

from eqx_vit.create import build
from eqx_vit.forward import forward
from eqx_vit.layers.config import Size, pair
from eqx_vit.paths import is_array
from eqx_vit.registry import AnyConfig


def multiply_adds(config: AnyConfig, image_size: Size | None = None) -> int:
    """The multiply-adds of one image's logits in inference: those of matrix products and convolutions, as papers count.

    Nothing is compiled or computed.

    **Arguments:** `image_size` for models that take any size; None: the config's own, or 224.

    **Raises:** `ValueError` for what is not a config of this library, or a size that the model cannot take.
    """
    height, width = pair(image_size or getattr(config, "image_size", 224))
    model, state = eqx.filter_eval_shape(build, config, jax.random.key(0))
    arrays, rest = eqx.partition((eqx.nn.inference_mode(model), state), is_array)

    def logits(arrays: PyTree, images: Array) -> Array:
        model, state = eqx.combine(arrays, rest)
        return forward(model, state, images)[0]

    images = jax.ShapeDtypeStruct((1, height, width, config.channels), jnp.float32)
    return multiply_adds_in(jax.make_jaxpr(logits)(arrays, images).jaxpr)


def multiply_adds_in(jaxpr: Jaxpr) -> int:
    """The multiply-adds of the matrix products and convolutions in a jaxpr; elementwise work is not counted.

    **Raises:** `ValueError` for a loop of unknown length.
    """
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    """The multiply-adds of one operation, those of the programs inside it included."""
    parameters = equation.params
    shapes, out_shapes = _shapes(equation.invars), _shapes(equation.outvars)
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            # A product over one element is elementwise.
            summed = math.prod(shapes[0][axis] for axis in contracted)
            return 0 if summed == 1 else math.prod(out_shapes[0]) * summed
        case "conv_general_dilated":
            out_axis = parameters["dimension_numbers"].rhs_spec[0]
            return math.prod(out_shapes[0]) * (math.prod(shapes[1]) // shapes[1][out_axis])
        case "while":
            raise ValueError("the program has a loop of unknown length")
        case "cond":
            return max(multiply_adds_in(branch.jaxpr) for branch in parameters["branches"])
        case "scan":
            return parameters["length"] * multiply_adds_in(parameters["jaxpr"].jaxpr)
    inner = [parameters[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in parameters]
    return sum(multiply_adds_in(getattr(program, "jaxpr", program)) for program in inner)


def _shapes(atoms: Sequence[Var | Literal]) -> list[tuple[int, ...]]:
    return [getattr(atom.aval, "shape", ()) for atom in atoms]
