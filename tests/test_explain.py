"""Explaining a node: every rewrite on its way, the source's nodes and PyTorch's modules."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import small_depth
from onnx import parser
from typer.testing import CliRunner

from compiler.building import build_record, build_stages, write_json
from compiler.cli import app
from compiler.errors import UserError
from compiler.explain import explain
from compiler.pipeline import parse_pipeline
from compiler.rewrite import ORIGIN_KEY, PASSES_KEY

QUERY = "network.backbone.encoder.layer.1.attention.q_proj"


def built(source: Path, passes: str, folder: Path) -> Path:
    """An unverified build."""
    pipeline = parse_pipeline(passes)
    folder.mkdir()
    stages = build_stages(source, pipeline, folder, verify="none", failures=folder / "failure")
    write_json(folder / "build.json", build_record(stages, pipeline, {"name": "m"}, "none"))
    return folder


@pytest.fixture(scope="module")
def build(depth_model, tmp_path_factory) -> Path:
    """The small Depth Anything V2 through the default passes; read only."""
    return built(depth_model, small_depth.PIPELINE, tmp_path_factory.mktemp("explain") / "b")


def metadata(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


# -- what every node says --------------------------------------------------------------------------


def test_every_node_says_its_rewrites_and_the_nodes_of_the_source(build):
    source = {node.name for node in nodes_of(build / "00_source.onnx")}
    copied = 0
    for node in nodes_of(build / "model.onnx"):
        said = metadata(node)
        if node.name in source:
            assert PASSES_KEY not in said
            continue
        origins, rewrites = said[ORIGIN_KEY].split(), said[PASSES_KEY].split()
        assert set(origins) <= source
        assert len(origins) == len(set(origins))
        assert rewrites[-1] == said["compiler.rewrite"]
        copied += len(rewrites) == 2
        first = ("insert_resize#", "split_heads#", "fold_norm#")
        assert len(rewrites) == 1 or rewrites[0].startswith(first)
    assert copied > 200, "the mirrored branch is a copy of split heads"


def test_what_was_found_by_comparing_says_it_too(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,14,14] x) => (float[1,3,14,14] y) <float zero = {0.0}>
    { <name> }""".replace("<name>", "a = Add(x, zero) b = Relu(a) y = Tanh(b)")
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    folder = built(tmp_path / "m.onnx", "canonicalize", tmp_path / "b")
    (relu,) = [n for n in nodes_of(folder / "model.onnx") if n.op_type == "Relu"]
    assert metadata(relu)[PASSES_KEY] == "canonicalize#0"
    assert metadata(relu)[ORIGIN_KEY].split() == ["Add_a", "Relu_b"]
    assert [o.node for o in explain(folder, "b").origins] == ["Add_a", "Relu_b"]


# -- histories -------------------------------------------------------------------------------------


def test_a_history_goes_through_every_pass_to_the_module(build):
    history = explain(build, "flip_average/matmul_3/Add_3")
    assert (history.stage, history.op) == ("05_flip_average", "Add")
    flip, split = history.steps
    assert flip.rewrite == "flip_average#0 at depth"
    assert flip.sources == ("matmul_3/Add_3",)
    assert split.rewrite == "split_heads#1 at matmul_3"
    assert split.stage == "04_split_heads"
    (how,) = split.weights.values()
    assert how == f"{QUERY}.bias[16:32]"
    (origin,) = history.origins
    assert (origin.node, origin.op, origin.module) == ("node_linear_6", "Add", QUERY)
    assert origin.module_class == "torch.nn.modules.linear.Linear"


@pytest.mark.parametrize("stage", ["04_split_heads.onnx", "05_flip_average.onnx", "model.onnx"])
def test_any_stage_can_be_asked(build, stage):
    history = explain(build / stage, "matmul_3/Add_3")
    assert [step.rewrite for step in history.steps] == ["split_heads#1 at matmul_3"]
    assert [origin.module for origin in history.origins] == [QUERY]


