"""Links between layers whose channels may be given in smaller numbers and taken in larger ones, and folding them in.

A link is a layer, operators that let a positive factor of a channel through, and all layers behind them. Where any
reader is something else, or the tensor is an output of the graph, there is no link: the model would not stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import onnx_ir as ir

from fewbits.algorithms.transforms._channels import ChannelScale
from fewbits.models.onnx.editing import (
    add_initializer,
    constant_of,
    fresh_name,
    int_attribute,
    is_standard,
    only_reader,
)
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import TransformStep

# f(x * s) = f(x) * s for s > 0, element by element or over elements of one channel.
_HOMOGENEOUS = {
    "Relu", "LeakyRelu", "PRelu", "Abs", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
}  # fmt: skip


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Taker:
    """A layer that reads a link's tensor.

    Args:
      node: Its name.
      weight: Its weight.
      axis: Input channel axis of the weight.
      groups: Groups of channels.
      source: The tensor that it reads.
      source_axis: Channel axis of that tensor.
    """

    node: str
    weight: str
    axis: int
    groups: int
    source: str
    source_axis: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """A fixed tensor that is divided by the factors of a link.

    Args:
      name: The tensor.
      axis: Its channel axis.
      start: The link's channel that is its first; 0 but for the branches of a Concat.
    """

    name: str
    axis: int
    start: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLink:
    """A layer, and all layers that read its output, with nothing between but what a factor passes through.

    Args:
      giver: Name of the node whose output channels are divided; of the graph's input where that is smoothed, of the
        Concat where several layers give their channels side by side.
      divided: Fixed tensors that are divided; none for an input of the graph.
      takers: The layers that read it.
      channels: How many.
      input_axis: Channel axis of an input of the graph, behind which a division is put; None for a layer.
      free: Spans of channels that may have a factor; the others keep 1.
    """

    giver: str
    divided: tuple[Divided, ...]
    takers: tuple[Taker, ...]
    channels: int
    input_axis: int | None = None
    free: tuple[tuple[int, int], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether one layer gives all channels."""
        return self.input_axis is None and self.free == ((0, self.channels),)


def smoothed_name(name: str) -> str:
    """Returns the name of the division behind an input of the graph, and of what it gives."""
    return f"{name}_smoothed"


def links_of(model: OnnxModel) -> tuple[LayerLink, ...]:
    """Returns the links of a model, in graph order; none where weights lie in other files."""
    if model.folder is not None:
        return ()
    graph = model.ir_model.graph
    found = []
    for value in graph.inputs:
        link = _input_link(graph, value)
        if link is not None:
            found.append(link)
    for node in graph:
        link = _link(graph, node)
        if link is not None:
            found.append(link)
    return tuple(found)


def _input_link(graph: ir.Graph, value: ir.Value) -> LayerLink | None:
    """Returns the link of an input of the graph whose channels are on one axis for all layers that read it."""
    name = smoothed_name(value.name or "")
    taken = fresh_name(graph, name) != name or any(node.name == name for node in graph)
    if taken or constant_of(value) is not None or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return None
    for last in (False, True):
        takers = _takers(value, last=last, divided=[])
        width = _one_width(graph, takers) if takers else None
        if takers and width is not None and width > 1 and value.shape[-1 if last else 1] == width:
            axis = len(value.shape) - 1 if last else 1
            return LayerLink(
                giver=value.name or "",
                divided=(),
                takers=tuple(takers),
                channels=width,
                input_axis=axis,
                free=((0, width),),
            )
    return None


def _link(graph: ir.Graph, node: ir.Node) -> LayerLink | None:
    if node.op_type == "Concat" and is_standard(node):
        return _concat_link(graph, node)
    given = _given(node)
    if given is None:
        return None
    divided, last = given
    takers = _takers(node.outputs[0], last=last, divided=divided)
    width = _one_width(graph, takers) if takers else None
    if not takers or width is None or not _are_rows(graph, divided, width):
        return None
    return LayerLink(
        giver=node.name or "", divided=tuple(divided), takers=tuple(takers), channels=width, free=((0, width),)
    )


def _concat_link(graph: ir.Graph, node: ir.Node) -> LayerLink | None:
    """Returns the link of channels that several layers give side by side; what no layer gives keeps its size."""
    output = node.outputs[0]
    rank, axis = None if output.shape is None else len(output.shape), int_attribute(node, "axis", 0)
    if rank is None or axis % rank not in (1, rank - 1):
        return None
    last = axis % rank == rank - 1
    later: list[Divided] = []
    takers = _takers(output, last=last, divided=later)
    width = _one_width(graph, takers) if takers else None
    if not takers or width is None:
        return None
    divided, free, start = list(later), [], 0
    for value in node.inputs:
        own = None if value is None or value.shape is None else value.shape[axis]
        if value is None or not isinstance(own, int):
            return None
        given = _giving(value, last)
        if given and _are_rows(graph, given, own):
            divided += [replace(each, start=start) for each in given]
            free.append((start, start + own))
        start += own
    names = [each.name for each in divided]
    if start != width or not free or len(set(names)) < len(names) or (later and not _are_rows(graph, later, width)):
        return None
    return LayerLink(
        giver=node.name or "", divided=tuple(divided), takers=tuple(takers), channels=width, free=tuple(free)
    )


