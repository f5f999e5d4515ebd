"""Reproducers: how small they are for every planted fault, and that their files still fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutants import EDITS, WRONG, Mutant
from onnx import parser

from compiler.building import run_pass
from compiler.compare import compare_models
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline
from compiler.verify.proof import prove
from compiler.verify.reduction import READABLE
from compiler.verify.reproducer import write_reproducer, write_stage_reproducer
from compiler.verify.views import View, views_equal_to, views_of_shape

ROOT = Path(__file__).parents[1]
FILES = {"BUG_REPORT.md", "failure.json", "inputs.npz", "new.onnx", "old.onnx", "replay.sh"}

pytestmark = pytest.mark.usefixtures("one_thread")

# One of each kind; the others are slow together.
QUICK = {"scale missing", "k and v swapped", "heads interleaved",
         "two heads of the output swapped", "slice -1 of v", "head left out", "tiles overlap",
         "gelu by tanh", "BGR order", "half missing, copy", "rows flipped, batch",
         "copy reads the original", "maximum for range",
         "edit outside of the rewrite, insert_resize"}  # fmt: skip


def by_id(mutants: list[Mutant]):
    return [
        pytest.param(
            mutant,
            id=mutant.id.replace(" ", "_"),
            marks=[] if mutant.id in QUICK else [pytest.mark.slow],
        )
        for mutant in mutants
    ]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "failure.json").read_text())


def replayed(folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [folder / "replay.sh"], cwd="/", capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def failing(source: Path, mutant: Mutant, folder: Path) -> Path:
    """The reproducer of the first rewrite that is disproven."""
    (pass_,) = parse_pipeline(mutant.passes)
    _, done = run_pass(Graph.load(source), pass_)
    for rewrite in done.rewrites:
        proof = prove(rewrite, pass_)
        if proof.status == "fail":
            return write_reproducer(folder, rewrite, pass_, proof)
    raise AssertionError("nothing is disproven")


# -- every planted fault ---------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", by_id([m for m in WRONG if m not in EDITS]))
def test_a_fault_inside_a_rewrite_is_small_and_replays(depth_model, tmp_path, monkeypatch, mutant):
    mutant.plant(monkeypatch)
    folder = failing(depth_model, mutant, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == FILES
    record = record_of(folder)
    for name in ("old", "new"):
        model = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert len(model.graph.node) == record["nodes"][name] <= READABLE
    again = compare_models(folder / "old.onnx", folder / "new.onnx", inputs=folder / "inputs.npz",
                           bound=record["bound"])  # fmt: skip
    assert again.float64.status == "fail"
    assert record["error"] is None or again.float64.error == record["error"]


FOUND = {
    "scale x1.01": (["Mul", "Reshape"], ["Reshape", "Mul"]),
    "softmax over queries": (["Softmax", "Reshape"], ["Reshape", "Softmax"]),
    "residual skips the attention": (["Add"], ["Add"]),
    "copy differs in one weight": (["Conv"], ["Conv"]),
    "nearest in the first Resize": (["Identity"], ["Resize"]),
    "input flip missing, batch": (["Identity"], ["Concat"]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_left_is_the_fault(depth_model, tmp_path, monkeypatch, name):
    """The fault itself, and nothing before the last tensors that agree."""
    (mutant,) = [mutant for mutant in WRONG if mutant.id == name]
    mutant.plant(monkeypatch)
    folder = failing(depth_model, mutant, tmp_path / "out")
    models = [onnx.load(folder / f"{side}.onnx") for side in ("old", "new")]
    assert tuple([n.op_type for n in model.graph.node] for model in models) == FOUND[name]


def test_the_report_says_what_a_maintainer_asks(depth_model, tmp_path, monkeypatch):
    (mutant,) = [mutant for mutant in WRONG if mutant.id == "scale x1.01"]
    mutant.plant(monkeypatch)
    folder = failing(depth_model, mutant, tmp_path / "out")
    text = (folder / "BUG_REPORT.md").read_text()
    for part in ("# split_heads#1 at matmul_3 computes", "Pass `split_heads`", "bound 1e-12",
                 "matmul_2[:, 1:2]", "should be mul_3[:, 1:2]", "= Mul(", "sh replay.sh",
                 f"onnx {onnx.__version__}", "seed 0", "float32 [1, 1, 21, 21]"):  # fmt: skip
        assert part in text
    assert record_of(folder)["versions"]["onnx"] == onnx.__version__
    done = replayed(folder)
    assert (done.returncode, "differs" in done.stdout) == (1, True), done.stderr
    onnx.save(onnx.load(folder / "old.onnx"), folder / "new.onnx")
    assert replayed(folder).returncode == 0, "it passes once the models agree"


# -- stages that are wrong as a whole --------------------------------------------------------------


@pytest.mark.parametrize("mutant", by_id(EDITS))
def test_an_edit_outside_of_the_rewrites_leaves_the_node(
    depth_model, tmp_path, monkeypatch, mutant
):
    """Through the build: the reproducer of a stage that holds more than its rewrites."""
    from compiler.building import build_stages
    from compiler.verify.structure import record_faults

    mutant.plant(monkeypatch)
    passes = parse_pipeline(mutant.passes)
    (tmp_path / "b").mkdir()
    stages = build_stages(depth_model, passes, tmp_path / "b", verify="none", failures=tmp_path)
    before, after = (stage.path for stage in stages)
    (fault, *_) = record_faults(before, after, passes[0], stages[1].rewrites)
    folder = write_stage_reproducer(tmp_path / "out", before, after, passes[0], fault)
    assert record_of(folder)["nodes"] == {"old": 1, "new": 1}
    assert fault in (folder / "BUG_REPORT.md").read_text()
    assert replayed(folder).returncode == 1


STEPS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,14,14] x) => (float[1,3,14,14] y) { a = Sigmoid(x) b = Relu(a) y = Tanh(b) }"""


