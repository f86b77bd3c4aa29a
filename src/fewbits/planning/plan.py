"""The Plan: everything chosen, readable, editable, replayable. The waist between search and flow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from fewbits._base.catalog import nearest
from fewbits._base.errors import FewbitsError, UsageError
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.planning.site import Link, Role

SCHEMA_VERSION = 1
FLOAT = "float"
_PART_KEYS = (
    "schema_version", "target", "seed", "calibration_examples", "split", "hashes", "versions", "transforms", "sites",
    "links",
)  # fmt: skip
_SITE_KEYS = ("site", "role", "op", "node", "scheme", "stored", "dynamic", "range", "rounder", "reason")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens at one site.

    Args:
      site: Name of the tensor.
      role: What the tensor is for.
      op: Operator type of the node.
      node: Name of the node.
      scheme: How the tensor is stored; None keeps it float.
      range_rule: Range rule with its parameter, e.g. ``percentile:99.99``; None for minmax, and where float.
      rounder: How codes are chosen; None for activations and where float.
      reason: Why, in words.
      stored: Whether codes are only how the tensor is stored: it is dequantized before it is used.
      dynamic: Whether the other input of a weight's node is quantized as it comes, by its range in each run.
    """

    site: str
    role: Role
    op: str
    node: str
    scheme: Scheme | None
    range_rule: str | None
    rounder: str | None
    reason: str
    stored: bool = False
    dynamic: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the site stays float."""
        return self.scheme is None

    @property
    def is_static(self) -> bool:
        """Whether a node computes with these codes, and with parameters that are all fixed in the file."""
        return self.scheme is not None and not self.stored and not self.dynamic


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TransformStep:
    """One transform, as a recipe.

    Args:
      name: Name in the catalog of transforms, or of a graph pass.
      where: The nodes or tensors it is applied to; empty for the whole model.
    """

    name: str
    where: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered transforms, then a decision for every site, with all that is needed to apply it again.

    Args:
      target: Target with its instruction set, e.g. ``ort-cpu:vnni``.
      decisions: One for each site, in graph order.
      links: Sites that share parameters.
      transforms: What is done to the model before.
      seed: Seed of all randomness.
      calibration_examples: How many examples the ranges come from.
      split: Shares of the data by part, so that a replay calibrates on the same examples.
      hashes: SHA-256 of model and data.
      versions: Of fewbits and the libraries that the bytes depend on.
    """

    target: str
    decisions: tuple[Decision, ...]
    links: tuple[Link, ...] = ()
    transforms: tuple[TransformStep, ...] = ()
    seed: int = 0
    calibration_examples: int = 0
    split: Mapping[str, float] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """Decisions that do not keep float."""
        return tuple(d for d in self.decisions if not d.is_float)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the nodes whose inputs are quantized as they come."""
        return tuple(dict.fromkeys(d.node for d in self.decisions if d.dynamic))

    def by_site(self) -> dict[str, Decision]:
        """Returns the decisions by site name."""
        return {d.site: d for d in self.decisions}

    def ranged_as(self, other: Plan) -> Plan:
        """Returns the plan with the range rules of another one of the same model, or of one that is equal to it.

        Sites that the other one has not get the rule that most of its sites of that role have.
        """
        rules = {d.site: d.range_rule for d in other.quantized}
        usual = {
            role: Counter(d.range_rule for d in other.quantized if d.role is role).most_common(1)[0][0]
            for role in {d.role for d in other.quantized}
        }
        decisions = tuple(
            d
            if d.is_float or d.role not in (Role.ACTIVATION, Role.WEIGHT)
            else replace(d, range_rule=rules.get(d.site, usual.get(d.role, d.range_rule)))
            for d in self.decisions
        )
        return replace(self, decisions=decisions)

    def with_range_rule(self, role: Role, rule: str) -> Plan:
        """Returns the plan with another range rule at every quantized site of a role."""
        decisions = tuple(
            replace(d, range_rule=rule) if d.role is role and not d.is_float else d for d in self.decisions
        )
        return replace(self, decisions=decisions)

    def to_json(self) -> str:
        """Returns the plan as JSON text: one site a line, keys in a fixed order, the same bytes each time."""
        head: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "target": self.target,
            "seed": self.seed,
            "calibration_examples": self.calibration_examples,
            "split": dict(self.split),
            "hashes": dict(sorted(self.hashes.items())),
            "versions": dict(sorted(self.versions.items())),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
        lists: dict[str, list[dict[str, Any]]] = {
            "transforms": [asdict(step) for step in self.transforms],
            "sites": [_decision_to_dict(d) for d in self.decisions],
            "links": [_link_to_dict(link) for link in self.links],
        }
        for key, rows in lists.items():
            body = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in rows)
            lines.append(f'  "{key}": [\n{body}\n  ]' if rows else f'  "{key}": []')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _decision_to_dict(decision: Decision) -> dict[str, Any]:
    return {
        "site": decision.site,
        "role": decision.role.value,
        "op": decision.op,
        "node": decision.node,
        "scheme": FLOAT if decision.scheme is None else decision.scheme.name,
        **({"stored": True} if decision.stored else {}),
        **({"dynamic": True} if decision.dynamic else {}),
        "range": decision.range_rule,
        "rounder": decision.rounder,
        "reason": decision.reason,
    }


def _link_to_dict(link: Link) -> dict[str, Any]:
    row = asdict(link)
    if link.factor == 1.0:
        del row["factor"]
    return row


def plan_from_json(text: str, *, where: str = "the plan") -> Plan:
    """Returns the plan that ``Plan.to_json`` wrote, or that a person edited.

    Raises: UsageError(slug="plan-invalid") naming the first fault: the part or site, and the key.
    """
    try:
        return _plan_from_dict(json.loads(text))
    except RecursionError:
        fault = "it is nested too deeply to be a plan"
    except ValueError as error:
        fault = str(error)
    raise UsageError(
        f"cannot read {where}: {fault}; mend it, or write it anew with 'fewbits plan'", slug="plan-invalid"
    )


def _plan_from_dict(data: Any) -> Plan:
    """Returns the plan; a fault is a ValueError that names its place."""
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}")
    _refuse_unknown(data, _PART_KEYS, "it")
    sites = [_decision_from_dict(row, i) for i, row in enumerate(_rows(data, "sites"))]
    seen: set[str] = set()
    for decision in sites:
        if decision.site in seen:
            raise ValueError(f"site {decision.site!r} stands twice")
        seen.add(decision.site)
    return Plan(
        target=_word(data, "target", "it"),
        decisions=tuple(sites),
        links=tuple(_link_from_dict(row, i) for i, row in enumerate(_rows(data, "links", optional=True))),
        transforms=tuple(_step_from_dict(row, i) for i, row in enumerate(_rows(data, "transforms", optional=True))),
        seed=_count(data, "seed"),
        calibration_examples=_count(data, "calibration_examples"),
        split=_shares(data, "split"),
        hashes=_words(data, "hashes"),
        versions=_words(data, "versions"),
    )


def _refuse_unknown(row: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in row:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}; {nearest(key, sorted(known))}")


def _word(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise ValueError(f"{where} has no {key!r}")
    if not isinstance(row[key], str):
        raise ValueError(f"{where}: {key!r} is {row[key]!r}, expected a string")
    return str(row[key])


def _optional_word(row: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if row.get(key) is None else _word(row, key, where)


def _flag(row: Mapping[str, Any], key: str, where: str) -> bool:
    value = row.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} is {value!r}, expected true or false")
    return value


def _count(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key!r} is {value!r}, expected a whole number >= 0")
    return value


def _words(row: Mapping[str, Any], key: str) -> dict[str, str]:
    value = row.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise ValueError(f"{key!r} is not an object of strings")
    return dict(value)


def _shares(row: Mapping[str, Any], key: str) -> dict[str, float]:
    value = row.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} is not an object of shares")
    for part, share in value.items():
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ValueError(f"{key!r}: the share of {part!r} is {share!r}, expected a number from 0 to 1")
    return {part: float(share) for part, share in value.items()}


def _rows(row: Mapping[str, Any], key: str, *, optional: bool = False) -> list[dict[str, Any]]:
    if key not in row and not optional:
        raise ValueError(f"it has no {key!r}")
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{key!r} is not a list of objects")
    return value


def _link_from_dict(row: dict[str, Any], index: int) -> Link:
    where = f"links[{index}]"
    _refuse_unknown(row, ("root", "member", "node", "factor"), where)
    factor = row.get("factor", 1.0)
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise ValueError(f"{where}: 'factor' is {factor!r}, expected a positive number")
    return Link(
        root=_word(row, "root", where),
        member=_word(row, "member", where),
        node=_word(row, "node", where),
        factor=float(factor),
    )


def _step_from_dict(row: dict[str, Any], index: int) -> TransformStep:
    where = f"transforms[{index}]"
    _refuse_unknown(row, ("name", "where"), where)
    places = row.get("where", [])
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise ValueError(f"{where}: 'where' is not a list of strings")
    return TransformStep(name=_word(row, "name", where), where=tuple(places))


def _decision_from_dict(row: dict[str, Any], index: int) -> Decision:
    site = _word(row, "site", f"sites[{index}]")
    where = f"site {site!r}"
    _refuse_unknown(row, _SITE_KEYS, where)
    role = _word(row, "role", where)
    if role not in list(Role):
        raise ValueError(f"{where}: unknown role {role!r}; {nearest(role, [r.value for r in Role])}")
    written = _word(row, "scheme", where)
    try:
        scheme = None if written == FLOAT else parse_scheme(written)
    except FewbitsError as error:
        raise ValueError(f"{where}: {error.message}; 'float' keeps it float") from None
    if _flag(row, "stored", where) and _flag(row, "dynamic", where):
        raise ValueError(f"{where} is 'stored' and 'dynamic', which exclude each other; leave one out")
    return Decision(
        site=site,
        role=Role(role),
        op=_word(row, "op", where),
        node=_word(row, "node", where),
        scheme=scheme,
        range_rule=_optional_word(row, "range", where) if scheme else None,
        rounder=_optional_word(row, "rounder", where) if scheme else None,
        reason=_optional_word(row, "reason", where) or "",
        stored=_flag(row, "stored", where) and scheme is not None,
        dynamic=_flag(row, "dynamic", where) and scheme is not None,
    )
