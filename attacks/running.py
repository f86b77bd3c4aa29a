"""Runs the command line on a hostile file in a process of its own, with a clock and a scale, and judges what came."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from attacks.case import INERT, SECRET, Case
from attacks.parts import examples, honest, save

# What each case may take, of wall time and of memory: its processes together.
SECONDS: Final = 10.0
BYTES: Final = 1_000_000_000
# What ends a run, so that the machine lives on; a multiple of what is allowed, so that a little too much shows as such.
_KILL_SECONDS, _KILL_BYTES = 30.0, 4 * BYTES
_POLL_SECONDS = 0.02
_PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "dumb"}
_REFUSAL = re.compile(r"fewbits: .+ \[[a-z0-9-]+\]")
# Controls but the line's end, marks that turn the reading order, halves of characters.
_UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WRITTEN = {
    "README.md", "golden.npz", "manifest.json", "model.onnx", "model.onnx.data", "plan.json", "records.jsonl",
    "report.html", "report.json", "timings.json", "costs.json", "statistics.npz", "plan.npz",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one command did.

    Args:
      verb: The verb.
      code: Exit code; negative for a signal; None where it had to be ended.
      out, err: What it printed.
      seconds: Wall time, less what its processes waited for a processor that others had.
      peak: Bytes of memory, summed over its processes.
    """

    verb: str
    code: int | None
    out: str
    err: str
    seconds: float
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a case: the runs, and every fault that was found; none is a pass."""

    case: Case
    runs: tuple[Ran, ...]
    faults: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """What happened, in words: the verb that refused, with its code and slug, or what ran through."""
        last = self.runs[-1]
        if last.code is None:
            return f"{last.verb} did not end"
        line = next((line for line in reversed(last.err.splitlines()) if line.startswith("fewbits: ")), "")
        slug = line.rpartition("[")[2].rstrip("]") if line.endswith("]") else ""
        return f"{last.verb}: {last.code} {slug}".strip()


@dataclass(slots=True)
class _Watched:
    """The processes of one run: this one and all below it."""

    top: int
    peaks: dict[int, int] = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)

    def look(self) -> int:
        """Returns the bytes in memory now; remembers the most that each process ever had, and how long it waited."""
        total = 0
        for process in self.family():
            held, most = _memory(process)
            self.peaks[process] = max(self.peaks.get(process, 0), most)
            self.waits[process] = max(self.waits.get(process, 0.0), _waited(process))
            total += held
        return total

    def family(self) -> list[int]:
        found, waiting = [], [self.top]
        while waiting:
            process = waiting.pop()
            found.append(process)
            with suppress(OSError):  # it may end at any moment
                for listing in Path(f"/proc/{process}/task").glob("*/children"):
                    waiting += map(int, listing.read_text().split())
        return found

    def end(self) -> None:
        for process in reversed(self.family()):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)


def _memory(process: int) -> tuple[int, int]:
    held = most = 0
    with suppress(OSError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                held = 1024 * int(line.split()[1])
            elif line.startswith("VmHWM:"):
                most = 1024 * int(line.split()[1])
    return held, most


def _waited(process: int) -> float:
    """Returns the seconds that a process was ready and another one had the processor (proc(5), schedstat)."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def run(*args: str | os.PathLike[str], folder: Path) -> Ran:
    """Returns what ``fewbits ARGS`` does in a fresh process, started in ``folder``."""
    command = [sys.executable, "-m", "fewbits", *map(os.fspath, args)]
    begin = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # The two files cannot fill up as pipes do, and the size of what is printed is no matter of the child.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env={**os.environ, **_PLAIN}
        )
        watched, code = _Watched(child.pid), None
        while code is None:
            held = watched.look()
            seconds = time.monotonic() - begin - sum(watched.waits.values())
            if seconds > _KILL_SECONDS or held > _KILL_BYTES:
                watched.end()
                child.wait()
                break
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(_POLL_SECONDS)
        seconds = time.monotonic() - begin - sum(watched.waits.values())
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "surrogateescape"))
    return Ran(
        verb=str(args[0]), code=code, out=texts[0], err=texts[1], seconds=seconds, peak=sum(watched.peaks.values())
    )


# --- one case --------------------------------------------------------------------------------------------------------


def write(case: Case, place: Path) -> Path:
    """Returns the hostile file, made in ``place/in``; ``place/outside`` holds the secret."""
    outside, folder = place / "outside", place / "in"
    outside.mkdir(parents=True)
    folder.mkdir()
    (outside / "secret.bin").write_bytes(SECRET)
    return case.make(folder)


def commands(case: Case, made: Path, place: Path) -> list[list[str | os.PathLike[str]]]:
    """Returns the command lines that a case goes through, in order, until one refuses."""
    forced = ["--scheme", "w8a8", "--allow-slower", "-o", place / "out"]
    partner = case.partner or (good_model if case.kind == "data" else examples)
    other = partner(place)
    if case.kind == "model":
        return [["inspect", made], ["quantize", made, "--data", other, *forced]]
    if case.kind == "data":
        return [["quantize", other, "--data", made, *forced]]
    return [["quantize", good_model(place), "--data", other, "--plan", made, "-o", place / "out"]]


