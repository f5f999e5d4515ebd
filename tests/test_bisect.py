"""Bisection: the search, checks by numbers and by command, and what it leaves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import approximated
import onnx
import pytest
from bisections import bisected, built
from mutants import EQUIVALENT, WRONG
from onnx import parser
from typer.testing import CliRunner

from compiler.bisect.bisecting import bisect, scratch_beside
from compiler.bisect.checks import CommandCheck, NumericCheck
from compiler.bisect.command import with_file_here, with_path
from compiler.bisect.culprit import disproven
from compiler.bisect.prefixes import Built
from compiler.bisect.search import Interval, first_bad
from compiler.cli import app
from compiler.errors import UserError
from compiler.pipeline import parse_pipeline
from compiler.records import read_record
from compiler.rewrite import GraphPass
from compiler.verify.reproducer import replaced

PREFIX = "canonicalize,fold_norm"
pytestmark = pytest.mark.usefixtures("one_thread")

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


# -- a planted fault -------------------------------------------------------------------------------


def test_the_rewrite_of_a_planted_fault_is_the_one_it_is_in(depth_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        (mutant,) = [mutant for mutant in WRONG if mutant.id == "scale x1.01"]
        mutant.plant(patch)
        folder = built(depth_model, "canonicalize,fold_norm,split_heads", tmp_path / "b")
    record = bisected(folder)
    assert record["rewrites"] == ["split_heads#1 at matmul_3"]
    assert (record["number"], record["passes"]) == (3, 3)
    assert any("split_heads): rewrites: 0–1 good, 0–2 bad → 1 left" in s for s in record["steps"])
    assert record["checks"] == 2 + 1 + 1 + 2, "both ends, two passes, two of four rewrites"


def test_the_stages_are_enough_where_the_pass_has_been_mended(depth_model, tmp_path, monkeypatch):
    """A pass that makes another model by now proves nothing of the one in the build."""
    with monkeypatch.context() as patch:
        (mutant,) = [mutant for mutant in WRONG if mutant.id == "scale x1.01"]
        mutant.plant(patch)
        folder = built(depth_model, "canonicalize,fold_norm,split_heads", tmp_path / "b")
    culprit = disproven(Built.of(folder, tmp_path), 3)
    assert culprit.title == "split_heads#1 at matmul_3"
    assert "centred relative L2" in culprit.detail
    assert disproven(Built.of(folder, tmp_path), 2) is None


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
    assert result.exit_code == 0
    return json.loads(result.output)


def replayed(folder: Path) -> int:
    """The exit code of `replay.sh`, from another folder."""
    return subprocess.run(["sh", folder / "replay.sh"], cwd="/", capture_output=True).returncode


def test_a_command_finds_the_rewrite(honest, script, tmp_path):
    record = invoke("bisect", honest, "--check", script, "-o", tmp_path / "out")
    assert record["rewrites"] == ["split_heads#2 at matmul_5"]
    assert record["check"] == script
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"good.onnx", "bad.onnx", "weights.bin", "replay.sh", "BUG_REPORT.md"} <= names
    for name in ("good", "bad"):
        onnx.checker.check_model(str(tmp_path / "out" / f"{name}.onnx"), full_check=True)
    assert replayed(tmp_path / "out") == 1
    (tmp_path / "out" / "bad.onnx").write_bytes((tmp_path / "out" / "good.onnx").read_bytes())
    assert replayed(tmp_path / "out") == 0, "no longer"
    (tmp_path / "check me.py").write_text("import sys; sys.exit(125)")
    assert replayed(tmp_path / "out") == 2, "it can't tell"
    assert script in (tmp_path / "out" / "BUG_REPORT.md").read_text()


SPLIT = """
import sys, onnx
names = {node.name for node in onnx.load(sys.argv[1], load_external_data=False).graph.node}
split = [i for i in range(4) if any(name.startswith(f"matmul_{2 * i + 1}/") for name in names)]
sys.exit(%s)
"""
TWISTED = {
    "two rewrites together": ("{1, 2} <= {*split}", "split_heads#2"),
    "a fault that a later rewrite hides": ("len(split) in (1, 4)", "split_heads#3"),
}


@pytest.mark.parametrize("case", TWISTED)
def test_what_is_named_makes_a_good_model_bad(honest, tmp_path, case):
    is_bad, name = TWISTED[case]
    (tmp_path / "check.py").write_text(SPLIT % is_bad)
    record = bisected_into(tmp_path, honest, f"{sys.executable} {tmp_path}/check.py {{model}}")
    (title,) = record["rewrites"]
    assert title.startswith(f"{name} at ")


def bisected_into(tmp_path: Path, build: Path, check: str | None) -> dict:
    with scratch_beside(tmp_path / "out") as scratch:
        return bisect(build, scratch, tmp_path / "out", check=check, told=lambda _: None,
                      progress=lambda *_: None)  # fmt: skip


def test_a_check_that_says_this_and_that_is_told_off(honest, tmp_path):
    """Bad, but good when it is asked again."""
    (tmp_path / "check.sh").write_text(
        'case $1 in *00_source*) exit 0;; esac; test -e "$2" && exit 0; '
        'case $1 in *03_*) touch "$2"; exit 1;; esac'
    )
    check = f"sh {tmp_path}/check.sh {{model}} {tmp_path}/asked"
    with pytest.raises(UserError, match=r"03_split_heads.* bad, and asked again good"):
        bisected_into(tmp_path, honest, check)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked", "check.sh"]


def test_a_command_that_can_not_tell_leaves_what_it_can(honest, script, tmp_path):
    record = invoke("bisect", honest, "--check", f"{script} matmul_1/", "-o", tmp_path / "out")
    assert record["rewrites"] == [f"split_heads#{i} at {place}" for i, place in
                                  enumerate(["matmul_1", "matmul_3", "matmul_5"])]  # fmt: skip
    assert record["reproducer"] is None


def test_passes_that_can_not_be_told_apart_are_all_named(honest, tmp_path):
    check = "case {model} in *00_*) exit 0;; *03_*) exit 1;; *) exit 125;; esac"
    record = bisected_into(tmp_path, honest, check)
    assert record["rewrites"] == ["canonicalize", "fold_norm#0 at div", "split_heads"]


def test_what_is_printed(honest, script, tmp_path):
    def printed(check):
        arguments = ["bisect", honest, "--check", check, "-o", tmp_path / "out"]
        result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
        return result.output.splitlines()

    lines = printed(script)
    assert "passes: 0–1 good, 0–3 bad → 2 left" in lines
    assert "pass 3 of 3 (split_heads): rewrites: 0–2 good, 0–3 bad → 1 left" in lines
    assert lines[-3] == ("split_heads#2 at matmul_5 is the first bad rewrite, of pass 3 of 3 "
                         "(split_heads)")  # fmt: skip
    assert lines[-2].startswith("6 models checked in ")
    assert lines[-1] == f"{tmp_path / 'out'}  replay.sh and a text for a bug report"
    unsure = printed(f"{script} matmul_1/")
    assert unsure[-2].startswith("one of split_heads#0 at matmul_1, split_heads#1 at matmul_3, ")


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
    record = bisected(folder, f"{sys.executable} {tmp_path}/check.py {{model}}")
    (title,) = record["rewrites"]
    assert title.startswith("canonicalize#")
    assert title.endswith(" at d")


BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3] x, bool b) => (float[1,3] y) <float zero = {0.0}, float one = {1.0}, float w = {3.0}>
{ a = Add(x, zero) r = Relu(a) m = Mul(r, one) t = Tanh(m)
  y = If(b) <then_branch = f () => (float[1,3] p) { p = Add(t, w) },
             else_branch = h () => (float[1,3] q) { q = Sub(r, w) }> }"""


