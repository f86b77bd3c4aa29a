"""A model stored in float16 becomes one that computes in float32: what CPUs do with it anyhow, between two casts each.

Rules of targets speak of float32. The inputs and outputs keep the type that the caller feeds and reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from fewbits.models.onnx.editing import fresh_name, is_standard

_HALF = ir.DataType.FLOAT16
_FLOAT = ir.DataType.FLOAT
# Attributes that name an element type.
_TYPE_ATTRIBUTES = ("to", "dtype")


@final
class HalvesToFloats(InPlacePass):
    """Makes float16 weights and inner tensors float32, with a Cast at float16 inputs and outputs.

    Requires: constants lifted to initializers. Ensures: no float16 initializer is left.
    """

    def call(self, model: ir.Model) -> PassResult:
        main = model.graph
        graphs = [main, *main.subgraphs()]
        if not any(_is_half(value) for graph in graphs for value in _values(graph)):
            return PassResult(model, modified=False)
        _cast_inputs(main)
        _cast_outputs(main)
        outside = {*main.inputs, *main.outputs}
        for graph in graphs:
            for value in _values(graph):
                if value not in outside and _is_half(value):
                    _widen(value)
            for node in graph:
                _retype(node, keep=any(output in outside for output in node.outputs))
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for graph in (model.graph, *model.graph.subgraphs()):
            if any(_is_half(value) for value in graph.initializers.values()):
                raise PostconditionError("a float16 initializer is left")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _is_half(value: ir.Value) -> bool:
    constant = value.const_value
    return value.dtype == _HALF or (constant is not None and constant.dtype == _HALF)


def _widen(value: ir.Value) -> None:
    value.type = ir.TensorType(_FLOAT)
    if value.const_value is not None and value.const_value.dtype == _HALF:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)


def _cast_inputs(graph: ir.Graph) -> None:
    for value in graph.inputs:
        if not _is_half(value):
            continue
        readers = [(use.node, use.idx) for use in value.uses()]
        cast = ir.node("Cast", [value], attributes={"to": int(_FLOAT)}, name=f"{value.name}_to_float")
        cast.outputs[0].name = fresh_name(graph, f"{value.name}_float")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_FLOAT), value.shape
        graph.insert_before(next(iter(graph)), cast)
        for node, index in readers:
            node.replace_input_with(index, cast.outputs[0])


def _cast_outputs(graph: ir.Graph) -> None:
    for place, value in enumerate(graph.outputs):
        if not _is_half(value) or value.is_graph_input():
            continue
        name = value.name
        value.name = fresh_name(graph, f"{name}_float")
        if value.is_initializer():
            graph.initializers.pop(name or "", None)
            graph.register_initializer(value)
        cast = ir.node("Cast", [value], attributes={"to": int(_HALF)}, name=f"{name}_to_half")
        made = cast.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(_HALF), value.shape
        graph.append(cast)
        graph.outputs[place] = made


def _retype(node: ir.Node, *, keep: bool) -> None:
    """Lets a node that names float16 as its result's type name float32, but for the casts at the outputs."""
    if not is_standard(node) or keep:
        return
    for name in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value == int(_HALF):
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    value = node.attributes.get("value")
    if value is not None and value.type.name == "TENSOR" and value.value.dtype == _HALF:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.value.numpy().astype(np.float32)))
