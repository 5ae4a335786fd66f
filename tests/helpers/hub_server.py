"""A Hugging Face Hub on this machine: as much of its interface as sending and reading models needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """Repositories as mappings of paths to contents; `commits` counts what was sent to each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", path)
        if found is None or found[1] not in self.server.repos:
            return self._json({"error": f"unknown: {path}"}, 404)
        return {"preupload": self._upload_modes, "paths-info": self._paths_info, "commit": self._commit}[found[2]](
            found[1], body
        )

    def do_GET(self) -> None:
        self._read(with_body=True)

    def do_HEAD(self) -> None:
        self._read(with_body=False)

    def _read(self, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            data = self.server.repos.get(found[1], {}).get(found[3])
            if data is None:
                code = "RepoNotFound" if found[1] not in self.server.repos else "EntryNotFound"
                return self._json({"error": code}, 404, {"X-Error-Code": code})
            headers = {
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                "X-Repo-Commit": "0" * 40,
                "Accept-Ranges": "bytes",
            }
            return self._send(data, headers, with_body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repo = found[1]
            if repo not in self.server.repos:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if found[2] == "tree":
                return self._json([self._entry(repo, name) for name in self.server.repos[repo]])
            files = [{"rfilename": name} for name in self.server.repos[repo]]
            return self._json({"id": repo, "modelId": repo, "sha": "0" * 40, "siblings": files, "private": False})
        return self._json({"error": f"unknown: {path}"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        if not repo.startswith("owner/"):
            return self._json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        if repo in self.server.repos:
            return self._json({"error": "You already created this model repo"}, 409)
        self.server.repos[repo] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(repo)
        return self._json({"url": f"{self.server.address}/{repo}", "name": repo, "id": repo})

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.server.commits[repo] = self.server.commits.get(repo, 0) + 1
        address = f"{self.server.address}/{repo}/commit/{'0' * 40}"
        self._json({"success": True, "commitUrl": address, "commitOid": "0" * 40, "hookOutput": ""})

    def _upload_modes(self, _: str, body: bytes) -> None:
        mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
        self._json({"files": [{"path": file["path"]} | mode for file in json.loads(body)["files"]]})

    def _paths_info(self, repo: str, body: bytes) -> None:
        asked = json.loads(body)["paths"]
        names = [asked] if isinstance(asked, str) else asked
        self._json([self._entry(repo, name) for name in names if name in self.server.repos[repo]])

    def _entry(self, repo: str, name: str) -> dict[str, Any]:
        data = self.server.repos[repo][name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self._send(data, {"Content-Type": "application/json", **(headers or {})}, self.command != "HEAD", status)

    def _send(self, data: bytes, headers: dict[str, str], with_body: bool, status: int = 200) -> None:
        wanted = self.headers.get("Range")
        if wanted and status == 200 and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)
