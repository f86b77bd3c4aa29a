"""Files that are odd by their form: old exporters, control flow, functions, foreign operators, ties, halves, axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .writing import (
    BOOL,
    CLASSES,
    EXAMPLES,
    FLOAT,
    FLOAT16,
    INT64,
    Made,
    Net,
    classifier,
    finish,
    fitted,
    head,
    images,
    signals,
    tokens,
)


def old_exporter() -> Made:
    """Opset 8, IR version 3, batch 1: initializers listed as inputs, constant shapes, Dropout left in."""
    g = Net(seed=41, opset=8)
    x = g.input([1, 3, 24, 24])
    for cin, cout in ((3, 16), (16, 32)):
        x = g.relu(g.norm(g.conv(x, cin, cout), cout))
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Dropout", g.relu(g.conv(x, 32, 8)), ratio=0.5)
    features = g.op("Reshape", x, g.ints(1, 8 * 6 * 6), out="features")
    g.output(head(g, features, 8 * 6 * 6), shape=[1, CLASSES])
    made = fitted(finish(g, checked=False), images(seed=41), features=features, head="head")
    for tensor in made.model.graph.initializer:
        made.model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(made.model)
    return made


def old_classifier_opset9() -> Made:
    """Opset 9 as PyTorch wrote it: numbers for names, BatchNormalization, Gemm, a Flatten made of shape arithmetic."""
    g = Net(seed=42, opset=9)
    x = g.relu(g.norm(g.conv(g.input(["batch", 3, 24, 24], "0"), 3, 16, bias=False, strides=[2, 2]), 16))
    x = g.op("Clip", g.norm(g.conv(x, 16, 32, bias=False), 32), min=0.0, max=6.0)
    x = g.op("GlobalAveragePool", x)
    rows = g.op("Gather", g.op("Shape", x), g.const(0, dtype=np.int64), axis=0)
    shape = g.op("Concat", g.op("Unsqueeze", rows, axes=[0]), g.ints(-1), axis=0)
    features = g.op("Reshape", x, shape, out="features")
    g.output(head(g, features, 32), shape=["batch", CLASSES])
    return fitted(finish(g), images(seed=42, name="0"), features=features, head="head")


def _body(g: Any, name: str, output: str, *, inputs: Any = ()) -> onnx.GraphProto:
    made = helper.make_tensor_value_info(output, FLOAT, None)
    return helper.make_graph(g.nodes, name, list(inputs), [made], g.initializers)


def control_flow() -> Made:
    """A Conv, then an If and a Loop whose bodies hold weights."""
    g = Net(seed=43)
    x = g.relu(g.conv(g.input(["batch", 3, 24, 24]), 3, 16, strides=[2, 2]))
    x = g.relu(g.conv(x, 16, 32, strides=[2, 2]))
    x = g.op("Flatten", g.op("GlobalAveragePool", x))
    mean = g.op("ReduceMean", x, keepdims=0)
    then, other = Net(seed=44), Net(seed=45)
    for inner, tag in ((then, "then"), (other, "else")):
        inner.op(
            "MatMul",
            x,
            inner.const(inner.rng.standard_normal((32, 32)) / 6, f"{tag}_w"),
            name=f"{tag}_mul",
            out=f"{tag}_out",
        )
    x = g.op(
        "If",
        g.op("Greater", mean, g.const(-1e6)),
        then_branch=_body(then, "then", "then_out"),
        else_branch=_body(other, "else", "else_out"),
    )
    body = Net(seed=46)
    body.op(
        "Tanh", body.op("MatMul", "state", body.const(body.rng.standard_normal((32, 32)) / 5, "loop_w")), out="next"
    )
    body.op("Identity", "going", out="still_going")
    inputs = [
        helper.make_tensor_value_info("turn", INT64, []),
        helper.make_tensor_value_info("going", BOOL, []),
        helper.make_tensor_value_info("state", FLOAT, None),
    ]
    loop = helper.make_graph(
        body.nodes,
        "loop",
        inputs,
        [helper.make_tensor_value_info("still_going", BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
        body.initializers,
    )
    x = g.op("Loop", g.const(3, dtype=np.int64), g.const(True, dtype=np.bool_), x, body=loop)
    return classifier(g, x, 32, images(seed=43))


_DOMAIN = "bag.functions"


def functions() -> Made:
    """A layer and an activation are functions of the file, one of them calls the other."""
    opsets = [helper.make_opsetid("", 17)]
    act = helper.make_function(
        _DOMAIN,
        "Swish",
        ["x"],
        ["y"],
        [
            helper.make_node("Sigmoid", ["x"], ["s"], name="gate"),
            helper.make_node("Mul", ["x", "s"], ["y"], name="mul"),
        ],
        opsets,
    )
    layer = helper.make_function(
        _DOMAIN,
        "Layer",
        ["x", "w", "b"],
        ["y"],
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Swish", ["c"], ["y"], domain=_DOMAIN, name="act"),
        ],
        [*opsets, helper.make_opsetid(_DOMAIN, 1)],
    )
    g = Net(seed=47)
    g.imports.append(helper.make_opsetid(_DOMAIN, 1))
    x = g.input(["batch", 3, 24, 24])
    for cin, cout in ((3, 16), (16, 32), (32, 32)):
        x = g.op("Layer", x, g.weight(cout, cin, 3, 3), g.vector(cout), domain=_DOMAIN)
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    features = g.op("Flatten", g.op("GlobalAveragePool", x), out="features")
    g.output(head(g, features, 32), shape=["batch", CLASSES])
    return fitted(finish(g, functions=(act, layer)), images(seed=47), features=features, head="head")


def custom_domain() -> Made:
    """A node of a domain that ONNX Runtime has no kernel for."""
    g = Net(seed=48)
    g.imports.append(helper.make_opsetid("bag.plugins", 1))
    x = g.relu(g.conv(g.input(["batch", 3, 24, 24]), 3, 16, strides=[2, 2]))
    x = g.op("DeformableAttention", x, domain="bag.plugins", name="plugin")
    g.output(g.conv(x, 16, 8), shape=["batch", 8, 12, 12])
    arrays = images(seed=48)
    del arrays["labels"]
    return Made(model=finish(g), arrays=arrays)


def contrib_gelu() -> Made:
    """The runtime's own Gelu of com.microsoft between layers: it runs, and stays float."""
    g = Net(seed=49)
    g.imports.append(helper.make_opsetid("com.microsoft", 1))
    x = g.relu(g.gemm(g.input(["batch", 40]), 40, 96))
    x = g.op("Gelu", g.gemm(x, 96, 96), domain="com.microsoft", name="contrib_gelu")
    x = g.relu(g.gemm(x, 96, 64))
    return classifier(g, x, 64, signals((40,), seed=49))


