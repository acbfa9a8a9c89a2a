"""The one base of all architectures: a configuration that checks itself, and a model that checks its image once."""

import abc
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeAlias, overload

import equinox as eqx
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import TypeVar

from eqx_vit.inputs import check_state, prepare
from eqx_vit.layers.config import (
    Size,
    check,
    check_at_least,
    check_fields,
    check_multiple,
    check_rates,
    check_sizes,
    mentions,
    no_type_check,
    pair,
)
from eqx_vit.points import AttentionPoint, FeaturePoint, TokenFeatures

Image: TypeAlias = Float[Array, "height width channels"] | Float[np.ndarray, "height width channels"]
Logits: TypeAlias = Float[Array, " classes"]
LogitsPair: TypeAlias = tuple[Float[Array, " classes"], Float[Array, " classes"]]
Module = TypeVar("Module", bound=eqx.Module)
Model = TypeVar("Model", bound="ImageModel[Any, Any]", default="ImageModel")


@no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModelConfig(Generic[Model]):
    """What every configuration has. Plain data: it survives `json.dumps(dataclasses.asdict(config))`.

    A subclass adds its fields and, in `check`, its own rules. Checked here: each field's type; whole numbers at least 1
    (0 for those of `MAY_BE_ZERO`); other numbers not negative; rates, the floats called `*drop*`, in [0, 1).
    """

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()
    COUNTS: ClassVar[tuple[str, ...]] = ()  # the fields that count parts which are made one by one

    num_classes: int  # 0: no head, the features that it would read come out
    channels: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        for field in dataclasses.fields(self):
            if mentions(field.type, int):
                least = 0 if field.name in ("num_classes", *self.MAY_BE_ZERO) else 1
                check_at_least(self, least, field.name)
            elif mentions(field.type, float):
                check_at_least(self, 0, field.name)
        check_sizes(self, self.COUNTS)
        check_rates(self, *self.rates())
        self.check()

    def check(self) -> None:
        """Raise `ValueError` with the broken rule, what was given, and the way out."""

    def check_image_size(self, height: int, width: int) -> None:
        """Raise `ValueError` for an image that the model does not take."""
        check(min(height, width) > 0, f"the image is empty: {(height, width)}")

    @classmethod
    def rates(cls) -> tuple[str, ...]:
        """The names of the dropout and drop-path rates."""
        return tuple(field.name for field in dataclasses.fields(cls) if "drop" in field.name and field.type is float)


@no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSizeConfig(ImageModelConfig[Model]):
    """The configuration of a model for images of one size, in pixels: one number, or (height, width)."""

    RESIZABLE: ClassVar[bool] = True  # whether `eqx_vit.resize` knows a rule for the model

    image_size: Size

    def check_image_size(self, height: int, width: int) -> None:
        """Raise `ValueError` for an image of another size."""
        size = f"({height}, {width})"
        way = f"the model with eqx_vit.resize(model, {size})" if self.RESIZABLE else f"build one with image_size={size}"
        check(
            (height, width) == pair(self.image_size),
            f"this {type(self).__name__.removesuffix('Config')} takes images of {pair(self.image_size)}, given {size}: "
            f"resize the image, or {way}",
        )


