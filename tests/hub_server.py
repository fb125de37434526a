"""A Hugging Face Hub on 127.0.0.1: as much of its HTTP interface as downloads use, and the faults that they meet.

Files over SMALL bytes are served as the Hub serves large ones: /resolve redirects to another host, where the signed
URL is the key, and a token has no business.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SMALL = 50_000
SIGNATURE = "Signature=c2lnbmVk"


@dataclass
class Repository:
    """revisions: the directory of each branch or tag; its commit is made from the name."""

    revisions: dict[str, Path]
    private: bool = False
    gated: bool = False

    def find(self, revision: str) -> tuple[str, Path] | None:
        for name, directory in self.revisions.items():
            if revision in (name, commit(name)):
                return commit(name), directory
        return None


@dataclass
class Hub:
    """requests: (method, path, whether the token came along) in order. truncate: by file name, the bytes after which
    the connection breaks, once for each in the list. whole: ranges are not heeded. stall: a file at whose first byte
    the server waits for `resume`.
    """

    token: str = "hf_theRightToken"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    truncate: dict[str, list[int]] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    whole: bool = False
    stall: str | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    status: int | None = None

    def __enter__(self) -> Hub:
        handler = partial(_Handler, self)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.endpoint, self.storage = (
            f"http://{host}:{server.server_port}"
            for host, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.resume.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def downloads(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and not path.startswith("/api/")
        ]


def commit(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *unused: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers["Authorization"]
        if path.startswith("/api/") and not path.startswith("/api/models/"):  # what the library asks for itself
            return self._refuse(404, "", "Not found")
        self.hub.requests.append((self.command, path, authorization is not None))
        if path.startswith("/storage/"):
            assert SIGNATURE in self.path
            return self._send_file(Path(path.removeprefix("/storage")))
        if self.hub.status is not None:
            return self._refuse(self.hub.status, "Broken", "The Hub is on fire")
        if authorization not in (None, f"Bearer {self.hub.token}"):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None or (repository.private and authorization is None):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        kind, revision, rest = parts[2] if parts[2:] else "revision", (parts[3:] or ["main"])[0], "/".join(parts[4:])
        found = repository.find(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        sha, directory = found
        if api and kind == "revision":
            return self._send_json({"id": "/".join(parts[:2]), "sha": sha, "siblings": []})
        if api and kind == "tree":
            files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
            return self._send_json([_entry(directory, file) for file in files])
        if repository.gated and authorization is None:
            return self._refuse(401, "GatedRepo", "Access to this model is restricted")
        file = directory / rest
        assert kind == "resolve", path
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        common = {"X-Repo-Commit": sha}
        if file.stat().st_size <= SMALL:
            return self._send_file(file, common)
        linked = {"X-Linked-Etag": f'"{_sha256(file)}"', "X-Linked-Size": str(file.stat().st_size)}
        return self._send(302, b"", common | linked | {"Location": f"{self.hub.storage}/storage{file}?{SIGNATURE}"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, file: Path, headers: dict[str, str] | None = None) -> None:
        data = file.read_bytes()
        first, status = 0, 200
        headers = {"ETag": f'"{_sha256(file)}"', "Content-Disposition": f'filename="{file.name}";'} | (headers or {})
        if "Range" in self.headers and not self.hub.whole:
            self.hub.ranges.append(self.headers["Range"])
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            size, data = len(data), data[: int(end) + 1 if end else None]
            first, status = int(start), 206
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{size}"
        breaks = self.hub.truncate.get(file.name)
        if self.command == "GET" and breaks:
            headers["Content-Length"] = str(len(data) - first)
            self._send(status, data[first : first + breaks.pop(0)], headers)
            self.close_connection = True
            return
        if self.command == "GET" and file.name == self.hub.stall:
            headers["Content-Length"] = str(len(data) - first)
            self._send(status, data[first : first + 1], headers)
            self.hub.stalled.set()
            self.hub.resume.wait(30)
            self.close_connection = True
            return
        self._send(status, data[first:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _entry(directory: Path, file: Path) -> dict[str, object]:
    size = file.stat().st_size
    entry: dict[str, object] = {"type": "file", "path": file.relative_to(directory).as_posix(), "size": size}
    entry["oid"] = hashlib.sha1(file.read_bytes()).hexdigest()
    if size > SMALL:
        entry["lfs"] = {"oid": _sha256(file), "size": size, "pointerSize": 130}
    return entry


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
