"""``fewbits measure``: paired comparison of any two models."""

from __future__ import annotations

from dataclasses import asdict

import click

from fewbits.cli._common import MODEL, output_options, progress_line, say, say_json


@click.command("measure")
@click.argument("float_model", metavar="FLOAT", type=MODEL)
@click.argument("quantized", metavar="QUANTIZED", type=MODEL)
@click.option("--data", metavar="DATA", required=True, help="Examples; all of them are verdict data.")
@click.option("--metric", metavar="NAME|module:function", help="Default: top-1, or agreement without labels.")
@click.option("--max-drop", metavar="1%", help="Budget; none by default.")
@click.option("--confidence", metavar="95%", default="95%", show_default=True, help="Of the one-sided bound.")
@click.option(
    "--labels-key", metavar="NAME", default="labels", show_default=True, help="Name of the labels in an .npz."
)
@click.option("--score-output", metavar="NAME", help="Output that holds the answer, if not the first.")
@click.option("--target", metavar="NAME[:ISA]", help="Where QUANTIZED runs; that of its plan, or ort-cpu.")
@output_options
def command(
    float_model: str,
    quantized: str,
    data: str,
    metric: str | None,
    max_drop: str | None,
    confidence: str,
    labels_key: str,
    score_output: str | None,
    target: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Compare QUANTIZED (an ONNX file, or an output folder) with FLOAT, example by example."""
    from fewbits._base.errors import Exit
    from fewbits.api import measure

    with progress_line(quiet) as progress:
        found = measure(
            float_model,
            quantized,
            data=data,
            metric=metric,
            max_drop=max_drop,
            confidence=confidence,
            labels_key=labels_key,
            score_output=score_output,
            target=target,
            progress=progress,
        )
    code = Exit.OK if found.verdict in ("met", "no budget") else Exit.NOT_MET
    bound, quality = found.bound, found.quality
    if as_json:
        document = {"schema_version": 1, **asdict(found)}
        if quality.sqnr_db == float("inf"):
            document["quality"]["sqnr_db"] = None
        say_json(document)
        return int(code)
    unit = " points" if found.unit == "points" else "%"
    budget = "" if found.budget is None else f" (budget {100 * found.budget:g}{unit})"
    say(f"verdict    {found.verdict}{budget}")
    say(f"{found.metric:10} {found.float_figure:.4f} -> {found.figure:.4f} on {bound.n} examples")
    sure = f"{100 * bound.confidence:g}%"
    exact = "exact" if bound.exact else "asymptotic"
    most = f"at most {100 * bound.bound:.2f}{unit} with {sure} confidence ({exact})"
    say(f"loss       {100 * bound.drop:.2f}{unit}, {most}")
    say(f"flips      {bound.harmful} became worse, {bound.helpful} better")
    kl = "" if quality.kl is None else f", KL {quality.kl:.2g} nats"
    same = quality.sqnr_db == float("inf")
    say(f"closeness  {'outputs equal to the bit' if same else f'SQNR {quality.sqnr_db:.1f} dB{kl}'}")
    if found.examples_needed is not None:
        say(f"needed     about {found.examples_needed} examples would decide")
    return int(code)
