"""A real sweep of a small model: rows, files, and what a second run does again."""

import fcntl
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from hub.reached import service as service
from typer.testing import CliRunner

from compiler.cli import app
from compiler.errors import UserError
from compiler.sweep import running
from compiler.sweep.grid import read_grid
from compiler.sweep.state import fingerprint, is_current, read_state
from compiler.sweep.timing import cpu_ms
from compiler.targets import htp

HAS_WHEEL = importlib.util.find_spec("onnxruntime_qnn") is not None
needs_wheel = pytest.mark.skipif(
    not HAS_WHEEL, reason="onnxruntime-qnn is not installed (extra htp)"
)
DESCRIPTION = """
title = "Small"
model = "MODEL"
passes = "insert_resize:height=64:width=72"
[[axes.core]]
label = "plain"
[[axes.core]]
label = "heads"
passes = "split_heads"
[[axes.mirror]]
[[axes.mirror]]
label = "flip"
passes = "flip_average"
[published]
source = "the neighbour"
[published.ms]
heads-flip = 12.5
"""
WITHOUT_HEADS = DESCRIPTION.partition("[published]")[0].replace(
    '[[axes.core]]\nlabel = "heads"\npasses = "split_heads"\n', ""
)
LABELS = ["plain", "plain-flip", "heads", "heads-flip"]


def described(folder: Path, model: Path, text: str = DESCRIPTION) -> Path:
    path = folder / "small.toml"
    path.write_text(text.replace("MODEL", str(model)))
    return path


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file but the lock, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, depth_model):
    """One sweep of two times two variants: (description, folder, record)."""
    folder = tmp_path_factory.mktemp("sweep")
    description = described(folder, depth_model)
    record = running.sweep(read_grid(str(description)), folder / "out", runs=2, verify="final")
    return description, folder / "out", record


