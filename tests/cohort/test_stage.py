"""One writer a shard, the others wait; what is there is kept as long as it is whole."""

import json
import logging
import shutil
from threading import Event, Thread

import numpy as np
import pytest
from filelock import FileLock

from ct3dlib.cohort.stage import fill_shard
from ct3dlib.cohort.store import read_status, write_node
from ct3dlib.cohort.verify import verify_table

COLUMNS = dict.fromkeys(("volume", "status", "reason", "message", "node", "sha256"), "str")


def reject(row, shard):
    """Return the row of a volume that cannot be used."""
    del shard
    return {**dict.fromkeys(COLUMNS, ""), "volume": row["volume"], "status": "rejected"}


def test_a_second_writer_says_what_it_waits_for_and_goes_on(tmp_path, caplog):
    status = tmp_path / "0000.parquet"
    waiting = Event()

    class Told(logging.Handler):
        def emit(self, record):
            if "waiting for the process that writes it" in record.getMessage():
                waiting.set()

    def fill():
        fill_shard([{"volume": "a"}], reject, status=status, kind="volumes", columns=COLUMNS)

    handler = Told()
    logger = logging.getLogger("ct3dlib.cohort.stage")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO), FileLock(tmp_path / "0000.zarr.lock"):
            writer = Thread(target=fill)
            writer.start()
            assert waiting.wait(20)
            assert not status.exists()
        writer.join(20)
    finally:
        logger.removeHandler(handler)
    assert read_status(status)["volume"].tolist() == ["a"]


def store_noise(row, shard):
    """Store noise under the volume's name and return its row."""
    node = f"{row['volume']}@1"
    values = np.random.default_rng(ord(row["volume"])).integers(0, 99, (40, 70, 9), dtype=np.int16)

    def write():
        write_node(shard.store, node, values, attributes={"ct3d": {"affine": [[1.5]]}})

    shard.ensure(node, write)
    ct3d = json.loads((shard.store / node / "zarr.json").read_text())["attributes"]["ct3d"]
    shape = list(values.shape)
    return {**row, "status": "stored", "node": node, "sha256": ct3d["sha256"], "shape": shape}


def flip(node):
    file = node / "0/c.0.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def edit(node):
    file = node / "zarr.json"
    file.write_text(file.read_text().replace("1.5", "1.75"))


DAMAGE = {
    "flipped-bit": flip,
    "attributes": edit,
    "chunk-file": lambda node: (node / "0/c.0.0.0").unlink(),
    "empty-chunk-file": lambda node: (node / "0/c.0.0.0").write_bytes(b""),
    "array-metadata": lambda node: (node / "0/zarr.json").unlink(),
    "cut-array-metadata": lambda node: (node / "0/zarr.json").write_text("{"),
    "group-metadata": lambda node: (node / "zarr.json").unlink(),
    "node": shutil.rmtree,
    "store": lambda node: shutil.rmtree(node.parent),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_mended_when_the_table_is_deleted_and_the_rule_runs(tmp_path, caplog, damage):
    status = tmp_path / "0000.parquet"

    def fill():
        rows = [{**dict.fromkeys(COLUMNS, ""), "volume": name} for name in "ab"]
        columns = {**COLUMNS, "shape": "object"}
        fill_shard(rows, store_noise, status=status, kind="volumes", columns=columns)

    fill()
    table, whole = status.read_bytes(), content(tmp_path / "0000.zarr")
    kept = (tmp_path / "0000.zarr/b@1/0/c.0.0.0").stat().st_mtime_ns
    damage(tmp_path / "0000.zarr/a@1")
    findings = list(verify_table(status))
    assert findings
    status.unlink()
    fill()
    assert (status.read_bytes(), content(tmp_path / "0000.zarr")) == (table, whole)
    assert list(verify_table(status)) == []
    if (lost := [r.message for r in caplog.records if r.levelno == logging.WARNING]) != []:
        assert [": made anew, it was damaged: " in message for message in lost] == [True]
    if damage is not DAMAGE["store"]:
        assert (tmp_path / "0000.zarr/b@1/0/c.0.0.0").stat().st_mtime_ns == kept


def content(folder):
    """Return the bytes of all files of a folder by their path."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
