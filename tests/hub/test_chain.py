"""The chain through the loopback service: every step once, whatever happens on the way."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hub.service import FOREVER, Fault, HubService
from PIL import Image

import compiler
from compiler.errors import UserError
from compiler.hub.chain import STEPS, Chain, inference_of
from compiler.hub.client import SUCCESS, connect
from compiler.hub.state import State
from compiler.pictures import depth_of
from compiler.targets.preflight import Finding

GALAXY, DRAGON = "Samsung Galaxy S24 (Family)", "Dragonwing IQ-9075 EVK"
BINARY = "--target_runtime qnn_context_binary"
FOLDER = "samsung-galaxy-s24-family-qnn_context_binary"
TEXT = """g (float[1,3,8,12] image) => (float[1,1,8,12] depth)
    <float[1,3,1,1] mean, float[1,3,1,1] std, float[16,3,3,3] w1, float[1,16,3,3] w2>
    {
        centred = Sub(image, mean)
        normal = Div(centred, std)
        wide = Conv<pads=[1,1,1,1]>(normal, w1)
        positive = Relu(wide)
        depth = Conv<pads=[1,1,1,1]>(positive, w2)
    }"""


class Interrupted(BaseException):
    """Like KeyboardInterrupt, which would end the tests."""


@pytest.fixture(autouse=True)
def sketches(request, monkeypatch) -> None:
    """Drawing takes longer than everything else: only tests that take `pictures` do it."""
    if "pictures" not in request.fixturenames:
        sketch = lambda path, *_: path.write_bytes(b"a picture")  # noqa: E731
        monkeypatch.setattr("compiler.hub.chain.write_comparison", sketch)


@pytest.fixture
def pictures() -> None:
    """Real pictures, please."""


@dataclass
class Hand:
    """What a person has: a build's folder (or a model) and a photo; `chain()` is one command."""

    target: Path
    photo: Path

    def chain(
        self, device: str = GALAXY, *, stop_at: str = "", deadline: float | None = None,
        anew: bool = False, options: str = BINARY, notice: Callable[[str], None] = str,
    ) -> Chain:  # fmt: skip
        def progress(what: str, done: int, total: int) -> None:
            assert 0 <= done <= total
            if stop_at and what.startswith(stop_at):
                raise Interrupted

        state = State.of(self.target, anew=anew)
        compilation = state.compilation(device, options)
        return Chain(connect(deadline), state, compilation, progress, notice, len(STEPS))

    def run(self, **options) -> dict:
        """The whole chain, as `hub run` does it."""
        chain = self.chain(**options)
        chain.profile(self.photo)
        depth = chain.depth(self.photo)
        chain.share(["judge@example.org"])
        chain.fetch()
        return depth

    @property
    def record(self) -> dict:
        return json.loads((self.target / "build.json").read_text())["hub"]

    @property
    def files(self) -> set[str]:
        return {path.name for path in (self.target / "hub" / FOLDER).iterdir()}


