"""What keeps ONNX Runtime from multiplying by stored codes: a Relu or Clip behind the product.

Measured on 1.31.1: DequantizeLinear + MatMul or Gemm becomes MatMulNBits before Tanh, Sigmoid, Gelu, LeakyRelu, Max
and all else that was tried, but not before a Relu or a Clip that a node reads; its weight is dequantized at each run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fewbits.models.onnx.editing import take_place

_WHY = "Written so because behind a {op} ONNX Runtime dequantizes the weight at each run."


def clips_behind(product: ir.Node) -> list[ir.Node]:
    """Returns the Relu and Clip nodes that read a product, or the sum of it and a bias."""
    outputs = [product.outputs[0]]
    outputs += [node.outputs[0] for node in product.outputs[0].consumers() if node.op_type == "Add"]
    return [node for output in outputs for node in output.consumers() if node.op_type in ("Relu", "Clip")]


def hide_clip(
    node: ir.Node, initializer: Callable[[str, np.ndarray, ir.Graph | None], ir.Value], name: Callable[[str], str]
) -> None:
    """Turns a Relu into the Max of its input and 0, the same to the bit; puts a Sum of one before a Clip."""
    graph, source = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph) and source is not None
    if node.op_type == "Relu":
        zero = initializer(f"{node.name}_zero", np.zeros((), np.float32), graph)
        made = ir.node("Max", [source, zero], name=node.name)
        graph.insert_before(node, made)
        take_place(node, made.outputs[0])
    else:
        made = ir.node("Sum", [source], name=name(f"{node.name}_barrier"))
        made.outputs[0].name, made.outputs[0].shape = name(f"{source.name}_b"), source.shape
        made.outputs[0].type = source.type
        graph.insert_before(node, made)
        node.replace_input_with(0, made.outputs[0])
    made.doc_string = _WHY.format(op=node.op_type)
