"""The Plan: everything chosen, readable, editable, replayable. The waist between search and flow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from fewbits._base.errors import ModelError, UsageError
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.planning.site import Link, Role

SCHEMA_VERSION = 1
FLOAT = "float"


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
      range_rule: Range rule with its parameter, e.g. ``percentile:99.99``; None where float.
      rounder: How codes are chosen; None for activations and where float.
      reason: Why, in words.
    """

    site: str
    role: Role
    op: str
    node: str
    scheme: Scheme | None
    range_rule: str | None
    rounder: str | None
    reason: str

    @property
    def is_float(self) -> bool:
        """Whether the site stays float."""
        return self.scheme is None


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

    def by_site(self) -> dict[str, Decision]:
        """Returns the decisions by site name."""
        return {d.site: d for d in self.decisions}

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
            "links": [asdict(link) for link in self.links],
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
        "range": decision.range_rule,
        "rounder": decision.rounder,
        "reason": decision.reason,
    }


def plan_from_json(text: str, *, where: str = "the plan") -> Plan:
    """Returns the plan that ``Plan.to_json`` wrote, or that a person edited.

    Raises: UsageError(slug="plan-invalid") naming the first fault.
    """
    try:
        data = json.loads(text)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}")
        decisions = tuple(_decision_from_dict(row) for row in data["sites"])
        return Plan(
            target=str(data["target"]),
            decisions=decisions,
            links=tuple(Link(**row) for row in data.get("links", [])),
            transforms=tuple(
                TransformStep(name=row["name"], where=tuple(row["where"])) for row in data.get("transforms", [])
            ),
            seed=int(data["seed"]),
            calibration_examples=int(data["calibration_examples"]),
            split={str(k): float(v) for k, v in data.get("split", {}).items()},
            hashes=dict(data.get("hashes", {})),
            versions=dict(data.get("versions", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"cannot read {where}: {fault}; write it anew with 'fewbits plan'", slug="plan-invalid"
        ) from None


def _decision_from_dict(row: dict[str, Any]) -> Decision:
    known = {"site", "role", "op", "node", "scheme", "range", "rounder", "reason"}
    unknown = sorted(set(row) - known)
    if unknown:
        raise ValueError(f"site {row.get('site')!r} has an unknown key {unknown[0]!r}")
    scheme = None if row["scheme"] in (FLOAT, None) else parse_scheme(row["scheme"])
    return Decision(
        site=str(row["site"]),
        role=Role(row["role"]),
        op=str(row["op"]),
        node=str(row["node"]),
        scheme=scheme,
        range_rule=None if scheme is None else (row.get("range") or "minmax"),
        rounder=None if scheme is None else row.get("rounder"),
        reason=str(row.get("reason", "")),
    )
