"""Bisection: the search, checks by numbers and by command, and every planted fault."""

import json
import sys
from pathlib import Path

import onnx
import pytest
from mutants import EDITS, EQUIVALENT, WRONG, Mutant
from onnx import parser
from typer.testing import CliRunner

from compiler.bisect.bisecting import bisect
from compiler.bisect.prefixes import Built
from compiler.bisect.search import Interval, first_bad
from compiler.building import build_record, build_stages, write_json
from compiler.cli import app
from compiler.errors import UserError
from compiler.pipeline import parse_pipeline
from compiler.verify.reduction import READABLE

PREFIX = "canonicalize,fold_norm"
pytestmark = pytest.mark.usefixtures("one_thread")

# One of each kind: in a head, of the weights, malformed, small, by comparing, declared, outside.
QUICK = {"scale x1.01", "slice +1 of k", "head left out", "LayerNorm eps x10",
         "one weight element x1.01", "copy differs in one weight", "rows flipped, batch",
         "edit outside of the rewrite, split_heads"}  # fmt: skip


def built(source: Path, passes: str, folder: Path) -> Path:
    """An unverified build."""
    pipeline = parse_pipeline(passes)
    folder.mkdir()
    stages = build_stages(source, pipeline, folder, verify="none", failures=folder / "failure")
    write_json(folder / "build.json", build_record(stages, pipeline, {"name": "m"}, "none"))
    return folder


def found(folder: Path, check: str | None = None) -> dict:
    """What the bisection of a build finds; the reproducer is `out` beside the build."""
    scratch = folder.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    return bisect(folder, scratch, folder.with_name("out"), check=check, told=lambda _: None,
                  progress=lambda *_: None)  # fmt: skip


# -- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 12, 100])
def test_the_first_bad_position_is_found(count):
    for culprit in range(1, count + 1):
        asked: list[int] = []

        def verdict(k, culprit=culprit, asked=asked):
            asked.append(k)
            return "bad" if k >= culprit else "good"

        assert first_bad(count, verdict, lambda *_: None) == Interval(culprit - 1, culprit)
        assert len(asked) == len(set(asked)) <= count.bit_length()
        assert not {0, count} & set(asked)


def test_what_can_not_be_told_stays_in_the_interval():
    said = {3: "skip", 4: "skip", 2: "good", 5: "bad", 1: "good", 6: "bad", 7: "bad"}
    interval = first_bad(8, lambda k: said[k], lambda *_: None)
    assert interval == Interval(2, 5)
    assert interval.left == 3


# -- planted faults --------------------------------------------------------------------------------


def pipeline_of(mutant: Mutant) -> str:
    if mutant.passes == "canonicalize":
        return "canonicalize,fold_norm,split_heads"
    own = mutant.passes.partition(":")[0]
    return mutant.passes if own in PREFIX else f"{PREFIX},{mutant.passes}"


def by_id(mutants: list[Mutant]):
    return [
        pytest.param(
            mutant,
            id=mutant.id.replace(" ", "_"),
            marks=[] if mutant.id in QUICK else [pytest.mark.slow],
        )
        for mutant in mutants
    ]


@pytest.mark.parametrize("mutant", by_id(WRONG))
def test_a_planted_fault_is_named_and_reproduced(depth_model, tmp_path, monkeypatch, mutant):
    with monkeypatch.context() as patch:
        mutant.plant(patch)
        folder = built(depth_model, pipeline_of(mutant), tmp_path / "b")
    mutant.plant(monkeypatch)  # it counts its calls: the pass may be run once more
    record = found(folder)
    assert record["pass"] == mutant.passes
    (title,) = record["rewrites"]
    name = mutant.passes.partition(":")[0]
    assert title.startswith((f"{name}#", f"{name}, outside") if mutant in EDITS else f"{name}#")
    nodes = json.loads((tmp_path / "out" / "failure.json").read_text())["nodes"]
    assert max(nodes.values()) <= READABLE
    verified = CliRunner().invoke(app, replay_arguments(tmp_path / "out"))
    assert verified.exit_code == 1


def replay_arguments(folder: Path) -> list[str]:
    """What `replay.sh` gives the command line."""
    last = (folder / "replay.sh").read_text().splitlines()[-1]
    words = last.partition("-m compiler ")[2].split()
    return [str(folder / word) if (folder / word).is_file() else word for word in words]


