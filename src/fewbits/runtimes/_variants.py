"""The ways to open a file that may change its answers, besides the one that ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from fewbits.runtimes import open_session
from fewbits.runtimes.base import Options, Session
from fewbits.runtimes.ort import OrtSession, inference_session, ort_options


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to open a session.

    Args:
      name: Short name.
      words: What is different, to follow "a session".
      optimize: Whether graphs are rewritten.
      default_threads: Whether the runtime chooses the number of threads.
      entries: Session configuration of ONNX Runtime by key.
      precision: In which numbers what is float in the file may be computed; as it ships where empty.
    """

    name: str
    words: str
    optimize: bool = True
    default_threads: bool = False
    entries: Mapping[str, str] = field(default_factory=dict)
    precision: str = ""


# Keys: onnxruntime_session_options_config_keys.h, 1.31.1. What only places work or memory elsewhere is not here.
_OF_ORT = (
    Variant(name="unoptimized", words="without graph optimizations", optimize=False),
    Variant(name="default", words="of default options (all cores)", default_threads=True),
    Variant(
        name="x64quantprecision",
        words="with session.x64quantprecision=1",
        entries={"session.x64quantprecision": "1"},
    ),
    Variant(
        name="set_denormal_as_zero",
        words="with session.set_denormal_as_zero=1",
        entries={"session.set_denormal_as_zero": "1"},
    ),
    Variant(
        name="qdq_matmulnbits_accuracy_level",
        words="with session.qdq_matmulnbits_accuracy_level=1",
        entries={"session.qdq_matmulnbits_accuracy_level": "1"},
    ),
)


# OpenVINO computes floats in bfloat16 by default on CPUs that multiply it natively, and in float32 on others.
_OF_OPENVINO = {
    "f32": Variant(name="bf16", words="with the precision hint bf16", precision="bf16"),
    "bf16": Variant(name="f32", words="with the precision hint f32", precision="f32"),
}


def variants_of(options: Options) -> tuple[Variant, ...]:
    """Returns the other ways to open a file that ships with these options."""
    if options.runtime == "ort":
        return _OF_ORT
    other = _OF_OPENVINO.get(options.precision) if options.runtime == "openvino" else None
    return () if other is None else (other,)


def open_variant(model: bytes | Path, options: Options, variant: Variant) -> Session:
    """Returns a session that differs from the one that ships as the variant says.

    Args:
      model: The file.
      options: Of the session that ships.
      variant: What is different.
    Raises: ModelError(slug="runtime-refuses") as ``Runtime.open``.
    """
    if variant.precision:
        return open_session(model, replace(options, precision=variant.precision))
    threads = 0 if variant.default_threads else options.threads
    made = ort_options(replace(options, optimize=variant.optimize, threads=threads))
    for key, value in variant.entries.items():
        made.add_session_config_entry(key, value)
    return OrtSession(inference_session(model, options, made), seconds=options.seconds)
