"""Weights on this machine and on a hub: a server of this test imitates the hub's addresses."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ct3dlib.errors import CheckpointError
from ct3dlib.regions.weights import local_file

CONTENT = bytes(range(256)) * 500
FILES = {
    "good.pt": CONTENT,
    "sub/good.pt": CONTENT[::-1],
    "cut.pt": CONTENT + b"1",
}
# Fetches each address in a process of its own: the hub reads its variables when it is imported.
FETCH = """
import json, sys
import huggingface_hub.file_download
huggingface_hub.file_download.time.sleep = lambda seconds: None  # between its retries
from ct3dlib.errors import CheckpointError
from ct3dlib.regions.weights import local_file
answers = []
for address in sys.argv[1:]:
    try:
        answers.append(str(local_file(address)))
    except CheckpointError as error:
        answers.append(f"CheckpointError: {error}")
print(json.dumps(answers))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers OWNER/REPOSITORY/resolve/main/FILE as the hub does."""

    asked: list[str]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        self.asked.append(f"{self.command} {self.path}")
        repository, _, name = self.path.partition("/resolve/main/")
        content = FILES.get(name) if repository == "/lab/weights" else None
        if content is None:
            code = "EntryNotFound" if repository == "/lab/weights" else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if body:
            again = self.asked.count(f"GET {self.path}") > 1
            whole = name != "cut.pt"
            self.wfile.write(content if whole else b"" if again else content[:1000])

    def log_message(self, *args):
        """Say nothing."""


ADDRESSES = {
    "file": "hf://lab/weights/good.pt",
    "again": "hf://lab/weights/good.pt",
    "folder": "hf://lab/weights/sub/good.pt",
    "no-file": "hf://lab/weights/none.pt",
    "no-repository": "hf://lab/none/good.pt",
    "cut": "hf://lab/weights/cut.pt",
    "odd-name": "hf://lab/we..ights/good.pt",
}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Return what each address gave, what the hub was asked, and its cache."""
    home = tmp_path_factory.mktemp("home")
    asked: list[str] = []
    handler = type("Noted", (Hub,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *ADDRESSES.values()],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(ADDRESSES, answers, strict=True)), asked, home


def test_a_file_of_a_hub_is_fetched_once_into_its_cache(fetched):
    answers, asked, home = fetched
    path = Path(answers["file"])
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(home)
    assert answers["again"] == answers["file"]
    assert asked.count("GET /lab/weights/resolve/main/good.pt") == 1


def test_a_file_may_lie_in_a_folder_of_its_repository(fetched):
    assert Path(fetched[0]["folder"]).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no-file", "EntryNotFoundError"),
        ("no-repository", "RepositoryNotFoundError"),
        ("cut", "RemoteProtocolError"),
        ("odd-name", "HFValidationError"),
    ],
)
def test_what_cannot_be_fetched_is_named_with_the_way_out(fetched, name, error):
    answer = fetched[0][name]
    assert answer.startswith(f"CheckpointError: {ADDRESSES[name]}: cannot be fetched (")
    assert error in answer
    assert answer.endswith("; fetch the file by hand and give its path")


def test_a_broken_transfer_leaves_no_file_behind(fetched):
    names = {path.name for path in fetched[2].rglob("*.pt")}
    assert names == {"good.pt"}


@pytest.mark.parametrize("address", ["hf://lab/weights", "hf://lab/weights/", "hf://lab", "hf://"])
def test_an_address_without_a_file_is_refused(address):
    with pytest.raises(CheckpointError) as caught:
        local_file(address)
    assert str(caught.value) == f"{address}: no file; wanted hf://OWNER/REPOSITORY/FILE"


def test_without_the_extra_it_says_which_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        local_file("hf://lab/weights/good.pt")
    assert str(caught.value) == (
        "hf://lab/weights/good.pt: fetching needs huggingface_hub; pip install 'ct3dlib[hub]', or "
        "fetch the file by hand and give its path"
    )


def test_a_path_is_taken_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_file("weights/a.pt") == Path("weights/a.pt")
    assert local_file("~/a.pt") == Path("/home/someone/a.pt")
    assert local_file("hf:/a.pt") == Path("hf:/a.pt")
