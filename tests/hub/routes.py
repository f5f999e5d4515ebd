"""What the loopback service answers: one function a call of AI Hub's API, or of its storage."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from hub.cloud import RefusedError
from qai_hub import public_api_pb2 as api

if TYPE_CHECKING:
    from hub.service import HubService

PROTOBUF = "application/x-protobuf"


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer of either server."""

    body: bytes
    status: int = 200
    content_type: str = PROTOBUF
    etag: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """A request on its way to a route: what its path, query and body say."""

    service: "HubService"
    ids: tuple[str, ...]
    query: dict[str, list[str]]
    body: bytes
    content_type: str

    def parsed(self, message):
        """The body as a protobuf message of this type."""
        return message.FromString(self.body)

    def first(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]


# The API's routes: what each call answers


def _user(call: Call) -> api.User:
    return api.User(id=1, email="user@example.com")


def _devices(call: Call) -> api.DeviceList:
    name, attributes = call.first("name"), set(call.query.get("attributes", []))
    found = [
        d for d in call.service.devices if name in ("", d.name) and attributes <= set(d.attributes)
    ]
    if call.first("select") == "True":
        found = found[:1]
    return api.DeviceList(devices=found, total_query_count=len(found))


def _create_model(call: Call) -> api.CreateUpdateResponse:
    return call.service.create_model(call.parsed(api.Model))


def _part_urls(call: Call) -> api.FileUploadResponse:
    service = call.service
    if service.gives_credentials:
        return api.FileUploadResponse(credentials=_credentials(call))
    upload_id, n_parts = service.start_upload(call.ids[0], int(call.first("file_size")))
    urls = [service.signed(f"parts/{upload_id}/{i + 1}") for i in range(n_parts)]
    return api.FileUploadResponse(
        multipart_url=api.FileMultipartUploadURL(
            urls=urls, upload_id=upload_id, max_part_size=service.max_part_size
        )
    )


def _complete_upload(call: Call) -> api.CreateUpdateResponse:
    done = call.parsed(api.FileMultipartUploadComplete)
    return call.service.complete_upload(call.ids[0], done)


def _complete_object(call: Call) -> api.CreateUpdateResponse:
    return call.service.complete_object(call.ids[0])


def _credentials(call: Call, filename: str = "") -> api.S3Credentials:
    """Short-lived keys to one object, which the client gives to botocore."""
    secret = call.service.signature
    return api.S3Credentials(
        access_key_id="loopback",
        secret_access_key=secret,
        session_token=secret,
        bucket="objects",
        key=call.ids[0],
        region="us-west-2",
        filename=filename,
    )


def _model(call: Call) -> api.Model:
    return call.service.model(call.ids[0]).model


def _models(call: Call) -> api.ModelList:
    models = [m.model for m in call.service.models.values()]
    return api.ModelList(models=_page(call, models), total_query_count=len(models))


def _model_url(call: Call) -> api.FileDownloadResponse:
    model = call.service.model(call.ids[0])
    if not model.source:
        raise RefusedError(404, "The model has no file.")
    return _download(call, model.model.name + model.extension)


def _create_dataset(call: Call) -> api.CreateUpdateResponse:
    return call.service.create_dataset(call.parsed(api.Dataset))


def _form_url(call: Call) -> api.FileUploadResponse:
    call.service.dataset(call.ids[0])
    if call.service.gives_credentials:
        return api.FileUploadResponse(credentials=_credentials(call))
    url = call.service.signed(f"forms/{call.ids[0]}")
    fields = {"key": call.ids[0], "policy": call.service.signature}
    return api.FileUploadResponse(
        url=api.FileUploadURL(url=url, file_field_name="file", fields=fields)
    )


def _complete_dataset(call: Call) -> api.CreateUpdateResponse:
    return call.service.complete_dataset(call.ids[0])


def _dataset(call: Call) -> api.Dataset:
    return call.service.dataset(call.ids[0]).dataset


def _datasets(call: Call) -> api.DatasetList:
    datasets = [d.dataset for d in call.service.datasets.values()]
    return api.DatasetList(datasets=_page(call, datasets), total_query_count=len(datasets))


def _page(call: Call, items: list) -> list:
    """One page of a listing, newest first."""
    offset = int(call.first("offset", "0"))
    return items[::-1][offset : offset + int(call.first("limit", "50"))]


def _dataset_url(call: Call) -> api.FileDownloadResponse:
    dataset = call.service.unexpired(call.ids[0])
    return _download(call, f"{dataset.dataset.name}.h5")


def _download(call: Call, filename: str) -> api.FileDownloadResponse:
    if call.service.gives_credentials:
        return api.FileDownloadResponse(credentials=_credentials(call, filename))
    url = call.service.signed(f"files/{call.ids[0]}")
    return api.FileDownloadResponse(url=api.FileDownloadURL(url=url, filename=filename))


