"""``fewbits doctor``: what this machine is, and what is installed."""

from __future__ import annotations

import click

from fewbits.cli._common import output_options, say, say_json, table

# Distribution -> what it is needed for.
_PACKAGES = {
    "numpy": "arrays",
    "scipy": "statistics",
    "onnx": "model files",
    "onnx-ir": "model files",
    "onnxruntime": "target ort-cpu",
    "pillow": "image folders (fewbits[images])",
    "torch": "training, later (fewbits[torch])",
}


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show what this CPU can do with 8-bit numbers, and which packages are there."""
    from importlib.metadata import PackageNotFoundError, version

    from fewbits._base.cpu import cores, cpu_flags, cpu_name, instruction_set
    from fewbits._version import VERSION
    from fewbits.targets import resolve_target

    installed: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    isa = instruction_set()
    advice = resolve_target("ort-cpu").variant.note
    if as_json:
        say_json(
            {
                "schema_version": 1,
                "fewbits": VERSION,
                "cpu": cpu_name(),
                "cores": cores(),
                "flags": list(cpu_flags()),
                "target": f"ort-cpu:{isa}",
                "packages": installed,
            }
        )
        return 0
    say(f"fewbits {VERSION}")
    say(f"CPU     {cpu_name()}, {cores()} cores usable")
    say(f"flags   {', '.join(cpu_flags()) or 'hidden by the system'}")
    say(f"target  ort-cpu:{isa} - {advice}")
    if isa == "avx2":
        say("        int8 gains less here, and the weights get 7 bits where products could saturate")
    say("")
    rows = [(p, installed[p] or "not installed", use) for p, use in _PACKAGES.items()]
    say(table(rows, head=("package", "version", "for")))
    return 0
