"""The process that a stranger's model runs in: it starts or that is told, and it does not outlive its parent."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits._base.errors import ResourceError
from fewbits._base.memory import is_lack_of_memory
from fewbits.runtimes import bounded
from fewbits.runtimes.base import Options
from fewbits.runtimes.bounded import BoundedRunner, Bounds

_RUN = """
import sys
import numpy as np
from fewbits.runtimes.base import Options
from fewbits.runtimes.bounded import RUNNER, Bounds
print("ready", flush=True)
model = open(sys.argv[1], "rb").read()
RUNNER.run(model, {"x": np.zeros(1, np.float32)}, Options(), Bounds(seconds=60, memory=2**28))
"""


def endless(path: Path) -> Path:
    """Writes a model that counts to 2^62."""
    vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("v", "w")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Cos", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            vector[0],
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), vector[1]],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "true", "x"], ["y"], body=body)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array(2**62), "count"), numpy_helper.from_array(np.array(True), "true")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_child_in_the_midst_of_an_endless_model_ends_when_its_parent_is_killed(lab: Any, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    parent = subprocess.Popen(
        [sys.executable, "-c", _RUN, endless(tmp_path / "endless.onnx")],
        stdout=subprocess.PIPE,
        env={**os.environ, **lab.runs.PLAIN, "FEWBITS_TEST_RUN": mark},
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    time.sleep(1.5)  # past the child's imports
    assert len(lab.living(mark)) == 2
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 10
    while lab.living(mark) and time.monotonic() < until:
        time.sleep(0.02)
    assert lab.living(mark) == []


@pytest.mark.parametrize("text", ["exit 3", "echo this is no message of ours; exec sleep 60", "exec sleep 60"])
def test_a_child_that_does_not_start_is_told_and_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(bounded, "_START_SECONDS", 0.5)
    runner = BoundedRunner()
    with pytest.raises(ResourceError, match="did not start"):
        runner.run(b"", {}, Options(), Bounds(seconds=5, memory=2**28))
    assert runner._child is None


def test_what_libraries_say_when_memory_is_short_is_known_as_that() -> None:
    reworded = ImportError("importing the numpy C-extensions failed")
    reworded.__cause__ = ImportError("libopenblas.so: failed to map segment from shared object")
    assert is_lack_of_memory(reworded)
    assert is_lack_of_memory(MemoryError())
    assert is_lack_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_lack_of_memory(RuntimeError("can't start new thread"))
    assert not is_lack_of_memory(ImportError("no module named onnx"))
    assert not is_lack_of_memory(OSError(28, "No space left on device"))
