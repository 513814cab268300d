"""What importing the package brings with it."""

import subprocess
import sys

ALL_MODULES = """
import importlib, pkgutil, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise ImportError(name)

sys.meta_path.insert(0, Hidden())
import ct3dlib
for module in pkgutil.walk_packages(ct3dlib.__path__, "ct3dlib."):
    importlib.import_module(module.name)
sys.stdout.write(f"{len(sys.modules)} {'torchvision' in sys.modules}")
"""


def test_every_module_is_imported_without_torchvision(repository):
    # Weights that it publishes are read as files; only their names come from there.
    command = [sys.executable, "-c", ALL_MODULES]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number, there = done.stdout.split()
    assert int(number) > 500
    assert there == "False"
