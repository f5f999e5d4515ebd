"""What goes to AI Hub: one model, its own weights, in the layout that qai-hub takes."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import compiler
from compiler.building import sha256
from compiler.compare import compare_models
from compiler.errors import UserError
from compiler.graph import PASS_KEY
from compiler.targets import package as module
from compiler.targets.package import package

TEXT = """g (float[4,32] x) => (float[4,32] y) <float[32,32] w, float[32] b, float[99,99] unused>
    { a = MatMul(x, w) [sum] c = Add(a, b) y = Relu(c) }"""
LAYOUTS = {"one file": 1 << 30, "two files": 0}


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    monkeypatch.setattr(module, "ONE_FILE_BELOW_NBYTES", LAYOUTS[request.param])
    return request.param


@pytest.fixture
def stored(model_of, tmp_path):
    """A model with external data, in a folder with things that are not its own."""
    path = tmp_path / "source" / "stage.onnx"
    path.parent.mkdir()
    model = model_of(TEXT)
    model.metadata_props.add(key="licence", value="MIT")
    model.graph.node[1].metadata_props.add(key=PASS_KEY, value="fold_norm")
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    shutil.copy(path, path.with_name("other.onnx"))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(4, 32)})
    return values


def test_the_layout(stored, tmp_path, layout):
    sent = package(stored, tmp_path / "upload")
    if layout == "one file":
        assert sent == tmp_path / "upload" / "model.onnx"
        assert names(tmp_path / "upload") == {"model.onnx"}
    else:
        assert sent == tmp_path / "upload"
        assert names(sent) == {"model.onnx", "model.data"}


def test_the_client_takes_it(stored, tmp_path, layout):
    client = pytest.importorskip("qai_hub.client", reason="qai-hub is not installed (extra hub)")
    with pytest.raises(client.UserError, match=r"exactly one \.onnx"):
        client._determine_model_type(stored.parent)
    sent = package(stored, tmp_path / "upload")
    assert client._determine_model_type(sent) == client.SourceModelType.ONNX


def test_the_model_is_the_same(stored, tmp_path, layout):
    package(stored, tmp_path / "upload")
    path = tmp_path / "upload" / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    np.testing.assert_array_equal(run(path), run(stored))
    before, after = onnx.load(stored), onnx.load(path)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    assert set(values) == {"w", "b"}
    for tensor in before.graph.initializer:
        if tensor.name in values:
            expected = onnx.numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(values[tensor.name], expected)
    for model in (before, after):
        del model.graph.initializer[:]
    assert after == before


def test_what_passes_said_survives(stored, tmp_path, layout):
    package(stored, tmp_path / "upload")
    model = onnx.load(tmp_path / "upload" / "model.onnx", load_external_data=False)
    assert [(p.key, p.value) for p in model.metadata_props] == [("licence", "MIT")]
    assert [p.value for p in model.graph.node[1].metadata_props] == ["fold_norm"]


def test_the_same_model_gives_the_same_bytes(stored, tmp_path, layout):
    moved = shutil.copytree(stored.parent, tmp_path / "elsewhere") / stored.name
    package(stored, tmp_path / "one")
    package(moved, tmp_path / "two")
    package(moved, tmp_path / "two")  # an earlier package is replaced
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for name in names(tmp_path / "one"):
        assert sha256(tmp_path / "one" / name) == sha256(tmp_path / "two" / name)


def test_embedded_weights(model_of, tmp_path, layout):
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model_of(TEXT), path)
    package(path, tmp_path / "upload")
    np.testing.assert_array_equal(run(tmp_path / "upload" / "model.onnx"), run(path))
    model = onnx.load(tmp_path / "upload" / "model.onnx", load_external_data=False)
    outside = [t.name for t in model.graph.initializer if t.data_location]
    assert outside == ([] if layout == "one file" else ["w"])


def test_weights_that_a_branch_reads(model_of, tmp_path, layout):
    body = """g (float[32] x, bool c) => (float[32] y) <float[32,32] w, float[32] unused>
        { y = If(c) <then_branch = t () => (float[32] u) { u = MatMul(x, w) },
                     else_branch = e () => (float[32] v) { v = Relu(x) }> }"""
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model_of(body), path, save_as_external_data=True, location="w", size_threshold=0)
    package(path, tmp_path / "upload")
    model = onnx.load(tmp_path / "upload" / "model.onnx")
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    onnx.checker.check_model(str(tmp_path / "upload" / "model.onnx"))


def test_small_types(tmp_path, layout):
    """Four bits an element: the bytes are taken as they are."""
    values = ",".join(str(i % 16 - 8) for i in range(64 * 64))
    text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[64,64] x) => (float[64,64] y)
        <int4[64,64] w = {{{values}}}, float s = {{0.5}}>
        {{ a = DequantizeLinear(w, s) y = Mul(x, a) }}"""
    model = onnx.parser.parse_model(text)
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    unpacked = onnx.numpy_helper.to_array(model.graph.initializer[0])
    packed = onnx.numpy_helper.from_array(unpacked, "w")
    model.graph.initializer[0].CopyFrom(packed)
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=64)
    package(path, tmp_path / "upload")
    after = onnx.load(tmp_path / "upload" / "model.onnx")
    stored = {t.name: t.raw_data for t in after.graph.initializer}
    assert stored["w"] == packed.raw_data


