"""Standard QDQ ONNX: QuantizeLinear and DequantizeLinear around float operators; runtimes fuse them into integers.

A weight becomes integer codes behind a DequantizeLinear; a bias int32 codes behind one; an activation a pair of both.
Names, doc strings and annotations of the model stay; every new name is the tensor's own with a short ending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fewbits.export._blocks import BlockWriter
from fewbits.export._clips import clips_behind, hide_clip
from fewbits.export._data_file import LEAST_OUTSIDE_BYTES, DataFile
from fewbits.export._dynamic import DynamicWriter
from fewbits.export._halves import half_array
from fewbits.export.base import Exporter, Sink
from fewbits.models.onnx.bodies import bodies, inner_initializers, inner_names
from fewbits.models.onnx.editing import int_attribute
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.granularity import PerChannel, PerGroup
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.planning.plan import Plan
from fewbits.planning.site import Link, Role, Site
from fewbits.targets import TARGETS, carriers
from fewbits.targets._stored import LARGE_TABLE
from fewbits.targets.base import Kind

_PRODUCER = "fewbits"
# Operators that move codes themselves, because the runtime keeps Q/DQ around them: their fill value input.
_FILL_INPUT = {"Pad": 2}
# Operators that clip the codes themselves where no saturation does it for them.
_CLIPS = {"Relu", "Clip"}
# Operators whose factor is another scale of the same codes.
_SCALES = {"Mul", "Div"}
# Layers that ONNX Runtime quantizes by itself, with one scale for the whole weight, wherever it finds them between DQ
# and Q (WeightBiasQuantization, 1.31): a layer kept float on purpose would run in worse integers than ours.
_SEIZED = {"Conv", "ConvTranspose", "Gemm"}
# Operators of which it makes integer kernels that are slower than the float ones.
_SEIZED_LIGHT = {"AveragePool", "Softmax"}
# Operators through which it pushes Q and DQ, or drops beside a Q.
_SEEN_THROUGH = {
    "Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand",
}  # fmt: skip
# An identity that no optimizer removes: a Sum of one.
_BARRIER = "Sum"
# Operators that multiply by codes themselves where these are stored a scale a channel.
_PRODUCTS = {"MatMul", "Gemm"}
# Operators that read the form of a tensor, never its values: codes do as well, and need no DequantizeLinear.
_READ_FORM = {"Shape", "Size"}


@final
class _QdqSink(Sink):
    """Edits a copy of the graph, site by site."""

    def __init__(
        self,
        model: OnnxModel,
        plan: Plan,
        integer: tuple[str, ...],
        metadata: Mapping[str, str],
        outside: DataFile | None,
    ) -> None:
        self._outside = outside
        self._stored = {d.site for d in plan.decisions if d.stored}
        self._dynamic = {d.site for d in plan.decisions if d.dynamic}
        self._model = model
        self._ir = model.ir_model.clone()
        self._graph = self._ir.graph
        self._integer = set(integer)
        self._links = {link.member: link for link in plan.links}
        self._metadata = metadata
        self._values = {v.name: v for v in (*self._graph.inputs, *self._graph.initializers.values())}
        self._values.update({out.name: out for node in self._graph for out in node.outputs})
        self._values.update(inner_initializers(self._graph))
        self._codes: dict[str, ir.Value] = {}
        self._params: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._halves: dict[tuple[ir.Graph, str, tuple[int, ...], bytes], ir.Value] = {}
        inner = [name for body in bodies(self._graph) for _, node in body.nodes for name in _names_of(node)]
        inner += [value.name or "" for value in inner_names(self._graph)]
        outer = [name for node in self._graph for name in _names_of(node)]
        self._names = set(filter(None, self._values)) | {*outer, *inner}
        self._target = TARGETS[plan.target.partition(":")[0]]
        self._carriers = carriers(model.view, self._target, integer, (d.site for d in plan.quantized if d.is_static))
        level = self._target.accuracy_level
        self._blocks = BlockWriter(self._ir, initializer=self._initializer, name=self._name, accuracy_level=level or 0)
        self._as_they_come = DynamicWriter(self._ir, initializer=self._initializer, name=self._name)

    def write(self, site: Site, value: QTensor | QParams) -> None:
        if isinstance(value, QParams):
            self._write_activation(site, value)
        elif site.name in self._stored:
            if isinstance(value.scheme.granularity, PerGroup):
                self._blocks.write(self._values[site.name], value)
            elif not value.scheme.scaled:
                self._write_half(site, value)
            else:
                self._write_stored(site, value)
        elif site.name in self._dynamic:
            self._as_they_come.write(self._values[site.name], value)
        else:
            self._write_constant(site, value)

    def close(self) -> bytes:
        self._ir.producer_name = _PRODUCER
        self._ir.metadata_props.update(self._metadata)
        self._graph.sort()
        RemoveUnusedNodesPass()(self._ir)  # a DQ whose only reader now moves the codes themselves
        for graph in (self._graph, *self._graph.subgraphs()):
            _drop_unread_initializers(graph)
        if self._outside is not None:
            self._outside.take_over(self._graph)
        proto = ir.to_proto(self._ir)
        annotated = self._model.annotated
        kept = [info for info in proto.graph.value_info if info.name in annotated]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
        return bytes(proto.SerializeToString(deterministic=True))

    def _name(self, base: str) -> str:
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}{count}", count + 1
        self._names.add(name)
        return name

    def _initializer(self, base: str, array: np.ndarray, graph: ir.Graph | None = None) -> ir.Value:
        """Returns a fixed tensor of a graph, the main one unless another is named."""
        name = self._name(base)
        outside = self._outside if graph is None or graph is self._graph else None
        tensor: ir.TensorProtocol
        if outside is not None and array.nbytes >= LEAST_OUTSIDE_BYTES:
            tensor = outside.append(np.ascontiguousarray(array), name)
        else:
            tensor = ir.Tensor(
                np.array(array, order="C"), name=name
            )  # ir.tensor asks what it is for half a millisecond
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        (graph or self._graph).register_initializer(value)
        return value

    def _zero_point(self, array: np.ndarray) -> ir.Value:
        """Returns a zero-point initializer; equal ones are stored once."""
        key = f"{array.dtype.name}_{array.size}" if not array.any() and array.ndim else f"{array.dtype.name}_{array}"
        name = f"zp_{key}"
        existing = self._graph.initializers.get(name)
        if existing is not None and existing.const_value is not None:
            held = existing.const_value.numpy()
            if held.dtype == array.dtype and np.array_equal(held, array):
                return existing
        if array.ndim and array.any():
            name = "zp"
        return self._initializer(name, array)

    def _write_constant(self, site: Site, value: QTensor) -> None:
        """Replaces a fixed tensor by its codes behind a DequantizeLinear."""
        old = self._values[site.name]
        per_channel = value.scheme.granularity if isinstance(value.scheme.granularity, PerChannel) else None
        scale = np.asarray(value.scale, dtype=np.float32)
        scale = scale.reshape(-1) if per_channel else scale.reshape(())
        inputs = [
            self._initializer(f"{site.name}_q", np.asarray(value.codes)),
            self._initializer(f"{site.name}_s", scale),
        ]
        if site.role is not Role.BIAS:  # int32 has no zero point to tell its type by
            zero = np.asarray(value.zero_point).reshape(scale.shape).astype(value.codes.dtype)
            if zero.any() or self._target.weight_zero_points:
                inputs.append(self._zero_point(zero))
        attributes = {"axis": per_channel.axis} if per_channel else {}
        node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=self._name(f"{site.name}_dq"))
        node.outputs[0].name = self._name(f"{site.name}_f")
        self._graph.append(node)
        for user, index in tuple(old.uses()):
            if user.name in self._integer:
                user.replace_input_with(index, node.outputs[0])

    def _write_stored(self, site: Site, value: QTensor) -> None:
        """Lets all readers of a fixed tensor read its dequantized codes; what picks rows of it picks rows of codes."""
        old = self._values[site.name]
        codes, scale = np.asarray(value.codes), np.asarray(value.scale, dtype=np.float32)
        uses = tuple(old.uses())
        rows = [(node, index) for node, index in uses if node.op_type == "Gather" and index == 0]
        others = [(node, index) for node, index in uses if (node, index) not in rows]
        assert isinstance(value.scheme.granularity, PerChannel)
        axis = value.scheme.granularity.axis
        turned = all(node.op_type == "Gemm" and int_attribute(node, "transB", 0) for node, _ in uses)
        if turned:  # the runtime fuses the dequantization of a weight that lies as [in, out] only
            codes, axis = np.ascontiguousarray(codes.T), 1
            for node, _ in others:
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
        home = _home(uses)
        held = self._initializer(f"{site.name}_q", codes, home)
        if others:
            inputs = [held, self._initializer(f"{site.name}_s", scale.reshape(-1), home)]
            zero = np.zeros(scale.size, codes.dtype)
            inputs.append(
                self._zero_point(zero) if home is self._graph else self._initializer(f"{site.name}_z", zero, home)
            )
            node = ir.node("DequantizeLinear", inputs, attributes={"axis": axis}, name=self._name(f"{site.name}_dq"))
            node.outputs[0].name = self._name(f"{site.name}_f")
            home.append(node)
            for user, index in others:
                user.replace_input_with(index, node.outputs[0])
            for clip in [clip for user, _ in others if user.op_type in _PRODUCTS for clip in clips_behind(user)]:
                hide_clip(clip, self._initializer, self._name)
        if rows:
            scales = self._initializer(f"{site.name}_rows", scale, home)
            for user, _ in rows:
                self._gather_codes(user, held, scales)

    def _write_half(self, site: Site, value: QTensor) -> None:
        """Lets all readers of a fixed tensor, those inside bodies too, read the Cast of its 16-bit floats."""
        old = self._values[site.name]
        home = old.graph if isinstance(old.graph, ir.Graph) else self._graph
        uses = tuple(old.uses())
        array = half_array(value)
        # Opening gives readers along another axis a copy of the weight, for scales that 16-bit floats have none of.
        key = home, array.dtype.name, array.shape, sha256(array.view(np.uint8).data).digest()
        if key in self._halves:
            for user, index in uses:
                user.replace_input_with(index, self._halves[key])
            return
        held = self._initializer(f"{site.name}_{value.scheme.format.name}", array, home)
        if held.const_value is not None and held.const_value.size >= LARGE_TABLE and all(map(_picks_rows, uses)):
            for gather, _ in uses:
                self._gather_halves(gather, held)
            return
        node = ir.node("Cast", [held], attributes={"to": int(ir.DataType.FLOAT)}, name=self._name(f"{site.name}_cast"))
        made = node.outputs[0]
        made.name, made.shape, made.type = self._name(f"{site.name}_f"), old.shape, ir.TensorType(ir.DataType.FLOAT)
        home.append(node)
        self._halves[key] = made
        for user, index in uses:
            user.replace_input_with(index, made)

    def _gather_halves(self, gather: ir.Node, held: ir.Value) -> None:
        """Turns Gather of values into the Cast of a Gather of 16-bit floats."""
        old, graph = gather.outputs[0], _home([(gather, 0)])
        name, taken = gather.name or "gather", old.name
        gather.replace_input_with(0, held)
        wide = ir.node("Cast", [None], attributes={"to": int(ir.DataType.FLOAT)}, name=self._name(f"{name}_cast"))
        ir.convenience.replace_all_uses_with(old, wide.outputs[0], replace_graph_outputs=True)
        wide.replace_input_with(0, old)
        old.name, old.type = self._name(f"{taken}_half"), held.type
        made = wide.outputs[0]
        made.name, made.shape, made.type = taken, old.shape, ir.TensorType(ir.DataType.FLOAT)
        graph.append(wide)

    def _gather_codes(self, gather: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
        """Turns Gather of values into Gather of codes, times the scales of the same rows."""
        old = gather.outputs[0]
        name, attributes = gather.name or "gather", dict(gather.attributes)
        gather.replace_input_with(0, codes)
        picked = ir.node("Gather", [scales, gather.inputs[1]], attributes=attributes, name=self._name(f"{name}_scale"))
        wide = ir.node("Cast", [None], attributes={"to": int(ir.DataType.FLOAT)}, name=self._name(f"{name}_cast"))
        made = ir.node("Mul", [wide.outputs[0], picked.outputs[0]], name=self._name(f"{name}_dq"))
        ir.convenience.replace_all_uses_with(old, made.outputs[0], replace_graph_outputs=True)
        wide.replace_input_with(0, old)
        taken = old.name
        old.name, old.type = self._name(f"{taken}_q"), ir.TensorType(codes.dtype or ir.DataType.INT8)
        made.outputs[0].name, made.outputs[0].shape = taken, old.shape
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for node in (picked, wide):
            node.outputs[0].name = self._name(f"{node.name}_out")
        graph = _home([(gather, 0)])
        graph.extend([picked, wide, made])

    def _write_activation(self, site: Site, value: QParams) -> None:
        """Puts Q and DQ behind a tensor."""
        link = self._links.get(site.name)
        scale, zero = self._activation_params(site, value, link)
        old = self._values[site.name]
        readers = self._readers(old, site)
        kind = None if link is None else self._node(link.node)
        if link is not None and kind is not None and kind.op_type in _FILL_INPUT:
            codes = self._move_codes(link, zero)
        elif link is not None and kind is not None and kind.op_type in _CLIPS:
            codes = self._clip_codes(kind, link, scale, zero)
        elif kind is not None and kind.op_type in _SCALES:
            codes = self._codes_of(kind.inputs[0])
        else:
            source = self._shielded(old, site) if self._would_be_seized(old) else old
            quantizer = ir.node("QuantizeLinear", [source, scale, zero], name=self._name(f"{site.name}_Q"))
            quantizer.outputs[0].name = self._name(f"{site.name}_q")
            self._graph.append(quantizer)
            codes = quantizer.outputs[0]
        self._codes[site.name] = codes
        restorer = ir.node("DequantizeLinear", [codes, scale, zero], name=self._name(f"{site.name}_DQ"))
        restored = restorer.outputs[0]
        restored.name = self._name(f"{site.name}_f")
        self._graph.append(restorer)
        for user, index in readers:
            user.replace_input_with(index, codes if user.op_type in _READ_FORM else restored)
        self._take_over_output(old, restored, site)

    def _would_be_seized(self, value: ir.Value) -> bool:
        """Returns whether a float layer writes a tensor and reads dequantized values, both seen as the runtime does."""
        layer = _producer(value) if self._target.seizes_float else None
        if layer is None or layer.name in self._integer or layer.op_type not in (*_SEIZED, *_SEIZED_LIGHT):
            return False
        source = layer.inputs[0]
        weight = layer.inputs[1] if layer.op_type in _SEIZED else None
        before = None if source is None else _producer(source)
        fixed = weight is not None and weight.is_initializer()
        return (fixed or layer.op_type in _SEIZED_LIGHT) and before is not None and before.op_type == "DequantizeLinear"

    def _shielded(self, value: ir.Value, site: Site) -> ir.Value:
        """Returns a copy of a tensor behind an identity that keeps the runtime from quantizing the layer before it."""
        barrier = ir.node(_BARRIER, [value], name=self._name(f"{site.name}_barrier"))
        barrier.doc_string = "Keeps the float layer before it float."
        barrier.outputs[0].name = self._name(f"{site.name}_b")
        self._graph.append(barrier)
        return barrier.outputs[0]

    def _activation_params(self, site: Site, value: QParams, link: Link | None) -> tuple[ir.Value, ir.Value]:
        if link is not None and link.root in self._params and link.factor == 1.0:
            self._params[site.name] = self._params[link.root]
        else:
            dtype = np.dtype(value.scheme.format.code_dtype)
            scale = self._initializer(f"{site.name}_s", np.asarray(value.scale, dtype=np.float32))
            self._params[site.name] = scale, self._zero_point(np.asarray(value.zero_point).astype(dtype))
        return self._params[site.name]

    def _written_by_integer(self, old: ir.Value) -> bool:
        """Returns whether an integer operator needs this Q, directly or through the clip that it absorbs."""
        node = old.producer()
        if node is None:
            return False
        if node.name in self._integer or (old.name in self._links):
            return True
        source = node.inputs[0].producer() if node.op_type in ("Relu", "Clip") and node.inputs[0] is not None else None
        return source is not None and source.name in self._integer

    def _readers(self, old: ir.Value, site: Site) -> list[tuple[ir.Node, int]]:
        """Returns who reads the dequantized values.

        Behind an integer operator that is everybody (a second, float reader would break the fusion); behind a float
        operator or a graph input only the integer operators and those that move codes for them.
        """
        uses = [(use.node, use.idx) for use in old.uses()]
        if self._written_by_integer(old) or self._fused_behind_integer(old):
            return uses
        movers = {link.node for link in self._links.values() if link.root == site.name}
        movers |= self._carriers.get(site.name, set())
        return [(node, index) for node, index in uses if node.name in self._integer or node.name in movers]

    def _fused_behind_integer(self, old: ir.Value) -> bool:
        """Returns whether an integer operator's kernel writes a tensor, behind float operators that it takes in.

        A kernel takes in what follows it, and a Q behind a Concat moves before it; what computes on the result of a
        Concat is no kernel's, so its float readers need not read rounded values.
        """
        kinds = {op: rule.kind for op, rule in self._target.rules.items()}
        if Kind.FUSED not in kinds.values():
            return False
        seen, waiting = set(), [(old, False)]
        while waiting:
            value, computed = waiting.pop()
            node = value.producer()
            if node is None or (node, computed) in seen:
                continue
            seen.add((node, computed))
            if node.name in self._integer:
                return True
            if kinds.get(node.op_type) is Kind.FUSED and not (computed and node.op_type == "Concat"):
                computed = computed or node.op_type != "Concat"
                waiting += [(before, computed) for before in node.inputs if before is not None]
        return False

    def _node(self, name: str) -> ir.Node | None:
        return next((node for node in self._graph if node.name == name), None)

    def _codes_of(self, value: ir.Value | None) -> ir.Value:
        """Returns the codes behind a dequantized tensor."""
        restorer = None if value is None else value.producer()
        assert restorer is not None and restorer.op_type == "DequantizeLinear" and restorer.inputs[0] is not None
        return restorer.inputs[0]

    def _clip_codes(self, node: ir.Node, link: Link, scale: ir.Value, zero: ir.Value) -> ir.Value:
        """Returns the codes behind a Clip of codes: from the one that stands for 0 to the one for the upper end."""
        assert zero.const_value is not None and scale.const_value is not None
        inputs: list[ir.Value | None] = [self._codes_of(node.inputs[0]), zero]
        upper = node.inputs[2] if node.op_type == "Clip" and len(node.inputs) > 2 else None
        if upper is not None:
            assert upper.const_value is not None
            low = zero.const_value.numpy()
            steps = np.rint(upper.const_value.numpy().reshape(()) / scale.const_value.numpy())
            highest = np.iinfo(low.dtype).max
            inputs.append(self._initializer(f"{link.member}_high", np.minimum(low + steps, highest).astype(low.dtype)))
        clip = ir.node("Clip", inputs, name=self._name(f"{link.member}_clip"))
        clip.outputs[0].name = self._name(f"{link.member}_q")
        self._graph.append(clip)
        return clip.outputs[0]

    def _move_codes(self, link: Link, zero: ir.Value) -> ir.Value:
        """Lets an operator that moves elements run on the codes; its fill value is the code of zero."""
        node = next(n for n in self._graph if n.name == link.node)
        fill = _FILL_INPUT[node.op_type]
        node.replace_input_with(0, self._codes_of(node.inputs[0]))
        mode = node.attributes.get("mode")
        if mode is None or mode.value == "constant":
            if len(node.inputs) <= fill:
                node.resize_inputs(fill + 1)
            node.replace_input_with(fill, zero)
        output = node.outputs[0]
        output.name = self._name(f"{link.member}_q")
        output.type = ir.TensorType(zero.dtype) if zero.dtype is not None else None
        return output

    def _take_over_output(self, old: ir.Value, restored: ir.Value, site: Site) -> None:
        """Lets the dequantized tensor be the graph's output under its old name."""
        if not old.is_graph_output() or old.is_graph_input():  # an input that is handed through stays as it is
            return
        outputs = self._graph.outputs
        # Not the old type: where the operator itself now moves codes, that is theirs.
        restored.shape, restored.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
        for index, output in enumerate(outputs):
            if output is old:
                outputs[index] = restored
        old.name, restored.name = self._name(f"{site.name}_float"), site.name