def test_what_the_bodies_of_an_if_read_comes_before_it(tmp_path):
    onnx.save(parser.parse_model(BRANCHES), tmp_path / "m.onnx")
    build = Built.of(built(tmp_path / "m.onnx", "canonicalize", tmp_path / "b"), tmp_path)
    units = build.units(1)
    assert len(units) == 3
    for count in range(4):
        path = build.with_first(1, units, count)
        onnx.checker.check_model(str(path), full_check=True)


OLDER = """<ir_version: 11, opset_import: ["" : 22]>
g (float[1,3,14,14] x) => (float[1,3,14,14] y)
{ a = Dropout(x) b = Relu(a) c = HardSwish(b) d = Dropout(c) y = Elu(d) }"""


def test_a_pass_that_lowers_the_opset_can_not_be_applied_in_part(tmp_path):
    """Nodes of two opsets would not mean the same in one model."""
    onnx.save(parser.parse_model(OLDER), tmp_path / "m.onnx")
    build = Built.of(built(tmp_path / "m.onnx", "for_target:aihub", tmp_path / "b"), tmp_path)
    assert len(build.rewrites[0]) > 1
    assert build.units(1) == []
    record = bisected(tmp_path / "b", "case {model} in *00_*) exit 0;; *) exit 1;; esac")
    assert record["rewrites"] == ["for_target"]
    assert any("can't be applied one by one" in step for step in record["steps"])

    stage = onnx.load(build.stages[1])
    (node,) = [node for node in stage.graph.node if node.output[0] == "d"]
    node.op_type = "Neg"
    onnx.save(stage, build.stages[1])
    record = bisected(tmp_path / "b", "case {model} in *00_*) exit 0;; *) exit 1;; esac")
    assert [title.partition(" at ")[2] for title in record["rewrites"]] == ["d"]


