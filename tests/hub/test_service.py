"""The unmodified qai_hub client, end to end through the loopback service, and its faults."""

import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import qai_hub
import requests
from hub.service import FOREVER
from qai_hub.client import APIException, InternalError, RateLimitedError, UserError

GALAXY = qai_hub.Device("Samsung Galaxy S24 (Family)")
BINARY = "--target_runtime qnn_context_binary"
TEXT = """g (float[4,64] image) => (float[4,64] depth) <float[64,64] w, float[64] b>
    { a = MatMul(image, w) [sum] c = Add(a, b) depth = Relu(c) }"""
IMAGE = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def model_path(model_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "depth.onnx"
    onnx.save(model_of(TEXT), path)
    return path


@pytest.fixture
def client(hub_config):
    """The client as a script makes it, quiet."""
    client = qai_hub.Client()
    client.set_verbose(False)
    return client


@pytest.fixture
def target(client, model_path):
    """A compiled model."""
    job = client.submit_compile_job(str(model_path), GALAXY, options=BINARY)
    assert job.wait().success
    return job.get_target_model()


def test_the_chain(client, service, model_path, tmp_path):
    model = client.upload_model(str(model_path))
    compiled = client.submit_compile_job(model, GALAXY, options=BINARY)
    assert compiled.wait().success
    target = compiled.get_target_model()
    assert target.get_producer() is compiled
    assert target.input_spec[None][0].shape == IMAGE.shape

    job = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]}, profile=True)
    (depth,) = job.download_output_data()["depth"]
    expected = onnxruntime.InferenceSession(model_path).run(None, {"image": IMAGE})[0]
    np.testing.assert_array_equal(depth, expected)
    profile = job.download_profile()
    layers = [(layer["name"], layer["type"]) for layer in profile["execution_detail"]]
    assert layers == [("a", "MatMul"), ("sum", "Add"), ("depth", "Relu")]
    assert profile["execution_summary"]["estimated_inference_time"] > 0

    job.modify_sharing(add_emails=["judge@example.org"])
    assert list(job.get_sharing()) == ["judge@example.org"]
    file = compiled.download_target_model(str(tmp_path / "depth"))
    assert file.endswith("depth.bin")
    assert (tmp_path / "depth.bin").read_bytes().startswith(b"compiled for the NPU")

    n_parts = -(-model_path.stat().st_size // service.max_part_size)
    assert n_parts > 3
    assert service.parts_received == {(model.model_id, i + 1): 1 for i in range(n_parts)}
    assert service.bytes_received > model_path.stat().st_size
    assert (service.models_created, service.models_stored) == (1, 1)
    assert (service.datasets_created, service.datasets_stored) == (1, 1)
    assert service.jobs_created == {"compile": 1, "inference": 1}


def test_jobs_pass_through_their_states(client, service, target):
    service.keep_in_queue(polls=3)
    job = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]}, profile=True)
    states = [job.get_status().code for _ in range(6)]
    waiting = ["CREATED"] * 3
    assert states == [*waiting, "PROVISIONING_DEVICE", "MEASURING_PERFORMANCE", "SUCCESS"]
    summaries = client.get_job_summaries()
    assert [s.job_id for s in summaries] == [job.job_id, target.get_producer().job_id]
    assert summaries[0].estimated_inference_time > 0
    assert client.get_job_summaries(type=qai_hub.JobType.COMPILE)[0].status.success
    assert client.get_job(job.job_id).profiling


def test_the_clock_waits_no_time(client, clock, service, target):
    service.keep_in_queue(polls=10)
    client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]}).wait()
    assert clock.slept_s > 100


def test_a_model_folder_with_its_weights_beside_it(client, service, model_path, tmp_path):
    folder = tmp_path / "depth.onnx"
    folder.mkdir()
    onnx.save(
        onnx.load(model_path),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )
    job = client.submit_compile_job(str(folder), GALAXY, options="--target_runtime onnx")
    target = job.get_target_model()
    run = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]}, profile=False)
    assert run.download_output_data()["depth"][0].shape == IMAGE.shape
    assert run.download_profile() == {}
    (tmp_path / "fetched").mkdir()
    path = job.download_target_model(str(tmp_path / "fetched"))
    assert [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".data")]


def test_layers_that_fall_to_the_cpu(client, service, target):
    service.cpu_ops = frozenset({"Add"})
    job = client.submit_inference_job(target, GALAXY, profile=True)
    units = [layer["compute_unit"] for layer in job.download_profile()["execution_detail"]]
    assert units == ["NPU", "CPU", "NPU"]
    assert job.download_output_data() is None


def test_a_wrong_token(client, service, model_path):
    service.token = "another"
    with pytest.raises(UserError, match="Failed to authenticate"):
        client.upload_model(str(model_path))


def test_an_unknown_device_and_an_unknown_job(client, model_path):
    with pytest.raises(UserError, match="is not available"):
        client.submit_compile_job(str(model_path), qai_hub.Device("Nokia 3310"))
    with pytest.raises(UserError, match="could not be found"):
        client.get_job("jc99999")


def test_a_failed_compile_job_says_why(client, service, model_path):
    service.fail_next_job("compile", "Gelu: unsupported attribute 'approximate'")
    job = client.submit_compile_job(str(model_path), GALAXY, options=BINARY)
    assert job.wait().failure
    assert job.get_status().message == "Gelu: unsupported attribute 'approximate'"
    profiled = client.submit_inference_job(job.get_target_model(), GALAXY, profile=True)
    assert profiled.wait().message == f"Compile job {job.job_id} failed."


