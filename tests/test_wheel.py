"""The wheel holds everything it needs and runs from a clean environment."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_wheel_builds_and_runs_in_a_clean_environment(repository, tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(repository)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("ct3dlib-*.whl")
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=True)
    python = clean / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    # The dependencies come from this environment; the package itself only from the wheel.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    code = (
        "import ct3dlib, workflow_scripts.step; from ct3dlib.regions.label_map import REGIONS; "
        "from ct3dlib.report.page import render; render('t', []); print(ct3dlib.__file__)"
    )

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(python, "-c", code).startswith(str(clean))
    assert run(clean / "bin" / "ct3d", "version").strip() == "0.1.0"
