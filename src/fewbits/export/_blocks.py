"""Weights in blocks, as ONNX Runtime's own operators read them: MatMulNBits, and GatherBlockQuantized for tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import final

import numpy as np
import onnx_ir as ir

from fewbits._base.packing import pack_bits
from fewbits.models.onnx.editing import take_place
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.packing import LAYOUTS
from fewbits.numerics.qtensor import QTensor

_DOMAIN = "com.microsoft"
_VERSION = 1
_LAYOUT = "ort-matmulnbits"


@final
class BlockWriter:
    """Puts the runtime's operators in the place of those that read a weight.

    Args:
      model: The model that is written.
      initializer: Makes a fixed tensor of a name's beginning and an array.
      name: Makes a name that nothing else bears from its beginning.
      accuracy_level: How exactly MatMulNBits computes: always written, since what holds without it is a hundred times
        slower in some widths.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        initializer: Callable[[str, np.ndarray], ir.Value],
        name: Callable[[str], str],
        accuracy_level: int,
    ) -> None:
        self._name = name
        self._imports = model.opset_imports
        self._initializer = initializer
        self._accuracy_level = accuracy_level

    def write(self, weight: ir.Value, value: QTensor) -> None:
        """Replaces the one reader of a weight."""
        self._imports[_DOMAIN] = _VERSION
        ((reader, _),) = weight.uses()
        if reader.op_type == "Gather":
            self._pick(reader, weight.name or "", value)
        else:
            self._multiply(reader, weight.name or "", value)

    def _multiply(self, old: ir.Node, name: str, value: QTensor) -> None:
        rows = _lying(value)
        packed = LAYOUTS[_LAYOUT].pack(rows)
        columns = rows.shape[1]
        inputs: list[ir.Value | None] = [old.inputs[0], *self._held(name, packed["B"], packed)]
        added = old.inputs[2] if old.op_type == "Gemm" and len(old.inputs) > 2 else None
        inside = added is not None and added.shape is not None and tuple(added.shape) == (rows.shape[0],)
        if inside:
            inputs += [None] * (5 - len(inputs)) + [added]
        attributes = {
            "K": columns,
            "N": rows.shape[0],
            "bits": value.scheme.format.stored_bits,
            "block_size": _size(value),
            "accuracy_level": self._accuracy_level,
        }
        node = ir.node("MatMulNBits", inputs, attributes=attributes, domain=_DOMAIN, name=old.name)
        if added is None or inside:
            self._replace(old, node)
            return
        behind = ir.node("Add", [node.outputs[0], added], name=self._name(f"{old.name}_add"))
        node.outputs[0].name = self._name(f"{old.outputs[0].name}_product")
        _graph_of(old).append(node)
        self._replace(old, behind)

    def _pick(self, old: ir.Node, name: str, value: QTensor) -> None:
        fmt = value.scheme.format
        assert isinstance(fmt, Int)
        shift = 1 << (fmt.bits - 1) if fmt.signed else 0
        codes = pack_bits((np.asarray(value.codes).astype(np.int16) + shift).astype(np.uint8), fmt.bits)
        tensors = {"scales": np.asarray(value.scale, dtype=np.float32)}
        if not value.scheme.symmetric:
            tensors["zero_points"] = pack_bits(np.asarray(value.zero_point).astype(np.uint8), fmt.bits)
        held = self._held(name, codes, tensors)
        attributes = {"bits": fmt.bits, "block_size": _size(value), "gather_axis": 0, "quantize_axis": 1}
        node = ir.node(
            "GatherBlockQuantized", [held[0], old.inputs[1], *held[1:]], attributes=attributes, domain=_DOMAIN,
            name=old.name,
        )  # fmt: skip
        self._replace(old, node)

    def _held(self, name: str, codes: np.ndarray, tensors: dict[str, np.ndarray]) -> list[ir.Value]:
        """Returns codes, scales and, where there are any, zero points as fixed tensors."""
        held = [self._initializer(f"{name}_q", np.asarray(codes)), self._initializer(f"{name}_s", tensors["scales"])]
        if "zero_points" in tensors:
            held.append(self._initializer(f"{name}_z", tensors["zero_points"]))
        return held

    def _replace(self, old: ir.Node, node: ir.Node) -> None:
        _graph_of(old).append(node)
        take_place(old, node.outputs[0])


def _graph_of(node: ir.Node) -> ir.Graph:
    """Returns the graph that a node stands in: a body of If, Loop or Scan, where it is inside one."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _size(value: QTensor) -> int:
    assert isinstance(value.scheme.granularity, PerGroup)
    return value.scheme.granularity.size


def _lying(value: QTensor) -> QTensor:
    """Returns a matrix [out, in] with its blocks along the last axis."""
    granularity = value.scheme.granularity
    assert isinstance(granularity, PerGroup)
    scheme = replace(value.scheme, granularity=PerGroup(axis=1, size=granularity.size))
    if granularity.axis == 1:
        return QTensor(codes=value.codes, params=replace(value.params, scheme=scheme))
    turned = replace(
        value.params, scheme=scheme, scale=np.asarray(value.scale).T, zero_point=np.asarray(value.zero_point).T
    )
    return QTensor(codes=np.asarray(value.codes).T, params=turned)
