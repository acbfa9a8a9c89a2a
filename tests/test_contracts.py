"""The contracts can be broken: a sound model keeps them, and one for each that breaks it is told so in a sentence."""

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st
from jaxtyping import Array

from eqx_vit import MODELS, testing
from eqx_vit.layers import MLP, Dropout, LayerNorm, Linear, PatchEmbedding, Stack
from eqx_vit.layers.config import pair
from eqx_vit.model import ImageModel, ImageModelConfig, PatchGridConfig, StatelessImageModel
from eqx_vit.registry import Architecture
from eqx_vit.testing import COMPILED, TRACED, ContractError, check_contracts


@dataclass(frozen=True, kw_only=True)
class ToyConfig(PatchGridConfig["Toy"]):
    """A model of one of the classes of `KINDS`."""

    kind: str = "Toy"
    dim: int = 8
    depth: int = 2
    dropout: float = 0.0


class Block(eqx.Module):
    norm: LayerNorm
    mlp: MLP
    dropout: Dropout

    def __init__(self, config: Any, *, key: Array) -> None:
        self.norm = LayerNorm(config.dim, 1e-6)
        self.mlp = MLP(config.dim, 2 * config.dim, key=key)
        self.dropout = Dropout(config.dropout)

    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        return tokens + self.dropout(self.mlp(self.norm(tokens)), key=key)


class Toy(StatelessImageModel[Any, Array]):
    """A sound model: patches, positions, blocks, a norm, the mean of the tokens, a head."""

    patch_embedding: PatchEmbedding
    positions: Array
    blocks: Stack[Block]
    norm: Any
    extra: Array | None
    head: Any

    def __init__(self, config: Any, *, key: Array) -> None:
        patch_key, position_key, blocks_key, head_key = jax.random.split(key, 4)
        self.config = config
        self.patch_embedding = PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=patch_key)
        rows, columns = getattr(config, "grid", (2, 2))
        self.positions = 0.02 * jax.random.normal(position_key, (rows * columns, config.dim))
        self.blocks = self.make_blocks(blocks_key)
        self.norm = LayerNorm(config.dim, 1e-6)
        self.extra = None
        self.head = Linear(config.dim, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()

    def make_blocks(self, key: Array) -> Stack[Block]:
        return Stack.build(functools.partial(Block, self.config), self.config.depth, key=key)

    def embed(self, image: Array, *, key: Array | None) -> Array:
        return self.patch_embedding(image).reshape(-1, self.config.dim) + self.positions

    def encode(self, x: Array, *, key: Array | None) -> Array:
        return jax.vmap(self.norm)(self.blocks(x, key=key))

    def classify(self, features: Array) -> Array:
        return self.head(jnp.mean(features, axis=0))


class WideLogits(Toy):
    def classify(self, features: Array) -> Array:
        return jnp.tile(super().classify(features), 2)


class EmptyWithoutHead(Toy):
    def classify(self, features: Array) -> Array:
        return super().classify(features)[: self.config.num_classes]


class DecayedNorm(Toy):
    def __init__(self, config: Any, *, key: Array) -> None:
        super().__init__(config, key=key)
        self.norm = Linear(config.dim, config.dim, key=jax.random.key(1))


class NoDropout(Toy):
    def __init__(self, config: Any, *, key: Array) -> None:
        super().__init__(config, key=key)
        self.blocks = eqx.nn.inference_mode(self.blocks)


class NoiseInInference(Toy):
    def encode(self, x: Array, *, key: Array | None) -> Array:
        return super().encode(x + jax.random.normal(jax.random.key(0), x.shape, x.dtype), key=key)


class OnlyForward(Toy):
    def encode(self, x: Array, *, key: Array | None) -> Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x + 1, super().encode(x, key=key))


class EqualBlocks(Toy):
    def make_blocks(self, key: Array) -> Stack[Block]:
        return Stack.from_blocks([Block(self.config, key=key) for _ in range(self.config.depth)])


class WholeNumbers(Toy):
    def __init__(self, config: Any, *, key: Array) -> None:
        super().__init__(config, key=key)
        self.extra = jnp.arange(3)


class HeadOfAnotherName(StatelessImageModel[Any, Array]):
    body: Toy

    def __init__(self, config: Any, *, key: Array) -> None:
        self.config = config
        self.body = Toy(config, key=key)

    def embed(self, image: Array, *, key: Array | None) -> Array:
        return self.body.embed(image, key=key)

    def encode(self, x: Array, *, key: Array | None) -> Array:
        return self.body.encode(x, key=key)

    def classify(self, features: Array) -> Array:
        return self.body.classify(features)


