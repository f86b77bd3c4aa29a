"""Repair of depthwise layers whose channels do not fill vectors: the channels between two layers filled up with zeros.

ONNX Runtime's integer depthwise kernel takes two to three times as long where the channels are no multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from fewbits.models.onnx.editing import (
    CountingPass,
    add_initializer,
    constant_of,
    drop_unread,
    int_attribute,
    int_list,
    is_standard,
)

# Channels that fill a vector.
_MULTIPLE = 16
# The most channels that are added, as a part of those that are there: they are computed too.
_MOST_ADDED = 1 / 3
# Operators that keep channels apart, and give a finite number for every finite one.
_BY_CHANNEL = {
    "Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Tanh", "Identity", "GlobalAveragePool",
    "GlobalMaxPool", "AveragePool", "MaxPool",
}  # fmt: skip
_OF_TWO = {"Add", "Sub", "Mul"}


@final
class FillChannels(CountingPass):
    """Fills the channels around depthwise convolutions up to a multiple of 16.

    The layers that write them get outputs of weight and bias 0, those that read them inputs of weight 0: whatever
    stands in the new channels, nothing comes of it. What lies between may be element by element, pooling, and products
    by channel (squeeze and excitation); where anything else reads or writes the channels, they stay as they are.
    Ensures: no such depthwise convolution is left.
    """

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = _channels(node)
            if found is not None:
                found.fill(graph)
                count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(_channels(node) is not None for node in model.graph):
            raise PostconditionError("a depthwise convolution whose channels do not fill vectors is left")


def _channels(node: ir.Node) -> _Channels | None:
    """Returns the channels around a depthwise convolution that wants more of them, None for others."""
    weight = constant_of(node.inputs[1]) if node.op_type == "Conv" and is_standard(node) else None
    if weight is None or weight.shape[1] != 1 or int_attribute(node, "group", 1) != weight.shape[0]:
        return None
    old = weight.shape[0]
    new = -(-old // _MULTIPLE) * _MULTIPLE
    if new == old or new - old > _MOST_ADDED * old:
        return None
    found = _Channels(old, new)
    return found if all(found.sees(value) for value in (node.inputs[0], node.outputs[0])) else None


@final
class _Channels:
    """All tensors that have the same channels, and the layers at their ends."""

    def __init__(self, old: int, new: int) -> None:
        self._old, self._new = old, new
        self._tensors: dict[ir.Value, None] = {}
        self._writers: dict[ir.Node, None] = {}
        self._readers: dict[ir.Node, None] = {}
        self._depthwise: dict[ir.Node, None] = {}
        self._constants: dict[tuple[ir.Node, int], np.ndarray] = {}
        self._filled: dict[tuple[ir.Value, int], ir.Value] = {}

    def sees(self, value: ir.Value | None) -> bool:
        """Returns whether a tensor and all that share its channels could have more of them."""
        waiting = [value]
        while waiting:
            tensor = waiting.pop()
            if tensor is None or tensor in self._tensors:
                continue
            node = tensor.producer()
            if node is None or tensor.is_graph_output() or not self._has_channels(tensor):
                return False
            self._tensors[tensor] = None
            for user in {node, *(use.node for use in tensor.uses())}:
                behind = self._through(user, tensor)
                if behind is None:
                    return False
                waiting += behind
        return True

    def _has_channels(self, tensor: ir.Value) -> bool:
        shape = tensor.shape
        return shape is not None and len(shape) > 2 and shape[1] == self._old and tensor.dtype is ir.DataType.FLOAT

    def _through(self, node: ir.Node, tensor: ir.Value) -> Iterable[ir.Value | None] | None:
        """Returns the tensors that have the same channels because of a node, None where they must not be touched."""
        if not is_standard(node) or len(node.outputs) > 1:
            return None
        if node.op_type == "Conv":
            return self._at_layer(node, tensor)
        if node.op_type in _BY_CHANNEL or (node.op_type == "ReduceMean" and _spatial(node)):
            return node.inputs[0], node.outputs[0]
        return self._of_two(node) if node.op_type in _OF_TWO else None

    def _at_layer(self, node: ir.Node, tensor: ir.Value) -> Iterable[ir.Value | None] | None:
        weight = constant_of(node.inputs[1])
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if weight is None or (len(node.inputs) > 2 and node.inputs[2] is not None and bias is None):
            return None
        group = int_attribute(node, "group", 1)
        if group == self._old and weight.shape[:2] == (self._old, 1):
            self._depthwise[node] = None
            return node.inputs[0], node.outputs[0]
        if group != 1 or node.inputs[0] is node.outputs[0]:
            return None
        (self._writers if node.outputs[0] is tensor else self._readers)[node] = None
        return ()

    def _of_two(self, node: ir.Node) -> list[ir.Value | None] | None:
        """Returns the tensors of an element-wise operator; fixed operands are filled up with zeros."""
        found: list[ir.Value | None] = [node.outputs[0]]
        for index, value in enumerate(node.inputs):
            array = constant_of(value)
            if array is not None:
                if array.size != 1 and (array.ndim < 3 or array.shape[-3 if array.ndim == 3 else 1] != self._old):
                    return None
                if array.size != 1:
                    self._constants[node, index] = array
            elif value is None or value.shape is None or len(value.shape) < 3:
                return None
            elif value.shape[1] == self._old:
                found.append(value)
            elif value.shape[1] != 1:
                return None
        return found

    def fill(self, graph: ir.Graph) -> None:
        """Gives all of them more channels."""
        for node in self._writers:
            self._pad(graph, node, 1, 0)
            self._pad(graph, node, 2, 0)
        for node in self._readers:
            self._pad(graph, node, 1, 1)
        for node in self._depthwise:
            self._pad(graph, node, 1, 0)
            self._pad(graph, node, 2, 0)
            node.attributes["group"] = ir.AttrInt64("group", self._new)
        for (node, index), array in self._constants.items():
            self._pad(graph, node, index, array.ndim - 3 if array.ndim == 3 else 1)
        for tensor in self._tensors:
            assert tensor.shape is not None
            tensor.shape = ir.Shape([self._new if axis == 1 else dim for axis, dim in enumerate(tensor.shape)])

    def _pad(self, graph: ir.Graph, node: ir.Node, index: int, axis: int) -> None:
        old = node.inputs[index] if index < len(node.inputs) else None
        array = constant_of(old)
        if old is None or array is None:
            return
        if (old, axis) not in self._filled:
            widths = [(0, self._new - self._old if i == axis else 0) for i in range(array.ndim)]
            self._filled[old, axis] = add_initializer(graph, f"{old.name}_filled", np.pad(array, widths))
        node.replace_input_with(index, self._filled[old, axis])
        drop_unread(graph, [old])


def _spatial(node: ir.Node) -> bool:
    """Returns whether a reduction keeps its axes, and reduces those behind the channels only."""
    given = constant_of(node.inputs[1]) if len(node.inputs) > 1 else int_list(node, "axes")
    rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
    if given is None or rank is None or not int_attribute(node, "keepdims", 1):
        return False
    return all(int(axis) % rank > 1 for axis in given)
