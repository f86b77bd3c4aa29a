"""MACs, bytes moved and float islands, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from fewbits.measurement.executed import ExecutedGraph, mac_bits, read_executed
from fewbits.models.onnx.opening import open_model
from fewbits.planning.macs import count_macs
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options


def _node(name: str, numbers: Numbers, inputs: Any, outputs: Any, op: str = "Conv") -> ExecutedNode:
    return ExecutedNode(name=name, op=op, numbers=numbers, inputs=inputs, outputs=outputs, microseconds=1.0)


def test_resnet20_has_the_macs_that_its_paper_counts(real_data: Callable[[str], Path]) -> None:
    # 3*16*9*32^2 + 6 * 16*16*9*32^2, then twice (one layer of half the input channels + 5 full ones), then 64*10.
    first = 3 * 16 * 9 * 32**2 + 6 * 16 * 16 * 9 * 32**2
    later = 16 * 32 * 9 * 16**2 + 5 * 32 * 32 * 9 * 16**2
    macs = count_macs(open_model(real_data("cifar10/resnet20.onnx")).view)
    assert sum(macs.values()) == first + 2 * later + 640 == 40_551_040  # He et al. 2016 round to 41 million
    assert len(macs) == 20


def test_macs_of_each_operator_are_those_of_its_definition(tmp_path: Path, runs: ModuleType) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "dw"], ["a"], name="depthwise", group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "g"], ["h"], name="gemm", transB=1),
        helper.make_node("MatMul", ["h", "m"], ["y"], name="matmul"),
    ]
    rng = np.random.default_rng(0)
    shapes = {"dw": (4, 1, 3, 3), "up": (4, 6, 2, 2), "g": (5, 6), "m": (5, 7)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path = runs.save_model(tmp_path / "n.onnx", nodes, weights, shape=["batch", 4, 8, 8], out=["batch", 7])
    assert count_macs(open_model(path).view) == {
        "depthwise": 4 * 4 * 4 * 9,  # 4 x 4 positions, 4 channels, 9 taps of one channel each
        "up": 4 * 4 * 4 * (6 * 2 * 2),  # each of 4 x 4 x 4 inputs goes to 6 x 2 x 2 outputs
        "gemm": 6 * 5,
        "matmul": 5 * 7,
    }


def test_mac_bits_split_the_total(tmp_path: Path, runs: ModuleType) -> None:
    view = open_model(runs.small_net(tmp_path / "n.onnx")).view
    macs = count_macs(view)
    bits = mac_bits(view, {"conv1"}, activation_bits=8, weight_bits=8)
    assert bits == {"8x8": macs["conv1"], "32x32": sum(macs.values()) - macs["conv1"]}


def test_bytes_moved_are_all_that_is_read_and_written() -> None:
    graph = ExecutedGraph(
        nodes=(
            _node("q", Numbers.CONVERSION, (("float", (1, 3, 4, 4)),), (("uint8", (1, 3, 4, 4)),), "QuantizeLinear"),
            _node(
                "c",
                Numbers.INTEGER,
                (("uint8", (1, 3, 4, 4)), ("int8", (8, 3, 3, 3)), ("int32", (8,))),
                (("uint8", (1, 8, 4, 4)),),
                "QLinearConv",
            ),
        ),
        islands=(),
    )
    assert graph.bytes_moved == (48 * 4 + 48) + (48 + 216 + 8 * 4 + 128)
    assert graph.count(Numbers.INTEGER) == 1
    assert graph.by_numbers == {"conversion": 1, "integer": 1}


def test_int8_moves_fewer_bytes_and_leaves_no_float_node(tmp_path: Path, runs: ModuleType) -> None:
    from fewbits.search.job import run
    from fewbits.search.preparing import Request

    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        from fewbits.search import job

        assert job.run is run
        done = run(
            Request(
                model=str(runs.small_net(tmp_path / "n.onnx")),
                data=runs.small_data(60),
                scheme="w8a8",
                max_drop=None,
                allow_slower=True,
            )
        )
    assert done.ran.executed.count(Numbers.FLOAT) == 0
    assert done.ran.executed.islands == ()
    assert done.ran.executed.bytes_moved < done.ran.float_executed.bytes_moved
    assert done.ran.float_executed.count(Numbers.INTEGER) == 0


def test_every_executed_node_of_a_float_model_is_float_or_neutral(tmp_path: Path, runs: ModuleType) -> None:
    model = runs.small_net(tmp_path / "n.onnx")
    nodes = RUNTIMES["ort"].executed(model, Options(), {"x": runs.small_data(1)["x"]})
    graph = read_executed(nodes, None)
    assert set(graph.by_numbers) <= {"float", "neutral", "conversion", "moves"}
    assert graph.by_numbers["float"] >= 4
