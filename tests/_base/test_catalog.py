import subprocess
import sys
from pathlib import Path

import pytest

from fewbits._base import catalog as module
from fewbits._base.catalog import Catalog, nearest
from fewbits._base.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with two entries, a private module and a base."""
    package = tmp_path / "shelf_of_tests"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "base": "raise RuntimeError",
        "_private": "raise RuntimeError",
        "old_oak": "ENTRY = 'oak'",
        "elm": "ENTRY = 'elm'",
        "broken": "import a_module_that_is_not_there",
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "shelf_of_tests"
    for name in [n for n in sys.modules if n.startswith("shelf_of_tests")]:
        del sys.modules[name]


def test_entries_are_found_by_file_name_and_private_modules_are_none(folder):
    shelf: Catalog[str] = Catalog(folder, "ENTRY", kind="tree")
    assert list(shelf) == ["broken", "elm", "old-oak"]
    assert len(shelf) == 3
    assert shelf["old-oak"] == "oak"
    assert "old-oak" in shelf
    assert "old_oak" not in shelf
    assert "base" not in shelf
    assert 7 not in shelf


def test_listing_imports_nothing_and_a_broken_entry_says_so_when_used(folder):
    shelf: Catalog[str] = Catalog(folder, "ENTRY", kind="tree")
    list(shelf)
    assert [n for n in sys.modules if n.startswith(folder)] == [folder]
    with pytest.raises(ModuleNotFoundError):
        shelf["broken"]


def test_an_unknown_name_is_refused_with_the_nearest(folder):
    shelf: Catalog[str] = Catalog(folder, "ENTRY", kind="tree")
    with pytest.raises(UsageError, match="unknown tree 'old-oka'; did you mean 'old-oak'") as caught:
        shelf["old-oka"]
    assert caught.value.slug == "unknown-name"


def test_a_third_party_adds_names_and_replaces_none(folder, tmp_path, monkeypatch):
    (tmp_path / "forest_of_strangers.py").write_text("ENTRY = 'theirs'")
    points = [type("P", (), {"name": n, "value": "forest_of_strangers"})() for n in ("yew", "elm")]
    monkeypatch.setattr(module, "entry_points", lambda *, group: points if group == folder else [])
    shelf: Catalog[str] = Catalog(folder, "ENTRY", kind="tree")
    assert shelf["yew"] == "theirs"
    assert shelf["elm"] == "elm"
    assert list(shelf) == ["broken", "elm", "old-oak", "yew"]


def test_nearest_lists_all_where_nothing_is_near():
    assert nearest("zzz", ["a", "b"]) == "one of: a, b"


@pytest.mark.parametrize("package", ["algorithms.ranges", "algorithms.rounders", "targets", "export", "runtimes"])
def test_listing_a_real_catalog_imports_no_entry(package):
    code = (
        "import sys, importlib, pkgutil\n"
        "from fewbits._base.catalog import Catalog\n"
        f"package = importlib.import_module('fewbits.{package}')\n"
        "found = [v for v in vars(package).values() if isinstance(v, Catalog)]\n"
        "assert found, 'no catalog'\n"
        "names = [n.replace('-', '_') for c in found for n in c]\n"
        "assert names\n"
        "assert not any(f'{package.__name__}.{n}' in sys.modules for n in names), names\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
