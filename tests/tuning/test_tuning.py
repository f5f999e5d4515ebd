"""Real searches on a small model: on this machine's CPU, and on the NPU's simulation."""

import importlib.util
import json
import resource
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

import compiler
from compiler.cli import app
from compiler.errors import UserError
from compiler.tuning import recommending, running, space
from compiler.tuning.figures import Figures, Measurement
from compiler.tuning.judges import Judge, judge_of
from compiler.tuning.measuring import Measuring
from compiler.tuning.recommending import judge_for
from compiler.tuning.running import Model, tune
from compiler.tuning.space import Slot, Space
from models.errors import ModelError

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="onnxruntime-qnn is not installed (extra htp)",
)
HALF_AN_HOUR = 30.0
TWO_SLOTS = (Slot(("fold_scale",)), Slot(("split_heads",)))


@pytest.fixture
def two_slots(monkeypatch):
    """A space of two passes, so that a search takes seconds."""
    monkeypatch.setattr(space, "SLOTS", TWO_SLOTS)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, depth_model):
    """A search on the CPU: (folder, record)."""
    folder = tmp_path_factory.mktemp("search") / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "SLOTS", TWO_SLOTS)
        return folder, tune(Model(str(depth_model)), folder, Judge(), minutes=HALF_AN_HOUR)


@pytest.fixture
def tuned(searched, tmp_path, two_slots):
    """The same in a folder of the test's own."""
    folder, record = searched
    return shutil.copytree(folder, tmp_path / "tuned"), record


def test_a_search_ends_with_a_verified_build_of_its_best(tuned):
    folder, record = tuned
    best = record["best"]
    assert record["finished"]
    found = {c["effective"] for c in record["candidates"]}
    assert {"", "split_heads,fold_scale"} <= found, "the clock decides what else is tried"
    stock = record["candidates"][0]["measurements"][0]
    assert stock["ms"] == stock["stock_ms"]
    built = json.loads((folder / "best" / "build.json").read_text())
    assert built["pipeline"] == best["effective"]
    assert built["verify"] == "each"
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "tune.json").read_text()) == record
    assert not list(folder.glob(".candidate*"))


def test_a_second_run_measures_nothing_again(tuned, monkeypatch, depth_model):
    folder, record = tuned

    def refuse(tasks, *_args, **_kwargs):
        raise AssertionError([task.label for task in tasks])

    monkeypatch.setattr("compiler.tuning.measuring.run_tasks", refuse)
    again = tune(Model(str(depth_model)), folder, Judge(), minutes=HALF_AN_HOUR)
    assert again["candidates"] == record["candidates"]
    assert again["best"] == record["best"]


def known(folder, base=(), judge=None, images=None):
    """What a folder's tune.json knows of the candidates of a question."""
    return running._Record(folder, judge or Judge(), Space.around(base), images).candidates


def test_another_question_is_measured_anew(tuned, tmp_path, monkeypatch):
    folder, _ = tuned
    assert known(folder)
    assert known(folder, judge=Judge(chips=("iq-9075",))) == {}
    assert known(folder, ("flip_average",)) == {}
    assert known(folder, images=photos(tmp_path / "photos")) == {}
    monkeypatch.setattr(running, "code_of", lambda passes: "changed")
    assert known(folder) == {}


def photos(folder):
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("text", ["", "[]", '{"candidates": [{"pipeline": ""}]}'])
def test_a_record_that_cannot_be_read_is_measured_anew(tuned, text):
    folder, _ = tuned
    (folder / "tune.json").write_text(text)
    assert known(folder) == {}


MINE = """
from dataclasses import dataclass
from types import SimpleNamespace
from compiler.graph import static_shape
from compiler.rewrite import Builder, LocalPass, Replacement

@dataclass(frozen=True)
class Mine(LocalPass):
    contract = "exact"

    def match(self, graph):
        found = [n for n in graph.nodes if n.op == "Relu"][:1]
        return [SimpleNamespace(place=n.outputs[0].name, node=n) for n in found
                if "Mine" not in n.name]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        builder = Builder(graph, "Mine")
        result = builder.node("Relu", match.node.inputs, static_shape(match.node.outputs[0]))
        return Replacement(builder, [(match.node.outputs[0], result)])
"""


