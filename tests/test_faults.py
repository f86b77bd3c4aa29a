"""Bad input and bad luck: one line, the contract's code, nothing half written, the old output untouched."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

_SUPPORT = Path(__file__).parent / "support" / "runs.py"
CONTRACT = {0, 2, 3, 4, 5, 6, 7, 8}


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module tests/support/runs.py."""
    name = "fewbits_test_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SUPPORT)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def cli(runs: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command line in this process, hurried."""
    runs.hurry(monkeypatch)
    return lambda *args: runs.in_process(args, capfd.readouterr, monkeypatch)


@pytest.fixture
def net(runs: ModuleType, tmp_path: Path) -> Path:
    return Path(runs.small_net(tmp_path / "net.onnx"))


@pytest.fixture
def data(runs: ModuleType, tmp_path: Path) -> Path:
    return Path(runs.save_data(tmp_path / "data.npz", runs.small_data()))


@pytest.fixture(scope="session")
def old_output(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of the small net that faults must leave alone; not to be changed."""
    from fewbits.api import quantize

    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        model = runs.small_net(folder / "net.onnx")
        return quantize(model, data=runs.small_data(), scheme="w8a8", allow_slower=True).save(folder / "out")


@pytest.fixture
def old(old_output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old_output, tmp_path / "place" / "out"))


def both_verbs(cli: Callable[..., Any], model: Path, data: Path, out: Path, code: int, *words: str) -> None:
    cli("inspect", model).refused(code, *words)
    cli("quantize", model, "--data", data, "-o", out).refused(code, *words)
    assert not out.exists()


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("empty.onnx", lambda whole: b"", ("empty.onnx", "[model-empty]")),
        ("half.onnx", lambda whole: whole[: len(whole) // 2], ("half.onnx", "[model-broken]")),
        ("short.onnx", lambda whole: whole[:-1], ("short.onnx", "[model-broken]")),
        ("text.onnx", lambda whole: b"I am a text file, not a model.\n" * 20, ("text.onnx", "[model-broken]")),
        ("page.onnx", lambda whole: b"<!DOCTYPE html><html>404</html>", ("page.onnx", "[model-broken]")),
        ("pointer.onnx", lambda whole: b"version https://git-lfs.github.com/spec/v1\n", ("[model-broken]",)),
        ("zeros.onnx", lambda whole: bytes(4096), ("[model-broken]",)),
        ("gzip.onnx", lambda whole: b"\x1f\x8b\x08\x00" + whole[:400], ("[model-broken]",)),
    ],
)
def test_a_broken_file_is_refused_by_name(
    cli: Callable[..., Any],
    net: Path,
    data: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes],
    words: tuple[str, ...],
) -> None:
    path = tmp_path / name
    path.write_bytes(damage(net.read_bytes()))
    both_verbs(cli, path, data, tmp_path / "out", 4, *words)


def test_no_file_and_a_folder_are_refused(cli: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    both_verbs(cli, tmp_path / "none.onnx", data, tmp_path / "out", 4, "none.onnx", "[model-unreadable]")
    both_verbs(cli, tmp_path / "folder", data, tmp_path / "out", 4, "is a folder", "[model-unreadable]")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_a_weight_that_is_no_number_is_named_with_count_and_place(
    cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path, value: float, word: str
) -> None:
    model = onnx.load(str(net))
    tensor = next(t for t in model.graph.initializer if t.name == "w2")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 5, 1, 2] = array[7, 0, 0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, "w2"))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    both_verbs(cli, tmp_path / "bad.onnx", data, tmp_path / "out", 4, "'w2'", "2 ", "[3, 5, 1, 2]", word)


def test_a_quantized_model_is_refused(cli: Callable[..., Any], old: Path, data: Path, tmp_path: Path) -> None:
    both_verbs(cli, old / "model.onnx", data, tmp_path / "out", 4, "already quantized", "[already-quantized]")


def test_an_old_opset_is_refused_with_the_way_out(
    cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(net))
    model.opset_import[0].version = 6
    onnx.save(model, str(tmp_path / "old.onnx"))
    both_verbs(cli, tmp_path / "old.onnx", data, tmp_path / "out", 4, "opset 6", "export it again")


def test_nothing_to_quantize_is_told_with_reasons(
    cli: Callable[..., Any], runs: ModuleType, data: Path, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Tanh", ["x"], ["t"], name="t"), helper.make_node("Exp", ["t"], ["y"], name="e")]
    model = runs.save_model(tmp_path / "n.onnx", nodes, {}, shape=["batch", 3, 16, 16], out=["batch", 3, 16, 16])
    done = cli("quantize", model, "--data", data, "-o", tmp_path / "out")
    done.refused(5, "n.onnx", "1 Tanh", "1 Exp", "[nothing-to-quantize]")
    cli("plan", model).refused(5, "[nothing-to-quantize]")
    assert cli("inspect", model).code == 0, "looking is allowed"


def test_external_data_outside_the_folder_are_a_security_refusal(
    cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(net))
    tensor = model.graph.initializer[0]
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    (tmp_path / "inner").mkdir()
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "a/../../secret.bin"):
        changed = onnx.load(str(net))
        tensor = changed.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        path = tmp_path / "inner" / "m.onnx"
        path.write_bytes(changed.SerializeToString())
        both_verbs(cli, path, data, tmp_path / "out", 7, "m.onnx")


_MUTATE = """
import io, json, os, random, sys, time
import numpy as np
seed, count, folder, model, data, verb = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:7]
sys.path.insert(0, os.path.dirname(sys.argv[7]))
import runs
from fewbits.cli import main
class Patch:
    def setattr(self, place, name, value): setattr(place, name, value)
