"""A laboratory of faults: runs of the command line with calls that fail, and signals at chosen or random moments."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent
_MARK = "FEWBITS_TEST_RUN"


def _runs() -> ModuleType:
    name = "fewbits_test_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _HERE.parent / "support" / "runs.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def marked(mark: str) -> list[str]:
    """Returns the command lines of the living processes that bear the mark of a run in their environment."""
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if place.name.isdigit() and f"{_MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


class Lab:
    """Starts command lines in forks of one process that has its libraries."""

    def __init__(self, folder: Path) -> None:
        self.runs = _runs()
        self.temp = folder / "temp"
        self._folder = folder
        self._mark = ""
        self._zygote: subprocess.Popen[bytes] | None = None

    def use(self, folder: Path) -> None:
        """Makes a folder the place of the next runs, with a folder for temporary files in it."""
        self._folder, self.temp = folder, folder / "temp"
        self.temp.mkdir(exist_ok=True)

    def start(
        self,
        *args: str | os.PathLike[str],
        faults: Sequence[tuple[Any, int, str]] = (),
        lazy: bool = False,
        limits: dict[str, int] | None = None,
        temp: Path | None = None,
    ) -> int:
        """Starts ``fewbits ARGS`` and returns the id of its process.

        Args:
          faults: What goes wrong: "module:name" (or several, counted together), at which call, and a signal or errno.
          lazy: Whether tensors in files stay there, however small they are.
          limits: Of resources.
          temp: Where temporary files go.
        """
        self._mark = secrets.token_hex(8)
        job = {
            "args": [os.fspath(a) for a in args],
            "folder": str(self._folder),
            "env": {_MARK: self._mark, "TMPDIR": str(temp or self.temp)},
            "out": str(self._folder / "stdout"),
            "err": str(self._folder / "stderr"),
            "lazy": lazy,
            "limits": limits or {},
            "faults": list(faults),
        }
        zygote = self._zygote = self._zygote or self._born()
        assert zygote.stdin is not None
        zygote.stdin.write(json.dumps(job).encode() + b"\n")
        zygote.stdin.flush()
        return int(self._line(10))

    def end(self, seconds: float = 60) -> Any:
        """Waits for the process; returns what it left behind, a negative code where a signal ended it."""
        code = int(self._line(seconds))
        out, err = ((self._folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return self.runs.Done(code=code, out=out, err=err)

    def run(self, *args: str | os.PathLike[str], **more: Any) -> Any:
        """Runs ``fewbits ARGS`` to its end."""
        self.start(*args, **more)
        return self.end()

    @staticmethod
    def kill(process: int) -> None:
        """Kills a process that may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    @staticmethod
    def living(mark: str) -> list[str]:
        """Returns the command lines of the living processes whose environment bears a mark."""
        return marked(mark)

    def outlived(self, seconds: float = 3) -> list[str]:
        """Returns the processes that the last run has started and that still live some time after its end."""
        until = time.monotonic() + seconds
        while (left := marked(self._mark)) and time.monotonic() < until:
            time.sleep(0.02)
        return left

    def close(self) -> None:
        """Ends the process that all others are forks of."""
        if self._zygote is not None:
            assert self._zygote.stdin is not None and self._zygote.stdout is not None
            self._zygote.stdin.close()
            self._zygote.wait(30)
            self._zygote.stdout.close()

    def _born(self) -> subprocess.Popen[bytes]:
        self._zygote = subprocess.Popen(
            [sys.executable, str(_HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.runs.PLAIN, "PYTHONWARNINGS": "ignore"},
            bufsize=0,
        )
        assert self._line(60) == "0"
        return self._zygote

    def _line(self, seconds: float) -> str:
        assert self._zygote is not None and self._zygote.stdout is not None
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._zygote.stdout], [], [], seconds)
            assert ready, f"hangs: nothing came in {seconds} s"
            piece = os.read(self._zygote.stdout.fileno(), 1)
            assert piece, "the laboratory has burnt down"
            text += piece
        return text.decode().strip()


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module tests/support/runs.py."""
    return _runs()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The one process that all runs are forks of."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def lab(zygote: Lab, tmp_path: Path) -> Lab:
    """The laboratory, in the folder of this test."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    zygote.use(tmp_path)
    return zygote


@pytest.fixture(scope="session")
def finished(zygote: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small net ``net.onnx`` and its output ``out``, weights in codes; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    zygote.use(folder)
    model = zygote.runs.small_net(folder / "net.onnx")
    assert zygote.run("quantize", model, "--scheme", "w8a16", "--allow-slower", "-o", folder / "out").code == 0
    return folder


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes what came out, for the table of docs/faults.md."""
    return lambda text: record_property("outcome", text)


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kilobytes."""
    made: list[Path] = []

    def mount(kilobytes: int) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("no right to mount a small file system here")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", "-l", place], check=True)
