"""Small ONNX graphs for tests, and what becomes of them on the way from a file to the nodes that a runtime executes.

Not a test module: ``tests/conftest.py`` loads it by path and hands it out as fixtures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewbits.export import EXPORTERS
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options
from fewbits.targets import Forms, Placement, candidate, may_be_paired, place, resolve_target
from fewbits.targets.base import Kind, OpRule, Target

OPSET = 17
# What any opset between 13 and 21 may be written with.
_IR_VERSION = 8
# Kernels of one family: the second writes floats itself where no Q follows.
_FAMILIES = {"MatMulIntegerToFloat": "QLinearMatMul"}
# Operators that the runtime takes apart into several.
_RUNS_AS_SEVERAL = {"HardSwish": 2}


class Net:
    """Writes a graph node by node; every method returns the name of the tensor that it made.

    Weights are He-scaled and seeded, so that activations stay of order 1 and alive from layer to layer.
    """

    def __init__(self, *, seed: int = 0, opset: int = OPSET) -> None:
        self.rng = np.random.default_rng(seed)
        self.imports = [helper.make_opsetid("", opset)]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.value_info: list[onnx.ValueInfoProto] = []
        self._count = 0

    def _name(self, base: str) -> str:
        self._count += 1
        return f"{base.lower()}{self._count}"

    def input(self, shape: Iterable[int | str | None], name: str = "x", dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def const(self, values: Any, name: str | None = None, dtype: Any = np.float32) -> str:
        name = name or self._name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, dtype=np.int64)

    def weight(self, *shape: int, fan_in: int | None = None, name: str | None = None) -> str:
        fan_in = fan_in or int(np.prod(shape[1:]))
        return self.const(self.rng.standard_normal(shape) * np.sqrt(2 / fan_in), name or self._name("w"))

    def vector(self, size: int, name: str | None = None, scale: float = 0.1) -> str:
        return self.const(self.rng.standard_normal(size) * scale, name or self._name("b"))

    def op(self, kind: str, *inputs: str, name: str | None = None, out: str | None = None, **attrs: Any) -> str:
        name = name or self._name(kind)
        out = out or f"{name}_out"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=name, **attrs))
        return out

    def ops(self, kind: str, *inputs: str, outputs: int, name: str | None = None, **attrs: Any) -> list[str]:
        name = name or self._name(kind)
        outs = [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=name, **attrs))
        return outs

    def conv(
        self, x: str, cin: int, cout: int, k: int = 3, *, dims: int = 2, group: int = 1, bias: bool = True, **attrs: Any
    ) -> str:
        weight = self.weight(cout, cin // group, *[k] * dims)
        attrs.setdefault("pads", [k // 2] * (2 * dims))
        extra = [self.vector(cout)] if bias else []
        return self.op("Conv", x, weight, *extra, group=group, kernel_shape=[k] * dims, **attrs)

    def gemm(self, x: str, cin: int, cout: int, *, trans: int = 1, bias: bool = True, **attrs: Any) -> str:
        shape = (cout, cin) if trans else (cin, cout)
        extra = [self.vector(cout)] if bias else []
        return self.op("Gemm", x, self.weight(*shape, fan_in=cin), *extra, transB=trans, **attrs)

    def matmul(self, x: str, cin: int, cout: int) -> str:
        return self.op("MatMul", x, self.weight(cin, cout, fan_in=cin))

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def clip(self, x: str, low: float = 0.0, high: float = 6.0) -> str:
        return self.op("Clip", x, self.const(low), self.const(high))

    def norm(self, x: str, channels: int, *, name: str | None = None) -> str:
        gamma = self.const(self.rng.uniform(0.5, 1.5, channels))
        beta, mean = self.vector(channels), self.vector(channels)
        variance = self.const(self.rng.uniform(0.5, 1.5, channels))
        return self.op("BatchNormalization", x, gamma, beta, mean, variance, name=name)

    def output(self, *names: str, dtype: int = TensorProto.FLOAT, shape: Any = None) -> None:
        for name in names:
            self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def model(self, *, checked: bool = True) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "net", self.inputs, self.outputs, self.initializers, value_info=self.value_info
        )
        model = helper.make_model(graph, opset_imports=self.imports, ir_version=_IR_VERSION)
        inferred = {o.name: o for o in onnx.shape_inference.infer_shapes(model).graph.output}
        for output in model.graph.output:
            if not output.type.tensor_type.HasField("shape"):
                output.CopyFrom(inferred[output.name])
        if checked:
            onnx.checker.check_model(model, full_check=False)
        return model

    def save(self, folder: Path, name: str = "net.onnx", *, checked: bool = True) -> Path:
        path = folder / name
        path.write_bytes(self.model(checked=checked).SerializeToString())
        return path


class Examples:
    """Examples in memory, as the flow reads them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, indices: np.ndarray, size: int) -> Iterator[SimpleNamespace]:
        for start in range(0, len(indices), size):
            index = indices[start : start + size]
            yield SimpleNamespace(inputs={n: a[index] for n, a in self.arrays.items()}, labels=None, index=index)


