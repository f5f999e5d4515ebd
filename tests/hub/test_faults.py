"""`hub run` under a fault in each of its calls: success after retries, or one line and a resume.

The chain runs through the command line and the unmodified client. Whatever happened on the way, at
the end everything is there once: one stored model, each of its parts, one dataset, one job a kind.
"""

import dataclasses
import itertools
import json
import logging
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import onnx
import pytest
from hub.service import CALLS, FOREVER, Fault, HubService
from PIL import Image
from typer.main import get_command

from compiler.cli import app, main
from compiler.hub import client as hub_client

WEIGHTS = "float[24,3,3,3] w, float[24] b, float[24,24,3,3] w2, float[24] b2, float[1,24,1,1] w3"
TEXT = f"""g (float[1,3,16,24] image) => (float[1,1,16,24] depth) <{WEIGHTS}> {{
    a = Conv <pads = [1,1,1,1]> (image, w, b)  c = Relu(a)
    d = Conv <pads = [1,1,1,1]> (c, w2, b2)  e = Relu(d)  depth = Conv(e, w3) }}"""
JUDGE = "judge@example.org"
COMMAND = get_command(app)  # typer would put it together again for every run

UPLOAD, SUBMIT_COMPILE = "uploading the model", "submitting the compile job of model mu00001"
INPUTS, SUBMIT_RUN = "uploading the inputs", "submitting the inference job of compile job jc00001"
OUTPUTS, FETCH = "downloading the outputs of job ji", "downloading the model of job jc00001"
NAMED = {  # what the error line calls each call
    "device lookup": "listing devices",
    "model create": UPLOAD,
    "part urls": UPLOAD,
    "part upload": UPLOAD,
    "upload complete": UPLOAD,
    "uploaded model": SUBMIT_COMPILE,
    "compile job create": SUBMIT_COMPILE,
    "compile job poll": SUBMIT_COMPILE,
    "dataset create": INPUTS,
    "dataset upload url": INPUTS,
    "dataset upload": INPUTS,
    "dataset complete": INPUTS,
    "inputs dataset": SUBMIT_RUN,
    "inference job create": SUBMIT_RUN,
    "inference job poll": "looking up job ji00001",
    "result": "downloading the profile of job ji00001",
    "output dataset": OUTPUTS,
    "output dataset url": OUTPUTS,
    "output dataset download": OUTPUTS,
    "share": "sharing job jc00001",
    "sharing": "sharing job jc00001",
    "target model url": FETCH,
    "target model download": FETCH,
}
ADVICE = {
    401: "run `qai-hub configure",
    404: "was it deleted",
    409: "see `hub status`",
    "link": "run the same command again, it gets new links",
    429: "run the same command again later",
    500: "run the same command again later",
    "reset": "run the same command again later",
}
STORAGE = ("part upload", "dataset upload", "output dataset download", "target model download")
REFUSALS = {
    "inputs dataset": (401, 409),  # one that is not there any more is uploaded again
    **dict.fromkeys(STORAGE, (401, 403, 404, 409)),
}
# What may be left unfinished: an upload that broke off is sent again from its start, as a new model
# or dataset, for the client can't go on in the middle. All else is asked for once.
UNFINISHED = {
    **dict.fromkeys(("part urls", "part upload", "upload complete"), "model"),
    **dict.fromkeys(("dataset upload url", "dataset upload", "dataset complete"), "dataset"),
}


