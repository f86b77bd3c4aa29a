"""The keys of report.json as pydantic models; reading, writing, and the JSON Schema made from them.

An unknown value is null and ``reasons`` says why, under the value's dotted key or the key of a part that holds it
(``latency`` answers for ``latency.p99``). Keys are added, never renamed; adding one raises SCHEMA_VERSION.

    python -m fewbits.reporting.schema docs/report.schema.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from fewbits._base.errors import DataError

SCHEMA_VERSION: Literal[1] = 1
UNRECORDED = "not recorded by this run"
# Reasons that follow from another value of the same report.
_NO_BUDGET = "no budget was asked for"
_DECIDED = "only an undecided verdict asks for more examples"


def _finite(value: Any) -> Any:
    """Returns None for NaN and infinities, which JSON cannot hold (the SQNR of an exact layer is infinite)."""
    try:
        return value if value is None or isinstance(value, str) or math.isfinite(value) else None
    except TypeError:
        return value


def _without_folder(value: Any) -> Any:
    """Returns the last part of a path of any system: a report names no folder of the machine that made it."""
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Count = NonNegativeInt | None
FileName = Annotated[str | None, BeforeValidator(_without_folder)]
Text = str | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelFacts(_Part):
    """The float model that came in."""

    name: FileName = Field(default=None, description="File name without its folder")
    sha256: Text = Field(default=None, description="Of the float model's file or files")
    opset: Count = Field(default=None, description="Version of the default ONNX operator set")
    parameters: Count = Field(default=None, description="Elements of all weights")
    macs: Count = Field(default=None, description="Multiply-accumulates of one example")


class DataFacts(_Part):
    """The three disjoint parts of the data."""

    calibration_examples: Count = Field(default=None, description="Examples that chose the ranges")
    selection_examples: Count = Field(default=None, description="Examples that chose between candidates")
    verdict_examples: Count = Field(default=None, description="Examples that only the verdict saw")
    sha256: Text = Field(default=None, description="Of the data's content")
    split_rule: Text = Field(default=None, description="How examples were assigned to the parts")


class Quality(_Part):
    """How close the outputs are, on the verdict data; needs no labels."""

    kl: Number = Field(default=None, description="Mean KL divergence from float to quantized outputs, nats per example")
    sqnr_db: Number = Field(default=None, description="Signal to quantization noise of the outputs, decibels")
    agreement: Number = Field(default=None, description="Share of examples with the same top answer, 0 to 1")


class Metric(_Part):
    """The figure that the budget is about. A drop above 0 is a loss, whatever the direction of the metric."""

    name: Text = Field(default=None, description="top-1, agreement, perplexity or a user's own")
    direction: Literal["higher", "lower"] | None = Field(default=None, description="Which way is better")
    unit: Text = Field(
        default=None,
        description="Of drop, bound and budget. 'points': metric in [0, 1], difference, 0.01 = 1 point. "
        "'relative': difference as a fraction of the float metric, 0.01 = 1 %. Else the metric's own unit",
    )
    float: Number = Field(default=None, description="Metric of the float model on the verdict data")
    quantized: Number = Field(default=None, description="Metric of the handed-over model on the same examples")
    drop: Number = Field(default=None, description="Measured loss; negative is a gain")
    bound: Number = Field(default=None, description="One-sided upper confidence bound of the loss")
    method: Text = Field(default=None, description="How the bound was computed")
    confidence: Number = Field(default=None, description="Of the bound, 0 to 1")
    budget: Number = Field(default=None, description="Largest loss that was allowed")
    examples: Count = Field(default=None, description="Verdict examples behind drop and bound")
    examples_needed: Count = Field(default=None, description="Verdict examples that would decide an undecided verdict")
    split: Text = Field(default=None, description="Which data these are and what they were not used for")
    quality: Quality = Quality()


class Size(_Part):
    """Bytes on disk, external data included."""

    float_bytes: Count = Field(default=None, description="The float model")
    quantized_bytes: Count = Field(default=None, description="The handed-over model")
    ratio: Number = Field(default=None, description="float_bytes / quantized_bytes; above 1 is smaller")


class Latency(_Part):
    """A copy of the headline of timings.json; float and quantized interleaved in one process."""

    float_ms: Number = Field(default=None, description="Median time of one run of the float model")
    quantized_ms: Number = Field(default=None, description="Median time of one run of the handed-over model")
    speedup: Number = Field(default=None, description="float / quantized; above 1 is faster")
    speedup_low: Number = Field(default=None, description="Lower end of the speedup's interval")
    speedup_high: Number = Field(default=None, description="Upper end of the speedup's interval")
    confidence: Number = Field(default=None, description="Of the speedup's two-sided interval, 0 to 1")
    p50: Number = Field(default=None, description="Quantized model, milliseconds")
    p90: Number = Field(default=None, description="Quantized model, milliseconds")
    p99: Number = Field(default=None, description="Quantized model, milliseconds")
    throughput: Number = Field(default=None, description="Quantized model, examples per second")
    threads: Count = Field(default=None, description="Intra-op threads")
    batch: Count = Field(default=None, description="Examples per run")
    runtime: Text = Field(default=None, description="Runtime and version")
    isa: Text = Field(default=None, description="Instruction set the runtime could use, e.g. avx512_vnni")
    session_options: dict[str, str | int | float | bool | None] | None = Field(
        default=None, description="Options of the measured session; other options may execute another graph"
    )


class Memory(_Part):
    """Memory and traffic of one inference with the handed-over model, and of the float model beside it."""

    peak_bytes: Count = Field(default=None, description="Peak resident memory above the bare runtime")
    weights_bytes: Count = Field(default=None, description="Stored weights, scales included")
    bytes_moved: Count = Field(default=None, description="Weights and activations read and written, per example")
    mac_bits: dict[str, NonNegativeInt] | None = Field(
        default=None, description="Multiply-accumulates of one example by operand bits, '8x8' = activation x weight"
    )
    float_peak_bytes: Count = Field(default=None, description="As peak_bytes, float model")
    float_weights_bytes: Count = Field(default=None, description="As weights_bytes, float model")
    float_bytes_moved: Count = Field(default=None, description="As bytes_moved, float model")


class Island(_Part):
    """A node that the runtime executes in float although its neighbours run in integers."""

    node: str
    op: str
    rule: str = Field(description="Name of the target's rule")
    repaired: bool = Field(description="Whether fewbits changed the graph so that it runs in integers now")
    why: str = Field(default="", description="The rule in words")


class Executed(_Part):
    """The graph that the runtime really executes, after its own optimizations."""

    integer_nodes: Count = Field(default=None, description="Nodes that compute on integers")
    float_nodes: Count = Field(default=None, description="Nodes that compute on floats")
    integer_nodes_before: Count = Field(default=None, description="As integer_nodes, of the file without repairs")
    float_nodes_before: Count = Field(default=None, description="As float_nodes, of the file without repairs")
    repairs: tuple[str, ...] | None = Field(
        default=None, description="Repairs of the graph that were measured and kept; null means none was tried"
    )
    by_dtype: dict[str, NonNegativeInt] | None = Field(
        default=None, description="Nodes by the data type they compute on"
    )
    kernels: dict[str, NonNegativeInt] | None = Field(default=None, description="Nodes by operator type")
    islands: tuple[Island, ...] | None = Field(default=None, description="Null means not read; [] means none")


class Flips(_Part):
    """Verdict examples whose answer changed."""

    harmful: Count = Field(default=None, description="Right in float, wrong quantized (score fell)")
    helpful: Count = Field(default=None, description="Wrong in float, right quantized (score rose)")


class Layer(_Part):
    """One site of the Plan."""

    site: str
    node: Text = None
    op: Text = None
    role: Text = Field(default=None, description="weight, activation, bias, embedding or kv")
    scheme: Text = Field(default=None, description="Name of the scheme; float32 where the site stayed float")
    bits_per_weight: Number = Field(default=None, description="Stored bits per element, scales included")
    algorithm: Text = Field(default=None, description="Range rule and rounder")
    sqnr_db: Number = Field(default=None, description="Signal to quantization noise of this site, decibels")
    reason: str = Field(default="", description="Why this scheme")
    scale_bytes: Count = Field(default=None, description="Bytes of scales and zero points")
    elements: Count = Field(default=None, description="Elements of the tensor; per example for activations")


class Candidate(_Part):
    """One step of the search."""

    step: NonNegativeInt
    change: str = Field(description="What this candidate changes against the one kept before")
    selection_drop: Number = Field(default=None, description="Loss on the selection data, in metric.unit")
    selection_kl: Number = Field(default=None, description="Mean KL divergence on the selection data, nats")
    integer_nodes: Count = None
    kept: bool
    reason: str = ""


class Environment(_Part):
    """Where this was measured. Never a host name, a user name or a path."""

    cpu: Text = Field(default=None, description="Model name of the processor")
    isa: Text = Field(default=None, description="Widest instruction set for integer dot products")
    cores: Count = Field(default=None, description="Physical cores that the process may use")


class Report(_Part):
    """report.json. Where float_kept is true, the handed-over ("quantized") model is the float model itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    headline: str = Field(default="", description="One sentence, the first line that a person reads")
    verdict: Literal["met", "not met", "undecided", "no budget"]
    float_kept: bool = Field(default=False, description="True when the result is the float model")
    warnings: tuple[str, ...] = Field(
        default=(), description="Facts that the reader must know; one line each, slug in brackets"
    )
    metric: Metric = Metric()
    size: Size = Size()
    latency: Latency = Latency()
    memory: Memory = Memory()
    executed: Executed = Executed()
    flips: Flips = Flips()
    layers: tuple[Layer, ...] = ()
    search: tuple[Candidate, ...] = Field(
        default=(), description="The candidates in the order in which they were tried"
    )
    model: ModelFacts = ModelFacts()
    data: DataFacts = DataFacts()
    target: Text = Field(default=None, description="Target with its instruction set, e.g. ort-cpu:vnni")
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="Packages that took part")
    environment: Environment = Environment()
    reasons: dict[str, str] = Field(
        default_factory=dict, description="Why a value is null, by dotted key; lists without index: layers.sqnr_db"
    )

    @model_validator(mode="after")
    def _explain(self) -> Self:
        implied = {} if self.verdict != "no budget" else {"metric.budget": _NO_BUDGET}
        if self.verdict != "undecided":
            implied["metric.examples_needed"] = _DECIDED
        for key in nulls(self):
            if _lookup(self.reasons, key) is None:
                self.reasons[key] = implied.get(key, UNRECORDED)
        return self


