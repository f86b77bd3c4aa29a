"""``w8a16``: weights in codes, everything else as it was; the same codes whether a weight lies inside or in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fewbits
from fewbits._base.errors import ResourceError, TargetError, UsageError
from fewbits.models.onnx import opening
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME
from fewbits.search import job


def language_net(net: Any) -> Any:
    """Table, matrix products both ways round, a convolution and a recurrent layer: every rule of the target."""
    n = net()
    ids = n.input(("N", 12), "ids", TensorProto.INT64)
    h = n.op("Gather", n.weight(64, 32, fan_in=1, name="table"), ids)
    h = n.relu(n.matmul(h, 32, 32))
    turned = n.op("Transpose", h, perm=[1, 0, 2])
    weights = n.weight(1, 4 * 16, 32, fan_in=32, name="lstm_w"), n.weight(1, 4 * 16, 16, fan_in=16, name="lstm_r")
    _, last = n.ops("LSTM", turned, *weights, outputs=2, hidden_size=16)
    last = n.op("Reshape", last, n.ints(-1, 16))
    n.output(n.gemm(last, 16, 24), n.gemm(last, 16, 24, trans=0))
    return n


@pytest.fixture
def path(net: Any, tmp_path: Path) -> Path:
    n = language_net(net)
    onnx.save_model(n.model(), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    return tmp_path / "net.onnx"


def quantized(path: Path, **more: Any) -> fewbits.api.Result:
    return fewbits.quantize(path, scheme="w8a16", allow_slower=True, **more)


def test_every_weight_is_held_in_codes_and_computes_as_its_dequantized_values(path: Path, tmp_path: Path) -> None:
    result = quantized(path)
    sites = {d.site for d in result.plan.quantized}
    assert {"table", "lstm_w", "lstm_r"} <= sites
    assert len(sites) == 6
    assert all(d.stored for d in result.plan.quantized)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name not in sites:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        axis = result.plan.by_site()[tensor.name].scheme.granularity.axis  # type: ignore[union-attr]
        other = tuple(i for i in range(values.ndim) if i != axis)
        scale = (np.abs(values).max(axis=other, keepdims=True) / np.float32(127)).astype(np.float32)
        codes = np.clip(np.rint(values / scale), -128, 127)
        tensor.CopyFrom(onnx.numpy_helper.from_array((codes * scale).astype(np.float32), tensor.name))
    feeds = {"ids": np.random.default_rng(0).integers(0, 64, (3, 12))}
    plain = Options(optimize=False)  # optimized, the runtime rounds activations inside MatMulNBits
    expected = RUNTIME.open(proto.SerializeToString(), plain).run(feeds)
    got = RUNTIME.open(result.model_bytes, plain).run(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_products_before_a_relu_or_a_clip_multiply_codes_too(net: Any, tmp_path: Path) -> None:
    n = net()
    h = n.relu(n.matmul(n.input(("N", 48)), 48, 64))
    h = n.op("Clip", n.gemm(h, 64, 64), n.const(np.float32(0)), n.const(np.float32(6)))
    h = n.relu(n.op("Add", n.matmul(h, 64, 64), n.vector(64)))
    n.output(n.gemm(h, 64, 32))
    path, out = n.save(tmp_path), tmp_path / "out.onnx"
    result = quantized(path)
    out.write_bytes(result.model_bytes)
    feeds = {n.model().graph.input[0].name: np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)}
    ran = [node.op for node in RUNTIME.executed(out, Options(), feeds)]
    assert ran.count("MatMulNBits") == 4 and "DequantizeLinear" not in ran
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name in result.plan.by_site():
            axis = result.plan.by_site()[tensor.name].scheme.granularity.axis  # type: ignore[union-attr]
            values = onnx.numpy_helper.to_array(tensor)
            scale = (np.abs(values).max(axis=1 - axis, keepdims=True) / np.float32(127)).astype(np.float32)
            back = (np.clip(np.rint(values / scale), -128, 127) * scale).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(back, tensor.name))
    expected = RUNTIME.open(proto.SerializeToString(), Options(optimize=False)).run(feeds)
    got = RUNTIME.open(result.model_bytes, Options(optimize=False)).run(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_codes_do_not_depend_on_where_the_weights_lie(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside = onnx.load_from_string(quantized(path).model_bytes)
    monkeypatch.setattr(opening, "_LAZY_BYTES", 0)
    from fewbits.models.onnx import weights

    monkeypatch.setattr(weights, "_SLAB_BYTES", 1000)
    result = quantized(path)
    result.save(tmp_path / "out")
    outside = onnx.load(tmp_path / "out" / "model.onnx")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 0
    held = [
        {
            t.name: onnx.numpy_helper.to_array(t)
            for t in model.graph.initializer
            if t.name.endswith(("_q", "_s", "_rows"))
        }
        for model in (inside, outside)
    ]
    assert held[0].keys() == held[1].keys()
    for name, value in held[0].items():
        np.testing.assert_array_equal(held[1][name], value)
    report = result.report
    assert report.size.quantized_bytes == sum(
        (tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )
    assert fewbits.verify(tmp_path / "out").golden_equal


def test_with_data_the_loss_is_judged_and_without_a_budget_needs_them(path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (400, 12))
    report = quantized(path, data={"ids": ids}).report
    assert report.metric.examples == 400
    assert report.metric.drop is not None
    with pytest.raises(UsageError, match="data-missing"):
        quantized(path, max_drop="1%")
    unjudged = quantized(path).report
    assert unjudged.metric.drop is None
    assert "no data" in unjudged.reasons["metric"]
    assert unjudged.latency.speedup is not None


def test_a_plan_of_stored_weights_is_read_and_replayed_to_the_byte(path: Path) -> None:
    result = quantized(path)
    plan = plan_from_json(result.plan.to_json())
    assert plan == result.plan
    assert fewbits.quantize(path, plan=plan, allow_slower=True).model_bytes == result.model_bytes
    rows = json.loads(result.plan.to_json())
    rows["sites"][0]["scheme"] = rows["sites"][0]["scheme"].replace("int8", "int4")
    with pytest.raises(TargetError, match="format-not-legal"):
        fewbits.quantize(path, plan=plan_from_json(json.dumps(rows)), allow_slower=True)


def test_beyond_the_memory_that_may_be_taken_nothing_is_run_and_the_report_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opening, "_LAZY_BYTES", 0)
    monkeypatch.setattr(job, "_SESSION_COPIES", 1e9)
    result = quantized(path, max_memory=10**9)
    assert result.run.ran is None
    assert result.report.latency.speedup is None
    assert "may be taken" in result.report.reasons["latency"]
    assert any("not-measured" in warning for warning in result.report.warnings)
    result.save(tmp_path / "out")
    assert fewbits.verify(tmp_path / "out").files > 0


def test_a_run_that_would_take_more_than_it_may_is_refused_before_it_begins(path: Path) -> None:
    with pytest.raises(ResourceError, match="memory-too-small"):
        quantized(path, max_memory=100 * 2**20)
    ids = np.random.default_rng(0).integers(0, 64, (400, 12))
    with pytest.raises(ResourceError, match="memory-too-small"):
        fewbits.quantize(path, data={"ids": ids}, max_memory=100 * 2**20)


_SPARSE = """
import resource, sys
from fewbits.cli import main
try:
    main()
