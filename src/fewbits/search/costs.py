"""What each pattern of layers costs in each form, measured in the real runtime; the table is saved, and replayed.

A pattern is an operator with its attributes and the shapes that it reads. What it costs is seen in profiles of whole
files: the float model, the file with fixed ranges, and the file whose products quantize their inputs as they come.
There a kernel has the neighbours, the layouts and the caches that it will have. What its form costs its neighbours
shows only when whole files are timed against each other, which is what decides.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, final

from fewbits._base.errors import UsageError
from fewbits.measurement.executed import model_name
from fewbits.planning.site import GraphView, OpView
from fewbits.runtimes.base import ExecutedNode

SCHEMA_VERSION = 1
# What a pattern must take longer in integers than in float, of its own time and of the whole, to be tried in float.
_DEARER = 1.05
_NOTICEABLE = 0.005


class Form(StrEnum):
    """In which numbers a node multiplies."""

    FLOAT = "float"
    STATIC = "static"
    DYNAMIC = "dynamic"
    COARSE = "dynamic, one scale"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """What patterns cost, and which form each of them got.

    Args:
      runtime: Name and version of the runtime.
      target: Target with its instruction set.
      threads: Of the session.
      microseconds: By pattern and form: the median over its nodes.
      nodes: By pattern: how many nodes of the model have it.
      chosen: By pattern: the form of all its nodes in the file.
      repairs: Rewrites of the graph that were kept, in order.
    """

    runtime: str
    target: str
    threads: int
    microseconds: Mapping[str, Mapping[Form, float]] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)
    chosen: Mapping[str, Form] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()

    def dearer_in_integers(self) -> list[str]:
        """Returns the patterns that take noticeably longer with fixed ranges than in float, the most wasteful first."""
        whole = sum(max(costs.values()) * self.nodes[pattern] for pattern, costs in self.microseconds.items())
        waste = {
            pattern: (costs[Form.STATIC] - costs[Form.FLOAT]) * self.nodes[pattern]
            for pattern, costs in self.microseconds.items()
            if Form.STATIC in costs and Form.FLOAT in costs and costs[Form.STATIC] > _DEARER * costs[Form.FLOAT]
        }
        return sorted((p for p in waste if waste[p] > _NOTICEABLE * whole), key=lambda p: (-waste[p], p))

    def to_json(self) -> str:
        """Returns the table as JSON text: one pattern a line."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "runtime": self.runtime,
            "target": self.target,
            "threads": self.threads,
            "repairs": list(self.repairs),
        }
        rows = [
            {
                "pattern": pattern,
                "nodes": self.nodes.get(pattern, 0),
                "form": self.chosen[pattern].value,
                "microseconds": {form.value: round(us, 1) for form, us in self.microseconds.get(pattern, {}).items()},
            }
            for pattern in self.chosen
        ]
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        body = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in rows)
        lines.append(f'  "patterns": [\n{body}\n  ]' if rows else '  "patterns": []')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def costs_from_json(text: str, *, where: str = "the cost table") -> CostTable:
    """Returns the table that ``CostTable.to_json`` wrote.

    Raises: UsageError(slug="costs-invalid") naming the first fault.
    """
    try:
        return _from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    raise UsageError(
        f"cannot read {where}: {fault}; give the costs.json of an earlier run, or leave --costs out to measure anew",
        slug="costs-invalid",
    )


def _from_dict(data: Any) -> CostTable:
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"it is no cost table of version {SCHEMA_VERSION}")
    rows = data["patterns"]
    return CostTable(
        runtime=str(data["runtime"]),
        target=str(data["target"]),
        threads=int(data["threads"]),
        microseconds={
            row["pattern"]: {Form(form): float(us) for form, us in row["microseconds"].items()} for row in rows
        },
        nodes={row["pattern"]: int(row["nodes"]) for row in rows},
        chosen={row["pattern"]: Form(row["form"]) for row in rows},
        repairs=tuple(str(name) for name in data["repairs"]),
    )


def check_costs(table: CostTable, *, runtime: str, target: str, threads: int) -> None:
    """Raises UsageError(slug="costs-other") unless a table was measured where it is to be used."""
    measured, here = (table.runtime, table.target, table.threads), (runtime, target, threads)
    if measured != here:
        raise UsageError(
            f"the cost table was measured on {_place(*measured)}, and this run is on {_place(*here)}; leave --costs "
            "out to measure here",
            slug="costs-other",
        )


def _place(runtime: str, target: str, threads: int) -> str:
    return f"{runtime}, {target}, {threads} thread{'' if threads == 1 else 's'}"


def pattern_of(op: OpView, graph: GraphView, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> str:
    """Returns an operator with its attributes and the shapes that it reads.

    Args:
      op: The node.
      graph: The model, which knows the shapes that are fixed.
      shapes: Those that it was run with, by node.
    """
    seen = shapes.get(op.name, ())
    read = []
    for index, name in enumerate(op.inputs):
        fixed = graph.tensors[name].shape if name and name in graph.tensors else ()
        dims = tuple(fixed or ())
        if index < len(seen) and len(seen[index]) == len(dims):  # a runtime's own layout may have more channels
            dims = tuple(ran if d is None else d for d, ran in zip(dims, seen[index], strict=True))
        read.append("-" if not name else "x".join("?" if d is None else str(d) for d in dims) or "1")
    settings = [f"{key}={_plain(value)}" for key, value in sorted(op.attributes.items())]
    return " ".join((op.op, ",".join(read), *settings))


def _plain(value: object) -> str:
    return ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def shapes_seen(nodes: Iterable[ExecutedNode], graph: GraphView) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the shapes that the model's nodes read in a run of the float model."""
    known = {op.name for op in graph.ops}
    return {model_name(node, known, graph): tuple(shape for _, shape in node.inputs) for node in nodes}


def node_times(nodes: Iterable[ExecutedNode], graph: GraphView) -> dict[str, float]:
    """Returns the microseconds of the model's nodes in a profile; conversions between numbers count for nobody."""
    known, times = {op.name for op in graph.ops}, defaultdict[str, float](float)
    for node in nodes:
        name = model_name(node, known, graph)
        if name in known:
            times[name] += node.microseconds
    return dict(times)


def table_of(
    profiles: Mapping[Form, Mapping[str, float]],
    running: Mapping[Form, Iterable[str]],
    patterns: Mapping[str, str],
    *,
    runtime: str,
    target: str,
    threads: int,
) -> CostTable:
    """Returns what each pattern costs in the forms that were profiled; nothing is chosen yet.

    Args:
      profiles: By form: microseconds by node.
      running: By form: the nodes that really had it in that profile.
      patterns: By node.
      runtime: Name and version.
      target: With its instruction set.
      threads: Of the session.
    """
    found: dict[str, dict[Form, list[float]]] = defaultdict(lambda: defaultdict(list))
    for form, names in running.items():
        for name in names:
            if name in patterns and name in profiles[form]:
                found[patterns[name]][form].append(profiles[form][name])
    return CostTable(
        runtime=runtime,
        target=target,
        threads=threads,
        microseconds={pattern: {form: median(us) for form, us in forms.items()} for pattern, forms in found.items()},
        nodes={pattern: sum(p == pattern for p in patterns.values()) for pattern in dict.fromkeys(patterns.values())},
    )
