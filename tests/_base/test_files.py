"""Files and folders are the old ones or the complete new ones, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits._base import files, posix
from fewbits._base.errors import (
    Exit,
    FewbitsError,
    InputError,
    ResourceError,
    SecurityError,
    UsageError,
    VerificationError,
)
from fewbits._base.files import OutputFolder, read_manifest, verify_manifest, write_atomic

OLD = {"model.onnx": b"old model" * 1000, "plan.json": b"{}"}
NEW = {"model.onnx": b"new model" * 2000, "plan.json": b"[]", "timings.json": b"1"}


def write_folder(target: Path, content: dict[str, bytes], **options: object) -> None:
    with OutputFolder(target, **options) as out:
        for name, data in content.items():
            out.write(name, data)
        out.commit({"seed": 0}, timing_files=[name for name in content if name == "timings.json"])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def slug_of(error: pytest.ExceptionInfo[FewbitsError]) -> str:
    return error.value.slug


def refusal(call: Callable[..., object], *args: object, **options: object) -> FewbitsError | None:
    """Returns what the call refuses with, None if it does not."""
    try:
        call(*args, **options)
    except FewbitsError as error:
        return error
    return None


class FailNth:
    """Makes the n-th call of os.write, os.fsync, os.rename and the exchange fail, counted together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, code: int) -> None:
        self.calls = 0
        self._n = n
        self._code = code
        for module, name in ((os, "write"), (os, "fsync"), (os, "rename"), (posix, "exchange")):
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))

    def _wrap(self, call: object) -> object:
        def wrapped(*args: object) -> object:
            self.calls += 1
            if self.calls == self._n:
                raise OSError(self._code, os.strerror(self._code))
            return call(*args)

        return wrapped


# --- one file ------------------------------------------------------------------------------------------------------


def test_sha256_of_a_file_equals_that_of_its_bytes(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256_file(path) == files.sha256_bytes(b"abc" * 100_000)
    # FIPS 180-2, appendix B.1
    assert files.sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as error:
        files.sha256_file(tmp_path / "none")
    assert slug_of(error) == "input-unreadable"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_write_atomic_replaces_and_obeys_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "plan.json", b"one")
        write_atomic(tmp_path / "plan.json", b"two")
    finally:
        os.umask(before)
    assert (tmp_path / "plan.json").read_bytes() == b"two"
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert hidden(tmp_path) == []


def test_write_atomic_is_not_readable_by_others_while_it_is_written(tmp_path, monkeypatch):
    modes = []
    real = os.fsync

    def look(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomic(tmp_path / "plan.json", b"secret")
    assert modes[0] == 0o600


def test_write_atomic_writes_through_a_symbolic_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("code", "slug"),
    [(errno.EIO, "output-unwritable"), (errno.ENOSPC, "disk-full"), (errno.EROFS, "output-unwritable")],
)
def test_write_atomic_survives_a_failure_of_every_call(tmp_path, code, slug):
    target = tmp_path / "plan.json"
    target.write_bytes(b"old")
    for n in range(1, 50):
        with pytest.MonkeyPatch.context() as patch:
            fault = FailNth(patch, n, code)
            error = refusal(write_atomic, target, b"new")
        if error is None:
            break
        assert (error.slug, error.exit_code) == (slug, Exit.RESOURCE)
        # After the rename only the directory is left to sync: the new bytes are in place by then.
        assert target.read_bytes() == (b"new" if n == 4 else b"old")
        assert hidden(tmp_path) == []
    assert n == 5 == fault.calls + 1  # write, fsync, rename, fsync of the directory
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "..\\x",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "\u202egnp.exe",
        "C:x",
        "\ud800",
        "é" * 200,
    ],
)
def test_a_name_that_is_not_plain_is_a_security_refusal(tmp_path, name):
    with OutputFolder(tmp_path / "out") as out:
        with pytest.raises(SecurityError) as error:
            out.write(name, b"")
        with pytest.raises(SecurityError):
            out.path(name)
    assert slug_of(error) == "unsafe-name"
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "mit Leerzeichen", "größe", "模型", ".hidden", "x" * 255])
def test_plain_names_are_kept(tmp_path, name):
    write_folder(tmp_path / "out", {name: b"1"})
    assert content(tmp_path / "out") == {name: b"1"}


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_folder_appears_complete_with_its_manifest(tmp_path):
    write_folder(tmp_path / "new" / "place" / "out", NEW)
    out = tmp_path / "new" / "place" / "out"
    assert content(out) == NEW
    manifest = read_manifest(out)
    assert manifest["seed"] == 0
    assert set(manifest["files"]) == {"model.onnx", "plan.json"}
    assert set(manifest["timing_files"]) == {"timings.json"}
    assert manifest["files"]["plan.json"] == {"bytes": 2, "sha256": files.sha256_bytes(b"[]")}
    assert verify_manifest(out) == []
    assert hidden(out.parent) == []