@pytest.fixture
def copied(swept, tmp_path):
    """The description and a copy of the sweep's folder, to spoil."""
    description, folder, _ = swept
    shutil.copytree(folder, tmp_path / "out")
    return description, tmp_path / "out"


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What workers do from here on, as `building plain`."""
    seen: list[str] = []
    run_tasks = running.run_tasks

    def recorded(tasks, *args, what, **kwargs):
        seen.extend(f"{what} {task.label}" for task in tasks)
        run_tasks(tasks, *args, what=what, **kwargs)

    monkeypatch.setattr(running, "run_tasks", recorded)
    return seen


def again(description: Path, folder: Path, **kwargs: object) -> dict:
    options = {"runs": 2, "verify": "final", **kwargs}
    return running.sweep(read_grid(str(description)), folder, **options)


# -- one run ---------------------------------------------------------------------------------------


def test_a_row_for_each_variant(swept):
    _, folder, record = swept
    assert [row["variant"] for row in record["rows"]] == LABELS
    assert [row["published_ms"] for row in record["rows"]] == [None, None, None, 12.5]
    for row in record["rows"]:
        built = json.loads((folder / row["variant"] / "build.json").read_text())
        nodes = len(onnx.load(folder / row["variant"] / "model.onnx").graph.node)
        assert row["nodes"] == nodes == built["stages"][-1]["nodes_after"]
        assert row["passes"] == built["pipeline"].removeprefix("canonicalize,")
        assert row["cpu_ms"] > 0
        assert row["error"] is None
    plain, plain_flip, heads, heads_flip = (row["nodes"] for row in record["rows"])
    assert plain < heads < heads_flip
    assert plain_flip > 2 * plain


@needs_wheel
def test_every_variant_is_simulated(swept):
    _, folder, record = swept
    for row in record["rows"]:
        low, middle, high = (row[f"simulated{part}_ms"] for part in ("_low", "", "_high"))
        assert 0 < low <= middle <= high
        assert row["fill_bytes"] > 0
        assert (row["missing_ops"], row["cpu_nodes"]) == (0, [])
    row = record["rows"][2]
    chip = running.chip_with_estimates("iq-9075")
    alone = htp.estimate(folder / "heads" / "model.onnx", chip)
    assert row["simulated_ms"] == alone.latency_ms
    assert row["spill_bytes"] == alone.spill_bytes


def test_the_folder_holds_the_record_the_table_and_the_plot(swept):
    _, folder, record = swept
    assert json.loads((folder / "sweep.json").read_text()) == record
    header, *lines = (folder / "sweep.csv").read_text().splitlines()
    assert header.startswith("variant,model,weights,size,passes,nodes,cpu_ms,simulated_ms,")
    assert [line.partition(",")[0] for line in lines] == LABELS
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    expected = {*LABELS, "sweep.json", "sweep.csv", "sweep.png", ".lock"}
    assert {path.name for path in folder.iterdir()} == expected


def test_the_command_prints_the_table(swept):
    description, folder, _ = swept
    options = ["sweep", str(description), "-o", str(folder), "--runs", "2", "--verify", "final"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("heads-flip"))
    assert line.split()[-1] == "12.5"
    assert "published: the neighbour." in result.stdout
    assert json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)["title"] == "Small"


# -- a second run ----------------------------------------------------------------------------------


def test_a_second_run_does_nothing_again(swept, done):
    description, folder, record = swept
    before = contents(folder)
    assert again(description, folder) == record, "with the same CPU times: none was measured"
    assert done == []
    after = contents(folder)
    written = {name for name in after if after[name] != before.get(name)}
    assert written == {"sweep.json", "sweep.csv", "sweep.png"}


def test_only_what_changed_is_built_again(copied, done, tmp_path):
    description, folder = copied
    text = description.read_text().partition("[[axes.mirror]]")[0]
    text = text.replace('"split_heads"', '"split_heads:group=2"')
    record = again(described(tmp_path, tmp_path, text), folder)
    assert done == ["building heads", *(["estimating heads"] if HAS_WHEEL else [])]
    assert [row["error"] for row in record["rows"]] == [None] * 2
    assert record["rows"][1]["passes"].endswith("split_heads:group=2")


@pytest.mark.parametrize("fault", ["model cut short", "weights gone", "no build.json", "no state"])
def test_a_broken_build_is_built_again(copied, done, fault):
    description, folder = copied
    model = folder / "heads" / "model.onnx"
    match fault:
        case "model cut short":
            model.write_bytes(model.read_bytes()[:-1])
        case "weights gone":
            (folder / "heads" / "weights.bin").unlink()
        case "no build.json":
            shutil.rmtree(folder / "heads")
        case "no state":
            (folder / "heads" / "variant.json").write_text("{")
    wanted = {v.label: fingerprint(v) for v in read_grid(str(description)).variants}
    current = [label for label in LABELS if is_current(folder / label, wanted[label], "final")]
    assert current == ["plain", "plain-flip", "heads-flip"]
    if fault == "model cut short":
        again(description, folder)
        assert done[:1] == ["building heads"]
        assert sum(line.startswith("building") for line in done) == 1
        assert is_current(folder / "heads", wanted["heads"], "final")


@pytest.mark.parametrize(
    ("verify", "expected"), [("none", True), ("final", True), ("each", False), ("full", False)]
)
def test_a_build_counts_if_it_is_verified_as_far_as_asked(swept, verify, expected):
    description, folder, _ = swept
    variant = read_grid(str(description)).variants[0]
    assert is_current(folder / "plain", fingerprint(variant), verify) is expected


def test_a_fingerprint_is_of_everything_that_a_build_is_made_from(swept, depth_model, tmp_path):
    shutil.copytree(depth_model.parent, tmp_path / "copy")
    model = tmp_path / "copy" / depth_model.name
    variant = replace(read_grid(str(swept[0])).variants[0], model=str(model))
    first = fingerprint(variant)
    assert fingerprint(replace(variant, label="x", published_ms=1.0)) == first
    for change in ({"passes": "fold_norm"}, {"size": "70"}, {"canonicalize": False},
                   {"weights": "twin:1"}, {"opset": 17}, {"exporter": "torchscript"}):  # fmt: skip
        assert fingerprint(replace(variant, **change)) != first, change
    (weights,) = [path for path in model.parent.iterdir() if path != model]
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    assert fingerprint(variant) != first


def test_the_cpu_is_timed_again_if_a_row_or_the_rounds_change(
    swept, depth_model, monkeypatch, tmp_path, done
):
    description, folder, record = swept
    shutil.copytree(folder, tmp_path / "out")
    timed = []

    def stand_in(models, runs, *_):
        timed.append((list(models), runs))
        return dict.fromkeys(models, 1.0)

    monkeypatch.setattr("compiler.sweep.timing.cpu_ms", stand_in)
    again(description, tmp_path / "out")
    assert timed == []
    assert again(description, tmp_path / "out", runs=3)["cpu"]["ms"] != record["cpu"]["ms"]
    again(described(tmp_path, depth_model, WITHOUT_HEADS), tmp_path / "out", runs=3)
    assert timed == [(LABELS, 3), (["plain", "plain-flip"], 3)]
    assert done == []


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_failed_variant_leaves_the_others(copied, tmp_path):
    description, folder = copied
    text = description.read_text() + '[[axes.core]]\nlabel = "lost"\npasses = "split_heads:group=6"'
    options = ["-o", str(folder), "--runs", "1", "--verify", "final"]
    result = CliRunner().invoke(app, ["sweep", str(described(tmp_path, tmp_path, text)), *options])
    assert result.exit_code == 1
    assert "rewrote nothing" in " ".join(result.stdout.split())
    *others, row, flipped = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [r["error"] for r in others] == [None] * 4
    assert min(r["cpu_ms"] for r in others) > 0
    for r in (row, flipped):
        assert r["error"].startswith("building: pass 'split_heads:group=6' rewrote nothing")
        assert (r["nodes"], r["cpu_ms"], r["simulated_ms"]) == (None, None, None)
    assert not (folder / "lost").exists()


def test_without_the_wheel_a_note_says_what_to_install(copied, monkeypatch, done):
    description, folder = copied

    def missing():
        raise UserError("Qualcomm's NPU compiler is not installed: pip install")

    monkeypatch.setattr(htp, "require_wheel", missing)
    noticed: list[str] = []
    record = again(description, folder, chip="sa8797", notice=noticed.append)
    assert done == []
    assert noticed == record["notes"] == ["Qualcomm's NPU compiler is not installed: pip install"]
    assert {row["simulated_ms"] for row in record["rows"]} == {None}
    assert min(row["cpu_ms"] for row in record["rows"]) > 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"chip": "s24"}, "simulates no latency"),
        ({"runs": 0}, "--runs 0"),
        ({"memory_gb": 0.0}, "--memory 0"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_written(swept, tmp_path, options, fault):
    with pytest.raises(UserError, match=fault):
        again(swept[0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_bad_model_names_file_and_variant(tmp_path):
    description = described(tmp_path, tmp_path / "none.onnx")
    with pytest.raises(UserError, match=r"small\.toml: variant 'plain': no file at .*none\.onnx"):
        again(description, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_sweep_at_a_time_works_in_a_folder(copied):
    description, folder = copied
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another sweep is at work there"):
            again(description, folder)


def test_a_killed_sweep_goes_on_where_it_stopped(depth_model, tmp_path, done):
    """Its workers end by themselves; what was built is not built again."""
    folder, labels = tmp_path / "out", ["plain", "plain-flip"]
    description = described(tmp_path, depth_model, WITHOUT_HEADS)
    command = [sys.executable, "-m", "compiler", "sweep", str(description), "-o", str(folder),
               "--verify", "none", "--memory", "0.1"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _wait_for(lambda: (folder / f".{labels[1]}.partial").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: _is_free(folder))
    assert [label for label in labels if read_state(folder / label)] == labels[:1]
    assert not list(folder.glob(".*.partial"))
    built = contents(folder / labels[0])["build.json"]
    record = again(description, folder, verify="none", runs=1)
    assert [line for line in done if line.startswith("building")] == [f"building {labels[1]}"]
    assert contents(folder / labels[0])["build.json"] == built
    assert [row["error"] for row in record["rows"]] == [None] * 2


def _wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_free(folder: Path) -> bool:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# -- on a device, by the unmodified client and the loopback service --------------------------------

DEVICE = "Samsung Galaxy S24 (Family)"


def test_on_a_device_nothing_is_uploaded_twice(copied, depth_model, tmp_path, service):
    folder = copied[1]
    description = described(tmp_path, depth_model, WITHOUT_HEADS)
    service.break_call("compile job create", 400)
    first = again(description, folder, device=DEVICE)["rows"]
    (failed,) = [row for row in first if row["error"]]
    assert failed["error"].startswith(f"on {DEVICE}: ")
    assert failed["hub_ms"] is None
    assert failed["cpu_ms"] > 0
    assert sum(row["hub_ms"] is not None for row in first) == 1
    second = again(description, folder, device=DEVICE)
    assert second["device"] == DEVICE
    assert [row["error"] for row in second["rows"]] == [None, None]
    assert min(row["hub_ms"] for row in second["rows"]) > 0
    sent = len(service.requests)
    assert again(description, folder, device=DEVICE) == second
    assert len(service.requests) == sent + 1, "the device's lookup, and nothing else"
    assert service.count("model create") == 2


def test_a_device_that_nobody_has_is_refused_before_the_builds(swept, tmp_path, service):
    with pytest.raises(UserError, match="AI Hub has no device 'S 24'"):
        again(swept[0], tmp_path / "out", device="S 24")
    assert not (tmp_path / "out").exists()


# -- the CPU's timing ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 1 << 40], ids=["sessions made anew", "sessions kept"])
def test_models_are_timed_in_turns(swept, budget):
    models = {label: swept[1] / label / "model.onnx" for label in LABELS[:2]}
    told = []
    found = cpu_ms(models, 3, budget, lambda *args: told.append(args))
    assert [what for what, _, _ in told] == ["timing plain", "timing plain-flip"] * 3
    assert [done for _, done, _ in told] == list(range(6))
    assert list(found) == LABELS[:2]
    assert min(found.values()) > 0


def test_a_dynamic_model_is_not_timed(tmp_path):
    text = """<ir_version: 10, opset_import: ["": 17]>
    g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "dynamic.onnx")
    assert cpu_ms({"dynamic": tmp_path / "dynamic.onnx"}, 1, 1 << 40) == {}