def test_a_build(depth_model, tmp_path, layout):
    """Of a folder with several stages and one weights file, one model's own."""
    compiler.build(str(depth_model), "split_heads", output=tmp_path / "build", verify="none")
    sent = package(tmp_path / "build" / "model.onnx", tmp_path / "upload")
    path = sent if layout == "one file" else sent / "model.onnx"
    assert compare_models(tmp_path / "build" / "model.onnx", path).is_equal
    package(tmp_path / "build" / "00_source.onnx", tmp_path / "source")
    sizes = [sum(p.stat().st_size for p in (tmp_path / f).iterdir()) for f in ("source", "build")]
    assert sizes[0] < sizes[1]


REFUSED = {
    "the model's own folder": ("source", "holds the model itself"),
    "a folder with something else": ("other", "exists and is no build"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(stored, tmp_path, what):
    folder, reason = REFUSED[what]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(UserError, match=reason):
        package(stored, tmp_path / folder)
    assert names(tmp_path / "other") == {"photo.jpg"}
    assert len(names(tmp_path / "source")) == 3


def test_a_missing_weights_file_leaves_nothing(stored, tmp_path):
    (stored.parent / "weights.bin").unlink()
    with pytest.raises(UserError, match="does not exist"):
        package(stored, tmp_path / "upload")
    assert not (tmp_path / "upload").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_stays_small(tmp_path, layout):
    """256 MB of weights, of which no more than a piece is in memory."""
    rows = 1 << 16
    text = f"""<ir_version: 10, opset_import: ["": 17]> g (float[1,{rows}] x) => (float[1,1024] y)
        <float[{rows},1024] w> {{ y = MatMul(x, w) }}"""
    model = onnx.parser.parse_model(text)
    weight = model.graph.initializer.add(name="w", data_type=1, dims=[rows, 1024], data_location=1)
    weight.external_data.add(key="location", value="w.bin")
    del model.graph.value_info[:]
    (tmp_path / "source").mkdir()
    onnx.save(model, tmp_path / "source" / "model.onnx")
    with (tmp_path / "source" / "w.bin").open("wb") as file:
        file.truncate(rows * 1024 * 4)
    script = f"""
import resource
from pathlib import Path
from compiler.targets import package
package.ONE_FILE_BELOW_NBYTES = {LAYOUTS[layout]}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
package.package(Path("source/model.onnx"), Path("upload"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    root = Path(compiler.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(root)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) < 64 << 10  # kilobytes
