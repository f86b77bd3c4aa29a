"""Repairs that write an operator which runtimes have no fast integer kernel for as a convolution, which they have.

Each leaves the function unchanged. Whether it pays is measured by those who apply it, model by model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm
from fewbits.models.onnx.editing import (
    CountingPass,
    add_initializer,
    constant_of,
    drop_unread,
    fresh_name,
    int_attribute,
    int_list,
    is_standard,
    take_place,
)

# Strides of the transposed convolutions that were measured: 1.8 to 2.5 times as fast as float.
_SUBPIXEL_STRIDES = (2, 3, 4)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layer:
    """The Conv that a node becomes.

    Args:
      weight: [out, in / group, *kernel] float32.
      bias: [out] float32, or None.
      strides: One number a spatial axis.
      pads: All starts, then all ends.
      group: Number of groups.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    group: int

    def insert(self, graph: ir.Graph, node: ir.Node) -> ir.Value:
        """Returns the output of a new Conv before the node, with the node's name and doc string, on its input."""
        source = node.inputs[0]
        assert source is not None
        inputs = [source, add_initializer(graph, f"{node.name}_weight", self.weight)]
        if self.bias is not None:
            inputs.append(add_initializer(graph, f"{node.name}_bias", self.bias))
        attributes: dict[str, int | tuple[int, ...]] = {
            "kernel_shape": self.weight.shape[2:],
            "strides": self.strides,
            "pads": self.pads,
            "group": self.group,
        }
        conv = ir.node("Conv", inputs, attributes=attributes, name=node.name)
        conv.doc_string = node.doc_string
        conv.metadata_props.update(node.metadata_props)
        graph.insert_before(node, conv)
        return conv.outputs[0]


@final
class NormToConv(CountingPass):
    """Writes a BatchNormalization that no layer could take in as a depthwise Conv of kernel size 1.

    y = a x + b a channel, a = gamma / sqrt(variance + epsilon), b = beta - mean a: a float island becomes an integer
    layer, and a Relu behind it its saturation.
    Requires: FoldBatchNorm has run; statistics fixed in the file; a float32 input of a known rank of 3 to 5.
    Ensures: no such BatchNormalization is left.
    """

    def _match(self, node: ir.Node) -> _Layer | None:
        if node.op_type != "BatchNormalization" or not is_standard(node) or int_attribute(node, "training_mode", 0):
            return None
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return None
        dims = _float_dims(node.inputs[0])
        if dims is None or not 3 <= len(dims) <= 5:
            return None
        fixed = [constant_of(value) for value in node.inputs[1:]]
        arrays = [a for a in fixed if a is not None and a.ndim == 1 and a.dtype == np.float32]
        if len(arrays) != 4 or len({a.size for a in arrays}) != 1:
            return None
        gamma, beta, mean, variance = arrays
        epsilon = float(node.attributes["epsilon"].value) if "epsilon" in node.attributes else 1e-5
        # A variance that makes the float model write NaN is left to say so there.
        if not np.all(variance.astype(np.float64) + epsilon > 0):
            return None
        norm = BatchNorm(gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=epsilon)
        spatial = len(dims) - 2
        ones = np.ones((gamma.size, 1, *[1] * spatial), np.float32)
        weight, bias = norm.fold(ones, None, axis=0)
        return _Layer(weight=weight, bias=bias, strides=(1,) * spatial, pads=(0,) * (2 * spatial), group=gamma.size)

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            layer = self._match(node)
            if layer is None:
                continue
            stale = list(node.inputs[1:])
            take_place(node, layer.insert(graph, node))
            drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a BatchNormalization with fixed statistics is left")


@final
class PoolToConv(CountingPass):
    """Writes AveragePool as a depthwise Conv whose weights are all 1 / (height * width) of its window.

    Where weights may have any code these are exact: the largest code, times its scale.
    Requires: a float32 input of rank 4 with a known number of channels; a window that divides by the same number
    everywhere, so padding counts or there is none. Ensures: no such AveragePool is left.
    """

    def _match(self, node: ir.Node) -> _Layer | None:
        if node.op_type != "AveragePool" or not is_standard(node) or int_attribute(node, "ceil_mode", 0):
            return None
        dims, kernel = _float_dims(node.inputs[0]), int_list(node, "kernel_shape")
        if dims is None or len(dims) != 4 or kernel is None or len(kernel) != 2:
            return None
        if any(step != 1 for step in int_list(node, "dilations") or ()):
            return None
        channels = dims[1]
        strides = int_list(node, "strides") or (1, 1)
        pads = _window_pads(node, dims[2:], kernel, strides)
        if channels is None or pads is None or (any(pads) and not int_attribute(node, "count_include_pad", 0)):
            return None
        weight = np.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]), np.float32)
        return _Layer(weight=weight, bias=None, strides=strides, pads=pads, group=channels)

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            layer = self._match(node)
            if layer is None:
                continue
            take_place(node, layer.insert(graph, node))
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("an AveragePool of a fixed window is left")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Subpixels:
    """A transposed convolution as a Conv that writes every phase of an output pixel side by side.

    Args:
      layer: The Conv; its channels are ordered (row in the phase, column in the phase, channel), of an input of open
        size with columns before rows.
      stride: Output pixels an input pixel, along either axis.
      height: Rows of the input, None where open.
      width: Columns of the input, None where open.
      channels: Channels of the output.
    """

    layer: _Layer
    stride: int
    height: int | None
    width: int | None
    channels: int