# -- what is refused -------------------------------------------------------------------------------

REFUSED = {
    "no placeholder": ("true", "has no {model}"),
    "no such command": ("no_such_command {model}", "no_such_command"),
    "the source is bad": ("test ! -e {model}", "the source is bad"),
    "the result is good": ("test -e {model}", "the result is good"),
    "nothing can be told": ("sh -c 'exit 125' {model}", "the source can't be told"),
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
        bisected(folder)


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


@pytest.mark.parametrize(("options", "passes"), [([], 3), (["--no-canonicalize"], 2)])
def test_a_model_and_a_pipeline_are_built_first(depth_model, script, tmp_path, options, passes):
    """As `build` does, canonicalize and all."""
    record = invoke("bisect", depth_model, "--passes", "fold_norm,split_heads", "--check", script,
                    *options)  # fmt: skip
    assert record["rewrites"] == ["split_heads#2 at matmul_5"]
    assert record["number"] == record["passes"] == passes
    assert Path(record["reproducer"]) == Path("source.onnx.bisect")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check me.py", "source.onnx.bisect"]


def test_the_reproducer_of_the_folder_one_is_in_has_its_name(honest, script, tmp_path, monkeypatch):
    shutil.copytree(honest, tmp_path / "mine")
    (tmp_path / "mine" / "check me.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path / "mine")
    assert invoke("bisect", ".", "--check", script)["reproducer"] == "mine.bisect"


# -- what commands answer --------------------------------------------------------------------------

ANSWERS = {
    "good": ("exit 0", "good"),
    "bad": ("exit 1", "bad"),
    "bad by another code": ("exit 3", "bad"),
    "a crash is bad": ("kill -SEGV $$", "bad"),
    "a crash below a shell is bad": ("sh -c 'kill -SEGV $$'; exit $?", "bad"),
    "what it prints is no text": (r"printf '\377\376'; exit 0", "good"),
    "it can't tell": ("exit 125", "skip"),
}
UNRUN = {
    "not executable": ("/etc/passwd {model}", "can't be run: exit code 126"),
    "not there": ("no_such_command {model}", "can't be run: exit code 127"),
    "killed": ("kill -KILL $$ {model}", "stopped from outside"),
    "killed below a shell": ("exit 137; {model}", "stopped from outside"),
    "terminated": ("kill -TERM $$; true {model}", "stopped from outside"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_an_exit_code_means(tmp_path, case):
    command, verdict = ANSWERS[case]
    assert CommandCheck(f"true {{model}}; {command}")(tmp_path, 0) == verdict


@pytest.mark.parametrize("case", UNRUN)
def test_a_command_that_does_not_come_to_its_end_is_an_error(tmp_path, case):
    command, reason = UNRUN[case]
    with pytest.raises(UserError) as error:
        CommandCheck(command)(tmp_path, 0)
    assert reason in str(error.value)


QUOTED = ["{model}", '"{model}"', "'{model}'", "\\'{model}\\'", "'it is '\"{model}\"",
          '"\\"{model}"']  # fmt: skip


@pytest.mark.parametrize("text", QUOTED)
@pytest.mark.parametrize("name", ["plain", "a b", "it's", 'a "quote"', "$HOME `id` \\n"])
def test_a_path_arrives_whole_whatever_quotes_it_is_in(tmp_path, text, name):
    folder = tmp_path / name
    folder.mkdir()
    said = subprocess.run(["sh", "-c", f"printf %s {text}"], capture_output=True, text=True)
    commands = (
        with_path(f"printf %s {text}", folder / "m.onnx"),
        f'cd "$1"; here="$(pwd)"; {with_file_here(f"printf %s {text}", "m.onnx")}',
    )
    for command in commands:
        done = subprocess.run(["sh", "-c", command, "sh", folder], capture_output=True, text=True)
        assert done.stdout == said.stdout.replace("{model}", str(folder / "m.onnx"))


def test_what_a_command_said_of_a_bad_source_is_told(honest, tmp_path):
    check = "ls {model} >/dev/null && echo 'no device attached' >&2 && exit 4"
    with pytest.raises(
        UserError, match=r"the source is bad by .*\(exit code 4: no device attached"
    ):
        bisected_into(tmp_path, honest, check)


# -- where whole models tell nothing ---------------------------------------------------------------

UNTELLING = {
    "random numbers": "n = RandomNormalLike(r) y = Add(n, r)",
    "a Dropout that is trained": "y = Dropout(r, half, true)",
    "a map without contrast": "y = Mul(r, zero)",
}


@pytest.mark.parametrize("case", UNTELLING)
def test_a_source_that_tells_nothing_is_left_to_the_proofs(tmp_path, case):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,3] y) '
        "<float zero = {0.0}, float half = {0.5}, bool true = {1}> "
        f"{{ a = Add(x, zero) r = Relu(a) {UNTELLING[case]} }}"
    )
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    folder = built(tmp_path / "m.onnx", "canonicalize", tmp_path / "b")
    with pytest.raises(UserError, match="the result is good: every rewrite at its own cut; for"):
        bisected(folder)


class Coarse(GraphPass):
    """Stands for any pass that the build judges by its loss."""

    contract = "approximate"

    def simplified(self, graph):
        return graph

    def refusals(self, graph):
        return []


def test_what_is_behind_an_approximate_pass_is_compared_with_what_that_made(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,14,14] x) => (float[1,3,14,14] y) <float w = {%s}>
    { a = Mul(x, w) b = Mul(a, w) y = %s(b) }"""
    texts = {"source": ("0.003", "Tanh"), "coarse": ("0.002", "Tanh"), "bad": ("0.002", "Sigmoid"),
             "good": ("0.002", "Tanh")}  # fmt: skip
    for name, words in texts.items():
        onnx.save(parser.parse_model(text % words), tmp_path / f"{name}.onnx")
    paths = {name: tmp_path / f"{name}.onnx" for name in texts}
    stages = paths["source"], paths["coarse"], paths["good"]
    honest_one = parse_pipeline("fold_norm")[0]
    build = Built(stages, (Coarse(), honest_one), ((), ()), tmp_path, ("", ""))
    check = NumericCheck(build)
    said = [check(paths[name], number) for name, number in
            [("source", 0), ("coarse", 0), ("coarse", 1), ("good", 2), ("bad", 2)]]  # fmt: skip
    assert said == ["good", "bad", "good", "good", "bad"]
    assert disproven(build, 1) is None


def test_what_is_measured_is_not_said_to_hold(model_of, tmp_path):
    path = approximated.write(model_of(approximated.TEXT, 17), tmp_path)
    folder = built(path, "canonicalize,quantize", tmp_path / "b")
    loss = f"AbsRel {read_record(folder)['stages'][2]['loss']['value']:.2%}"
    told = []
    with pytest.raises(UserError, match=rf"good: .* cut but for quantize \({loss}\), which the"):
        bisect(folder, tmp_path / "s", tmp_path / "out", check=None, told=told.append,
               progress=lambda *_: None)  # fmt: skip
    *_, proven, measured = told
    assert proven.endswith("rewrites hold")
    assert "hold" not in measured
    assert measured.endswith(f"nothing to prove; the build measured {loss}")


# -- passes of the user's own ----------------------------------------------------------------------

HALVES = """
from dataclasses import dataclass
from types import SimpleNamespace
from compiler.graph import static_shape
from compiler.rewrite import Builder, LocalPass, Replacement

