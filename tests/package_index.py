"""A package index on loopback that serves one wheel, and breaks off or lies where a test wants it to."""

import base64
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest

from kdlib.wheels import WheelFile

METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\nRequires-Dist: never-to-be-fetched\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(package: str, version: str, files: Mapping[str, bytes]) -> bytes:
    """A wheel of these files that depends on a package which no index has."""
    place = f"{package.replace('-', '_')}-{version}.dist-info"
    files = {
        **files, f"{place}/METADATA": METADATA.format(package, version).encode(),
        f"{place}/WHEEL": WHEEL.encode(),
    }  # fmt: skip
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in {**files, f"{place}/RECORD": f"{record}{place}/RECORD,,\n".encode()}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Index:
    """Holds `content` as the wheel of `file`; `asked` are the paths so far."""

    file: WheelFile
    content: bytes
    drop_after: int | None = None  # bytes of the wheel before it hangs up
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def name(self) -> str:
        return f"{self.file.package.replace('-', '_')}-{self.file.version}-py3-none-any.whl"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        index = self.server.index
        index.asked.append(self.path)
        if self.path == f"/simple/{index.file.package}/":
            kind, content = "text/html", f'<a href="/{index.name}">{index.name}</a>'.encode()
        elif self.path == f"/{index.name}":
            kind, content = "application/zip", index.content
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: index.drop_after] if kind == "application/zip" else content)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serve it, and give it its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.index, index.url = index, f"http://127.0.0.1:{http.server_address[1]}/simple"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield index
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def configure_pip(monkeypatch: pytest.MonkeyPatch, url: str, find_links: Path | None = None) -> None:
    """Nothing but this index for pip, no second try, and no cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": os.devnull, "INDEX_URL": url, "NO_CACHE_DIR": "1", "RETRIES": "0",
                "RESUME_RETRIES": "0", "DISABLE_PIP_VERSION_CHECK": "1"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    if find_links:
        monkeypatch.setenv("PIP_FIND_LINKS", str(find_links))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
