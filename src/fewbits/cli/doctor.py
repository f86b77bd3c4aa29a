"""``fewbits doctor``: what this machine speeds up, measured, and which packages are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import click

from fewbits.cli._common import output_options, progress_line, say, say_json, table

if TYPE_CHECKING:
    from fewbits.measurement.kernels import KernelTime

# Seconds of timing; with building and opening the kernels, the verb takes two to three more.
_SECONDS = 2.0
# Distribution -> what it is needed for, in the order in which they are shown; other core packages follow.
_PACKAGES = {
    "numpy": "arrays",
    "scipy": "statistics",
    "onnx": "model files",
    "onnx-ir": "model files",
    "onnxruntime": "target ort-cpu",
    "openvino": "target openvino (fewbits[openvino])",
    "pillow": "image folders (fewbits[images])",
    "torch": "training, later (fewbits[torch])",
}
# Extras that a user of the product may want; the others are for those who work on it.
_EXTRAS = ("images", "openvino", "torch")
_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)\s*(?P<limits>[^;]*?)\s*(?:;.*extra\s*==\s*[\"'](?P<extra>\w+)[\"'].*)?$")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package: what is needed, and what is there.

    Args:
      name: Distribution.
      limits: Versions that are accepted, e.g. ``>=1.23``; empty for any.
      core: Whether nothing works without it.
      found: Version that is there; None where none is.
      use: What it is for.
    """

    name: str
    limits: str
    core: bool
    found: str | None
    use: str

    @property
    def fits(self) -> bool:
        """True where a version is there that is accepted; an extra that is not there fits too."""
        return not self.core if self.found is None else accepts(self.limits, self.found)

    @property
    def install(self) -> str:
        """The command that mends it."""
        return f'pip install "{self.name}{self.limits}"'

    @property
    def fault(self) -> str:
        """What is wrong, in words."""
        return "is missing" if self.found is None else f"is {self.found}, which fewbits cannot use"


def accepts(limits: str, version: str) -> bool:
    """Returns whether a version is within limits, by its release numbers.

    >>> accepts("<9,>=8.1,!=8.4.0", "8.5.1"), accepts(">=1.23", "1.22.4"), accepts(">=2.0", "2.0rc1")
    (True, False, True)
    """
    have = _release(version)
    for limit in filter(None, limits.replace(" ", "").split(",")):
        match = re.match(r"(>=|<=|==|!=|<|>|~=)(.+)", limit)
        if match is None:
            continue  # a form of limit that our own pyproject does not use
        wanted = _release(match[2])
        order = (have > wanted) - (have < wanted)
        holds = {">=": order >= 0, "<=": order <= 0, "==": order == 0, "!=": order != 0, "<": order < 0, ">": order > 0}
        if not holds.get(match[1], order >= 0):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, without zeros at its end: 2, 2.0 and 2.0+cpu are the same."""
    match = re.match(r"\d+(?:\.\d+)*", version.removeprefix("v"))
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def packages() -> tuple[Package, ...]:
    """Returns what fewbits needs and may use, with what is there; asks the metadata, and imports nothing."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        wanted = requires("fewbits") or []
    except PackageNotFoundError:  # run from its sources: what is there is shown, limits are not known
        wanted = list(_PACKAGES)
    found: dict[str, Package] = {}
    for text in wanted:
        match = _REQUIREMENT.match(text)
        if match is None or (match["extra"] and match["extra"] not in _EXTRAS):
            continue
        name = match["name"].replace("_", "-")
        use = _PACKAGES.get(name, f"fewbits[{match['extra']}]" if match["extra"] else "core")
        core = not match["extra"] and "fewbits[" not in use
        found[name] = Package(name=name, limits=match["limits"], core=core, found=_version(name), use=use)
    return tuple(
        found[name] for name in (*(n for n in _PACKAGES if n in found), *(n for n in found if n not in _PACKAGES))
    )


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


