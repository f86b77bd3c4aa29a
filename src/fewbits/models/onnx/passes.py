"""Graph passes: each a contract (requires, call, ensures) that leaves the function computed by the model unchanged.

The passes of onnx-ir do what is common; those here bring a graph into the form in which quantization is easy.
``run_passes`` checks each one numerically against the model before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm, fold_batchnorm

# Weight channel axis of the layers that can take in a batch normalization.
_NORMALIZABLE: dict[str, Callable[[ir.Node], int]] = {
    "Conv": lambda node: 0,
    "ConvTranspose": lambda node: 1,
    "Gemm": lambda node: 0 if _int(node, "transB", 0) else 1,
}


def _int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.value)


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attr = node.attributes.get(name)
    return None if attr is None else tuple(int(v) for v in attr.value)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads a tensor, None where there are several, none, or the graph's output does."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _fresh(graph: ir.Graph, base: str) -> str:
    taken = set(graph.initializers) | {v.name for v in graph.inputs} | {o.name for n in graph for o in n.outputs}
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    return name


def _add_initializer(graph: ir.Graph, base: str, array: np.ndarray) -> ir.Value:
    """Returns a new initializer with a name that nothing else bears."""
    name = _fresh(graph, base)
    tensor = ir.tensor(np.array(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _drop_unread(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    for value in values:
        if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


def _bypass(node: ir.Node, source: ir.Value) -> None:
    """Removes a node of one output; ``source`` takes over its readers and, so that outputs keep it, its name."""
    graph = node.graph
    assert graph is not None and isinstance(graph, ir.Graph)
    old = node.outputs[0]
    name, shape = old.name, old.shape
    ir.convenience.replace_all_uses_with(old, source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    source.name = name
    if source.shape is None:
        source.shape = shape


class _CountingPass(InPlacePass):
    """An in-place pass that counts what it changed."""

    def rewrite(self, graph: ir.Graph) -> int:
        """Returns how many nodes were rewritten."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> PassResult:
        return PassResult(model, modified=self.rewrite(model.graph) > 0)


@final
class MendNames(_CountingPass):
    """Gives every node a name of its own; ``renamed`` maps each new name to the old one. Ensures: names are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.renamed: dict[str, str] = {}

    def rewrite(self, graph: ir.Graph) -> int:
        taken = {node.name for node in graph if node.name}
        seen: set[str] = set()
        for index, node in enumerate(graph):
            if node.name and node.name not in seen:
                seen.add(node.name)
                continue
            base = node.name or f"{node.op_type}_{index}"
            name, count = base, 1
            while name in taken or name in seen:
                name, count = f"{base}_{count}", count + 1
            self.renamed[name] = node.name or ""
            node.name = name
            seen.add(name)
        return len(self.renamed)

    def ensures(self, model: ir.Model) -> None:
        names = [node.name for node in model.graph]
        if len(set(names)) != len(names) or "" in names or None in names:
            raise PostconditionError("node names are not unique")


@final
class DropInference(_CountingPass):
    """Removes Dropout, which does nothing when a model is run. Ensures: none is left whose mask is unread."""

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            training = _constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)
            masks = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
            source = node.inputs[0] if node.op_type == "Dropout" and node.domain in ("", "ai.onnx") else None
            if source is None or masks or training is None or bool(training) or source.is_graph_input():
                continue
            if node.outputs[0].is_graph_output() and source.is_graph_output():
                continue
            if node.outputs[0].is_graph_output():
                _bypass(node, source)
            else:
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                graph.remove(node, safe=True)
            count += 1
        return count


@final
class UnshareBiases(_CountingPass):
    """Gives each layer a bias of its own: a quantized bias has its layer's scale. Ensures: one reader a bias."""

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        seen: set[str] = set()
        for node in graph:
            if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
                continue
            bias = node.inputs[2]
            array = _constant(bias)
            if bias is None or array is None or bias.name is None:
                continue
            if bias.name in seen or any(use.idx != 2 for use in bias.uses()):
                node.replace_input_with(2, _add_initializer(graph, f"{bias.name}_copy", array))
                count += 1
            else:
                seen.add(bias.name)
        return count


@final
class FoldBatchNorm(_CountingPass):
    """Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it, where that feeds nothing else.

    Requires: statistics fixed in the file. Ensures: no such pair is left.
    """

    def _pair(self, norm: ir.Node) -> ir.Node | None:
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
            return None
        if any(out.uses() or out.is_graph_output() for out in norm.outputs[1:]):
            return None
        layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if layer is None or layer.op_type not in _NORMALIZABLE or _only_reader(layer.outputs[0]) is not norm:
            return None
        if layer.op_type == "ConvTranspose" and _int(layer, "group", 1) != 1:
            return None
        weights = [_constant(value) for value in (layer.inputs[1], *norm.inputs[1:])]
        biased = len(layer.inputs) > 2 and layer.inputs[2] is not None
        bias = _constant(layer.inputs[2]) if biased else None
        if any(w is None or w.dtype != np.float32 for w in weights) or (biased and (bias is None or bias.ndim != 1)):
            return None
        plain = all(float(layer.attributes[n].value) == 1.0 for n in ("alpha", "beta") if n in layer.attributes)
        return layer if plain else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for norm in list(graph):
            layer = self._pair(norm)
            if layer is None:
                continue
            weight = layer.inputs[1]
            assert weight is not None
            bias = layer.inputs[2] if len(layer.inputs) > 2 else None
            gamma, beta, mean, variance = (value.const_value.numpy() for value in norm.inputs[1:])  # type: ignore[union-attr]
            epsilon = float(norm.attributes["epsilon"].value) if "epsilon" in norm.attributes else 1e-5
            folded, offset = fold_batchnorm(
                weight.const_value.numpy(),  # type: ignore[union-attr]
                _constant(bias),
                BatchNorm(gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=epsilon),
                axis=_NORMALIZABLE[layer.op_type](layer),
            )
            base = weight.name or "weight"
            name = base.removesuffix(".weight") + ".bias" if base.endswith(".weight") else f"{base}_bias"
            stale = [weight, bias, *norm.inputs[1:]]
            layer.resize_inputs(3)
            layer.replace_input_with(1, _add_initializer(graph, f"{base}_folded", folded))
            layer.replace_input_with(2, _add_initializer(graph, name, offset))
            _bypass(norm, layer.outputs[0])
            _drop_unread(graph, stale)
            new = layer.inputs[1]
            assert new is not None
            if base not in graph.initializers:  # the old weight is gone: its name is free again
                graph.initializers.pop(new.name or "")
                new.name = base
                graph.initializers[base] = new
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._pair(node) is not None for node in model.graph):
            raise PostconditionError("a foldable BatchNormalization is left")