def _producer(value: ir.Value) -> ir.Node | None:
    """Returns the node that computes a tensor, seen through operators that move or clip."""
    node = value.producer()
    while node is not None and node.op_type in _SEEN_THROUGH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _picks_rows(use: tuple[ir.Node, int]) -> bool:
    return use[0].op_type == "Gather" and use[1] == 0


def _names_of(node: ir.Node) -> list[str]:
    """Returns the names that a node takes: its own and those of what it writes."""
    return [name for name in (node.name, *(output.name for output in node.outputs)) if name]


def _home(uses: Sequence[tuple[ir.Node, int]]) -> ir.Graph:
    """Returns the graph that all readers of a weight stand in."""
    graph = uses[0][0].graph
    assert isinstance(graph, ir.Graph)
    return graph


def _drop_unread_initializers(graph: Any) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)


@final
class OnnxQdq(Exporter):
    """Standard QDQ ONNX."""

    def open(
        self,
        model: OnnxModel,
        plan: Plan,
        *,
        integer: tuple[str, ...],
        metadata: Mapping[str, str],
        data_file: Path | None = None,
    ) -> Sink:
        return _QdqSink(model, plan, integer, metadata, None if data_file is None else DataFile(data_file))


EXPORTER: Exporter = OnnxQdq()
