"""The Flax API: each architecture as a linen-like description with `init` and `apply` over plain dicts.

    from eqx_vit.flax import CaiT

    v = CaiT(image_size=256, patch_size=32, num_classes=1000, dim=1024, depth=12, heads=16, mlp_dim=2048, dropout=0.1)
    variables = v.init({"params": key1, "dropout": key2}, images)
    logits = v.apply(variables, images, rngs={"dropout": key3})

There is a class for every architecture of `eqx_vit.MODELS`, named as its model. No flax is needed; where it is
installed, the variables work with `TrainState`, `flax.serialization` and `flax.traverse_util`, and `v.as_linen()` is a
true linen module.
"""

from eqx_vit.flax.description import Bound as Bound, Description as Description, make_description as _make_description
from eqx_vit.flax.parts import SPT as SPT, PatchMerger as PatchMerger
from eqx_vit.registry import MODELS as _MODELS


# Not a loop over the table: type checkers take this for the type of every name that they do not find here.
def __getattr__(name: str) -> type[Description]:
    for row in _MODELS.values():
        if row.title == name:
            return _make_description(name, row.config)
    raise AttributeError(f"module 'eqx_vit.flax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(row.title for row in _MODELS.values())])
