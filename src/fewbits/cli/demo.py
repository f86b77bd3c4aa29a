"""``fewbits demo``: the whole story on an embedded real model, offline."""

from __future__ import annotations

import click

from fewbits.cli._common import human_bytes, human_count, note, output_options, progress_line, say

_BUDGET = "2%"


@click.command("demo")
@click.option("-o", "--output", default="fewbits-demo", show_default=True, metavar="OUT", help="Output folder.")
@output_options
def command(output: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Run the main job on a small CNN for handwritten digits, with a budget of 2 points; offline, under a minute."""
    from importlib.resources import as_file, files
    from pathlib import Path

    from fewbits._base.files import OutputFolder
    from fewbits.api import inspect, quantize
    from fewbits.cli.quantize import show

    folder = Path(output)
    place = files("fewbits") / "demo"
    with as_file(place / "digits.onnx") as model, as_file(place / "digits.npz") as data:
        if not as_json:
            found = inspect(model)
            say("A small CNN that reads handwritten digits: BatchNorm, depthwise, residual, ReLU6;")
            say(
                f"{human_count(found.parameters)} parameters, {human_count(found.macs)} multiply-accumulates, "
                f"{human_bytes(found.file_bytes)}. We may lose {_BUDGET.rstrip('%')} points of accuracy."
            )
            say("With the two files in the package's folder fewbits/demo, this is the same as:")
            say(f"  fewbits quantize digits.onnx --data digits.npz --max-drop {_BUDGET} -o {output}")
            say("")
        with OutputFolder(folder, overwrite=True) as out, progress_line(quiet) as progress:
            result = quantize(model, data=data, max_drop=_BUDGET, progress=progress)
            result.write(out)
    show(result, folder, as_json=as_json)
    if not as_json and not quiet:
        note(f"open {folder / 'report.html'} in a browser; load {folder / 'model.onnx'} in onnxruntime")
    return int(result.exit_code)
