"""Qualcomm's own client, with retries around what it does not retry; nothing else imports qai_hub.

Every call goes through `Hub._call`. What may pass (429, 5xx, dropped connections, garbled answers)
is tried again with exponential backoff and jitter, on top of the client's own tries; anything else
is one line that names the call and what to do. The API token stays inside the client: texts that
come from outside are searched for it.

Creating something twice. The service makes its ids up as it answers, and the client's POSTs carry
no key of ours, so an answer that is lost leaves a model or a job whose id nobody knows. Each gets a
unique name first, and before it is asked for again it is looked up by that name. What can't be
known: whether the client's own tries (up to 7 of one POST) created the same thing several times;
then the newest is used and the others idle. Files are sent after the POST, so that a model which
was created twice is still uploaded once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UserError

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")

INSTALL = "pip install -e '.[hub]' -c constraints.txt"
CONFIGURE = "qai-hub configure --api_token …"
SUCCESS, FAILED = "SUCCESS", "FAILED"
COMPILE = "compile"
# The service lists the newest first: what was just created is among so many.
_NEWEST = 50


@dataclass(frozen=True)
class Patience:
    """How long to wait for the service, in seconds, and how often to try a call that fails.

    `tries` is for outages, each on top of the client's own seven; a limit on the rate of requests
    is waited out for `rate_limit_s`. Jobs are asked after every `poll_s` at most.
    """

    first_wait_s: float = 2.0
    longest_wait_s: float = 60.0
    tries: int = 4
    rate_limit_s: float = 1800.0
    poll_s: float = 10.0


PATIENCE = Patience()


class ExpiredError(UserError):
    """Data that AI Hub kept for a while (30 days, says its client) and has deleted."""


@dataclass(frozen=True)
class Job:
    """A job as AI Hub last told of it; `kind` is compile, inference (profiling included), …"""

    id: str
    kind: str
    name: str
    device: str
    status: str
    url: str
    reason: str = ""
    created: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether its status is final."""
        return self.status in (SUCCESS, FAILED)

    def require_success(self) -> Job:
        """The job itself. Raises UserError, with AI Hub's reason, if it failed."""
        if self.status == FAILED:
            reason = _one_line(self.reason) or "it gives no reason"
            raise UserError(f"{self.kind} job {self.id} failed: {reason}; see {self.url}")
        return self


def connect(deadline_minutes: float | None = None) -> Hub:
    """The service, as the client's own configuration names it. Nothing is sent yet.

    Raises:
        UserError: without the client, its configuration or a token.
    """
    try:
        import qai_hub
        import tenacity  # noqa: F401
    except ImportError:
        raise UserError(f"AI Hub needs its client: {INSTALL}") from None
    if deadline_minutes is not None and not deadline_minutes > 0:  # NaN is not, either
        raise UserError(f"--deadline {deadline_minutes:g}: give minutes, above 0")
    client = qai_hub.Client()
    try:
        token = client.config.api_token.strip()
    except Exception:  # of any kind; a parser's error shows the line it stumbled over
        token = ""
    if not token or not all("!" <= character <= "~" for character in token):
        raise UserError(
            f"no AI Hub token: run `{CONFIGURE}` with the token of your account page at AI Hub"
        )
    client.set_verbose(False)
    return Hub(client, token, deadline_minutes)