@pytest.fixture
def shifted(tmp_path) -> tuple[Path, Path]:
    """A model before and after a rewrite that is right but for rounding: (a + 4096) - 4096."""
    after = STEPS.replace("b = Relu(a)", "c = Add(a, k) d = Sub(c, k) b = Relu(d)")
    after = after.replace("{", "<float k = {4096.0}> {", 1)
    for name, text in (("before", STEPS), ("after", after)):
        onnx.save(parser.parse_model(text), tmp_path / f"{name}.onnx")
    return tmp_path / "before.onnx", tmp_path / "after.onnx"


def test_what_only_float32_shows_is_cut_at_shared_tensors(shifted, tmp_path):
    (pass_,) = parse_pipeline("canonicalize")
    folder = write_stage_reproducer(tmp_path / "out", *shifted, pass_, "float32 differs")
    record = record_of(folder)
    assert record["nodes"] == {"old": 1, "new": 3}
    assert (record["last_agreeing"], record["first_diverging"]) == (["a"], "b")
    assert "in float32." in (folder / "BUG_REPORT.md").read_text()
    done = replayed(folder)
    assert (done.returncode, "differs" in done.stdout) == (1, True), done.stderr


SHIFT = """
from dataclasses import dataclass
from types import SimpleNamespace
import numpy as np
from compiler.graph import producer_of, static_shape
from compiler.rewrite import Builder, LocalPass, Replacement

@dataclass(frozen=True)
class Shift(LocalPass):
    contract = "algebraic"

    def match(self, graph):
        found = [n for n in graph.nodes if n.op == "Relu" and producer_of(n.inputs[0]).op != "Sub"]
        return [SimpleNamespace(place=n.outputs[0].name, node=n) for n in found]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        (x,), (y,) = match.node.inputs, match.node.outputs
        builder, shape = Builder(graph, match.place), static_shape(y)
        far = builder.constant(np.array(4096.0), x.dtype, "far")
        there = builder.node("Add", [x, far], shape)
        back = builder.node("Sub", [there, far], shape)
        return Replacement(builder, [(y, builder.node("Relu", [back], shape))])
"""


@pytest.mark.parametrize("mode", ["each", "final"])
def test_what_float32_shows_is_blamed_on_its_own_stage(tmp_path, mode):
    """Comparing after the last pass only finds the first that is wrong all the same."""
    from compiler.building import build_stages
    from compiler.errors import VerificationError

    (tmp_path / "shift.py").write_text(SHIFT)
    (tmp_path / "b").mkdir()
    onnx.save(parser.parse_model(STEPS), tmp_path / "m.onnx")
    passes = parse_pipeline(f"canonicalize,{tmp_path}/shift.py,range_output")
    with pytest.raises(VerificationError, match="02_shift is wrong: the whole model in float32"):
        build_stages(tmp_path / "m.onnx", passes, tmp_path / "b", verify=mode,
                     failures=tmp_path / "out")  # fmt: skip
    assert record_of(tmp_path / "out")["first_diverging"] == "b"


def test_what_no_pair_of_models_shows_is_said(shifted, tmp_path):
    (pass_,) = parse_pipeline("canonicalize")
    same = shifted[0], shifted[0]
    folder = write_stage_reproducer(tmp_path / "out", *same, pass_, "something else is wrong")
    assert {path.name for path in folder.iterdir()} == {"BUG_REPORT.md", "failure.json"}
    assert "run the build again" in (folder / "BUG_REPORT.md").read_text()


# -- slices ----------------------------------------------------------------------------------------

WHOLE = np.random.default_rng(0).standard_normal((1, 6, 5, 8))
PARTS = {
    "a head": (WHOLE[:, 2], "t[:, 2:3]"),
    "columns": (WHOLE[..., 3:7], "t[:, :, :, 3:7]"),
    "every other column": (WHOLE[..., 1::2], "t[:, :, :, 1:8:2]"),
    "all": (WHOLE, "t"),
    "without ones": (WHOLE[0], "t"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_slice_is_found_by_its_values(part):
    values, text = PARTS[part]
    (view,) = views_equal_to(values, "t", WHOLE)
    assert str(view) == text
    np.testing.assert_array_equal(view.of({"t": WHOLE}), values)


def test_what_is_no_slice_is_not_found():
    assert list(views_equal_to(WHOLE[:, 2] + 1, "t", WHOLE)) == []
    assert list(views_equal_to(WHOLE[:, 2].astype(int), "t", WHOLE)) == []


def test_the_slices_of_a_shape():
    assert {str(v) for v in views_of_shape((1, 2, 5, 8), "t", WHOLE.shape)} == {
        "t[:, 0:2]", "t[:, 2:4]", "t[:, 4:6]", "t[:, 0:4:3]", "t[:, 1:5:3]", "t[:, 2:6:3]",
    }  # fmt: skip


def test_a_slice_of_a_slice():
    columns = View.whole("t", WHOLE.shape).part(3, 2, 8)
    assert str(columns.part(3, 1, 3)) == "t[:, :, :, 3:5]"
    assert columns.part(1, 0, 2) is None, "two axes"
    np.testing.assert_array_equal(columns.part(3, 1, 3).of({"t": WHOLE}), WHOLE[..., 3:5])