def _lookup(reasons: dict[str, str], key: str) -> str | None:
    while key:
        if key in reasons:
            return reasons[key]
        key = key.rpartition(".")[0]
    return None


def nulls(report: Report) -> list[str]:
    """Returns the dotted keys of all null values, sorted; entries of a list count under one key."""

    def walk(value: object, key: str) -> set[str]:
        if value is None:
            return {key}
        found: set[str] = set()
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                found |= walk(getattr(value, name), f"{key}.{name}" if key else name)
        elif isinstance(value, tuple):
            for entry in value:
                found |= walk(entry, key)
        return found

    return sorted(walk(report, ""))


def reason_for(report: Report, key: str) -> str:
    """Returns why the value under a dotted key is null: its own reason, else that of the part that holds it."""
    return _lookup(report.reasons, key) or UNRECORDED


def unexplained(report: Report) -> list[str]:
    """Returns the keys of null values for which the run gave no reason; empty in a complete report."""
    return [key for key in nulls(report) if reason_for(report, key) == UNRECORDED]


def to_json(report: Report) -> str:
    """Returns report.json: text with two blanks of indent, keys in the order of the schema, a last newline.

    Any UTF-8 encoder takes it: half a surrogate pair, which a stranger's name can hold, is left as its JSON escape.
    """
    text = json.dumps(report.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_json(text: str | bytes) -> Report:
    """Returns the report that the text holds.

    Raises:
      DataError(slug="report-version"): written by a newer fewbits.
      DataError(slug="report-unreadable"): not JSON, or not these keys; names the first key that is wrong.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"report.json is not JSON ({error}); run quantize again", slug="report-unreadable") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"report.json has schema_version {version}, this fewbits reads up to {SCHEMA_VERSION}; upgrade fewbits",
            slug="report-version",
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the top level"
        raise DataError(
            f"report.json: {where}: {first['msg']}; {error.error_count()} fault(s) in all, run quantize again",
            slug="report-unreadable",
        ) from error


def json_schema() -> str:
    """Returns the JSON Schema (draft 2020-12) of report.json as text."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json_schema(), encoding="utf-8")
    else:
        sys.stdout.write(json_schema())
