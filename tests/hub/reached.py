"""The loopback service for tests whose work is done in processes of their own."""

from collections.abc import Iterator

import pytest
from hub.service import HubService


@pytest.fixture
def service(tmp_path, monkeypatch) -> Iterator[HubService]:
    """The service, which the client's configuration points to, in workers too."""
    with HubService() as service:
        service.write_config(tmp_path / "client.ini")
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "client.ini"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield service
    assert service.errors == []