def test_content_hash_ignores_timings_and_nothing_else(tmp_path):
    write_folder(tmp_path / "a", NEW)
    write_folder(tmp_path / "b", {**NEW, "timings.json": b"2"})
    write_folder(tmp_path / "c", {**NEW, "plan.json": b"[ ]"})
    a, b, c = (read_manifest(tmp_path / name)["content_sha256"] for name in "abc")
    assert a == b
    assert a != c


def test_nothing_is_at_the_target_before_commit_and_nothing_hidden_after(tmp_path):
    out = tmp_path / "out"
    with OutputFolder(out) as folder:
        folder.write("model.onnx", b"1")
        folder.path("direct.bin").write_bytes(b"2")
        assert not out.exists()
        folder.commit({})
        assert out.exists()
    assert content(out) == {"model.onnx": b"1", "direct.bin": b"2"}
    assert hidden(tmp_path) == []


def test_leaving_without_commit_or_by_an_exception_keeps_the_old(tmp_path):
    out = tmp_path / "out"
    write_folder(out, OLD)
    with OutputFolder(out, overwrite=True) as folder:
        folder.write("model.onnx", b"half")
    with pytest.raises(KeyboardInterrupt), OutputFolder(out, overwrite=True) as folder:  # noqa: PT012
        folder.write("model.onnx", b"half")
        raise KeyboardInterrupt
    assert content(out) == OLD
    assert hidden(tmp_path) == []


def test_parents_made_for_a_run_that_fails_go_again(tmp_path):
    with OutputFolder(tmp_path / "a" / "b" / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_and_files_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "out", OLD)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_overwrite_replaces_the_old_folder(tmp_path):
    write_folder(tmp_path / "out", OLD)
    write_folder(tmp_path / "out", NEW, overwrite=True)
    assert content(tmp_path / "out") == NEW
    assert verify_manifest(tmp_path / "out") == []
    assert hidden(tmp_path) == []


def test_a_link_as_target_is_followed(tmp_path):
    write_folder(tmp_path / "real", OLD)
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link", NEW, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == NEW