runs.hurry(Patch())
whole = open(model, "rb").read()
rng = random.Random(seed)
path = os.path.join(folder, "mutant.onnx")
report = os.dup(1)
for number in range(count):
    mutant = bytearray(whole)
    kind = rng.randrange(3)
    if kind == 0:
        del mutant[rng.randrange(len(mutant)):]
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
    else:  # the structure and not the weights: the last part of the file, where this one has its graph
        start = rng.choice((0, max(0, len(mutant) - 1500)))
        mutant[min(len(mutant) - 1, start + rng.randrange(1500))] = rng.randrange(256)
    open(path, "wb").write(mutant)
    more = ["--data", data, "--scheme", "w8a8", "--allow-slower", "--overwrite", "-o", folder + "/out"]
    sys.argv = ["fewbits", verb, path, *(more if verb == "quantize" else [])]
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    os.write(report, json.dumps({"start": number}).encode() + b"\\n")
    begun = time.monotonic()
    try:
        main()
    except SystemExit as end:
        code = end.code
    seconds = time.monotonic() - begun
    lines = sys.stderr.getvalue().splitlines()
    os.write(report, json.dumps({"n": number, "code": code, "s": seconds, "err": lines}).encode() + b"\\n")
"""


def mutate(runs: ModuleType, folder: Path, *, verb: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Runs a verb on mutants of the small net in one process; a process that dies is the finding of its last mutant."""
    model, data = runs.small_net(folder / "net.onnx"), runs.save_data(folder / "d.npz", runs.small_data(40))
    done = subprocess.run(
        [sys.executable, "-c", _MUTATE, str(seed), str(count), str(folder), str(model), str(data), verb, _SUPPORT],
        capture_output=True,
        env={**os.environ, **runs.PLAIN, "PYTHONWARNINGS": "ignore"},
        timeout=900,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, rows[-1:], done.stderr[-2000:])
    return [row for row in rows if "code" in row]


def judge(rows: list[dict[str, Any]], count: int) -> None:
    assert len(rows) == count
    wrong = [row for row in rows if row["code"] not in CONTRACT or row["s"] > 10]
    assert not wrong, wrong[:5]
    for row in rows:
        assert not any("Traceback" in line for line in row["err"]), row
        if row["code"] not in (0, 3):
            assert len(row["err"]) == 1, row
            assert row["err"][0].endswith("]"), row
    assert {4} <= {row["code"] for row in rows}, "no mutant was refused; the test shows nothing"


def test_mutated_models_are_refused_in_one_line_or_opened(runs: ModuleType, tmp_path: Path) -> None:
    judge(mutate(runs, tmp_path, verb="inspect", count=200, seed=1), 200)


