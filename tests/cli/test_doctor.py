"""``fewbits doctor``: measured figures, advice from them, and packages that are missing or too old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewbits.cli import doctor
from fewbits.cli.doctor import accepts, packages


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends other versions than those that are there: ``versions(torch=None, onnx="1.2")``."""
    real = doctor._version

    def pretend(**other: str | None) -> None:
        monkeypatch.setattr(doctor, "_version", lambda name: other[name] if name in other else real(name))

    return pretend


@pytest.fixture(scope="module")
def measured(runs: Any) -> Any:
    return runs.shell("doctor", "--seconds", "0.2", "--json")


def test_the_measurement_stands_in_the_document_with_its_conditions(measured: Any) -> None:
    assert (measured.code, measured.err) == (0, "")
    found = measured.json["measured"]
    assert found["runtime"].startswith("onnxruntime ")
    assert found["session_options"]["intra_op_threads"] == "1"
    assert found["session_options"]["spinning"] == "off"
    assert {kernel["layer"] for kernel in found["kernels"]} == set(found["layers"])
    timed = [kernel for kernel in found["kernels"] if kernel["speedup"] is not None]
    assert len(timed) == len(found["kernels"]) - len(found["layers"]), "all but float itself have a ratio here"
    for kernel in timed:
        assert kernel["speedup_low"] <= kernel["speedup"] <= kernel["speedup_high"]
        assert kernel["runs_as"]


def test_the_advice_is_that_of_the_figures(measured: Any) -> None:
    found = measured.json["measured"]
    if "too wide" in found["advice"][0]:  # a crowded machine: nothing is advised
        assert len(found["advice"]) == 1
        return
    static = next(k for k in found["kernels"] if (k["layer"], k["form"]) == ("conv", "static-8"))
    (line,) = [line for line in found["advice"] if line.startswith("Convolutions: ")]
    assert f"static int8 ({static['speedup']:.2f}x" in line


def test_quick_times_nothing_and_says_what_is_there(cli: Callable[..., Any]) -> None:
    done = cli("doctor", "--quick")
    assert (done.code, done.err) == (0, "")
    assert "onnxruntime" in done.out
    assert "speed-up" not in done.out
    assert cli("doctor", "--quick", "--json").json["measured"] is None


@pytest.mark.parametrize(
    "args", [("--quick", "--seconds", "1"), ("--seconds", "0"), ("--seconds", "-1"), ("--seconds", "nan")]
)
def test_times_that_cannot_be_meant_are_refused(cli: Callable[..., Any], args: tuple[str, ...]) -> None:
    cli("doctor", *args).refused(2, "--seconds")


@pytest.mark.parametrize(("found", "fault"), [(None, "is missing"), ("1.19.2", "is 1.19.2, which fewbits cannot use")])
def test_a_core_package_that_does_not_do_ends_with_2_and_the_command(
    cli: Callable[..., Any], versions: Callable[..., None], found: str | None, fault: str
) -> None:
    versions(onnxruntime=found)
    done = cli("doctor")
    assert done.code == 2
    assert done.err == f'fewbits: onnxruntime {fault}; run: pip install "onnxruntime>=1.23" [package-missing]\n'
    assert f'onnxruntime {fault}: pip install "onnxruntime>=1.23"' in done.out
    assert "speed-up" not in done.out, "nothing is timed without it"


def test_all_that_is_missing_stands_in_one_command(cli: Callable[..., Any], versions: Callable[..., None]) -> None:
    versions(onnx=None, scipy="1.0")
    done = cli("doctor", "--json")
    assert done.code == 2
    assert [fault["package"] for fault in done.json["faults"]] == ["scipy", "onnx"]
    assert 'pip install "scipy>=1.13" "onnx>=1.21"' in done.err


def test_a_doctor_without_the_core_packages_imports_none_of_them(runs: Any) -> None:
    import os
    import subprocess
    import sys

    code = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "onnx", "onnx_ir", "onnxruntime", "scipy"):
            raise ImportError(name)
sys.meta_path.insert(0, Gone())
from fewbits.cli import doctor, main
doctor._version = lambda name: None if name in ("numpy", "onnx", "onnx-ir", "onnxruntime", "scipy") else "99"
sys.argv = ["fewbits", "doctor"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **runs.PLAIN}
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "numpy is missing" in done.stderr
    assert "not installed" in done.stdout


@pytest.mark.parametrize(("found", "told"), [(None, False), ("1.0", True)])
def test_an_extra_is_no_fault_but_an_old_one_is_told(
    cli: Callable[..., Any], versions: Callable[..., None], found: str | None, told: bool
) -> None:
    versions(torch=found)
    done = cli("doctor", "--quick")
    assert (done.code, done.err) == (0, "")
    assert ("pip install" in done.out) == told


def test_what_is_needed_is_what_the_project_declares() -> None:
    by_name = {package.name: package for package in packages()}
    assert by_name["onnxruntime"].core and by_name["onnxruntime"].limits == ">=1.23"
    assert not by_name["pillow"].core
    assert "pytest" not in by_name
    assert all(package.fits for package in by_name.values()), "tests run where all is there"


@pytest.mark.parametrize(
    ("limits", "version", "fits"),
    [
        ("", "0.1", True),
        (">=2.0", "2.0", True),
        (">=2.0", "2", True),
        (">=2.0", "1.26.4", False),
        (">=1.9", "1.10", True),
        (">=8.1,!=8.4.0,!=8.4.1,<9", "8.4.1", False),
        (">=8.1,!=8.4.0,!=8.4.1,<9", "8.4.2", True),
        (">=8.1,!=8.4.0,!=8.4.1,<9", "9.0", False),
        (">=2.10", "2.13.0+cpu", True),
        ("~=1.4", "1.3", False),
        ("==1.4", "1.4.0", True),
        ("<3", "3.0rc1", False),
    ],
)
def test_versions_are_compared_by_their_numbers(limits: str, version: str, fits: bool) -> None:
    assert accepts(limits, version) is fits