def tied() -> Made:
    """A language model in small: the table that looks words up also scores them; nodes without and with equal names."""
    g = Net(seed=50)
    ids = g.input(["batch", 12], "ids", INT64)
    table = g.const(g.rng.standard_normal((64, 32)) / 2, "table")
    x = g.op("Gather", table, ids, axis=0)
    for _ in range(2):
        weight = numpy_helper.from_array((g.rng.standard_normal((32, 32)) * 0.25).astype(np.float32))
        y = g.op("MatMul", x, g.op("Constant", value=weight))
        x = g.op("Add", x, g.relu(g.op("Add", y, g.vector(32))))
    x = g.op("ReduceMean", x, axes=[1], keepdims=0)
    g.output(g.op("MatMul", x, g.op("Transpose", table, perm=[1, 0]), out="logits"), shape=["batch", 64])
    model = finish(g)
    for number, node in enumerate(model.graph.node):
        node.name = "" if number % 2 else "same"
    return Made(model=model, arrays={"ids": tokens(64, 12, seed=50)[0]})


def halves() -> Made:
    """Inputs, weights and everything between in float16."""
    g = Net(seed=51)
    x = g.input(["batch", 3, 24, 24], dtype=FLOAT16)
    for cin, cout in ((3, 16), (16, 32), (32, 32)):
        w = g.const(g.rng.standard_normal((cout, cin, 3, 3)) * np.sqrt(2 / (9 * cin)), dtype=np.float16)
        b = g.const(0.1 * g.rng.standard_normal(cout), dtype=np.float16)
        x = g.relu(g.op("Conv", x, w, b, pads=[1, 1, 1, 1], strides=[2, 2]))
    features = g.op("Flatten", g.op("GlobalAveragePool", x), out="features")
    g.output(head(g, features, 32, dtype=np.float16), dtype=FLOAT16, shape=["batch", CLASSES])
    return fitted(finish(g), signals((3, 24, 24), seed=51, dtype=np.float16), features=features, head="head")


