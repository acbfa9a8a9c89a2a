"""A model as a folder that timm or transformers opens: `config.json` beside `model.safetensors`."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eqx_vit.files import write_arrays, write_atomically
from eqx_vit.layers.config import check, pair, per_stage
from eqx_vit.models import MODELS
from eqx_vit.models.cvt import CvTConfig
from eqx_vit.models.levit import LeViTConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights.checkpoint import differences
from eqx_vit.weights.engine import to_state_dict
from eqx_vit.weights.preprocessing import Preprocessing


def export(
    folder: str | os.PathLike[str],
    model: Any,
    state: Any,
    *,
    target: Literal["timm", "hf"],
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a model for `timm.create_model("local-dir:" + folder)`, or for transformers' `from_pretrained(folder)`.

    **Arguments:** `architecture` is the preset of timm's that the model is one of, for `target="timm"` only: number of
    classes, image size and channels may be others. `preprocessing` is what the images need, as far as it is known.

    **Raises:** `ValueError` for a model that the target does not have; `FileExistsError` where the folder holds a model
    already; `ImportError` without safetensors. Nothing is written then.
    """
    path = Path(folder)
    if class_names is not None and len(class_names) != model.config.num_classes:
        raise ValueError(f"{len(class_names)} class_names for a model of {model.config.num_classes} classes")
    if target == "timm":
        description = _timm(model.config, architecture, preprocessing, class_names)
    else:
        description = _transformers(model.config, class_names)
    arrays = to_state_dict(model, state, target)
    for name in ("config.json", "model.safetensors"):
        if (path / name).exists():
            raise FileExistsError(f"{path / name} exists already: give another folder")
    path.mkdir(parents=True, exist_ok=True)
    write_arrays(path / "model.safetensors", arrays, {"format": "pt"})
    write_atomically(path / "config.json", json.dumps(description, indent=2).encode())


def _timm(
    config: Any, architecture: str | None, preprocessing: Preprocessing | None, class_names: Sequence[str] | None
) -> dict[str, Any]:
    presets = {name: preset for row in MODELS.values() for name, preset in row.presets.items()}
    if architecture not in presets:
        raise ValueError(
            f"target='timm' needs architecture=, the preset that the model is one of; given {architecture!r}"
        )
    preset = presets[architecture]
    wrong = differences(config, preset) if type(config) is type(preset) else ["the architecture"]
    check(not wrong, f"the model is no {architecture}: it differs in {', '.join(wrong)}")
    arguments: dict[str, Any] = {}
    if _image_size(config) != _image_size(preset):
        arguments["img_size"] = list(pair(_image_size(config)))
    if config.channels != preset.channels:
        arguments["in_chans"] = config.channels
    size = pair(_image_size(config) or (preprocessing.image_size if preprocessing else 224))
    expected: dict[str, Any] = {"num_classes": config.num_classes, "input_size": [config.channels, *size]}
    if _image_size(config) is not None:
        expected["fixed_input_size"] = True  # else timm builds CrossViT for its own default of 224
    if preprocessing:
        expected |= {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop,
        }
    description = {"architecture": architecture, "num_classes": config.num_classes, "pretrained_cfg": expected}
    description |= {"model_args": arguments} if arguments else {}
    return description | ({"label_names": list(class_names)} if class_names else {})


def _image_size(config: Any) -> Any:
    """A config's `image_size`, None for models that take any size."""
    return dataclasses.asdict(config).get("image_size")


def _transformers(config: Any, class_names: Sequence[str] | None) -> dict[str, Any]:
    if type(config) not in _DESCRIPTIONS:
        raise ValueError(f"transformers has no {type(config).__name__.removesuffix('Config')}")
    names = class_names or [f"LABEL_{index}" for index in range(config.num_classes)]
    labels = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    return {**_DESCRIPTIONS[type(config)](config), **labels, "num_channels": config.channels, "dtype": "float32"}