@no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchGridConfig(FixedSizeConfig[Model]):
    """The configuration of a model that cuts the image into a grid of patches that do not overlap.

    `image_size` and `patch_size` are in pixels: one number, or (height, width).
    """

    patch_size: Size

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("image_size", self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width


Config = TypeVar("Config", bound=ImageModelConfig[Any], default=ImageModelConfig)
Features = TypeVar("Features", default=Array)


class ImageModel(eqx.Module, Generic[Config, Features]):
    """A model of one image; abstract. A subclass of `StatelessImageModel` or `StatefulImageModel` is final.

    `model(image, key=key)` gives the logits; given a state too, as a model with BatchNorm needs it, (logits, state).
    `jax.vmap(model)(images)` or `eqx_vit.forward(model, state, images)` for a batch.

    **Raises:** `ValueError` for an image that does not fit the config, and for active dropout without a key. The image
    is checked once, before anything runs.
    """

    config: Config = eqx.field(static=True)

    @overload
    def __call__(self, image: Image, *, key: PRNGKeyArray | None = None) -> Logits: ...
    @overload
    def __call__(self, image: Image, state: State, *, key: PRNGKeyArray | None = None) -> tuple[Logits, State]: ...
    @abc.abstractmethod
    def __call__(
        self, image: Image, state: State | None = None, *, key: PRNGKeyArray | None = None
    ) -> Logits | tuple[Logits, State]:
        """Logits of one image; with a state, (logits, state)."""

    @overload
    def features(self, image: Image, *, key: PRNGKeyArray | None = None) -> Features: ...
    @overload
    def features(self, image: Image, state: State, *, key: PRNGKeyArray | None = None) -> tuple[Features, State]: ...
    @abc.abstractmethod
    def features(
        self, image: Image, state: State | None = None, *, key: PRNGKeyArray | None = None
    ) -> Features | tuple[Features, State]:
        """The tokens or the map after the final norm, before pooling and head; with a state, (features, state)."""

    @overload
    def logits_pair(self, image: Image, *, key: PRNGKeyArray | None = None) -> LogitsPair: ...
    @overload
    def logits_pair(
        self, image: Image, state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[LogitsPair, State]: ...
    @abc.abstractmethod
    def logits_pair(
        self, image: Image, state: State | None = None, *, key: PRNGKeyArray | None = None
    ) -> LogitsPair | tuple[LogitsPair, State]:
        """(class logits, distillation logits) of a model with two heads, for a distillation loss.

        **Raises:** `ValueError` for a model with one head.
        """

    def resize_spec(self, image_size: Size) -> tuple[Config, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change, by name. Here: nothing does.

        **Raises:** `ValueError` for a size that the model does not take.
        """
        self.config.check_image_size(*pair(image_size))
        return self.config, {}

    @no_type_check
    def name_features(self, features: Features) -> TokenFeatures:
        """The parts of `features` by name, as `eqx_vit.forward_features` gives them."""
        raise ValueError(
            f"{type(self).__name__} does not name its features: model.features(image) gives them, and "
            "eqx_vit.intermediates those of its blocks or stages"
        )

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """What `eqx_vit.intermediates` gives of an image of (height, width), in the order of the network."""
        raise ValueError(
            f"{type(self).__name__} does not say where its features are: give it a method feature_points(self, height, "
            "width) that returns a list of eqx_vit.FeaturePoint, or take any value by name with eqx_vit.observe"
        )

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """Where `eqx_vit.grad_cam` takes features and gradients: the last features that reach the head."""
        return self.feature_points(height, width)[-1]

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of what the head reads to the patches, as `eqx_vit.attention_maps` shows it; may be none."""
        return []


Signature = TypeVar("Signature")


def _typed_as(signature: Signature) -> Callable[[Callable[..., Any]], Signature]:
    """For type checkers, who infer a result of their own where an override has no annotations: its signature."""
    return lambda method: typing.cast(Signature, method)


class StatelessImageModel(ImageModel[Config, Features]):
    """A model without BatchNorm: `embed` the image, `encode` it, `classify` the features."""

    @abc.abstractmethod
    def embed(self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None) -> Any:
        """What the first block takes: tokens or a map."""

    @abc.abstractmethod
    def encode(self, x: Any, *, key: PRNGKeyArray | None) -> Features:
        """The blocks and the final norm: `features`."""

    @abc.abstractmethod
    def classify(self, features: Features) -> Logits:
        """Pooling and head: logits."""

    def classify_pair(self, features: Features) -> LogitsPair:
        """The logits of two heads."""
        raise ValueError(_one_head(self))

    @typing.final
    @_typed_as(ImageModel[Config, Features].__call__)
    @no_type_check
    def __call__(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        logits = self.classify(self.encode(self.embed(image, key=embed_key), key=encode_key))
        return logits if state is None else (logits, state)

    @typing.final
    @_typed_as(ImageModel[Config, Features].features)
    @no_type_check
    def features(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        features = self.encode(self.embed(image, key=embed_key), key=encode_key)
        return features if state is None else (features, state)

    @typing.final
    @_typed_as(ImageModel[Config, Features].logits_pair)
    @no_type_check
    def logits_pair(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        logits = self.classify_pair(self.encode(self.embed(image, key=embed_key), key=encode_key))
        return logits if state is None else (logits, state)


class StatefulImageModel(ImageModel[Config, Features], eqx.nn.StatefulLayer):
    """A model with BatchNorm: its three steps take the state and hand it on.

    Made by `eqx_vit.create`, and called through `eqx_vit.forward` in training, since BatchNorm needs the batch.
    """

    @abc.abstractmethod
    def embed(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Any, State]:
        """What the first block takes: tokens or a map."""

    @abc.abstractmethod
    def encode(self, x: Any, state: State, *, key: PRNGKeyArray | None) -> tuple[Features, State]:
        """The blocks and the final norm: `features`."""

    @abc.abstractmethod
    def classify(self, features: Features, state: State) -> tuple[Logits, State]:
        """Pooling and head: logits."""

    def classify_pair(self, features: Features, state: State) -> tuple[LogitsPair, State]:
        """The logits of two heads."""
        raise ValueError(_one_head(self))

    @typing.final
    @_typed_as(ImageModel[Config, Features].__call__)
    @no_type_check
    def __call__(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        x, state = self.embed(image, check_state(self, state), key=embed_key)
        features, state = self.encode(x, state, key=encode_key)
        return self.classify(features, state)

    @typing.final
    @_typed_as(ImageModel[Config, Features].features)
    @no_type_check
    def features(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        x, state = self.embed(image, check_state(self, state), key=embed_key)
        return self.encode(x, state, key=encode_key)

    @typing.final
    @_typed_as(ImageModel[Config, Features].logits_pair)
    @no_type_check
    def logits_pair(self, image, state=None, *, key=None):
        image, embed_key, encode_key = prepare(self, self.config, image, key)
        x, state = self.embed(image, check_state(self, state), key=embed_key)
        features, state = self.encode(x, state, key=encode_key)
        return self.classify_pair(features, state)


def replace_fields(module: Module, **changes: object) -> Module:
    """The module with some fields replaced, static ones included; its `__init__` does not run."""
    copy = object.__new__(type(module))
    for field in dataclasses.fields(module):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(module, field.name)))
    return copy


def _one_head(model: ImageModel[Any, Any]) -> str:
    return f"this {type(model).__name__} has one head: a pair needs a config with a distillation head"
