"""Real searches on a small model: on this machine's CPU, and on the NPU's simulation."""

import importlib.util
import json

import pytest
from typer.testing import CliRunner

import compiler
from compiler.cli import app
from compiler.errors import UserError
from compiler.tuning import judges, running, space
from compiler.tuning.judges import Judge, judge_of
from compiler.tuning.recommending import judge_for
from compiler.tuning.running import Model, tune
from compiler.tuning.space import Slot

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="onnxruntime-qnn is not installed (extra htp)",
)
HALF_AN_HOUR = 30.0


@pytest.fixture
def two_slots(monkeypatch):
    """A space of two passes, so that a search takes seconds."""
    slots = (Slot(("fold_scale",)), Slot(("split_heads",)))
    monkeypatch.setattr(space, "SLOTS", slots)


@pytest.fixture
def tuned(tmp_path, depth_model, two_slots):
    """A search on the CPU: (folder, record)."""
    folder = tmp_path / "tuned"
    return folder, tune(Model(str(depth_model)), folder, Judge(), minutes=HALF_AN_HOUR)


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


def test_another_model_or_judge_is_measured_anew(tuned, depth_model, monkeypatch):
    folder, _ = tuned
    monkeypatch.setattr(judges, "CPU_ROUNDS", 1)
    record = running._Record(folder, Judge(chips=("iq-9075",)))
    assert record.candidates == {}
    assert running._Record(folder, Judge()).candidates


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
