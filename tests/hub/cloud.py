"""What the loopback service keeps: models, datasets, jobs and who they are shared with."""

import dataclasses
import hashlib
import threading
import time
from collections import Counter
from email.parser import BytesParser

import onnx
from google.protobuf.message import DecodeError
from hub.device import Device, device_for, h5_of, samples_in
from qai_hub import public_api_pb2 as api

NEWEST_IR_VERSION = 11
DAY_S = 24 * 60 * 60
RUNTIMES = {  # --target_runtime: the target model's type and file name extension
    "qnn_context_binary": (api.MODEL_TYPE_QNN_CONTEXT_BINARY, ".bin"),
    "qnn_dlc": (api.MODEL_TYPE_QNN_DLC, ".dlc"),
    "precompiled_qnn_onnx": (api.MODEL_TYPE_ONNX, ".onnx.zip"),
    "onnx": (api.MODEL_TYPE_ONNX, ".onnx.zip"),
    "tflite": (api.MODEL_TYPE_TFLITE, ".tflite"),
}


class RefusedError(Exception):
    """A request that AI Hub answers with a status and a sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclasses.dataclass
class Upload:
    """A multipart upload: parts by number, from 1."""

    model_id: str
    n_parts: int
    parts: dict[int, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Model:
    """An uploaded model, or the target of a compile job (`source` is then the uploaded file)."""

    model: api.Model
    extension: str = ""
    source: bytes = b""

    @property
    def device(self) -> Device:
        return device_for(self.source)

    @property
    def content(self) -> bytes:
        """What a download gives: the file itself, or made-up machine code of a stable kind."""
        if not self.model.producer_id or self.model.model_type == api.MODEL_TYPE_ONNX:
            return self.source
        return b"compiled for the NPU " + hashlib.sha256(self.source).hexdigest().encode() * 64


@dataclasses.dataclass
class Dataset:
    """An uploaded dataset or the outputs of a job, as an h5 file."""

    dataset: api.Dataset
    content: bytes = b""

    @property
    def expired(self) -> bool:
        return time.time() > self.dataset.expiration_time.seconds


@dataclasses.dataclass
class Job:
    """A job: every poll takes it one state further, until the last state's work is done."""

    job: api.Job
    states: list[int]
    failure: str = ""
    result: api.JobResult = dataclasses.field(default_factory=api.JobResult)

    @property
    def body(self):
        return getattr(self.job, self.job.WhichOneof("job"))

    @property
    def kind(self) -> str:
        return self.job.WhichOneof("job").removesuffix("_job")


