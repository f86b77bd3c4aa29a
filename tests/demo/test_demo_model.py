"""The embedded model of ``fewbits demo`` is what its README says."""

from __future__ import annotations

import hashlib
import math
import re
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

FOLDER = Path(str(resources.files("fewbits") / "demo"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(FOLDER / "digits.onnx")


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as members:
        return dict(members)


def run(model: onnx.ModelProto, outputs: list[str], image: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"image": image})


def counts(model: onnx.ModelProto) -> dict[str, int]:
    ops = [node.op_type for node in model.graph.node]
    return {op: ops.count(op) for op in set(ops)}


def test_readme_states_the_bytes_and_hashes_of_both_files() -> None:
    for name in ("digits.onnx", "digits.npz"):
        content = (FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() in README
        assert re.search(rf"^\| `{re.escape(name)}` .*\| {len(content):,} \|$", README, re.MULTILINE)


def test_the_model_is_under_500_kilobytes_and_the_data_under_one_megabyte() -> None:
    assert (FOLDER / "digits.onnx").stat().st_size < 500_000
    assert (FOLDER / "digits.npz").stat().st_size < 1_000_000


def test_input_and_output_have_the_promised_names_types_and_a_dynamic_batch(model: onnx.ModelProto) -> None:
    def signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
        shape = value.type.tensor_type.shape.dim
        return value.name, value.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in shape]

    assert [signature(v) for v in model.graph.input] == [("image", onnx.TensorProto.FLOAT, ["batch", 1, 32, 32])]
    assert [signature(v) for v in model.graph.output] == [("logits", onnx.TensorProto.FLOAT, ["batch", 10])]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


@pytest.mark.parametrize("batch", [1, 16])
def test_the_model_runs_at_any_batch(model: onnx.ModelProto, data: dict[str, np.ndarray], batch: int) -> None:
    (logits,) = run(model, ["logits"], data["image"][:batch])
    assert logits.shape == (batch, 10)
    assert np.isfinite(logits).all()


def test_the_model_has_what_makes_quantization_hard(model: onnx.ModelProto) -> None:
    assert counts(model) == {
        "Conv": 8,
        "BatchNormalization": 8,
        "Clip": 7,
        "Add": 2,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    groups = [a.i for node in model.graph.node if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert sorted(groups) == [1] * 6 + [32, 64]
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    limits = {(float(values[n.input[1]]), float(values[n.input[2]])) for n in model.graph.node if n.op_type == "Clip"}
    assert limits == {(0.0, 6.0)}


def test_no_convolution_is_folded_with_its_batchnorm(model: onnx.ModelProto) -> None:
    makers = {node.output[0]: node for node in model.graph.node}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert all(makers[node.input[0]].op_type == "Conv" and len(makers[node.input[0]].input) == 2 for node in norms)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert all(np.ptp(values[node.input[4]]) > 0 for node in norms)  # trained statistics, not the identity


def test_every_node_and_tensor_has_a_name_of_its_own(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    onnx.checker.check_model(model, full_check=True)


def test_the_metadata_name_producer_and_licences(model: onnx.ModelProto) -> None:
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "fewbits"
    assert facts["license"] == "Apache-2.0"
    assert facts["data_license"] == "CC-BY-4.0"
    assert "10.24432/C50P49" in facts["data"]
    assert model.doc_string
    assert model.graph.doc_string


def test_multiply_accumulates_are_those_of_the_readme_and_above_12_million(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    macs = 0
    for node in model.graph.node:
        if node.op_type == "Conv":  # weight [out, in / group, kh, kw]; each output pixel sums in / group * kh * kw
            macs += math.prod(shapes[node.output[0]][1:]) * math.prod(weights[node.input[1]][1:])
        elif node.op_type == "Gemm":
            macs += math.prod(weights[node.input[1]])
    assert macs >= 12_000_000
    assert f"{macs / 1e6:.1f} million multiply-accumulates" in README


def test_parameters_are_those_of_the_readme(model: onnx.ModelProto) -> None:
    # Trained ones: running means and variances are measured, zero and six are constants.
    trained = [t for t in model.graph.initializer if not t.name.endswith(("bn_mean", "bn_var")) and t.dims]
    assert f"{sum(math.prod(t.dims) for t in trained):,} trained parameters" in README


def test_accuracy_on_the_held_out_images_is_exactly_that_of_the_readme(
    model: onnx.ModelProto, data: dict[str, np.ndarray]
) -> None:
    (logits,) = run(model, ["logits"], data["image"])
    # Exact, because no decision is closer than the sums of any float32 kernel can move: logits are below 8, and the
    # longest sum has 576 terms, so a kernel's error is below about 8 * sqrt(576 * 9 layers) * 2^-24 = 4e-5.
    top = np.sort(logits, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 1e-3
    right = int((logits.argmax(axis=1) == data["labels"]).sum())
    assert f"**Accuracy: {right} of {len(logits)} = {right / len(logits):.2%}**".replace("%", " %") in README
    assert right / len(logits) > 0.97


def test_no_channel_is_dead_and_relu6_meets_both_its_limits(
    model: onnx.ModelProto, data: dict[str, np.ndarray]
) -> None:
    names = [node.output[0] for node in model.graph.node if node.op_type == "Clip"]
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    layers = run(opened, names, data["image"][:256])
    assert all((layer.max(axis=(0, 2, 3)) > 0.1).all() for layer in layers)
    assert all(0.2 < (layer == 0).mean() < 0.7 for layer in layers)
    assert sum((layer == 6).any() for layer in layers) >= 5


def test_the_data_hold_plain_arrays_on_the_stated_grid(data: dict[str, np.ndarray]) -> None:
    assert sorted(data) == ["image", "labels"]
    image, labels = data["image"], data["labels"]
    assert (image.dtype, labels.dtype) == (np.float32, np.int64)
    assert image.shape == (1021, 1, 32, 32)
    assert labels.shape == (1021,)
    assert set((image * 16).ravel().tolist()) == set(range(17))
    assert np.bincount(labels).min() >= 90
    assert len(np.unique(image.reshape(len(image), -1), axis=0)) == len(image)  # an example is never in two parts
