"""Products of two changing matrices, as in attention: which there are, and where the codes stand that they multiply.

A matrix is often a moved or scaled copy of what a layer wrote. Its codes stand there, and what copies it runs on them.
"""

from __future__ import annotations

from collections.abc import Iterable

from fewbits.planning.site import GraphView, OpView
from fewbits.targets._candidates import candidate
from fewbits.targets.base import Kind, OpRule, Target

# Operators whose results are never negative: their zero point is the lowest code.
_NEVER_NEGATIVE = ("Softmax", "Relu", "Sigmoid", "HardSigmoid")


def may_be_paired(graph: GraphView, target: Target) -> tuple[str, ...]:
    """Returns the names of all nodes that could multiply two changing matrices in integers, in graph order."""
    if not target.paired:
        return ()
    found = ((op, candidate(op, graph, target)) for op in graph.ops)
    return tuple(op.name for op, rule in found if isinstance(rule, OpRule) and rule.kind is Kind.PAIRED)


def source_of(name: str, graph: GraphView, target: Target, coded: set[str]) -> tuple[str, set[str]]:
    """Returns the tensor whose codes stand for a matrix, and the nodes that carry them to it.

    It is the nearest one with codes that the matrix is a copy of, or else the one that is itself no copy.

    Args:
      name: The matrix.
      graph: The model.
      target: The rules.
      coded: Names of the tensors that have codes.
    """
    carried = set[str]()
    while name not in coded and (op := graph.producer.get(name)) is not None:
        before = _copied(op, graph, target)
        if before is None:
            break
        carried.add(op.name)
        name = before
    return name, carried


def _copied(op: OpView, graph: GraphView, target: Target) -> str | None:
    """Returns of which tensor an operator gives the elements, moved or times a positive number; None of others."""
    if not op.inputs or graph.is_constant(op.inputs[0]):
        return None
    if op.op in ("Mul", "Div"):
        factor, ranks = graph.tensors[op.inputs[1]].value, {graph.rank(name) for name in (op.inputs[0], op.outputs[0])}
        return op.inputs[0] if factor is not None and factor > 0 and len(ranks) == 1 and None not in ranks else None
    rule = candidate(op, graph, target)
    return op.inputs[0] if isinstance(rule, OpRule) and rule.kind is Kind.MOVES else None


def must_be_signed(index: int, source: str, graph: GraphView) -> bool:
    """Returns whether a kernel takes only signed codes of a matrix: all but a first one that is never negative.

    Args:
      index: 0 for the first matrix of the product, 1 for the second.
      source: The tensor whose codes stand for it.
      graph: The model.
    """
    writer = graph.producer.get(source)
    return index > 0 or writer is None or writer.op not in _NEVER_NEGATIVE


def multiplies_codes(
    op: OpView, rule: OpRule, graph: GraphView, target: Target, coded: set[str], signed: set[str]
) -> bool:
    """Returns whether both matrices of a product have codes that its kernel takes, some of them signed."""
    for index, name in enumerate(rule.activation_inputs(op)):
        source, _ = source_of(name, graph, target, coded)
        if source not in coded or (must_be_signed(index, source, graph) and source not in signed):
            return False
    return True


def carriers(graph: GraphView, target: Target, integer: Iterable[str], coded: Iterable[str]) -> dict[str, set[str]]:
    """Returns, by tensor with codes, the nodes that carry these to a product of two changing matrices."""
    have, found = set(coded), dict[str, set[str]]()
    for name in set(integer) & set(may_be_paired(graph, target)):
        op = graph.by_name[name]
        for matrix in target.paired[op.op].activation_inputs(op):
            source, carried = source_of(matrix, graph, target, have)
            found.setdefault(source, set()).update(carried)
    return found