class Unchecked(ImageModel[Any, Array]):
    """A model that calls its parts without the checks of the base."""

    body: Toy

    def __init__(self, config: Any, *, key: Array) -> None:
        self.config = config
        self.body = Toy(config, key=key)

    def run(self, image: Any, key: Array | None) -> Array:
        return self.body.encode(self.body.embed(image, key=None), key=None)

    def features(self, image: Any, state: Any = None, *, key: Array | None = None) -> Any:
        features = self.run(image, key)
        return features if state is None else (features, state)

    def __call__(self, image: Any, state: Any = None, *, key: Array | None = None) -> Any:
        logits = self.body.classify(self.run(image, key))
        return logits if state is None else (logits, state)

    def logits_pair(self, image: Any, state: Any = None, *, key: Array | None = None) -> Any:
        raise ValueError("one head")


class NoNumpy(Unchecked):
    def run(self, image: Any, key: Array | None) -> Array:
        return super().run(image.at[0].set(0), key)


class MovedByKeys(Unchecked):
    def run(self, image: Any, key: Array | None) -> Array:
        return super().run(image, key) + (0 if key is None else jnp.arange(self.config.dim, dtype=jnp.float32)[None])


class LostInBfloat16(Toy):
    def encode(self, x: Array, *, key: Array | None) -> Array:
        return super().encode(jnp.zeros_like(x) if x.dtype == jnp.bfloat16 else x, key=key)


class OtherEachTime(Toy):
    """The plain functions of `transform` trace it once more, and get another model."""

    traces = []  # noqa: RUF012

    def classify(self, features: Array) -> Array:
        OtherEachTime.traces.append(features)
        return super().classify(features) * (1 + len(OtherEachTime.traces))


class UnusedTemperature(Toy):
    def __init__(self, config: Any, *, key: Array) -> None:
        super().__init__(config, key=key)
        self.extra = jnp.ones(())


class InfiniteGradient(Toy):
    def classify(self, features: Array) -> Array:
        return super().classify(features) + jnp.sqrt(0 * features[0, 0])


class OneKeyForAll(Toy):
    def encode(self, x: Array, *, key: Array | None) -> Array:
        return super().encode(x, key=None if key is None else jax.random.key(0))


class NoModules(StatelessImageModel[Any, Array]):
    weight: Array

    def __init__(self, config: Any, *, key: Array) -> None:
        self.config = config
        self.weight = jax.random.normal(key, (config.channels, config.num_classes))

    def embed(self, image: Array, *, key: Array | None) -> Array:
        return image

    def encode(self, x: Array, *, key: Array | None) -> Array:
        return x

    def classify(self, features: Array) -> Array:
        return jnp.mean(features, axis=(0, 1)) @ self.weight


@dataclass(frozen=True, kw_only=True)
class DriftingConfig(ToyConfig):
    """One whose fields change each time that it is made."""

    scale: float = 1.0

    def check(self) -> None:
        object.__setattr__(self, "scale", 2 * self.scale)


@dataclass(frozen=True, kw_only=True)
class LaxConfig(ToyConfig):
    def __post_init__(self) -> None:
        """Nothing is checked."""


@dataclass(frozen=True, kw_only=True)
class AnySizeConfig(ImageModelConfig["Toy"]):
    """One that takes any image, of a model with as many positions as four patches need."""

    kind: str = "Toy"
    patch_size: int = 8
    dim: int = 8
    depth: int = 2
    dropout: float = 0.0


MODULE = dict(globals())


def make(config: Any, *, key: Array) -> Any:
    return MODULE[config.kind](config, key=key)