def live_examples(model: OnnxModel, count: int, *, seed: int = 1, default: int = 8) -> Examples:
    """Returns standard normal examples; dynamic axes other than the first get ``default``."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in model.inputs:
        shape = (count, *(default if d is None else d for d in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        arrays[spec.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 4, shape).astype(dtype)
        )
    return Examples(arrays)


def sqnr_db(float_value: np.ndarray, quantized: np.ndarray) -> float:
    """Returns 10 log10(power of the float value / power of the difference)."""
    wanted = float_value.astype(np.float64)
    noise = float(np.square(wanted - quantized).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(np.square(wanted).sum() / noise))


@dataclass(kw_only=True)
class Case:
    """One model, quantized and executed; the comparison of promise and truth."""

    model: OnnxModel
    target: Target
    placement: Placement
    plan: Plan
    data: bytes
    executed: tuple[ExecutedNode, ...]
    outputs: dict[str, np.ndarray]
    float_outputs: dict[str, np.ndarray]
    feeds: dict[str, np.ndarray]

    @cached_property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self.data)

    @property
    def sqnr(self) -> dict[str, float]:
        """SQNR of every floating-point output in dB."""
        return {n: sqnr_db(v, self.outputs[n]) for n, v in self.float_outputs.items() if v.dtype.kind == "f"}

    @property
    def ops(self) -> Counter[str]:
        """What executed, conversions included: kernel families with their counts."""
        return Counter(node.op.split(".")[-1] for node in self.executed)

    def ran(self, numbers: Numbers) -> Counter[str]:
        return Counter(
            _FAMILIES.get(n.op.split(".")[-1], n.op.split(".")[-1]) for n in self.executed if n.numbers is numbers
        )

    @property
    def promised(self) -> Counter[str]:
        """Kernel families that the table promises in integers."""
        found: Counter[str] = Counter()
        for name in self.placement.integer:
            rule = candidate(self.model.view.by_name[name], self.model.view, self.target)
            assert isinstance(rule, OpRule)
            found[rule.runs_as] += 1
        return found

    @property
    def slugs(self) -> dict[str, str]:
        """Why each node stays float: operator type -> slug (of the last such node)."""
        view = self.model.view
        return {view.by_name[name].op: reason.slug for name, reason in self.placement.kept_float.items()}

    def boundaries(self) -> tuple[set[str], set[str]]:
        """Returns the tensors that have to be quantized, and those that have to be dequantized, at run time.

        The first come from the graph's inputs or float nodes; the second go to float nodes or the graph's outputs.
        All others lie inside a chain of integers, where no conversion may be left.
        """
        view, placement = self.model.view, self.placement
        inside = {*placement.integer, *placement.moved, *placement.absorbed}
        enter, leave = set(), set()
        for placed in placement.sites:
            name = placed.site.name
            if placed.site.role is not Role.ACTIVATION:
                continue
            producer = view.producer.get(name)
            if producer is None or producer.name not in inside:
                enter.add(name)
            readers = {op.name for op in view.consumers.get(name, ())}
            if (readers - inside and name not in enter) or name in view.outputs:
                leave.add(name)
        return enter, leave

    def problems(self) -> list[str]:
        """Returns every difference between what the table promises and what ran; empty where it keeps its word."""
        found = []
        integer, float_ops = self.ran(Numbers.INTEGER), self.ran(Numbers.FLOAT)
        for family, count in self.promised.items():
            if integer[family] != count:
                found.append(f"{count} x {family} promised, {integer[family]} ran")
        view = self.model.view
        kept = Counter(view.by_name[name].op for name in self.placement.kept_float)
        budget = sum(count * _RUNS_AS_SEVERAL.get(op, 1) for op, count in kept.items())
        budget += sum(node.name.endswith("_barrier") for node in self.proto.graph.node)
        if sum(float_ops.values()) > budget:
            found.append(f"{budget} float nodes foretold ({dict(kept)}), ran {dict(float_ops)}")
        enter, leave = self.boundaries()
        pairs = Counter(n.op.split(".")[-1] for n in self.executed)
        if pairs["QuantizeLinear"] != len(enter):
            found.append(f"{len(enter)} QuantizeLinear foretold ({sorted(enter)}), {pairs['QuantizeLinear']} ran")
        # The runtime gives each reader a DequantizeLinear of its own, and merges some again.
        inside = {*self.placement.integer, *self.placement.moved, *self.placement.absorbed}
        most = sum(
            sum(op.inputs.count(name) for op in view.consumers.get(name, ()) if op.name not in inside)
            + (name in view.outputs)
            for name in leave
        )
        by_kernel = sum(rule_restores(self, name) for name in self.placement.integer)
        if not len(leave) <= pairs["DequantizeLinear"] + by_kernel <= most + by_kernel:
            found.append(f"{len(leave)} DequantizeLinear foretold ({sorted(leave)}), {pairs['DequantizeLinear']} ran")
        return found


def rule_restores(case: Case, name: str) -> bool:
    """Returns whether an integer kernel writes floats itself, because its output is not quantized."""
    sites = {p.site.name for p in case.placement.sites}
    op = case.model.view.by_name[name]
    readers = [r for r in case.placement.absorbed if case.placement.absorbed[r] == name]
    results = {op.outputs[0], *(case.model.view.by_name[r].outputs[0] for r in readers)}
    return not results & sites


def is_compute(kind: Kind) -> bool:
    return kind in (Kind.WEIGHTED, Kind.LIGHT)


class Bench:
    """Takes models the whole way: open, place, plan, calibrate, quantize, export, execute."""

    def __init__(self, folder: Path, flow: SimpleNamespace) -> None:
        self.folder = folder
        self.flow = flow

    def examples(self, arrays: Mapping[str, np.ndarray]) -> Examples:
        return Examples(arrays)

    def open(self, net: Net | onnx.ModelProto, name: str = "net.onnx") -> OnnxModel:
        proto = net.model() if isinstance(net, Net) else net
        path = self.folder / name
        path.write_bytes(proto.SerializeToString())
        return open_model(path)

    def quantize(
        self,
        model: OnnxModel,
        examples: Examples,
        *,
        target: str = "ort-cpu",
        keep_float: tuple[str, ...] = (),
        paired: bool = False,
        feeds: Mapping[str, np.ndarray] | None = None,
        activation_range: str = "minmax",
    ) -> Case:
        rules = resolve_target(target)
        forms = Forms(keep_float=keep_float, paired=may_be_paired(model.view, rules) if paired else ())
        plan = self.flow.draft_plan(model, rules, forms=forms, activation_range=activation_range)
        sites = tuple(d.site for d in plan.quantized if d.role is Role.ACTIVATION)
        statistics = self.flow.observe(model, examples, np.arange(len(examples)), sites)
        integer = self.flow.check_plan(model, rules, plan)
        sink = EXPORTERS[rules.exporter].open(model, plan, integer=integer, metadata={})
        for site, value in self.flow.stream(model, plan, rules, statistics):
            sink.write(site, value)
        data = sink.close()
        path = self.folder / "quantized.onnx"
        path.write_bytes(data)
        runtime = RUNTIMES[rules.runtime]
        how = Options(runtime=rules.runtime, precision=rules.variant.precision)
        fed = dict(feeds or examples.arrays)
        return Case(
            model=model,
            target=rules,
            placement=place(model.view, rules, keep_float=keep_float, paired=forms.paired),
            plan=plan,
            data=data,
            executed=runtime.executed(path, how, fed),
            outputs=runtime.open(path, how).run(fed),
            float_outputs=RUNTIMES["ort"].open(model.original, Options()).run(fed),
            feeds=fed,
        )

    def run(self, net: Net | onnx.ModelProto, *, count: int = 8, **options: Any) -> Case:
        model = self.open(net)
        batch = next((s.shape[0] for s in model.inputs if s.shape), None)
        return self.quantize(model, live_examples(model, batch or count), **options)
