"""What is remembered of AI Hub: names before requests, ids after them, for these bytes only."""

import errno
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.errors import UserError
from compiler.hub.client import FAILED, SUCCESS
from compiler.hub.state import Asked, Compilation, DeviceRun, State, content_sha256

TEXT = "g (float[4,600] x) => (float[4,600] y) <float[600] w> { y = Mul(x, w) }"


@pytest.fixture
def model(model_of, tmp_path) -> Path:
    """A model with its weights in a file beside it."""
    path = tmp_path / "net.onnx"
    onnx.save(model_of(TEXT), path, save_as_external_data=True, location="w.data")
    return path


def kept(path: Path) -> dict:
    return json.loads(path.read_text())["hub"]


def test_it_comes_back_as_it_was_saved(model):
    state = State.of(model)
    state.upload = Asked("net 1234", "mabc", "https://hub/m", SUCCESS)
    compilation = state.compilation("Phone", "--target_runtime onnx")
    compilation.job = Asked("net 5678", "jabc")
    compilation.runs = [DeviceRun("f" * 64, Asked("i", "d1"), Asked("r", "j2", "u", FAILED))]
    compilation.shared_with, compilation.files = ["a@b.org"], {"model.bin": "0" * 64}
    state.save()
    assert State.of(model) == state
    assert kept(model.with_name("net.hub.json")) == state.record()


@pytest.mark.parametrize("file", ["net.onnx", "w.data"])
def test_other_bytes_start_anew(model, file):
    state = State.of(model)
    state.upload = Asked("net 1234", "mabc")
    state.save()
    path = model.with_name(file)
    if file == "w.data":
        np.arange(600, dtype=np.float32).tofile(path)
    else:
        changed = onnx.load(path, load_external_data=False)
        changed.graph.name = "another"
        path.write_bytes(changed.SerializeToString())
    assert State.of(model).upload == Asked()


@pytest.mark.parametrize(
    ("text", "says"), [("[]", "no JSON object"), ('{"hub": []}', "damaged; give --anew")]
)
def test_a_file_of_another_shape_is_refused(model, text, says):
    model.with_name("net.hub.json").write_text(text)
    with pytest.raises(UserError, match=says):
        State.of(model)


def test_other_options_have_a_folder_of_their_own():
    plain = Compilation("Phone", "--target_runtime qnn_dlc")
    other = Compilation("Phone", "--target_runtime qnn_dlc --quantize_io")
    assert plain.folder_name == "phone-qnn_dlc"
    assert other.folder_name.startswith("phone-qnn_dlc-")


def test_a_moved_model_is_the_same(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    before = content_sha256(model)
    for name in ("net.onnx", "w.data"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert content_sha256(tmp_path / "elsewhere" / "net.onnx") == before


def test_a_folder_that_is_no_build_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a build"):
        State.of(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not an ONNX"):
        State.of(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda hub: hub.pop("upload"), "damaged; give --anew"),
        (lambda hub: hub["compilations"].append({"device": "Phone"}), "damaged; give --anew"),
        (lambda hub: hub["upload"].update(more=1), "damaged; give --anew"),
        (lambda hub: hub["upload"].update(id=5), "damaged; give --anew"),
    ],
)
def test_a_damaged_record_is_refused(model, change, says):
    State.of(model).save()
    path = model.with_name("net.hub.json")
    record = json.loads(path.read_text())
    change(record["hub"])
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=says):
        State.of(model)
    assert State.of(model, anew=True).compilations == []


def test_half_a_file_is_refused(model):
    model.with_name("net.hub.json").write_text("{")
    with pytest.raises(UserError, match=r"net\.hub\.json: can't be read as JSON"):
        State.of(model)


def test_a_full_disk_leaves_the_old_state(model, monkeypatch):
    state = State.of(model)
    state.save()
    before = model.with_name("net.hub.json").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    state.upload.id = "mabc"
    with pytest.raises(UserError, match="No space left"):
        state.save()
    assert model.with_name("net.hub.json").read_text() == before
    assert sorted(p.name for p in model.parent.iterdir()) == ["net.hub.json", "net.onnx", "w.data"]


@pytest.mark.parametrize(
    ("asked", "is_open", "was_asked"),
    [
        (Asked(), True, False),
        (Asked("net 1234"), True, True),
        (Asked("net 1234", "jabc"), False, False),
        (Asked("net 1234", "jabc", status=SUCCESS), False, False),
        (Asked("net 1234", "jabc", status=FAILED), True, False),
    ],
    ids=["new", "lost", "under way", "done", "failed"],
)
def test_what_has_still_to_be_asked_for(asked, is_open, was_asked):
    assert (asked.is_open, asked.was_asked) == (is_open, was_asked)


def test_any_run_is_a_profile():
    done, failed = Asked("r", "j1", status=SUCCESS), Asked("r", "j2", status=FAILED)
    compilation = Compilation("Phone", "", runs=[DeviceRun("a", job=failed), DeviceRun("b")])
    assert compilation.run("b") is compilation.runs[1]
    assert compilation.run(None) is compilation.runs[2], "a new one: neither has succeeded"
    compilation.runs = [DeviceRun("a", job=failed), DeviceRun("b", job=done)]
    assert compilation.run(None) is compilation.runs[1]
    assert compilation.run("c").image == "c"


@pytest.mark.parametrize(
    ("device", "options", "name"),
    [
        ("Galaxy S24 (Family)", "--target_runtime qnn_dlc", "galaxy-s24-family-qnn_dlc"),
        ("../../etc", "--target_runtime=a/b", "etc-a-b"),
    ],
)  # fmt: skip
def test_the_folder_of_a_compilation(device, options, name):
    assert Compilation(device, options).folder_name == name


def test_which_compilation_is_meant(model):
    state = State.of(model)
    with pytest.raises(UserError, match="no compile job at AI Hub yet"):
        state.compiled(None)
    for number, device in enumerate(("Phone", "Board")):
        state.compilation(device, "").job = Asked("n", f"j{number}")
    assert state.compiled("Board").job.id == "j1"
    with pytest.raises(UserError, match="compiled 2 times for 'Board', 'Phone': give --device"):
        state.compiled(None)
    with pytest.raises(UserError, match="no compile job"):
        state.compiled("Toaster")
