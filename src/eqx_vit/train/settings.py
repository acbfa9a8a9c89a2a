"""What a training run can be told, as plain data."""

import typing
from dataclasses import dataclass

from eqx_vit.layers.config import check, check_fields, check_positive, check_rates

PRECISIONS = ("float32", "bf16")


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers of a run: equal settings give equal weights on the same machine.

    **Raises:** `ValueError` that names the setting, the rule and the value given.
    """

    model: str  # a preset, an architecture, or a small model of `train.models`
    changes: dict  # fields of the model's config and their values
    data: str | None = None  # an image folder; None: scikit-learn's digits
    image_size: int | tuple[int, int] | None = None  # pixels; None: the model's own
    epochs: int
    batch_size: int = 32
    learning_rate: float  # the peak, reached after the warm-up
    warmup: float = 0.1  # share of all steps in which the learning rate rises from 0
    weight_decay: float = 0.05  # of weights of linear maps and convolutions alone
    clip_norm: float = 1.0  # largest norm of the gradient
    label_smoothing: float = 0.1
    ema: float = 0.99  # share of the average that stays at each step
    precision: str = "float32"  # of the forward and backward pass; the weights and their averages stay float32
    rotate: float = 10.0  # degrees, each image by up to so much either way
    shift: float = 0.08  # of height and width
    zoom: float = 0.1  # share by which an image grows or shrinks
    flip: bool = False  # mirror every second image, left to right
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "epochs", "batch_size", "image_size")
        check_rates(self, "warmup", "label_smoothing", "ema", "shift", "zoom")
        for name in ("learning_rate", "clip_norm"):
            check(getattr(self, name) > 0, f"Settings.{name} must be above 0, given {getattr(self, name)}")
        check(
            self.precision in PRECISIONS,
            f"Settings.precision must be {' or '.join(PRECISIONS)}, given {self.precision!r}",
        )
        check(self.weight_decay >= 0, f"Settings.weight_decay must not be negative, given {self.weight_decay}")
        check(0 <= self.rotate <= 180, f"Settings.rotate must be from 0 to 180 degrees, given {self.rotate}")
        check(0 <= self.seed < 2**32, f"Settings.seed must be from 0 to {2**32 - 1}, given {self.seed}")