@pytest.fixture(scope="module")
def a_build(model_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    onnx.save(model_of(TEXT), folder / "net.onnx")
    compiler.build(
        str(folder / "net.onnx"), "fold_norm", output=folder / "net", canonicalize=False,
        verify="none",
    )  # fmt: skip
    return folder / "net"


@pytest.fixture
def hand(a_build, hub_config, tmp_path) -> Hand:
    shutil.copytree(a_build, tmp_path / "net")
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    return Hand(tmp_path / "net", photo)


def made(service: HubService) -> dict[str, int]:
    """What a user has paid for."""
    return {
        "models": service.models_stored, "inputs": service.datasets_stored, **service.jobs_created
    }  # fmt: skip


ONCE = {"models": 1, "inputs": 1, "compile": 1, "inference": 1}


# -- what it does ----------------------------------------------------------------------------------


def test_the_whole_chain(hand, service):
    depth = hand.run()
    assert made(service) == ONCE
    assert depth["error"] < 1e-6
    assert hand.files == {"profile.json", "depth.png", "depth.npy", "model.bin"}
    assert service.shared == {"jc00001": ["judge@example.org"]}


def test_ids_and_urls_are_in_the_build(hand, service):
    hand.run()
    (compilation,) = hand.record["compilations"]
    (run,) = compilation["runs"]
    assert hand.record["upload"]["id"] == "mu00001"
    assert (compilation["device"], compilation["options"]) == (GALAXY, BINARY)
    for job, job_id in ((compilation["job"], "jc00001"), (run["job"], "ji00001")):
        assert (job["id"], job["status"]) == (job_id, SUCCESS)
        assert job["url"] == f"{service.url}/jobs/{job_id}/"
    assert compilation["shared_with"] == ["judge@example.org"]


def test_the_rest_of_build_json_stays(hand):
    before = json.loads((hand.target / "build.json").read_text())
    hand.run()
    after = json.loads((hand.target / "build.json").read_text())
    del after["hub"]
    assert after == before


def test_the_device_gets_the_model_whole(hand, service):
    """The uploaded file stands alone: the device runs it, and its layers are the model's nodes."""
    job = hand.chain().run(hand.photo)
    layers = connect().profile(job.id)["execution_detail"]
    nodes = onnx.load(hand.target / "model.onnx", load_external_data=False).graph.node
    assert [layer["name"] for layer in layers] == [node.name for node in nodes]


def test_the_depth_is_the_devices(hand, pictures):
    hand.run()
    values = np.load(hand.target / "hub" / FOLDER / "depth.npy")
    np.testing.assert_allclose(values, depth_of(hand.target / "model.onnx", hand.photo), rtol=1e-5)
    assert Image.open(hand.target / "hub" / FOLDER / "depth.png").width > 1000


def test_the_profile_says_which_pass_made_what(hand):
    profile = hand.chain().profile()
    assert profile.latency_ms > 0.1
    assert {group.name for group in profile.passes} == {"fold_norm", "(source model)"}
    saved = json.loads((hand.target / "hub" / FOLDER / "profile.json").read_text())
    assert saved["execution_summary"]["estimated_inference_time"] == profile.latency_ms * 1000


def test_a_plain_model_keeps_its_state_beside_it(hand, service, tmp_path, model_of):
    onnx.save(model_of(TEXT), tmp_path / "plain.onnx")
    hand = Hand(tmp_path / "plain.onnx", hand.photo)
    hand.run()
    hand.run()
    assert made(service) == ONCE
    assert json.loads((tmp_path / "plain.hub.json").read_text())["hub"]["upload"]["id"] == "mu00001"
    assert (tmp_path / "plain.hub" / FOLDER / "model.bin").is_file()


def test_options_and_runtime_reach_the_service(hand, service):
    path = hand.chain(options="--target_runtime qnn_dlc --quantize_io").fetch()
    assert service.jobs["jc00001"].body.options == "--target_runtime qnn_dlc --quantize_io"
    assert path.name == "model.dlc"


# -- only once -------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing(hand, service):
    hand.run()
    n_before = len(service.requests)
    assert hand.run()["error"] < 1e-6
    assert made(service) == ONCE
    writes = [r for r in service.requests[n_before:] if r.method != "GET"]
    assert [r.path.split("/")[-2] for r in writes] == ["shared_access"]


LISTS = r"/v1/(models|datasets|job_summaries)/\?"
STOPS = [
    "packaging", "uploading", *STEPS[1:], "compile job", "inference job", "downloading the profile",
    "running the model here",
]  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupted_chain_goes_on(hand, service, stop):
    """Every id is on disk as soon as it is known: nothing has to be looked up in a list."""
    service.plant(Fault("GET", LISTS, 404, times=FOREVER))
    with pytest.raises(Interrupted):
        hand.run(stop_at=stop)
    hand.run()
    assert made(service) == ONCE
    assert service.models_created == 1


@pytest.mark.parametrize(
    "call", ["model create", "upload complete", "compile job create", "compile job poll",
             "dataset create", "dataset complete", "inference job create", "inference job poll",
             "share", "target model url"],
)  # fmt: skip
def test_after_an_outage_the_chain_goes_on(hand, service, call):
    service.break_call(call, 503, times=FOREVER)
    with pytest.raises(UserError, match="run the same command again"):
        hand.run()
    service.heal()
    hand.run()
    assert made(service) == ONCE


@pytest.mark.parametrize(
    ("call", "lost"),
    [
        ("upload complete", "models"),
        ("dataset complete", "inputs"),
        ("compile job poll", "compile"),
    ],
)
def test_what_was_made_in_a_lost_answer_is_found_by_its_name(hand, service, call, lost):
    """The client tries seven times; then our own tries look before they ask again."""
    service.break_call(call, "reset", after=True, times=7)
    hand.run()
    assert made(service)[lost] == 1


@pytest.mark.parametrize("call", ["upload complete", "compile job poll", "dataset complete"])
def test_what_was_made_in_a_lost_answer_is_found_by_the_next_run(hand, service, call):
    service.break_call(call, "reset", after=True, times=FOREVER)
    service.plant(Fault("GET", LISTS, 503, times=FOREVER))
    with pytest.raises(UserError):
        hand.run()
    service.heal()
    hand.run()
    assert made(service) == ONCE


def test_a_lost_job_may_be_there_several_times_but_its_upload_once(hand, service):
    """The client repeats its POST by itself, and the service can't tell."""
    service.break_call("compile job create", "reset", after=True, times=3)
    hand.run()
    assert service.jobs_created["compile"] == 4
    assert service.models_stored == 1


def test_a_list_that_is_refused_does_not_stop_the_chain(hand, service):
    """Looking up is a favour: without it the request is made again."""
    service.break_call("compile job create", 503, times=7)
    service.plant(Fault("GET", LISTS, 404, times=FOREVER))
    hand.run()
    assert made(service) == ONCE


def test_other_weights_start_anew(hand, service):
    hand.run()
    weights = bytearray((hand.target / "weights.bin").read_bytes())
    weights[0] ^= 1
    (hand.target / "weights.bin").write_bytes(weights)
    hand.chain().compile()
    assert made(service) == {**ONCE, "models": 2, "compile": 2}
    assert len(hand.record["compilations"]) == 1


def test_another_device_takes_the_same_upload(hand, service):
    hand.run()
    hand.chain(DRAGON).profile()
    assert made(service) == {**ONCE, "compile": 2, "inference": 2}
    with pytest.raises(UserError, match=r"compiled 2 times .*'Dragonwing.*--device"):
        State.of(hand.target).compiled(None)
    assert State.of(hand.target).compiled(DRAGON).job.id == "jc00002"


def test_a_photo_later_is_a_run_of_its_own(hand, service):
    hand.chain().profile()
    assert made(service) == {**ONCE, "inputs": 0}
    hand.run()
    assert made(service) == {**ONCE, "inference": 2}


def test_a_run_on_a_photo_is_a_profile_too(hand, service):
    hand.chain().depth(hand.photo)
    hand.chain().profile()
    assert made(service) == ONCE


def test_anew_forgets(hand, service):
    hand.run()
    hand.run(anew=True)
    assert made(service) == dict.fromkeys(ONCE, 2)


def test_a_file_that_was_changed_is_fetched_again(hand, service):
    path = hand.chain().fetch()
    content = path.read_bytes()
    path.write_bytes(b"something else")
    assert hand.chain().fetch().read_bytes() == content
    assert hand.chain().fetch() == path
    assert service.count("target model download") == 2


# -- what fails ------------------------------------------------------------------------------------


def test_a_failed_compile_job_says_the_compilers_words(hand, service):
    service.fail_next_job("compile", "Op 'Resize'\nhas no kernel for v75")
    with pytest.raises(UserError) as error:
        hand.run()
    assert str(error.value) == (
        "compile job jc00001 failed: Op 'Resize' has no kernel for v75; "
        f"see {service.url}/jobs/jc00001/"
    )
    hand.run()
    assert made(service) == {**ONCE, "compile": 2}, "a new job, and no second upload"


def test_a_failed_run_is_asked_for_again(hand, service):
    service.fail_next_job("inference", "Device lost")
    with pytest.raises(UserError, match="inference job ji00001 failed: Device lost"):
        hand.run()
    hand.run()
    assert made(service) == {**ONCE, "inference": 2}


def test_expired_inputs_are_uploaded_again(hand, service):
    service.fail_next_job("inference", "Device lost")
    with pytest.raises(UserError):
        hand.run()
    service.expire_datasets()
    hand.run()
    assert made(service) == {**ONCE, "inputs": 2, "inference": 2}


def test_expired_outputs_are_computed_again(hand, service):
    service.outputs_expired = True
    hand.chain().run(hand.photo)
    service.outputs_expired = False
    assert hand.run()["error"] < 1e-6
    assert made(service) == {**ONCE, "inference": 2}


def test_the_token_is_refused(hand, service, hub_config):
    hub_config.write_text(hub_config.read_text().replace(service.token, "another"))
    with pytest.raises(UserError, match=r"refused the API token.*qai-hub configure") as error:
        hand.run()
    assert "another" not in str(error.value).replace("another account", "")
    assert service.models_created == 0


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "does not allow it"), (404, "has no such thing"), (409, "conflicts"),
     (400, "refused it: planted by the test")],
)  # fmt: skip
def test_a_refusal_is_one_line_and_not_tried_again(hand, service, status, says):
    service.break_call("compile job create", status, times=FOREVER)
    with pytest.raises(UserError, match=f"submitting the compile job of model mu00001.*{says}"):
        hand.run()
    assert service.count("compile job create") == 1
    service.heal()
    hand.run()
    assert made(service) == ONCE


