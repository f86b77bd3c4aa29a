"""Golden outputs: what a file answers to seeded inputs, kept beside it, so that it can be verified without any data.

The inputs are drawn anew from a recipe and are not stored: no example of anybody's data leaves with the model.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits._base.cpu import cpu_flags
from fewbits._base.errors import VerificationError
from fewbits.runtimes import RUNTIMES, open_session
from fewbits.runtimes.base import Options, Tensors

# Another CPU or runtime version may round a code differently here and there; below this, answers differ in earnest.
_LEAST_SQNR_DB = 20.0


def make_golden(model: Path, feeds: Tensors, options: Options, *, seed: int) -> bytes:
    """Returns golden.npz: the recipe of the inputs, and the outputs that the model gives to them.

    Args:
      model: The file.
      feeds: One example; only its shapes, types and range are used.
      options: Session options.
      seed: Of the drawn inputs.
    """
    recipe = {
        "seed": seed,
        "threads": options.threads,
        "runtime": RUNTIMES[options.runtime].name,
        "session": {"runtime": options.runtime, "precision": options.precision},
        "isa": list(cpu_flags()),
        "inputs": [
            {"name": n, "dtype": a.dtype.name, "shape": list(a.shape), "low": float(a.min()), "high": float(a.max())}
            for n, a in sorted(feeds.items())
        ],
    }
    inputs = _draw(recipe)
    recipe["sha256"] = _digest(inputs)
    outputs = open_session(model, options).run(inputs)
    buffer = io.BytesIO()
    arrays = {f"output_{i}": value for i, value in enumerate(outputs.values())}
    recipe["outputs"] = list(outputs)
    np.savez_compressed(buffer, recipe=np.array(json.dumps(recipe)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _draw(recipe: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(recipe["seed"]))
    drawn = {}
    for spec in recipe["inputs"]:
        dtype = np.dtype(spec["dtype"])
        uniform = spec["low"] + rng.random(spec["shape"]) * (spec["high"] - spec["low"])
        drawn[spec["name"]] = np.asarray(np.rint(uniform) if dtype.kind in "iub" else uniform).astype(dtype)
    return drawn


def _digest(inputs: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(inputs[name].tobytes() for name in sorted(inputs))).hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How the file answers now.

    Args:
      equal: Whether every bit is as it was.
      same_place: Whether runtime version and instruction sets are as they were.
      sqnr_db: Stored answers over their difference; infinite where equal.
    """

    equal: bool
    same_place: bool
    sqnr_db: float


def replay_golden(model: Path, golden: bytes) -> Replay:
    """Returns how the file answers the golden inputs now.

    Raises: VerificationError(slug="golden-differs") if the answers differ on the same runtime and instruction set, or
      by more than rounding elsewhere; VerificationError(slug="golden-broken") if the stored answers cannot be read.
    """
    try:
        with np.load(io.BytesIO(golden), allow_pickle=False) as file:
            recipe = json.loads(str(file["recipe"]))
            stored = {name: file[f"output_{i}"] for i, name in enumerate(recipe["outputs"])}
        inputs = _draw(recipe)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise VerificationError(f"golden.npz cannot be read: {error}; quantize again", slug="golden-broken") from error
    if _digest(inputs) != recipe["sha256"]:
        raise VerificationError(
            "golden.npz cannot be replayed: this NumPy draws other random numbers; verify with the recorded version",
            slug="golden-broken",
        )
    # The bytes and not the path: the runtime takes no path that the locale cannot decode.
    folder = model.parent.resolve() if model.with_name(f"{model.name}.data").exists() else None
    session = recipe.get("session", {})
    options = Options(
        runtime=str(session.get("runtime", "ort")),
        threads=int(recipe["threads"]),
        data_folder=folder,
        precision=str(session.get("precision", "f32")),
    )
    outputs = open_session(model.read_bytes(), options).run(inputs)
    equal = all(name in outputs and outputs[name].tobytes() == value.tobytes() for name, value in stored.items())
    same_place = recipe["runtime"] == RUNTIMES[options.runtime].name and recipe["isa"] == list(cpu_flags())
    sqnr = float("inf") if equal else _sqnr(stored, outputs)
    if not equal and (same_place or sqnr < _LEAST_SQNR_DB):
        where = "on the runtime and CPU that it was made on" if same_place else f"by {sqnr:.1f} dB"
        raise VerificationError(
            f"{model.name} answers the golden inputs differently {where}; the file is not the one that was measured",
            slug="golden-differs",
        )
    return Replay(equal=equal, same_place=same_place, sqnr_db=sqnr)


def _sqnr(stored: Tensors, outputs: Tensors) -> float:
    signal = noise = 0.0
    for name, value in stored.items():
        now = outputs.get(name)
        if now is None or now.shape != value.shape:
            return -float("inf")
        signal += float((value.astype(np.float64) ** 2).sum())
        noise += float(((now.astype(np.float64) - value) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
