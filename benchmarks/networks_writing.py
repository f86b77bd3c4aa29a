"""A small builder of ONNX graphs that knows what each tensor holds, so that random weights give live activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]

OPSET = 20  # What torch 2.13 writes by default.
IR_VERSION = 9  # The IR version of opset 20.
LOGIT_STD = 3.0  # As in networks.py: a trained classifier is sure of some inputs.


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of the graph and its value for the examples that the graph is built on."""

    name: str
    value: Array


@dataclass(slots=True, eq=False)
class Graph:
    """A graph under construction; every node is computed by onnxruntime, on one thread, when it is added.

    ``parameters`` counts learned values as the published network does: a convolution whose BatchNormalization is folded
    counts gamma and beta.
    """

    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    parameters: int = 0
    _shared: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def input(self, name: str, value: Array) -> Tensor:
        self.inputs.append(Tensor(name, value))
        return self.inputs[-1]

    def weight(self, value: Array, name: str) -> Tensor:
        """Adds an initializer, float32."""
        tensor = Tensor(name, np.asarray(value, np.float32))
        self.initializers.append(numpy_helper.from_array(tensor.value, name))
        return tensor

    def constant(self, value: Any, dtype: Any = np.int64) -> Tensor:
        """Returns an initializer without a name of its own, shared by all that ask for the same value."""
        made = np.asarray(value, dtype)
        key = (made.dtype.str, made.shape, made.tobytes())
        if key not in self._shared:
            self._shared[key] = Tensor(f"constant_{len(self._shared)}", made)
            self.initializers.append(numpy_helper.from_array(made, self._shared[key].name))
        return self._shared[key]

    def add(self, op: str, *inputs: Tensor | None, **attributes: Any) -> Tensor:
        """Appends a node and returns its first output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        wanted = ["" if x is None else x.name for x in inputs]
        node = helper.make_node(op, wanted, [name], name=f"node_{name}", **attributes)
        self.nodes.append(node)
        return Tensor(name, _computed(node, {x.name: x.value for x in inputs if x is not None}))

    def linear(self, x: Tensor, out: int, name: str, *, std: float | None = None) -> Tensor:
        """Appends MatMul and Add; ``std`` of the weight is 1 / sqrt(inputs) by default, the bias is small."""
        width = x.value.shape[-1]
        weight = self.rng.normal(0.0, std or 1 / np.sqrt(width), (width, out))
        bias = self.rng.normal(0.0, 0.1, out)
        self.parameters += weight.size + bias.size
        product = self.add("MatMul", x, self.weight(weight, f"{name}.weight"))
        return self.add("Add", product, self.weight(bias, f"{name}.bias"))

    def norm(self, x: Tensor, name: str, *, epsilon: float) -> Tensor:
        """Appends LayerNormalization over the last axis, gamma 0.7 to 1.3, small beta."""
        width = x.value.shape[-1]
        gamma, beta = self.rng.uniform(0.7, 1.3, width), self.rng.normal(0.0, 0.1, width)
        self.parameters += 2 * width
        learned = self.weight(gamma, f"{name}.weight"), self.weight(beta, f"{name}.bias")
        return self.add("LayerNormalization", x, *learned, axis=-1, epsilon=epsilon, stash_type=1)

    def convolution(
        self,
        x: Tensor,
        out: int,
        name: str,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        folded: bool = True,
        gain: float = 1.0,
    ) -> Tensor:
        """Appends Conv with bias (He normal); ``folded``: with a BatchNormalization of real statistics in it.

        One that has none is scaled to a spread of 0.5. ``gain`` multiplies gamma and beta.
        """
        channels = x.value.shape[1] // groups
        weight = self.rng.normal(0.0, np.sqrt(2 / (channels * kernel**2)), (out, channels, kernel, kernel))
        bias = np.zeros(out) if folded else self.rng.normal(0.0, 0.1, out)
        attributes = {
            "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups,
            "dilations": [1, 1], "auto_pad": "NOTSET",
        }  # fmt: skip
        self.parameters += weight.size + out
        probe = {"x": x.value, "weight": weight.astype(np.float32)}
        y = _computed(helper.make_node("Conv", list(probe), ["y"], **attributes), probe)
        if folded:
            self.parameters += out
            variance = y.var(axis=(0, 2, 3), dtype=np.float64)
            variance += 0.2 * variance.mean()  # A channel that hardly moves on a few examples may move on others.
            scale = self.rng.uniform(0.5, 1.3, out) / np.sqrt(variance)
            bias = self.rng.normal(0.0, 0.3, out) - scale * y.mean(axis=(0, 2, 3), dtype=np.float64)
            weight *= gain * scale[:, None, None, None]
            bias *= gain
        else:
            weight *= 0.5 / y.std(dtype=np.float64)
        return self.add(
            "Conv", x, self.weight(weight, f"{name}.weight"), self.weight(bias, f"{name}.bias"), **attributes
        )

    def head(self, x: Tensor, classes: int) -> None:
        """Appends the classifier, a Gemm with transB; its bias removes what all examples have in common."""
        features = x.value.astype(np.float64)
        weight = self.rng.normal(0.0, 1.0, (classes, features.shape[1]))
        weight *= LOGIT_STD / ((features - features.mean(axis=0)) @ weight.T).std()
        bias = self.rng.normal(0.0, 0.1, classes) - weight @ features.mean(axis=0)
        self.parameters += weight.size + bias.size
        learned = self.weight(weight, "head.weight").name, self.weight(bias, "head.bias").name
        self.nodes.append(helper.make_node("Gemm", [x.name, *learned], ["logits"], name="node_logits", transB=1))

    def model(self, name: str, classes: int) -> ModelProto:
        """Returns the model; the first axis of inputs and output is dynamic."""
        inputs = [
            helper.make_tensor_value_info(
                x.name, helper.np_dtype_to_tensor_dtype(x.value.dtype), ["N", *x.value.shape[1:]]
            )
            for x in self.inputs
        ]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, name, inputs, [output], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _computed(node: NodeProto, feeds: dict[str, Array]) -> Array:
    """Returns the first output of one node, computed by onnxruntime on one thread: the same on every machine size."""
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()
    ]
    graph = helper.make_graph([node], "one_node", inputs, [_undeclared(node.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _undeclared(name: str) -> Any:
    """Returns the declaration of an output whose type the runtime infers."""
    return helper.make_empty_tensor_value_info(name)
