"""All contracts, in the order of their cost."""

from collections.abc import Callable
from typing import TypeAlias

from eqx_vit.layers.config import Size, no_type_check
from eqx_vit.registry import AnyConfig
from eqx_vit.testing.calls import check_inference, check_numpy_images, check_shapes, check_wrong_images
from eqx_vit.testing.configs import check_config_json, check_wrong_configs
from eqx_vit.testing.numbers import (
    check_batches,
    check_bfloat16,
    check_head_swap,
    check_initialisation,
    check_observe,
    check_save_and_load,
    check_transform,
)
from eqx_vit.testing.random_sizes import check_image_sizes
from eqx_vit.testing.training import (
    check_differentiable,
    check_dropout,
    check_gradients,
    check_training,
    check_weight_decay,
)

Contract: TypeAlias = Callable[[AnyConfig, Size | None], None]
# These trace the model; the last two also make one, and compile its initialisation.
TRACED: tuple[Contract, ...] = (
    check_config_json,
    check_wrong_configs,
    check_wrong_images,
    check_weight_decay,
    check_shapes,
    check_numpy_images,
    check_dropout,
    check_inference,
    check_differentiable,
    check_image_sizes,
    check_initialisation,
    check_save_and_load,
)
# These compile it.
COMPILED: tuple[Contract, ...] = (
    check_head_swap,
    check_batches,
    check_bfloat16,
    check_transform,
    check_gradients,
    check_training,
    check_observe,
)


@no_type_check
def check_contracts(config: AnyConfig, image_size: Size | None = None) -> None:
    """Everything that the library promises of each of its models, checked on the model of a config.

    The config is one of an architecture that is registered, `eqx_vit.register`, and of this library as well. A small
    config takes a minute, most of it compilation; each contract is a function of its own, `check_<contract>`, which
    can be called alone.

    **Arguments:** `image_size` of the images, in pixels: one number, or (height, width); by default the config's, and
    224 for models that take any size, for which a smaller one costs less.

    **Raises:** `ContractError`, an `AssertionError`, for the first contract that is broken: one sentence that names the
    model, what it has to do, and what was found. `ValueError` for what is no config of a registered architecture.
    `ImportError` where Hypothesis or safetensors is missing.
    """
    for check in (*TRACED, *COMPILED):
        check(config, image_size)
