"""The section `regions` of a config, or of a preset alone."""

import pytest

from ct3dlib.config import load_regions
from ct3dlib.errors import ConfigError


def test_a_preset_alone_is_enough():
    labelmap = {"folder": "${MAPS:maps}", "strip": 1}
    preset = {
        "raw_root": "${RAW}",
        "regions": {"providers": ["labelmap"], "labelmap": labelmap},
        "report": {"title": "${NOT_LOOKED_AT}"},
    }
    folder, spec = load_regions(preset, {"RAW": "/scans"})
    assert folder == "/scans"
    assert spec.labelmap is not None
    assert (spec.labelmap.folder, spec.labelmap.strip) == ("maps", 1)


def test_raw_root_is_here_where_nothing_says_so():
    assert load_regions({"regions": {}}, {})[0] == "."


def test_an_unknown_key_is_named():
    with pytest.raises(ConfigError, match="backend"):
        load_regions({"regions": {"backend": "classical"}}, {})


def test_a_missing_variable_names_its_key():
    regions = {"labelmap": {"folder": "${MAPS}"}}
    with pytest.raises(ConfigError, match=r"regions\.labelmap\.folder: .* MAPS is not set"):
        load_regions({"regions": regions}, {})


def test_a_mapping_without_the_section_is_refused():
    with pytest.raises(ConfigError, match="there is no section regions; give a config"):
        load_regions({"raw_root": "x"}, {})