class Cloud:
    """The service's state; the counters say what a user has paid for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.max_part_size = 4096
        self.queue_polls = 1
        self.gives_credentials = False  # S3's, in place of signed links
        self.cpu_ops: frozenset[str] = frozenset()
        self.models: dict[str, Model] = {}
        self.datasets: dict[str, Dataset] = {}
        self.jobs: dict[str, Job] = {}
        self.uploads: dict[str, Upload] = {}
        self.objects: dict[str, bytes] = {}
        self.shared: dict[str, list[str]] = {}
        self.devices = _devices()
        self.parts_received: Counter[tuple[str, int]] = Counter()
        self.datasets_received: Counter[str] = Counter()
        self.jobs_created: Counter[str] = Counter()
        self.bytes_received = 0
        self.outputs_expired = False
        self._failures: dict[str, list[str]] = {"compile": [], "inference": []}
        self._n_ids: Counter[str] = Counter()

    @property
    def models_created(self) -> int:
        """Uploaded models, complete or not."""
        return self._n_ids["mu"]

    @property
    def models_stored(self) -> int:
        """Uploaded models whose upload was completed."""
        return sum(not m.model.producer_id and bool(m.source) for m in self.models.values())

    @property
    def datasets_created(self) -> int:
        return self._n_ids["du"]

    @property
    def datasets_stored(self) -> int:
        """Uploaded datasets whose upload was completed."""
        return sum(
            name.startswith("du") and d.dataset.file_upload_complete
            for name, d in self.datasets.items()
        )

    # What a test plants

    def fail_next_job(self, kind: str, message: str) -> None:
        """The next job of a kind ("compile", "inference") fails with the compiler's message."""
        self._failures[kind].append(message)

    def expire_datasets(self) -> None:
        """All datasets that are there have expired, thirty days on."""
        for dataset in self.datasets.values():
            dataset.dataset.expiration_time.seconds = int(time.time()) - 60

    def keep_in_queue(self, polls: int) -> None:
        """New jobs stay CREATED for so many polls."""
        self.queue_polls = polls

    # Models

    def create_model(self, model: api.Model) -> api.CreateUpdateResponse:
        model.model_id = self._new_id("mu")
        model.creation_time.GetCurrentTime()
        self.models[model.model_id] = Model(model)
        return _created(model.model_id)

    def start_upload(self, model_id: str, nbytes: int) -> tuple[str, int]:
        """The upload's id and its number of parts."""
        self.model(model_id)
        upload_id = self._new_id("up")
        n_parts = max(1, -(-nbytes // self.max_part_size))
        self.uploads[upload_id] = Upload(model_id, n_parts)
        return upload_id, n_parts

    def store_part(self, upload_id: str, number: int, content: bytes) -> str:
        """The part's ETag."""
        upload = self.uploads[upload_id]
        upload.parts[number] = content
        self.parts_received[(upload.model_id, number)] += 1
        return _etag(content)

    def complete_upload(
        self, model_id: str, done: api.FileMultipartUploadComplete
    ) -> api.CreateUpdateResponse:
        upload = self.uploads[done.upload_id]
        parts = [upload.parts.get(i + 1) for i in range(upload.n_parts)]
        if None in parts or [_etag(part) for part in parts] != list(done.etags):
            raise RefusedError(400, "One or more of the specified parts could not be found.")
        model = self.model(model_id)
        model.source = b"".join(parts)
        model.model.file_upload_complete = True
        return _created(model_id)

    def model(self, model_id: str) -> Model:
        return _found(self.models, model_id)

    # Datasets

    def create_dataset(self, dataset: api.Dataset) -> api.CreateUpdateResponse:
        stored = self._add_dataset("du", dataset.name)
        return _created(stored.dataset_id, expires=stored.expiration_time.seconds)

    def store_dataset(self, dataset_id: str, form: bytes, content_type: str) -> None:
        """The file field of the form that the client posts."""
        header = f"Content-Type: {content_type}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(header + form).get_payload()
        (file,) = (p for p in parts if "filename=" in p["Content-Disposition"])
        self.dataset(dataset_id).content = file.get_payload(decode=True)
        self.datasets_received[dataset_id] += 1

    def complete_dataset(self, dataset_id: str) -> api.CreateUpdateResponse:
        stored = self.dataset(dataset_id)
        if not stored.content:
            raise RefusedError(400, "The dataset's file was not uploaded.")
        stored.dataset.file_upload_complete = True
        return _created(dataset_id)

    def dataset(self, dataset_id: str) -> Dataset:
        return _found(self.datasets, dataset_id)

    def unexpired(self, dataset_id: str) -> Dataset:
        dataset = self.dataset(dataset_id)
        if dataset.expired:
            raise RefusedError(400, f"Dataset {dataset_id} has expired.")
        return dataset

    def _add_dataset(self, prefix: str, name: str) -> api.Dataset:
        dataset = api.Dataset(dataset_id=self._new_id(prefix), name=name)
        dataset.creation_time.GetCurrentTime()
        lifetime_s = -60 if self.outputs_expired and prefix == "do" else 30 * DAY_S
        dataset.expiration_time.seconds = int(time.time()) + lifetime_s
        self.datasets[dataset.dataset_id] = Dataset(dataset)
        return dataset

    # Objects of S3, by the id of the model or dataset

    def store_object(self, entity: str, content: bytes) -> str:
        """The object's ETag."""
        self.objects[entity] = content
        if entity in self.models:
            self.parts_received[(entity, 1)] += 1
        else:
            self.datasets_received[entity] += 1
        return _etag(content)

    def complete_object(self, entity: str) -> api.CreateUpdateResponse:
        if entity not in self.objects:
            raise RefusedError(400, "The file was not uploaded.")
        if entity in self.models:
            self.model(entity).source = self.objects[entity]
            self.model(entity).model.file_upload_complete = True
            return _created(entity)
        self.dataset(entity).content = self.objects[entity]
        return self.complete_dataset(entity)

    # Jobs

    def create_job(self, job: api.Job) -> api.CreateUpdateResponse:
        """A compile or an inference job on a complete model and an unexpired dataset."""
        kind = job.WhichOneof("job").removesuffix("_job")
        body = getattr(job, f"{kind}_job")
        model = self.model(body.model.model_id)
        if not model.source and not model.model.producer_id:
            raise RefusedError(400, f"Model {body.model.model_id} has no uploaded file.")
        if kind == "inference" and body.dataset.dataset_id:
            body.dataset.CopyFrom(self.unexpired(body.dataset.dataset_id).dataset)
        job_id = self._new_id(f"j{kind[0]}")
        setattr(body, f"{kind}_job_id", job_id)
        body.model.CopyFrom(model.model)
        body.user.email = "user@example.com"
        body.creation_time.GetCurrentTime()
        states = self._seed_target(job) if kind == "compile" else _inference_states(body)
        states = [api.JOB_STATE_CREATED] * self.queue_polls + states
        failure = self._failures[kind].pop(0) if self._failures[kind] else ""
        self.jobs[job_id] = Job(job, states, failure)
        self.jobs_created[kind] += 1
        return _created(job_id)

    def _seed_target(self, job: api.Job) -> list[int]:
        body = job.compile_job
        body.device.CopyFrom(body.devices.devices[0])
        words = body.options.split()
        runtime = "tflite"
        if "--target_runtime" in words:
            runtime = words[words.index("--target_runtime") + 1]
        model_type, extension = RUNTIMES[runtime]
        target = api.Model(
            model_id=self._new_id("mt"),
            producer_id=body.compile_job_id,
            model_type=model_type,
            name=f"job_{body.compile_job_id}_optimized{extension.split('.')[1]}",
        )
        target.creation_time.GetCurrentTime()
        self.models[target.model_id] = Model(target, extension)
        body.target_model.CopyFrom(target)
        return [api.JOB_STATE_OPTIMIZING_MODEL]

    def poll(self, job_id: str) -> api.Job:
        """The job, one state further than at the last poll."""
        job = self.find_job(job_id)
        if job.body.job_state in (api.JOB_STATE_DONE, api.JOB_STATE_FAILED):
            return job.job
        if job.states:
            if not self._waits_for_compiler(job):
                job.body.job_state = job.states.pop(0)
            return job.job
        try:
            self._finish(job)
            job.body.job_state = api.JOB_STATE_DONE
        except ValueError as error:
            job.body.job_state = api.JOB_STATE_FAILED
            job.body.failure_reason = str(error)
        return job.job

    def _waits_for_compiler(self, job: Job) -> bool:
        """A job on a target model that is still being compiled stays in the queue."""
        job.body.job_state = job.body.job_state or api.JOB_STATE_CREATED
        producer = self.model(job.body.model.model_id).model.producer_id
        ends = (api.JOB_STATE_DONE, api.JOB_STATE_FAILED)
        return bool(producer) and self.poll(producer).compile_job.job_state not in ends

    def _finish(self, job: Job) -> None:
        if job.failure:
            raise ValueError(job.failure)
        if job.kind == "compile":
            self._compile(job.body)
        else:
            self._infer(job)

    def _compile(self, body: api.CompileJob) -> None:
        source = self.model(body.model.model_id)
        try:
            device = source.device
        except (DecodeError, onnx.checker.ValidationError) as error:
            raise ValueError(f"Failed to load the ONNX model: {error}") from error
        if device.model.ir_version > NEWEST_IR_VERSION:
            raise ValueError(f"Unsupported model IR version: {device.model.ir_version}")
        target = self.model(body.target_model.model_id)
        target.source = source.source
        target.model.file_upload_complete = True
        target.model.input_spec.CopyFrom(device.inputs)
        target.model.output_spec.CopyFrom(device.outputs)
        body.target_tensor_type_list.CopyFrom(device.inputs)

    def _infer(self, job: Job) -> None:
        body = job.body
        if not (model := self.model(body.model.model_id)).source:
            raise ValueError(f"Compile job {model.model.producer_id} failed.")
        device = model.device
        result = api.InferenceJobResult(inference_job_id=body.inference_job_id)
        if body.dataset.dataset_id:
            outputs = device.run(samples_in(self.dataset(body.dataset.dataset_id).content))
            dataset = self._add_dataset("do", "output")
            self.datasets[dataset.dataset_id].content = h5_of(outputs)
            dataset.file_upload_complete = True
            result.output_dataset_id = dataset.dataset_id
        if body.is_profiling_on:
            result.detail.CopyFrom(device.profile(self.cpu_ops))
            body.execution_time = result.detail.execution_time
        body.tensor_type_list.CopyFrom(device.inputs)
        job.result.inference_job_result.CopyFrom(result)

    def find_job(self, job_id: str) -> Job:
        return _found(self.jobs, job_id)

    def jobs_of(self, kind: str, states: set[int]) -> list[Job]:
        """Jobs of a kind ("" is any) in some states (none is any)."""
        return [
            job
            for job in self.jobs.values()
            if kind in ("", job.kind) and (not states or job.body.job_state in states)
        ]

    # Sharing

    def share(self, entity: str, change: api.SharedAccessChange) -> api.CreateUpdateResponse:
        emails = self.shared.setdefault(entity, [])
        emails += [email for email in change.add_email if email not in emails]
        self.shared[entity] = [email for email in emails if email not in change.remove_email]
        return _created(entity)

    def _new_id(self, prefix: str) -> str:
        self._n_ids[prefix] += 1
        return f"{prefix}{self._n_ids[prefix]:05d}"


def _found(kept: dict, key: str):
    if key not in kept:
        raise RefusedError(404, "Not found.")
    return kept[key]


def _created(entity: str, expires: int = 0) -> api.CreateUpdateResponse:
    response = api.CreateUpdateResponse(id=entity)
    response.creation_time.GetCurrentTime()
    if expires:
        response.expiration_time.seconds = expires
    return response


def _etag(content: bytes | None) -> str:
    return f'"{hashlib.md5(content or b"").hexdigest()}"'


def _inference_states(body: api.InferenceJob) -> list[int]:
    running = (
        api.JOB_STATE_MEASURING_PERFORMANCE
        if body.is_profiling_on
        else api.JOB_STATE_RUNNING_INFERENCE
    )
    return [api.JOB_STATE_PROVISIONING_DEVICE, running]


def _devices() -> list[api.Device]:
    return [
        _device("Samsung Galaxy S24 (Family)", "14", "qualcomm-snapdragon-8gen3", "v75", "android"),
        _device(
            "Samsung Galaxy S25 (Family)", "15", "qualcomm-snapdragon-8-elite", "v79", "android"
        ),
        _device("Dragonwing IQ-9075 EVK", "1.6", "qualcomm-qcs9075", "v73", "linux"),
    ]


def _device(name: str, os: str, chipset: str, hexagon: str, system: str) -> api.Device:
    frameworks = ["framework:onnx", "framework:qnn", "framework:tflite"]
    attributes = [*frameworks, f"chipset:{chipset}", f"hexagon:{hexagon}", f"os:{system}"]
    return api.Device(name=name, os=os, attributes=attributes)
