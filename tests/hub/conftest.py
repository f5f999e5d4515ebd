"""The loopback service, the client's config that points to it, and a clock that sleeps no time."""

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
import qai_hub.hub
from hub.service import HubService
from qai_hub.util import session


class Clock:
    """Time that passes by sleeping: `sleep` returns at once and `monotonic` has moved on."""

    def __init__(self) -> None:
        self.slept_s = 0.0
        self._sleep, self._monotonic = time.sleep, time.monotonic

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self._sleep(0)

    def monotonic(self) -> float:
        return self._monotonic() + self.slept_s


@pytest.fixture
def clock(monkeypatch) -> Iterator[Clock]:
    """Every `time.sleep` of this process (polling, backoff, retries) takes no time.

    How long the client means to wait between two tries is drawn at random: the same each time.
    """
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    state = random.getstate()
    random.seed(0)
    yield clock
    random.setstate(state)


@pytest.fixture
def service() -> Iterator[HubService]:
    """A fresh service; the test fails if the service itself did."""
    with HubService() as service:
        yield service
    assert service.errors == []


@pytest.fixture
def hub_config(service, clock, tmp_path_factory, monkeypatch) -> Path:
    """The client.ini that the client reads next; no token of the machine's own is in reach."""
    path = tmp_path_factory.mktemp("client") / "client.ini"
    service.write_config(path)
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(qai_hub.hub._global_client, "_config", None)
    return path


@functools.cache
def _botocore_session() -> botocore.session.Session:
    """One for all tests: each one reads megabytes of JSON for its first client."""
    return botocore.session.Session()


@pytest.fixture
def s3(service, monkeypatch) -> HubService:
    """The service gives S3's credentials in place of signed links; its storage answers as S3."""
    service.gives_credentials = True
    monkeypatch.setattr(botocore.session, "get_session", _botocore_session)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", service.storage.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return service


@pytest.fixture
def time_out_after(monkeypatch) -> Callable[[float], None]:
    """Shortens the seconds that the client waits for an answer (28 of AI Hub, 4 of the storage)."""

    def shorten(seconds: float) -> None:
        defaults = (True, seconds, "library")
        monkeypatch.setattr(session.create_session, "__defaults__", defaults)
        monkeypatch.setattr(session, "EXTERNAL_RESPONSE_TIMEOUT_SECONDS", seconds)

    return shorten


@pytest.fixture
def impatient(service, monkeypatch) -> None:
    """The client gives up at once on an answer that will be slow, and waits for all others."""
    request = session.SessionWithRetryAndTimeout.request

    def impatient_request(self, method, url, *args, **options):
        target = url.removeprefix(service.url)
        if any(f.kind == "slow" and f.meets(method, target) for f in service.faults):
            options["timeout"] = (3, 0.02)
        return request(self, method, url, *args, **options)

    monkeypatch.setattr(session.SessionWithRetryAndTimeout, "request", impatient_request)
