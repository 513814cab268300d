"""The canonical region ids: 0 is "other", 1 to 20 are anatomy; the data is label_map.yaml."""

import difflib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import yaml

PromptWindow = Literal["lung", "soft", "bone"]
NUM_REGIONS = 20


def _read(name: str) -> dict[str, Any]:
    """Return a data file of this package."""
    return yaml.safe_load(resources.files("ct3dlib.regions").joinpath(name).read_text("utf-8"))


TOTALSEGMENTATOR: tuple[str, ...] = tuple(_read("label_map.totalsegmentator.yaml")["total_v2"])
NUM_TOTALSEGMENTATOR = len(TOTALSEGMENTATOR)


@dataclass(frozen=True)
class Region:
    """One row of the label map.

    Args:
        name: Lower case with underscores.
        totalsegmentator: Class ids of TotalSegmentator v2 (task `total`) that it joins.
        also: Names of further classes that it joins.
        derived: Whether it is drawn around other regions and not looked for.
        prompt: Window in which a box prompts it; None: a box does not.
        color: RGB of overlays, 0-255.
    """

    name: str
    totalsegmentator: tuple[int, ...]
    also: tuple[str, ...]
    derived: bool
    prompt: PromptWindow | None
    color: tuple[int, int, int]


def parse_label_map(document: dict[str, Any]) -> tuple[str, tuple[Region, ...]]:
    """Return the version and the regions of a label map, index = id.

    Raises:
        ValueError: An id is missing, doubled or beyond 20; a name or a TotalSegmentator id
            stands twice; a TotalSegmentator id or a window is unknown.
    """
    rows = document["regions"]
    ids = [row["id"] for row in rows]
    if ids != list(range(NUM_REGIONS + 1)):
        raise ValueError(f"label map: ids must be 0 to {NUM_REGIONS} in order, found {ids}")
    regions = tuple(
        Region(
            name=row["name"],
            totalsegmentator=tuple(row["totalsegmentator"]),
            also=tuple(row.get("also", ())),
            derived=row.get("derived", False),
            prompt=row.get("prompt"),
            color=tuple(row["color"]),
        )
        for row in rows
    )
    _refuse_duplicates("name", [region.name for region in regions])
    sources = [source for region in regions for source in region.totalsegmentator]
    _refuse_duplicates("TotalSegmentator id", sources)
    _refuse_duplicates("class", [name for region in regions for name in region.also])
    unknown = [i for i in sources if not 1 <= i <= NUM_TOTALSEGMENTATOR]
    if unknown:
        raise ValueError(
            f"label map: TotalSegmentator v2 has ids 1 to {NUM_TOTALSEGMENTATOR}, found {unknown}"
        )
    windows = {region.prompt for region in regions} - {None, *get_args(PromptWindow)}
    if windows:
        raise ValueError(f"label map: no window is named {sorted(map(str, windows))}")
    return str(document["version"]), regions


def _refuse_duplicates(what: str, values: list[Any]) -> None:
    """Raise where a value stands twice."""
    doubled = sorted({value for value in values if values.count(value) > 1})
    if doubled:
        raise ValueError(f"label map: {what} stands twice: {doubled}")


LABEL_MAP_VERSION, LABEL_MAP = parse_label_map(_read("label_map.yaml"))
REGIONS: tuple[str, ...] = tuple(region.name for region in LABEL_MAP)
COLORS: tuple[tuple[int, int, int], ...] = tuple(region.color for region in LABEL_MAP)
LUNGS: tuple[int, ...] = (1, 2, 3, 4, 5)
DERIVED: frozenset[int] = frozenset(i for i, region in enumerate(LABEL_MAP) if region.derived)
FOUND: frozenset[int] = frozenset(range(1, NUM_REGIONS + 1)) - DERIVED


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


def region_of_class(name: str) -> int | None:
    """Return the region that a class belongs to, 0 where it is none; None for an unknown name.

    Known are the regions' own names, TotalSegmentator's of task `total`, and what a region lists
    under `also`.
    """
    if name in REGIONS:
        return REGIONS.index(name)
    if name in TOTALSEGMENTATOR:
        return region_of_totalsegmentator(TOTALSEGMENTATOR.index(name) + 1)
    return next((i for i, region in enumerate(LABEL_MAP) if name in region.also), None)