@pytest.mark.parametrize("call", ["upload complete", "part upload"])
@pytest.mark.parametrize("status", [429, 500])
def test_a_file_is_not_sent_again_and_again(hand, service, call, status):
    """The client tries seven times; the whole file again is for the user to decide."""
    service.max_part_size = 1024
    service.break_call(call, status, times=FOREVER)
    with pytest.raises(UserError, match=r"^uploading the model: AI Hub .* again later$"):
        hand.run()
    assert service.models_created == 1
    assert set(service.parts_received.values()) == {1}


def test_a_model_that_was_not_even_made_is_tried_again(hand, service):
    service.break_call("model create", 503, times=15)
    hand.run()
    assert made(service) == ONCE


def test_inputs_that_are_gone_are_uploaded_again(hand, service):
    service.fail_next_job("inference", "Device lost")
    with pytest.raises(UserError):
        hand.run()
    service.datasets.clear()
    hand.run()
    assert service.models_stored == 1
    assert service.datasets_created == 2


def test_a_refusal_of_the_storage_is_not_the_tokens_fault(hand, service):
    service.break_call("part upload", 403, times=FOREVER)
    service.max_part_size = 1024
    with pytest.raises(UserError, match="the storage refuses it"):
        hand.run()


def test_a_rate_limit_is_waited_out(hand, service, clock):
    service.break_call("compile job create", 429, times=60)
    hand.run()
    assert made(service) == ONCE
    assert clock.slept_s > 120


