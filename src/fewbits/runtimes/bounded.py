"""A stranger's model in a process of its own, with a limit on time and memory.

A file may ask for 64 GB in 70 bytes, never end, or crash the runtime. Here that ends one child and is told in one line.

    python -m fewbits.runtimes.bounded

reads requests from stdin and writes answers to stdout. A message is eight bytes of length, JSON of that length, and the
bytes of the blobs that the JSON lists; no pickle, because a child that a hostile file has taken over is no friend.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from fewbits._base.errors import ModelError, ResourceError
from fewbits._base.limits import MAX_PROBE_REPLY_BYTES, MIB
from fewbits._base.memory import MEMORY_WORDS
from fewbits.runtimes.base import Options, Tensors

# Seconds beyond the limit after which the child's own clock ends it, should the parent be gone.
_GRACE_SECONDS = 5
_MAX_HEADER_BYTES = 16 * MIB
# Seconds in which a child must have its libraries: half a second on an idle machine, more from a cold network disk.
_START_SECONDS = 120


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much one request may take.

    Args:
      seconds: Wall time.
      memory: Bytes beyond what the child holds before it.
    """

    seconds: float
    memory: int


@final
class BoundedRunner:
    """Runs models in a child that is started at first use, kept for the next request, and ended with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def run(self, model: bytes, feeds: Tensors, options: Options, bounds: Bounds) -> dict[str, np.ndarray]:
        """Returns the outputs of a model, those of text and other kinds that are no numbers left out.

        Raises: ModelError as a session would; ModelError(slug="runtime-crashed") where the runtime dies of the file;
          ResourceError(slug="model-too-slow" | "model-too-hungry") beyond the bounds.
        """
        folder = None if options.data_folder is None else str(options.data_folder)
        header = {"do": "run", "optimize": options.optimize, "folder": folder}
        answer, blobs = self._ask(header, {"model": np.frombuffer(model, np.uint8), **feeds}, bounds)
        return {name: blobs[place] for place, name in enumerate(answer["names"])}

    def convert(self, model: bytes, opset: int, bounds: Bounds) -> bytes:
        """Returns the model in another version of the standard operators (onnx.version_converter).

        Raises: ModelError(slug="opset-too-old") where the converter cannot.
        """
        _, blobs = self._ask({"do": "convert", "opset": opset}, {"model": np.frombuffer(model, np.uint8)}, bounds)
        return blobs[0].tobytes()

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        _end(child)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        # -P: what lies in the working folder is not imported
        command = [sys.executable, "-P", "-m", "fewbits.runtimes.bounded"]
        try:
            child = subprocess.Popen(
                command,
                bufsize=0,  # what is left in a buffer of a broken pipe would be written again when it is closed
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the child
            )
        except OSError as error:
            raise ResourceError(
                f"cannot start a process of its own for the model: {error.strerror}; free memory or processes",
                slug="system",
            ) from error
        self._child, self._owner = child, os.getpid()
        try:
            assert child.stdout is not None
            _receive(child.stdout, time.monotonic() + _START_SECONDS)
        except (TimeoutError, OSError, EOFError, ValueError):
            self.close()
            raise ResourceError(
                "the process of its own for the model did not start: its libraries could not be loaded in time, or in "
                "the memory that it may take; free memory, or raise the limit",
                slug="system",
            ) from None
        except BaseException:
            self.close()
            raise
        return child

    def _ask(
        self, header: dict[str, Any], blobs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        with self._lock:
            child = self._started()
            assert child.stdin is not None and child.stdout is not None
            limits = {"seconds": bounds.seconds, "memory": bounds.memory}
            deadline = time.monotonic() + bounds.seconds + (0 if header["do"] == "run" else _GRACE_SECONDS)
            try:
                _send(child.stdin, {**header, **limits, "names": list(blobs)}, list(blobs.values()), deadline)
                answer, found = _receive(child.stdout, deadline)
            except TimeoutError:
                self.close()
                raise ResourceError(
                    f"one example was not done after {bounds.seconds:.3g} s; does the model ever end?",
                    slug="model-too-slow",
                ) from None
            except (OSError, EOFError, ValueError):
                status = _end(child, patience=_GRACE_SECONDS)
                self.close()
                raise _death(status, bounds) from None
            except BaseException:  # an interrupt: what is half read belongs to nobody
                self.close()
                raise
        if "error" in answer:
            raise _refusal(answer, bounds)
        return answer, found


def _end(child: subprocess.Popen[bytes], *, patience: float = 0.0) -> int:
    """Returns how a child ended: by itself within some seconds, else by our hand."""
    if patience:
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    return child.wait()


def _death(status: int, bounds: Bounds) -> ModelError | ResourceError:
    if status == -9:  # the kernel's answer to too much memory
        return _hungry(bounds)
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return ModelError(
        f"the runtime crashed on this model ({how}); the file is broken, or the runtime is: report it there",
        slug="runtime-crashed",
    )


def _hungry(bounds: Bounds) -> ResourceError:
    return ResourceError(
        f"one example needs more than {bounds.memory / MIB:.0f} MB; a model that is worth them gets more "
        "with --max-memory",
        slug="model-too-hungry",
    )


def _refusal(answer: Mapping[str, Any], bounds: Bounds) -> ModelError | ResourceError:
    message = str(answer["error"])
    if any(word in message.lower() for word in MEMORY_WORDS):
        return _hungry(bounds)
    return ModelError(message, slug=str(answer.get("slug", "run-failed")))


# --- messages ---------------------------------------------------------------------------------------------------------


def _send(pipe: IO[bytes], header: dict[str, Any], blobs: list[np.ndarray], deadline: float | None = None) -> None:
    """Writes a message; TimeoutError where nobody has read it in time."""
    whole = [np.ascontiguousarray(blob) for blob in blobs]
    specs = [{"dtype": blob.dtype.name, "shape": list(blob.shape)} for blob in blobs]
    text = json.dumps({**header, "blobs": specs}).encode()
    parts = [blob.reshape(-1).view(np.uint8).data for blob in whole if blob.size]
    descriptor = pipe.fileno()
    if deadline is not None:
        os.set_blocking(descriptor, False)
    for part in (memoryview(len(text).to_bytes(8, "little") + text), *parts):
        view = part
        while view:
            _wait(descriptor, select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                view = view[os.write(descriptor, view) :]


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    """Returns when a pipe is ready, or broken; TimeoutError where it is neither in time."""
    if deadline is None:
        return
    ready = select.poll()  # select() knows no descriptor above 1023
    ready.register(descriptor, event)
    if not ready.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def _receive(pipe: IO[bytes], deadline: float | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    size = int.from_bytes(_exactly(pipe, 8, deadline), "little")
    if size > _MAX_HEADER_BYTES:
        raise ValueError("no message of ours")
    header = json.loads(_exactly(pipe, size, deadline))
    blobs = []
    for spec in header.get("blobs", ()):
        dtype = np.dtype(spec["dtype"])
        count = int(np.prod(spec["shape"], dtype=object))
        blobs.append(
            np.frombuffer(_exactly(pipe, count * dtype.itemsize, deadline), dtype=dtype).reshape(spec["shape"])
        )
    return header, blobs


def _exactly(pipe: IO[bytes], count: int, deadline: float | None) -> bytes:
    """Returns so many bytes; TimeoutError where they are not there in time, EOFError where the pipe ends before."""
    parts, left, descriptor = [], count, pipe.fileno()
    while left:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, min(left, MIB))
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


# --- the child --------------------------------------------------------------------------------------------------------


def _confine(seconds: float, memory: int) -> None:
    """Sets what the system enforces: bytes of data beyond those held now, and seconds of work."""
    import resource

    held = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            held = int(line.split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = held + memory
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    ends = int(used.ru_utime + used.ru_stime + seconds) + _GRACE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (ends if hard < 0 else min(ends, hard), hard))


def _answer(header: dict[str, Any], blobs: list[np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
    from fewbits.runtimes.ort import RUNTIME

    named = dict(zip(header["names"], blobs, strict=True))
    model = named.pop("model").tobytes()
    try:
        if Path("/proc/self/status").exists():
            _confine(header["seconds"], header["memory"])
        if header["do"] == "convert":
            return _converted(model, header["opset"])
        folder = None if header["folder"] is None else Path(header["folder"])
        session = RUNTIME.open(model, Options(optimize=header["optimize"], data_folder=folder))
        outputs = {n: v for n, v in session.run(named).items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}
    except (ModelError, ResourceError) as error:
        return {"error": error.message, "slug": error.slug}, []
    except MemoryError:
        return {"error": "out of memory"}, []
    if sum(value.nbytes for value in outputs.values()) > MAX_PROBE_REPLY_BYTES:
        return {"error": "out of memory: the outputs are too large to compare"}, []
    return {"names": list(outputs)}, list(outputs.values())


def _converted(model: bytes, opset: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    import onnx
    from onnx import version_converter

    try:
        made = version_converter.convert_version(onnx.load_model_from_string(model), opset)
    except Exception as error:  # the converter raises what its C++ throws: classes without a base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": (lines[0] if lines else type(error).__name__)[:200], "slug": "opset-too-old"}, []
    return {}, [np.frombuffer(made.SerializeToString(), np.uint8)]


def _leave_with_parent(descriptor: int) -> None:
    """Ends this process when nobody holds the other end of its stdin any more, in the midst of a model too."""
    end = select.poll()
    end.register(descriptor, 0)  # a hang-up is told without being asked for
    end.poll()
    os._exit(0)


def _serve() -> None:
    """Answers until stdin ends. What libraries print goes nowhere: stdout is for messages."""
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    threading.Thread(target=_leave_with_parent, args=(sys.stdin.fileno(),), daemon=True).start()
    import onnxruntime  # noqa: F401  (before any limit: the library is not the model)

    import fewbits.runtimes.ort  # noqa: F401

    _send(out, {}, [])
    while True:
        try:
            header, blobs = _receive(sys.stdin.buffer, None)
        except EOFError:
            return
        _send(out, *_answer(header, blobs))


# One child serves all models that this process opens, one after the other.
RUNNER = BoundedRunner()
atexit.register(RUNNER.close)

if __name__ == "__main__":
    _serve()