OBJECTS = {  # what the client asks S3 for, where the service gives credentials: method and path
    "model object": ("PUT", r"/objects/mu"),
    "output object": ("GET", r"/objects/do"),
    "target object size": ("HEAD", r"/objects/mt"),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of error; notes may come before it."""
        lines = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class Desk:
    """A person's machine: a build, a photo, and the command line."""

    def __init__(self, folder: Path, model: onnx.ModelProto, capsys, monkeypatch) -> None:
        self.build, self.photo = folder / "build", folder / "photo.png"
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        self.tries = hub_client.PATIENCE.tries
        self.build.mkdir()
        onnx.save(model, self.build / "model.onnx")
        (self.build / "build.json").write_text(json.dumps({"model": {"name": "small"}}))
        Image.new("RGB", (48, 32), (200, 100, 50)).save(self.photo)

    def run(self, *more: str) -> Outcome:
        """`hub run` of the build, with a photo and somebody to share with."""
        words = ["--image", str(self.photo), "--share", JUDGE, "--json", *more]
        argv = ["npu-compiler", "hub", "run", str(self.build), *words]
        self._monkeypatch.setattr(sys, "argv", argv)
        patience = dataclasses.replace(hub_client.PATIENCE, tries=self.tries, rate_limit_s=5)
        self._monkeypatch.setattr(hub_client, "PATIENCE", patience)
        with pytest.raises(SystemExit) as end:
            main()
        return Outcome(end.value.code, *self._capsys.readouterr())


@pytest.fixture(scope="module")
def model(model_of):
    return model_of(TEXT)


@pytest.fixture
def desk(model, hub_config, tmp_path, capsys, monkeypatch):
    """The pictures are drawn elsewhere, and we wait less long than a person would."""
    monkeypatch.setattr("compiler.hub.chain.write_comparison", lambda *args: None)
    monkeypatch.setattr("compiler.cli.app", COMMAND)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield Desk(tmp_path, model, capsys, monkeypatch)
    assert list((tmp_path / "tmp").iterdir()) == [], "temporary files are left"


def is_complete(outcome: Outcome, service: HubService) -> None:
    """The chain's results are there: profile, depth, sharing, compiled model."""
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["depth"]["error"] < 1e-6
    assert record["profile"]["latency_ms"] > 0
    assert record["shared_with"] == [JUDGE] == service.shared["jc00001"]
    (compiled,) = (m for m in service.models.values() if m.model.producer_id == "jc00001")
    path = Path(record["compiled_model"])
    assert path.read_bytes() == compiled.content
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".bin"] == [path.name]


def is_there_once(service: HubService, unfinished: str = "") -> None:
    """Nothing was uploaded or asked for twice, but for what broke off in the middle."""
    assert service.models_stored == service.datasets_stored == 1
    assert service.jobs_created == {"compile": 1, "inference": 1}
    assert set(service.parts_received.values()) <= {1}
    assert set(service.datasets_received.values()) <= {1}
    if unfinished != "model":
        assert service.models_created == 1
    if unfinished != "dataset":
        assert service.datasets_created == 1


def says_what_to_do(outcome: Outcome, call: str, kind: int | str) -> None:
    """One line that names the call and the next step, and exit code 2."""
    assert outcome.code == 2, f"{call} with {kind}: {outcome}"
    assert outcome.error.startswith(f"error: {NAMED[call]}"), kind
    refused = isinstance(kind, int) and kind < 429
    assert (ADVICE["link"] if refused and call in STORAGE else ADVICE[kind]) in outcome.error


def has_no_secret(service: HubService, desk: Desk, outcome: Outcome, log: str) -> None:
    """Neither the token nor a signature of the storage is in any file, output or log."""
    texts = [outcome.out, outcome.err, log]
    texts += [p.read_bytes().decode("latin1") for p in desk.folder.rglob("*") if p.is_file()]
    for secret in service.secrets:
        assert not any(secret in text for text in texts)


def test_the_table_names_every_call():
    assert list(NAMED) == list(CALLS)


def test_without_faults_every_call_is_made(desk, service):
    service.max_part_size = 1024
    is_complete(desk.run(), service)
    is_there_once(service)
    assert len(service.parts_received) > 20
    assert {call: service.count(call) for call in CALLS if not service.count(call)} == {}


def test_a_second_run_creates_nothing(desk, service):
    is_complete(desk.run(), service)
    n_requests = len(service.requests)
    is_complete(desk.run(), service)
    assert {r.method for r in service.requests[n_requests:]} == {"GET", "PATCH"}  # to share
    is_there_once(service)


@pytest.mark.parametrize("call", CALLS)
def test_refusals_and_ctrl_c_are_one_line_each_and_the_next_run_goes_on(
    desk, service, caplog, call
):
    for kind in REFUSALS.get(call, (401, 404, 409)):
        service.break_call(call, kind)
        outcome = desk.run()
        says_what_to_do(outcome, call, kind)
        has_no_secret(service, desk, outcome, caplog.text)
    service.break_call(call, "ctrl-c")
    outcome = desk.run()
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.error.startswith("interrupted: the same command goes on from here")
    is_complete(desk.run(), service)
    is_there_once(service, UNFINISHED.get(call, ""))


