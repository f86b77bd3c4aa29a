"""Files that would run and be wrong: the fill of a Pad on codes, a weight with a float reader, a taken name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper


@pytest.mark.parametrize("explicit", [False, True], ids=["default-fill", "fill-0"])
def test_what_a_pad_fills_in_is_zero_and_not_the_lowest_code(net: Any, bench: Any, explicit: bool) -> None:
    # No ReLU before the Pad: the zero point lies in the middle of the codes, and code 0 is the lowest value.
    n = net()
    x = n.input(("N", 4, 8, 8))
    fill = [n.const(0.0)] if explicit else []
    padded = n.op("Pad", n.conv(x, 4, 8), n.ints(0, 0, 2, 2, 0, 0, 2, 2), *fill)
    n.output(n.conv(padded, 8, 8), padded)
    case = bench.run(n)
    assert case.placement.moved, "the Pad runs on codes"
    found = case.outputs[padded]
    assert found[:, :, :2].any() is np.False_ and found[:, :, :, -2:].any() is np.False_
    assert found[:, :, 2:-2, 2:-2].min() < -0.1, "else the lowest code would be zero too"
    # Two convolutions at 8 bits; a border of lowest codes costs more than half of this.
    assert min(case.sqnr.values()) > 30


def test_a_reader_that_stays_float_keeps_the_float_weight(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 8, 6, 6))
    shared = n.weight(8, 8, 3, 3)
    first = n.op("Conv", x, shared, name="integer", pads=[1] * 4)
    second = n.op("Conv", x, shared, name="float", pads=[1] * 4)
    n.output(first, second)
    case = bench.run(n, keep_float=("float",))
    assert case.placement.integer == ("integer",)
    readers = {node.name: node.input[1] for node in case.proto.graph.node if node.op_type == "Conv"}
    assert readers["float"] == shared
    assert readers["integer"] != shared
    assert np.array_equal(case.outputs[second], case.float_outputs[second])


@pytest.mark.parametrize("value", [0, 7])
def test_a_tensor_that_bears_our_name_is_not_taken_for_our_zero_point(net: Any, bench: Any, value: int) -> None:
    plain = net()
    plain.output(plain.relu(plain.conv(plain.input(("N", 4, 6, 6)), 4, 4)))
    wanted = bench.run(plain)
    names = [t.name for t in wanted.proto.graph.initializer if t.name.startswith("zp_uint8")]
    assert names
    n = net()
    y = n.relu(n.conv(n.input(("N", 4, 6, 6)), 4, 4))
    for name in names:
        n.const(value, name=name, dtype=np.uint8)
        n.output(n.op("Identity", name, name=f"keeps_{name}"), dtype=2)
    n.outputs.insert(0, n.outputs.pop())
    n.output(y)
    case = bench.run(n)
    assert np.array_equal(case.outputs[y], wanted.outputs[y])
    held = {t.name: numpy_helper.to_array(t) for t in case.proto.graph.initializer}
    for node in case.proto.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = float(held[node.input[1]]), int(held[node.input[2]])
            assert scale > 0 and zero in {int(numpy_helper.to_array(t)) for t in wanted.proto.graph.initializer
                                          if t.name in names}  # fmt: skip
