"""A loopback service that speaks AI Hub's protocol, for the unmodified client (qualcomm.md, 2).

Two servers on 127.0.0.1: the API (protobuf, token) and the storage that its answers point to
(signed URLs, as S3's). Faults are planted by method and path, and each fires a number of times.

The protocol is what the client sends and accepts. What only the real service could tell is assumed:
the sentences of its refusals, 400 for an expired dataset, and that a job on a target which is still
being compiled waits for it.
"""

import dataclasses
import json
import os
import re
import secrets
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from hub.cloud import Cloud, RefusedError
from hub.routes import API_ROUTES, STORAGE_ROUTES, Call, Reply, Route

FOREVER = 10**6

S3_CODES = {400: "ExpiredToken", 403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}

CALLS = {  # each call of the chain: method and path (with its query)
    "device lookup": ("GET", r"/v1/devices/"),
    "model create": ("POST", r"/models/$"),
    "part urls": ("GET", r"/models/\w+/multipart_upload/"),
    "part upload": ("PUT", r"/parts/\w+/2\?"),
    "upload complete": ("POST", r"/models/\w+/multipart_upload/$"),
    "uploaded model": ("GET", r"/models/mu\w+/$"),
    "compile job create": ("POST", r"/jobs/\?seed_target_model=true$"),
    "compile job poll": ("GET", r"/jobs/jc\w+/$"),
    "dataset create": ("POST", r"/v1/datasets/$"),
    "dataset upload url": ("GET", r"/datasets/\w+/upload_url/"),
    "dataset upload": ("POST", r"/forms/"),
    "dataset complete": ("PATCH", r"/v1/datasets/\w+/$"),
    "inputs dataset": ("GET", r"/datasets/du\w+/$"),
    "inference job create": ("POST", r"/jobs/$"),
    "inference job poll": ("GET", r"/jobs/ji\w+/$"),
    "result": ("GET", r"/jobs/\w+/result/$"),
    "output dataset": ("GET", r"/datasets/do\w+/$"),
    "output dataset url": ("GET", r"/datasets/do\w+/download_data/"),
    "output dataset download": ("GET", r"/files/do"),
    "share": ("PATCH", r"/shared_access/$"),
    "sharing": ("GET", r"/shared_access/$"),
    "target model url": ("GET", r"/models/mt\w+/download/"),
    "target model download": ("GET", r"/files/mt"),
}


@dataclasses.dataclass
class Fault:
    """What goes wrong so many `times`: an HTTP status, "reset", "slow", "html" or "ctrl-c".

    "html" is a page that a proxy answers in the service's place, with status 200; "ctrl-c" is a
    person's, while the client waits for this answer (the signal goes to the main thread).

    A reset PUT breaks in the middle of its body, a reset download in the middle of the answer,
    any other before it is served; `after` serves the request first and loses the answer.
    """

    method: str
    path: str
    kind: int | str
    times: int = 1
    seconds: float = 0.3
    after: bool = False
    fired: int = 0

    def meets(self, method: str, target: str) -> bool:
        left = self.fired < self.times
        return left and method == self.method and re.search(self.path, target) is not None


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as the service saw it: status is the answer's, or "reset"."""

    method: str
    path: str
    status: int | str