@final
class DeconvToConv(CountingPass):
    """Writes ConvTranspose as a Conv to stride * stride times the channels, then moves that interleave them.

    The moves are Transpose, Reshape, Transpose, Reshape, Transpose: they run on codes, and the outer ones fall
    together with those of runtimes that compute with channels last.
    Requires: fixed weight and bias, one group, no dilation, the stride 2, 3 or 4 along both axes, a float32 input of
    known rank, an output of just the stride times its height and width. Ensures: no such ConvTranspose is left.
    """

    def _match(self, node: ir.Node) -> _Subpixels | None:
        if node.op_type != "ConvTranspose" or not is_standard(node) or int_attribute(node, "group", 1) != 1:
            return None
        dims, weight = _float_dims(node.inputs[0]), constant_of(node.inputs[1])
        if dims is None or weight is None or weight.ndim != 4 or weight.dtype != np.float32:
            return None
        biased = len(node.inputs) > 2 and node.inputs[2] is not None
        bias = constant_of(node.inputs[2]) if biased else None
        if biased and (bias is None or bias.shape != weight.shape[1:2]):
            return None
        strides = int_list(node, "strides") or (1, 1)
        height, width = dims[2:]
        if strides[0] != strides[1] or strides[0] not in _SUBPIXEL_STRIDES:
            return None
        starts = _whole_starts(node, (weight.shape[2], weight.shape[3]), strides[0])
        if starts is None:
            return None
        return _Subpixels(
            layer=_phases(weight, bias, strides[0], starts, columns_first=height is None or width is None),
            stride=strides[0],
            height=height,
            width=width,
            channels=weight.shape[1],
        )

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = self._match(node)
            if found is None:
                continue
            stale = list(node.inputs[1:])
            _interleave(graph, node, found)
            drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a ConvTranspose that enlarges by its stride is left")


