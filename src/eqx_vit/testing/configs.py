"""Contracts of a configuration: nothing is traced."""

import dataclasses
import json

from eqx_vit.create import create_abstract
from eqx_vit.layers.config import Size, no_type_check
from eqx_vit.registry import AnyConfig, config_from_json, config_to_json
from eqx_vit.testing.subject import contract


@no_type_check
def check_config_json(config: AnyConfig, image_size: Size | None = None) -> None:
    """A config comes back from JSON as it was, and can be hashed: models are compiled for it."""
    with contract(config, image_size, "a config has to come back from JSON as it was") as subject:
        plain = json.loads(json.dumps(config_to_json(config)))
        back = config_from_json(plain)
        changed = [
            f"{field.name} {getattr(config, field.name)!r} comes back as {getattr(back, field.name)!r}"
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != getattr(back, field.name)
        ]
        subject.expect(not changed, ", ".join(changed))
        subject.expect(back == config and hash(back) == hash(config), "equal fields make configs that differ")


@no_type_check
def check_wrong_configs(config: AnyConfig, image_size: Size | None = None) -> None:
    """Values that no config has are refused with a `ValueError` that names the field."""
    wrong: list[tuple[str, object]] = [("num_classes", "5"), ("num_classes", -1), ("channels", True), ("channels", 0)]
    wrong += [("no_such_field", 3), *((name, 1.0) for name in config.rates())]
    rule = "a config has to refuse wrong values with a ValueError that names the field"
    with contract(config, image_size, rule) as subject:
        for field, value in wrong:
            problem = _find_problem(config, field, value)
            subject.expect(problem is None, f"{field}={value!r} {problem}")


def _find_problem(config: AnyConfig, field: str, value: object) -> str | None:
    """How a wrong value is taken; None where it is refused as it should be."""
    try:
        create_abstract(config, **{field: value})
    except ValueError as error:
        return None if field in str(error) else f"is refused without its name: {str(error)[:200]}"
    except Exception as error:  # whatever came of building a model with it
        return f"raises a {type(error).__name__}"
    return "is taken"
