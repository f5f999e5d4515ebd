"""Fixtures that several test files share: graphs from ONNX text, and exports of real models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import parser

from compiler.graph import Graph

# Several sessions share two cores: a slow example says nothing.
settings.register_profile("shared", deadline=None, print_blob=True)
# For hours: pytest tests/test_fuzzing.py --hypothesis-profile=long
settings.register_profile("long", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("shared")


@pytest.fixture
def one_thread():
    """Matrices this small are slower in two threads, and far slower beside other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def depth_model(tmp_path_factory) -> Path:
    """The ONNX file of a small Depth Anything V2 with twin weights (small_depth.py); read only."""
    import small_depth

    return small_depth.write(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="session")
def model_of() -> Callable[..., onnx.ModelProto]:
    """A model from `g (float[2,3] x) => (float[2,3] y) <float[3,3] w> {…}` in an opset.

    Constants without values get random ones; the outputs' types may be left to shape inference.
    """
    return _model_of


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., Graph]:
    """The same as a `Graph`."""
    return lambda text, opset=20, seed=1: Graph(_model_of(text, opset, seed), Path())


def _model_of(text: str, opset: int = 20, seed: int = 1) -> onnx.ModelProto:
    ir_version = 8 if opset < 20 else 10
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = parser.parse_model(f"{header} {text}")
    rng = np.random.default_rng(seed)
    made = {name for node in model.graph.node for name in node.output}
    for weight in [value for value in model.graph.value_info if value.name not in made]:
        kind = weight.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values = rng.standard_normal([d.dim_value for d in kind.shape.dim])
        if np.dtype(dtype) == np.bool_:
            values = values > 0
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(values, dtype), weight.name)
        )
        model.graph.value_info.remove(weight)
    return model