@dataclass(frozen=True)
class Halve(LocalPass):
    contract = "algebraic"

    def match(self, graph):
        found = [n for n in graph.nodes if n.op == "Div" and graph.is_constant(n.inputs[1])]
        return [SimpleNamespace(place=n.outputs[0].name, node=n) for n in found]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        (data, c), (quotient,) = match.node.inputs, match.node.outputs
        builder = Builder(graph, match.place)
        wrong = match.place == "b"
        factor = builder.constant((2 if wrong else 1) / graph.exact(c), c.dtype, "reciprocal")
        product = builder.node("Mul", [data, factor], static_shape(quotient))
        return Replacement(builder, [(quotient, product)])
"""
DIVISIONS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,14,14] x) => (float[1,3,14,14] y) <float two = {2.0}, float three = {3.0}>
{ a = Div(x, two) r = Relu(a) b = Div(r, three) y = Tanh(b) }"""


def test_a_pass_of_the_users_own_is_bisected_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "halve.py").write_text(HALVES)
    onnx.save(parser.parse_model(DIVISIONS), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    folder = built(tmp_path / "m.onnx", "canonicalize,./halve.py", tmp_path / "b")
    monkeypatch.chdir("/")
    record = bisected(folder)
    assert record["rewrites"] == ["halve#1 at b"]
    assert json.loads((tmp_path / "out" / "failure.json").read_text())["nodes"]["new"] == 1
    (tmp_path / "halve.py").write_text(f"{HALVES}\n")
    with pytest.raises(
        UserError, match=r"halve.py is no longer what the build ran: build it again"
    ):
        bisected(folder)


# -- stopped half-way ------------------------------------------------------------------------------


def test_a_reproducer_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "out"
    with replaced(folder) as beside:
        (beside / "failure.json").write_text("first")

    def stopped():
        with replaced(folder) as beside:
            (beside / "failure.json").write_text("second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (folder / "failure.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_models_between_stages_are_gone_in_the_end(tmp_path):
    def stopped():
        with scratch_beside(tmp_path / "not" / "there") as scratch:
            assert scratch.parent == tmp_path
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
