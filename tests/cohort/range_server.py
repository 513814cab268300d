"""A web server that serves a folder, byte ranges too, and counts what it sends."""

import http.server
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answer GET with and without a range, and HEAD."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, sent: Counter[str], broken: set[str], **options) -> None:
        self.sent, self.broken = sent, broken
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        """Send a file or a part of it."""
        name = self.path.rsplit("/", 1)[-1]
        path = Path(self.translate_path(self.path))
        content = path.read_bytes() if path.is_file() else None
        if content is None or name in self.broken:
            self.send_response(404 if content is None else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = 0, len(content) - 1
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            start, end = wanted.groups()
            first = int(start) if start else max(0, len(content) - int(end))
            last = min(last, int(end)) if start and end else last
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if body:
            self.sent[name] += last + 1 - first
            self.wfile.write(content[first : last + 1])

    def log_message(self, *args) -> None:
        """Say nothing."""


class Served:
    """A folder on the web.

    Args:
        url: Of the folder.
        sent: Bytes sent of each file name.
        broken: File names that answer 500.
    """

    def __init__(self, url: str, sent: Counter[str], broken: set[str]) -> None:
        self.url, self.sent, self.broken = url, sent, broken


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve a folder until the block ends."""
    sent: Counter[str] = Counter()
    broken: set[str] = set()
    handler = partial(Handler, sent=sent, broken=broken, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}", sent, broken)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