@pytest.mark.parametrize("call", CALLS)
def test_outages_are_one_line_each_and_short_ones_are_overcome(
    desk, service, caplog, request, call
):
    """A GET that gets no answer is asked for again; the answer to what creates is waited for."""
    desk.tries = 2 if call == "share" else 1  # the client tries all others 7 times
    for kind in (429, 500, "reset"):
        lasting = service.break_call(call, kind, times=FOREVER)
        outcome = desk.run()
        says_what_to_do(outcome, call, kind)
        has_no_secret(service, desk, outcome, caplog.text)
        assert lasting.fired > 1
        service.heal()
    if CALLS[call][0] == "GET":
        request.getfixturevalue("impatient")
    desk.tries = 4
    short = [service.break_call(call, kind, seconds=0.06) for kind in (429, 500, "reset", "slow")]
    is_complete(desk.run(), service)
    assert [fault.fired for fault in short] == [1, 1, 1, 1]
    is_there_once(service, UNFINISHED.get(call, ""))


def test_a_reset_in_the_middle_of_every_part(desk, service):
    resets = [service.plant(Fault("PUT", rf"/parts/\w+/{i + 1}\?", "reset")) for i in range(6)]
    is_complete(desk.run(), service)
    assert [reset.fired for reset in resets] == [1] * len(service.parts_received)
    is_there_once(service)


@pytest.mark.parametrize("call", [call for call in CALLS if CALLS[call][0] != "GET"])
def test_ctrl_c_after_a_request_was_served(desk, service, call):
    """What was created without our knowing is found again; only an empty model may be left."""
    service.break_call(call, "ctrl-c", after=True)
    assert desk.run().code == 130
    is_complete(desk.run(), service)
    if call in ("upload complete", "dataset complete"):
        is_there_once(service)
    else:
        unfinished = UNFINISHED | {"model create": "model", "dataset create": "dataset"}
        is_there_once(service, unfinished.get(call, ""))


def test_ctrl_c_while_a_job_is_in_the_queue(desk, service, monkeypatch):
    service.keep_in_queue(polls=5)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
        assert desk.run().code == 130
    is_complete(desk.run(), service)
    is_there_once(service)


def test_a_lasting_outage_sends_the_file_once(desk, service):
    """In one run; the client has tried each request seven times."""
    service.break_call("upload complete", 500, times=FOREVER)
    assert desk.run().code == 2
    assert service.models_created == 1
    assert set(service.parts_received.values()) == {1}


def test_an_answer_lost_by_the_client_is_looked_up(desk, service):
    """The client's GET after its POST fails for good: the job's id is found by its name."""
    service.break_call("compile job poll", 500, times=FOREVER)
    assert desk.run().code == 2
    assert service.jobs_created == {"compile": 1}
    service.heal()
    is_complete(desk.run(), service)
    is_there_once(service)


@pytest.mark.parametrize("kind", ["compile", "inference"])
def test_a_failed_job_is_its_message_and_only_the_job_is_asked_for_again(desk, service, kind):
    message = "QNN: node 'a' (Conv): unsupported\n  attribute 'pads' [1,1,1,1]"
    service.fail_next_job(kind, message)
    outcome = desk.run()
    assert outcome.code == 2
    job = f"j{kind[0]}00001"
    assert outcome.error.startswith(f"error: {kind} job {job} failed: {' '.join(message.split())}")
    assert outcome.error.endswith(f"{service.url}/jobs/{job}/")
    record = json.loads((desk.build / "build.json").read_text())
    assert '"status": "FAILED"' in json.dumps(record["hub"])
    again = desk.run()
    assert again.code == 0, again.err
    assert service.models_created == service.datasets_stored == 1
    assert service.jobs_created == {"compile": 1, "inference": 1} | {kind: 2}


def test_an_expired_dataset_is_uploaded_again_and_the_model_is_not(desk, service):
    service.break_call("inference job create", 409)
    assert desk.run().code == 2
    service.expire_datasets()
    is_complete(desk.run(), service)
    assert (service.models_created, service.datasets_stored) == (1, 2)
    assert service.jobs_created == {"compile": 1, "inference": 1}


def test_a_dataset_that_is_never_found_is_one_line(desk, service):
    service.break_call("inputs dataset", 404, times=FOREVER)
    outcome = desk.run()
    assert outcome.code == 2
    assert outcome.error.startswith("error: submitting the inference job")
    assert "run the same command again" in outcome.error
    assert service.models_created == 1


def test_a_deleted_dataset_is_uploaded_again(desk, service):
    service.break_call("inference job create", 409)
    assert desk.run().code == 2
    service.datasets.clear()
    is_complete(desk.run(), service)
    assert (service.models_created, service.datasets_created) == (1, 2)