def test_a_node_of_the_source_has_no_steps(build):
    history = explain(build, "node_conv2d")
    assert history.steps == ()
    assert [origin.node for origin in history.origins] == ["node_conv2d"]


def test_a_node_that_a_pass_adds_comes_from_nothing(build):
    history = explain(build, "flip_average/Gather")
    assert [step.sources for step in history.steps] == [()]
    assert history.origins == ()


def test_a_weight_has_a_history(build):
    name = explain(build, "matmul_3/Add_3").steps[0].weights.popitem()[0]
    history = explain(build, name)
    assert (history.op, history.steps[0].rewrite) == ("weight", "split_heads#1 at matmul_3")
    assert history.steps[0].weights[name] == f"{QUERY}.bias[16:32]"


def test_a_model_away_from_its_build_says_what_its_nodes_say(build, tmp_path):
    shutil.copyfile(build / "model.onnx", tmp_path / "m.onnx")
    shutil.copyfile(build / "weights.bin", tmp_path / "weights.bin")
    history = explain(tmp_path / "m.onnx", "flip_average/matmul_3/Add_3")
    assert [step.rewrite for step in history.steps] == ["flip_average#0", "split_heads#1"]
    assert [origin.node for origin in history.origins] == ["node_linear_6"]


def test_the_older_exporter_has_the_module_in_the_name(tmp_path):
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }""")
    model.graph.node[0].name = "/encoder/layers.0/attn/Relu"
    onnx.save(model, tmp_path / "m.onnx")
    (origin,) = explain(tmp_path / "m.onnx", "y").origins
    assert origin.module == "encoder.layers.0.attn"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A build whose Relu comes from 80 nodes that do nothing and itself: more than a node names."""
    folder = tmp_path_factory.mktemp("chain")
    ops = " ".join(f"t{i + 1} = Identity(t{i})" for i in range(80))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3] t0) => (float[1,3] y) {{ {ops} r = Relu(t80) y = Tanh(r) }}"""
    onnx.save(parser.parse_model(text), folder / "m.onnx")
    return built(folder / "m.onnx", "canonicalize", folder / "b")


def test_nodes_that_a_node_does_not_name_are_counted_by_the_record(chain):
    history = explain(chain, "r")
    (step,) = history.steps
    assert set(step.sources) == {*(f"Identity_t{i + 1}" for i in range(80)), "Relu_r"}
    assert [origin.node for origin in history.origins] == list(step.sources)
    out = CliRunner().invoke(app, ["explain", str(chain), "r"]).output
    assert ", … 81 in all" in out


def test_without_the_record_there_are_so_many_or_more(chain, tmp_path):
    shutil.copyfile(chain / "model.onnx", tmp_path / "m.onnx")
    out = CliRunner().invoke(app, ["explain", str(tmp_path / "m.onnx"), "r"]).output
    assert ", … 64 or more in all" in out


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_a_history(build):
    out = CliRunner().invoke(app, ["explain", str(build), "flip_average/matmul_3/Add_3"]).output
    for part in ("flip_average#0 at depth", "split_heads#1 at matmul_3", "of node_linear_6",
                 f"module {QUERY} (torch.nn.modules.linear.Linear)"):  # fmt: skip
        assert part in out


def test_the_command_prints_json(build):
    arguments = ["explain", str(build), "matmul_3/Add_3", "--json"]
    record = json.loads(CliRunner().invoke(app, arguments).output)
    assert record["origins"][0]["module"] == QUERY


@pytest.mark.parametrize(
    ("name", "near"), [("matmul_3/Add_33", "'matmul_3/Add_3'"), ("?!", "names")]
)
def test_an_unknown_node_is_refused_in_one_line(build, name, near):
    with pytest.raises(UserError) as error:
        explain(build, name)
    assert near in str(error.value)
    assert "\n" not in str(error.value)
