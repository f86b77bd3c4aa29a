"""The list of the bag: what each model is for, and how its run must end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import oddities, sequences, vision
from .writing import Made


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model of the bag.

    Attributes:
      make: Returns the model and its data.
      structure: What is in it that matters, in a few words.
      metric: A function of ``tests/bag/bag_metrics.py``, where the answer is not a class on the last axis.
      refused: Exit code and slug, where the model must be refused; None where it must go through.
      integer: At least so many nodes of the file that is handed over run in integers.
      external: Whether the weights lie in a second file.
      quick: Whether its test is part of every run.
    """

    make: Callable[[], Made]
    structure: str
    metric: str | None = None
    refused: tuple[int, str] | None = None
    integer: int = 0
    external: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        return self.make.__name__


CASES = {
    case.name: case
    for case in (
        Case(make=vision.plain_cnn, integer=4, structure="Conv, Relu, MaxPool, Gemm", quick=True),
        Case(make=vision.resnet, integer=10, structure="residual blocks, BatchNorm"),
        Case(make=vision.mobilenet_v2, integer=12, structure="depthwise, ReLU6 as Clip"),
        Case(make=vision.mobilenet_v3, integer=16, structure="HardSwish, squeeze-excite with HardSigmoid"),
        Case(make=vision.mobilenet_v3_opset11, integer=16, structure="the same, HardSwish in parts"),
        Case(make=vision.efficientnet, integer=16, structure="x * sigmoid(x), squeeze-excite"),
        Case(make=vision.densenet, integer=15, structure="Concat of unequal ranges, BatchNorm before Relu"),
        Case(make=vision.squeezenet, integer=11, structure="fire and inception blocks, grouped Conv, pools"),
        Case(make=vision.unet, integer=7, metric="pixels", structure="ConvTranspose, Resize, skip Concat, a map out"),
        Case(make=vision.yolo, integer=8, metric="boxes", structure="LeakyRelu, SiLU, Split, anchors, three outputs"),
        Case(
            make=vision.super_resolution, integer=3, metric="closeness", structure="PRelu, DepthToSpace, a picture out"
        ),
        Case(make=sequences.vit, integer=14, structure="LayerNormalization, softmax attention, Gelu"),
        Case(
            make=sequences.bert,
            integer=14,
            structure="two int64 inputs, mask, LayerNorm and GELU in parts, dynamic axes",
        ),
        Case(make=sequences.tabular, integer=3, structure="Gemm transB 0 and 1, Dropout, Identity", quick=True),
        Case(make=sequences.recommender, integer=3, metric="credence", structure="two ids, embeddings, Concat"),
        Case(make=sequences.audio, integer=4, structure="Conv over time, BatchNorm, pools"),
        Case(make=sequences.recurrent, integer=1, structure="LSTM, GRU"),
        Case(make=sequences.two_tower, integer=6, structure="one encoder's weights used twice, two inputs"),
        Case(make=oddities.old_exporter, integer=4, structure="initializers as inputs, BatchNorm, Dropout, batch 1"),
        Case(
            make=oddities.old_classifier_opset9,
            integer=3,
            structure="Clip with attributes, shape arithmetic, names are numbers",
        ),
        Case(make=oddities.control_flow, integer=2, structure="If and Loop with weights in their bodies"),
        Case(make=oddities.functions, integer=4, structure="functions of the file that call each other"),
        Case(
            make=oddities.custom_domain,
            refused=(4, "runtime-refuses"),
            structure="a node that no runtime here knows",
            quick=True,
        ),
        Case(make=oddities.contrib_gelu, integer=4, structure="Gelu of com.microsoft", quick=True),
        Case(
            make=oddities.tied,
            integer=2,
            structure="one table read twice, weights in Constant nodes, names missing or double",
        ),
        Case(make=oddities.halves, integer=4, structure="float16 inputs and weights"),
        Case(make=oddities.one_picture, integer=3, structure="input without a batch axis: a matrix"),
        Case(make=oddities.one_vector, integer=3, structure="input without a batch axis: a vector", quick=True),
        Case(make=oddities.fixed_batch, integer=3, structure="batch fixed to 4"),
        Case(
            make=oddities.external_data,
            integer=6,
            structure="weights in a second file, two inputs, two outputs",
            external=True,
            quick=True,
        ),
    )
}
