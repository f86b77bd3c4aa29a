import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits._base.errors import UsageError
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.planning.plan import Decision, Plan, TransformStep, plan_from_json
from fewbits.planning.site import Link, Role

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=15)
NAMES = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)
SCHEMES = st.builds(
    Scheme,
    format=st.sampled_from([FORMATS[name] for name in FORMATS]),
    granularity=st.one_of(
        st.just(PerTensor()), st.builds(PerChannel, st.integers(-4, 4)), st.builds(PerGroup, st.just(1), st.just(32))
    ),
    symmetric=st.booleans(),
)


@st.composite
def decisions(draw, name):
    scheme = draw(st.none() | SCHEMES)
    rules = st.sampled_from([None, "minmax", "mse", "percentile:99.99"])
    return Decision(
        site=name,
        role=draw(st.sampled_from(Role)),
        op=draw(TEXT),
        node=draw(TEXT),
        scheme=scheme,
        range_rule=None if scheme is None else draw(rules),
        rounder=None if scheme is None else draw(st.sampled_from([None, "nearest"])),
        reason=draw(TEXT),
    )


@st.composite
def plans(draw):
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    return Plan(
        target=draw(TEXT),
        decisions=tuple(draw(decisions(name)) for name in names),
        links=tuple(draw(st.lists(st.builds(Link, root=TEXT, member=TEXT, node=TEXT), max_size=3))),
        transforms=tuple(
            draw(
                st.lists(st.builds(TransformStep, name=NAMES, where=st.lists(TEXT, max_size=3).map(tuple)), max_size=3)
            )
        ),
        seed=draw(st.integers(0, 2**63)),
        calibration_examples=draw(st.integers(0, 10**6)),
        split=draw(st.dictionaries(TEXT, st.floats(0, 1), max_size=3)),
        hashes=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        versions=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
    )


@settings(max_examples=200, deadline=None)
@given(plans())
def test_a_plan_reads_back_as_itself_and_writes_the_same_bytes(plan):
    text = plan.to_json()
    again = plan_from_json(text)
    assert again == plan
    assert again.to_json() == text
    json.loads(text)
    text.encode()


@given(st.dictionaries(TEXT, TEXT, min_size=2, max_size=6))
def test_the_order_in_which_hashes_were_put_in_does_not_show(hashes):
    backwards = dict(reversed(hashes.items()))
    assert Plan(target="t", decisions=(), hashes=hashes).to_json() == (
        Plan(target="t", decisions=(), hashes=backwards).to_json()
    )


def test_one_site_stands_on_one_line_so_that_a_diff_reads_well():
    text = sample().to_json()
    assert [line for line in text.splitlines() if '"fc.weight"' in line and '"site"' in line] != []
    assert sum('"site"' in line for line in text.splitlines()) == 2


def sample() -> Plan:
    def decision(site: str, role: Role, scheme: str | None, rule: str | None) -> Decision:
        return Decision(
            site=site, role=role, op="Gemm", node="fc", reason="", range_rule=rule, rounder=None,
            scheme=None if scheme is None else parse_scheme(scheme),
        )  # fmt: skip

    return Plan(
        target="ort-cpu:vnni",
        decisions=(
            decision("fc.weight", Role.WEIGHT, "int8 per-channel(0) symmetric", "minmax"),
            decision("x", Role.ACTIVATION, "uint8 per-tensor asymmetric", "mse"),
        ),
        links=(Link(root="x", member="y", node="Reshape_1"),),
        transforms=(TransformStep(name="fold_batchnorm", where=("bn",)),),
    )


def edited(**changes: object) -> str:
    """Returns the sample as text with the first site's keys changed; a value of ... drops the key."""
    data = json.loads(sample().to_json())
    for key, value in changes.items():
        if value is ...:
            del data["sites"][0][key]
        else:
            data["sites"][0][key] = value
    return json.dumps(data)


