"""Channels filled up to vectors: the same function with more zeros, wherever nothing else looks at the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from fewbits.models.onnx.model import serialize
from fewbits.models.onnx.repairs_channels import FillChannels
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME

Net = Callable[..., Any]


def filled(n: Any) -> tuple[onnx.ModelProto, bool]:
    """Returns the model after the pass, which must compute the same, and whether it changed anything."""
    proto = n.model()
    model = ir.from_proto(proto)
    common.ShapeInferencePass()(model)
    start = serialize(model)
    result = FillChannels()(model)
    data = serialize(result.model)
    assert result.modified == (data != start)
    onnx.checker.check_model(data, full_check=True)
    shape = [d.dim_value or 2 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {proto.graph.input[0].name: np.random.default_rng(3).normal(size=shape).astype(np.float32)}
    before = RUNTIME.open(start, Options(optimize=False)).run(feeds)
    after = RUNTIME.open(data, Options(optimize=False)).run(feeds)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5)
    assert any(float(np.abs(value).max()) > 1e-3 for value in before.values())
    return onnx.load_from_string(data), result.modified


def groups(model: onnx.ModelProto) -> list[int]:
    found = [{a.name: a for a in node.attribute} for node in model.graph.node if node.op_type == "Conv"]
    return [a["group"].i for a in found if "group" in a and a["group"].i > 1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "becomes"), [(72, 80), (120, 128), (24, 32), (17, 17), (32, 32), (40, 48)])
def test_channels_become_a_multiple_of_16_where_few_are_added(
    net: Net, channels: int, becomes: int, bias: bool
) -> None:
    n = net()
    h = n.relu(n.conv(n.input(("N", 3, 9, 9), "x"), 3, channels, 1, bias=bias))
    h = n.relu(n.conv(h, channels, channels, 3, group=channels, bias=bias))
    n.output(n.conv(h, channels, 5, 1, bias=bias))
    model, changed = filled(n)
    assert groups(model) == [becomes]
    assert changed == (becomes != channels)


def test_squeeze_and_excitation_goes_along(net: Net) -> None:
    n = net()
    h = n.op("HardSwish", n.conv(n.input(("N", 3, 9, 9), "x"), 3, 40, 1))
    h = n.op("HardSwish", n.conv(h, 40, 40, 5, group=40))
    s = n.relu(n.conv(n.op("ReduceMean", h, axes=[2, 3], keepdims=1), 40, 8, 1))
    s = n.op("HardSigmoid", n.conv(s, 8, 40, 1))
    h = n.op("Add", n.op("Mul", h, s), n.const(np.arange(40).reshape(1, 40, 1, 1)))
    n.output(n.conv(n.op("Mul", h, n.const(np.linspace(1, 2, 40).reshape(40, 1, 1))), 40, 5, 1))
    model, changed = filled(n)
    assert changed and groups(model) == [48]
    shapes = {tuple(t.dims) for t in model.graph.initializer}
    assert {
        (48, 3, 1, 1),
        (48, 1, 5, 5),
        (8, 48, 1, 1),
        (48, 8, 1, 1),
        (5, 48, 1, 1),
        (1, 48, 1, 1),
        (48, 1, 1),
    } <= shapes


def test_one_weight_of_two_layers_stays_right_for_both(net: Net) -> None:
    n = net()
    x = n.input(("N", 40, 9, 9), "x")
    shared = n.weight(40, 40, 1, 1, name="shared")
    h = n.op("Conv", x, shared, kernel_shape=[1, 1])
    h = n.conv(h, 40, 40, 3, group=40)
    n.output(n.op("Conv", h, shared, kernel_shape=[1, 1]))
    model, changed = filled(n)
    assert changed and groups(model) == [48]


def test_one_weight_of_two_depthwise_layers_is_filled_once(net: Net) -> None:
    n = net()
    weight = n.weight(24, 1, 3, 3, fan_in=9)
    h = n.relu(n.conv(n.input(("N", 3, 9, 9), "x"), 3, 24, 1))
    for _ in range(2):
        h = n.relu(n.op("Conv", h, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=24))
    n.output(n.conv(h, 24, 5, 1))
    model, changed = filled(n)
    assert changed and groups(model) == [32, 32]
    assert [tuple(t.dims) for t in model.graph.initializer].count((32, 1, 3, 3)) == 1


def _read_by(net: Net, kind: str) -> Any:
    n = net()
    x = n.input(("N", 3, 8, 8), "x")
    h = n.conv(x, 3, 40, 1)
    d = n.conv(h, 40, 40, 3, group=40)
    last = n.conv(d, 40, 5, 1)
    match kind:
        case "output":
            n.output(d)
        case "concat":
            n.output(n.conv(n.op("Concat", d, h, axis=1), 80, 4, 1))
        case "reshape":
            n.output(n.op("Reshape", d, n.ints(0, -1)))
        case "softmax":
            n.output(n.op("Softmax", d, axis=1))
        case "mean over channels":
            n.output(n.op("ReduceMean", d, axes=[1], keepdims=1))
        case "grouped":
            n.output(n.conv(d, 40, 40, 1, group=8))
        case "division":
            n.output(n.conv(n.op("Div", x, n.op("ReduceMean", d, axes=[1], keepdims=1)), 3, 4, 1))
        case "input":
            n = net()
            n.output(n.conv(n.conv(n.input(("N", 40, 8, 8), "x"), 40, 40, 3, group=40), 40, 5, 1))
            return n
    n.output(last)
    return n


@pytest.mark.parametrize(
    "kind", ["output", "concat", "reshape", "softmax", "mean over channels", "grouped", "division", "input"]
)
def test_where_anything_else_looks_at_the_channels_they_stay(net: Net, kind: str) -> None:
    _, changed = filled(_read_by(net, kind))
    assert not changed


def test_it_is_a_step_of_the_plan_and_is_repeated_to_the_same_bytes(net: Net, tmp_path: Path) -> None:
    from fewbits.models.onnx.opening import open_model
    from fewbits.models.onnx.repairs import BY_NAME, repaired, repeated

    n = net()
    h = n.relu(n.conv(n.input(("N", 3, 9, 9), "x"), 3, 72, 1))
    n.output(n.conv(n.relu(n.conv(h, 72, 72, 3, group=72)), 72, 5, 1))
    model = open_model(str(n.save(tmp_path)))
    made = repaired(model, BY_NAME["fill_channels"])
    assert made is not None and made.steps[-1].name == "fill_channels"
    again = repeated(model, made.steps)
    assert serialize(again.ir_model) == serialize(made.ir_model)
