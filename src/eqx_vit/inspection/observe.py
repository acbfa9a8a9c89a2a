"""Any value of any model: what its modules return, and the weights of their attention."""

import difflib
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.arguments import check_argument
from eqx_vit.create import make_skeleton
from eqx_vit.forward import Images, check_batch, run_batch
from eqx_vit.inputs import image_size_of, parameter_dtype
from eqx_vit.inspection.lifting import Leaves, Mark, lift_marks
from eqx_vit.inspection.naming import gather_asked, mark_modules, match_names, named_modules
from eqx_vit.layers.config import Size, no_type_check, pair
from eqx_vit.layers.unstacked import restack
from eqx_vit.model import ImageModel
from eqx_vit.registry import AnyModel

Seen = dict[str, PyTree[Array]]


@no_type_check
def observe(
    model: AnyModel,
    state: State,
    images: Images,
    names: Sequence[str] | str,
    key: PRNGKeyArray | None = None,
    *,
    perturbations: Mapping[str, PyTree[Array]] | None = None,
) -> tuple[Float[Array, "batch classes"], Seen]:
    """The logits of `eqx_vit.forward`, and values from inside the model, by name. Compiled; it may be differentiated.

    A name is the path of a module in the model, and its value what the module returns: `"blocks.mlp"`, `"stages.1"`,
    `"patch_embedding"`. With `.weights` after the path of an attention it is the attention's weights after the
    softmax, of (heads, queries, keys); with `.weights[class]` their first row, of (heads, keys), which is that of the
    class token where a model has one, at a cost that grows with the tokens alone. `*` stands for any part of names.
    `observable(model)` lists them.

    The first axis of a value is the batch; then the depth, where blocks are stacked; then, inside windows, those. What
    a module of BatchNorm returns beside its state is its value; a module that is called several times has a tuple.

    **Arguments:** `state` as `create` returned it; `images` of (batch, height, width, channels); `names`: one or
    several; `key` for active dropout; `perturbations`: arrays to add to values, by name, each of its value's shape: by
    zeros, gradients with respect to what is seen are taken.

    **Raises:** `ValueError` for a name that the model lacks, with the nearest ones, and whatever `forward` raises.
    """
    check_batch(model, state, images, key)
    check_argument("observe", "names", names, str | Sequence[str])
    check_argument("observe", "perturbations", perturbations, Mapping[str, object] | None)
    asked = (names,) if isinstance(names, str) else tuple(names)
    patterns = [name for name in perturbations or {} if "*" in name]
    if patterns:
        raise ValueError(f"perturbations are added to values by their whole names, given {patterns[0]!r}")
    return _observe(model, state, images, asked, key, dict(perturbations or {}))


@no_type_check
def observable(
    model: AnyModel, state: State | None = None, image_size: Size | None = None
) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    """The names that `observe` takes, with the shapes of their values for one image. Nothing is computed.

    **Arguments:** `state` as `create` returned it, needed where BatchNorm was exchanged or added; `image_size`: of the
    image, in pixels, by default the config's, and 224 for models that take any size.
    """
    check_argument("observable", "model", model, ImageModel)
    check_argument("observable", "state", state, State | None)
    check_argument("observable", "image_size", image_size, Size | None)
    height, width = image_size_of(model.config) if image_size is None else pair(image_size)
    image = jax.ShapeDtypeStruct((height, width, model.config.channels), parameter_dtype(model))
    return _list_names(restack(model), make_skeleton(model.config)[1] if state is None else state, image)


# Jitted here, so that a call that is repeated is traced once.
@eqx.filter_jit
@no_type_check
def _observe(
    model: AnyModel,
    state: State,
    images: Images,
    names: tuple[str, ...],
    key: PRNGKeyArray | None,
    perturbations: dict[str, PyTree[Array]],
) -> tuple[Float[Array, "batch classes"], Seen]:
    model = restack(model)  # names and shapes are those of the stacks
    matches = match_names((*names, *perturbations), [name for name, _ in named_modules(model)])
    marked = mark_modules(model, gather_asked(name for found in matches.values() for name in found))

    def run(marked: AnyModel, *arguments: PyTree, key: PRNGKeyArray | None) -> PyTree[Array]:
        result, seen = _run_marked(marked, arguments[:-1], arguments[-1], key)
        return ((result[0], seen), result[1]) if isinstance(result, tuple) else (result, seen)

    (logits, seen), _ = run_batch(marked, run, state, images, key, perturbations)
    for name, found in matches.items():
        if not any(match in seen for match in found):
            known = _list_names(model, state, jax.ShapeDtypeStruct(images.shape[1:], parameter_dtype(model)))
            raise ValueError(_describe_unknown(name, model, list(known)))
    wanted = {match for name in names for match in matches[name]}
    return logits, {name: value for name, value in seen.items() if name in wanted}


@no_type_check
def _run_marked(
    marked: AnyModel, arguments: Sequence[PyTree], perturbations: Mapping[str, PyTree[Array]], key: PRNGKeyArray | None
) -> tuple[PyTree, Seen]:
    """The result of a marked model, and the values that it marks."""

    def add(marks: Sequence[Mark]) -> list[Leaves | None]:
        left = {name: jax.tree.leaves(tree) for name, tree in perturbations.items()}
        return [
            tuple(left[name].pop(0) for _ in range(structure.num_leaves)) if name in left else None
            for name, structure in marks
        ]

    def call(marked: AnyModel, arguments: Sequence[PyTree], key: PRNGKeyArray | None) -> PyTree:
        return marked(*arguments, key=key)

    result, marks, values = lift_marks(call, marked, arguments, key, add=add)
    calls: dict[str, list[PyTree]] = {}
    for mark, leaves in zip(marks, values, strict=True):
        calls.setdefault(mark.name, []).append(jax.tree.unflatten(mark.structure, leaves))
    return result, {name: outputs[0] if len(outputs) == 1 else tuple(outputs) for name, outputs in calls.items()}


@no_type_check
def _list_names(model: AnyModel, state: State, image: jax.ShapeDtypeStruct) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    matches = match_names("*", [name for name, _ in named_modules(model)])
    marked = mark_modules(eqx.nn.inference_mode(model), gather_asked(matches["*"]))
    arguments = (image, state) if isinstance(model, eqx.nn.StatefulLayer) else (image,)
    return eqx.filter_eval_shape(
        lambda *arguments: _run_marked(arguments[0], arguments[1:], {}, None)[1], marked, *arguments
    )


@no_type_check
def _describe_unknown(name: str, model: AnyModel, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return (
        f"{type(model).__name__} has nothing to observe called {name!r}: did you mean {' or '.join(near) or known[0]}? "
        "eqx_vit.observable(model) lists all names"
    )
