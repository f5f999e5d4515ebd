"""The passes that CONTRIBUTING shows are passes: they run, are proven, and refuse as they say."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import compiler
from compiler.errors import VerificationError
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline
from compiler.rewrite import LocalPass, apply_pass
from compiler.verify.proof import prove

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "CONTRIBUTING.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def merge_relu(tmp_path_factory: pytest.TempPathFactory) -> LocalPass:
    path = tmp_path_factory.mktemp("passes") / "merge_relu.py"
    path.write_text(python_blocks()[0])
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


def test_it_merges_three_in_a_row(merge_relu: LocalPass) -> None:
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)  b = Relu(a)  y = Relu(b) }"""
    model = Graph(onnx.parser.parse_model(text), Path())
    rewrites = apply_pass(model, merge_relu).rewrites
    assert [node.op for node in model.nodes] == ["Relu"]
    assert {prove(rewrite, merge_relu).status for rewrite in rewrites} == {"pass"}


def test_it_refuses_an_output(merge_relu: LocalPass) -> None:
    (refusal,) = apply_pass(graph("float[2, 3] y, float[2, 3] a"), merge_relu).refusals
    assert refusal.reason == "'a' is also an output"


# -- the user's own file --------------------------------------------------------------------------

DIVISIONS = """<ir_version: 10, opset_import: ["": 18]>
agraph (float[2, 3] x, int64[2, 3] k) => (float[2, 3] y, float[2, 3] z, int64[2, 3] n)
<float[3] c = {2, -0.3, 7}, float[2, 1] zeros = {1, 0}, int64 two = {2}> {
    a = Div(x, c)  y = Neg(a)  z = Div(x, zeros)  n = Div(k, two)
}"""
QUOTIENT = """<ir_version: 10, opset_import: ["": 18]>
agraph (float[2, 3] x) => (float[2, 3] y) <float[3] c = {2, -0.3, 7}> { y = Div(x, c) }"""


@pytest.fixture
def own_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mul_by_reciprocal.py"
    path.write_text(python_blocks()[1])
    return path


def test_the_users_file_is_a_pass(own_pass: Path) -> None:
    (pass_,) = parse_pipeline("./mul_by_reciprocal.py")
    model = Graph(onnx.parser.parse_model(DIVISIONS), Path())
    done = apply_pass(model, pass_)
    assert sorted(node.op for node in model.nodes) == ["Div", "Div", "Mul", "Neg"]
    assert [prove(rewrite, pass_).status for rewrite in done.rewrites] == ["pass"]
    assert [refusal.reason for refusal in done.refusals] == 2 * ["an integer or a zero"]
    assert not apply_pass(model, pass_).rewrites


def test_it_is_built_and_recorded(own_pass: Path) -> None:
    onnx.save(onnx.parser.parse_model(QUOTIENT), "model.onnx")
    record = compiler.build("model.onnx", "./mul_by_reciprocal.py", output=Path("out"))
    assert record["pipeline"] == "canonicalize,./mul_by_reciprocal.py"
    assert record["stages"][-1]["float64"]["status"] == "pass"
    digest = hashlib.sha256(own_pass.read_bytes()).hexdigest()
    origin = {"path": str(own_pass), "sha256": digest, "package": ""}
    assert record["foreign_passes"] == {"mul_by_reciprocal": origin}


def test_a_fault_in_it_is_named_and_leaves_a_reproducer(own_pass: Path) -> None:
    own_pass.write_text(own_pass.read_text().replace("1 / graph", "2 / graph"))
    onnx.save(onnx.parser.parse_model(QUOTIENT), "model.onnx")
    with pytest.raises(VerificationError, match="mul_by_reciprocal#0 at y is wrong") as error:
        compiler.build("model.onnx", "./mul_by_reciprocal.py", output=Path("out"))
    assert not Path("out").exists()
    assert error.value.reproducer == Path.cwd() / "out.failure"
    replay = subprocess.run(["sh", error.value.reproducer / "replay.sh"], env=with_this_python())
    assert replay.returncode == 1


def test_it_is_20_lines() -> None:
    assert len([line for line in python_blocks()[1].splitlines() if line]) <= 21


def with_this_python() -> dict[str, str]:
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