def _float_dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Returns the dimensions of a float32 tensor, None for those that are open; None for any other tensor."""
    if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _auto_pad(node: ir.Node) -> str:
    mode = node.attributes.get("auto_pad")
    return "NOTSET" if mode is None else str(mode.value)


def _window_pads(
    node: ir.Node, sizes: tuple[int | None, ...], kernel: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Returns starts and ends of the padding in numbers, None where they depend on a size that is not known.

    SAME: ceil(size / stride) windows, so (windows - 1) * stride + kernel - size in all, the odd one at the end (UPPER)
    or at the start (LOWER). At stride 1 that is kernel - 1 at any size.
    """
    mode = _auto_pad(node)
    if mode == "NOTSET":
        return int_list(node, "pads") or (0,) * (2 * len(kernel))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    small, large = [], []
    for size, length, stride in zip(sizes, kernel, strides, strict=True):
        if size is None and stride != 1:
            return None
        rest = 0 if size is None else (-(-size // stride) - 1) * stride - size
        whole = length - 1 if size is None else rest + length
        if whole < 0:
            return None  # gaps between the windows: ONNX Runtime refuses to run it
        small.append(whole // 2)
        large.append(whole - whole // 2)
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _whole_starts(node: ir.Node, kernel: tuple[int, int], stride: int) -> tuple[int, int] | None:
    """Returns the padding at both starts of a ConvTranspose whose output has the stride times its input's size.

    The output has stride * (size - 1) + kernel + output padding - pads rows, which is stride * size where
    kernel + output padding - pads = stride. As output padding is below the stride, a start is below the kernel then.
    None for any other.
    """
    mode = _auto_pad(node)
    if mode not in ("NOTSET", "VALID") or "output_shape" in node.attributes:
        return None  # the standard's text and runtimes have disagreed on which side gets the odd row
    if any(step != 1 for step in int_list(node, "dilations") or ()):
        return None
    pads = (int_list(node, "pads") if mode == "NOTSET" else None) or (0, 0, 0, 0)
    extra = int_list(node, "output_padding") or (0, 0)
    if min(pads) < 0 or min(extra) < 0 or max(extra) >= stride:
        return None
    whole = all(kernel[i] + extra[i] - pads[i] - pads[i + 2] == stride for i in (0, 1))
    return (pads[0], pads[1]) if whole else None


def _phases(
    weight: np.ndarray, bias: np.ndarray | None, stride: int, starts: tuple[int, int], *, columns_first: bool
) -> _Layer:
    """Returns the Conv that computes all phases of a transposed convolution.

    Along one axis output pixel o = stride * i + tap - start gets input pixel i times that tap. With
    tap - start = stride * q + phase, 0 <= phase < stride, it is phase ``phase`` of pixel i + q: seen from the output,
    the tap reads the input at distance -q. Every tap lands in one place; the places that none reaches are 0.
    """
    outputs, inputs = weight.shape[1], weight.shape[0]
    lows, highs = [], []
    for start, kernel in zip(starts, weight.shape[2:], strict=True):
        lows.append((kernel - 1 - start) // stride)
        highs.append(-(-start // stride))
    window = [low + high + 1 for low, high in zip(lows, highs, strict=True)]
    regrouped = np.zeros((stride, stride, outputs, inputs, *window), np.float32)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            y, row_phase = divmod(row - starts[0], stride)
            x, column_phase = divmod(column - starts[1], stride)
            regrouped[row_phase, column_phase, :, :, lows[0] - y, lows[1] - x] = weight[:, :, row, column].T
    if columns_first:
        regrouped = regrouped.swapaxes(0, 1)
    return _Layer(
        weight=regrouped.reshape(stride * stride * outputs, inputs, *window),
        bias=None if bias is None else np.tile(bias, stride * stride),
        strides=(1, 1),
        pads=(*lows, *highs),
        group=1,
    )


@final
class _Moves:
    """Writes operators that move elements in front of a node, each tensor with name, type and shape."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self._taken = {other.name for other in graph}

    def _name(self, what: str) -> str:
        """Returns a name that no node bears."""
        name, count = f"{self.node.name}_{what}", 1
        while name in self._taken:
            name, count = f"{self.node.name}_{what}_{count}", count + 1
        self._taken.add(name)
        return name

    def _after(self, move: ir.Node, what: str, dims: list[int | ir.SymbolicDim | None]) -> ir.Value:
        self.graph.insert_before(self.node, move)
        return self.named(move.outputs[0], what, dims)

    def named(self, value: ir.Value, what: str, dims: list[int | ir.SymbolicDim | None]) -> ir.Value:
        """Returns a new tensor, named after the node's output."""
        source = self.node.inputs[0]
        assert source is not None
        value.name = fresh_name(self.graph, f"{self.node.outputs[0].name}_{what}")
        value.shape, value.type = ir.Shape(dims), source.type
        return value

    def transpose(self, value: ir.Value, what: str, *perm: int) -> ir.Value:
        """Returns the tensor with its axes in another order."""
        assert value.shape is not None
        move = ir.node("Transpose", [value], attributes={"perm": perm}, name=self._name(what))
        return self._after(move, what, [value.shape[axis] for axis in perm])

    def reshape(self, value: ir.Value, what: str, *wanted: int) -> ir.Value:
        """Returns the tensor in another shape, in which 0 takes over a dimension as it is, and -1 follows."""
        assert value.shape is not None
        shape = add_initializer(self.graph, f"{self.node.name}_{what}_shape", np.array(wanted, dtype=np.int64))
        move = ir.node("Reshape", [value, shape], name=self._name(what))
        dims = [value.shape[i] if d == 0 else None if d == -1 else d for i, d in enumerate(wanted)]
        return self._after(move, what, dims)


def _interleave(graph: ir.Graph, node: ir.Node, found: _Subpixels) -> None:
    """Puts the Conv and the moves behind it in the place of a ConvTranspose.

    Of known size, both axes are interleaved at once, and channels come first again in one step. Of open size that would
    take a Reshape with two dimensions to follow: columns are interleaved first, then rows (a tenth to a third slower).
    """
    s, height, width, channels = found.stride, found.height, found.width, found.channels
    moves = _Moves(graph, node)
    assert node.inputs[0] is not None and node.inputs[0].shape is not None
    batch, _, rows, columns = node.inputs[0].shape
    phases = moves.named(found.layer.insert(graph, node), "phases", [batch, s * s * channels, rows, columns])
    last = moves.transpose(phases, "last", 0, 2, 3, 1)
    if height is not None and width is not None:
        split = moves.reshape(last, "split", 0, height, width, s, s * channels)
        turned = moves.transpose(split, "turned", 0, 1, 3, 2, 4)
        joined = moves.reshape(turned, "joined", 0, s * height, s * width, channels)
        first = moves.transpose(joined, "first", 0, 3, 1, 2)
    else:
        wide = moves.reshape(last, "split", 0, 0, -1 if width is None else s * width, s * channels)
        turned = moves.transpose(wide, "turned", 0, 2, 1, 3)
        joined = moves.reshape(turned, "joined", 0, 0, -1 if height is None else s * height, channels)
        first = moves.transpose(joined, "first", 0, 3, 2, 1)
    take_place(node, first)
