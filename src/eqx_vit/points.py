"""Where a model's features and attention maps are found: what each architecture says of itself for `inspection`."""

from typing import NamedTuple

from jaxtyping import Array, Float

from eqx_vit.layers import Norm


class FeaturePoint(NamedTuple):
    """A module's output that is a map of the image, or tokens with such a map among them."""

    module: str  # its name, as `eqx_vit.observe` takes it
    channels: int
    reduction: int | tuple[int, int]  # pixels of the image per position: one number, or (height, width)
    block: tuple[int, ...] = ()  # which block, where the module is one of a stack; (outer, inner) of a stack in a stack
    part: int | None = None  # which element, where the output is a tuple
    grid: tuple[int, int] | None = None  # (rows, columns), where the output is tokens
    prefix: int = 0  # tokens before those of the map
    norm: Norm | None = None  # the model's last norm, where it may be applied to this output

    @property
    def name(self) -> str:
        """Module and block; of a stage, whose last block is meant, the module alone."""
        return ".".join([self.module, *(str(index) for index in self.block if index >= 0)])


class AttentionPoint(NamedTuple):
    """Attention whose keys are tokens with a map of the image among them."""

    module: str
    grid: tuple[int, int]  # (rows, columns) of the keys
    prefix: int = 0  # keys before those of the map
    class_token: bool = True  # whether the first query is what the head reads; else it reads the mean of all
    self_attention: bool = True  # whether the queries are the keys' tokens


class TokenFeatures(NamedTuple):
    """What comes out of the last norm of a model of tokens, each by its name, and what a head would read of it."""

    class_token: Float[Array, "*batch dim"] | None
    register_tokens: Float[Array, "*batch registers dim"]
    patch_tokens: Float[Array, "*batch patches dim"]  # row by row
    pooled: Float[Array, "*batch width"]  # what the model gives with num_classes=0


def points_of_blocks(
    module: str,
    depth: int,
    channels: int,
    reduction: int | tuple[int, int],
    grid: tuple[int, int],
    *,
    prefix: int = 0,
    norm: Norm | None = None,
) -> list[FeaturePoint]:
    """The output of each of `depth` stacked blocks of tokens."""
    return [
        FeaturePoint(module, channels, reduction, (index,), grid=grid, prefix=prefix, norm=norm)
        for index in range(depth)
    ]