def test_expired_outputs_are_computed_again(desk, service):
    service.break_call("output dataset url", 409)
    assert desk.run().code == 2
    service.expire_datasets()
    is_complete(desk.run(), service)
    assert (service.models_created, service.datasets_stored) == (1, 2)
    assert service.jobs_created == {"compile": 1, "inference": 2}


def test_outputs_that_expire_at_once_are_one_line(desk, service):
    service.outputs_expired = True
    outcome = desk.run()
    assert outcome.code == 2
    assert "expired" in outcome.error
    assert service.models_created == 1


@pytest.mark.parametrize("kind", ["compile", "inference"])
def test_a_deadline_is_one_line_and_the_job_goes_on(desk, service, clock, kind):
    if kind == "inference":
        service.break_call("inference job create", 409)
        assert desk.run().code == 2
    service.keep_in_queue(polls=100)
    clock.slept_s = 0
    outcome = desk.run("--deadline", "2")
    job = f"j{kind[0]}00001"
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: job {job} is not done after 2 minutes (CREATED)")
    assert "the same command takes it up again" in outcome.error
    assert 90 < clock.slept_s < 150
    service.keep_in_queue(polls=1)
    is_complete(desk.run(), service)
    is_there_once(service)


def test_a_deadline_ends_retries_too(desk, service, clock):
    service.break_call("part urls", 429, times=FOREVER)
    outcome = desk.run("--deadline", "0.5")
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {UPLOAD}")
    assert clock.slept_s < 120


def test_a_slow_queue_has_no_end_of_its_own(desk, service, clock):
    service.keep_in_queue(polls=100)
    is_complete(desk.run(), service)
    assert clock.slept_s > 900


@pytest.mark.parametrize("call", ["model create", "result"])
def test_a_page_of_a_proxy_is_one_line(desk, service, call):
    service.break_call(call, "html", times=FOREVER)
    outcome = desk.run()
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {NAMED[call]}")
    service.heal()
    is_complete(desk.run(), service)
    is_there_once(service)


def test_the_token_is_in_no_log_at_any_level(desk, service, caplog):
    """The client's own log of INFO holds signed links of the storage, but never the token."""
    caplog.set_level(logging.DEBUG)
    service.break_call("part upload", 500)
    is_complete(desk.run(), service)
    assert "Backing off" in caplog.text
    assert service.token not in caplog.text


def test_a_service_that_repeats_the_token_is_not_repeated(desk, service):
    service.fail_next_job("compile", f"bad header: Authorization: token {service.token}")
    outcome = desk.run()
    assert outcome.code == 2
    has_no_secret(service, desk, outcome, "")


def test_a_broken_config_is_one_line_without_its_content(desk, service, hub_config):
    hub_config.write_text(f"api_token = {service.token}\n")  # the parser quotes this line
    outcome = desk.run()
    assert outcome.code == 2
    assert "qai-hub configure" in outcome.error
    has_no_secret(service, desk, outcome, "")
    assert service.requests == []


def test_keys_of_s3_that_ran_out_are_one_line(desk, s3, caplog):
    """With credentials of S3 the files go through botocore, which has errors of its own."""
    for call, status in itertools.product(OBJECTS, (400, 403)):
        s3.plant(Fault(*OBJECTS[call], status))
        outcome = desk.run()
        assert outcome.code == 2, (call, status)
        assert re.match("error: (uploading|downloading) the ", outcome.error), call
        assert "run the same command again" in outcome.error, (call, status)
        has_no_secret(s3, desk, outcome, caplog.text)
    is_complete(desk.run(), s3)
    is_there_once(s3, "model")


def test_outages_of_s3_are_overcome_or_one_line(desk, s3, caplog):
    desk.tries = 1
    lasting = s3.plant(Fault(*OBJECTS["model object"], "reset", times=FOREVER))
    outcome = desk.run()
    assert (outcome.code, lasting.fired > 1) == (2, True)
    assert outcome.error.startswith(f"error: {UPLOAD}")
    assert ADVICE["reset"] in outcome.error
    has_no_secret(s3, desk, outcome, caplog.text)
    s3.heal()
    desk.tries = 4
    short = [s3.plant(Fault(*call, kind)) for call in OBJECTS.values() for kind in (500, "reset")]
    is_complete(desk.run(), s3)
    assert {fault.fired for fault in short} == {1}
    is_there_once(s3, "model")
