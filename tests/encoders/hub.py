"""A small hub on loopback that speaks the part of the protocol a download needs, and can misbehave."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from urllib.parse import urlsplit

LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """`commits[repository][commit]`: file → bytes. `branches[repository]`: what main is now.

    `cut`: file → bytes after which the connection breaks, and no more are given; `stalled`: it stays open
    instead, and the event is set. `spoilt`: file → bytes that are served in place of the right ones.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    spoilt: dict[str, bytes] = field(default_factory=dict)
    stalled: Event | None = None
    gated: set[str] = field(default_factory=set)
    got: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)
    endpoint: str = ""

    def push(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        self.commits.setdefault(repository, {})[commit] = files
        self.branches[repository] = commit


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        with self.hub.lock:
            self.hub.tokens.add(self.headers.get("Authorization", ""))
        path = urlsplit(self.path).path.strip("/")
        if path.startswith("api/models/"):
            repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
        else:
            repository, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
        if repository in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if repository not in self.hub.commits:
            return self._refuse(404, "RepoNotFound")
        commit = self.hub.branches[repository] if revision == "main" else revision
        files = self.hub.commits[repository].get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if path.startswith("api/"):
            return self._send(json.dumps(_info(repository, commit, files)).encode(), {}, body=body)
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        return self._file(name, files[name], commit, body=body)

    def _file(self, name: str, data: bytes, commit: str, *, body: bool) -> None:
        headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        data = self.hub.spoilt.get(name, data)
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        if body:
            with self.hub.lock:
                self.hub.got[name] += 1
                self.hub.ranges += [asked] if asked else []
        self._send(data, headers, body=body, status=status, start=start, limit=self.hub.cut.get(name))

    def _send(
        self,
        data: bytes,
        headers: dict[str, str],
        *,
        body: bool,
        status: int = 200,
        start: int = 0,
        limit: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[start:] if limit is None else data[start:limit])
            self.close_connection = limit is not None
            if limit is not None and self.hub.stalled is not None:
                self.wfile.flush()
                self.hub.stalled.set()
                self.rfile.read(1)  # until the client is gone

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"", {"X-Error-Code": code}, body=True, status=status)


def _etag(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info(repository: str, commit: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings: list[dict[str, object]] = []
    for name, data in files.items():
        sibling: dict[str, object] = {"rfilename": name, "size": len(data)}
        if name.endswith(LARGE):
            sibling["lfs"] = {"sha256": _etag(name, data), "size": len(data), "pointerSize": 134}
            sibling["blobId"] = "0" * 40
        else:
            sibling["blobId"] = _etag(name, data)
        siblings.append(sibling)
    return {
        "id": repository,
        "modelId": repository,
        "sha": commit,
        "private": False,
        "tags": ["license:mit"],
        "cardData": {"license": "mit"},
        "siblings": siblings,
    }
