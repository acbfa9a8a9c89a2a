"""Where released weights live, and what images they expect: plain data beside each architecture's presets."""

from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One released checkpoint. `layout` names its keys: see `eqx_vit.weights.load_state_dict`."""

    hub: str  # the repository on the Hugging Face hub, or a URL, or an absolute path
    layout: Literal["timm", "official", "hf", "flax"] = "timm"
    file: str = "model.safetensors"
    sha256: str | None = None
    image_size: int = 224  # for models that take any size: the others' configs say it
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: float = 0.9  # the share of the resized image that the centre crop keeps
    classes: int = 1000
    license: str = "apache-2.0"