class HubService(Cloud):
    """The service; a context manager that listens while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.token = secrets.token_hex(20)
        self.signature = secrets.token_hex(20)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []
        self.api = _Server(self, API_ROUTES, needs_token=True)
        self.storage = _Server(self, STORAGE_ROUTES, needs_token=False)

    def __enter__(self) -> "HubService":
        for server in (self.api, self.storage):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in (self.api, self.storage):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return self.api.url

    @property
    def secrets(self) -> list[str]:
        """What must occur in no file, output, log or error."""
        return [self.token, self.signature]

    def write_config(self, path: Path) -> None:
        """A client.ini as a person's: `verbose` is left out, which means yes."""
        lines = ["[api]", f"api_url = {self.url}", f"web_url = {self.url}"]
        path.write_text("\n".join([*lines, f"api_token = {self.token}", ""]), encoding="utf-8")

    def plant(self, fault: Fault) -> Fault:
        with self.lock:
            self.faults.append(fault)
        return fault

    def break_call(self, call: str, kind: int | str, **options) -> Fault:
        """A fault in one of `CALLS`."""
        return self.plant(Fault(*CALLS[call], kind, **options))

    def heal(self) -> None:
        """No faults from here on."""
        with self.lock:
            self.faults.clear()

    def count(self, call: str) -> int:
        """How often one of `CALLS` was asked for, answered or not."""
        method, path = CALLS[call]
        return sum(r.method == method and bool(re.search(path, r.path)) for r in self.requests)

    def signed(self, path: str) -> str:
        """A URL of the storage."""
        return f"{self.storage.url}/{path}?X-Amz-Signature={self.signature}"

    def fault_for(self, method: str, target: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.meets(method, target):
                    fault.fired += 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, service: HubService, routes: list[Route], needs_token: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service, self.routes, self.needs_token = service, routes, needs_token
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """A client that went away is part of the game; anything else is our own bug."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            self.service.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: _Server

    def _serve(self) -> None:
        service = self.server.service
        fault = service.fault_for(self.command, self.path)
        if fault is not None and fault.kind == "reset" and self.command == "PUT":
            self._read(self._nbytes // 2)
            return self._reset()
        body = self._read(self._nbytes)
        if fault is None:
            return self._send(self._reply(body))
        return self._fail(fault, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815

    def _fail(self, fault: Fault, body: bytes) -> None:
        if isinstance(fault.kind, int):
            if fault.after:
                self._reply(body)
            return self._send(self._refusal(fault.kind, "planted by the test"))
        if fault.kind == "html":
            return self._send(Reply(b"<html>Sign in</html>", content_type="text/html"))
        if fault.kind == "slow":
            threading.Event().wait(fault.seconds)
            return self._send(self._reply(body))
        if fault.kind == "reset" and self.path.startswith("/files/"):
            return self._send(self._reply(body), break_off=True)
        if fault.after:
            self._reply(body)
        if fault.kind == "ctrl-c":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            threading.Event().wait(0.02)  # the signal comes first
        return self._reset()

    @property
    def _nbytes(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _read(self, nbytes: int) -> bytes:
        body = self.rfile.read(nbytes)
        with self.server.service.lock:
            self.server.service.bytes_received += len(body)
        return body

    def _reply(self, body: bytes) -> Reply:
        service = self.server.service
        wanted = f"token {service.token}"
        if self.server.needs_token and self.headers.get("Authorization") != wanted:
            return self._refusal(401, "Invalid token.")
        url = urlsplit(self.path)
        for method, pattern, answer in self.server.routes:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command:
                kind = self.headers.get("Content-Type", "")
                call = Call(service, match.groups(), parse_qs(url.query), body, kind)
                return self._answered(call, answer)
        return self._refusal(404, "Not found.")

    def _answered(self, call: Call, answer: Callable[[Call], object]) -> Reply:
        try:
            with call.service.lock:
                done = answer(call)
                return done if isinstance(done, Reply) else Reply(done.SerializeToString())
        except RefusedError as refused:
            return self._refusal(refused.status, refused.detail)

    def _refusal(self, status: int, detail: str) -> Reply:
        if self.server.needs_token:
            body = json.dumps({"detail": detail}).encode()
            return Reply(body, status, content_type="application/json")
        code = S3_CODES.get(status, "InternalError")
        body = f"<Error><Code>{code}</Code><Message>{detail}</Message></Error>".encode()
        return Reply(body, status, content_type="application/xml")

    def _send(self, reply: Reply, break_off: bool = False) -> None:
        self._log(reply.status)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        if reply.etag:
            self.send_header("ETag", reply.etag)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(reply.body[: len(reply.body) // 2] if break_off else reply.body)
        if break_off:
            self._break()

    def _reset(self) -> None:
        self._log("reset")
        self._break()

    def _break(self) -> None:
        """Closes with a reset (RST), not an orderly end."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())
        self.close_connection = True

    def _log(self, status: int | str) -> None:
        with self.server.service.lock:
            self.server.service.requests.append(Request(self.command, self.path, status))

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal: the test reads `HubService.requests`."""