finally:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stdout.write(f"PEAK {peak * 1024}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", [["inspect"], ["plan", "--scheme", "w8a16"], ["quantize", "--scheme", "w8a16", "--max-memory", "1GB"]]
)
def test_a_sparse_model_of_three_gigabytes_is_done_below_one(verb: list[str], tmp_path: Path) -> None:
    size, layers = 8192, 12
    inits, nodes = [], []
    with (tmp_path / "w.bin").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[size, size], data_location=1)
            offset, length = 4 * size * size * layer, 4 * size * size
            for key, value in (("location", "w.bin"), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            file.seek(offset)
            file.write(np.random.default_rng(layer).standard_normal(size, np.float32).tobytes())
            inits.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"], name=f"m{layer}"))
        file.truncate(4 * size * size * layers)
    ends = [helper.make_tensor_value_info(f"h{i}", TensorProto.FLOAT, ["N", size]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], inits)
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    out = ["-o", str(tmp_path / "out")] if verb[0] == "quantize" else []
    done = subprocess.run(
        [sys.executable, "-c", _SPARSE, verb[0], str(tmp_path / "m.onnx"), *verb[1:], *out],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rsplit("PEAK", 1)[1]) < 1e9
    if out:
        assert (tmp_path / "out" / "model.onnx.data").stat().st_size == pytest.approx(size * size * layers, rel=1e-3)


@pytest.mark.parametrize("asked", [{"max_drop": "0.1%"}, {"scheme": "w8a8"}, {"scheme": "w8a8-dynamic"}])
def test_weights_that_lie_in_a_file_beside_the_model_are_found_by_every_trial(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: dict[str, str]
) -> None:
    data = {"ids": np.random.default_rng(0).integers(0, 64, (400, 12))}
    monkeypatch.setattr(opening, "_LAZY_BYTES", 0)
    monkeypatch.chdir(path.anchor)  # what the runtime opens from bytes must not be found by chance
    result = fewbits.quantize(path, data=data, allow_slower=True, **asked)
    result.save(tmp_path / "out")
    session = RUNTIME.open(tmp_path / "out" / "model.onnx", Options())
    wanted = RUNTIME.open(onnx.load(path).SerializeToString(), Options()).run(data)
    for name, value in session.run(data).items():
        assert float(((value - wanted[name]) ** 2).mean()) < 0.01 * float((wanted[name] ** 2).mean()), name
