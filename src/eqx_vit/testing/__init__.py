"""The contracts that every architecture keeps, as checks for one of your own; our own test suite is them, run on all.

eqx_vit.testing.check_contracts(MixerConfig(image_size=32, patch_size=8, num_classes=5, dim=16, depth=2))
"""

import importlib as _importlib
import typing as _typing
from types import ModuleType as _ModuleType

from eqx_vit.inputs import image_size_of as image_size_of
from eqx_vit.testing.calls import (
    check_inference as check_inference,
    check_numpy_images as check_numpy_images,
    check_shapes as check_shapes,
    check_wrong_images as check_wrong_images,
)
from eqx_vit.testing.configs import check_config_json as check_config_json, check_wrong_configs as check_wrong_configs
from eqx_vit.testing.contracts import COMPILED as COMPILED, TRACED as TRACED, check_contracts as check_contracts
from eqx_vit.testing.numbers import (
    check_batches as check_batches,
    check_bfloat16 as check_bfloat16,
    check_head_swap as check_head_swap,
    check_initialisation as check_initialisation,
    check_observe as check_observe,
    check_save_and_load as check_save_and_load,
    check_transform as check_transform,
)
from eqx_vit.testing.random_sizes import (
    check_image_sizes as check_image_sizes,
    check_random_sizes as check_random_sizes,
)
from eqx_vit.testing.sizes import shapes as shapes
from eqx_vit.testing.subject import ContractError as ContractError, randomise as randomise
from eqx_vit.testing.training import (
    check_differentiable as check_differentiable,
    check_dropout as check_dropout,
    check_gradients as check_gradients,
    check_training as check_training,
    check_weight_decay as check_weight_decay,
)

if _typing.TYPE_CHECKING:
    from eqx_vit.testing import strategies as strategies
else:

    def __getattr__(name: str) -> _ModuleType:
        if name == "strategies":  # not at the top: it needs Hypothesis
            return _importlib.import_module("eqx_vit.testing.strategies")
        raise AttributeError(f"module 'eqx_vit.testing' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "strategies"})