def test_a_pass_of_the_users_own_is_in_the_line_that_wins(tmp_path, depth_model, monkeypatch):
    monkeypatch.setattr(space, "SLOTS", ())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    record = tune(Model(str(depth_model), "./mine.py"), tmp_path / "t", Judge(), minutes=5)
    assert record["best"]["effective"] == "./mine.py"
    assert known(tmp_path / "t", ("./mine.py",))
    (tmp_path / "mine.py").write_text(f"{MINE}# changed")
    assert known(tmp_path / "t", ("./mine.py",)) == {}


def test_the_winning_line_builds_the_model_that_won(tuned, tmp_path, depth_model):
    folder, record = tuned
    compiler.build(str(depth_model), record["best"]["effective"], output=tmp_path / "again")
    for name in ("model.onnx", "weights.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "best" / name).read_bytes()


def test_what_killed_workers_left_is_cleared_away(tmp_path, depth_model, monkeypatch):
    monkeypatch.setattr(space, "SLOTS", ())
    left = tmp_path / "t" / ".candidate-killed" / "weights.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"much")
    tune(Model(str(depth_model)), tmp_path / "t", Judge(), minutes=5)
    assert not left.parent.exists()


@needs_wheel
def test_the_npu_judges_by_several_schedules_of_each_chip(tmp_path, depth_model, two_slots):
    judge = Judge(("iq-9075", "sa8797"), schedules=2)
    record = tune(Model(str(depth_model)), tmp_path / "t", judge, minutes=HALF_AN_HOUR)
    stock, *others = record["candidates"]
    places = ["iq-9075", "iq-9075, 7 MB", "sa8797", "sa8797, 15 MB"]
    for candidate in (stock, *others):
        assert [m["where"] for m in candidate["measurements"]] == places
    assert all(m["ms"] == m["stock_ms"] for m in stock["measurements"])
    before = {m["where"]: m["ms"] for m in stock["measurements"]}
    assert all(m["stock_ms"] == before[m["where"]] for c in others for m in c["measurements"])


@needs_wheel
def test_a_target_takes_what_pays_and_says_why(tmp_path, depth_model, two_slots):
    record = compiler.build(
        str(depth_model), target="htp", chip="sa8797", output=tmp_path / "b", verify="each"
    )
    target = record["target"]
    assert target["chip"] == "sa8797"
    best = min(m["ms"] for c in target["measured"] for m in c["measurements"])
    chosen = [c for c in target["measured"] if c["effective"] == target["pipeline"]]
    assert chosen[0]["measurements"][0]["ms"] == best
    passes = [stage["name"] for stage in record["stages"][2:]]
    assert ",".join(passes) == target["pipeline"]
    assert len(target["reasons"]) == 3
    assert all("%" in reason or "finds nothing" in reason for reason in target["reasons"])


def test_the_cpu_target_times_the_passes_in_turns(tmp_path, depth_model, two_slots):
    record = compiler.build(str(depth_model), target="cpu", output=tmp_path / "b")
    measured = record["target"]["measured"]
    assert measured[0]["effective"] == ""
    assert all(m["where"] == "cpu" for c in measured for m in c["measurements"])


def test_a_phone_is_judged_by_the_chips_that_simulate():
    pytest.importorskip("onnxruntime_qnn")
    assert judge_for("htp", "s24").chips == ("iq-9075", "sa8775", "sa8797")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--chip", "s24"], "simulates no latency"),
        (["--chip", "iq9075"], "did you mean 'iq-9075'"),
        (["--cpu", "--chip", "iq-9075"], "their times do not compare"),
        (["--minutes", "0", "--cpu"], "--minutes 0"),
        (["--minutes", "nan", "--cpu"], "--minutes nan"),
        (["--max-loss", "nan", "--cpu"], "--max-loss nan"),
        (["--max-loss", "-1", "--cpu"], "--max-loss -1"),
        (["--memory", "0", "--cpu"], "--memory 0"),
        (["--images", "none", "--cpu"], "--images is for approximate passes"),
        (["--images", "none", "--max-loss", "0.1", "--cpu"], "--images none: no such folder"),
        (["--images", "passes", "--max-loss", "0.1", "--cpu"], "--images passes: no photos"),
        (["--passes", "insert_resize", "--cpu"], "needs height"),
        (["--max-loss", "2", "--cpu"], "--max-loss 2"),
        (["--schedules", "9"], "--schedules 9"),
        (["--passes", "split_head", "--cpu"], "did you mean 'split_heads'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, reason, tmp_path, depth_model):
    command = ["tune", str(depth_model), "-o", str(tmp_path / "t"), *arguments]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError)
    assert reason in str(result.exception)
    assert not (tmp_path / "t").exists()


def test_a_model_that_is_not_there_leaves_nothing(tmp_path):
    with pytest.raises(ModelError, match="no file"):
        tune(Model(str(tmp_path / "none.onnx")), tmp_path / "a" / "t", Judge(), minutes=1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_fault_of_a_candidate(tuned):
    """Files of this process and its workers may have 100 kB."""
    folder, _ = tuned
    source = folder / "stock" / "01_canonicalize.onnx"
    bench = Measuring(source, folder / "stock", Judge(), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"the disk is full: .*; free it or choose -o"):
            bench.measure([()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bench.known == {}
    assert not list(folder.glob(".candidate*"))


class Bench:
    """Measures pipelines of letters: each takes its time, some idle, some can't be together."""

    def __init__(self, ms, idle="", broken=()):
        self.known, self._ms, self._idle, self._broken = {}, ms, idle, broken

    def measure(self, candidates):
        return [self.known.setdefault(",".join(c), self._figures(c)) for c in candidates]

    def _figures(self, candidate):
        text = ",".join(candidate)
        if any({*broken} <= {*candidate} for broken in self._broken):
            return Figures(text, error="it crashed")
        working = [name for name in candidate if name not in self._idle]
        ms = 10 + sum(self._ms[name] for name in working)
        return Figures(text, ",".join(working), (Measurement("cpu", ms, 10),))


def recommended(monkeypatch, letters, bench):
    monkeypatch.setattr(space, "SLOTS", tuple(Slot((letter,)) for letter in letters))
    around = Space.around(())
    best, together = recommending._fastest(bench, around)
    measured = list(bench.known.values())
    return best.effective, recommending._reasons(around, Judge(), measured, best, together)


def test_a_pass_that_costs_is_left_out_and_an_idle_one_is_not_left_out_again(monkeypatch):
    bench = Bench({"a": -4, "b": 1, "c": 2}, idle="d")
    best, reasons = recommended(monkeypatch, "abcd", bench)
    assert best == "a"
    assert reasons == [
        "measured on cpu; stock is 100 %, all recommended passes 90.0%",
        "a: taken, without it 130.0%",
        "b: left out, without it 80.0%",
        "c: left out, without it 70.0%",
        "d: finds nothing to do",
    ]
    assert list(bench.known) == ["", "a,b,c,d", "b,c,d", "a,c,d", "a,b,d", "a,d"]


def test_passes_that_cannot_be_measured_together_are_so_without_what_prevents_it(monkeypatch):
    bench = Bench({"a": -4, "b": -1, "c": 1}, idle="d", broken=("ab",))
    best, reasons = recommended(monkeypatch, "abcd", bench)
    assert best == "a"
    assert reasons == [
        "measured on cpu; stock is 100 %, all recommended passes no build: it crashed",
        "a: taken, without it 110.0%",
        "b: left out, with it no build: it crashed",
        "c: left out, without it 60.0%",
        "d: finds nothing to do",
    ]


def test_what_can_never_be_measured_leaves_the_stock_model(monkeypatch):
    best, reasons = recommended(monkeypatch, "ab", Bench({"a": -4, "b": -1}, broken=("a", "b")))
    assert best == ""
    assert reasons[1:] == [f"{name}: left out, without it no build: it crashed" for name in "ab"]


def test_a_stock_model_without_all_costs_takes_at_least_that():
    stock = Figures("", "", (Measurement("iq-9075", 143, 143, missing_ops=30),))
    assert recommending._stock_share(stock) == "100 % or more (30 of its ops have no cost)"


def test_a_target_that_cannot_be_measured_is_refused(tmp_path, depth_model):
    with pytest.raises(UserError, match="takes no --chip"):
        compiler.build(str(depth_model), target="cpu", chip="s24", output=tmp_path / "b")
    with pytest.raises(UserError, match="no chip"):
        compiler.build(str(depth_model), target="htp", chip="s99", output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_judge_of_a_command_line():
    assert judge_of(None, None, cpu=False, schedules=3).chips == ("iq-9075",)
    assert judge_of(None, "Samsung Galaxy S24", cpu=False, schedules=3).chips == ()
    assert judge_of(None, None, cpu=True, schedules=3).places == ["cpu"]
