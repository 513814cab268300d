"""Stores are read from paths and URLs alike, and only what is asked for travels."""

import pickle
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import tensorstore
import torch
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

from ct3dlib.cli import app
from ct3dlib.cohort.arrays import CHUNKS
from ct3dlib.cohort.location import Url, location
from ct3dlib.cohort.store import (
    StoredVolume,
    create_store,
    read_status,
    stored_volumes,
    write_node,
    write_table,
)
from ct3dlib.cohort.verify import verify_table
from ct3dlib.errors import StoreError
from tests.cohort.range_server import serve

SHAPE = (96, 192, 160)  # 3 x 3 x 3 chunks, the last of each row cut
INDEX_BYTES = 27 * 16 + 4  # offset and length of each chunk, a checksum
CHUNK_BYTES = 2 * CHUNKS[0] * CHUNKS[1] * CHUNKS[2]  # noise does not shrink below its entropy
BOX = ((33, 70, 5), (60, 120, 60))  # inside one chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a shard of one volume of noise."""
    folder = tmp_path_factory.mktemp("train")
    array = np.random.default_rng(0).integers(-1024, 3071, SHAPE, dtype=np.int16)
    create_store(folder / "0000.zarr", "volumes")
    attributes = {"ct3d": {"affine": np.eye(4).tolist(), "record": {}}}
    sha256 = write_node(folder / "0000.zarr", "a@1", array, attributes=attributes)
    row = {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@1"}
    frame = pd.DataFrame([{**row, "sha256": sha256, "shape": list(SHAPE)}])
    write_table(frame, folder / "0000.parquet")
    return folder


@pytest.fixture(scope="module")
def web(folder):
    with serve(folder) as served:
        yield served


@pytest.fixture
def memory(folder) -> str:
    """Return the URL of a copy in memory."""
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/copy", recursive=True)
    yield "memory://copy"
    system.rm("/copy", recursive=True)


def local(folder: Path) -> StoredVolume:
    (volume,) = stored_volumes([folder / "0000.parquet"])
    return volume


def test_what_a_text_points_to():
    assert location("data/a.parquet") == Path("data/a.parquet")
    assert location("file:///data/a%20b.parquet") == Path("/data/a b.parquet")
    assert location("memory://bucket/a.parquet") == Url("memory://bucket/a.parquet")
    assert location("http://host/a") == Url("http://host/a")


def test_parts_of_a_url_are_those_of_a_path():
    url = Url("https://host/data/0000.parquet")
    assert (url.name, url.suffix, str(url)) == ("0000.parquet", ".parquet", url.text)
    assert url.with_suffix(".zarr") / "a@1" / "0" == Url("https://host/data/0000.zarr/a@1/0")
    assert Url("https://host/data/") / "a" == Url("https://host/data/a")


def test_what_cannot_be_opened_is_named():
    with pytest.raises(StoreError, match=r"ftq://a: cannot read ftq:// .*copy the store to a disk"):
        location("ftq://a")
    with pytest.raises(StoreError, match=r"http://a/b\?k=1: a store has no query"):
        location("http://a/b?k=1")


def test_a_store_in_memory_reads_as_the_one_on_disk(folder, memory):
    (volume,) = stored_volumes([location(f"{memory}/0000.parquet")])
    there = local(folder)
    assert volume.sha256 == there.sha256
    assert volume.identity == there.identity
    assert np.array_equal(volume.read(), there.read())
    assert np.array_equal(volume.read(*BOX), there.read(*BOX))
    assert list(verify_table(location(f"{memory}/0000.parquet"))) == []


def test_a_crop_over_http_moves_the_index_and_its_chunk_only(folder, web):
    (volume,) = stored_volumes([location(f"{web.url}/0000.parquet")])
    web.sent.clear()
    assert np.array_equal(volume.read(*BOX), local(folder).read(*BOX))
    size = (folder / "0000.zarr/a@1/0/c.0.0.0").stat().st_size
    assert size > 15 * CHUNK_BYTES
    assert 0.7 * CHUNK_BYTES < web.sent["c.0.0.0"] <= INDEX_BYTES + CHUNK_BYTES + 100


def test_a_crop_on_disk_reads_the_index_and_its_chunk_only(folder):
    volume = local(folder)
    name = "/tensorstore/kvstore/file/bytes_read"

    def bytes_read() -> int:
        (metric,) = tensorstore.experimental_collect_matching_metrics(
            name, include_zero_metrics=True
        )
        return metric["values"][0]["value"]

    before = bytes_read()
    volume.read(*BOX)
    metadata = (folder / "0000.zarr/a@1/0/zarr.json").stat().st_size
    crop = bytes_read() - before
    assert 0.7 * CHUNK_BYTES < crop <= metadata + INDEX_BYTES + CHUNK_BYTES + 100
    before = bytes_read()
    volume.read()
    assert bytes_read() - before > 15 * CHUNK_BYTES


class Crops(Dataset[torch.Tensor]):
    """The same crop, read in whatever process asks."""

    def __init__(self, volume: StoredVolume) -> None:
        self.volume = volume

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        del index
        return torch.from_numpy(self.volume.read(*BOX))


@pytest.mark.slow
def test_loader_processes_read_over_http(folder, web):
    (volume,) = stored_volumes([location(f"{web.url}/0000.parquet")])
    volume.read(*BOX)  # an open handle must not travel
    loader = DataLoader(Crops(volume), num_workers=2, multiprocessing_context="forkserver")
    wanted = local(folder).read(*BOX)
    assert [np.array_equal(batch[0].numpy(), wanted) for batch in loader] == [True] * 4


@pytest.mark.parametrize(
    ("command", "wanted"),
    [("verify", "1 tables, 0 problems"), ("describe", "1 volumes\n  stored: 1")],
)
def test_commands_take_urls(web, command, wanted):
    result = CliRunner().invoke(app, [command, f"{web.url}/0000.parquet"])
    assert result.exit_code == 0, result.output
    assert wanted in result.output


def test_a_reader_of_a_url_can_be_pickled(web):
    (volume,) = stored_volumes([location(f"{web.url}/0000.parquet")])
    before = volume.read(*BOX)
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(*BOX), before)


def test_what_a_server_does_not_give_is_named(web):
    with pytest.raises(StoreError, match=r"/none\.parquet: not a status table"):
        read_status(location(f"{web.url}/none.parquet"))
    (volume,) = stored_volumes([location(f"{web.url}/0000.parquet")])
    web.broken.add("0000.parquet")
    web.broken.add("c.0.0.0")
    try:
        with pytest.raises(StoreError, match=r"/0000\.parquet: not a status table .*500"):
            read_status(location(f"{web.url}/0000.parquet"))
        with pytest.raises(StoreError, match=r"0000\.zarr/a@1: damaged or out of reach, .*500"):
            volume.read(*BOX)
    finally:
        web.broken.clear()