@final
class FoldPad(_CountingPass):
    """Moves zero padding of the spatial axes into the Conv behind it. Ensures: no such pair is left."""

    def _pair(self, pad: ir.Node) -> tuple[ir.Node, tuple[int, ...]] | None:
        if pad.op_type != "Pad" or pad.domain not in ("", "ai.onnx") or len(pad.inputs) < 2 or len(pad.inputs) > 3:
            return None
        mode = pad.attributes.get("mode")
        if mode is not None and mode.value != "constant":
            return None
        value = _constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(())
        amounts = _constant(pad.inputs[1])
        conv = _only_reader(pad.outputs[0])
        if conv is None or conv.op_type != "Conv" or conv.inputs[0] is not pad.outputs[0]:
            return None
        auto = conv.attributes.get("auto_pad")
        if amounts is None or value is None or value.any() or (auto is not None and auto.value != "NOTSET"):
            return None
        widths = tuple(int(v) for v in amounts)
        rank = len(widths) // 2
        if rank < 3 or min(widths) < 0 or any(widths[i] for i in (0, 1, rank, rank + 1)):
            return None
        return conv, widths[2:rank] + widths[rank + 2 :]

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for pad in list(graph):
            found = self._pair(pad)
            if found is None:
                continue
            conv, widths = found
            old = _ints(conv, "pads") or (0,) * len(widths)
            pads = [a + b for a, b in zip(old, widths, strict=True)]
            conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
            stale = list(pad.inputs[1:])
            conv.replace_input_with(0, pad.inputs[0])
            graph.remove(pad, safe=True)
            _drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._pair(node) is not None for node in model.graph):
            raise PostconditionError("a foldable Pad is left")


@final
class MeanToPool(_CountingPass):
    """Writes ReduceMean over all spatial axes as GlobalAveragePool, which runtimes run in integers.

    With keepdims=0 a Flatten follows. Requires: a known rank of 3 to 5. Ensures: no such ReduceMean is left.
    """

    def _match(self, node: ir.Node) -> int | None:
        if node.op_type != "ReduceMean" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            return None
        shape = node.inputs[0].shape
        axes = _ints(node, "axes")
        if axes is None and len(node.inputs) > 1:
            array = _constant(node.inputs[1])
            axes = None if array is None else tuple(int(a) for a in array)
        if shape is None or axes is None or not 3 <= len(shape) <= 5:
            return None
        wanted = set(range(2, len(shape)))
        return len(shape) if {a % len(shape) for a in axes} == wanted else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            rank = self._match(node)
            if rank is None:
                continue
            old = node.outputs[0]
            keep = _int(node, "keepdims", 1)
            pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
            stale = list(node.inputs[1:])
            graph.insert_before(node, pool)
            last = pool
            if not keep:
                pool.outputs[0].name = _fresh(graph, f"{old.name}_pooled")
                last = ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1}, name=f"{node.name}_flatten")
                graph.insert_before(node, last)
            name, shape, kind = old.name, old.shape, old.type
            ir.convenience.replace_all_uses_with(old, last.outputs[0], replace_graph_outputs=True)
            graph.remove(node, safe=True)
            last.outputs[0].name, last.outputs[0].shape, last.outputs[0].type = name, shape, kind
            _drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a spatial ReduceMean is left")


def canonical_passes() -> tuple[tuple[str, Any], ...]:
    """Returns the passes in order, with the names that the plan records."""
    from onnx_ir.passes import common

    return (
        ("inline_functions", common.InlinePass()),
        ("mend_names", MendNames()),
        ("lift_constants", common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
        ("initializers_from_inputs", common.RemoveInitializersFromInputsPass()),
        ("sort", common.TopologicalSortPass()),
        ("drop_identities", common.IdentityEliminationPass()),
        ("drop_dropout", DropInference()),
        ("infer_shapes", common.ShapeInferencePass()),
        ("fold_batchnorm", FoldBatchNorm()),
        ("fold_pad", FoldPad()),
        ("mean_to_pool", MeanToPool()),
        ("unshare_biases", UnshareBiases()),
        ("drop_unused", common.RemoveUnusedNodesPass()),
        ("infer_shapes_again", common.ShapeInferencePass()),
    )