def test_a_rate_limit_is_not_waited_out_forever(hand, service, clock):
    service.break_call("compile job create", 429, times=FOREVER)
    with pytest.raises(UserError, match="still limits the rate"):
        hand.run()
    assert 1800 <= clock.slept_s < 3600


def test_an_unknown_device_costs_no_upload(hand, service):
    with pytest.raises(UserError, match=r"no device 'galaxy s24': did you mean 'Samsung Galaxy S2"):
        hand.chain("galaxy s24").compile()
    assert service.models_created == 0


def test_findings_stop_before_anything_is_sent(hand, service):
    model = onnx.load(hand.target / "model.onnx", load_external_data=False)
    model.ir_version = 12
    onnx.save(model, hand.target / "model.onnx")
    told: list[str] = []
    with pytest.raises(UserError, match=r"nothing was uploaded: error \[IR version\] model.onnx"):
        hand.chain(notice=told.append).compile()
    assert [line.partition("]")[0] for line in told] == ["error [IR version"]
    assert service.models_created == 0


def test_64_bit_inputs_are_stopped_unless_they_are_truncated(hand, service, tmp_path, model_of):
    text = "g (int64[4] ids, float[4] x) => (float[4] y) { f = Cast<to=1>(ids) y = Add(f, x) }"
    onnx.save(model_of(text), tmp_path / "ids.onnx")
    hand = Hand(tmp_path / "ids.onnx", hand.photo)
    with pytest.raises(UserError, match=r"error \[64-bit input\] 'ids'"):
        hand.chain().compile()
    assert service.models_created == 0
    hand.chain(options=f"{BINARY} --truncate_64bit_io").compile()
    assert made(service) == {"models": 1, "inputs": 0, "compile": 1}


