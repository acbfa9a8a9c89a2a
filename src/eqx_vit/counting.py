"""What a model costs: the multiply-adds of one image, counted in the program that JAX traces."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqx_vit.layers.config import pair
from eqx_vit.paths import is_array
from eqx_vit.surface import build, forward


def multiply_adds(config: Any, image_size: int | tuple[int, int] | None = None) -> int:
    """The multiply-adds of one image's logits in inference: those of matrix products and convolutions, as papers count.

    Nothing is compiled or computed.

    **Arguments:** `image_size` for models that take any size; None: the config's own, or 224.

    **Raises:** `ValueError` for what is no config, or a size that the model cannot take.
    """
    size = pair(image_size or dataclasses.asdict(config).get("image_size") or 224)
    model, state = eqx.filter_eval_shape(build, config, jax.random.key(0))
    arrays, rest = eqx.partition((eqx.nn.inference_mode(model), state), is_array)

    def logits(arrays: Any, images: Any) -> Any:
        model, state = eqx.combine(arrays, rest)
        return forward(model, state, images)[0]

    images = jax.ShapeDtypeStruct((1, *size, config.channels), jnp.float32)
    return multiply_adds_in(jax.make_jaxpr(logits)(arrays, images).jaxpr)


def multiply_adds_in(jaxpr: Any) -> int:
    """The multiply-adds of the matrix products and convolutions in a jaxpr; elementwise work is not counted.

    **Raises:** `ValueError` for a loop of unknown length.
    """
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    """The multiply-adds of one operation, those of the programs inside it included."""
    parameters, shapes = equation.params, [variable.aval.shape for variable in equation.invars]
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            # A product over one element is elementwise.
            summed = math.prod(shapes[0][axis] for axis in contracted)
            return 0 if summed == 1 else math.prod(equation.outvars[0].aval.shape) * summed
        case "conv_general_dilated":
            out_axis = parameters["dimension_numbers"].rhs_spec[0]
            per_output = math.prod(shapes[1]) // shapes[1][out_axis]
            return math.prod(equation.outvars[0].aval.shape) * per_output
        case "while":
            raise ValueError("the program has a loop of unknown length")
        case "cond":
            return max(multiply_adds_in(branch.jaxpr) for branch in parameters["branches"])
        case "scan":
            return parameters["length"] * multiply_adds_in(parameters["jaxpr"].jaxpr)
    inner = [parameters[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in parameters]
    return sum(multiply_adds_in(getattr(program, "jaxpr", program)) for program in inner)