class Hub:
    """What a build needs of AI Hub. `say` is told, in a few words, what is waited for.

    Every method raises UserError where the service, or the deadline, says no.
    """

    def __init__(self, client: Any, token: str, deadline_minutes: float | None) -> None:
        self._client = client
        self._token = token
        self._minutes = deadline_minutes
        self._end = None if deadline_minutes is None else time.monotonic() + 60 * deadline_minutes
        self._jobs: dict[str, Any] = {}
        self.say: Callable[[str], None] = lambda _text: None

    # -- devices ---------------------------------------------------------------------------------

    def devices(self, name: str = "") -> list[dict[str, str]]:
        """The devices (of one name): name, operating system's version, chipset."""
        found = self._call("listing devices", lambda: self._client.get_devices(name=name))
        return [{"name": d.name, "os": d.os, "chipset": _chipset(d.attributes)} for d in found]

    def require_device(self, name: str) -> None:
        """Raises UserError, with the nearest names, unless AI Hub has the device."""
        if not self.devices(name):
            names = sorted({device["name"] for device in self.devices()})
            near = [known for known in names if name.lower() in known.lower()][:3]
            near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise UserError(f"AI Hub has no device {name!r}: {hint}see `hub devices`")

    # -- what is sent ----------------------------------------------------------------------------

    def upload_model(self, path: Path, name: str, *, was_asked: bool) -> str:
        """Uploads a file or a folder by its path; returns the model's id.

        `was_asked` says that a model of this name may be there already: it is looked up first.
        Once there is such a model, the client has sent its file, or tried to for half a minute: a
        file of that size is not sent again behind the user's back.
        """
        what = "uploading the model"
        failures: list[Exception] = []

        def upload() -> str:
            try:
                return str(self._client.upload_model(str(path), name=name).model_id)
            except Exception as error:
                failures.append(error)
                raise

        def known() -> str | None:
            models = self._named("get_model_list", "models", name)
            complete = [str(m.model_id) for m in models or [] if m.file_upload_complete]
            if not complete and failures and (models is None or models):
                raise UserError(self._scrubbed(f"{what}: {_explained(failures[-1])}"))
            return complete[0] if complete else None

        return self._call(what, upload, known, was_asked)

    def upload_inputs(
        self, inputs: Mapping[str, NDArray[Any]], name: str, *, was_asked: bool
    ) -> str:
        """Uploads one set of inputs as a dataset; returns its id."""

        def upload() -> str:
            entries = {key: [values] for key, values in inputs.items()}
            return str(self._client.upload_dataset(entries, name=name).dataset_id)

        def known() -> str | None:
            datasets = self._named("get_dataset_list", "datasets", name) or []
            return next((str(d.dataset_id) for d in datasets if d.file_upload_complete), None)

        return self._call("uploading the inputs", upload, known, was_asked)

    # -- jobs ------------------------------------------------------------------------------------

    def submit_compile(
        self, model_id: str, device: str, name: str, options: str, *, was_asked: bool
    ) -> Job:
        """Submits a compile job for an uploaded model."""
        import qai_hub

        def submit() -> Any:
            return self._client.submit_compile_job(
                self._client.get_model(model_id), device=qai_hub.Device(device), name=name,
                options=options, retry=False,  # a rate limit is waited out here, in one place
            )  # fmt: skip

        what = f"submitting the compile job of model {model_id}"
        return self._remembered(self._call(what, submit, partial(self._job_named, name), was_asked))

    def submit_inference(
        self, compile_id: str, device: str, name: str, dataset_id: str, *, was_asked: bool
    ) -> Job:
        """Submits a profiled inference of a compiled model, on a dataset or (`""`) random inputs.

        Raises `ExpiredError` when the dataset is.
        """
        import qai_hub

        def submit() -> Any:
            dataset = self._dataset(dataset_id) if dataset_id else None
            target = self._client.get_job(compile_id).get_target_model()
            return self._client.submit_inference_job(
                target, device=qai_hub.Device(device), inputs=dataset, name=name,
                retry=False, profile=True,
            )  # fmt: skip

        what = f"submitting the inference job of compile job {compile_id}"
        return self._remembered(self._call(what, submit, partial(self._job_named, name), was_asked))

    def job(self, job_id: str) -> Job:
        """What AI Hub knows of a job now."""

        def look() -> tuple[Any, Any]:
            job = self._jobs.get(job_id) or self._client.get_job(job_id)
            return job, job.get_status()

        job, status = self._call(f"looking up job {job_id}", look)
        self._jobs[job_id] = job
        return self._described(job, status.code, status.message or "")

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs of the account, newest first."""
        found = self._call(
            "listing jobs", lambda: self._client.get_job_summaries(limit=min(limit, _NEWEST))
        )
        return [
            Job(s.job_id, s.job_type.display_name, self._scrubbed(s.name), s.device_name or "",
                s.status.code, s.url, created=f"{s.date:%Y-%m-%d %H:%M}")
            for s in found
        ]  # fmt: skip

    def finished(self, job_id: str) -> Job:
        """The job, once it has succeeded or failed. Raises UserError at the deadline."""
        started = time.monotonic()
        while not (job := self.job(job_id)).is_finished:
            waited = time.monotonic() - started
            if self._is_late():
                raise UserError(
                    f"job {job_id} is not done after {self._minutes:g} minutes ({job.status}); it "
                    f"goes on at {job.url} and the same command takes it up again"
                )
            self.say(f"{job.kind} job {job_id}: {job.status.lower().replace('_', ' ')}")
            time.sleep(min(PATIENCE.poll_s, 1 + waited / 10))
        return job

    # -- what comes back -------------------------------------------------------------------------

    def profile(self, job_id: str) -> dict[str, Any]:
        """A finished job's profile as the client gives it: times in µs, memory in bytes."""
        job = self._client_job(job_id, "inference")
        profile: dict[str, Any] = self._call(
            f"downloading the profile of job {job_id}", job.download_profile
        )
        if not profile:
            raise UserError(f"job {job_id} has no profile; see {job.url}")
        return profile

    def input_shapes(self, compile_id: str) -> dict[str, tuple[int, ...]]:
        """The inputs of a finished compile job's model, by name."""
        job = self._client_job(compile_id, COMPILE)
        specs = self._call(f"looking up job {compile_id}", job.get_target_shapes) or job.shapes
        return {name: tuple(shape) for name, (shape, _dtype) in specs.items()}

    def outputs(self, job_id: str) -> dict[str, NDArray[Any]]:
        """What a finished job's model computed, an array an output; or raises `ExpiredError`."""
        job = self._client_job(job_id, "inference")

        def download() -> Any:
            dataset = job.get_output_dataset()
            if dataset is not None and dataset.is_expired():
                raise ExpiredError(
                    f"downloading the outputs of job {job_id}: they have expired; run it again"
                )
            return dataset and dataset.download()

        outputs = self._call(f"downloading the outputs of job {job_id}", download)
        if not outputs:
            raise UserError(f"job {job_id} has no outputs: it ran on random inputs; give --image")
        return {name: np.asarray(values[0]) for name, values in outputs.items()}

    def download_model(self, compile_id: str, folder: Path) -> Path:
        """Downloads a finished compile job's model into a folder; its name is the service's."""
        job = self._client_job(compile_id, COMPILE)
        what = f"downloading the model of job {compile_id}"
        path = self._call(what, lambda: job.download_target_model(str(folder)))
        if path is None:
            raise UserError(f"compile job {compile_id} has no model; see {job.url}")
        return Path(path)

    def share(self, job_id: str, emails: Sequence[str]) -> list[str]:
        """Shares a job, and with it its models and data; returns everyone it is shared with."""

        def share() -> list[str]:
            job = self._client.get_job(job_id)
            job.modify_sharing(add_emails=list(emails))
            return [str(email) for email in job.get_sharing()]

        shared = self._call(f"sharing job {job_id}", share)
        missing = {email.lower() for email in emails} - {email.lower() for email in shared}
        if missing:
            raise UserError(f"job {job_id} is not shared with {', '.join(sorted(missing))}")
        return shared

    # -- how -------------------------------------------------------------------------------------

    def _client_job(self, job_id: str, kind: str) -> Any:
        job = self.job(job_id)
        if job.kind != kind:
            raise UserError(f"job {job_id} is a job of kind {job.kind}; give one of kind {kind}")
        return self._jobs[job_id]

    def _dataset(self, dataset_id: str) -> Any:
        try:
            dataset = self._client.get_dataset(dataset_id)
        except Exception as error:
            if _status_code(error) not in (404, 410):
                raise
            dataset = None
        if dataset is None or dataset.is_expired():
            raise ExpiredError(
                f"submitting the inference job: AI Hub has no dataset {dataset_id}, or it has "
                "expired; run the same command again, it is uploaded anew"
            )
        return dataset

    def _remembered(self, job: Any) -> Job:
        self._jobs[job.job_id] = job
        return self._described(job, "CREATED", "")

    def _described(self, job: Any, status: str, reason: str) -> Job:
        device = getattr(job, "device", None)  # quantize jobs have none
        return Job(
            job.job_id, job.job_type, self._scrubbed(job.name), device.name if device else "",
            status, job.url, self._scrubbed(reason), f"{job.date:%Y-%m-%d %H:%M}",
        )  # fmt: skip

    def _named(self, function: str, field: str, name: str) -> list[Any] | None:
        """The newest models or datasets of a name; None where the service lists none."""
        from qai_hub import public_rest_api

        listing = getattr(public_rest_api, function)
        found = self._listed(listing, self._client.config, limit=_NEWEST)
        return None if found is None else [i for i in getattr(found, field) if i.name == name]

    def _job_named(self, name: str) -> Any | None:
        summaries = self._listed(self._client.get_job_summaries, limit=_NEWEST) or []
        ids = [summary.job_id for summary in summaries if summary.name == name]
        return self._client.get_job(ids[0]) if ids else None

    def _listed(self, listing: Callable[..., Any], *args: Any, limit: int) -> Any:
        """A list, or None where the service refuses to list: then nothing can be looked up."""
        try:
            return listing(*args, limit=limit)
        except Exception as error:
            if _is_of_the_service(error) and not _is_transient(error):
                return None
            raise

    def _call(
        self, what: str, function: Callable[[], T], known: Callable[[], T | None] | None = None,
        was_asked: bool = False,
    ) -> T:  # fmt: skip
        """One call of the client, tried again while that may help.

        Args:
            what: names the call in errors.
            function: makes it.
            known: looks up what an earlier try may have created.
            was_asked: whether there was an earlier try, of an interrupted run.
        """
        import tenacity

        asked = was_asked

        def attempt() -> T:
            nonlocal asked
            look, asked = asked, True
            with _contained():
                found = known() if look and known is not None else None
                return function() if found is None else found

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_exponential_jitter(
                PATIENCE.first_wait_s, PATIENCE.longest_wait_s, jitter=PATIENCE.first_wait_s
            ),
            stop=self._is_enough,
            before_sleep=self._announce,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                folder = tempfile.gettempdir()
                raise UserError(f"{what}: {folder} is full; free it or set TMPDIR") from error
            if not _is_of_the_service(error):
                raise
            late = f" ({self._minutes:g} minutes are over)" if self._is_late() else ""
            raise UserError(self._scrubbed(f"{what}: {_explained(error)}{late}")) from None

    def _is_enough(self, state: tenacity.RetryCallState) -> bool:
        if self._is_late(state.upcoming_sleep):
            return True
        error = state.outcome.exception() if state.outcome else None
        if error is not None and _is_rate_limit(error):
            return (state.seconds_since_start or 0.0) >= PATIENCE.rate_limit_s
        return state.attempt_number >= PATIENCE.tries

    def _is_late(self, pause_s: float = 0.0) -> bool:
        return self._end is not None and time.monotonic() + pause_s >= self._end

    def _announce(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        why = "AI Hub limits the rate" if error and _is_rate_limit(error) else "AI Hub fails"
        self.say(f"{why}: again in {state.upcoming_sleep:.0f} s")

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._token, "***")


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keeps what the client prints off stdout, and removes the temporary files that it leaves."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


