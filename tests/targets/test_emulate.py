"""The NPU's numerics on this machine: float16 shows, and nothing else does."""

import json

import numpy as np
import onnx
import pytest
import small_depth
from PIL import Image
from targets.test_htp import needs_wheel
from typer.testing import CliRunner

import compiler
from compiler.cli import app
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.targets import htp
from compiler.targets.chips import CHIPS
from compiler.targets.emulate import emulate, expected_seconds, flops


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    pipeline = small_depth.PIPELINE.removeprefix("canonicalize,")
    compiler.build(str(small_depth.write(folder)), pipeline, output=folder / "build", verify="none")
    return folder / "build"


@needs_wheel
def test_float16_shows_and_stays_small(build, photo):
    seen = []
    found = emulate(build / "model.onnx", photo, CHIPS["s24"], lambda *step: seen.append(step))
    assert found.npu.shape == found.float32.shape == (64, 72)
    assert 1e-6 < found.error.centred_l2 < 0.02
    assert found.error.vacuous is None
    assert all(total == expected_seconds(build / "model.onnx") for _, _, total in seen)


@needs_wheel
@pytest.mark.slow
def test_the_competition_s_graph_at_350_is_within_a_percent(tmp_path, photo):
    compiler.build(
        "dav2-small", size="350", output=tmp_path / "build", weights="twin:0", verify="none"
    )
    found = emulate(tmp_path / "build" / "model.onnx", photo, CHIPS["s24"])
    assert found.error.centred_l2 < 0.01
    assert found.error.vacuous is None


@needs_wheel
def test_the_command_tells_the_time_and_draws(build, photo, tmp_path):
    picture = tmp_path / "npu.png"
    done = CliRunner().invoke(
        app, ["emulate", str(build), str(photo), "--chip", "s24", "-o", str(picture), "--json"]
    )
    assert "minutes" in done.stderr
    assert json.loads(done.stdout)["centred_l2"] < 0.02
    assert Image.open(picture).width > 1000


@needs_wheel
def test_float16_saturates_and_the_error_says_so(tmp_path, photo):
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (float[1,3,8,8] x) => (float[1,1,8,8] y) <float[1,3,1,1] w = {1500.0, 1500.0, 1500.0}> {
        a = Mul(x, w)  y = ReduceMean<axes = [1]>(a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    found = emulate(tmp_path / "model.onnx", photo, CHIPS["s24"])
    assert found.npu.max() < 132000 < found.float32.max()
    assert found.error.centred_l2 > 0.05


@needs_wheel
def test_what_runs_on_the_cpu_is_said(tmp_path, photo):
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (int32[1,3,8,8] x) => (float[1,1,8,8] y) {
        f = Cast<to=1>(x) a = Relu(f) [odd] b = Asinh(a) c = Mul(b, b)
        y = ReduceMean<axes = [1]>(c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    found = emulate(tmp_path / "model.onnx", photo, CHIPS["s24"])
    assert [node.name for node in found.cpu_nodes] == ["odd"]
    assert found.error.centred_l2 < 0.1


@needs_wheel
def test_what_the_provider_computes_wrong_shows(tmp_path, photo):
    """Measured with onnxruntime-qnn 2.7.0: its Cast from uint8 gives min(x, 1)."""
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (uint8[1,3,8,8] x) => (float[1,1,8,8] y) {
        f = Cast<to=1>(x) a = Relu(f) y = ReduceMean<axes = [1]>(a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    assert emulate(tmp_path / "model.onnx", photo, CHIPS["s24"]).error.centred_l2 > 1


@needs_wheel
def test_a_model_that_the_npu_leaves_whole_is_no_success(tmp_path, photo):
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (float[1,3,8,8] x) => (float[1,1,8,8] y) { y = ReduceL1<axes = [1]>(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="takes none of its nodes"):
        emulate(tmp_path / "model.onnx", photo, CHIPS["s24"])


def test_what_is_no_image_model_is_refused(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(htp.importlib.util, "find_spec", lambda _name: True)
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="not a model from one RGB image to one map"):
        emulate(tmp_path / "model.onnx", photo, CHIPS["s24"])


@pytest.mark.parametrize(
    ("call", "shapes", "expected"),
    [
        ("MatMul(a, b)", ("2,5,7", "7,3", "2,5,3"), 2 * 2 * 5 * 3 * 7),
        ("Gemm<transA=1>(a, b)", ("7,5", "7,3", "5,3"), 2 * 5 * 3 * 7),
        ("Conv<group=2>(a, b)", ("1,4,8,8", "6,2,3,3", "1,6,6,6"), 2 * 6 * 36 * 2 * 9),
        ("ConvTranspose<strides=[2,2]>(a, b)", ("1,4,3,3", "4,6,2,2", "1,6,6,6"), 2 * 36 * 6 * 4),
        ("Add(a, b)", ("4", "4", "4"), 0),
        ("MatMul(a, b)", ("N,7", "7,3", "N,3"), 0),
    ],
    ids=["matmul", "gemm-transposed", "conv-grouped", "conv-transposed", "no-product", "unknown"],
)
def test_arithmetic_is_counted(call, shapes, expected, tmp_path):
    a, b, y = shapes
    text = (f'<ir_version: 10, opset_import: ["": 17]> g (float[{a}] a, float[{b}] b) => '
            f"(float[{y}] y) {{ y = {call} }}")  # fmt: skip
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    graph = Graph.load(tmp_path / "m.onnx")
    assert flops(graph, graph.nodes[0]) == expected
