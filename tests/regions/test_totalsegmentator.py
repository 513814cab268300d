"""TotalSegmentator as a command: a script of a few lines takes its place."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.config import TotalSegmentatorSpec
from ct3dlib.errors import ConfigError, VolumeError
from ct3dlib.regions.provider import Request
from ct3dlib.regions.totalsegmentator import TotalSegmentatorProvider
from ct3dlib.regions.working_grid import to_working_grid
from ct3dlib.scan.volume import Volume
from tests.regions.label_maps import OBLIQUE

# Notes how it was called, then marks what is brighter than 0 HU as the class that it is told to.
PREDICT = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
if "--version" in arguments:
    print("a line of a library")
    print("2.7.0")
    raise SystemExit
environment = {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "VIRTUAL", "KEPT"))}
Path(NOTES).write_text(json.dumps({"arguments": arguments, "environment": environment}))
import nibabel, numpy as np
at = {arguments[i]: arguments[i + 1] for i in (0, 2)}
scan = nibabel.load(at["-i"])
labels = (np.asarray(scan.dataobj) > 0).astype(np.uint8) * CLASS
image = nibabel.Nifti1Image(labels, AFFINE_OF(scan))
if NAMES:
    table = "".join(f'<Label Key="{k}"><![CDATA[{v}]]></Label>' for k, v in NAMES.items())
    text = f"<CaretExtension><LabelTable>{table}</LabelTable></CaretExtension>"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
nibabel.save(image, at["-o"])
"""
VERSION = 'import sys\nif "--version" in sys.argv:\n    raise SystemExit\n'


def request():
    hu = np.full((5, 6, 7), -1000, np.int16)
    hu[1:3, 2:5, 1:4] = 50
    volume = Volume(hu, OBLIQUE)
    return Request(volume, "vol", (), None, to_working_grid(volume, 3.0))


def provider(folder, text, **spec):
    script = folder / "segment.py"
    script.write_text(text)
    command = (sys.executable, str(script))
    return TotalSegmentatorProvider(TotalSegmentatorSpec(command=command, **spec))


def predicting(folder, *, number=1, names=None, affine="lambda scan: scan.affine", **spec):
    head = f"NOTES, CLASS, NAMES = {str(folder / 'notes')!r}, {number}, {names!r}\n"
    return provider(folder, f"{head}AFFINE_OF = {affine}\n{PREDICT}", **spec)


@pytest.mark.parametrize(
    ("number", "names", "region", "known"),
    [(51, None, 8, 17), (2, {1: "spleen", 2: "aorta"}, 10, 2)],
    ids=["numbers", "names"],
)
def test_what_it_finds_comes_back_on_the_volumes_grid(tmp_path, number, names, region, known):
    asked = request()
    found = predicting(tmp_path, number=number, names=names)(asked)
    np.testing.assert_array_equal(found.labels, np.where(asked.volume.array > 0, region, 0))
    assert found.labels.dtype == np.uint8
    assert len(found.known) == known
    assert found.sure == found.known


@pytest.mark.parametrize(
    ("spec", "tail"),
    [
        ({}, ["--ml", "--device", "gpu"]),
        ({"fast": True, "device": "cpu"}, ["--ml", "--device", "cpu", "--fast"]),
    ],
    ids=["default", "fast-cpu"],
)
def test_it_is_called_as_its_manual_says(tmp_path, spec, tail):
    predicting(tmp_path, **spec)(request())
    arguments = json.loads((tmp_path / "notes").read_text())["arguments"]
    assert (arguments[0], arguments[2], arguments[4:]) == ("-i", "-o", tail)
    scan, labels = Path(arguments[1]), Path(arguments[3])
    assert (scan.name, labels.name) == ("scan.nii.gz", "labels.nii.gz")
    assert scan.parent == labels.parent
    assert not scan.parent.exists()  # nothing of a patient stays behind