def test_two_step_swap_where_the_kernel_cannot_exchange(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", OLD)

    def unsupported(left: Path, right: Path) -> None:
        raise OSError(errno.ENOSYS, "not there")

    monkeypatch.setattr(posix, "exchange", unsupported)
    write_folder(tmp_path / "out", NEW, overwrite=True)
    assert content(tmp_path / "out") == NEW
    assert hidden(tmp_path) == []


def test_a_run_killed_between_the_two_steps_is_put_back_by_the_next(tmp_path):
    write_folder(tmp_path / "out", OLD)
    (tmp_path / "out").rename(tmp_path / ".out.fewbits.old")
    with pytest.raises(UsageError) as error, OutputFolder(tmp_path / "out"):
        pass
    assert slug_of(error) == "output-exists"
    assert content(tmp_path / "out") == OLD
    assert hidden(tmp_path) == []


def test_leftovers_of_killed_runs_are_removed_but_nothing_else(tmp_path):
    (tmp_path / ".out.fewbits-0123456789abcdef.tmp").mkdir()
    (tmp_path / ".out.fewbits-0123456789abcdef.tmp" / "model.onnx").write_bytes(b"half")
    (tmp_path / ".out.fewbits.lock").write_bytes(b"")
    (tmp_path / ".out2.fewbits-0123456789abcdef.tmp").mkdir()
    write_folder(tmp_path / "out", NEW)
    assert hidden(tmp_path) == [".out2.fewbits-0123456789abcdef.tmp"]


def test_a_second_run_on_one_target_is_refused_and_takes_nothing_away(tmp_path):
    with OutputFolder(tmp_path / "out") as first:
        first.write("model.onnx", b"1")
        with pytest.raises(ResourceError) as error, OutputFolder(tmp_path / "out"):
            pass
        assert slug_of(error) == "output-locked"
        with OutputFolder(tmp_path / "other") as other:
            other.commit({})
        first.commit({})
    assert content(tmp_path / "out") == {"model.onnx": b"1"}
    assert hidden(tmp_path) == []


# --- refusals ------------------------------------------------------------------------------------------------------


def test_an_existing_output_is_kept_without_overwrite(tmp_path):
    write_folder(tmp_path / "out", OLD)
    with pytest.raises(UsageError) as error:
        write_folder(tmp_path / "out", NEW)
    assert slug_of(error) == "output-exists"
    assert "--overwrite" in str(error.value)
    assert content(tmp_path / "out") == OLD
    assert hidden(tmp_path) == []


def test_what_fewbits_did_not_write_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"a file")
    with pytest.raises(UsageError) as error:
        write_folder(out, NEW, overwrite=True)
    assert slug_of(error) == "output-foreign"
    out.unlink()
    out.mkdir()
    (out / "thesis.txt").write_bytes(b"years of work")
    with pytest.raises(UsageError) as error:
        write_folder(out, NEW, overwrite=True)
    assert slug_of(error) == "output-foreign"
    (out / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(UsageError) as error:
        write_folder(out, NEW, overwrite=True)
    assert slug_of(error) == "output-foreign"
    assert (out / "thesis.txt").exists()


def test_a_file_that_someone_put_into_an_output_is_not_removed(tmp_path):
    out = tmp_path / "out"
    write_folder(out, OLD)
    (out / "notes.txt").write_bytes(b"mine")
    with pytest.raises(UsageError) as error:
        write_folder(out, NEW, overwrite=True)
    assert slug_of(error) == "output-foreign"
    assert "notes.txt" in str(error.value)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW


@pytest.mark.parametrize("target", ["in", "in/out", ".", "in/model.onnx", "link", "link/sub"])
def test_output_that_is_contains_or_lies_inside_an_input_is_refused(tmp_path, target):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(b"")
    (tmp_path / "link").symlink_to("in")
    inputs = [tmp_path / "in" / "model.onnx", tmp_path / "in"]
    with pytest.raises(UsageError) as error:
        write_folder(tmp_path / target, NEW, overwrite=True, inputs=inputs)
    assert slug_of(error) == "output-is-input"
    write_folder(tmp_path / "inner", NEW, inputs=inputs)


def test_a_place_under_a_plain_file_is_unwritable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError) as error:
        write_folder(tmp_path / "file" / "out", NEW)
    assert slug_of(error) == "output-unwritable"
    with pytest.raises(ResourceError) as error:
        write_atomic(tmp_path / "file" / "out", b"")
    assert slug_of(error) == "output-unwritable"


def test_a_failed_write_by_other_code_through_path_is_worded_too(tmp_path):
    with pytest.raises(ResourceError) as error, OutputFolder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert slug_of(error) == "disk-full"
    with pytest.raises(ResourceError) as error, OutputFolder(tmp_path / "out") as out:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(out.path("model.onnx")))
    assert slug_of(error) == "output-unwritable"
    with pytest.raises(OSError, match="input") as other, OutputFolder(tmp_path / "out"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/some/input")
    assert not isinstance(other.value, FewbitsError)
    assert list(tmp_path.iterdir()) == []


def test_a_link_or_folder_among_the_outputs_is_refused(tmp_path):
    with pytest.raises(SecurityError), OutputFolder(tmp_path / "out") as out:  # noqa: PT012
        out.path("model.onnx").symlink_to("/etc/passwd")
        out.commit({})
    assert list(tmp_path.iterdir()) == []


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-step"])
@pytest.mark.parametrize(
    ("code", "slug"),
    [
        (errno.EIO, "output-unwritable"),
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EROFS, "output-unwritable"),
    ],
)
def test_every_failing_call_leaves_the_old_output_and_nothing_hidden(tmp_path, monkeypatch, code, slug, exchange):
    out = tmp_path / "out"
    write_folder(out, OLD)
    if not exchange:

        def unsupported(left: Path, right: Path) -> None:
            raise OSError(errno.EINVAL, "not here")

        monkeypatch.setattr(posix, "exchange", unsupported)
    failures = 0
    for n in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            FailNth(patch, n, code)
            error = refusal(write_folder, out, NEW, overwrite=True)
        if error is None:
            break
        assert (error.slug, error.exit_code) == (slug, Exit.RESOURCE)
        failures += 1
        assert content(out) == OLD
        assert verify_manifest(out) == []
        assert hidden(tmp_path) == []
    # 3 files: write, fsync, fsync once more when all are there; the manifest: write, fsync; fsync of the folder;
    # the swap (1 call, or the refused exchange and 2 renames); fsync of the folder that holds it.
    assert failures == 3 * 3 + 2 + 1 + (1 if exchange else 3) + 1
    assert content(out) == NEW
    assert hidden(tmp_path) == []


