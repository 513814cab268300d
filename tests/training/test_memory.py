"""Memory that is freed is there for the next step: the system maps no page again."""

import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from ct3dlib.training.memory import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**22) for _ in range(3)]
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
as_it_is = step()
keep_freed_memory()
for _ in range(3):
    step()
print(as_it_is, step())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another malloc")
def test_pages_are_mapped_once():
    ran = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, timeout=120
    )
    as_it_is, kept = map(int, ran.stdout.split())
    assert as_it_is > 3 * 2**22 * 4 / 4096 * 0.9
    assert kept < 100
