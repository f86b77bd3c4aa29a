"""A few bytes that ask for gigabytes or for ever: as constants that a tool would fold, and computed at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from attacks.case import INERT, REFUSED, RESOURCES, Case
from attacks.parts import CLASSES, WIDTH, constant, graph, info, layers, model, save, scalar, vector, with_extra

_NO = frozenset({RESOURCES, REFUSED})
_ANY = INERT | _NO
# Elements: 6.4 GB of floats, which many machines have, and 4 TB, which none has.
_LARGE, _ENDLESS = 1_600_000_000, 2**40
Parts = tuple[list[NodeProto], list[TensorProto]]
node = helper.make_node


def _filled(count: int) -> Parts:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    return [node("ConstantOfShape", ["n"], ["extra"], name="bomb", value=value)], [vector("n", count)]


def _tile(count: int) -> Parts:
    return [node("Tile", ["one", "n"], ["extra"], name="bomb")], [constant("one", [1.0]), vector("n", count)]


def _expand(count: int) -> Parts:
    return [node("Expand", ["one", "n"], ["extra"], name="bomb")], [constant("one", [1.0]), vector("n", count)]


def _range(count: int) -> Parts:
    held = [constant("a", 0.0), constant("n", float(count)), constant("b", 1.0)]
    return [node("Range", ["a", "n", "b"], ["extra"], name="bomb")], held


def _pad(count: int) -> Parts:
    return [node("Pad", ["one", "n"], ["extra"], name="bomb")], [constant("one", [1.0]), vector("n", 0, count)]


def _resize(count: int) -> Parts:
    side = int(count**0.5)
    held = [constant("one", [[[[1.0]]]]), vector("n", 1, 1, side, side)]
    return [node("Resize", ["one", "", "", "n"], ["extra"], name="bomb", mode="nearest")], held


def _one_hot(count: int) -> Parts:
    held = [vector("i", 0), scalar("n", count), constant("v", [0.0, 1.0])]
    return [node("OneHot", ["i", "n", "v"], ["extra"], name="bomb")], held


def _outer(kind: str) -> Callable[[int], Parts]:
    def parts(count: int) -> Parts:
        side = 40_000 if count == _LARGE else 100_000  # the file must hold them; 100,000 squared are 40 GB
        long = constant("long", np.ones(side))
        if kind == "Einsum":
            return [node("Einsum", ["long", "long"], ["extra"], name="bomb", equation="i,j->ij")], [long]
        a, b = constant("tall", np.ones((side, 1))), constant("wide", np.ones((1, side)))
        return [node(kind, ["tall", "wide"], ["extra"], name="bomb")], [a, b]

    return parts


def _einsum_power(count: int) -> Parts:
    """A product of one vector with itself, eight times: 32^8 elements from 128 bytes."""
    equation = "a,b,c,d,e,f,g,h->abcdefgh"
    return [node("Einsum", ["v"] * 8, ["extra"], name="bomb", equation=equation)], [constant("v", np.ones(32))]


def _convolution(count: int) -> Parts:
    held = [constant("one", [[[1.0]]]), constant("w", [[[1.0]]])]
    return [node("Conv", ["one", "w"], ["extra"], name="bomb", pads=[0, count])], held


def _transposed(count: int) -> Parts:
    held = [constant("one", [[[1.0, 1.0]]]), constant("w", [[[1.0]]])]
    return [node("ConvTranspose", ["one", "w"], ["extra"], name="bomb", strides=[count])], held


def _random(count: int) -> Parts:
    return [node("RandomNormal", [], ["extra"], name="bomb", shape=[count])], []


def _window(count: int) -> Parts:
    return [node("HannWindow", ["n"], ["extra"], name="bomb")], [scalar("n", count)]


def _eye(count: int) -> Parts:
    side = int(count**0.5)
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    return [
        node("ConstantOfShape", ["n"], ["row"], name="first", value=value),
        node("Expand", ["row", "m"], ["extra"], name="bomb"),
    ], [vector("n", 1, side), vector("m", side, 1)]


def _doubling(count: int) -> Parts:
    """Forty Concats of a tensor with itself."""
    nodes = [node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], name=f"double{i}", axis=0) for i in range(40)]
    return [*nodes, node("Identity", ["d40"], ["extra"], name="bomb")], [constant("d0", [1.0])]


_FOLDED: dict[str, Callable[[int], Parts]] = {
    "ConstantOfShape": _filled, "Tile": _tile, "Expand": _expand, "Range": _range, "Pad": _pad, "Resize": _resize,
    "OneHot": _one_hot, "Einsum": _outer("Einsum"), "MatMul": _outer("MatMul"), "Mul": _outer("Mul"),
    "Einsum-power": _einsum_power, "Conv-pads": _convolution, "ConvTranspose": _transposed, "RandomNormal": _random,
    "HannWindow": _window, "ConstantOfShape-Expand": _eye, "Concat-doubling": _doubling,
}  # fmt: skip
_SIZELESS = {"Einsum-power", "Concat-doubling"}


# Axes of the result, where it has more than one.
_RANKS = {
    "Resize": 4, "OneHot": 2, "Einsum": 2, "MatMul": 2, "Mul": 2, "Einsum-power": 8, "Conv-pads": 3,
    "ConvTranspose": 3, "ConstantOfShape-Expand": 2,
}  # fmt: skip


def _fixed(kind: str, count: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nodes, held = _FOLDED[kind](count)
        return save(folder, with_extra(nodes, held, rank=_RANKS.get(kind, 1)))

    return write


def _counted(source: str = "x") -> tuple[list[NodeProto], list[TensorProto]]:
    """Returns nodes that compute 0 from the input, as a whole number in ``zero``, which nobody can fold."""
    return [
        node("ReduceMax", [source], ["top"], name="top", keepdims=0),
        node("Clip", ["top", "low", "low"], ["none"], name="none"),
        node("Cast", ["none"], ["zero"], name="cast", to=TensorProto.INT64),
    ], [constant("low", 0.0)]


def _computed(kind: str, count: int) -> Callable[[Path], Path]:
    """Returns what writes a bomb whose size is computed from the input."""

    def write(folder: Path) -> Path:
        nodes, held = _counted()
        nodes.append(node("Add", ["zero", "count"], ["n"], name="count"))
        held.append(vector("count", count))
        if kind == "ConstantOfShape":
            nodes.append(node("ConstantOfShape", ["n"], ["extra"], name="bomb"))
        elif kind in ("Tile", "Expand"):
            nodes.append(node(kind, ["one", "n"], ["extra"], name="bomb"))
            held.append(constant("one", [1.0]))
        else:
            nodes.append(node("Squeeze", ["n"], ["end"], name="squeeze"))
            nodes.append(node("Range", ["start", "end", "step"], ["extra"], name="bomb"))
            held += [scalar("start", 0), scalar("step", 1)]
        return save(folder, with_extra(nodes, held, kind=TensorProto.INT64 if kind == "Range" else TensorProto.FLOAT))

    return write


# --- loops -----------------------------------------------------------------------------------------------------------


def _loop(
    body: Sequence[NodeProto], trips: int | None, *, carried: str = "x", held: Sequence[TensorProto] = ()
) -> Callable[[Path], Path]:
    """Returns what writes a Loop whose body makes ``next`` from ``this``."""

    def write(folder: Path) -> Path:
        inner = helper.make_graph(
            [node("Identity", ["go"], ["go_on"], name="go_on"), *body],
            "body",
            [info("turn", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("this", None)],
            [info("go_on", [], TensorProto.BOOL), info("next", None)],
        )
        tensors = [constant("yes", True, bool), *held]
        if trips is not None:
            tensors.append(scalar("trips", trips))
        loop = node("Loop", ["" if trips is None else "trips", "yes", carried], ["extra"], name="loop", body=inner)
        return save(folder, with_extra([loop], tensors, rank=2))

    return write


_STAY = [node("Identity", ["this"], ["next"], name="stay")]
_GROW = [node("Concat", ["this", "this"], ["next"], name="grow", axis=0)]


def _excused(folder: Path) -> Path:
    """An endless Loop in a net whose inner tensor is declared 2^44 wide, as if there were much work to wait for."""
    path = _loop(_STAY, None)(folder)
    proto = onnx.load(path)
    proto.graph.value_info.append(info("h", ["N", 2**44]))
    return save(folder, proto)


def _collected(folder: Path) -> Path:
    """A Loop that keeps the state of each of 2^40 turns."""
    inner = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Identity", ["x"], ["kept"], name="keep")],
        "body",
        [info("turn", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)],
        [info("go_on", [], TensorProto.BOOL), info("kept", None)],
    )
    loop = node("Loop", ["trips", "yes"], ["extra"], name="loop", body=inner)
    return save(folder, with_extra([loop], [constant("yes", True, bool), scalar("trips", 2**40)], rank=3))


def _nested(folder: Path) -> Path:
    """Four Loops inside each other, of 10^6 turns each."""
    body: Sequence[NodeProto] = _STAY
    for depth in range(3):
        inner = helper.make_graph(
            [node("Identity", [f"go{depth}"], [f"on{depth}"]), *body],
            f"body{depth}",
            [info(f"t{depth}", [], TensorProto.INT64), info(f"go{depth}", [], TensorProto.BOOL), info("this", None)],
            [info(f"on{depth}", [], TensorProto.BOOL), info("next", None)],
        )
        body = [node("Loop", ["trips", "yes", "this"], ["next"], name=f"loop{depth}", body=inner)]
    return _loop(body, 10**6)(folder)


def _scan(folder: Path) -> Path:
    """A Scan over 2^33 elements, which an Expand makes first."""
    inner = helper.make_graph(
        [node("Add", ["sum", "one"], ["sum_out"]), node("Identity", ["sum_out"], ["kept"])],
        "body",
        [info("sum", [1]), info("one", [1])],
        [info("sum_out", [1]), info("kept", [1])],
    )
    nodes = [
        node("Expand", ["unit", "n"], ["long"], name="expand"),
        node("Scan", ["unit0", "long"], ["last", "extra"], name="scan", body=inner, num_scan_inputs=1),
    ]
    held = [constant("unit", [[1.0]]), constant("unit0", [1.0]), vector("n", 2**33, 1)]
    return save(folder, with_extra(nodes, held, rank=2))


def _awake(folder: Path) -> Path:
    """A Loop that ends at once unless the data hold a value above 50."""
    inner = helper.make_graph(
        [node("Identity", ["hot"], ["go_on"]), node("Identity", ["this"], ["next"])],
        "body",
        [info("turn", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("this", None)],
        [info("go_on", [], TensorProto.BOOL), info("next", None)],
    )
    nodes = [
        node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        node("Greater", ["top", "fifty"], ["hot"], name="hot"),
        node("Loop", ["", "hot", "x"], ["extra"], name="loop", body=inner),
    ]
    return save(folder, with_extra(nodes, [constant("fifty", 50.0)], rank=2))


def _awake_hungry(folder: Path) -> Path:
    """A Tile that stays small unless the data hold a value above 50."""
    nodes = [
        node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        node("Sub", ["top", "fifty"], ["above"], name="above"),
        node("Relu", ["above"], ["over"], name="over"),
        node("Mul", ["over", "factor"], ["many"], name="many"),
        node("Cast", ["many"], ["whole"], name="whole", to=TensorProto.INT64),
        node("Add", ["whole", "least"], ["n"], name="n"),
        node("Expand", ["unit", "n"], ["extra"], name="bomb"),
    ]
    held = [constant("fifty", 50.0), constant("factor", 1e8), vector("least", 1), constant("unit", [1.0])]
    return save(folder, with_extra(nodes, held))


def _hot(folder: Path) -> Path:
    from attacks.parts import examples

    values = np.random.default_rng(7).standard_normal((64, WIDTH)).astype(np.float32)
    values[:, 0] = 90.0
    return examples(folder, x=values)


def _text(folder: Path) -> Path:
    """A string that is doubled 40 times."""
    nodes, held = layers()
    joined = [node("StringConcat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], name=f"join{i}") for i in range(40)]
    text = TensorProto(name="s0", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
    outputs = [info("y", ["N", CLASSES]), info("s40", [1], TensorProto.STRING)]
    return save(folder, model(graph([*nodes, *joined], [*held, text], outputs), opset=20))


def _case(name: str, make: Callable[[Path], Path], what: str = "", allowed: frozenset[int] = _NO) -> Case:
    return Case(name=f"bombs/{name}", kind="model", allowed=allowed, make=make, what=what)


CASES = [
    *(_case(f"folded-{kind}-6-gb", _fixed(kind, _LARGE)) for kind in _FOLDED if kind not in _SIZELESS),
    *(_case(f"folded-{kind}", _fixed(kind, _ENDLESS), "4 TB") for kind in _FOLDED),
    *(
        _case(f"computed-{kind}{'-6-gb' if count == _LARGE else ''}", _computed(kind, count), "its size from the input")
        for kind in ("ConstantOfShape", "Tile", "Expand", "Range")
        for count in (_LARGE, _ENDLESS)
    ),
    _case("loop-endless", _loop(_STAY, None), "no trip count, a condition that holds for ever"),
    _case("loop-excused", _excused, "endless, beside a declared shape that promises days of work"),
    _case("loop-2-62", _loop(_STAY, 2**62)),
    _case("loop-grows", _loop(_GROW, 60), "doubles its state 60 times"),
    _case("loop-collects", _collected),
    _case("loop-nested", _nested),
    _case("scan", _scan, "over 2^33 elements"),
    _case("text", _text, "a string of 2^40 letters"),
    Case(name="bombs/asleep-loop", kind="model", allowed=_ANY, make=_awake, partner=_hot,
         what="endless only where the data hold a value above 50"),
    Case(name="bombs/asleep-memory", kind="model", allowed=_ANY, make=_awake_hungry, partner=_hot,
         what="16 GB only where the data hold a value above 50"),
]  # fmt: skip