SITE_FAULTS = [
    ({"scheme": "int9x per-tensor symmetric"}, "int9x"),
    ({"scheme": "int8"}, "int8"),
    ({"scheme": "int8 per-channel(one) symmetric"}, "per-channel"),
    ({"scheme": "int8 per-group(1, 0) symmetric"}, "group"),
    ({"scheme": 8}, "scheme"),
    ({"scheme": ["float"]}, "scheme"),
    ({"scheme": ...}, "scheme"),
    ({"role": "wieght"}, "wieght"),
    ({"role": ...}, "role"),
    ({"role": None}, "role"),
    ({"range": 99.9}, "range"),
    ({"rounder": 1}, "rounder"),
    ({"op": ...}, "op"),
    ({"node": None}, "node"),
    ({"reason": 5}, "reason"),
    ({"rage": "mse"}, "rage"),
]


@pytest.mark.parametrize(("changes", "named"), SITE_FAULTS, ids=[str(c) for c, _ in SITE_FAULTS])
def test_a_fault_in_a_site_is_named_with_the_site(changes, named):
    with pytest.raises(UsageError) as caught:
        plan_from_json(edited(**changes), where="plan.json")
    assert caught.value.slug == "plan-invalid"
    assert "plan.json" in str(caught.value)
    assert "'fc.weight'" in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def with_part(key: str, value: object) -> str:
    data = json.loads(sample().to_json())
    if value is ...:
        del data[key]
    else:
        data[key] = value
    return json.dumps(data)


PART_FAULTS = [
    ("schema_version", 2, "schema_version"),
    ("schema_version", ..., "schema_version"),
    ("target", ..., "target"),
    ("target", 3, "target"),
    ("seed", "seven", "seed"),
    ("seed", 1.5, "seed"),
    ("seed", True, "seed"),
    ("seed", -1, "seed"),
    ("calibration_examples", None, "calibration_examples"),
    ("sites", ..., "sites"),
    ("sites", {}, "sites"),
    ("sites", ["fc.weight"], "sites"),
    ("sites", [{"role": "weight"}], "site"),
    ("links", [{"root": "x"}], "links"),
    ("links", [{"root": "x", "member": "y", "node": "n", "more": 1}], "links"),
    ("links", "x", "links"),
    ("links", [{"root": "x", "member": 1, "node": "n"}], "member"),
    ("transforms", [{"name": "fold_batchnorm", "where": "bn"}], "where"),
    ("transforms", [{"where": []}], "transforms"),
    ("split", [], "split"),
    ("split", {"verdict": "half"}, "verdict"),
    ("split", {"verdict": 1.5}, "verdict"),
    ("split", {"verdict": float("nan")}, "verdict"),
    ("hashes", [], "hashes"),
    ("versions", {"numpy": 2}, "versions"),
    ("sties", [], "sties"),
]


@pytest.mark.parametrize(("key", "value", "named"), PART_FAULTS, ids=[f"{k}={v}" for k, v, _ in PART_FAULTS])
def test_a_fault_in_a_part_is_named(key, value, named):
    with pytest.raises(UsageError) as caught:
        plan_from_json(with_part(key, value))
    assert caught.value.slug == "plan-invalid"
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"plan"', "[" * 100_000, '{"schema_version": 1}', "\x00"])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(UsageError) as caught:
        plan_from_json(text)
    assert caught.value.slug == "plan-invalid"
    assert len(str(caught.value)) < 400


def test_a_site_that_is_written_twice_is_refused():
    data = json.loads(sample().to_json())
    data["sites"].append(data["sites"][0])
    with pytest.raises(UsageError, match=r"'fc\.weight' stands twice"):
        plan_from_json(json.dumps(data))


def test_an_edit_to_float_drops_range_and_rounder():
    plan = plan_from_json(edited(scheme="float"))
    decision = plan.by_site()["fc.weight"]
    assert decision.is_float
    assert decision.range_rule is None
    assert [d.site for d in plan.quantized] == ["x"]


def test_another_range_rule_reaches_only_quantized_sites_of_the_role():
    plan = plan_from_json(edited(scheme="float")).with_range_rule(Role.WEIGHT, "mse")
    assert plan.by_site()["fc.weight"].range_rule is None
    plan = sample().with_range_rule(Role.ACTIVATION, "percentile:99.9")
    assert [d.range_rule for d in plan.decisions] == ["minmax", "percentile:99.9"]
