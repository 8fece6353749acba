"""A fake Hugging Face Hub on a real socket."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

GATED_TOKEN = "hf_allowed"  # noqa: S105 - made up


@dataclass
class Repository:
    """A repository of the Hub.

    Attributes:
        commits: The files of each commit.
        branches: The commit of each branch or tag.
        gated: Whether downloads need `GATED_TOKEN`.
        private: Whether the repository is hidden without `GATED_TOKEN`.
    """

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    private: bool = False

    @classmethod
    def of_folder(cls, folder: Path, *, extra: Mapping[str, bytes] | None = None) -> "Repository":
        """Return a repository with the files of a folder as the only commit of `main`."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        repository = cls(commits={}, branches={})
        repository.commit(files | dict(extra or {}))
        return repository

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Add a commit, and move `main` to it."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(files.items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        self.commits[digest.hexdigest()] = dict(files)
        self.branches["main"] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class Hub:
    """The state of the server, which a test can change at any time.

    Attributes:
        repositories: By ORG/NAME.
        requests: The requests so far, as "METHOD PATH".
        ranges: The `Range` of each file that was requested in part.
        break_once: Files whose next download breaks off in the middle.
        failing: Files whose download is refused.
        status: The status of every response; 0 for normal responses.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: dict[str, str] = field(default_factory=dict)
    break_once: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    status: int = 0
    url: str = ""

    def downloads(self) -> list[str]:
        """The downloaded files, with repetitions."""
        return sorted(
            one.partition("/resolve/")[2].partition("/")[2]
            for one in self.requests
            if one.startswith("GET ") and "/resolve/" in one
        )


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub without repositories."""
    hub = Hub()
    server = _Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Log nothing; the requests are recorded."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append(f"{self.command} {path}")
        if self.server.hub.status:
            self._send(self.server.hub.status, b"{}")
        elif path == "/api/agent-harnesses":
            # The library requests this once a day for its user agent.
            self._send(200, b'{"standardEnvVars": [], "harnesses": {}}')
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        else:
            self._give(path.removeprefix("/"))

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.hub.repositories.get(name)
        if repository is None or (repository.private and not self._allowed()):
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def _describe(self, path: str) -> None:
        parts = path.split("/")
        what, revision = (parts[2], "/".join(parts[3:])) if parts[2:] else ("", "main")
        found = self._find("/".join(parts[:2]), revision)
        if found is None:
            return
        commit, files = found
        if what == "tree":
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
                }
                for name, content in files.items()
            ]
            self._send(200, json.dumps(entries).encode())
        else:
            self._send(200, json.dumps({"id": "/".join(parts[:2]), "sha": commit}).encode())

    def _give(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        if self.server.hub.repositories[name].gated and not self._allowed():
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif file not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif file in self.server.hub.failing:
            self._send(403, b"{}")
        else:
            etag = hashlib.sha256(files[file]).hexdigest()
            self._send_file(file, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _send_file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        asked = self.headers.get("Range", "")
        if asked:
            self.server.hub.ranges[name] = asked
            content = content[int(asked.removeprefix("bytes=").partition("-")[0]) :]
        broken = self.command == "GET" and name in self.server.hub.break_once
        self.server.hub.break_once -= {name} if broken else set()
        self._send(206 if asked else 200, content, headers, cut_off=broken)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {GATED_TOKEN}"

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        cut_off: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if cut_off else content)
        self.close_connection = self.close_connection or cut_off
