"""Contracts over random sizes, which Hypothesis draws: only shapes are computed."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from eqx_vit.create import create_abstract
from eqx_vit.layers.config import Size, no_type_check
from eqx_vit.model import FixedSizeConfig
from eqx_vit.registry import AnyConfig
from eqx_vit.testing.sizes import Shapes, shapes_of
from eqx_vit.testing.subject import contract

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Drawn = TypeVar("Drawn")


@no_type_check
def check_image_sizes(config: AnyConfig, image_size: Size | None = None, *, max_examples: int | None = None) -> None:
    """Of random image sizes each is refused by a `ValueError` of the config, or gives logits as the config's own does.

    A config that has an `image_size` is drawn with it. Needs Hypothesis.

    **Arguments:** `max_examples`: how many sizes, by default as many as Hypothesis's settings say.

    **Raises:** `ContractError`; `ImportError` where Hypothesis is missing.
    """
    from eqx_vit.testing.strategies import image_sizes

    rule = "a random image size has to give logits, or a ValueError of the config"
    with contract(config, image_size, rule) as subject:

        def hold(size: tuple[int, int]) -> None:
            changed = _at_size(config, size)
            if changed is not None:
                _, logits = shapes_of(*create_abstract(changed), size)
                subject.expect(logits == (config.num_classes,), f"{size} gives logits of {logits}")

        _run(image_sizes(subject.image_size), hold, max_examples)


def _at_size(config: AnyConfig, size: tuple[int, int]) -> AnyConfig | None:
    """The config for images of a size; None where it refuses them."""
    try:
        changed = dataclasses.replace(config, image_size=size) if isinstance(config, FixedSizeConfig) else config
        changed.check_image_size(*size)
    except ValueError:
        return None
    return changed


@no_type_check
def check_random_sizes(
    cases: "SearchStrategy[tuple[AnyConfig, tuple[int, int], Shapes]]", *, max_examples: int | None = None
) -> None:
    """Random configs give features and logits of the right shapes. Needs Hypothesis.

    **Arguments:** `cases`: a strategy of (config, (height, width) of an image, shape of the features), as
    `eqx_vit.testing.strategies` help to write; features that are several arrays have a tuple of shapes.
    `max_examples`: how many, by default as many as Hypothesis's settings say.

    **Raises:** `ContractError`; `ImportError` where Hypothesis is missing.
    """

    def hold(case: tuple[AnyConfig, tuple[int, int], Shapes]) -> None:
        config, image_size, expected = case
        rule = "features and logits of a random config have to have the shapes that are expected"
        with contract(config, image_size, rule) as subject:
            features, logits = shapes_of(*create_abstract(config), image_size)
            subject.expect(features == expected, f"features are {features}, not {expected}, of {config}")
            subject.expect(logits == (config.num_classes,), f"logits are {logits}, of {config}")

    _run(cases, hold, max_examples)


@no_type_check
def _run(cases: "SearchStrategy[Drawn]", hold: Callable[[Drawn], None], max_examples: int | None) -> None:
    """Hypothesis on one function, with the settings that are in force but for the time that an example may take."""
    try:
        from hypothesis import given, settings
    except ImportError as error:
        raise ImportError("random sizes need Hypothesis: pip install hypothesis") from error
    options: dict[str, Any] = {} if max_examples is None else {"max_examples": max_examples}

    # No deadline: the first example of a shape traces.
    @settings(deadline=None, report_multiple_bugs=False, **options)
    @given(cases)
    def run(case: Drawn) -> None:
        hold(case)

    run()
