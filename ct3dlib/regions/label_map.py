"""The canonical region ids: 0 is "other", 1 to 20 are anatomy; the data is label_map.yaml."""

import difflib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

NUM_REGIONS = 20
NUM_TOTALSEGMENTATOR = 117


@dataclass(frozen=True)
class Region:
    """One row of the label map.

    Args:
        name: Lower case with underscores.
        totalsegmentator: Class ids of TotalSegmentator v2 (task `total`) that it joins.
        color: RGB of overlays, 0-255.
    """

    name: str
    totalsegmentator: tuple[int, ...]
    color: tuple[int, int, int]


def parse_label_map(document: dict[str, Any]) -> tuple[str, tuple[Region, ...]]:
    """Return the version and the regions of a label map, index = id.

    Raises:
        ValueError: An id is missing, doubled or beyond 20; a name or a TotalSegmentator id
            stands twice; a TotalSegmentator id is unknown.
    """
    rows = document["regions"]
    ids = [row["id"] for row in rows]
    if ids != list(range(NUM_REGIONS + 1)):
        raise ValueError(f"label map: ids must be 0 to {NUM_REGIONS} in order, found {ids}")
    regions = tuple(
        Region(row["name"], tuple(row["totalsegmentator"]), tuple(row["color"])) for row in rows
    )
    names = [region.name for region in regions]
    _refuse_duplicates("name", names)
    sources = [source for region in regions for source in region.totalsegmentator]
    _refuse_duplicates("TotalSegmentator id", sources)
    unknown = [i for i in sources if not 1 <= i <= NUM_TOTALSEGMENTATOR]
    if unknown:
        raise ValueError(
            f"label map: TotalSegmentator v2 has ids 1 to {NUM_TOTALSEGMENTATOR}, found {unknown}"
        )
    return str(document["version"]), regions


def _refuse_duplicates(what: str, values: list[Any]) -> None:
    """Raise where a value stands twice."""
    doubled = sorted({value for value in values if values.count(value) > 1})
    if doubled:
        raise ValueError(f"label map: {what} stands twice: {doubled}")


LABEL_MAP_VERSION, LABEL_MAP = parse_label_map(
    yaml.safe_load(resources.files("ct3dlib.regions").joinpath("label_map.yaml").read_text("utf-8"))
)
REGIONS: tuple[str, ...] = tuple(region.name for region in LABEL_MAP)
COLORS: tuple[tuple[int, int, int], ...] = tuple(region.color for region in LABEL_MAP)
LUNGS: tuple[int, ...] = (1, 2, 3, 4, 5)


def region_id(name: str) -> int:
    """Return the id of a region.

    Raises:
        ValueError: There is no region of this name.
    """
    if name not in REGIONS:
        near = difflib.get_close_matches(name, REGIONS, n=3)
        raise ValueError(f"no region is named {name!r}; near: {', '.join(near) or 'none'}")
    return REGIONS.index(name)


def region_of_totalsegmentator(source: int) -> int:
    """Return the region that a class of TotalSegmentator v2 (task `total`) belongs to; 0: none.

    Raises:
        ValueError: TotalSegmentator v2 has no such class.
    """
    if not 0 <= source <= NUM_TOTALSEGMENTATOR:
        raise ValueError(f"TotalSegmentator v2 has ids 0 to {NUM_TOTALSEGMENTATOR}, not {source}")
    matches = (i for i, region in enumerate(LABEL_MAP) if source in region.totalsegmentator)
    return next(matches, 0)
