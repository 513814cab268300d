import hashlib
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct3dlib.cohort.names import safe_name


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train_1_a_1", "train_1_a_1"),
        ("sub dir/a (1)", "sub_dir_a_1_"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "volume"),
        ("-rf", "rf"),
        ("", "volume"),
    ],
)
def test_safe_name_has_no_path_parts(text: str, wanted: str) -> None:
    assert safe_name(text) == wanted


def test_letters_beyond_ascii_are_kept_apart_by_a_hash() -> None:
    wanted = f"M_ller_{hashlib.sha256('Müller'.encode()).hexdigest()[:8]}"
    assert safe_name("Müller") == wanted
    assert safe_name(unicodedata.normalize("NFD", "Müller")) == wanted
    assert re.fullmatch(r"volume_[0-9a-f]{8}", safe_name("患者甲"))
    names = [safe_name(text) for text in ("Müller", "Möller", "M_ller", "患者甲", "患者乙", "")]
    assert len(set(names)) == 6


def test_long_names_are_kept_apart() -> None:
    first, second = safe_name("a" * 300), safe_name("a" * 301)
    assert first != second
    assert len(first) == 160


@given(st.text())
def test_every_text_becomes_a_safe_name_that_stays(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,159}", name)
    assert safe_name(name) == name
