"""One preset against its PyTorch model: the same parameter count, the same logits, and the weights there and back."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

import eqx_vit
from eqx_vit.testing import image_size_of
from eqx_vit.weights import load_state_dict, to_state_dict

TOLERANCE = 2e-5  # of the largest logit
LARGEST = 150_000_000  # models with more parameters are compared at a reduced depth, and counted at full
COLUMNS = ("preset", "theirs", "parameters here", "parameters there", "logit difference")


@dataclasses.dataclass(frozen=True)
class Case:
    """`build(config, reduced)` makes the PyTorch model; `reduced` says that the config's depth is not the preset's.

    `fixed` are arrays that are parameters there, and here computed from the config: they are set to ours, and not
    counted. `returned` tells what comes back of the weights, where another form of them says the same; `added` is by
    how many parameters ours are more.
    """

    preset: str
    source: str
    theirs: str
    build: Callable[[Any, bool], torch.nn.Module]
    config: Any
    image_size: tuple[int, int] = (224, 224)  # for a config that takes any size
    fixed: tuple[str, ...] = ()
    returned: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict
    added: int = 0

    def __str__(self) -> str:
        return self.preset


def compare(case: Case, record: Callable[[str, Any], None]) -> None:
    """Assert all of it for one case; `record` gets the cells of the table's row."""
    for column, cell in zip(COLUMNS, (case.preset, case.theirs), strict=False):
        record(column, cell)
    ours = eqx_vit.count_params(skeleton(case.config)[0])
    config = _reduced(case.config) if ours > LARGEST else case.config
    record("parameters here", ours)
    module = case.build(config, config != case.config).eval()
    full = module if config == case.config else _on_meta(case)
    theirs = sum(parameter.numel() for name, parameter in full.named_parameters() if name not in case.fixed)
    record("parameters there", theirs)
    model, state = skeleton(config)
    weights = randomised(module, case.preset, {name: _fixed(config, case.source, name) for name in case.fixed})
    model, state = load_state_dict(model, state, weights, source=case.source)
    assert_equal(to_state_dict(model, state, case.source), case.returned(weights))
    image = _image(case)
    with torch.inference_mode():
        expected = module(torch.from_numpy(image))
    expected = pick_output(expected).numpy()
    del module, full, weights
    found = _logits(eqx.nn.inference_mode(model), state, jnp.asarray(np.moveaxis(image, 1, -1)))
    scale = float(np.abs(expected).max())
    difference = float(np.abs(np.asarray(found) - expected).max()) / scale
    at_depth = "" if config == case.config else " (reduced depth)"
    record("logit difference", f"{difference:.1e}{at_depth}")
    assert 0.01 < scale < 1000, f"logits of scale {scale} show nothing"
    assert difference <= TOLERANCE, f"the logits differ by {difference:.1e} of their scale {scale:.2f}"
    assert ours == theirs + case.added, f"{ours} parameters here, {theirs} there"


def pick_output(result: Any) -> torch.Tensor:
    """The logits; of a backbone the pooled features; of CLIP's the projected ones."""
    if isinstance(result, torch.Tensor):
        return result
    names = ("logits", "image_embeds", "pooler_output")
    return next(result[name] for name in names if result.get(name) is not None)


def skeleton(config: Any) -> tuple[Any, eqx.nn.State]:
    """The model and state with shapes in place of arrays, which the loader fills."""
    return eqx.filter_eval_shape(eqx_vit.create, config, key=jax.random.key(0))


def _reduced(config: Any) -> Any:
    """The config with few blocks: as many as the PyTorch models can be built with."""
    depths = {"depth": 2, "s1_depth": 1, "s2_depth": 2, "s3_depth": 3}
    names = [field.name for field in dataclasses.fields(config) if field.name in depths]
    return dataclasses.replace(config, **{name: min(getattr(config, name), depths[name]) for name in names})


def _on_meta(case: Case) -> torch.nn.Module:
    """The full model, without memory."""
    with torch.device("meta"):
        return case.build(case.config, False)


def _fixed(config: Any, source: str, name: str) -> np.ndarray:
    model, state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        skeleton(config),
    )
    return to_state_dict(model, state, source)[name]


def randomised(
    module: torch.nn.Module, name: str, fixed: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The module's state, drawn anew in place: every parameter counts, and activations keep about their scale."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = module.state_dict()
    for key, tensor in tensors.items():
        if fixed is not None and key in fixed:
            tensor.copy_(torch.from_numpy(np.array(fixed[key])))
        elif tensor.is_floating_point():
            start, last = key.rpartition(".")[::2]
            scale, mean = _distribution(last, tensor, f"{start}.running_mean" in tensors)
            tensor.normal_(generator=generator).mul_(scale).add_(mean)
            if last == "running_var":
                tensor.abs_()
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def _distribution(last: str, tensor: torch.Tensor, in_batch_norm: bool) -> tuple[float, float]:
    """Standard deviation and mean for a tensor, by the last part of its name."""
    if last == "running_mean":
        return 0.2, 0.0
    if last == "running_var":
        return 0.2, 1.0
    if last == "weight" and tensor.ndim == 1:
        return 0.1, 0.5 if in_batch_norm else 1.0  # nothing else tames the residuals of a model without LayerNorm
    if last.endswith("weight"):  # in_proj_weight, of the attention of torch
        return float(np.prod(tensor.shape[1:])) ** -0.5, 0.0
    if "gamma" in last:
        return 0.1, 0.5
    return (0.1, 0.0) if last.endswith("bias") else (0.5, 0.0)  # the others are tokens and tables


def assert_equal(returned: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> None:
    missing, more = sorted(set(given) - set(returned)), sorted(set(returned) - set(given))
    assert not missing, f"do not come back: {missing}"
    assert not more, f"come back and were not given: {more}"
    for key, array in given.items():
        assert np.asarray(returned[key]).dtype == array.dtype, key
        np.testing.assert_array_equal(returned[key], array, err_msg=f"{key} does not come back as it went in")


def _image(case: Case) -> np.ndarray:
    height, width = image_size_of(case.config, case.image_size)
    random = np.random.default_rng(zlib.crc32(case.preset.encode()))
    return random.standard_normal((1, case.config.channels, height, width), dtype=np.float32)


@eqx.filter_jit
def _logits(model: Any, state: eqx.nn.State, images: jax.Array) -> jax.Array:
    return eqx_vit.forward(model, state, images)[0]
