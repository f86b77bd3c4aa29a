"""Peak memory of opening and running a file: a process of its own, read from the kernel's high-water mark.

    python -m fewbits.measurement.memory MODEL INPUTS.npz DATA_FOLDER RUNTIME THREADS PRECISION

prints the bytes by which the peak exceeds the process before it opened the model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options, Tensors

# Runs after which the arena has its final size.
_RUNS = 3
_LIMIT_SECONDS = 120


def peak_bytes(model: Path, options: Options, feeds: Tensors) -> int | None:
    """Returns the bytes that opening and running the model adds to a process, None where the system does not tell.

    The high-water mark belongs to the child alone: VmHWM, and not ru_maxrss, which a child inherits from its parent.
    """
    if not Path("/proc/self/status").exists():
        return None
    with tempfile.TemporaryDirectory(prefix="fewbits-memory-") as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **dict(feeds))  # type: ignore[arg-type]
        command = [sys.executable, "-P", "-m", "fewbits.measurement.memory", str(model), str(inputs)]
        command += ["" if options.data_folder is None else str(options.data_folder)]
        command += [options.runtime, str(options.threads), options.precision]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=True)
            return int(done.stdout.strip())
        except (subprocess.SubprocessError, OSError, ValueError):
            return None


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _main(model: str, inputs: str, folder: str, runtime: str, threads: str, precision: str) -> None:
    opened = RUNTIMES[runtime]
    _ = opened.name  # loads the library before the baseline: it is not the model
    with np.load(inputs, allow_pickle=False) as file:
        feeds = {name: file[name] for name in file.files}
    before = _status("VmRSS")
    options = Options(
        runtime=runtime, threads=int(threads), precision=precision, data_folder=Path(folder) if folder else None
    )
    session = opened.open(Path(model), options)
    for _ in range(_RUNS):
        session.run(feeds)
    sys.stdout.write(str(max(0, _status("VmHWM") - before)))


if __name__ == "__main__":
    _main(*sys.argv[1:7])
