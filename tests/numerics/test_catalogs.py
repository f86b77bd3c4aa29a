import pytest

from fewbits._base.errors import UsageError
from fewbits.numerics import formats, schemes
from fewbits.numerics.format import Int


@pytest.mark.parametrize("catalog", [formats.FORMATS, schemes.SCHEMES], ids=["formats", "schemes"])
def test_an_unknown_name_is_absent_and_asking_for_it_names_the_nearest(catalog):
    assert "no-such-thing" not in catalog
    known = sorted(catalog)[0]
    with pytest.raises(UsageError, match=f"did you mean '{known}'") as caught:
        catalog[known + "_"]
    assert caught.value.slug == "unknown-name"


def test_a_third_party_can_add_a_format_but_not_replace_one(monkeypatch, tmp_path):
    (tmp_path / "fewbits_stranger.py").write_text(
        "from fewbits.numerics.format import Int\n"
        "FORMATS = (Int(bits=9, signed=True), type('Fake', (), {'name': 'int8'})())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = type("Point", (), {"name": "stranger", "value": "fewbits_stranger"})()
    monkeypatch.setattr(formats, "entry_points", lambda *, group: [point])
    catalog = formats.FormatCatalog()
    assert catalog["int9"] == Int(bits=9, signed=True)
    assert catalog["int8"] == Int(bits=8, signed=True)
