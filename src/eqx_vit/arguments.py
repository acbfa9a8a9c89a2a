"""Arguments of the wrong kind, refused by public functions in one sentence."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype.door import is_bearable

from eqx_vit.layers.config import describe_type, no_type_check, shorten

Function = TypeVar("Function", bound=Callable[..., object])
_VARIABLE = inspect.Parameter.VAR_KEYWORD
EXPECTED = {
    "config": "the name of a preset or a config of this library",
    "key": "one random key such as jax.random.key(0)",
    "model": "a model of this library, as eqx_vit.create returns it",
    "state": "the state that eqx_vit.create returned beside the model",
}


def check_arguments(function: Function) -> Function:
    """The function, which raises `ValueError` for an argument that is not of its annotated type.

    The import hook refuses it too, but with a page that shows all arrays: this is for what users call.
    """
    signature = inspect.signature(function)
    hints = {
        name: parameter.annotation for name, parameter in signature.parameters.items() if parameter.kind != _VARIABLE
    }

    @no_type_check
    @functools.wraps(function)
    def checked(*arguments: object, **keywords: object) -> object:
        for name, value in signature.bind(*arguments, **keywords).arguments.items():
            if name in hints:
                check_argument(function.__name__, name, value, hints[name])
        return function(*arguments, **keywords)

    return typing.cast(Function, checked)


@no_type_check
def check_argument(function: str, name: str, value: object, hint: Any) -> None:
    """Raise `ValueError` that names the function, the argument, what is expected and what was given."""
    if not is_bearable(value, hint):
        expected = EXPECTED.get(name) or f"of type {describe_type(hint)}"
        raise ValueError(f"{function}: {name} must be {expected}, given {shorten(value)} ({type(value).__name__})")