# -- errors ----------------------------------------------------------------------------------------


def _causes(error: BaseException) -> list[BaseException]:
    """An error of the client, and what it stands for."""
    behind = [error.__cause__, error.__context__ if error.__suppress_context__ else None]
    return [error, *(cause for cause in behind if cause is not None)]


def _status_code(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for cause in _causes(error):
        status = getattr(cause, "status_code", None)
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):  # botocore's
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    return None


def _is_rate_limit(error: BaseException) -> bool:
    """The client's own tries of a GET end in an error that holds only their number and status."""
    return _status_code(error) == 429 or any(
        "too many 429 error responses" in str(cause) for cause in _causes(error)
    )


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    from botocore.exceptions import HTTPClientError  # type: ignore[import-untyped]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from qai_hub.util.session import RETRIABLE_STATUSES, TRANSIENT_HTTP_EXCEPTIONS
    from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

    dropped = (*TRANSIENT_HTTP_EXCEPTIONS, HTTPClientError, RetriesExceededError, DecodeError)
    status = _status_code(error)
    if status is not None:
        return status in (408, *RETRIABLE_STATUSES)
    return any(isinstance(cause, dropped) for cause in _causes(error))


def _is_of_the_service(error: BaseException) -> bool:
    """Whether an error is the service's, the network's or the client's word, and no bug of ours."""
    import requests
    from botocore.exceptions import BotoCoreError, ClientError
    from qai_hub.client import Error
    from qai_hub.public_rest_api import APIException

    theirs = (Error, APIException, requests.RequestException, BotoCoreError, ClientError)
    return (
        isinstance(error, theirs)
        or _is_transient(error)
        # the client raises plain ValueErrors where the service answers with a refusal
        or (isinstance(error, ValueError) and str(error).startswith("Failed to "))
        or (isinstance(error, AssertionError) and str(error).startswith("ETag not received"))
    )


