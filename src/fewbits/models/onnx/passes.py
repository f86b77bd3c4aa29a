"""Graph passes: each a contract (requires, call, ensures) that leaves the function computed by the model unchanged.

The passes of onnx-ir do what is common; those here bring a graph into the form in which quantization is easy.
``run_passes`` checks each one numerically against the model before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm
from fewbits.models.onnx.editing import (
    CountingPass,
    add_initializer,
    bypass,
    constant_of,
    drop_unread,
    int_attribute,
    int_list,
    is_standard,
    only_reader,
)
from fewbits.models.onnx.folding import FoldConstants
from fewbits.models.onnx.halves import HalvesToFloats
from fewbits.models.onnx.normal_forms import (
    ClipFirst,
    MatMulToGemm,
    MeanToPool,
    RowBiases,
    UnshareBiases,
    UnshareWeights,
)
from fewbits.models.onnx.shapes import FixedReshapes, WholePads

# Weight channel axis of the layers that can take in a batch normalization.
_NORMALIZABLE: dict[str, Callable[[ir.Node], int]] = {
    "Conv": lambda node: 0,
    "ConvTranspose": lambda node: 1,
    "Gemm": lambda node: 0 if int_attribute(node, "transB", 0) else 1,
}


@final
class MendNames(CountingPass):
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
class DropCopies(CountingPass):
    """Removes Identity, and Dropout, which does nothing when a model is run; names of inputs and outputs stay.

    Ensures: those left write a mask that is read, or are all that tells an output from another tensor with a name.
    """

    def _source(self, node: ir.Node) -> ir.Value | None:
        if node.op_type not in ("Identity", "Dropout") or not is_standard(node):
            return None
        training = constant_of(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)
        masks = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
        source = node.inputs[0]
        if source is None or masks or training is None or bool(training):
            return None
        named = source.is_graph_output() or source.is_graph_input() or source.is_initializer()
        return None if node.outputs[0].is_graph_output() and named else source

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            source = self._source(node)
            if source is None:
                continue
            if node.outputs[0].is_graph_output():
                bypass(node, source)
            else:
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                graph.remove(node, safe=True)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._source(node) is not None for node in model.graph):
            raise PostconditionError("a copy is left")


@final
class FoldBatchNorm(CountingPass):
    """Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it, where that feeds nothing else.

    Requires: statistics fixed in the file. Ensures: no such pair is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left: set[ir.Node] = set()  # whose folded weights would leave float32

    def _pair(self, norm: ir.Node) -> ir.Node | None:
        if norm in self._left:
            return None
        if norm.op_type != "BatchNormalization" or not is_standard(norm) or int_attribute(norm, "training_mode", 0):
            return None
        if any(out.uses() or out.is_graph_output() for out in norm.outputs[1:]):
            return None
        layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if layer is None or layer.op_type not in _NORMALIZABLE or only_reader(layer.outputs[0]) is not norm:
            return None
        if layer.op_type == "ConvTranspose" and int_attribute(layer, "group", 1) != 1:
            return None
        weights = [constant_of(value) for value in (layer.inputs[1], *norm.inputs[1:])]
        biased = len(layer.inputs) > 2 and layer.inputs[2] is not None
        bias = constant_of(layer.inputs[2]) if biased else None
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
            transform = BatchNorm(gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=epsilon)
            with np.errstate(over="ignore", invalid="ignore"):
                folded, offset = transform.fold(
                    weight.const_value.numpy(),  # type: ignore[union-attr]
                    constant_of(bias),
                    axis=_NORMALIZABLE[layer.op_type](layer),
                )
            if not (np.isfinite(folded).all() and np.isfinite(offset).all()):
                self._left.add(norm)
                continue
            base = weight.name or "weight"
            name = base.removesuffix(".weight") + ".bias" if base.endswith(".weight") else f"{base}_bias"
            stale = [weight, bias, *norm.inputs[1:]]
            layer.resize_inputs(3)
            layer.replace_input_with(1, add_initializer(graph, f"{base}_folded", folded))
            layer.replace_input_with(2, add_initializer(graph, name, offset))
            bypass(norm, layer.outputs[0])
            drop_unread(graph, stale)
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
class FoldPad(CountingPass):
    """Moves zero padding of the spatial axes into the Conv behind it. Ensures: no such pair is left."""

    def _pair(self, pad: ir.Node) -> tuple[ir.Node, tuple[int, ...]] | None:
        if pad.op_type != "Pad" or not is_standard(pad) or len(pad.inputs) < 2 or len(pad.inputs) > 3:
            return None
        mode = pad.attributes.get("mode")
        if mode is not None and mode.value != "constant":
            return None
        value = constant_of(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(())
        amounts = constant_of(pad.inputs[1])
        conv = only_reader(pad.outputs[0])
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
            old = int_list(conv, "pads") or (0,) * len(widths)
            pads = [a + b for a, b in zip(old, widths, strict=True)]
            conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
            stale = list(pad.inputs[1:])
            conv.replace_input_with(0, pad.inputs[0])
            graph.remove(pad, safe=True)
            drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._pair(node) is not None for node in model.graph):
            raise PostconditionError("a foldable Pad is left")


def canonical_passes() -> tuple[tuple[str, Any], ...]:
    """Returns the passes in order, with the names that the plan records."""
    from onnx_ir.passes import common

    return (
        ("inline_functions", common.InlinePass()),
        ("mend_names", MendNames()),
        ("lift_constants", common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
        ("initializers_from_inputs", common.RemoveInitializersFromInputsPass()),
        ("sort", common.TopologicalSortPass()),
        ("halves_to_floats", HalvesToFloats()),
        ("drop_copies", DropCopies()),
        ("infer_shapes", common.ShapeInferencePass()),
        ("fold_constants", FoldConstants()),
        ("infer_shapes_of_folded", common.ShapeInferencePass()),
        ("fixed_reshapes", FixedReshapes()),
        ("whole_pads", WholePads()),
        ("fold_batchnorm", FoldBatchNorm()),
        ("fold_pad", FoldPad()),
        ("mean_to_pool", MeanToPool()),
        ("matmul_to_gemm", MatMulToGemm()),
        ("row_biases", RowBiases()),
        ("clip_first", ClipFirst()),
        ("unshare_biases", UnshareBiases()),
        ("unshare_weights", UnshareWeights()),
        ("drop_unused", common.RemoveUnusedNodesPass()),
        ("infer_shapes_again", common.ShapeInferencePass()),
    )