@click.command("doctor")
@click.option("--quick", is_flag=True, help="Time nothing.")
@click.option(
    "--seconds", type=float, metavar="N", help=f"Of timing. Default {_SECONDS:g}; more narrows the intervals."
)
@output_options
def command(quick: bool, seconds: float | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Time what this CPU speeds up, say what to choose on it, and check the packages."""
    from fewbits._base.cpu import cores, cpu_flags, cpu_name, instruction_set
    from fewbits._base.errors import UsageError
    from fewbits._version import VERSION

    if quick and seconds is not None:
        raise click.UsageError("--quick times nothing, --seconds says for how long; give one of them")
    if seconds is not None and not 0 < seconds <= 600:
        raise click.UsageError(f"--seconds {seconds:g} is not a time between 0 and 600")
    needed = packages()
    faults = [package for package in needed if not package.fits]
    broken = [package for package in faults if package.core]
    timed = None if quick or broken else _timed(seconds or _SECONDS, quiet)
    if as_json:
        say_json(
            {
                "schema_version": 1,
                "fewbits": VERSION,
                "cpu": cpu_name(),
                "cores": cores(),
                "flags": list(cpu_flags()),
                "target": f"ort-cpu:{instruction_set()}",
                "packages": {package.name: package.found for package in needed},
                "faults": [{"package": p.name, "fault": p.fault, "install": p.install} for p in faults],
                "measured": timed,
            }
        )
    else:
        say(f"fewbits {VERSION}")
        say(f"CPU     {cpu_name()}, {cores()} cores usable")
        say(f"has     {', '.join(cpu_flags()) or 'hidden by the system'}")
        if missing := _missing_flags():
            say(f"lacks   {', '.join(missing)}")
        say(f"target  ort-cpu:{instruction_set()}" + ("" if broken else f" - {_target_note()}"))
        say("")
        if timed is not None:
            say(_told(timed))
            say("")
        say(table([_row(p) for p in needed if p.name in _PACKAGES or not p.fits], head=("package", "version", "for")))
        for package in faults:
            say(f"{package.name} {package.fault}: {package.install}")
    if broken:
        raise UsageError(
            f"{broken[0].name} {broken[0].fault}; run: pip install "
            + " ".join(f'"{p.name}{p.limits}"' for p in broken),
            slug="package-missing",
        )
    return 0


def _row(package: Package) -> tuple[str, str, str]:
    return package.name, package.found or "not installed", package.use


def _target_note() -> str:
    from fewbits.targets import resolve_target

    return resolve_target("ort-cpu").variant.note


def _missing_flags() -> list[str]:
    """Returns the instruction sets for 8- and 16-bit products that this kind of CPU may have and this one has not."""
    from fewbits._base.cpu import cpu_flags, instruction_set

    of_arm = ("asimddp", "i8mm", "bf16")
    of_x64 = ("avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_fp16")
    if not cpu_flags():
        return []
    return [flag for flag in (of_arm if instruction_set() == "arm" else of_x64) if flag not in cpu_flags()]


def _timed(seconds: float, quiet: bool) -> dict[str, Any]:
    """Returns the timed kernels and the advice, as they stand in the JSON document."""
    from fewbits.measurement.advice import advise
    from fewbits.measurement.kernels import LAYERS, measure_kernels
    from fewbits.numerics.schemes import SCHEMES
    from fewbits.runtimes import RUNTIMES
    from fewbits.runtimes.base import Options
    from fewbits.targets import resolve_target

    runtime = RUNTIMES[resolve_target("ort-cpu").runtime]
    signed = resolve_target("ort-cpu").variant.activation.signed
    with progress_line(quiet) as progress:
        times = measure_kernels(runtime, seconds=seconds, signed=signed, progress=progress)
    return {
        "runtime": runtime.name,
        "session_options": runtime.describe(Options()),
        "seconds": seconds,
        "layers": {
            layer.key: {"op": layer.op, "data": layer.data, "weight": layer.weight, "chain": layer.depth}
            for layer in LAYERS
        },
        "kernels": [_kernel(time) for time in times],
        "advice": list(advise(times, schemes=SCHEMES)),
    }


def _kernel(time: KernelTime) -> dict[str, Any]:
    from fewbits.measurement.advice import FORM_WORDS
    from fewbits.measurement.kernels import LAYERS

    ratio = time.speedup
    return {
        "layer": time.layer,
        "kernel": next(layer.words for layer in LAYERS if layer.key == time.layer),
        "form": time.form.value,
        "words": FORM_WORDS[time.form],
        "runs_as": list(time.runs_as),
        "float_ms": time.float_ms,
        "ms": time.ms,
        "speedup": None if ratio is None else ratio.ratio,
        "speedup_low": None if ratio is None else ratio.low,
        "speedup_high": None if ratio is None else ratio.high,
        "confidence": None if ratio is None else ratio.confidence,
        "refused": time.refused or None,
    }


def _short(value: float, decimals: int = 2) -> str:
    """Returns a number with fewer decimals the larger it is, so that columns stay narrow.

    >>> _short(1.234), _short(12.34), _short(123.4), _short(12.34, 3)
    ('1.23', '12.3', '123', '12.34')
    """
    digits = len(str(int(value)))
    return f"{value:.{max(0, decimals + 1 - digits)}f}"


def _told(timed: dict[str, Any]) -> list[str]:
    """Returns the table and the advice."""
    import textwrap

    rows, refused = [], []
    for kernel in timed["kernels"]:
        if kernel["refused"]:
            refused.append(f"{kernel['kernel']}, {kernel['words']}: refused: {kernel['refused']}")
        elif kernel["speedup"] is not None:
            low, high = kernel["speedup_low"], kernel["speedup_high"]
            rows.append(
                (
                    kernel["kernel"],
                    kernel["words"],
                    _short(kernel["float_ms"], 3),
                    _short(kernel["ms"], 3),
                    f"{_short(kernel['speedup'])}x [{_short(low)}, {_short(high)}]",
                    " + ".join(kernel["runs_as"]),
                )
            )
    head = ("kernel", "as", "float ms", "ms", "speed-up [95%]", "runs as")
    lines = [f"measured here: {timed['runtime']}, 1 thread, batch 1", "", *table(rows, head=head), ""]
    for text in (
        *refused,
        "Pictures have 64 channels of 56x56, matrices 1024x1024. A time is that of one layer in a chain of equal ones.",
        '"rounded": the runtime rounds activations to 8 bits inside, which it does unless told otherwise.',
    ):
        lines += textwrap.wrap(text, 98)
    lines += ["", "what to choose on this machine:"]
    for text in timed["advice"]:
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    closing = "These are single layers: 'fewbits quantize' times whole models, and keeps float where nothing wins."
    return [*lines, *textwrap.wrap(closing, 98, initial_indent="  ", subsequent_indent="    ")]
