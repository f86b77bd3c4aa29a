"""The repairs of the executed graph: each an equal model of which more runs in integers, or the rest runs faster.

None is done for its own sake: the search measures each and keeps what helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import onnx_ir as ir
from onnx_ir.passes import common

from fewbits._base.errors import FewbitsError, ModelError
from fewbits.models.onnx.editing import CountingPass
from fewbits.models.onnx.model import OnnxModel, serialize
from fewbits.models.onnx.normal_forms import ClipFirst
from fewbits.models.onnx.probing import PASS_TOLERANCE, bounds_for_conversion, compare_outputs, start_probe
from fewbits.models.onnx.protobuf import parse
from fewbits.models.onnx.repairs_channels import FillChannels
from fewbits.models.onnx.repairs_convolution import DeconvToConv, NormToConv, PoolToConv
from fewbits.models.onnx.repairs_linear import LinearToGemm, SumBeforeNorm, WholeGelu
from fewbits.models.onnx.repairs_saturation import SaturatingSwish, SubToAdd
from fewbits.planning.plan import TransformStep
from fewbits.runtimes.bounded import RUNNER


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One repair.

    Args:
      name: Name that the plan records.
      what: What it does, in words.
      make: Makes the pass.
      opset: Operator set that it needs; the model is converted where it is older.
    """

    name: str
    what: str
    make: Callable[[], CountingPass]
    opset: int = 0


REPAIRS: tuple[Repair, ...] = (
    Repair(name="saturating_swish", what="HardSwish and HardSigmoid as sums that saturate", make=SaturatingSwish),
    Repair(name="sub_to_add", what="subtraction of a fixed tensor as addition", make=SubToAdd),
    Repair(name="norm_to_conv", what="BatchNormalization as depthwise convolution", make=NormToConv),
    Repair(name="fill_channels", what="channels of depthwise layers filled up to vectors", make=FillChannels),
    Repair(name="pool_to_conv", what="average pooling as depthwise convolution", make=PoolToConv),
    Repair(name="deconv_to_conv", what="transposed convolution as convolution and shuffle", make=DeconvToConv),
    Repair(name="sum_before_norm", what="sums before LayerNormalization kept from a slow fusion", make=SumBeforeNorm),
    Repair(name="linear_to_gemm", what="linear layers of rank 3 with the bias in the accumulator", make=LinearToGemm),
    Repair(name="whole_gelu", what="GELU as one operator", make=WholeGelu, opset=20),
)
BY_NAME = {repair.name: repair for repair in REPAIRS}


def repaired(model: OnnxModel, repair: Repair) -> OnnxModel | None:
    """Returns the model with one repair, compared with the model before it; None where it changes nothing.

    Raises: ModelError(slug="pass-changed-model" | "pass-failed"): a repair that fails is a fault of ours.
    """
    if model.folder is not None:
        return None
    if not repair.make()(model.ir_model.clone()).modified:
        return None
    before = serialize(model.ir_model)
    clone = model.ir_model.clone()
    if repair.opset > model.view.opset:
        converted = _converted(before, repair.opset)
        if converted is None:
            return None
        clone = converted
        common.ShapeInferencePass()(clone)
    if not repair.make()(clone).modified:
        return None
    ClipFirst()(clone)  # a clip behind moves that a repair made is saturation once it stands right behind the layer
    common.RemoveUnusedNodesPass()(clone)
    common.ShapeInferencePass()(clone)
    what = f"{model.name}: repair {repair.name}"
    probe, outputs = start_probe(model.ir_model, before, model.name)
    after = probe.outputs(clone)
    if outputs is not None and after is not None:
        compare_outputs(outputs, after, what, tolerance=PASS_TOLERANCE)
    return replace(model, ir_model=clone, steps=(*model.steps, TransformStep(name=repair.name)))


def _converted(data: bytes, opset: int) -> ir.Model | None:
    """Returns the model in a newer operator set, None where the converter cannot."""
    try:
        made = RUNNER.convert(data, opset, bounds_for_conversion(len(data)))
        return ir.serde.deserialize_model(parse(made, "the converted model"))
    except FewbitsError:
        return None


def repeated(model: OnnxModel, steps: tuple[TransformStep, ...]) -> OnnxModel:
    """Returns the model with the repairs that a plan records.

    Raises: ModelError(slug="pass-failed") where one of them changes nothing: the plan is another model's.
    """
    for step in steps:
        repair = BY_NAME.get(step.name)
        if repair is None:
            continue
        made = repaired(model, repair)
        if made is None:
            raise ModelError(
                f"the plan repairs {model.name} by {step.name}, which changes nothing there; it is another's plan",
                slug="pass-failed",
            )
        model = made
    return model
