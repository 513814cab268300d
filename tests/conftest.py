"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Tests are small and run beside each other: threads that wait for each other's cores make them
# ten times slower. Torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept new golden files")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with whole runs, so that at the end there are small tests to share."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real CT scans, or skip."""
    folder = Path(os.environ.get("CT3D_REAL_DATA", REPOSITORY.parent / "shared/data/ct"))
    if not folder.is_dir():
        pytest.skip(f"no real CT at {folder}; set CT3D_REAL_DATA")
    return folder.resolve()
