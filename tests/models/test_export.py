"""The exported file: the same function as torch's, the same bytes every time, and no noise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models import load_image, resolve, sample_image
from models.depth_anything import DepthMap, empty_network
from models.export import export
from models.sources import _weighted_network
from models.twin import twin_state_dict
from models.variants import VARIANTS
from tests.models.official import export_official, official_model
from tests.models.tiny import METRIC_INDOOR, tiny_variant

EXPORTERS = ["dynamo", "torchscript"]

EXPORT_SMALL = """
import sys, pathlib, models
for exporter in ("dynamo", "torchscript"):
    folder = pathlib.Path(sys.argv[1]) / exporter
    folder.mkdir()
    models.resolve("dav2-small", size="70x84", weights="twin:0", exporter=exporter).write(folder)
"""


def run_model(path: Path, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options).run(None, {"image": image})[0]


def tiny_module(height: int, width: int, **kind) -> DepthMap:
    network = empty_network(tiny_variant(**kind))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    network.load_state_dict(twin_state_dict(shapes, 0), assign=True)
    return DepthMap(network, height, width)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Export the Small twin in two fresh processes, with both exporters."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EXPORT_SMALL, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
        )
        for seed, folder in enumerate(folders, start=1)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folders, said


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_two_processes_write_the_same_bytes(twice, exporter):
    first, second = (folder / exporter for folder in twice[0])
    names = sorted(path.name for path in first.iterdir())
    assert names == ["source.onnx", "source.onnx.data"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_nothing_is_printed(twice):
    assert twice[1] == [b"", b""]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_no_machine_is_in_the_file(twice, exporter):
    content = (twice[0][0] / exporter / "source.onnx").read_bytes()
    for trace in (str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), "site-packages"):
        assert trace.encode() not in content
    assert b'.py"' not in content


@pytest.mark.parametrize("exporter", EXPORTERS)
@torch.no_grad()
def test_small_equals_torch(twice, exporter):
    image = load_image(sample_image(), 70, 84)
    network = _weighted_network(VARIANTS["dav2-small"], "twin:0")
    expected = DepthMap(network, 70, 84)(torch.from_numpy(image)).numpy()
    actual = run_model(twice[0][0] / exporter / "source.onnx", image)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_signature_and_normalization(twice, exporter):
    path = twice[0][0] / exporter / "source.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": [1, 3, 70, 84], "depth": [1, 70, 84]}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[:2] == ["Sub", "Div"]
    assert kinds.count("Softmax") == 12
    assert "Where" not in kinds, "no attention mask of ones"
    assert kinds.count("Resize") == 5, "positions are a constant: only the head resizes"


def test_nodes_keep_the_module_they_came_from(twice):
    model = onnx.load(twice[0][0] / "dynamo" / "source.onnx", load_external_data=False)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    metadata = {entry.key: entry.value for entry in softmax.metadata_props}
    assert metadata.keys() == {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}
    assert "network.backbone.encoder.layer.0.attention" in metadata["pkg.torch.onnx.name_scopes"]


@pytest.mark.parametrize("exporter", EXPORTERS)
@torch.no_grad()
def test_a_metric_swiglu_model_equals_torch(tmp_path, exporter):
    module = tiny_module(70, 98, swiglu=True, head=METRIC_INDOOR)
    path = tmp_path / "a.onnx"
    export(module, path, 70, 98, exporter, 18)
    image = load_image(sample_image(), 70, 98)
    expected = module(torch.from_numpy(image)).numpy()
    assert expected.std() > 1e-3
    assert np.abs(run_model(path, image) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 20), ("torchscript", 18)])
def test_the_opset_is_what_was_asked_for(tmp_path, exporter, opset):
    export(tiny_module(28, 28), tmp_path / "a.onnx", 28, 28, exporter, opset)
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}


@pytest.mark.parametrize(
    ("exporter", "opset"), [("dynamo", 18), ("dynamo", 20), ("torchscript", 17)]
)
@torch.no_grad()
def test_the_official_restatement_exports(tmp_path, exporter, opset):
    official = official_model("tiny", seed=5)
    export_official(official, tmp_path / "a.onnx", 56, 70, exporter, opset)
    image = load_image(sample_image(), 56, 70)
    expected = official(torch.from_numpy(image)).numpy()
    actual = run_model(tmp_path / "a.onnx", image)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_checkpoint_becomes_a_file(tmp_path):
    official = official_model("vits", seed=3)
    checkpoint = tmp_path / "depth_anything_v2_vits.pth"
    torch.save(official.state_dict(), checkpoint)
    path = resolve(str(checkpoint), size="56x70", exporter="torchscript").write(tmp_path)
    image = load_image(sample_image(), 56, 70)
    expected = official(torch.from_numpy(image)).numpy()
    assert np.abs(run_model(path, image) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_a_model_beyond_2_gb_is_written(tmp_path):
    path = resolve("dav2-giant", size="70", weights="twin:0").write(tmp_path)
    assert path.stat().st_size < 10_000_000
    assert path.with_name("source.onnx.data").stat().st_size > 5_000_000_000
    depth = run_model(path, load_image(sample_image(), 70, 70))
    assert depth.shape == (1, 70, 70)
    assert depth.std() > 0.01