def good_model(folder: Path) -> Path:
    """Returns the honest net, saved."""
    return save(folder, honest(), "good.onnx")


def attack(case: Case, place: Path) -> Verdict:
    """Returns what comes of a case; ``place`` is an empty folder of its own."""
    made = write(case, place)
    lines = commands(case, made, place)
    before = tree(place)
    ran: list[Ran] = []
    for line in lines:
        ran.append(run(*line, folder=place))
        if ran[-1].code != 0:
            break
    return Verdict(case=case, runs=tuple(ran), faults=tuple(faults(case, ran, place, before)))


def faults(case: Case, ran: list[Ran], place: Path, before: dict[str, tuple[int, int, int]]) -> list[str]:
    """Returns what is wrong with what came, in words."""
    found = []
    for one in ran:
        found += _faults_of(one)
    last = ran[-1]
    if last.code is not None and last.code not in case.allowed:
        found.append(f"{last.verb} answered {last.code}: {_short(last.err).replace(str(place), '…')}")
    out = place / "out"
    left = [path for path in place.iterdir() if path.name not in before and path != out]
    found += [f"left {path.name!r} behind" for path in left]
    if out.exists() and last.code not in INERT:
        found.append("left an output")
    after = tree(place)
    changed = [name for name, state in before.items() if after.get(name) != state]
    new = [name for name in after if name not in before and not name.startswith("out/") and name != "out"]
    found += [f"touched {name!r}" for name in [*changed, *new]]
    if out.exists():
        found += _faults_of_output(out)
    return found


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _UNSAFE.sub("?", lines[-1])[:300] if lines else "nothing on stderr"


def _faults_of(one: Ran) -> list[str]:
    found = []
    if one.code is None:
        found.append(f"{one.verb} was ended after {one.seconds:.0f} s with {one.peak / 1e9:.1f} GB")
    elif one.code < 0:
        found.append(f"{one.verb} died of signal {-one.code}")
    elif one.seconds > SECONDS:
        found.append(f"{one.verb} took {one.seconds:.1f} s")
    if one.peak > BYTES:
        found.append(f"{one.verb} took {one.peak / 1e9:.2f} GB")
    if "Traceback" in one.err:
        found.append(f"{one.verb} printed a traceback")
    unsafe = _UNSAFE.search(one.out) or _UNSAFE.search(one.err)
    if unsafe:
        found.append(f"{one.verb} printed {unsafe[0]!r}")
    if one.code is not None and one.code > 0 and one.code != 3:
        lines = [line for line in one.err.splitlines() if not line.startswith("note: ")]
        if one.out or len(lines) != 1 or not _REFUSAL.fullmatch(lines[0]):
            found.append(f"{one.verb} refused in other than one line with its slug: {one.err[:300]!r}")
    return found


def _faults_of_output(out: Path) -> list[str]:
    found = []
    for path in sorted(out.rglob("*")):
        if path.is_symlink() or path.parent != out or path.name not in _WRITTEN:
            found.append(f"wrote {str(path.relative_to(out))!r}")
        elif SECRET[:64] in path.read_bytes():
            found.append(f"gave the secret away in {path.name!r}")
    if not (out / "manifest.json").exists():
        return [*found, "left an output without a manifest"]
    page = _Page()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    found += [f"report.html holds {what}" for what in page.active]
    for name in ("report.html", "README.md"):
        unsafe = _UNSAFE.search((out / name).read_text(encoding="utf-8"))
        found += [f"{name} holds {unsafe[0]!r}"] if unsafe else []
    card = _CODE.sub("", _HEAD.sub("", (out / "README.md").read_text(encoding="utf-8")))
    found += [f"README.md holds {tag[0]!r}" for tag in _LIVE.finditer(card)]
    return found


# What is metadata and code in Markdown, and what is alive outside of it: HTML, and links that lead away.
_HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LIVE = re.compile(r"(?<!\\)<[a-z/!][^>]*>|(?<!\\)\]\((?:https?|javascript):[^)]*\)", re.IGNORECASE)


class _Page(HTMLParser):
    """Collects what is alive in a page: scripts, frames, pictures of elsewhere, what acts on an event."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "form", "foreignobject"):
            self.active.append(f"<{tag}>")
        for name, value in attrs:
            away = name in ("src", "href", "action", "data") and not (value or "").startswith(
                ("#", "data:image/", "data:,")
            )
            if name.startswith("on") or away:
                self.active.append(f"<{tag} {name}={value!r}>"[:200])


def tree(place: Path) -> dict[str, tuple[int, int, int]]:
    """Returns mode, size and time of change of everything below a folder; follows no link."""
    found = {}
    for parent, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(parent) / name
            state = path.lstat()
            regular = not path.is_dir() or path.is_symlink()
            found[str(path.relative_to(place))] = (
                state.st_mode,
                state.st_size if regular else 0,
                state.st_mtime_ns if regular else 0,
            )
    return found