def _giving(value: ir.Value, last: bool) -> list[Divided] | None:
    """Returns the tensors by whose division a branch is divided; None where no layer gives it, or others read it."""
    added: list[Divided] = []
    while only_reader(value) is not None:
        node = value.producer()
        if node is None:
            return None
        given = _given(node)
        if given is not None:
            return [*given[0], *added] if given[1] == last or _rank_of(value) == 2 else None
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return None
        if node.op_type == "Add" and constant_of(source) is not None and len(node.inputs) == 2:
            source = node.inputs[1]
            assert source is not None
        index = next(i for i, each in enumerate(node.inputs) if each is source)
        behind = _behind(node, index, source, last, added)
        if behind is None or behind != last:
            return None
        value = source
    return None


def _rank_of(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _are_rows(graph: ir.Graph, divided: list[Divided], width: int) -> bool:
    """Returns whether tensors have so many channels, are read once each, and no two are the same."""
    if len({each.name for each in divided}) < len(divided):
        return False
    for each in divided:
        array = constant_of(graph.initializers[each.name])
        if array is None or array.shape[each.axis] != width or not _alone(graph.initializers[each.name]):
            return False
    return True


def _one_width(graph: ir.Graph, takers: list[Taker]) -> int | None:
    """Returns how many channels all takers read; None where they disagree."""
    widths = set()
    for taker in takers:
        weight = graph.initializers.get(taker.weight)
        array = None if weight is None else constant_of(weight)
        if array is None:  # a layer inside a body reads the tensor, with a weight of the body's own
            return None
        widths.add(array.shape[taker.axis] * taker.groups)
    return widths.pop() if len(widths) == 1 else None


def _given(node: ir.Node) -> tuple[list[Divided], bool] | None:
    """Returns the tensors of a node by whose division its output is divided, and whether its channels are last."""
    if not is_standard(node) or len([o for o in node.outputs if o.name and (o.uses() or o.is_graph_output())]) != 1:
        return None
    axes: dict[int, int] | None = None
    if node.op_type == "Conv":
        axes = {1: 0, 2: 0}
    elif node.op_type == "Gemm" and int_attribute(node, "transA", 0) == 0 and _plain_row(node):
        axes = {1: 0 if int_attribute(node, "transB", 0) else 1, 2: -1}
    elif node.op_type == "MatMul" and _rank(node.inputs[1]) == 2:
        axes = {1: 1}
    elif node.op_type == "LayerNormalization" and int_attribute(node, "axis", -1) == -1 and _rank(node.inputs[1]) == 1:
        axes = {1: 0, 2: 0}
    fixed = None if axes is None else _fixed(node, axes)
    return None if fixed is None else (fixed, node.op_type != "Conv")


def _plain_row(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    array, weight = constant_of(node.inputs[2]), constant_of(node.inputs[1])
    if array is None or weight is None:
        return False
    outputs = weight.shape[0 if int_attribute(node, "transB", 0) else 1]
    return bool(array.size == outputs and array.shape[-1] == outputs)


def _fixed(node: ir.Node, axes: Mapping[int, int]) -> list[Divided] | None:
    """Returns the names and channel axes of fixed inputs; None where one is not fixed float32."""
    found = []
    for index, axis in axes.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        array = constant_of(value)
        if array is None or array.dtype != np.float32 or not array.ndim:
            return None
        found.append(Divided(name=value.name or "", axis=axis))
    return found or None


def _alone(value: ir.Value) -> bool:
    return len(tuple(value.uses())) == 1 and not value.is_graph_output()


def _rank(value: ir.Value | None) -> int | None:
    array = constant_of(value)
    return None if array is None else array.ndim


def _takers(value: ir.Value, *, last: bool, divided: list[Divided]) -> list[Taker] | None:
    """Returns the layers behind a tensor; None where one of its readers is no layer and lets no factor through.

    Args:
      value: The tensor.
      last: Whether its channels are on the last axis, or on axis 1.
      divided: Gets fixed rows that are added on the way, which are divided too.
    """
    if value.is_graph_output():
        return None
    found: list[Taker] = []
    for use in value.uses():
        node, index = use.node, use.idx
        if node.op_type == "Shape" and is_standard(node):
            continue
        taker = _taker(node, index, value, last)
        if taker is not None:
            found.append(taker)
            continue
        behind = _behind(node, index, value, last, divided)
        if behind is None:
            return None
        more = _takers(node.outputs[0], last=behind, divided=divided)
        if not more:
            return None
        found += more
    return found


def _taker(node: ir.Node, index: int, value: ir.Value, last: bool) -> Taker | None:
    if index != 0 or not is_standard(node) or len(node.inputs) < 2 or value.name is None:
        return None
    weight = node.inputs[1]
    array = constant_of(weight)
    if weight is None or array is None or array.dtype != np.float32 or not _alone(weight) or array.ndim < 2:
        return None
    flat = array.ndim == 2 and (last or (value.shape is not None and len(value.shape) == 2))
    groups, source_axis = 1, -1
    if node.op_type == "Conv" and not last and array.ndim > 2:
        groups, axis, source_axis = int_attribute(node, "group", 1), 1, 1
    elif node.op_type == "Gemm" and flat and int_attribute(node, "transA", 0) == 0:
        axis = 1 if int_attribute(node, "transB", 0) else 0
    elif node.op_type == "MatMul" and flat:
        axis = 0
    else:
        return None
    return Taker(
        node=node.name or "", weight=weight.name or "", axis=axis, groups=groups, source=value.name,
        source_axis=source_axis,
    )  # fmt: skip


def _behind(node: ir.Node, index: int, value: ir.Value, last: bool, divided: list[Divided]) -> bool | None:
    """Returns whether channels are last behind a node that lets a factor through; None for one that does not."""
    if (
        not is_standard(node)
        or any(o.name and o.uses() for o in node.outputs[1:])
        or any(o.is_graph_output() for o in node.outputs[1:])
    ):
        return None
    if node.op_type in _HOMOGENEOUS and index == 0 and not (last and "Pool" in node.op_type):
        return last
    if node.op_type == "Flatten" and int_attribute(node, "axis", 1) == 1 and not last:
        dims = None if value.shape is None else list(value.shape)[2:]
        return True if dims is not None and all(d == 1 for d in dims) else None
    if node.op_type == "Reshape" and index == 0 and last and _keeps_last(node, value):
        return True
    if node.op_type == "Add" and last and len(node.inputs) == 2:
        row = node.inputs[1 - index]
        array, width = constant_of(row), None if value.shape is None else value.shape[-1]
        if row is None or array is None or array.dtype != np.float32 or not array.ndim or not _alone(row):
            return None
        if array.size == array.shape[-1] == width:
            divided.append(Divided(name=row.name or "", axis=-1))
            return True
    return None


def _keeps_last(node: ir.Node, value: ir.Value) -> bool:
    wanted = constant_of(node.inputs[1])
    if wanted is None or not wanted.size or value.shape is None or not len(value.shape):
        return False
    return isinstance(value.shape[-1], int) and int(wanted[-1]) == value.shape[-1]


# --- folding ------------------------------------------------------------------------------------------------------


def folded(
    model: OnnxModel, factors: Mapping[str, np.ndarray], links: tuple[LayerLink, ...], step: TransformStep
) -> OnnxModel | None:
    """Returns the model with factors folded in, the same function; None where that would change nothing.

    A link in which a weight would lose bits (it lies near the ends of float32) is left out.

    Args:
      model: The model.
      factors: [channels] float32, > 0, by the giver of the link.
      links: Of the model.
      step: Recorded as what was done; its places are those that the factors are folded into.
    """
    clone = model.ir_model.clone()
    graph = clone.graph
    done = []
    for link in links:
        found = factors.get(link.giver)
        if found is None or bool((found == 1).all()):
            continue
        if _fold(graph, link, ChannelScale(factors=np.asarray(found, dtype=np.float32))):
            done.append(link.giver)
    if not done:
        return None
    step = replace(step, where=tuple(done))
    return replace(model, ir_model=clone, steps=(*model.steps, step))


def _fold(graph: ir.Graph, link: LayerLink, scale: ChannelScale) -> bool:
    arrays = {}
    for each in link.divided:
        array = _values(graph, each.name)
        own = ChannelScale(factors=scale.factors[each.start : each.start + array.shape[each.axis]])
        if not own.keeps(array, axis=each.axis):
            return False
        arrays[each.name] = np.asarray(own.fold(array, None, axis=each.axis)[0])
    for taker in link.takers:
        array = arrays.get(taker.weight, _values(graph, taker.weight))
        if not scale.keeps_in(array, axis=taker.axis, groups=taker.groups):
            return False
        arrays[taker.weight] = np.asarray(scale.take(array, axis=taker.axis, groups=taker.groups))
    for name, array in arrays.items():
        graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    if link.input_axis is not None:
        _divide_input(graph, link, scale)
    return True


def _divide_input(graph: ir.Graph, link: LayerLink, scale: ChannelScale) -> None:
    """Puts a division behind an input of the graph: targets keep one by a row in float, and its result is quantized."""
    value = next(v for v in graph.inputs if v.name == link.giver)
    assert value.shape is not None and link.input_axis is not None
    row = np.asarray(scale.factors).reshape(-1, *[1] * (len(value.shape) - 1 - link.input_axis))
    divisor = add_initializer(graph, f"{link.giver}_factors", row)
    name = smoothed_name(link.giver)
    made = ir.node("Div", [value, divisor], name=name)
    out = made.outputs[0]
    out.name, out.shape, out.type = name, value.shape, value.type
    for use in tuple(value.uses()):
        if use.node is not made and use.node.op_type != "Shape":
            use.node.replace_input_with(use.idx, out)
    graph.insert_before(next(iter(graph)), made)


def _values(graph: ir.Graph, name: str) -> np.ndarray:
    array = constant_of(graph.initializers[name])
    assert array is not None
    return array
