"""Graphs that are no graphs of a network: circles, depths, masses, functions that never end, attributes that lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from attacks.case import INERT, REFUSED, RESOURCES, Case
from attacks.parts import (
    CLASSES,
    OPSET,
    WIDTH,
    any_size,
    constant,
    field,
    graph,
    honest,
    info,
    layers,
    model,
    save,
    vector,
    weights,
)

_NO = frozenset({REFUSED})
_NO_OR_LARGE = frozenset({REFUSED, RESOURCES})
_ANY = INERT | _NO
Make = Callable[[Path], Path]
node = helper.make_node


def _edited(edit: Callable[[ModelProto], Any]) -> Make:
    """Returns what writes the honest net after an edit."""

    def write(folder: Path) -> Path:
        proto = honest()
        edit(proto)
        return save(folder, proto)

    return write


def _of(*nodes: NodeProto, held: Sequence[TensorProto] = (), **more: Any) -> Make:
    """Returns what writes these nodes in front of the honest net, or a net that has them alone."""

    def write(folder: Path) -> Path:
        base, tensors = layers()
        return save(folder, model(graph([*nodes, *base], [*tensors, *held], **more)))

    return write


# --- circles, depth, mass --------------------------------------------------------------------------------------------


def _circle(folder: Path) -> Path:
    nodes = [
        node("Relu", ["b"], ["a"], name="one"),
        node("Relu", ["a"], ["b"], name="two"),
        node("Add", ["x", "b"], ["y"]),
    ]
    return save(folder, model(graph(nodes, [], [info("y", ["N", WIDTH])])))


def _itself(folder: Path) -> Path:
    nodes = [node("Add", ["x", "y"], ["y"], name="self")]
    return save(folder, model(graph(nodes, [], [info("y", ["N", WIDTH])])))


def _long_circle(folder: Path) -> Path:
    nodes = [node("Relu", [f"t{i}"], [f"t{(i + 1) % 50_000}"], name=f"n{i}") for i in range(50_000)]
    nodes.append(node("Add", ["x", "t0"], ["y"]))
    return save(folder, model(graph(nodes, [], [info("y", ["N", WIDTH])])))


def _deep(depth: int) -> Make:
    """Returns what writes an If inside an If inside an If …, put together as bytes: libraries refuse to build it."""

    def choice(result: str, inside: bytes) -> bytes:
        body = field(1, b"yes") + field(2, result.encode()) + field(3, result.encode()) + field(4, b"If")
        other = _leaf().SerializeToString()
        for name, branch in ((b"then_branch", inside), (b"else_branch", other)):
            body += field(5, field(1, name) + field(6, branch) + b"\xa0\x01\x05")
        return field(1, body)

    def write(folder: Path) -> Path:
        inside = _leaf().SerializeToString()
        for level in range(depth):
            name = f"level{level}"
            inside = choice(name, inside) + field(2, name.encode()) + field(12, field(1, name.encode()))
        rest = _and_layers([], [constant("yes", True, bool)], "deep").SerializeToString()
        path = folder / "model.onnx"
        path.write_bytes(field(7, choice("deep", inside)) + rest)  # two graphs in a row are merged, in this order
        return path

    return write


def _leaf() -> GraphProto:
    return helper.make_graph([node("Identity", ["x"], ["other"])], "other", [], [info("other", None)])


def _and_layers(nodes: Sequence[NodeProto], held: Sequence[TensorProto], source: str) -> ModelProto:
    base, tensors = layers(source)
    return model(graph([*nodes, *base], [*tensors, *held]))


def _chain(count: int) -> Make:
    def write(folder: Path) -> Path:
        nodes = [node("Relu", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(count)]
        return save(folder, _and_layers(nodes, [], f"t{count}"))

    return write


def _backwards(folder: Path) -> Path:
    """A chain of 20,000 nodes that stands in the file from its end to its begin."""
    nodes = [node("Relu", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(20_000)]
    return save(folder, _and_layers(nodes[::-1], [], "t20000"))


def _many_tensors(folder: Path) -> Path:
    held = [constant(f"c{i}", [1.0]) for i in range(100_000)]
    return _of(held=held)(folder)


def _wide_split(folder: Path) -> Path:
    names = [f"p{i}" for i in range(100_000)]
    nodes = [node("Split", ["long"], names, name="split", axis=0), node("Identity", ["p0"], ["extra"])]
    return _of(*nodes, held=[constant("long", np.zeros(100_000))])(folder)


def _many_outputs(folder: Path) -> Path:
    nodes, held = layers()
    names = [f"o{i}" for i in range(20_000)]
    nodes += [node("Relu", ["y"], [name], name=name) for name in names]
    outputs = [info("y", ["N", CLASSES]), *(any_size(name, 2) for name in names)]
    return save(folder, model(graph(nodes, held, outputs)))


# --- functions -------------------------------------------------------------------------------------------------------


def _function(name: str, calls: Sequence[str], domain: str = "local") -> FunctionProto:
    steps = ["in", *(f"s{i}" for i in range(len(calls) - 1)), "out"]
    nodes = [
        node(call, [a], [b], domain="" if call == "Relu" else domain)
        for call, a, b in zip(calls, steps, steps[1:], strict=False)
    ]
    return helper.make_function(
        domain, name, ["in"], ["out"], nodes, [helper.make_opsetid("", OPSET), helper.make_opsetid(domain, 1)]
    )


def _calling(first: str, *functions: FunctionProto) -> Make:
    def write(folder: Path) -> Path:
        base, held = layers("f")
        proto = model(graph([node(first, ["x"], ["f"], domain="local", name="call"), *base], held), functions=functions)
        proto.opset_import.add(domain="local", version=1)
        return save(folder, proto)

    return write


def _self_in_branch(folder: Path) -> Path:
    """A function that calls itself inside a branch of an If."""
    branch = helper.make_graph([node("F", ["in"], ["b"], domain="local")], "b", [], [info("b", None)])
    stop = helper.make_graph([node("Identity", ["in"], ["c"])], "c", [], [info("c", None)])
    yes = node("Constant", [], ["yes"], value=constant("v", True, bool))
    choice = node("If", ["yes"], ["out"], then_branch=branch, else_branch=stop)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("local", 1)]
    return _calling("F", helper.make_function("local", "F", ["in"], ["out"], [yes, choice], opsets))(folder)


def _exponential(calls: int) -> list[FunctionProto]:
    return [_function(f"F{i}", [f"F{i + 1}"] * calls) for i in range(30)] + [_function("F30", ["Relu"])]


def _row(count: int) -> list[FunctionProto]:
    return [_function(f"F{i}", [f"F{i + 1}"]) for i in range(count)] + [_function(f"F{count}", ["Relu"])]


def _hiding(folder: Path) -> Path:
    """A function of the standard domain that takes the name of an operator."""
    base, held = layers()
    proto = model(graph(base, held), functions=[_function("MatMul", ["Relu"], domain="")])
    return save(folder, proto)


# --- attributes and types --------------------------------------------------------------------------------------------


def _conv(**attributes: object) -> Make:
    def write(folder: Path) -> Path:
        nodes = [
            node("Reshape", ["x", "shape"], ["image"], name="image"),
            node("Conv", ["image", "w"], ["c"], name="conv", **attributes),
            node("GlobalAveragePool", ["c"], ["y"], name="pool"),
        ]
        held = [vector("shape", -1, 1, 4, 4), constant("w", weights(CLASSES, 1, 3, 3))]
        return save(folder, model(graph(nodes, held, [info("y", ["N", CLASSES, 1, 1])])))

    return write


def _op(
    kind: str, held: Sequence[TensorProto] = (), inputs: Sequence[str] = ("y",), rank: int = 2, **attributes: object
) -> Make:
    """Returns what writes the honest net with one odd operator behind it."""

    def write(folder: Path) -> Path:
        nodes, tensors = layers()
        nodes.append(node(kind, list(inputs), ["extra"], name="odd", **attributes))
        return save(
            folder, model(graph(nodes, [*tensors, *held], [info("y", ["N", CLASSES]), any_size("extra", rank)]))
        )

    return write


def _sliced(begin: int, end: int, step: int) -> Make:
    held = [vector("begin", begin), vector("end", end), vector("axis", 0), vector("step", step)]
    return _op("Slice", held, ("y", "begin", "end", "axis", "step"))


def _branches(then: Sequence[NodeProto], other: Sequence[NodeProto], kinds: tuple[int, int]) -> Make:
    graphs = [helper.make_graph(list(nodes), name, [], [info(name, None, kind)])
              for nodes, name, kind in ((then, "t", kinds[0]), (other, "e", kinds[1]))]  # fmt: skip
    made = node("If", ["yes"], ["chosen"], name="choice", then_branch=graphs[0], else_branch=graphs[1])
    return lambda folder: save(folder, _and_layers([made], [constant("yes", True, bool)], "chosen"))


def _no_else(folder: Path) -> Path:
    made = node("If", ["yes"], ["chosen"], name="choice", then_branch=_leaf())
    return save(folder, _and_layers([made], [constant("yes", True, bool)], "chosen"))


def _attribute(**fields: object) -> Callable[[ModelProto], Any]:
    return lambda proto: proto.graph.node[1].attribute.append(AttributeProto(**fields))  # type: ignore[arg-type]


def _opset(*entries: tuple[str, int]) -> Callable[[ModelProto], None]:
    def edit(proto: ModelProto) -> None:
        del proto.opset_import[:]
        for domain, version in entries:
            proto.opset_import.add(domain=domain, version=version)

    return edit


def _node(**fields: Any) -> Callable[[ModelProto], None]:
    """Returns the edit that changes fields of the second node."""

    def edit(proto: ModelProto) -> None:
        for key, value in fields.items():
            if isinstance(value, list):
                getattr(proto.graph.node[1], key)[:] = value
            else:
                setattr(proto.graph.node[1], key, value)

    return edit


def _ir(version: int) -> Callable[[ModelProto], None]:
    return lambda proto: setattr(proto, "ir_version", version)


def _clear(field: str) -> Callable[[ModelProto], Any]:
    return lambda proto: (proto.graph if field in ("output", "input", "node") else proto).ClearField(field)


def _many_properties(proto: ModelProto) -> None:
    for i in range(100_000):
        proto.metadata_props.add(key=f"k{i}", value="v" * 100)


_BIG = 2**62
CASES = [
    Case(name=f"graphs/{name}", kind="model", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("circle-2", _NO, _circle, "two nodes feed each other"),
        ("circle-1", _NO, _itself, "a node feeds itself"),
        ("circle-50000", _NO, _long_circle, ""),
        ("depth-25", _ANY, _deep(24), "an If in an If"),
        ("depth-35", _NO, _deep(34), ""),
        ("depth-100", _NO, _deep(100), ""),
        ("depth-400", _NO, _deep(400), ""),
        ("chain-2000", _ANY, _chain(2000), ""),
        ("chain-100000", _ANY | _NO_OR_LARGE, _chain(100_000), ""),
        ("chain-250000", _NO, _chain(250_000), ""),
        ("backwards", _ANY | _NO_OR_LARGE, _backwards, "a chain of 20,000 nodes, the last one first"),
        ("inputs-100000", _ANY | _NO_OR_LARGE, _of(node("Sum", ["x"] * 100_000, ["s"], name="wide")), "of one node"),
        ("outputs-100000", _ANY | _NO_OR_LARGE, _wide_split, "of one node"),
        ("tensors-100000", _ANY | _NO_OR_LARGE, _many_tensors, ""),
        ("graph-outputs-20000", _ANY | _NO_OR_LARGE, _many_outputs, ""),
        ("properties-100000", _ANY, _edited(_many_properties), ""),
        ("function-itself", _NO, _calling("F", _function("F", ["F"])), ""),
        ("function-pair", _NO, _calling("F", _function("F", ["G"]), _function("G", ["F"])), ""),
        ("function-in-branch", _NO, _self_in_branch, "calls itself inside an If"),
        ("function-doubles", _NO, _calling("F0", *_exponential(2)), "30 functions, each calls the next twice"),
        ("function-tenfold", _NO, _calling("F0", *_exponential(10)), "10^30 nodes"),
        ("function-row-500", _ANY, _calling("F0", *_row(500)), "each calls the next"),
        ("function-row-5000", _ANY, _calling("F0", *_row(5000)), ""),
        ("function-twice", _NO, _calling("F", _function("F", ["Relu"]), _function("F", ["Relu", "Relu"])), ""),
        ("function-hides", _ANY, _hiding, "takes the name of a standard operator"),
        ("branch-types", _NO, _branches([node("Relu", ["x"], ["t"])], [node("Cast", ["x"], ["e"], to=7)], (1, 7)),
         "float in one, int64 in the other"),
        ("branch-missing", _NO, _no_else, "an If without else"),
        ("branch-empty", _NO, _branches([], [], (1, 1)), ""),
        ("conv-strides-text", _NO, _conv(strides=["a", "b"]), ""),
        ("conv-strides-float", _NO, _conv(strides=[1.5, 1.5]), ""),
        ("conv-strides-0", _NO, _conv(strides=[0, 0]), "division by 0"),
        ("conv-strides-huge", _ANY, _conv(strides=[_BIG, _BIG]), ""),
        ("conv-kernel-huge", _NO, _conv(kernel_shape=[_BIG, _BIG]), "2^62"),
        ("conv-kernel-0", _NO, _conv(kernel_shape=[0, 0]), ""),
        ("conv-pads-negative", _NO, _conv(pads=[-_BIG] * 4), "-2^62"),
        ("conv-pads-huge", _NO_OR_LARGE, _conv(pads=[_BIG] * 4), "2^62"),
        ("conv-pads-6-gb", _NO_OR_LARGE, _conv(pads=[20_000] * 4), ""),
        ("conv-dilations-huge", _NO, _conv(dilations=[_BIG, _BIG]), ""),
        ("conv-dilations-0", _ANY, _conv(dilations=[0, 0]), ""),
        ("conv-group-0", _NO, _conv(group=0), ""),
        ("conv-group-negative", _NO, _conv(group=-1), ""),
        ("conv-group-huge", _NO, _conv(group=_BIG), ""),
        ("pool-kernel-huge", _NO_OR_LARGE, _op("MaxPool", kernel_shape=[_BIG]), ""),
        ("reshape-huge", _NO_OR_LARGE, _op("Reshape", [vector("s", 2**40, 2**40)], ("y", "s")), ""),
        ("reshape-negative", _NO, _op("Reshape", [vector("s", -1, -1)], ("y", "s")), ""),
        ("gather-outside", _NO, _op("Gather", [vector("s", 10**12)], ("y", "s")), ""),
        ("transpose-twice", _NO, _op("Transpose", perm=[0, 0]), "one axis two times"),
        ("softmax-axis-huge", _ANY, _op("Softmax", axis=_BIG), ""),
        ("concat-axis-huge", _NO, _op("Concat", inputs=("y", "y"), axis=_BIG), ""),
        ("slice-step-0", _NO, _sliced(0, 9, 0), ""),
        ("slice-huge", _ANY, _sliced(-_BIG, _BIG, 1), ""),
        ("topk-huge", _NO_OR_LARGE, _op("TopK", [vector("k", 2**40)], ("y", "k")), ""),
        ("cast-nowhere", _NO, _op("Cast", to=9999), ""),
        ("unsqueeze-many", _NO, _op("Unsqueeze", [vector("a", *range(2, 300))], ("y", "a"), 300), "300 axes"),
        ("attribute-nameless", _NO, _edited(_attribute(type=AttributeProto.INT, i=1)), ""),
        ("attribute-unknown", _ANY, _edited(_attribute(name="__class__", type=AttributeProto.STRING, s=b"x")), ""),
        ("attribute-typeless", _NO, _edited(_attribute(name="a", i=1)), ""),
        ("attribute-reference", _NO, _edited(_attribute(name="a", ref_attr_name="b", type=2)), "outside of a function"),
        ("attribute-two-values", _NO, _edited(_attribute(name="alpha", type=1, f=1.0, s=b"x")), ""),
        ("opset-2-31", _NO, _edited(_opset(("", 2**31))), ""),
        ("opset-2-62", _NO, _edited(_opset(("", _BIG))), ""),
        ("opset-0", _NO, _edited(_opset(("", 0))), ""),
        ("opset-negative", _NO, _edited(_opset(("", -7))), ""),
        ("opset-missing", _NO, _edited(_opset()), ""),
        ("opset-other-only", _NO, _edited(_opset(("com.microsoft", 1))), ""),
        ("opset-twice", _ANY, _edited(_opset(("", 17), ("", 11))), "one domain, two versions"),
        ("opset-two-names", _ANY, _edited(_opset(("", 17), ("ai.onnx", 1))), ""),
        ("opset-many", _ANY, _edited(_opset(("", 17), *((f"d{i}", 1) for i in range(50_000)))), "50,001 domains"),
        ("ir-999", _NO, _edited(_ir(999)), ""),
        ("ir-0", _NO, _edited(_ir(0)), ""),
        ("ir-negative", _NO, _edited(_ir(-1)), ""),
        ("ir-missing", _NO, _edited(_clear("ir_version")), ""),
        ("no-outputs", _NO, _edited(_clear("output")), ""),
        ("no-inputs", _NO, _edited(_clear("input")), ""),
        ("no-nodes", _NO, _edited(_clear("node")), ""),
        ("no-graph", _NO, _edited(_clear("graph")), ""),
        ("output-nowhere", _NO, _edited(lambda p: setattr(p.graph.output[0], "name", "nobody")), "nobody makes it"),
        ("output-twice", _ANY, _edited(lambda p: p.graph.output.append(p.graph.output[0])), ""),
        ("input-twice", _ANY, _edited(lambda p: p.graph.input.append(p.graph.input[0])), ""),
        ("tensor-made-twice", _NO, _edited(_node(output=["h"])), "by two nodes"),
        ("input-nowhere", _NO, _edited(_node(input=["nobody"])), ""),
        ("op-nameless", _NO, _edited(_node(op_type="")), ""),
        ("op-unknown", _NO, _edited(_node(op_type="NoSuchOperator")), ""),
        ("op-custom", _ANY, _edited(_node(domain="evil.corp")), "a domain that nothing registers"),
        ("op-python", _NO, _edited(_node(domain="ai.onnx.contrib", op_type="PyOp")), "an operator that runs Python"),
        ("inputs-too-many", _NO, _edited(_node(input=["h", "h", "h"])), ""),
        ("inputs-none", _NO, _edited(_node(input=[])), ""),
        ("outputs-none", _NO, _edited(_node(output=[])), ""),
        ("value-without-type", _ANY, _edited(lambda p: p.graph.input[0].ClearField("type")), "an input"),
        ("value-sequence", _NO, _edited(lambda p: p.graph.input[0].type.sequence_type.elem_type.tensor_type.__setattr__(
            "elem_type", TensorProto.FLOAT)), "an input that is a sequence"),
    ]
]  # fmt: skip
