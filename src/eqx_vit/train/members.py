"""Which runs are trained as one: each combination of some settings' values, and seeds."""

import dataclasses
import itertools
from collections.abc import Mapping

from eqx_vit.layers.config import check
from eqx_vit.train.run_folder import Member, Run
from eqx_vit.train.settings import Settings


def make_members(
    settings: Settings, seeds: int, lists: Mapping[str, tuple[float, ...]]
) -> tuple[Settings, tuple[Member, ...]]:
    """Each combination of the values in `lists` (learning_rate, weight_decay, drop_path) with so many seeds, from the
    settings' own on; and the settings that hold for all, with the largest drop-path rate.

    **Raises:** `ValueError` for an impossible value.
    """
    rates = lists.get("drop_path")
    if rates is not None:
        settings = dataclasses.replace(settings, changes=settings.changes | {"drop_path": max(rates)})
    values = [
        lists.get("learning_rate", (settings.learning_rate,)),
        lists.get("weight_decay", (settings.weight_decay,)),
        rates or (None,),
    ]
    members = tuple(
        Member(settings.seed + seed, rate, decay, drop_path)
        for rate, decay, drop_path in itertools.product(*values)
        for seed in range(seeds)
    )
    for member in members:  # which checks them
        dataclasses.replace(
            settings, seed=member.seed, learning_rate=member.learning_rate, weight_decay=member.weight_decay
        )
        check(member.drop_path is None or 0 <= member.drop_path < 1, f"drop_path must be from 0 to 1, given {member}")
    return settings, members


def describe_member(member: Member) -> str:
    """A member in words: `seed 0, learning rate 0.002, weight decay 0.05`."""
    values = {name.replace("_", " "): value for name, value in member._asdict().items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def split_members(run: Run) -> list[Run]:
    """Each member as a run by itself."""
    return [
        run._replace(
            settings=dataclasses.replace(
                run.settings, seed=member.seed, learning_rate=member.learning_rate, weight_decay=member.weight_decay
            ),
            members=(),
        )
        for member in run.members
    ]
