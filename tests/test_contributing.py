"""The pass that CONTRIBUTING shows is a pass: it runs, is proven, and refuses as it says."""

import importlib.util
import re
import sys
from pathlib import Path

import onnx
import pytest

from compiler.graph import Graph
from compiler.rewrite import LocalPass, apply_pass
from compiler.verify.proof import prove

TEXT = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def merge_relu(tmp_path_factory: pytest.TempPathFactory) -> LocalPass:
    code = re.findall(r"```python\n(.*?)```", TEXT.read_text(), re.DOTALL)[0]
    path = tmp_path_factory.mktemp("passes") / "merge_relu.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("passes.merge_relu", path)
    module = sys.modules["passes.merge_relu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.MergeRelu()
    del sys.modules["passes.merge_relu"]


def graph(outputs: str) -> Graph:
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[2, 3] x) => ({outputs}) {{ a = Relu(x)  b = Relu(a)  y = Neg(b) }}"""
    return Graph(onnx.parser.parse_model(text), Path())


def test_it_merges_and_is_proven(merge_relu: LocalPass) -> None:
    model = graph("float[2, 3] y")
    (rewrite,) = apply_pass(model, merge_relu).rewrites
    assert [node.op for node in model.nodes] == ["Relu", "Neg"]
    assert prove(rewrite, merge_relu).status == "pass"
    assert not apply_pass(model, merge_relu).rewrites


def test_it_refuses_an_output(merge_relu: LocalPass) -> None:
    (refusal,) = apply_pass(graph("float[2, 3] y, float[2, 3] a"), merge_relu).refusals
    assert refusal.reason == "'a' is also an output"