def _create_job(call: Call) -> api.CreateUpdateResponse:
    return call.service.create_job(call.parsed(api.Job))


def _job(call: Call) -> api.Job:
    return call.service.poll(call.ids[0])


def _name_job(call: Call) -> api.CreateUpdateResponse:
    job = call.service.find_job(call.ids[0])
    job.body.name = call.parsed(api.JobPublicUpdate).name
    return api.CreateUpdateResponse(id=call.ids[0])


def _result(call: Call) -> api.JobResult:
    return call.service.find_job(call.ids[0]).result


def _summaries(call: Call) -> api.JobSummaryList:
    states = {int(s) for s in call.first("state").split(",") if s}
    jobs = call.service.jobs_of(call.first("type"), states)
    summaries = [_summary(job) for job in _page(call, jobs)]
    return api.JobSummaryList(job_summaries=summaries, total_query_count=len(jobs))


def _summary(job) -> api.JobSummary:
    body = job.body
    kind = f"{job.kind}_job_summary"
    summary = api.JobSummary()
    inner = getattr(summary, kind)
    inner.job_id = getattr(body, f"{job.kind}_job_id")
    inner.name, inner.job_state, inner.device_name = body.name, body.job_state, body.device.name
    inner.user.CopyFrom(body.user)
    inner.creation_time.CopyFrom(body.creation_time)
    if job.kind == "inference":
        inner.is_profiling_on = body.is_profiling_on
        if body.execution_time:
            inner.execution_time = body.execution_time
    return summary


def _share(call: Call) -> api.CreateUpdateResponse:
    return call.service.share(call.ids[0], call.parsed(api.SharedAccessChange))


def _sharing(call: Call) -> api.SharedAccess:
    return api.SharedAccess(email=call.service.shared.get(call.ids[0], []))


# The storage's routes


def _put_part(call: Call) -> Reply:
    etag = call.service.store_part(call.ids[0], int(call.ids[1]), call.body)
    return Reply(b"", content_type="application/xml", etag=etag)


def _post_form(call: Call) -> Reply:
    call.service.store_dataset(call.ids[0], call.body, call.content_type)
    return Reply(b"", status=204, content_type="application/xml")


def _put_object(call: Call) -> Reply:
    etag = call.service.store_object(call.ids[0], call.body)
    return Reply(b"", content_type="application/xml", etag=etag)


def _get_file(call: Call) -> Reply:
    kept = call.service.models if call.ids[0].startswith("m") else call.service.datasets
    return Reply(kept[call.ids[0]].content, content_type="application/octet-stream")


Route = tuple[str, str, Callable[[Call], object]]
API_ROUTES: list[Route] = [
    ("GET", "users/auth/user", _user),
    ("GET", "devices", _devices),
    ("POST", "models", _create_model),
    ("GET", "models", _models),
    ("GET", r"models/(\w+)", _model),
    ("GET", r"models/(\w+)/multipart_upload", _part_urls),
    ("POST", r"models/(\w+)/multipart_upload", _complete_upload),
    ("POST", r"(?:models|datasets)/(\w+)/upload_complete", _complete_object),
    ("GET", r"models/(\w+)/download", _model_url),
    ("POST", "datasets", _create_dataset),
    ("GET", "datasets", _datasets),
    ("GET", r"datasets/(\w+)", _dataset),
    ("PATCH", r"datasets/(\w+)", _complete_dataset),
    ("GET", r"datasets/(\w+)/upload_url", _form_url),
    ("GET", r"datasets/(\w+)/download_data", _dataset_url),
    ("POST", "jobs", _create_job),
    ("GET", r"jobs/(\w+)", _job),
    ("PATCH", r"jobs/(\w+)", _name_job),
    ("GET", r"jobs/(\w+)/result", _result),
    ("GET", "job_summaries", _summaries),
    ("PATCH", r"(?:jobs|models|datasets)/(\w+)/shared_access", _share),
    ("GET", r"(?:jobs|models|datasets)/(\w+)/shared_access", _sharing),
]
API_ROUTES = [(method, f"/api/v1/{path}/", answer) for method, path, answer in API_ROUTES]
STORAGE_ROUTES: list[Route] = [
    ("PUT", r"/parts/(\w+)/(\d+)", _put_part),
    ("POST", r"/forms/(\w+)", _post_form),
    ("GET", r"/files/(\w+)", _get_file),
    ("PUT", r"/objects/(\w+)", _put_object),
    ("HEAD", r"/objects/(\w+)", _get_file),
    ("GET", r"/objects/(\w+)", _get_file),
]