def _vit(config: ViTConfig) -> dict[str, Any]:
    plain = ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        mlp_dim=config.mlp_dim,
        channels=config.channels,
        distillation=config.distillation,
        qkv_bias=config.qkv_bias,
        norm_eps=config.norm_eps,
        approximate_gelu=config.approximate_gelu,
    )
    wrong = differences(config, plain)
    check(not wrong, f"transformers' ViT cannot have this model's {', '.join(wrong)}")
    return {
        "model_type": "deit" if config.distillation else "vit",
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if config.distillation else "ViTForImageClassification"
        ],
        "image_size": _plain(config.image_size),
        "patch_size": _plain(config.patch_size),
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if config.approximate_gelu else "gelu",
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _levit(config: LeViTConfig) -> dict[str, Any]:
    dims, depths, heads, keys, values, mlp = (
        list(per_stage(value, config.stages))
        for value in (config.dim, config.depth, config.heads, config.dim_key, config.dim_value, config.mlp_mult)
    )
    # transformers derives the shrinking attentions from the first stage's key size.
    expected = (tuple(dim // keys[0] for dim in dims[:-1]), (4 * keys[0],) * (config.stages - 1))
    found = (config.heads_of_shrinks, config.values_of_shrinks[: config.stages - 1])
    check(config.stages == 3, f"transformers' LeViT has 3 stages, this one {config.stages}")
    check(found == expected, f"transformers' LeViT has shrinking attentions of {expected}, this one of {found}")
    check(
        all(value % key == 0 for value, key in zip(values, keys, strict=True)),
        f"transformers' LeViT needs dim_value to be multiples of dim_key, given {values} and {keys}",
    )
    teacher = "WithTeacher" if config.num_distill_classes else ""
    return {
        "model_type": "levit",
        "architectures": [f"LevitForImageClassification{teacher}"],
        "image_size": _plain(config.image_size),
        "hidden_sizes": dims,
        "depths": depths,
        "num_attention_heads": heads,
        "key_dim": keys,
        "attention_ratio": [value // key for value, key in zip(values, keys, strict=True)],
        "mlp_ratio": mlp,
        # No drop_path_rate: transformers 5 refuses to open a LeViT whose rate is not a whole number.
    }


def _cvt(config: CvTConfig) -> dict[str, Any]:
    check(not config.quick_gelu, "transformers' CvT computes with the exact GELU: this model has quick_gelu=True")
    stages = config.stages
    kernels = [stage.projection_kernel for stage in stages]
    return {
        "model_type": "cvt",
        "architectures": ["CvtForImageClassification"],
        "embed_dim": [stage.dim for stage in stages],
        "depth": [stage.depth for stage in stages],
        "num_heads": [stage.heads for stage in stages],
        "mlp_ratio": [float(stage.mlp_mult) for stage in stages],
        "patch_sizes": [stage.kernel for stage in stages],
        "patch_stride": [stage.stride for stage in stages],
        "patch_padding": [stage.padding for stage in stages],
        "kernel_qkv": kernels,
        "padding_q": [kernel // 2 for kernel in kernels],
        "padding_kv": [kernel // 2 for kernel in kernels],
        "stride_q": [1] * len(stages),
        "stride_kv": [stage.key_value_stride for stage in stages],
        "qkv_bias": [config.qkv_bias] * len(stages),
        "cls_token": [stage.class_token for stage in stages],
        "drop_rate": [config.dropout] * len(stages),
        "attention_drop_rate": [config.attention_dropout] * len(stages),
        "drop_path_rate": [stage.drop_path for stage in stages],
    }


_DESCRIPTIONS: Mapping[Any, Callable[[Any], dict[str, Any]]] = {ViTConfig: _vit, LeViTConfig: _levit, CvTConfig: _cvt}


def _plain(size: Any) -> Any:
    """A size as JSON has it: one number, or a list."""
    return list(size) if isinstance(size, tuple) else size
