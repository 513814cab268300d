"""The code of docs/how-to-add.md runs as it stands there."""

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from ct3dlib.cohort.catalog import Row, arrange
from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.split import Assignments
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.training.items import CropItems

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks(repository: Path) -> list[str]:
    return BLOCK.findall((repository / "docs/how-to-add.md").read_text())


def _block(blocks: list[str], word: str) -> str:
    """Return the one block that holds a word."""
    (found,) = (block for block in blocks if word in block)
    return found


def _code_lines(block: str) -> int:
    return sum(bool(line.strip()) for line in block.splitlines())


def _run(block: str, **names: object) -> dict[str, Any]:
    """Execute a block and return its names."""
    namespace = {"__name__": "how_to_add", **names}
    exec(compile(block, "docs/how-to-add.md", "exec"), namespace)
    return namespace


@pytest.fixture
def nodules(tmp_path: Path) -> Path:
    """Return a raw root of the page's data set: three patients, one of them with two scans."""
    root = tmp_path / "raw"
    for name in ("benign/p1_1", "benign/p1_2", "malignant/p2_1", "malignant/p3_1"):
        hu = np.full((20, 18, 12), -1000, dtype=np.int16)
        hu[4:-4, 4:-4] = 40
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(hu, np.diag([-2.0, -2, 3, 1])), path)
    return root


@pytest.fixture
def read_dataset(blocks: list[str]) -> Callable[[str, Path], Iterator[Row]]:
    """Return the page's reader behind the page's `case`."""
    reader = _block(blocks, "def read_nodules")
    assert _code_lines(reader) <= 30
    case = textwrap.indent(_block(blocks, 'case "nodules"'), " " * 8)
    dispatch = f"def read_dataset(name, root):\n    match name:\n{case}"
    return _run(dispatch, **_run(reader))["read_dataset"]


def test_a_new_data_set_goes_from_files_to_crops(nodules, read_dataset, tmp_path):
    rows = list(read_dataset("nodules", nodules))
    assert [(row.volume, row.patient, row.label, row.shape) for row in rows] == [
        ("benign_p1_1", "p1", "benign", (12, 18, 20)),
        ("benign_p1_2", "p1", "benign", (12, 18, 20)),
        ("malignant_p2_1", "p2", "malignant", (12, 18, 20)),
        ("malignant_p3_1", "p3", "malignant", (12, 18, 20)),
    ]
    spec = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})
    catalog = arrange(rows, spec, given={}, previous=Assignments())
    assert catalog.groupby("patient")["split"].nunique().tolist() == [1, 1, 1]
    train = catalog[catalog["split"] == "train"]
    status = tmp_path / "volumes/0000.parquet"
    recipe = RecipeSpec(spacing=(3.0, 4.0, 4.0))
    store_shard(train, nodules, recipe=recipe, code="1", status=status)
    volumes = stored_volumes([status])
    assert [volume.volume for volume in volumes] == train["volume"].tolist()
    items = CropItems(volumes, crop=(8, 6, 7), window=recipe.window, range=recipe.range)
    crop = items.item(0, np.random.default_rng(0))["volume"]
    assert crop.shape == (1, 8, 6, 7)
    # Air and body: half a block of 40 HU.
    assert crop.min() == -1
    assert crop.max().item() == pytest.approx(0.04)


def test_a_torch_data_set_goes_into_the_training_loop(blocks, tmp_path):
    training = _run(_block(blocks, "class DenoisingObjective"))
    spec = training["DenoisingSpec"](steps=3, batch_size=2, micro_batch_size=2, device="cpu")
    torch.manual_seed(0)
    objective = training["DenoisingObjective"](spec)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        torch.save(torch.full((4, 6, 5), i / 3), folder / f"{i}.pt")
    own = _block(blocks, "class Scans")
    assert _code_lines(own) <= 15
    names = {"objective": objective, "spec": spec, "folder": folder, "run_dir": tmp_path / "run"}
    _run(own, **names)
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 1
    after = objective.state_dict()
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_no_block_is_left_out(blocks):
    assert len(blocks) == 5


def test_the_tokenizer_of_the_page_keeps_the_interface(blocks: list[str]) -> None:
    names = _run(_block(blocks, "class Strided(VolumeAutoencoder)"))
    model = names["Strided"](names["StridedSpec"]()).eval()
    volumes = torch.rand(1, 1, 8, 12, 16)
    result = model(volumes)
    assert result.volumes.shape == volumes.shape
    assert result.quantized.indices.shape == (1, 4, 3, 4)
    torch.testing.assert_close(model.decode_indices(result.quantized.indices), result.volumes)
    assert model.padding((7, 9, 16)) == (1, 3, 0)
