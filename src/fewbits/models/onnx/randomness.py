"""Models that draw random numbers: no two of their runs agree, so that nothing can be said of a quantized one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.models.onnx.feeding import model_batches, run_options
from fewbits.models.onnx.refusals import graphs_of
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options, Session, Tensors

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset
    from fewbits.models.onnx.model import OnnxModel

# Operators of the ONNX standard whose outputs differ from run to run; with a seed they begin alike in each session,
# and still go on from run to run.
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def refuse_drawing(proto: Any, name: str) -> None:
    """Refuses a ModelProto that draws random numbers on the way to its outputs.

    Raises: ModelError(slug="not-deterministic") naming the node.
    """
    found = random_node(proto)
    if found is None:
        return
    node, how = found
    label = node.name or next((output for output in node.output if output), "")
    raise ModelError(
        f"{name}: {node.op_type} {label!r} {how}, so no two runs of the float model agree, and no loss can be "
        "told from chance; export it without sampling (model.eval()), or make what is drawn an input",
        slug="not-deterministic",
    )


def random_node(proto: Any) -> tuple[Any, str] | None:
    """Returns a node that draws random numbers which reach an output, and what it does in words; None without one."""
    constants = dict(_constants(proto.graph))
    bodies = {(f.domain, f.name): f for f in proto.functions}
    producer = {name: node for node in proto.graph.node for name in node.output if name}
    waiting, seen = [output.name for output in proto.graph.output], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in producer:
            continue
        seen.add(name)
        node = producer[name]
        for inner in _all_of(node, bodies):
            how = _draws(inner, constants)
            if how:
                return inner, how
            waiting.extend(filter(None, inner.input))
    return None


def _all_of(node: Any, bodies: dict[tuple[str, str], Any]) -> Iterator[Any]:
    """Yields a node, those of the graphs inside it, and those of functions that any of them calls."""
    waiting, called = [node], set[tuple[str, str]]()
    while waiting:
        one = waiting.pop()
        yield one
        for attribute in one.attribute:
            inner = [attribute.g] if attribute.HasField("g") else attribute.graphs
            waiting.extend(found for graph in inner for found in graph.node)
        key = (one.domain, one.op_type)
        if key in bodies and key not in called:
            called.add(key)
            waiting.extend(found for graph in graphs_of(bodies[key]) for found in graph.node)


def _constants(graph: Any) -> Iterator[tuple[str, float]]:
    """Yields the small constants of the main graph, by which Dropout is told what to do."""
    from onnx import numpy_helper

    small = [t for t in graph.initializer if not t.dims or list(t.dims) == [1]]
    held = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and len(attribute.t.dims) <= 1 and sum(attribute.t.dims) <= 1
    ]
    for name, tensor in (*((t.name, t) for t in small), *held):
        if tensor.data_location != 1 and tensor.data_type in (1, 9, 10, 11):  # float, bool, float16, double
            value = numpy_helper.to_array(tensor)
            if value.size == 1:
                yield name, float(value.reshape(-1)[0])


def _draws(node: Any, constants: dict[str, float]) -> str:
    """Returns how a node draws random numbers, in words; empty where it does not, or only if an input says so."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    if node.op_type in _RANDOM:
        return "draws random numbers in every run"
    if node.op_type == "Dropout" and len(node.input) > 2:
        drops = constants.get(node.input[1], 0.5) if node.input[1] else 0.5
        if constants.get(node.input[2], 0.0) and drops:
            return "is in training mode and drops values at random"
    return ""


def refuse_unsteady(model: OnnxModel, data: Dataset, indices: np.ndarray) -> None:
    """Refuses a model that answers the same example differently when it is asked again.

    Args:
      model: The float model.
      data: Examples.
      indices: Which of them; the first is asked twice, in one session of one thread.
    Raises: ModelError(slug="not-deterministic") naming the first node whose output changes.
    """
    if not len(indices):
        return
    feeds, _ = next(iter(model_batches(model, data, indices[:1], size=1)))
    options = run_options(model, Options())
    if _differing(RUNTIMES["ort"].open(model.original, options), feeds) is None:
        return
    ops = [op for op in model.view.ops if any(op.outputs)]
    inner = [name for op in ops for name in op.outputs if name]
    changed = _differing(RUNTIMES["ort"].open(model.serialized(extra_outputs=inner), options), feeds) or set()
    first = next((op for op in ops if changed & set(op.outputs)), None)
    where = "the model" if first is None else f"{first.label} {first.name!r}"
    raise ModelError(
        f"{model.name}: {where} gives other values when the same example is run again, so no two runs of the float "
        "model agree, and no loss can be told from chance; export it without what changes",
        slug="not-deterministic",
    )


def _differing(session: Session, feeds: Tensors) -> set[str] | None:
    """Returns the outputs that differ between two runs; None where none does."""
    once, again = session.run(feeds), session.run(feeds)
    found = {name for name, value in once.items() if value.tobytes() != again[name].tobytes()}
    return found or None