def one_picture() -> Made:
    """The input is one gray picture, a matrix: no axis counts examples."""
    g = Net(seed=52)
    x = g.op("Unsqueeze", g.input([24, 24], "picture"), g.ints(0, 1))
    x = g.relu(g.conv(x, 1, 16, strides=[2, 2]))
    x = g.relu(g.conv(x, 16, 32, strides=[2, 2]))
    features = g.op("Flatten", g.op("GlobalAveragePool", x), out="features")
    logits = head(g, features, 32)
    g.output(g.op("Squeeze", logits, g.ints(0), out="scores"), shape=[CLASSES])
    return fitted(finish(g), signals((24, 24), seed=52, name="picture"), features=features, head="head")


def one_vector() -> Made:
    """The input is one vector of measurements, and so is the output."""
    g = Net(seed=53)
    x = g.op("Unsqueeze", g.input([40], "measured"), g.ints(0))
    x = g.relu(g.gemm(x, 40, 96))
    x = g.relu(g.gemm(x, 96, 96))
    g.output(g.op("Squeeze", g.gemm(x, 96, 8), g.ints(0), out="forecast"), shape=[8])
    arrays = signals((40,), seed=53, name="measured")
    del arrays["labels"]
    return Made(model=finish(g), arrays=arrays)


def fixed_batch() -> Made:
    """The batch is four, and 300 examples are no obstacle where 4 divides them or not."""
    g = Net(seed=54)
    x = g.input([4, 3, 24, 24])
    for cin, cout in ((3, 16), (16, 32)):
        x = g.relu(g.conv(x, cin, cout, strides=[2, 2]))
    features = g.op("Reshape", g.op("GlobalAveragePool", x), g.ints(4, 32), out="features")
    g.output(head(g, features, 32), shape=[4, CLASSES])
    return fitted(finish(g), images(seed=54), features=features, head="head")


def external_data() -> Made:
    """Two inputs, two outputs, the weights in a second file."""
    g = Net(seed=55)
    left = g.relu(g.conv(g.input(["batch", 3, 24, 24], "picture"), 3, 16, strides=[2, 2]))
    left = g.op("Flatten", g.op("GlobalAveragePool", g.relu(g.conv(left, 16, 32))))
    right = g.relu(g.gemm(g.input(["batch", 10], "facts"), 10, 32))
    features = g.op("Relu", g.gemm(g.op("Concat", left, right, axis=1), 64, 64), out="features")
    g.output(head(g, features, 64), shape=["batch", CLASSES])
    g.output(g.op("Tanh", g.gemm(features, 64, 4), out="direction"), shape=["batch", 4])
    facts = np.random.default_rng(55).standard_normal((EXAMPLES, 10)).astype(np.float32)
    pictures = images(seed=55, name="picture")
    return fitted(finish(g), pictures | {"facts": facts}, features=features, head="head")