def test_every_failing_call_leaves_no_new_output_where_there_was_none(tmp_path):
    out = tmp_path / "out"
    for n in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            FailNth(patch, n, errno.EIO)
            error = refusal(write_folder, out, NEW)
        if error is None:
            break
        assert list(tmp_path.iterdir()) == []
    assert n - 1 == 3 * 3 + 2 + 1 + 1 + 1
    assert content(out) == NEW


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from fewbits._base.files import OutputFolder
    out, tag = Path(sys.argv[1]), sys.argv[2].encode()
    print("ready", flush=True)
    with OutputFolder(out, overwrite=True) as folder:
        for i in range(20):
            folder.write(f"{i}.bin", tag * 20_000)
        folder.commit({"tag": tag.decode()})
    print("done", flush=True)
    """
)


def run_child(out: Path, tag: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), tag], stdout=subprocess.PIPE)


def test_a_run_killed_at_any_moment_leaves_the_old_or_the_new_complete(tmp_path):
    """SIGKILL at 20 seeded moments spread over twice the time that an undisturbed run takes after its start-up."""
    out = tmp_path / "out"
    child = run_child(out, "a")
    assert child.stdout is not None
    child.stdout.readline()
    begin = time.perf_counter()
    child.communicate()
    duration = time.perf_counter() - begin
    rng = random.Random(20)
    outcomes = set()
    for moment in range(20):
        tag = "bcdefghijklmnopqrstuvwxyz"[moment]
        before = read_manifest(out)["tag"]
        child = run_child(out, tag)
        child.stdout.readline()
        time.sleep(rng.uniform(0, duration * 1.2))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert verify_manifest(out) == []
        after = read_manifest(out)["tag"]
        assert after in {before, tag}
        assert set(content(out).values()) == {after.encode() * 20_000}
        outcomes.add(after == tag)
    assert False in outcomes, "no kill came before the swap: the test has lost its bite"
    write_folder(out, NEW, overwrite=True)
    assert hidden(tmp_path) == []


KILL_AT_CALL = textwrap.dedent(
    """
    import os, signal, sys
    from fewbits._base import posix
    calls, limit = 0, int(sys.argv[3])
    def wrap(call):
        def wrapped(*args):
            global calls
            calls += 1
            if calls == limit and sys.argv[4] == "before": os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args)
            if calls == limit: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    for module, name in ((os, "write"), (os, "fsync"), (os, "rename"), (posix, "exchange"), (os, "unlink")):
        setattr(module, name, wrap(getattr(module, name)))
    from fewbits._base.files import OutputFolder
    with OutputFolder(sys.argv[1], overwrite=True) as folder:
        folder.write("model.onnx", sys.argv[2].encode())
        folder.commit({"tag": sys.argv[2]})
    """
)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_run_killed_at_each_call_leaves_the_old_or_the_new_complete(tmp_path, side):
    out = tmp_path / "out"
    with OutputFolder(out) as folder:
        folder.write("model.onnx", b"0")
        folder.commit({"tag": "0"})
    for n in range(1, 100):
        before = read_manifest(out)["tag"]
        command = [sys.executable, "-c", KILL_AT_CALL, str(out), str(n), str(n), side]
        code = subprocess.run(command, check=False).returncode
        assert verify_manifest(out) == []
        assert read_manifest(out)["tag"] in {before, str(n)}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert n > 8
    assert hidden(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_the_old_output(small_disk):
    out = small_disk / "out"
    write_folder(out, {"model.onnx": b"o" * 5_000})
    kept = content(out)
    for size in (100_000, 130_000, 220_000, 400_000):
        error = refusal(write_folder, out, {"model.onnx": b"n" * size}, overwrite=True)
        # 256 KiB hold 100 kB and 130 kB together, but not 130 kB and 220 kB.
        if size < 200_000:
            assert error is None
            kept = {"model.onnx": b"n" * size}
        else:
            assert (error.slug, error.exit_code) == ("disk-full", Exit.RESOURCE)
        assert content(out) == kept
        assert hidden(small_disk) == []
        assert verify_manifest(out) == []
    with pytest.raises(ResourceError) as error:
        write_atomic(small_disk / "plan.json", b"x" * 300_000)
    assert slug_of(error) == "disk-full"
    assert sorted(path.name for path in small_disk.iterdir()) == ["out"]


def test_a_read_only_place_is_unwritable(small_disk):
    write_folder(small_disk / "out", OLD)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ResourceError) as error:
        write_folder(small_disk / "out", NEW, overwrite=True)
    assert slug_of(error) == "output-unwritable"
    with pytest.raises(ResourceError) as error:
        write_atomic(small_disk / "plan.json", b"")
    assert slug_of(error) == "output-unwritable"
    assert content(small_disk / "out") == OLD


# --- manifests -----------------------------------------------------------------------------------------------------


def test_verify_names_what_is_missing_extra_and_changed(tmp_path):
    out = tmp_path / "out"
    write_folder(out, NEW)
    (out / "plan.json").write_bytes(b"[}")
    (out / "model.onnx").unlink()
    (out / "more.txt").write_bytes(b"")
    (out / "timings.json").unlink()
    (out / "timings.json").symlink_to("more.txt")
    found = {mismatch.name: mismatch.kind for mismatch in verify_manifest(out)}
    assert found == {"plan.json": "changed", "model.onnx": "missing", "more.txt": "extra", "timings.json": "changed"}


def test_one_flipped_bit_anywhere_is_seen(tmp_path):
    out = tmp_path / "out"
    write_folder(out, {"model.onnx": bytes(range(64)), "timings.json": b"{}"})
    for name in ("model.onnx", "timings.json", "manifest.json"):
        data = (out / name).read_bytes()
        for position in range(len(data)):
            flipped = bytearray(data)
            flipped[position] ^= 1 << (position % 8)
            (out / name).write_bytes(flipped)
            found: list[object] = []
            error = refusal(lambda found=found: found.extend(verify_manifest(out)))
            assert found or (name == "manifest.json" and error.slug in {"manifest-broken", "unsafe-name"})
        (out / name).write_bytes(data)
    assert verify_manifest(out) == []


def test_a_folder_without_a_manifest_is_incomplete(tmp_path):
    with pytest.raises(VerificationError) as error:
        verify_manifest(tmp_path)
    assert slug_of(error) == "manifest-missing"
    assert error.value.exit_code == Exit.VERIFICATION


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "NaN",
        "[" * 100_000,
        '{"format": "fewbits-output"}',
        '{"format": "fewbits-output", "files": [], "timing_files": {}}',
        '{"format": "fewbits-output", "files": {"a": 1}, "timing_files": {}}',
        '{"format": "fewbits-output", "files": {}, "timing_files": {}, "x": NaN}',
        "\ud800",
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    for read in (read_manifest, verify_manifest):
        with pytest.raises(VerificationError) as error:
            read(tmp_path)
        assert slug_of(error) == "manifest-broken"


def test_a_manifest_that_reaches_outside_is_a_security_refusal(tmp_path):
    entry = {"bytes": 0, "sha256": ""}
    text = json.dumps({"format": "fewbits-output", "files": {"../../etc/passwd": entry}, "timing_files": {}})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SecurityError):
        verify_manifest(tmp_path)


def test_the_manifest_holds_no_path_of_this_machine(tmp_path):
    write_folder(tmp_path / "out", NEW)
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_details_may_not_replace_what_the_manifest_says_itself(tmp_path):
    with pytest.raises(ValueError, match="reserved"), OutputFolder(tmp_path / "out") as out:
        out.commit({"files": {}})
    with pytest.raises(ValueError, match="not written"), OutputFolder(tmp_path / "out") as out:
        out.commit({}, timing_files=["timings.json"])
    assert list(tmp_path.iterdir()) == []
