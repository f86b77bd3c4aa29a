"""Operators whose inputs are quantized as they come: DynamicQuantizeLinear, MatMulInteger, and the runtime's own LSTM.

The matrix products are operators of the standard; ONNX Runtime makes one kernel of them, with the bias behind it
(DynamicQuantizeMatMul; MatMulIntegerToFloat where several read the same codes). The LSTM is ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import onnx_ir as ir

from fewbits.models.onnx.editing import int_attribute, take_place
from fewbits.numerics.granularity import PerChannel
from fewbits.numerics.qtensor import QTensor

_DOMAIN = "com.microsoft"
_VERSION = 1
# Inputs of an LSTM: weights of the input and of the state; the runtime's operator wants scales and zero points behind.
_LSTM_WEIGHTS, _LSTM_INPUTS = (1, 2), 8


@final
class DynamicWriter:
    """Puts integer products with ranges of each run in the place of those that read a weight.

    Args:
      model: The model that is written.
      initializer: Makes a fixed tensor of a name's beginning and an array.
      name: Makes a name that nothing else bears from its beginning.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        initializer: Callable[[str, np.ndarray], ir.Value],
        name: Callable[[str], str],
    ) -> None:
        self._graph = model.graph
        self._imports = model.opset_imports
        self._initializer = initializer
        self._name = name
        self._codes: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._held: dict[tuple[str, bool], ir.Value] = {}
        self._gates: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._recurrent: dict[ir.Node, dict[int, QTensor]] = {}

    def write(self, weight: ir.Value, value: QTensor) -> None:
        """Replaces the readers of a weight; an LSTM when both of its weights have come."""
        for reader, index in tuple(weight.uses()):
            if reader.op_type == "LSTM":
                held = self._recurrent.setdefault(reader, {})
                held[index] = value
                if set(held) == set(_LSTM_WEIGHTS):
                    self._run_through(reader, held)
            else:
                self._multiply(reader, weight.name or "", value)

    def _multiply(self, old: ir.Node, name: str, value: QTensor) -> None:
        source = old.inputs[0]
        assert source is not None
        codes, scale, zero = self._quantized(source)
        base = old.name or name
        weight = self._weight(name, value, turned=old.op_type == "Gemm" and bool(int_attribute(old, "transB", 0)))
        steps = self._scales(name, value)
        product = ir.node("MatMulInteger", [codes, weight, zero], name=self._name(f"{base}_integer"))
        wide = ir.node(
            "Cast", [product.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)}, name=self._name(f"{base}_cast")
        )
        both = ir.node("Mul", [scale, steps], name=self._name(f"{base}_scales"))
        bias = old.inputs[2] if old.op_type == "Gemm" and len(old.inputs) > 2 else None
        scaled = ir.node("Mul", [wide.outputs[0], both.outputs[0]], name=self._name(f"{base}_scaled") if bias else base)
        made = [product, wide, both, scaled]
        if bias is not None:
            made.append(ir.node("Add", [scaled.outputs[0], bias], name=base))
        for node in made[:-1]:
            node.outputs[0].name = self._name(f"{node.name}_out")
        last = made[-1].outputs[0]
        last.shape, last.type = old.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
        self._graph.extend(made)
        take_place(old, last)

    def _quantized(self, source: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Returns the codes of a tensor with their scale and zero point; all that read the tensor share them."""
        if source not in self._codes:
            node = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=self._name(f"{source.name}_dynamic"))
            for output, ending in zip(node.outputs, ("codes", "scale", "zero"), strict=True):
                output.name = self._name(f"{source.name}_{ending}")
            self._graph.append(node)
            self._codes[source] = node.outputs[0], node.outputs[1], node.outputs[2]
        return self._codes[source]

    def _weight(self, name: str, value: QTensor, *, turned: bool) -> ir.Value:
        key = name, turned
        if key not in self._held:
            codes = np.asarray(value.codes)
            self._held[key] = self._initializer(f"{name}_q", np.ascontiguousarray(codes.T) if turned else codes)
        return self._held[key]

    def _scales(self, name: str, value: QTensor) -> ir.Value:
        key = f"{name} scales", False
        if key not in self._held:
            self._held[key] = self._initializer(f"{name}_s", np.asarray(value.scale, dtype=np.float32).reshape(-1))
        return self._held[key]

    def _turned(self, name: str, value: QTensor) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Returns codes, scales and zero points of an LSTM's weight as the runtime's operator wants them."""
        codes = np.ascontiguousarray(np.asarray(value.codes).transpose(0, 2, 1))
        scale, ways = np.asarray(value.scale, dtype=np.float32).reshape(1, -1), codes.shape[0]
        by_column = isinstance(value.scheme.granularity, PerChannel)
        scales = np.repeat(scale, ways, axis=0) if by_column else np.repeat(scale[0], ways)
        return (
            self._initializer(f"{name}_q", codes),
            self._initializer(f"{name}_s", scales),
            self._initializer(f"{name}_z", np.zeros(scales.shape, codes.dtype)),
        )

    def _run_through(self, old: ir.Node, held: dict[int, QTensor]) -> None:
        """Puts the runtime's LSTM in an LSTM's place: weights [directions, inputs, 4 * hidden], a scale a column."""
        self._imports[_DOMAIN] = _VERSION
        inputs = [*old.inputs, *[None] * (_LSTM_INPUTS - len(old.inputs))]
        behind: list[ir.Value | None] = []
        for index in _LSTM_WEIGHTS:
            value, was = held[index], old.inputs[index]
            assert was is not None
            if was not in self._gates:
                self._gates[was] = self._turned(was.name or "", value)
            inputs[index], *scales = self._gates[was]
            behind += scales
        attributes = [attribute for name, attribute in old.attributes.items() if name != "layout"]
        node = ir.Node(
            _DOMAIN, "DynamicQuantizeLSTM", [*inputs, *behind], attributes, num_outputs=len(old.outputs),
            name=old.name,
        )  # fmt: skip
        self._graph.append(node)
        for was, now in zip(old.outputs, node.outputs, strict=True):
            name, shape, kind = was.name, was.shape, was.type
            ir.convenience.replace_all_uses_with(was, now, replace_graph_outputs=True)
            was.name, now.name, now.shape, now.type = None, name, shape, kind
        self._graph.remove(old, safe=True)