FIELDS: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_classes": 5}
CONFIGS: tuple[type[Any], ...] = (ToyConfig, DriftingConfig, LaxConfig, AnySizeConfig)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs of this file are in the table, as `eqx_vit.register` puts them."""
    for config in CONFIGS:
        monkeypatch.setitem(MODELS, config.__name__, Architecture(config.__name__, make, config))


def toy(kind: str) -> ToyConfig:
    return ToyConfig(kind=kind, **FIELDS)


# By check: a config that breaks the contract, and what is found.
BROKEN: list[tuple[Any, Callable[[], Any], str]] = [
    (testing.check_config_json, lambda: DriftingConfig(**FIELDS), r"scale 2\.0 comes back as 4\.0"),
    (testing.check_wrong_configs, lambda: LaxConfig(**FIELDS), "num_classes='5' (is taken|raises)"),
    (testing.check_wrong_images, lambda: toy("Unchecked"), "a batch raises a "),
    (testing.check_weight_decay, lambda: toy("DecayedNorm"), r"it reaches norm\.weight"),
    (testing.check_shapes, lambda: toy("WideLogits"), r"one image gives \(10,\)"),
    (testing.check_shapes, lambda: toy("EmptyWithoutHead"), r"features .* head would read; one image gives \(0,\)"),
    (testing.check_numpy_images, lambda: toy("NoNumpy"), "AttributeError is raised: .*has no attribute 'at'"),
    (testing.check_dropout, lambda: toy("NoDropout"), "dropout of 0.5 make no Dropout or DropPath active"),
    (testing.check_inference, lambda: toy("NoiseInInference"), r"\w+ is in its program"),
    (testing.check_differentiable, lambda: toy("OnlyForward"), "ValueError is raised: Reverse-mode differentiation"),
    (testing.check_image_sizes, lambda: AnySizeConfig(num_classes=5), "is raised"),
    (testing.check_initialisation, lambda: toy("EqualBlocks"), r"blocks\.\S+weight\[0\] and blocks\S+\[1\] do"),
    (testing.check_save_and_load, lambda: toy("WholeNumbers"), r"extra \(dtype int32"),
    (testing.check_head_swap, lambda: toy("HeadOfAnotherName"), r"with 9 classes two images give \(2, 5\)"),
    (testing.check_batches, lambda: toy("MovedByKeys"), r"alone it is off by \d"),
    (testing.check_bfloat16, lambda: toy("LostInBfloat16"), r"they are off by \S+ of \d"),
    (testing.check_transform, lambda: toy("OtherEachTime"), r"off by \d"),
    (testing.check_gradients, lambda: toy("UnusedTemperature"), "extra gets none"),
    (testing.check_gradients, lambda: toy("InfiniteGradient"), "infinite or NaN"),
    (testing.check_training, lambda: toy("OneKeyForAll"), "another key gives the same logits, with dropout live"),
    (testing.check_observe, lambda: toy("NoModules"), "nothing is listed"),
]


@pytest.mark.parametrize(("check", "config", "found"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_broken_contract_is_told_in_a_sentence(check: Any, config: Callable[[], Any], found: str) -> None:
    broken = config()
    with pytest.raises(ContractError, match=found) as raised:
        check(broken, 16)
    message = str(raised.value)
    assert re.fullmatch(r"(Toy|Drifting|Lax|AnySize): .{10,120}; .{3,400}", message), message


def test_every_contract_is_in_the_list_and_can_be_broken() -> None:
    public = {getattr(testing, name) for name in dir(testing) if name.startswith("check_")}
    assert public == {*TRACED, *COMPILED, testing.check_random_sizes, check_contracts}
    assert {check for check, _, _ in BROKEN} == {*TRACED, *COMPILED}


@pytest.mark.parametrize("check", TRACED, ids=lambda check: check.__name__)
def test_a_sound_model_keeps_what_is_traced(check: Any) -> None:
    check(toy("Toy"))


@pytest.mark.slow
def test_a_sound_model_keeps_all() -> None:
    check_contracts(toy("Toy"))


def test_all_contracts_are_checked_until_one_is_broken() -> None:
    with pytest.raises(ContractError, match="logits have to be"):
        check_contracts(toy("WideLogits"))


def test_random_sizes_give_the_example_that_fails() -> None:
    sizes = st.integers(1, 3).map(lambda rows: (8 * rows, 8))
    cases = sizes.map(lambda size: (replace(toy("Toy"), image_size=size), size))
    testing.check_random_sizes(cases.map(lambda case: (*case, (case[1][0] // 8, 8))))
    with pytest.raises(ContractError, match=r"features are \(2, 8\), not \(1, 8\), of ToyConfig"):
        testing.check_random_sizes(cases.map(lambda case: (*case, (1, 8))))


@pytest.mark.parametrize(
    ("config", "image_size", "message"),
    [
        ("vit", 16, "'vit' is not a config of this library"),
        (toy("Toy"), "16", "image_size must be of type int"),
        (toy("Toy"), 17, r"takes images of \(16, 16\), given \(17, 17\)"),
    ],
)
def test_a_wrong_argument_is_no_broken_contract(config: Any, image_size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_contracts(config, image_size)


def test_without_hypothesis_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "eqx_vit.testing.strategies", raising=False)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        testing.check_image_sizes(toy("Toy"))
