"""A hash that sees code and nothing but code."""

import textwrap

import pytest

from ct3dlib import fingerprint as module


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "ct3dlib"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text(
        "from ct3dlib import b\n\ndef f(x):\n    '''Say.'''\n    return b.g(x)\n"
    )
    (root / "b.py").write_text("import math\n\ndef g(x):\n    return x + 1\n")
    (root / "config.py").write_text("X = 1\n")
    monkeypatch.setattr(module, "_PACKAGES", {"ct3dlib": root})

    def hash_of(*names):
        module._parse.cache_clear()
        module._file_of.cache_clear()
        return module.fingerprint(*names)

    yield root, hash_of
    module._parse.cache_clear()
    module._file_of.cache_clear()


def test_comments_docstrings_and_layout_do_not_count(package):
    root, hash_of = package
    before = hash_of("ct3dlib.a")
    (root / "a.py").write_text(
        textwrap.dedent('''
        """A docstring."""
        # a comment
        from ct3dlib import b


        def f(
            x,
        ):
            """Say it otherwise."""
            return b.g(x)
        ''')
    )
    assert hash_of("ct3dlib.a") == before


def test_a_change_in_an_imported_module_counts(package):
    root, hash_of = package
    before = hash_of("ct3dlib.a")
    (root / "b.py").write_text("import math\n\ndef g(x):\n    return x + 2\n")
    assert hash_of("ct3dlib.a") != before


def test_config_is_left_out_and_unknown_modules_are_refused(package):
    root, hash_of = package
    (root / "a.py").write_text("from ct3dlib import config\n")
    before = hash_of("ct3dlib.a")
    (root / "config.py").write_text("X = 2\n")
    assert hash_of("ct3dlib.a") == before
    with pytest.raises(ValueError, match=r"ct3dlib\.zz is not a module"):
        hash_of("ct3dlib.zz")


def test_a_data_file_of_a_modules_name_counts(package):
    root, hash_of = package
    (root / "b.yaml").write_text("x: 1\n")
    before = hash_of("ct3dlib.a")
    (root / "b.yaml").write_text("x: 2\n")
    assert hash_of("ct3dlib.a") != before


def test_the_volumes_stage_depends_on_what_it_calls():
    whole = module.fingerprint("ct3dlib.cohort.shard")
    assert whole != module.fingerprint("ct3dlib.cohort.store")
    assert len(whole) == 16
