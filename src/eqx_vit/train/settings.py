"""The settings of a training run: all that decides its numbers, each with what it may be."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eqx_vit.layers.config import check, check_at_least, check_fields, check_rates, no_type_check
from eqx_vit.train.config import SMALL_MODELS

Precision = Literal["float32", "bf16"]
Optimiser = Literal["adamw", "lamb", "sgd", "muon"]
Schedule = Literal["cosine", "step", "constant"]
Loss = Literal["cross_entropy", "bce"]
Crop = Literal["whole", "random", "simple"]
Distillation = Literal["hard", "soft"]
PRECISIONS, OPTIMISERS, SCHEDULES, LOSSES, CROPS, DISTILLATIONS = (
    typing.get_args(choice) for choice in (Precision, Optimiser, Schedule, Loss, Crop, Distillation)
)


@no_type_check
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers of a run: equal settings give equal weights on the same machine.

    **Raises:** `ValueError` that names the setting, the rule and the value given.
    """

    model: str  # a preset, an architecture, or one of `SMALL_MODELS`
    changes: dict  # fields of the model's config and their values
    data: str | None = None  # an image folder; None: scikit-learn's digits
    image_size: int | tuple[int, int] | None = None  # pixels; None: the model's own
    recipe: str | None = None  # where the other settings come from, for the record

    pretrained: str | None = None  # "released" for the preset's own weights, hf-hub:owner/name, a folder or a file
    freeze: tuple[str, ...] | None = None  # paths of parts that keep their weights; "backbone": all but the head
    layer_decay: float = 1.0  # each layer's learning rate is this times that of the layer above
    head_learning_rate: float | None = None  # the head's own peak; None: as the others
    teacher: str | None = None  # a run's folder, or a preset with released weights (DeiT, arXiv 2012.12877, section 4)
    distillation: Distillation = "hard"  # the teacher's class as label, or its probabilities
    distillation_weight: float = 0.5  # of the teacher's part of the loss
    temperature: float = 1.0  # of soft distillation

    epochs: int
    batch_size: int = 32
    accumulate: int = 1  # in so many parts, one after the other, gradients of a batch are computed
    optimiser: Optimiser = "adamw"
    learning_rate: float  # the peak, reached after the warm-up
    schedule: Schedule = "cosine"
    final_fraction: float = 0.01  # of the peak learning rate, at the end of the cosine
    decay_epochs: int = 30  # the schedule "step" multiplies the learning rate after each of so many
    decay_rate: float = 0.1  # by this
    warmup: float = 0.1  # fraction of all steps in which the learning rate rises from 0
    momentum: float = 0.9  # of SGD (Nesterov's) and Muon
    weight_decay: float = 0.05  # of weights of linear maps and convolutions alone
    clip_norm: float = 1.0  # largest norm of the gradient; 0: any
    loss: Loss = "cross_entropy"  # bce: binary cross-entropy, each class present in a mixture is a target of 1
    label_smoothing: float = 0.1
    ema: float = 0.99  # decay of the moving average of the weights
    precision: Precision = "float32"  # of the forward and backward pass; the weights and their averages stay float32

    crop: Crop = "whole"  # of training images: about the centre; random and resized (Inception); DeiT III's simple one
    crop_scale: float = 0.08  # the smallest share of an image that a random crop takes
    crop_fraction: float = 1.0  # of the resized image, kept about its centre for evaluation
    rotate: float = 10.0  # degrees, each image by up to so much either way
    shift: float = 0.08  # of height and width
    zoom: float = 0.1  # fraction by which an image grows or shrinks
    flip: bool = False  # mirror every second image, left to right
    rand_augment: str | None = None  # in timm's spelling, such as rand-m9-mstd0.5-inc1
    three_augment: bool = False  # grey, solarised or blurred (DeiT III, arXiv 2204.07118)
    colour_jitter: float = 0.0  # brightness, contrast and saturation change by up to this fraction
    erase: float = 0.0  # probability that a rectangle of an image is noise (arXiv 1708.04896)
    mixup: float = 0.0  # alpha of mixup (arXiv 1710.09412); 0: none
    cutmix: float = 0.0  # alpha of cutmix (arXiv 1905.04899); with both, each batch has one of the two
    mix_probability: float = 1.0  # that a batch is mixed
    repeats: int = 1  # how often an image is in an epoch, each time augmented anew, of as many fewer images
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "epochs", "batch_size", "image_size", "decay_epochs", "repeats", "accumulate")
        check_rates(self, "warmup", "label_smoothing", "ema", "shift", "zoom")
        for name in ("learning_rate", "head_learning_rate", "temperature", "decay_rate", "crop_scale", "crop_fraction"):
            value = getattr(self, name)
            check(value is None or value > 0, f"Settings.{name} must be above 0, given {value}")
        fractions = ("layer_decay", "distillation_weight", "final_fraction", "crop_scale", "crop_fraction", "momentum")
        for name in (*fractions, "erase", "mix_probability"):
            check(0 <= getattr(self, name) <= 1, f"Settings.{name} must be from 0 to 1, given {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "colour_jitter", "mixup", "cutmix"):
            check(getattr(self, name) >= 0, f"Settings.{name} must not be negative, given {getattr(self, name)}")
        check(0 <= self.rotate <= 180, f"Settings.rotate must be from 0 to 180 degrees, given {self.rotate}")
        check(0 <= self.seed < 2**32, f"Settings.seed must be from 0 to {2**32 - 1}, given {self.seed}")
        if self.rand_augment is not None:
            from eqx_vit.train.policies import parse_rand_augment  # Pillow comes with the extra `train`

            parse_rand_augment(self.rand_augment)
            check(not self.three_augment, "Settings.rand_augment and Settings.three_augment exclude each other")
        check(
            self.batch_size % self.accumulate == 0,
            f"Settings.batch_size must be a multiple of Settings.accumulate, given {self.batch_size} and "
            f"{self.accumulate}",
        )
        check(
            self.batch_size % 2 == 0 or not (self.mixup or self.cutmix),
            f"Settings.batch_size must be even for mixup and cutmix, given {self.batch_size}",
        )


SMALL_SETTINGS = Settings(model="digits", changes={}, epochs=40, learning_rate=2e-3)
# Presets see hundreds of times the pixels of a digit: fewer epochs keep them within minutes.
PRESET_SETTINGS = dataclasses.replace(SMALL_SETTINGS, epochs=5, learning_rate=5e-4)


def make_settings(given: Mapping[str, object]) -> Settings:
    """The given settings, the others at the defaults that suit the model.

    **Raises:** `ValueError` for a wrong setting.
    """
    model = given.get("model", "photos" if "data" in given else "digits")
    defaults = SMALL_SETTINGS if model in SMALL_MODELS else PRESET_SETTINGS
    return dataclasses.replace(defaults, **{**given, "model": model})
