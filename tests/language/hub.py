"""A Hugging Face Hub on loopback: one repository from a folder; or a server that fails in some way."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server, path = self.server, unquote(urlparse(self.path).path)
        server.asked.append((self.command, path))
        api = f"/api/models/{server.repo}"
        resolve = f"/{server.repo}/resolve/{COMMIT}/"
        if server.failure == "silent":
            server.stop.wait(30)
            self._send(200, b"")
        elif server.failure == "garbage":
            self._send(200, b"<html>sign in to the network</html>", {"Content-Type": "text/html"})
        elif isinstance(server.failure, tuple):
            status, code = server.failure
            self._send(status, b"{}", {"X-Error-Code": code} if code else {})
        elif path in (api, f"{api}/revision/main"):
            files = [{"rfilename": name} for name in server.files]
            self._json({"id": server.repo, "modelId": server.repo, "sha": COMMIT, "siblings": files})
        elif path == f"{api}/tree/{COMMIT}":
            self._json([{"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                        for name, content in server.files.items()])  # fmt: skip
        elif path.startswith(resolve) and path.removeprefix(resolve) in server.files:
            content = server.files[path.removeprefix(resolve)]
            self._send(200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """The client that waited for a silent server has gone."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub(repo: str = "", folder: Path | None = None, failure: object = None):
    """The server; `server.url` is its address, `server.asked` the requests so far."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.repo, server.failure, server.asked, server.stop = repo, failure, [], threading.Event()
    server.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder else {}
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
