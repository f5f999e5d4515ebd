"""Opening a stage in Netron, for real, and in Model Explorer: what it is given."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import onnx
import pytest

import compiler
from compiler.errors import UserError
from compiler.view import installed_viewer, stages_to_view, view, write_model_explorer

ROOT = Path(__file__).parent.parent
HEADS = """g (float[1,4,8] x) => (float[1,4,8] y)
<float[8,8] wq, float[8,8] wk, float[8,8] wv, int64[4] heads = {1, 4, 2, 4},
 int64[3] joined = {1, 4, 8}, float scale = {0.5}>
{
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    qr = Reshape(q, heads)
    kr = Reshape(k, heads)
    vr = Reshape(v, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (qr)
    kh = Transpose <perm = [0, 2, 3, 1]> (kr)
    vh = Transpose <perm = [0, 2, 1, 3]> (vr)
    products = MatMul(qh, kh)
    scores = Mul(products, scale)
    p = Softmax <axis = -1> (scores)
    o = MatMul(p, vh)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape(t, joined)
}"""


@pytest.fixture(scope="module")
def built(model_of, tmp_path_factory) -> Path:
    """A build of one attention with two heads; read only."""
    folder = tmp_path_factory.mktemp("viewed")
    onnx.save(model_of(HEADS), folder / "heads.onnx")
    compiler.build(str(folder / "heads.onnx"), "split_heads", output=folder / "built",
                   verify="none")  # fmt: skip
    return folder / "built"


@pytest.mark.parametrize("stage", ["02_split_heads", "split_heads", None])
def test_a_stage_comes_with_the_one_before(built, stage):
    assert stages_to_view(built, stage) == ["01_canonicalize", "02_split_heads"]


def test_the_source_comes_alone(built):
    assert stages_to_view(built, "source") == ["00_source"]


@pytest.mark.parametrize(("folder", "stage", "reason"), [
    ("nowhere", None, "not the folder of a build"),
    ("built", "fold_norm", "'fold_norm' is no stage of .*02_split_heads"),
])  # fmt: skip
def test_what_is_not_there_is_refused(built, folder, stage, reason):
    with pytest.raises(UserError, match=reason):
        view(built.parent / folder, stage)


def test_a_viewer_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "netron", None)
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    with pytest.raises(UserError, match=r"^netron is not installed: pip install netron$"):
        installed_viewer("netron")
    with pytest.raises(UserError, match="pip install netron or pip install ai-edge-model-explorer"):
        installed_viewer(None)


def test_netron_serves_the_stage(built):
    served = subprocess.Popen(
        [sys.executable, "-u", "-m", "compiler", "view", str(built), "--stage", "split_heads",
         "--with", "netron"],
        cwd=ROOT, env={**os.environ, "BROWSER": "true"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        lines = iter(served.stdout.readline, "")
        told = next(line for line in lines if "http" in line)
        assert "02_split_heads.onnx" in told
        url = re.search(r"http://\S+\d", told)[0]
        assert b"Netron" in urllib.request.urlopen(url, timeout=30).read()
    finally:
        served.kill()
        served.communicate()


def explored(built, folder) -> list[tuple[dict, dict]]:
    pairs = write_model_explorer(built, ["01_canonicalize", "02_split_heads"], folder)
    return [(json.loads(graph.read_text()), json.loads(data.read_text())) for graph, data in pairs]


def test_model_explorer_gets_both_stages_whole(built, tmp_path):
    (after,), (before,) = (graph for graph, _ in explored(built, tmp_path))
    assert (after["id"], before["id"]) == ("02_split_heads", "01_canonicalize")
    for stage, path in ((after, "02_split_heads.onnx"), (before, "01_canonicalize.onnx")):
        model = onnx.load(built / path, load_external_data=False).graph
        nodes = {node["id"]: node for node in stage["nodes"]}
        assert set(nodes) == {node.name for node in model.node} | {"input x", "output y"}
        edges = {(e["sourceNodeId"], name) for name, n in nodes.items()
                 for e in n.get("incomingEdges", [])}  # fmt: skip
        assert edges == edges_of(model)


def edges_of(model) -> set[tuple[str, str]]:
    made = {name: node.name for node in model.node for name in node.output} | {"x": "input x"}
    inside = {(made[name], node.name) for node in model.node for name in node.input if name in made}
    return inside | {(made["y"], "output y")}


def test_model_explorer_colours_nodes_by_pass(built, tmp_path):
    (_, data), (_, source) = explored(built, tmp_path)
    results = data["02_split_heads"]["results"]
    made = onnx.load(built / "02_split_heads.onnx", load_external_data=False).graph.node
    assert results.keys() == {node.name for node in made}
    colours = {(result["value"], result["bgColor"]) for result in results.values()}
    assert {value for value, _ in colours} == {"split_heads"}
    plain = {r["value"] for r in source["01_canonicalize"]["results"].values()}
    assert plain == {"source"}


def test_model_explorer_is_opened_with_graphs_and_their_data(built, tmp_path, monkeypatch):
    """With a stand-in for the package, which is large: it notes down what it is asked to show."""
    (tmp_path / "model_explorer.py").write_text(
        "import json, pathlib\n"
        "def visualize(model_paths, node_data):\n"
        "    assert all(pathlib.Path(path).is_file() for path in model_paths)\n"
        "    assert all(pathlib.Path(data['node_data_path']).is_file() for data in node_data)\n"
        f"    pathlib.Path({str(tmp_path / 'asked.json')!r}).write_text("
        "json.dumps([model_paths, node_data]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model_explorer", raising=False)
    view(built, None, "model-explorer")
    monkeypatch.delitem(sys.modules, "model_explorer")
    paths, data = json.loads((tmp_path / "asked.json").read_text())
    names = ["02_split_heads.json", "01_canonicalize.json"]
    assert [Path(path).name for path in paths] == names
    assert [entry["model_name"] for entry in data] == names
    assert not any(Path(path).exists() for path in paths)  # nothing is left behind
