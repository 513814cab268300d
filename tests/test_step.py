"""The shared command line: clear errors, and no step outlives its run."""

import os
import subprocess
import sys
import time

import pytest


def run_step(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=60,
        check=False,
    )


STEP = """
from ct3dlib.config import TokensSpec
from ct3dlib.errors import StoreError
from workflow_scripts.step import Arguments, run

def main(args):
    raise StoreError("x.parquet: gone; run its rule again")

run(main, Arguments().spec(TokensSpec))
"""


def test_a_known_error_is_one_line_and_exit_1():
    done = run_step(STEP, "--spec", '{"tokenizer": "lfq"}')
    assert done.returncode == 1
    assert done.stderr.strip().endswith("StoreError: x.parquet: gone; run its rule again")
    assert "Traceback" not in done.stderr


def test_a_wrong_spec_is_named():
    done = run_step(STEP, "--spec", '{"tokenizr": "lfq"}')
    assert done.returncode == 2
    assert "tokenizr" in done.stderr


SLEEPER = """
import time
from workflow_scripts.step import Arguments, run
run(lambda args: time.sleep(60), Arguments())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux' pidfd")
def test_a_step_ends_when_the_run_that_started_it_is_killed():
    parent = subprocess.Popen(["sleep", "60"])
    environment = {**os.environ, "CT3D_PARENT": f":{parent.pid}"}
    step = subprocess.Popen([sys.executable, "-c", SLEEPER], env=environment)
    time.sleep(1.5)
    assert step.poll() is None
    parent.kill()
    parent.wait()
    assert step.wait(timeout=10) != 0