def test_the_rewrite_of_a_planted_fault_is_the_one_it_is_in(depth_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        (mutant,) = [mutant for mutant in WRONG if mutant.id == "scale x1.01"]
        mutant.plant(patch)
        folder = built(depth_model, "canonicalize,fold_norm,split_heads", tmp_path / "b")
    record = found(folder)
    assert record["rewrites"] == ["split_heads#1 at matmul_3"]
    assert (record["number"], record["passes"]) == (3, 3)
    assert any("split_heads): rewrites: 0–1 good, 0–2 bad → 1 left" in s for s in record["steps"])
    assert record["checks"] == 2 + 1 + 1 + 2, "both ends, two passes, two of four rewrites"


# -- by a command ----------------------------------------------------------------------------------

SCRIPT = """
import sys, onnx
names = {node.name for node in onnx.load(sys.argv[1], load_external_data=False).graph.node}
if any(name.startswith("matmul_5/") for name in names):
    sys.exit(3)
sys.exit(125 if any(name.startswith(tuple(sys.argv[2:])) for name in names) else 0)
"""


@pytest.fixture(scope="module")
def honest(depth_model, tmp_path_factory) -> Path:
    """A build without a fault; read only."""
    return built(
        depth_model, "canonicalize,fold_norm,split_heads", tmp_path_factory.mktemp("h") / "b"
    )


@pytest.fixture
def script(tmp_path, monkeypatch) -> str:
    """A check that does not like what split_heads makes of the third attention."""
    (tmp_path / "check me.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return f"{sys.executable} 'check me.py' {{model}}"


def invoke(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(result.output)


def test_a_command_finds_the_rewrite(honest, script, tmp_path):
    record = invoke("bisect", honest, "--check", script, "-o", tmp_path / "out")
    assert record["rewrites"] == ["split_heads#2 at matmul_5"]
    assert record["check"] == script
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"good.onnx", "bad.onnx", "weights.bin", "replay.sh", "BUG_REPORT.md"} <= names
    for name in ("good", "bad"):
        onnx.checker.check_model(str(tmp_path / "out" / f"{name}.onnx"), full_check=True)
    import subprocess

    assert subprocess.run(["sh", tmp_path / "out" / "replay.sh"], cwd="/").returncode == 1
    assert script in (tmp_path / "out" / "BUG_REPORT.md").read_text()


def test_a_command_that_can_not_tell_leaves_what_it_can(honest, script, tmp_path):
    record = invoke("bisect", honest, "--check", f"{script} matmul_1/", "-o", tmp_path / "out")
    assert record["rewrites"] == [f"split_heads#{i} at {place}" for i, place in
                                  enumerate(["matmul_1", "matmul_3", "matmul_5"])]  # fmt: skip
    assert record["reproducer"] is None


def test_the_models_between_stages_are_valid_and_mixed(honest, tmp_path):
    """One attention after the other is split."""
    build = Built.of(honest, tmp_path)
    units = build.units(3)
    counts = []
    for count in range(len(units) + 1):
        path = build.with_first(3, units, count)
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        counts.append(sum(node.op_type == "Softmax" for node in graph.node))
    assert counts == [4, 9, 14, 19, 24]


SUMS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,14,14] x) => (float[1,3,14,14] y) <float zero = {0.0}, float one = {1.0}>
{ a = Add(x, zero) b = Relu(a) c = Mul(b, one) d = Tanh(c) e = Add(d, zero) y = Sigmoid(e) }"""


def test_rewrites_that_are_found_by_comparing_are_applied_one_by_one(tmp_path):
    onnx.save(parser.parse_model(SUMS), tmp_path / "m.onnx")
    folder = built(tmp_path / "m.onnx", "canonicalize", tmp_path / "b")
    (tmp_path / "check.py").write_text(
        "import sys, onnx\n"
        "reads = [n.input[0] for n in onnx.load(sys.argv[1]).graph.node if n.op_type == 'Tanh']\n"
        "sys.exit(reads != ['c'])\n"
    )
    record = found(folder, f"{sys.executable} {tmp_path}/check.py {{model}}")
    (title,) = record["rewrites"]
    assert title.startswith("canonicalize#")
    assert title.endswith(" at d")


# -- what is refused -------------------------------------------------------------------------------

REFUSED = {
    "no placeholder": ("true", "has no {model}"),
    "no such command": ("no_such_command {model}", "no_such_command"),
    "the source is bad": ("test ! -e {model}", "the source is no good model"),
    "the result is good": ("test -e {model}", "the result is good"),
    "nothing can be told": ("sh -c 'exit 125' {model}", "the source is no good model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_check_that_shows_nothing_is_refused(honest, tmp_path, case):
    command, reason = REFUSED[case]
    scratch = tmp_path / "s"
    scratch.mkdir()
    with pytest.raises(UserError) as error:
        bisect(honest, scratch, tmp_path / "out", check=command, told=lambda _: None,
               progress=lambda *_: None)  # fmt: skip
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_build_without_a_fault_has_nothing_to_bisect(depth_model, tmp_path, monkeypatch):
    mutant = EQUIVALENT[0]
    with monkeypatch.context() as patch:
        mutant.plant(patch)
        folder = built(depth_model, f"{PREFIX},{mutant.passes}", tmp_path / "b")
    with pytest.raises(UserError, match="the result is good: the whole model in float32, and"):
        found(folder)


def test_what_is_no_reproducer_is_not_replaced(honest, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_bytes(b"irreplaceable")
    with pytest.raises(UserError, match="is no reproducer"):
        bisect(honest, tmp_path, tmp_path / "out", check="false {model}", told=lambda _: None,
               progress=lambda *_: None)  # fmt: skip
    assert (tmp_path / "out" / "photo.jpg").exists()


def test_what_is_no_build_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a build"):
        Built.of(tmp_path, tmp_path)


def test_a_model_and_a_pipeline_are_built_first(depth_model, script, tmp_path):
    record = invoke("bisect", depth_model, "--passes", "fold_norm,split_heads", "--check", script)
    assert record["rewrites"] == ["split_heads#2 at matmul_5"]
    assert Path(record["reproducer"]) == Path("source.onnx.bisect")
