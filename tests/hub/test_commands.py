"""`python -m compiler hub …` as a person types it, through the loopback service."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hub.service import FOREVER
from PIL import Image

import compiler
from compiler.cli import main

BUILD = ("build", "net.onnx", "--passes", "fold_norm", "--no-canonicalize", "--verify", "none",
         "-o", "built")  # fmt: skip
FOLDER = Path("net/hub/samsung-galaxy-s24-family-qnn_context_binary")
TEXT = """g (float[1,3,8,12] image) => (float[1,1,8,12] depth)
    <float[1,3,1,1] mean, float[1,3,1,1] std, float[1,3,3,3] w>
    { c = Sub(image, mean) [scale] n = Div(c, std) depth = Conv<pads=[1,1,1,1]>(n, w) }"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.code == 0, self
        return json.loads(self.out)

    def refused(self) -> str:
        """The one line of bad input, without the notes before it."""
        assert self.code == 2, self
        assert self.out == ""
        *notes, line = self.err.splitlines()
        assert all(note.startswith("note: ") for note in notes), self.err
        assert line.startswith("error: ")
        return line


@pytest.fixture(scope="module")
def a_build(model_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    onnx.save(model_of(TEXT), folder / "net.onnx")
    options = {"canonicalize": False, "verify": "none"}
    compiler.build(str(folder / "net.onnx"), "fold_norm", output=folder / "net", **options)
    return folder / "net"


@pytest.fixture
def work(a_build, tmp_path, monkeypatch) -> Path:
    """The working folder: a build `net`, its source `net.onnx`, a photo."""
    folder = tmp_path / "work"
    shutil.copytree(a_build, folder / "net")
    shutil.copyfile(a_build.with_name("net.onnx"), folder / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(work, service, hub_config, monkeypatch, capfd):
    """Runs a command; neither its output nor any file holds the token or a signed URL."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["compiler", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        streams = capfd.readouterr()
        return Outcome(end.value.code or 0, streams.out, streams.err)

    outcomes: list[Outcome] = []
    yield lambda *args: outcomes.append(run(*args)) or outcomes[-1]
    said = "".join(outcome.out + outcome.err for outcome in outcomes).encode()
    files = [path.read_bytes() for path in work.rglob("*") if path.is_file()]
    for secret in service.secrets:
        assert not any(secret.encode() in content for content in [said, *files])


@pytest.fixture
def hub(cli):
    return lambda *args: cli("hub", *args)


# -- the commands ----------------------------------------------------------------------------------


def test_run_prints_everything(hub, service):
    done = hub("run", "net", "--image", "photo.png", "--share", "judge@example.org")
    assert done.code == 0, done.err
    for part in ("jc00001", "ji00001", "SUCCESS", "shared with judge@example.org", "ms latency",
                 "NPU", "fold_norm", "made by", f"{FOLDER}/profile.json", f"{FOLDER}/model.bin",
                 f"{FOLDER}/depth.png", "|device − here|"):  # fmt: skip
        assert part in done.out
    assert done.err.splitlines() == [
        f"note: {kind} job {job}: {service.url}/jobs/{job}/"
        for kind, job in (("compile", "jc00001"), ("inference", "ji00001"))
    ]


def test_run_as_json(hub):
    args = ("run", "net", "--image", "photo.png", "--share", "judge@example.org", "--json")
    record = hub(*args).json
    assert record["profile"]["latency_ms"] > 0
    assert record["depth"]["error"] < 1e-6
    assert record["compiled_model"] == str(FOLDER / "model.bin")
    assert record["job"]["id"] == "jc00001"
    assert record["shared_with"] == ["judge@example.org"]
    assert record["options"] == "--target_runtime qnn_context_binary"


def test_run_without_image_and_mail(hub, service):
    record = hub("run", "net", "--json").json
    assert record["depth"] is None
    assert service.shared == {}
    assert service.datasets_created == 0


def test_compile(hub, service):
    record = hub("compile", "net.onnx", "--runtime", "qnn_dlc", "--options", " --quantize_io  ",
                 "--device", "Dragonwing IQ-9075 EVK", "--json").json  # fmt: skip
    assert record["upload"]["id"] == "mu00001"
    job = service.jobs["jc00001"].body
    assert job.options == "--target_runtime qnn_dlc --quantize_io"
    assert job.device.name == "Dragonwing IQ-9075 EVK"
    assert hub("compile", "net.onnx").code == 0, "another device and runtime"
    assert (service.models_stored, service.jobs_created["compile"]) == (1, 2)


def test_target_runtime_among_the_options(hub, service):
    hub("compile", "net", "--options", "--target_runtime tflite")
    assert service.jobs["jc00001"].body.options == "--target_runtime tflite"
    line = hub("compile", "net", "--options", "--target_runtime tflite", "--runtime", "onnx")
    assert "not both" in line.refused()


def test_profile_of_a_model_and_of_a_job(hub, service):
    model = hub("profile", "net", "--json").json
    job = hub("profile", "ji00001", "--json").json
    assert job["profile"]["latency_ms"] == model["profile"]["latency_ms"]
    assert job["profile"]["passes"] == []
    assert service.jobs_created["inference"] == 1
    assert hub("profile", "jc00001", "--json").json["job"]["id"] == "ji00002"


def test_profile_of_a_job_as_a_table(hub):
    hub("compile", "net")
    done = hub("profile", "jc00001")
    assert "ms latency" in done.out
    assert "made by" not in done.out


def test_infer_with_a_model_and_with_a_job(hub, work):
    assert hub("infer", "net", "--image", "photo.png", "--json").json["error"] < 1e-6
    done = hub("infer", "jc00001", "--image", "photo.png", "-o", "there/depth.png", "--json").json
    assert done["error"] is None
    here, there = np.load(FOLDER / "depth.npy"), np.load("there/depth.npy")
    np.testing.assert_array_equal(here, there)
    assert Image.open("there/depth.png").size == (12, 8)
    assert "photo_ji00002.png" in hub("infer", "ji00002", "--image", "photo.png").out


def test_share(hub, service):
    hub("compile", "net")
    assert hub("share", "net", "--email", "a@b.org, c@d.org", "--email", "e@f.org").code == 0
    assert hub("share", "jc00001", "--email", "g@h.org", "--json").json == {
        "job": "jc00001", "shared_with": ["a@b.org", "c@d.org", "e@f.org", "g@h.org"],
    }  # fmt: skip
    assert service.shared["jc00001"] == ["a@b.org", "c@d.org", "e@f.org", "g@h.org"]


def test_status(hub, service):
    assert hub("status").out == "no jobs yet\n"
    service.fail_next_job("compile", "no kernel for Resize")
    hub("compile", "net")
    hub("profile", "net.onnx")
    newest = hub("status", "--limit", 2, "--json").json
    assert [job["id"] for job in newest] == ["ji00001", "jc00002"]
    assert "jc00001: no kernel for Resize" in hub("status", "net").out
    assert hub("status", "jc00002", "--json").json[0]["status"] == "SUCCESS"


def test_fetch(hub, work):
    hub("compile", "net")
    assert f"{FOLDER}/model.bin" in hub("fetch", "net").out
    assert hub("fetch", "jc00001", "-o", "there/m.bin", "--json").json["path"] == "there/m.bin"
    assert (work / "there/m.bin").read_bytes() == (FOLDER / "model.bin").read_bytes()


def test_devices(hub):
    names = [device["name"] for device in hub("devices", "--json").json]
    assert "Samsung Galaxy S24 (Family)" in names
    assert "Dragonwing IQ-9075 EVK" in hub("devices").out


def test_build_and_upload(cli, service, work):
    done = cli(*BUILD, "--upload")
    assert done.code == 0, done.err
    assert "ms latency" in done.out
    record = cli(*BUILD, "--upload", "--device", "Dragonwing IQ-9075 EVK", "--json")
    assert record.json["hub"] == json.loads(Path("built/build.json").read_text())["hub"]
    assert record.json["hub"]["compilations"][0]["device"] == "Dragonwing IQ-9075 EVK"


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_build_whose_upload_fails_is_complete(cli, service):
    service.break_call("model create", 403, times=FOREVER)
    done = cli(*BUILD, "--upload")
    assert done.code == 2
    assert done.err.startswith("error: uploading the model: AI Hub does not allow it")
    assert onnx.load("built/model.onnx").graph.node
    service.heal()
    assert cli("hub", "profile", "built").code == 0


def test_no_account_is_told_before_a_build(cli, monkeypatch):
    monkeypatch.setenv("QAIHUB_CLIENT_INI", "nowhere.ini")
    line = cli(*BUILD, "--upload").refused()
    assert "qai-hub configure --api_token" in line
    assert not Path("built").exists()


def test_without_the_client(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "qai_hub", None)
    for command in ("compile net", "status", "devices", "share j12345 --email a@b.c", "run net"):
        assert hub(*command.split()).refused() == (
            "error: AI Hub needs its client: pip install -e '.[hub]' -c constraints.txt"
        )


@pytest.mark.parametrize(
    "content",
    ["", "[api]\n", "[api]\napi_url=x\nweb_url=x\napi_token=\n", "s3cr3t\n", "[api]\ns3cr3t\n",
     "[api]\napi_url=x\nweb_url=x\napi_token=two s3cr3t words\n",
     "[api]\napi_url=x\nweb_url=x\napi_token=s3cr3t\nverbose=s3cr3t\n"],
)  # fmt: skip
def test_a_config_without_a_token(hub, hub_config, content):
    hub_config.write_text(content)
    line = hub("compile", "net").refused()
    assert line.startswith("error: no AI Hub token: run `qai-hub configure --api_token …`")
    assert "s3cr3t" not in line


def test_an_answer_that_holds_the_token_is_scrubbed(hub, service):
    service.fail_next_job("compile", f"bad token {service.token}")
    assert "failed: bad token ***;" in hub("compile", "net").refused()
    assert "bad token ***" in hub("status", "net").out


def test_the_compilers_message_is_one_line(hub, service):
    service.fail_next_job("compile", "Op 'Resize'\n\n  has no kernel")
    line = hub("run", "net").refused()
    assert "compile job jc00001 failed: Op 'Resize' has no kernel; see http" in line


@pytest.mark.parametrize("step", ["uploading", "compile job", "inference job", "downloading the p"])
def test_ctrl_c(hub, service, monkeypatch, step):
    """It says how to go on; going on uploads nothing twice."""
    from compiler.hub.chain import Chain

    def interrupt(self: Chain, text: str) -> None:
        if text.startswith(step):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "_say", interrupt)
        done = hub("run", "net", "--image", "photo.png")
    assert done.code == 130
    assert done.out == ""
    assert done.err.splitlines()[-1] == (
        "interrupted: the same command goes on from here, and uploads nothing twice"
    )
    assert hub("run", "net", "--image", "photo.png").code == 0
    assert (service.models_stored, service.jobs_created.total()) == (1, 2)


def test_ctrl_c_after_a_build(cli, monkeypatch):
    monkeypatch.setattr("compiler.hub.chain.Chain.profile", interrupted)
    done = cli(*BUILD, "--upload")
    assert done.code == 130
    assert "the build is complete; `hub profile built` goes on from here" in done.err
    assert Path("built/build.json").is_file()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("compile", "nowhere"), "nowhere: no such file"),
        (("compile", "photo.png"), "photo.png: not an ONNX file"),
        (("profile", "nowhere"), "no such file or folder, and no job's id"),
        (("profile", "jabc123de"), "looking up job jabc123de: AI Hub has no such thing"),
        (("share", "net", "--email", "someone"), "'someone' is no e-mail address"),
        (("share", "net", "--email", "a@b.org"), "no compile job at AI Hub yet"),
        (("fetch", "net"), "no compile job at AI Hub yet"),
        (("compile", "net", "--device", "s24"), "'s24': did you mean 'Samsung Galaxy S24 "),
        (("compile", "net", "--deadline", "0"), "--deadline 0: give minutes, above 0"),
        (("infer", "net", "--image", "photo.png", "-o", "d.jpg"), "give -o d.png, not d.jpg"),
        (("infer", "net", "--image", "no.png"), "no image at no.png"),
        (("run", "net", "--image", "net.onnx"), "cannot read net.onnx as an image"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(hub, service, args, says):
    assert says in hub(*args).refused()
    assert service.models_created == 0


def test_a_job_of_the_wrong_kind(hub):
    hub("profile", "net")
    assert "job ji00001 is a job of kind inference; give one of kind compile" in (
        hub("fetch", "ji00001").refused()
    )


def test_the_deadline(hub, service):
    service.keep_in_queue(200)
    line = hub("run", "net", "--deadline", "1.5").refused()
    assert "job jc00001 is not done after 1.5 minutes (CREATED)" in line