def test_a_failed_inference_job_says_why(client, service, target):
    service.fail_next_job("inference", "the device ran out of memory")
    job = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]})
    assert job.wait().message == "the device ran out of memory"
    job = client.submit_inference_job(target, GALAXY, inputs={"picture": [IMAGE]})
    assert "do not match ['image']" in job.wait().message


def test_the_newest_ir_version_is_rejected(client, model_path, tmp_path):
    model = onnx.load(model_path)
    model.ir_version = 12
    onnx.save(model, tmp_path / "new.onnx")
    job = client.submit_compile_job(str(tmp_path / "new.onnx"), GALAXY, options=BINARY)
    assert "IR version: 12" in job.wait().message


def test_an_expired_dataset(client, service, target):
    dataset = client.upload_dataset({"image": [IMAGE]})
    service.expire_datasets()
    with pytest.raises(UserError, match="has expired"):  # the client's own copy has not
        client.submit_inference_job(target, GALAXY, inputs=dataset)
    with pytest.raises(UserError, match="is expired"):
        client.submit_inference_job(target, GALAXY, inputs=client.get_dataset("du00001"))
    service.outputs_expired = True
    job = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]})
    with pytest.raises(UserError, match="Cannot download expired dataset"):
        job.download_output_data()


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("call", ["device lookup", "model create", "part upload"])
def test_the_client_tries_seven_times(client, service, clock, model_path, call, status):
    fault = service.break_call(call, status, times=6)
    client.submit_compile_job(str(model_path), GALAXY)
    assert fault.fired == 6
    assert clock.slept_s > 5
    assert service.models_stored == 1


@pytest.mark.parametrize(
    ("call", "status", "error", "words"),
    [
        ("device lookup", 401, UserError, "Failed to authenticate"),
        ("device lookup", 404, UserError, "planted by the test"),
        ("device lookup", 429, InternalError, "reported errors"),
        ("device lookup", 503, InternalError, "unavailable right now"),
        ("model create", 409, UserError, "planted by the test"),
        ("model create", 429, RateLimitedError, "planted by the test"),
        ("model create", 500, InternalError, "reported errors"),
        ("part upload", 404, InternalError, "Failed to upload the file"),
        ("part upload", 500, InternalError, "reported errors"),
    ],
)
def test_what_the_client_says_at_last(client, service, model_path, call, status, error, words):
    service.break_call(call, status, times=FOREVER)
    with pytest.raises(error, match=words):
        client.submit_compile_job(str(model_path), GALAXY)


def test_a_reset_in_the_middle_of_a_part(client, service, model_path):
    fault = service.break_call("part upload", "reset", times=2)
    model = client.upload_model(str(model_path))
    assert fault.fired == 2
    assert set(service.parts_received.values()) == {1}
    assert service.models[model.model_id].source == model_path.read_bytes()


def test_a_reset_in_the_middle_of_a_download(client, service, target, tmp_path):
    fault = service.break_call("target model download", "reset", times=2)
    target.download(str(tmp_path / "depth.bin"))
    assert fault.fired == 2
    assert (tmp_path / "depth.bin").read_bytes().startswith(b"compiled for the NPU")


def test_sharing_is_not_retried_by_the_client(client, service, target):
    job = target.get_producer()
    service.break_call("share", "reset")
    with pytest.raises(InternalError, match="Could not connect"):
        job.modify_sharing(add_emails=["judge@example.org"])
    service.break_call("share", 500)
    with pytest.raises(InternalError, match="reported errors"):
        job.modify_sharing(add_emails=["judge@example.org"])


def test_a_lost_answer_makes_the_client_create_twice(client, service, model_path):
    service.break_call("model create", "reset", after=True)
    client.upload_model(str(model_path))
    assert (service.models_created, service.models_stored) == (2, 1)


def test_a_slow_answer_is_asked_for_again(client, service, time_out_after):
    time_out_after(0.2)
    fault = service.break_call("device lookup", "slow", seconds=0.5)
    assert client.get_devices()
    assert fault.fired == 1
    assert service.count("device lookup") >= 1


def test_persistent_silence_is_a_connection_error(client, service, time_out_after):
    time_out_after(0.02)
    service.break_call("device lookup", "slow", seconds=0.1, times=FOREVER)
    with pytest.raises(InternalError, match="Could not connect"):
        client.get_devices()


def test_a_reset_shows_as_one(service):
    service.break_call("device lookup", "reset")
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        requests.get(f"{service.url}/api/v1/devices/", timeout=5)


def test_a_page_of_a_proxy_is_no_answer(client, service):
    service.break_call("device lookup", "html")
    with pytest.raises(APIException, match="status code 200"):
        client.get_devices()


def test_the_chain_with_credentials_of_s3(client, s3, model_path, tmp_path):
    compiled = client.submit_compile_job(str(model_path), GALAXY, options=BINARY)
    target = compiled.get_target_model()
    job = client.submit_inference_job(target, GALAXY, inputs={"image": [IMAGE]})
    assert job.download_output_data()["depth"][0].shape == IMAGE.shape
    compiled.download_target_model(str(tmp_path / "depth.bin"))
    assert (tmp_path / "depth.bin").read_bytes() == s3.models[target.model_id].content
    assert s3.models[compiled.model.model_id].source == model_path.read_bytes()
    assert {r.path.split("?")[0] for r in s3.requests if "/objects/" in r.path} == {
        f"/objects/{entity}" for entity in ("mu00001", "du00001", "do00001", "mt00001")
    }
