"""A proxy in front of a real S3 server that answers some requests wrongly, or not at all, and counts them.

It listens on loopback and hands each request on as it came (the Host header too, so that signatures hold).
What goes wrong is planned (`plan`, one entry a request, None for a good one) or drawn with a seed.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

Fault = Literal[
    "slow down", "internal error", "too many requests", "conflict",
    "reset before the request", "reset within the request", "reset within the answer",
    "truncated answer", "late answer", "lost answer", "damaged answer", "clock skew",
]  # fmt: skip
FAULTS: Final[tuple[Fault, ...]] = tuple(
    fault for fault in get_args(Fault) if fault not in ("damaged answer", "clock skew")
)
"""All that pass: not a flipped byte, which only the checksum of a whole object shows, nor a wrong clock."""
_REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "slow down": (503, "SlowDown"),
    "internal error": (500, "InternalError"),
    "too many requests": (429, "TooManyRequests"),
    "conflict": (409, "ConditionalRequestConflict"),
    "clock skew": (403, "RequestTimeTooSkewed"),
}


@dataclass(frozen=True)
class Injected:
    """One request that went wrong, at `time.monotonic`."""

    fault: Fault
    request: str
    at: float


class FaultyS3(ThreadingHTTPServer):
    """Set `plan`, `probability`, `faults` at any time; `requests` and `injected` count what came and failed,
    `log` tells each failure. Every request takes `latency_seconds` more than it would.

    A conflict is only ever answered to a conditional put; a plan's entry waits for such a one.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.plan: deque[Fault | None] = deque()
        self.probability = 0.0
        self.faults: Sequence[Fault] = FAULTS
        self.late_seconds = 0.2
        self.latency_seconds = 0.0
        self.injected: Counter[str] = Counter()
        self.log: list[Injected] = []
        self.requests = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, request: str, conditional: bool) -> Fault | None:
        with self._lock:
            self.requests += 1
            if self.plan:
                fault = self.plan[0] if conditional or self.plan[0] != "conflict" else None
                if fault == self.plan[0]:
                    self.plan.popleft()
            else:
                usable = [fault for fault in self.faults if conditional or fault != "conflict"]
                hit = self._random.random() < self.probability
                fault = self._random.choice(usable) if hit else None
            if fault is not None:
                self.injected[fault] += 1
                self.log.append(Injected(fault, request, time.monotonic()))
            return fault

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self.close_request(request)  # without a farewell, so that a reset stays one

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is no error here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def faulty_s3(upstream: str, seed: int = 0) -> Iterator[FaultyS3]:
    """A proxy that serves until the block ends."""
    with FaultyS3(upstream, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyS3

    def _serve(self) -> None:
        request = f"{self.command} {self.path}"
        fault = self.server.next_fault(request, self.command == "PUT" and "If-None-Match" in self.headers)
        time.sleep(self.server.latency_seconds)
        if fault == "reset before the request":
            return self._reset()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault in _REFUSALS:
            return self._refuse(*_REFUSALS[fault])
        if fault == "reset within the request":
            self._forward(body, cut=True)
            return self._reset()
        if fault == "late answer":
            time.sleep(self.server.late_seconds)
        answer = self._forward(body)
        cuts_nothing = fault in ("reset within the answer", "truncated answer") and answer and not answer[1]
        if answer is None or fault == "lost answer" or cuts_nothing:
            return self._reset()
        self._answer(*answer, fault)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _forward(self, body: bytes, cut: bool = False) -> tuple[http.client.HTTPResponse, bytes] | None:
        """Hand the request on; with `cut` only half of its body, and then the connection breaks."""
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(body[: len(body) // 2] if cut else body)
            if cut:
                _make_reset(upstream.sock)
                return None
            response = upstream.getresponse()
            return response, response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            upstream.close()

    def _answer(self, response: http.client.HTTPResponse, body: bytes, fault: Fault | None) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        middle = len(body) // 2
        if fault == "damaged answer":
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        broken = fault in ("reset within the answer", "truncated answer")
        self.wfile.write(body[:middle] if broken else body)
        if fault == "reset within the answer":
            self._reset()
        elif fault == "truncated answer":
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        text = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>Try again</Message>'
            f"<Resource>{urlsplit(self.path).path}</Resource><RequestId>0</RequestId></Error>"
        )
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _reset(self) -> None:
        _make_reset(self.connection)
        self.close_connection = True


def _make_reset(connection: socket.socket) -> None:
    """Closing it will send RST, not FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
