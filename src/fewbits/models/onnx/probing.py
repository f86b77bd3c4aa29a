"""Is a rewritten model still the same function? Asked of the runtime, on seeded inputs, in a process with limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, final

import numpy as np

from fewbits._base.errors import FewbitsError, ModelError
from fewbits._base.limits import MIB
from fewbits.models.onnx.model import InputSpec, graph_view, serialize
from fewbits.planning.macs import count_macs
from fewbits.planning.site import GraphView
from fewbits.runtimes.base import Options
from fewbits.runtimes.bounded import RUNNER, Bounds

if TYPE_CHECKING:
    import onnx_ir as ir

# The batch that a dynamic first axis gets; 2 shows an axis mistaken for a fixed one.
_BATCH = 2
# What other dynamic axes get, tried in turn: a sentence, a small picture, a usual picture.
_LENGTHS = (16, 64, 224)
# A folded weight is rounded once more to float32 (2**-24 relative); a layer of 10**4 products adds errors like their
# square root, and a deep model passes them on: 100 layers * 100 * 2**-24 = 6e-4 of the output's largest magnitude.
PASS_TOLERANCE = 1e-3
# Computing in float32 what was rounded to float16 after every operator: 2**-11 each, added up like their square root
# over 100 operators, with a tenth of that length again for layers that sum many of them.
HALF_TOLERANCE = 2e-2
# Share of the elements of an integer output (indices, classes) that may change: near-ties fall either way.
_CHANGED_INDICES = 0.01
# What one run of a stranger's model may take. Work that shapes foretell is granted (a core does at least 10**9
# multiply-accumulates a second), and so are tensors in proportion to weights and inputs; what 70 bytes ask for is not.
_SECONDS = 5.0
_MACS_A_SECOND = 1e9
_KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# But no more than this: shapes can be lies, and the bytes of a file cannot.
_MORE = 3.0
_BYTES_A_SECOND = 2e6
_MEMORY = 512 * MIB
_WEIGHT_COPIES = 4
_ACTIVATIONS_PER_BYTE = 256


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """Seeded inputs on which a model ran, and what a run may take.

    Args:
      feeds: The inputs; None where none were found that the model takes.
      bounds: Of each run.
      refused: Why the runtime does not take the model; empty where it does.
    """

    feeds: dict[str, np.ndarray] | None
    bounds: Bounds
    refused: str = ""

    def outputs(self, model: ir.Model) -> dict[str, np.ndarray] | None:
        """Returns the model's outputs; None without inputs."""
        return None if self.feeds is None else self.run(serialize(model))

    def run(self, data: bytes) -> dict[str, np.ndarray]:
        """Returns the outputs of a serialized model."""
        assert self.feeds is not None
        return RUNNER.run(data, self.feeds, Options(), self.bounds)


def start_probe(
    model: ir.Model, data: bytes, name: str, *, max_memory: int | None = None
) -> tuple[Probe, dict[str, np.ndarray] | None]:
    """Returns the probe of a model and its outputs before any pass.

    Args:
      model: The model as read.
      data: The same as bytes.
      name: For messages.
      max_memory: Bytes that a run may take; by the model's size where None.
    Raises: ModelError and ResourceError of the run where shapes are fixed; where they are dynamic, several are tried,
      and a model that takes none of them is not probed. ResourceError and crashes are raised in any case.
    """
    view = graph_view(model)
    inputs = input_specs(view)
    refused = ""
    lengths = _LENGTHS if any(d is None for spec in inputs for d in spec.shape[1:]) else _LENGTHS[:1]
    bounds = Bounds(seconds=_SECONDS, memory=_MEMORY)
    for length in lengths:
        feeds = probe_feeds(inputs, length=length)
        if feeds is None:
            break
        bounds = bounds_of(view, len(data), feeds)
        bounds = bounds if max_memory is None else replace(bounds, memory=max_memory)
        probe = Probe(feeds=feeds, bounds=bounds)
        try:
            return probe, probe.run(data)
        except ModelError as error:
            if error.slug == "runtime-refuses" and unknown_domains(view):
                refused = error.message
                break  # operators that this runtime lacks: read, and named, but not run
            if len(lengths) == 1 or error.slug != "run-failed":
                raise _named(error, name) from error
        except FewbitsError as error:
            raise _named(error, name) from error
    return Probe(feeds=None, bounds=bounds, refused=refused), None


