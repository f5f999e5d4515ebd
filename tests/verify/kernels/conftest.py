from collections.abc import Callable

import numpy as np
import onnx.parser
import pytest

from compiler.verify.float64 import evaluate


def _run(text, opset=20, **feeds):
    """The outputs of one node, given as ONNX text; feeds are whatever NumPy makes arrays of."""
    node = onnx.parser.parse_node(text)
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    wanted = [name for name in node.output if name]
    values = evaluate([node], {}, arrays, wanted, {"": opset})
    results = [values[name] for name in wanted]
    return results[0] if len(results) == 1 else results


@pytest.fixture(scope="session")
def run() -> Callable:
    return _run


@pytest.fixture
def rng():
    return np.random.default_rng(0)