def test_mutated_models_are_refused_in_one_line_or_quantized(runs: ModuleType, tmp_path: Path) -> None:
    judge(mutate(runs, tmp_path, verb="quantize", count=10, seed=2), 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_mutated_models_are_refused_in_one_line_or_opened(
    runs: ModuleType, tmp_path: Path, seed: int
) -> None:
    judge(mutate(runs, tmp_path, verb="inspect", count=1000, seed=100 + seed), 1000)
    judge(mutate(runs, tmp_path, verb="quantize", count=100, seed=200 + seed), 100)


# --- data ---------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: arrays | {"x": change(arrays["x"])}


def _with(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_changed(lambda x: x[:0]), ("no examples", "[data-empty]")),
        (lambda arrays: {}, ("[data-empty]",)),
        (lambda arrays: {"y": arrays["x"]}, ("'x'", "'y'", "[data-input-missing]")),
        (lambda arrays: arrays | {"z": arrays["x"]}, ("'z'", "[data-input-unknown]")),
        (_changed(lambda x: x[:, :2]), ("[3, 16, 16]", "[2, 16, 16]", "[data-shape]")),
        (_changed(lambda x: x.transpose(0, 2, 3, 1).copy()), ("NHWC", "[data-shape]")),
        (_changed(lambda x: x[:, 0]), ("[3, 16, 16]", "[16, 16]", "[data-shape]")),
        (_changed(lambda x: x.astype(np.float64)), ("expected float32, got float64", "[data-dtype]")),
        (_changed(lambda x: (x * 50).astype(np.uint8)), ("expected float32, got uint8", "[data-dtype]")),
        (lambda arrays: arrays | {"labels": np.zeros(7, np.int64)}, ("'labels'", "[data-first-axis]")),
        (_changed(lambda x: _with(x, (17, 1, 2, 3), np.nan)), ("example 17", "[1, 2, 3]", "[data-nonfinite]")),
        (_changed(lambda x: _with(x, (199, 0, 0, 0), np.inf)), ("example 199", "[data-nonfinite]")),
        (lambda arrays: arrays | {"labels": np.full(200, 10)}, ("0 to 9", "[labels-range]")),
        (lambda arrays: arrays | {"labels": np.full(200, -1)}, ("-1", "[labels-range]")),
        (lambda arrays: arrays | {"labels": np.zeros((200, 3), np.int64)}, ("[labels-shape]",)),
        (_changed(lambda x: x[:3]), ("too few to split", "[split-empty-part]")),
        (_changed(lambda x: np.repeat(x[:1], 200, axis=0)), ("1 distinct", "[split-empty-part]")),
    ],
)
def test_bad_data_are_refused_with_expected_and_got(
    cli: Callable[..., Any],
    runs: ModuleType,
    net: Path,
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    words: tuple[str, ...],
) -> None:
    data = runs.save_data(tmp_path / "bad.npz", change(runs.small_data()))
    done = cli("quantize", net, "--data", data, "--effort", "fast", "-q", "-o", tmp_path / "out")
    done.refused(4, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "net.onnx"]


def test_objects_pickles_and_bombs_are_security_refusals_or_bad_data(
    cli: Callable[..., Any], net: Path, tmp_path: Path
) -> None:
    import zipfile

    class Canary:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "canary"),)

    objects = np.empty(4, object)
    objects[:] = Canary()
    np.savez(tmp_path / "object.npz", x=objects)
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04N.")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3, 16, 16)}
        )
        member.write(bytes(10_000_000))
    for name, codes in (("object.npz", {4, 7}), ("data.pkl", {7}), ("bomb.npz", {4, 7})):
        done = cli("quantize", net, "--data", tmp_path / name, "-o", tmp_path / "out")
        assert done.code in codes, (name, done)
        done.refused(done.code, name)
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()