def unknown_domains(view: GraphView) -> tuple[str, ...]:
    """Returns the domains of a graph's operators that no runtime here is known to have."""
    return tuple(sorted({op.domain for op in view.ops} - _KNOWN_DOMAINS))


def _named(error: FewbitsError, name: str) -> FewbitsError:
    return type(error)(f"{name}: {error.message}", slug=error.slug)


def bounds_of(view: GraphView, weights: int, feeds: dict[str, np.ndarray]) -> Bounds:
    """Returns what one run on these inputs may take.

    Args:
      view: The model.
      weights: Bytes of its file.
      feeds: The inputs.
    """
    rows = max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
    given = weights + sum(array.nbytes for array in feeds.values()) + MIB
    foretold = 4 * rows * sum(view.tensors[name].elements for name in view.producer)
    return Bounds(
        seconds=seconds_of(view, weights, rows=rows),
        memory=_MEMORY + _WEIGHT_COPIES * weights + min(foretold, _ACTIVATIONS_PER_BYTE * given),
    )


def seconds_of(view: GraphView, weights: int, *, rows: int) -> float:
    """Returns how long a run of so many examples may take: as shapes foretell, where the file's size is in keeping."""
    foretold = rows * sum(count_macs(view).values()) / _MACS_A_SECOND
    return _SECONDS + min(foretold, _MORE + rows * weights / _BYTES_A_SECOND)


def bounds_for_conversion(weights: int) -> Bounds:
    """Returns what converting a file of so many bytes may take."""
    return Bounds(seconds=4 * _SECONDS, memory=_MEMORY + 2 * _WEIGHT_COPIES * weights)


def input_specs(view: GraphView) -> tuple[InputSpec, ...]:
    """Returns what a graph takes."""
    return tuple(
        InputSpec(name=n, dtype=view.tensors[n].dtype or "float32", shape=view.tensors[n].shape or ())
        for n in view.inputs
    )


def probe_feeds(inputs: tuple[InputSpec, ...], *, length: int = 16, seed: int = 0) -> dict[str, np.ndarray] | None:
    """Returns seeded random inputs for a model, None where one is of a kind that cannot be drawn.

    Args:
      inputs: What the model takes.
      length: Of dynamic axes behind the first.
      seed: Of the values.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        shape = tuple((_BATCH if i == 0 else length) if d is None else d for i, d in enumerate(spec.shape))
        if prod(shape) > _MEMORY:
            return None
        try:
            dtype = np.dtype(spec.dtype)
        except TypeError:
            return None
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            return None
    return feeds


def compare_outputs(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], what: str, *, tolerance: float = PASS_TOLERANCE
) -> None:
    """Raises ModelError(slug="pass-changed-model") if outputs differ by more than float rounding explains."""
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape:
            raise ModelError(f"{what} lost or reshaped output {name!r}; please report it", slug="pass-changed-model")
        if old.dtype.kind != "f":
            changed = float((new != old).mean()) if old.size else 0.0
            if changed > _CHANGED_INDICES:
                raise ModelError(
                    f"{what} changed {changed:.0%} of output {name!r}; please report it", slug="pass-changed-model"
                )
            continue
        if not np.isfinite(old).all():
            continue
        reach = float(np.abs(old.astype(np.float64)).max(initial=0.0))
        wrong = float(np.abs(new.astype(np.float64) - old).max(initial=0.0))
        if not wrong <= tolerance * max(reach, 1e-6):  # NaN is wrong too
            raise ModelError(
                f"{what} changed output {name!r} by {wrong:.3g} (largest magnitude {reach:.3g}); please report it",
                slug="pass-changed-model",
            )