def test_the_first_findings_are_told(hand, monkeypatch):
    findings = [Finding("type", "a problem", "a cure", n < 3, tensor=f"x{n}") for n in range(90)]
    monkeypatch.setattr("compiler.targets.preflight.check", lambda path, target: findings)
    told: list[str] = []
    with pytest.raises(UserError, match=r"error \[type\] 'x0': .* \(and 2 more\)$"):
        hand.chain(notice=told.append).compile()
    assert len(told) == 21
    assert told[-1] == "… and 70 more findings"


def test_warnings_are_told_and_stop_nothing(hand, service, monkeypatch):
    warning = Finding("type", "a problem", "a cure", False, tensor="x")
    monkeypatch.setattr("compiler.targets.preflight.check", lambda path, target: [warning])
    told: list[str] = []
    hand.chain(notice=told.append).compile()
    assert told[0] == "warning [type] 'x': a problem; a cure"
    assert made(service) == {"models": 1, "inputs": 0, "compile": 1}


def test_the_deadline_leaves_the_job_running(hand, service, clock):
    service.keep_in_queue(200)
    with pytest.raises(UserError, match=r"job jc00001 is not done after 5 minutes \(CREATED\)"):
        hand.run(deadline=5)
    assert 290 < clock.slept_s < 310
    service.jobs["jc00001"].states.clear()
    service.keep_in_queue(1)
    hand.run()
    assert made(service) == ONCE


def test_the_deadline_ends_tries_too(hand, service, clock):
    service.break_call("model create", 429, times=FOREVER)
    with pytest.raises(UserError):
        hand.run(deadline=2)
    assert clock.slept_s < 240


def test_a_download_is_whole_or_not_at_all(hand, service, tmp_path):
    chain = hand.chain()
    chain.compile()
    output = tmp_path / "out" / "model.bin"
    service.break_call("target model download", "reset", times=FOREVER)
    with pytest.raises(UserError, match="downloading the model of job jc00001"):
        chain.fetch(output)
    assert list(output.parent.iterdir()) == []
    service.heal()
    assert chain.fetch(output) == output
    assert [path.name for path in output.parent.iterdir()] == ["model.bin"]


@pytest.mark.parametrize(
    ("runtime", "given", "name"),
    [("qnn_dlc", "m.bin", "m.bin.dlc"), ("qnn_dlc", "m.dlc", "m.dlc"),
     ("precompiled_qnn_onnx", "m", "m.onnx.zip")],
)  # fmt: skip
def test_a_download_has_the_extension_of_what_it_is(hand, service, tmp_path, runtime, given, name):
    chain = hand.chain(options=f"--target_runtime {runtime}")
    assert chain.fetch(tmp_path / "out" / given).name == name


def test_the_client_leaves_no_files_behind(hand, service, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    service.break_call("upload complete", 404)
    with pytest.raises(UserError):
        hand.run()
    hand.run()
    assert list(temporary.iterdir()) == []


# -- by a job's id ---------------------------------------------------------------------------------


def test_a_photo_through_a_compile_job(hand, service):
    compiled = hand.chain().compile().id
    told: list[str] = []
    job = inference_of(connect(), compiled, hand.photo, told.append)
    (depth,) = connect().outputs(job.id).values()
    np.testing.assert_allclose(
        depth.reshape(8, 12), depth_of(hand.target / "model.onnx", hand.photo), rtol=1e-5
    )
    assert told == [f"inference job {job.id}: {job.url}"]
    assert inference_of(connect(), job.id, hand.photo, told.append).id == job.id
    assert service.jobs_created["inference"] == 1