def test_our_environment_does_not_reach_it(tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("KEPT", "yes")
    predicting(tmp_path)(request())
    found = json.loads((tmp_path / "notes").read_text())["environment"]
    assert found["KEPT"] == "yes"
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP"} & found.keys()


def test_its_version_is_its_last_word_and_part_of_the_key(tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = predicting(tmp_path)
    assert (found.name, found.version) == ("totalsegmentator", "2.7.0")
    assert found.identity("vol", ("a",)) == "2.7.0"
    assert "TotalSegmentator: 2.7.0" in caplog.text


def test_a_command_that_says_nothing_has_an_unknown_version(tmp_path):
    assert provider(tmp_path, "").version == "unknown version"


def test_a_command_that_is_not_there_is_refused_at_once(tmp_path):
    command = ("conda", "run", "ts")
    with pytest.raises(ConfigError) as caught:
        TotalSegmentatorProvider(TotalSegmentatorSpec(command=(str(tmp_path / "none"), *command)))
    message = str(caught.value)
    assert message.startswith(
        f"regions.totalsegmentator.command: {tmp_path}/none conda run ts cannot be run "
        f"(No such file or directory); install TotalSegmentator in an environment of its own"
    )
    assert message.endswith("or take it out of regions.providers")


def test_a_command_that_cannot_start_is_refused_at_once(tmp_path):
    text = "raise ImportError('no module named nnunetv2')"
    with pytest.raises(ConfigError, match=r"--version ended with 1: .*no module named nnunetv2"):
        provider(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("print('out of memory')\nraise SystemExit(3)", r"ended with 3: out of memory$"),
        ("for i in range(9):\n    print(i)", r"ended with 0: 6 \| 7 \| 8$"),
        ("raise SystemExit(0)", r"ended with 0: it printed nothing$"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "ended with -9: it printed"),
        ("sys.stdout.buffer.write(b'\\xff')\nraise SystemExit(1)", "ended with 1: \ufffd$"),
    ],
    ids=["fails", "writes-nothing", "says-nothing", "killed", "not-utf-8"],
)  # fmt: skip
def test_a_run_without_labels_is_a_failure_of_the_volume(tmp_path, text, match):
    with pytest.raises(VolumeError, match=match) as caught:
        provider(tmp_path, VERSION + text)(request())
    assert caught.value.reason == "PROVIDER_FAILED"
    assert str(caught.value).startswith("vol: TotalSegmentator ended with ")


@pytest.mark.parametrize(
    ("options", "reason", "message"),
    [
        ({"number": 200}, "BAD_LABELS", "vol: labels.nii.gz: [200] are none of its 117 classes"),
        (
            {"names": {1: "body"}},
            "UNKNOWN_CLASSES",
            "vol: labels.nii.gz: none of its classes (body)",
        ),
        (
            {"affine": "lambda scan: scan.affine @ np.diag([1, 1, 2, 1])"},
            "LABEL_MAP_ELSEWHERE",
            "vol: labels.nii.gz: its field of view ends up to ",
        ),
    ],
    ids=["values", "classes", "place"],
)
def test_labels_that_are_none_are_refused_without_a_name_of_the_day(
    tmp_path, options, reason, message
):
    with pytest.raises(VolumeError) as caught:
        predicting(tmp_path, **options)(request())
    assert caught.value.reason == reason
    assert str(caught.value).startswith(message)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(happened, seconds=20):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("leave", [KeyboardInterrupt, SystemExit])
def test_it_dies_with_us_and_so_does_what_it_started(tmp_path, monkeypatch, leave):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notes = tmp_path / "pids"
    text = (
        f"{VERSION}import os, subprocess, time\n"
        "worker = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(notes) + '.part'!r}, 'w').write(f'{{os.getpid()}} {{worker.pid}}')\n"
        f"os.rename({str(notes) + '.part'!r}, {str(notes)!r})\n"
        "time.sleep(60)\n"
    )
    found = provider(tmp_path, text)

    def left(*_):
        raise leave

    def ask_to_leave():
        if until(notes.exists):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, left)
    asking = threading.Thread(target=ask_to_leave)
    try:
        asking.start()
        with pytest.raises(leave):
            found(request())
    finally:
        asking.join()
        signal.signal(signal.SIGUSR1, before)
    theirs = [int(pid) for pid in notes.read_text().split()]
    assert until(lambda: not any(map(alive, theirs)))
    assert list(tmp_path.glob("ct3d-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to a child is Linux's")
def test_it_does_not_outlive_us_when_we_are_killed(tmp_path):
    notes = tmp_path / "pid"
    program = tmp_path / "program.py"
    program.write_text(
        f"{VERSION}import os, time\n"
        f"open({str(notes) + '.part'!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(notes) + '.part'!r}, {str(notes)!r})\n"
        "time.sleep(60)\n"
    )
    ours = (
        "from ct3dlib.config import TotalSegmentatorSpec\n"
        "from ct3dlib.regions.totalsegmentator import TotalSegmentatorProvider\n"
        f"spec = TotalSegmentatorSpec(command=({sys.executable!r}, {str(program)!r}))\n"
        "TotalSegmentatorProvider(spec)._run('-i')\n"
    )
    with subprocess.Popen([sys.executable, "-c", ours]) as process:
        assert until(notes.exists)
        process.kill()
    assert until(lambda: not alive(int(notes.read_text())))