def test_broken_data_files_are_refused_by_name(cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path) -> None:
    whole = data.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text\n" * 50, whole[:-30]):
        (tmp_path / "broken.npz").write_bytes(content)
        cli("quantize", net, "--data", tmp_path / "broken.npz", "-o", tmp_path / "out").refused(4, "broken.npz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4  # inside the pixels: only the archive's own checksum can tell
    (tmp_path / "broken.npz").write_bytes(flipped)
    cli("quantize", net, "--data", tmp_path / "broken.npz", "-o", tmp_path / "out").refused(4, "broken.npz")
    cli("quantize", net, "--data", tmp_path / "none.npz", "-o", tmp_path / "out").refused(4, "none.npz")


def test_data_of_zeros_still_give_a_finite_model(
    cli: Callable[..., Any], runs: ModuleType, net: Path, tmp_path: Path
) -> None:
    x = np.zeros((200, 3, 16, 16), np.float32)
    x[:, 0, 0, 0] = np.arange(200) * 1e-30
    data = runs.save_data(tmp_path / "z.npz", {"x": x})
    done = cli("quantize", net, "--data", data, "--scheme", "w8a8", "--allow-slower", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    for tensor in onnx.load(str(tmp_path / "out" / "model.onnx")).graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert np.isfinite(values).all(), tensor.name
        if tensor.name.endswith("scale"):
            assert (values > 0).all(), tensor.name


# --- places -------------------------------------------------------------------------------------------------------


def test_a_failing_run_leaves_the_old_output_and_no_other_file(
    cli: Callable[..., Any], runs: ModuleType, old: Path, net: Path, tmp_path: Path
) -> None:
    before = runs.snapshot(old.parent)
    arrays = runs.small_data()
    arrays["x"][150, 0, 0, 0] = np.nan
    data = runs.save_data(tmp_path / "nan.npz", arrays)
    cli("quantize", net, "--data", data, "-q", "-o", old, "--overwrite").refused(4, "example 150")
    assert runs.snapshot(old.parent) == before


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("room", [0, 8_000, 40_000, 70_000])
def test_a_full_disk_is_told_and_the_old_output_kept(
    cli: Callable[..., Any], runs: ModuleType, old: Path, net: Path, data: Path, little_disk: Path, room: int
) -> None:
    out = Path(shutil.copytree(old, little_disk / "out"))
    free = os.statvfs(little_disk)
    (little_disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    before = runs.snapshot(little_disk)
    done = cli("quantize", net, "--data", data, "--scheme", "w8a8", "--allow-slower", "-o", out, "--overwrite")
    done.refused(6, "[disk-full]")
    assert runs.snapshot(little_disk) == before
    assert cli("verify", out).code == 0


def test_a_place_that_cannot_be_written_is_refused_before_work(
    cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewbits.search import job

    monkeypatch.setattr(job, "run", lambda request: pytest.fail("work has started"))
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "out", Path("/proc/fewbits-out"), Path("/sys/fewbits-out")):
        done = cli("quantize", net, "--data", data, "-o", place)
        done.refused(6, str(place), "[output-unwritable]")
    done = cli("quantize", net, "--data", data, "-o", tmp_path / "file")
    done.refused(2, "is not a folder")


@pytest.mark.parametrize("name", ["naïve 模型 🙂 with space", "-dash", "a'b\"c", "x" * 200, "new\nline"])
def test_any_path_is_as_good_as_another(
    cli: Callable[..., Any], net: Path, data: Path, tmp_path: Path, name: str
) -> None:
    place = tmp_path / name
    place.mkdir()
    model, examples = place / f"{name[:20]}.onnx", place / f"{name[:20]}.npz"
    shutil.copy(net, model)
    shutil.copy(data, examples)
    done = cli("quantize", model, "--data", examples, "--scheme", "w8a8", "--allow-slower", "-o", place / name[:60])
    assert (done.code, done.err) == (0, "")
    assert "\n" not in name or "new\nline" not in done.out
    assert cli("verify", place / name[:60]).code == 0


# --- processes ----------------------------------------------------------------------------------------------------


def start(runs: ModuleType, *args: Any, temp: Path | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fewbits", *map(os.fspath, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **runs.PLAIN, **({"TMPDIR": str(temp)} if temp else {})},
        # A runner in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_ctrl_c_leaves_with_130_and_no_trace(runs: ModuleType, old: Path, tmp_path: Path) -> None:
    before = runs.snapshot(old.parent)
    temp = tmp_path / "temp"
    temp.mkdir()
    process = start(
        runs, "quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--effort", "best", "-o", old, "--overwrite",
        temp=temp,
    )  # fmt: skip
    wait_for(lambda: any(temp.glob("fewbits-reference-*/*")))  # the search has begun
    assert (old.parent / ".out.fewbits.lock").exists()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    runs.Done(code=process.returncode, out=out.decode(), err=err.decode()).refused(130, "interrupted")
    assert runs.snapshot(old.parent) == before
    assert sorted(p.name for p in old.parent.iterdir()) == ["out"]
    assert [path for path in temp.iterdir() if path.name != ".ses"] == []  # that one is ONNX Runtime's own


_REWRITE = """
import sys
import fewbits
print("ready", flush=True)
while True:
    fewbits.report(sys.argv[1])
"""


def test_sigkill_while_writing_leaves_an_output_that_verifies_and_the_next_run_cleans_up(
    cli: Callable[..., Any], runs: ModuleType, old: Path
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", _REWRITE, old], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3 + float(rng.uniform(0, 0.05)))  # past the imports, in the midst of a rewrite
        process.kill()
        process.wait()
        process.stdout.close()
        assert cli("verify", old).code == 0
    assert cli("report", old).code == 0
    assert [p.name for p in old.parent.iterdir()] == ["out"]


def test_a_second_run_on_the_same_output_is_refused(cli: Callable[..., Any], runs: ModuleType, old: Path) -> None:
    process = start(runs, "quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "-o", old, "--overwrite")
    try:
        wait_for(lambda: (old.parent / ".out.fewbits.lock").exists())
        cli("report", old).refused(6, "[output-locked]")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("inspect", "MODEL", "--all"), 0),
        (("targets", "ort-cpu"), 0),
        (("measure", "MODEL", "MODEL", "--data", "DATA", "--max-drop", "0.1%", "--json"), 3),
    ],
)
def test_a_reader_who_leaves_changes_no_exit_code(
    runs: ModuleType, net: Path, data: Path, args: tuple[str, ...], code: int
) -> None:
    places = {"MODEL": net, "DATA": data}
    process = start(runs, *(places.get(arg, arg) for arg in args))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # what ``| head -0`` does
    err = process.stderr.read().decode()
    assert (process.wait(timeout=60), err) == (code, "")
    process.stderr.close()


@pytest.mark.parametrize(("redirect", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), (">/dev/full", 6)])
def test_closed_and_full_streams_crash_nothing(runs: ModuleType, redirect: str, code: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m fewbits formats {redirect}', sys.executable],
        capture_output=True,
        env={**os.environ, **runs.PLAIN},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_a_bare_environment_and_an_ascii_terminal_are_enough(
    runs: ModuleType, old: Path, net: Path, data: Path, tmp_path: Path
) -> None:
    bare = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    place = old.rename(old.with_name("aus gäbe"))
    for args in (
        ("measure", net, net, "--data", data),
        ("report", place),
        ("verify", place),
        ("plan", net, "-o", tmp_path / "plän.json"),
        ("doctor",),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "fewbits", *map(os.fspath, args)],
            capture_output=True,
            env=bare,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), args
        assert done.stdout.decode("ascii")
    assert (tmp_path / "plän.json").exists()


def test_progress_is_drawn_on_a_terminal_only_and_never_with_quiet(runs: ModuleType, net: Path, data: Path) -> None:
    import pty

    seen = {}
    for flag in ("", "-q"):
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "fewbits", "measure", net, net, "--data", data, *([flag] if flag else [])],
            stdout=subprocess.PIPE,
            stderr=follower,
            env={**os.environ, **runs.PLAIN, "TERM": "xterm"},
        )
        os.close(follower)
        out, _ = process.communicate(timeout=60)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal has gone with its process
            while piece := os.read(leader, 65536):
                drawn += piece
        os.close(leader)
        assert process.returncode == 0
        assert b"verdict" in out and b"\x1b" not in out
        seen[flag] = drawn
    assert b"model" in seen[""]
    assert seen["-q"] == b""
