"""Reports to render: what people will meet, and what they should not. refresh.py runs this file too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewbits.reporting.schema import Report

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "conv\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J",
    "\u202egpj.exe\u2066\u200f\u200b",
    "nul\x00 bell\x07 line\nfeed\r\u2028",
    "$x$ `{{ 7*7 }}` [a](javascript:alert(3)) | **b** \ud800",
    "'\"><svg onload=alert(4)> &amp; --> ---\n# h",
    "a/very/long/name/" + "without_any_place_to_break_" * 12,
)


def _layer(i: int, *, kept_float: bool = False, role: str = "weight") -> dict[str, Any]:
    node = f"/features/features.{i}/conv/Conv"
    scheme = "float32" if kept_float else {"weight": "int8 per-channel", "activation": "uint8 per-tensor"}[role]
    return {
        "site": f"features.{i}.conv.weight" if role == "weight" else f"{node}_output_0",
        "node": node,
        "op": "Conv",
        "role": role,
        "scheme": scheme,
        "bits_per_weight": 32.0 if kept_float else 8.25,
        "algorithm": None if kept_float else "mse, nearest",
        "sqnr_db": None if kept_float else 46.0 - 2.7 * ((i * 7) % 11),
        "reason": "most harmful on the selection data" if kept_float else "runs in integers on ort-cpu",
        "scale_bytes": 0 if kept_float else 240,
        "elements": 9216 * (i + 1),
    }


def met() -> dict[str, Any]:
    """A small CNN, budget met."""
    return {
        "schema_version": 1,
        "verdict": "met",
        "metric": {
            "name": "top-1",
            "direction": "higher",
            "unit": "points",
            "float": 0.9183,
            "quantized": 0.9158,
            "drop": 0.0025,
            "bound": 0.0078,
            "method": "exact unconditional bound on the paired difference",
            "confidence": 0.95,
            "budget": 0.01,
            "examples": 1200,
            "examples_needed": None,
            "split": "verdict part; not used for ranges or for choosing",
            "quality": {"kl": 0.00312, "sqnr_db": 28.4, "agreement": 0.9825},
        },
        "size": {"float_bytes": 1093281, "quantized_bytes": 300412, "ratio": 3.6393},
        "latency": {
            "float_ms": 2.131,
            "quantized_ms": 0.982,
            "speedup": 2.17,
            "speedup_low": 2.11,
            "speedup_high": 2.24,
            "confidence": 0.9785,
            "p50": 0.982,
            "p90": 1.031,
            "p99": 1.302,
            "throughput": 1018.3,
            "threads": 1,
            "batch": 1,
            "runtime": "onnxruntime 1.31.1",
            "isa": "avx512_vnni",
            "session_options": {"graph_optimization_level": "ORT_ENABLE_ALL", "intra_op_num_threads": 1},
        },
        "memory": {
            "peak_bytes": 9_400_000,
            "weights_bytes": 281_600,
            "bytes_moved": 1_930_000,
            "mac_bits": {"8x8": 40_110_080, "32x32": 442_368},
            "float_peak_bytes": 14_900_000,
            "float_weights_bytes": 1_080_000,
            "float_bytes_moved": 7_210_000,
        },
        "executed": {
            "integer_nodes": 27,
            "float_nodes": 3,
            "integer_nodes_before": 24,
            "float_nodes_before": 9,
            "repairs": ["saturating_swish"],
            "by_dtype": {"uint8 x int8": 25, "uint8": 2, "float32": 3},
            "kernels": {"QLinearConv": 20, "QLinearAdd": 5, "QGemm": 1, "QLinearGlobalAveragePool": 1, "Conv": 1}
            | {"QuantizeLinear": 1, "DequantizeLinear": 1},
            "islands": [
                {
                    "node": "/features/features.3/conv/Conv",
                    "op": "Conv",
                    "rule": "kept-float",
                    "repaired": False,
                    "why": "the search put it back to float",
                },
                {
                    "node": "/layer2/Pad",
                    "op": "Pad",
                    "rule": "pad-not-shared",
                    "repaired": True,
                    "why": "Pad passes its input's scale through only with a constant of zero",
                },
            ],
        },
        "flips": {"harmful": 9, "helpful": 6},
        "layers": [_layer(i, kept_float=i == 3, role=role) for i in range(6) for role in ("activation", "weight")],
        "search": [
            {
                "step": 0,
                "change": "int8 everywhere that ort-cpu runs in integers, ranges by minmax",
                "selection_drop": 0.0141,
                "selection_kl": 0.0192,
                "integer_nodes": 28,
                "kept": False,
                "reason": "loss above the budget",
            },
            {
                "step": 1,
                "change": "ranges by mse",
                "selection_drop": 0.0109,
                "selection_kl": 0.0071,
                "integer_nodes": 28,
                "kept": True,
                "reason": "lower loss, same size",
            },
            {
                "step": 2,
                "change": "/features/features.3/conv/Conv back to float",
                "selection_drop": 0.0031,
                "selection_kl": 0.0034,
                "integer_nodes": 27,
                "kept": True,
                "reason": "inside the budget",
            },
        ],
        "model": {
            "name": "resnet20.onnx",
            "sha256": "3b1f" * 16,
            "opset": 17,
            "parameters": 269_722,
            "macs": 40_552_448,
        },
        "data": {
            "calibration_examples": 256,
            "selection_examples": 600,
            "verdict_examples": 1200,
            "sha256": "90ac" * 16,
            "split_rule": "by content hash",
        },
        "target": "ort-cpu:vnni",
        "seed": 0,
        "versions": {"fewbits": "0.1.0", "numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.31.1"},
        "environment": {"cpu": "Intel Xeon (Sapphire Rapids)", "isa": "avx512_vnni", "cores": 2},
        "warnings": [],
        "reasons": {"layers.algorithm": "the site stayed float", "layers.sqnr_db": "the site stayed float"},
    }


def not_met() -> dict[str, Any]:
    """The loss is above the budget; the best candidate is handed over."""
    raw = met()
    raw["verdict"] = "not met"
    raw["metric"] |= {"quantized": 0.8825, "drop": 0.0358, "bound": 0.0461}
    raw["flips"] = {"harmful": 61, "helpful": 18}
    raw["warnings"] = ["the search stopped at its time budget of 10 min with 4 layers untried [time-budget]"]
    return raw


def undecided() -> dict[str, Any]:
    """Too few examples."""
    raw = met()
    raw["verdict"] = "undecided"
    raw["metric"] |= {"examples": 300, "drop": 0.0033, "bound": 0.0166, "quantized": 0.915, "examples_needed": 1900}
    raw["flips"] = {"harmful": 2, "helpful": 1}
    raw["data"]["verdict_examples"] = 300
    raw["warnings"] = ["300 verdict examples cannot show a loss under 1 point; give more with --eval [few-examples]"]
    return raw


def no_budget() -> dict[str, Any]:
    """Measured without a budget; agreement, since there are no labels; no clear change in speed."""
    raw = met()
    raw["verdict"] = "no budget"
    raw["metric"] |= {"name": "agreement", "float": 1.0, "quantized": 0.9825, "drop": 0.0175, "bound": 0.0251}
    raw["metric"]["budget"] = None
    raw["latency"] |= {"speedup": 1.01, "speedup_low": 0.96, "speedup_high": 1.06, "quantized_ms": 2.11}
    raw["flips"] = {"harmful": 21, "helpful": None}
    raw["reasons"]["flips.helpful"] = "agreement with the float model cannot improve"
    raw["warnings"] = ["no labels in the data: the metric is agreement with the float model [no-labels]"]
    return raw


def float_kept() -> dict[str, Any]:
    """Nothing won; the float model is handed over."""
    raw = met()
    raw["float_kept"] = True
    raw["metric"] |= {"quantized": 0.9183, "drop": 0.0, "bound": 0.0}
    raw["size"] |= {"quantized_bytes": 1093281, "ratio": 1.0}
    raw["latency"] |= {"quantized_ms": 2.131, "speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
    raw["flips"] = {"harmful": 0, "helpful": 0}
    raw["memory"] |= {"peak_bytes": 14_900_000, "weights_bytes": 1_080_000, "bytes_moved": 7_210_000}
    raw["memory"]["mac_bits"] = {"32x32": 40_552_448}
    raw["executed"] |= {"integer_nodes": 0, "float_nodes": 22, "by_dtype": {"float32": 22}, "islands": []}
    raw["executed"] |= {"integer_nodes_before": None, "float_nodes_before": None, "repairs": None}
    raw["reasons"] |= {"executed": "no repair was tried"}
    raw["executed"]["kernels"] = {"Conv": 19, "Gemm": 1, "ReduceMean": 1, "Add": 1}
    raw["layers"] = []
    for step in raw["search"]:
        step |= {"kept": False, "reason": "0.69x the speed of float"}
    raw["warnings"] = ["every int8 candidate was slower than float on this processor [slower-than-float]"]
    return raw


def unknown() -> dict[str, Any]:
    """Everything null, one reason given."""
    return {"verdict": "undecided", "reasons": {"latency": "not timed: the run was asked not to"}}


def many_layers() -> dict[str, Any]:
    """120 sites."""
    raw = met()
    raw["layers"] = [_layer(i, kept_float=i == 17, role=role) for i in range(60) for role in ("activation", "weight")]
    raw["executed"]["kernels"] = {f"QLinearOperator{i}": 60 - i for i in range(24)}
    return raw


def hostile() -> dict[str, Any]:
    """Strangers' strings in every place that takes one."""

    def poison(value: Any, count: list[int]) -> Any:
        if isinstance(value, str):
            count[0] += 1
            return HOSTILE[count[0] % len(HOSTILE)]
        if isinstance(value, dict):
            return {poison(k, count) + str(i): v for i, (k, v) in enumerate(value.items())}
        return value

    raw = met()
    count = [0]
    for part in ("metric", "model", "data", "latency", "environment"):
        for key, value in raw[part].items():
            if key not in {"direction", "unit", "quality"}:
                raw[part][key] = poison(value, count)
    raw["metric"]["unit"] = HOSTILE[1]
    for key in ("by_dtype", "kernels"):
        raw["executed"][key] = poison(raw["executed"][key], count)
    raw["memory"]["mac_bits"] = poison(raw["memory"]["mac_bits"], count)
    raw["versions"] = poison(raw["versions"], count)
    raw["target"] = HOSTILE[6]
    for part in (raw["layers"], raw["search"], raw["executed"]["islands"]):
        for entry in part:
            for key in entry:
                entry[key] = poison(entry[key], count)
    raw["warnings"] = list(HOSTILE)
    raw["reasons"] = {"layers.algorithm": HOSTILE[0], "layers.sqnr_db": HOSTILE[6]}
    return raw


SAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "met": met,
    "not_met": not_met,
    "undecided": undecided,
    "no_budget": no_budget,
    "float_kept": float_kept,
    "unknown": unknown,
    "many_layers": many_layers,
    "hostile": hostile,
}
GOLD = ("met", "unknown", "hostile")


@pytest.fixture(params=sorted(SAMPLES))
def report(request: pytest.FixtureRequest) -> Report:
    """Every sample in turn."""
    return Report.model_validate(SAMPLES[request.param]())


@pytest.fixture
def sample() -> Callable[[str], Report]:
    """Builds one sample by name."""
    return lambda name: Report.model_validate(SAMPLES[name]())


@pytest.fixture
def hostile_strings() -> tuple[str, ...]:
    """The raw hostile strings."""
    return HOSTILE
