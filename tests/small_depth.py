"""A Depth Anything V2 that builds in seconds: four narrow layers, six heads, twin weights.

The image is 70×56, so that tokens (21), heads (6), head width (16) and columns of the map differ.
"""

from pathlib import Path

import torch

from models.depth_anything import DepthMap, empty_network
from models.export import export
from models.twin import twin_state_dict
from models.variants import RELATIVE, Encoder, Variant

HEIGHT, WIDTH = 70, 56
LAYERS, HEADS, CHANNELS = 4, 6, 96
TINY = Encoder(
    "tiny", "tiny", CHANNELS, LAYERS, HEADS, (1, 2, 3, 4), 16, (8, 16, 24, 32), non_commercial=False
)
PIPELINE = "canonicalize,insert_resize:height=64:width=72,fold_norm,split_heads,flip_average"


def network(seed: int = 0) -> DepthMap:
    """The torch module with twin weights."""
    empty = empty_network(Variant(TINY, RELATIVE))
    shapes = {name: parameter.shape for name, parameter in empty.named_parameters()}
    empty.load_state_dict(twin_state_dict(shapes, seed), assign=True)
    return DepthMap(empty, HEIGHT, WIDTH)


def write(folder: Path, module: torch.nn.Module | None = None) -> Path:
    """The ONNX file and its weights in `folder`."""
    path = folder / "source.onnx"
    export(module or network(), path, HEIGHT, WIDTH, "dynamo", 18)
    return path