def _explained(error: BaseException) -> str:
    """What the service said, and what to do."""
    from botocore.exceptions import ClientError
    from qai_hub.client import InternalError

    status, said = _status_code(error), _one_line(str(error))
    if _is_rate_limit(error):
        return "AI Hub still limits the rate of requests; run the same command again later"
    if _is_transient(error):
        return f"AI Hub can't be reached or fails ({said}); run the same command again later"
    if isinstance(error, ClientError) or (
        isinstance(error, InternalError) and status is not None and 400 <= status < 500
    ):
        return f"the storage refuses it ({said}); run the same command again, it gets new links"
    if status == 401:
        return f"AI Hub refused the API token; run `{CONFIGURE}` with that of your account page"
    if status == 403:
        return f"AI Hub does not allow it ({said}); its owner must share it with your account"
    if status == 404:
        return (
            f"AI Hub has no such thing ({said}); was it deleted, or is it another account's? "
            "--anew forgets what a build remembers"
        )
    if status == 409:
        return f"AI Hub says it conflicts with what is there ({said}); see `hub status`"
    return f"AI Hub refused it: {said}"


def _one_line(text: str, limit: int = 400) -> str:
    """Without the boxes that the client draws around its words, and without HTML."""
    if "┌" in text:
        text = re.sub(r"[┌┐└┘─]+|(?m:^\|)|(?m:\|$)", " ", text)
    text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _chipset(attributes: str | Sequence[str]) -> str:
    found = [a for a in attributes if a.startswith("chipset:")]
    return found[0].partition(":")[2] if found else ""
