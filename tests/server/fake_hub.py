"""A Hugging Face hub with a few files, over real HTTP: what its client asks when it downloads a model."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class FakeHub:
    """Serves `files` (path below the repository -> content) of one repository; .safetensors and .gguf are large files.

    `revisions`: the files of branches and tags beside main.
    """

    def __init__(self, repo: str, files: dict[str, bytes], revisions: dict[str, dict[str, bytes]] | None = None) -> None:
        self.repo, self.files, self.revisions = repo, files, revisions or {}
        self.gets: list[str] = []
        self.num_requests = 0
        self.refusal: tuple[int, str] | None = None
        """Status and error code for whoever does not come with `token`."""
        self.token = "hf_good"
        self.authorizations: set[str | None] = set()
        """What requests for the repository said of who asks."""
        self.damage: set[str] = set()
        self.hold = threading.Event()
        """While clear, large files stop in the middle."""
        self.hold.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch, a tag or a commit."""
        if revision in ("", "main", COMMIT):
            return COMMIT, self.files
        named = {name: (commit_of(name), files) for name, files in self.revisions.items()}
        return named.get(revision) or next((each for each in named.values() if each[0] == revision), None)

    def info(self, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
        """The description of the repository."""
        siblings: list[dict[str, Any]] = []
        for name, content in files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _blob_id(content)}
            if name.endswith((".safetensors", ".gguf")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repo, "modelId": self.repo, "sha": commit, "siblings": siblings, "tags": []}

    def tree(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        """The files of a commit."""
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
            for name, content in files.items()
        ]


def commit_of(revision: str) -> str:
    """The commit of a branch or tag beside main."""
    return hashlib.sha1(revision.encode()).hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.num_requests += 1
            if hub.repo in path:
                hub.authorizations.add(self.headers.get("Authorization"))
            if hub.refusal is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._fail(*reversed(hub.refusal))
                return
            api = f"/api/models/{hub.repo}"
            if path.startswith(api):
                what, _, revision = path.removeprefix(api).removeprefix("/").partition("/")
                found = hub.find(revision)
                if found is None:
                    self._fail("RevisionNotFound")
                else:
                    answer = hub.tree(found[1]) if what == "tree" else hub.info(*found)
                    self._send(json.dumps(answer).encode(), {}, with_body)
                return
            prefix = f"/{hub.repo}/resolve/"
            revision, _, name = path.removeprefix(prefix).partition("/")
            found = hub.find(revision)
            if not path.startswith(prefix) or found is None or name not in found[1]:
                self._fail("RepoNotFound")
                return
            commit, files = found
            content = files[name]
            headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": commit}
            if with_body:
                hub.gets.append(name)
                if name in hub.damage:
                    content = bytes(len(content))
            self._send(content, headers, with_body)

        def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                half = len(content) // 2
                self.wfile.write(content[:half])
                self.wfile.flush()
                if len(content) > 10_000:
                    hub.hold.wait(30)
                self.wfile.write(content[half:])

        def _fail(self, code: str, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
