"""Opening a file: what is kept, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fewbits._base.errors import Exit, FewbitsError, ModelError, SecurityError
from fewbits.models.onnx.opening import compare_outputs, open_model
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME


def refusal(path: Path) -> FewbitsError:
    with pytest.raises(FewbitsError) as caught:
        open_model(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) not in text or caught.value.slug in ("model-unreadable", "model-empty")
    return caught.value


@pytest.fixture
def small(net: Any) -> Any:
    n = net()
    x = n.input(("N", 16))
    n.output(n.gemm(n.relu(n.gemm(x, 16, 16)), 16, 8))
    return n


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert refusal(path).slug == "model-empty"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.onnx").slug == "model-unreadable"
    assert refusal(tmp_path).slug == "model-unreadable"


@pytest.mark.parametrize("text", ["hello, this is a README\n", "{}", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_text_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text(text)
    error = refusal(path)
    assert (error.slug, error.exit_code) == ("model-broken", Exit.INPUT)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(share: float, small: Any, tmp_path: Path) -> None:
    data = small.model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path).slug in ("model-broken", "model-invalid")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_weight_is_named_with_count_and_first_index(value: float, net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 4))
    w = n.rng.standard_normal((4, 3)).astype(np.float32)
    w[1, 2] = w[3, 0] = value
    n.output(n.op("MatMul", x, n.const(w, "fc.weight")))
    error = refusal(n.save(tmp_path))
    assert error.slug == "weight-nonfinite"
    assert "'fc.weight' holds 2 NaN or infinite values, the first at index [1, 2]" in error.message


def test_a_broken_weight_in_a_constant_node_is_refused(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 4))
    value = onnx.numpy_helper.from_array(np.full((4, 3), np.nan, np.float32), "v")
    n.output(n.op("MatMul", x, n.op("Constant", value=value)))
    assert refusal(n.save(tmp_path)).slug == "weight-nonfinite"


def test_an_infinite_scalar_is_a_bound_or_mask_and_no_weight(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 4))
    masked = n.op("Where", n.const([True, False, False, False], dtype=bool), n.const(-np.inf), x)
    n.output(n.op("Softmax", n.op("Clip", masked, n.const(-np.inf), n.const(np.inf))))
    assert [op.op for op in open_model(n.save(tmp_path)).view.ops] == ["Where", "Clip", "Softmax"]


def test_an_already_quantized_model_is_refused(small: Any, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    path.write_bytes(bench.run(small).data)
    error = refusal(path)
    assert error.slug == "already-quantized"
    assert "QuantizeLinear" in error.message or "DequantizeLinear" in error.message


def test_quantized_operators_inside_a_branch_are_refused_too(net: Any, tmp_path: Path) -> None:
    n = net()
    x, cond = n.input(("N", 4)), n.input((1,), "c", TensorProto.BOOL)
    s, z = n.const(0.1), n.const(128, dtype=np.uint8)
    info = [helper.make_tensor_value_info("o", TensorProto.FLOAT, ("N", 4))]
    quantized = [
        helper.make_node("QuantizeLinear", [x, s, z], ["q"]),
        helper.make_node("DequantizeLinear", ["q", s, z], ["o"]),
    ]
    then = helper.make_graph(quantized, "then", [], info)
    other = helper.make_graph([helper.make_node("Relu", [x], ["o"])], "else", [], info)
    n.output(n.op("If", cond, then_branch=then, else_branch=other), shape=("N", 4))
    assert refusal(n.save(tmp_path)).slug == "already-quantized"


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_an_old_opset_is_converted_and_compared(net: Any, tmp_path: Path, opset: int) -> None:
    n = net(opset=opset)
    x = n.input(("N", 16))
    n.output(n.gemm(x, 16, 8))
    model = open_model(n.save(tmp_path))
    assert model.view.opset == 13
    assert model.steps[0].name == f"opset_{opset}_to_13"
    feeds = {model.inputs[0].name: np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)}
    before = RUNTIME.open(model.original, Options()).run(feeds)
    after = RUNTIME.open(model.serialized(), Options()).run(feeds)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)


def test_an_opset_older_than_any_runtime_is_refused(net: Any, tmp_path: Path) -> None:
    n = net(opset=6)
    x = n.input(("N", 16))
    n.output(n.gemm(x, 16, 8))
    error = refusal(n.save(tmp_path))
    assert error.slug == "opset-too-old"
    assert "opset 6" in error.message
    assert "export it again" in error.message


def test_a_graph_with_a_cycle_is_refused(small: Any, tmp_path: Path) -> None:
    proto = small.model()
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert refusal(path).slug in ("model-invalid", "pass-failed")


def test_nodes_in_the_wrong_order_are_refused(small: Any, tmp_path: Path) -> None:
    proto = small.model()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    # The format demands the order: the runtime would refuse the float model.
    assert refusal(path).slug == "model-invalid"


# --- external data ------------------------------------------------------------------------------------------------


def _external(proto: onnx.ModelProto, location: str, data: Path | None) -> bytes:
    tensor = proto.graph.initializer[0]
    raw = onnx.numpy_helper.to_array(tensor).tobytes()
    if data is not None:
        data.parent.mkdir(exist_ok=True)
        data.write_bytes(raw)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return bytes(proto.SerializeToString())


def test_weights_beside_the_model_are_read_and_the_original_holds_them(small: Any, tmp_path: Path) -> None:
    whole = open_model(small.save(tmp_path, "whole.onnx"))
    path = tmp_path / "m.onnx"
    path.write_bytes(_external(small.model(), "m.bin", tmp_path / "m.bin"))
    model = open_model(path)
    feeds = {"x": np.ones((2, 16), np.float32)}
    wanted = RUNTIME.open(whole.original, Options()).run(feeds)
    got = RUNTIME.open(model.original, Options()).run(feeds)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value)


def test_a_model_with_weights_beside_it_goes_the_whole_way(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    value = onnx.numpy_helper.from_array(n.rng.standard_normal((16, 16)).astype(np.float32), "v")
    n.output(n.gemm(n.op("MatMul", x, n.op("Constant", value=value)), 16, 8))
    proto = n.model()
    onnx.save_model(
        proto, bench.folder / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    assert (bench.folder / "net.bin").stat().st_size > 4 * 16 * 24
    model = open_model(bench.folder / "net.onnx")
    x_values = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    case = bench.quantize(model, bench.examples({"x": x_values}))
    assert case.problems() == []
    assert case.promised == {"QLinearMatMul": 1, "QGemm": 1}


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "..\\secret.bin", ""])
def test_weights_outside_the_folder_are_refused(location: str, small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    path.write_bytes(_external(small.model(), location, tmp_path / "secret.bin"))
    with pytest.raises(SecurityError) as caught:
        open_model(path)
    assert caught.value.slug == "external-data-escape"
    assert small.initializers[0].name in caught.value.message


def test_a_link_out_of_the_folder_is_refused(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    path.write_bytes(_external(small.model(), "w.bin", tmp_path / "secret.bin"))
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(SecurityError) as caught:
        open_model(path)
    assert caught.value.slug == "external-data-escape"


def test_an_escape_in_a_constant_node_is_refused(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 4))
    value = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "v")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    entry = value.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    n.output(n.op("MatMul", x, n.op("Constant", value=value)), shape=("N", 3))
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 48)
    with pytest.raises(SecurityError):
        open_model(n.save(tmp_path / "model", checked=False))


def test_a_missing_data_file_is_refused(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_external(small.model(), "gone.bin", None))
    assert refusal(path).slug == "external-data-missing"


def test_a_short_data_file_is_refused(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_external(small.model(), "m.bin", tmp_path / "m.bin"))
    (tmp_path / "m.bin").write_bytes(b"\0" * 10)
    assert refusal(path).slug == "model-broken"


# --- what is kept -------------------------------------------------------------------------------------------------


def test_doubled_node_names_are_mended_and_the_float_model_runs(small: Any, tmp_path: Path) -> None:
    for node in small.nodes:
        node.name = "layer"
    model = open_model(small.save(tmp_path))
    assert [op.name for op in model.view.ops] == ["layer", "layer_1", "layer_2"]
    assert dict(model.renamed) == {"layer_1": "layer", "layer_2": "layer"}
    RUNTIME.open(model.original, Options())  # ONNX Runtime refuses doubled names


def test_unnamed_nodes_get_names_and_the_original_stays_to_the_byte(small: Any, tmp_path: Path) -> None:
    for node in small.nodes:
        node.name = ""
    path = small.save(tmp_path)
    model = open_model(path)
    assert set(model.renamed.values()) == {""}
    assert model.original == path.read_bytes()


def test_input_and_output_names_survive_chains_of_identities(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 16))
    a = n.op("Identity", n.op("Identity", n.gemm(n.op("Identity", x), 16, 16)))
    n.output(n.op("Identity", a, out="first"), n.op("Identity", n.relu(a), out="second"))
    model = open_model(n.save(tmp_path))
    assert model.view.inputs == ("x",)
    assert model.view.outputs == ("first", "second")


def test_one_tensor_under_two_output_names_keeps_both(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 16))
    a = n.gemm(x, 16, 16)
    n.output(n.op("Identity", a, out="first"), n.op("Identity", a, out="second"))
    model = open_model(n.save(tmp_path))
    assert model.view.outputs == ("first", "second")
    RUNTIME.open(model.serialized(), Options())


def test_a_fixed_batch_is_kept(net: Any, bench: Any) -> None:
    n = net()
    x = n.input((4, 16, 8, 8))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", n.relu(n.conv(x, 16, 16)))), 16, 8))
    model = bench.open(n)
    assert model.inputs[0].shape == (4, 16, 8, 8)
    assert bench.run(n).problems() == []


def test_annotations_of_the_file_are_known_apart_from_inferred_ones(small: Any, tmp_path: Path) -> None:
    inner = small.nodes[0].output[0]
    small.value_info.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, ("N", 16)))
    assert open_model(small.save(tmp_path)).annotated == {inner}


def test_two_openings_give_the_same_bytes(small: Any, tmp_path: Path) -> None:
    path = small.save(tmp_path)
    assert open_model(path).serialized() == open_model(path).serialized()


def test_a_pass_that_changes_the_model_is_caught() -> None:
    before = {"y": np.array([1.0, -2.0], np.float32)}
    compare_outputs(before, {"y": before["y"] * (1 + 5e-4)}, "m.onnx: pass p")
    for after in ({"y": before["y"] * 1.01}, {"y": before["y"][:1]}, {}, {"y": np.array([1.0, np.nan], np.float32)}):
        with pytest.raises(ModelError) as caught:
            compare_outputs(before, after, "m.onnx: pass p")
        assert caught.value.slug == "pass-changed-model"


def test_a_pass_that_changes_indices_is_caught() -> None:
    with pytest.raises(ModelError):
        compare_outputs({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, "m.onnx: pass p")
