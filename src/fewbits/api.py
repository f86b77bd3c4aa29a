"""The public functions. Each is short: it turns arguments into a request and hands it down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fewbits._base.errors import DataError, Exit, UsageError, VerificationError
from fewbits._base.files import OutputFolder, read_manifest, verify_manifest
from fewbits._base.limits import MAX_PLAN_BYTES
from fewbits.planning.budget import parse_confidence, parse_max_drop
from fewbits.planning.plan import Plan, plan_from_json

if TYPE_CHECKING:
    from fewbits.evidence import PairedBound
    from fewbits.measurement.quality import Quality
    from fewbits.numerics.named import ArrayScheme
    from fewbits.numerics.qtensor import QTensor
    from fewbits.numerics.scheme import Scheme
    from fewbits.reporting.schema import Report
    from fewbits.search.costs import CostTable
    from fewbits.search.finished import Finished
    from fewbits.search.forecast import Forecast
    from fewbits.search.inspection import Inspection

Data = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[[], Any]
Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]

DEFAULT_MAX_DROP = "1%"
MODEL_FILE = "model.onnx"
# Files whose bytes depend on a clock, or copy something that does.
COSTS_FILE = "costs.json"
TIMING_FILES = ("timings.json", COSTS_FILE, "report.json", "report.html", "README.md")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What ``quantize`` gives back.

    Args:
      run: Everything that was measured.
      inputs: Paths that were read; an output folder may not contain them.
    """

    run: Finished
    inputs: tuple[str, ...]

    @cached_property
    def report(self) -> Report:
        """The report as a value; ``report.json`` is its text."""
        from fewbits.reporting.assembly import assemble

        return assemble(self.run)

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``undecided`` or ``no budget``."""
        return self.report.verdict

    @property
    def plan(self) -> Plan:
        """What was done at every site; save it, edit it, replay it."""
        return self.run.candidate.plan

    @property
    def model_bytes(self) -> bytes:
        """The handed-over ONNX file."""
        return self.run.data

    @property
    def exit_code(self) -> Exit:
        """What the command line returns for it."""
        return Exit.OK if self.verdict in ("met", "no budget") else Exit.NOT_MET

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Writes the output folder, complete or not at all, and returns its path.

        Raises: UsageError if the folder exists (without ``overwrite``), or is or holds an input; ResourceError if the
          disk is full or the place not writable. The old folder is then untouched.
        """
        with OutputFolder(folder, overwrite=overwrite, inputs=self.inputs) as out:
            self.write(out)
        return Path(folder)

    def write(self, out: OutputFolder) -> None:
        """Writes and commits into an output folder that is already held open, as the command line does for the job."""
        from fewbits.reporting.assembly import records, timings

        out.write(MODEL_FILE, self.model_bytes)
        self._write_data(out)
        out.write("plan.json", self.plan.to_json().encode())
        out.write("records.jsonl", "".join(f"{r.to_json()}\n" for r in records(self.run)).encode())
        if self.run.ran is not None:
            out.write("golden.npz", self.run.ran.golden)
        if self.run.repairs.costs is not None:
            out.write(COSTS_FILE, self.run.repairs.costs.to_json().encode())
        out.write("timings.json", timings(self.run).encode())
        for name, text in rendered(self.report).items():
            out.write(name, text.encode())
        out.commit(
            {"inputs": dict(self.plan.hashes), "versions": dict(self.plan.versions), "seed": self.plan.seed},
            timing_files=_timing_files(out),
        )

    def _write_data(self, out: OutputFolder) -> None:
        """Copies the large tensors into the folder, unless they were written there from the start."""
        source = self.run.data_file
        if source is None or source == (target := out.path(source.name)):
            return
        with source.open("rb") as read, target.open("xb") as write:
            shutil.copyfileobj(read, write)

    def __repr__(self) -> str:
        return f"<fewbits.Result: {self.report.headline}>"

    def __str__(self) -> str:
        from fewbits.reporting.terminal import summary_lines

        return "\n".join(summary_lines(self.report))

    def _repr_html_(self) -> str:
        """Returns the report for a notebook, in a frame of its own."""
        import html

        from fewbits.reporting.html import render_html

        page = html.escape(render_html(self.report), quote=True)
        return f'<iframe srcdoc="{page}" sandbox style="width:100%;height:640px;border:0"></iframe>'


def rendered(report: Report) -> dict[str, str]:
    """Returns report.json, report.html and the model card by file name."""
    from fewbits.reporting.html import render_html
    from fewbits.reporting.model_card import model_card
    from fewbits.reporting.schema import to_json

    return {"report.json": to_json(report), "report.html": render_html(report), "README.md": model_card(report)}


def _silent(stage: str, done: int, total: int) -> None:
    return None


def _unheard(warning: str) -> None:
    return None


def quantize(
    model: str | os.PathLike[str],
    *,
    data: Data | None = None,
    eval: Data | None = None,
    metric: str | None = None,
    max_drop: str | float | None = None,
    confidence: str | float = 0.95,
    target: str = "ort-cpu",
    scheme: str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    costs: str | os.PathLike[str] | None = None,
    effort: str = "balanced",
    time_budget: float | None = None,
    seed: int = 0,
    labels_key: str = "labels",
    score_output: str | None = None,
    allow_slower: bool = False,
    jobs: int = 1,
    max_memory: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress = _silent,
    notice: Notice = _unheard,
) -> Result:
    """Returns the smallest, fastest model that keeps the budget, with the evidence.

    Args:
      model: Path of a float ONNX file, opset 13 or newer.
      data: Calibration, selection and verdict data: a path (.npz, folder of images), a dict of arrays by input name
        (and ``labels``), an iterable of dicts, or a callable that returns one.
      eval: Verdict data of their own; ``data`` then only calibrates and selects.
      metric: ``top-1``, ``agreement`` or ``module:function``; by default top-1 with labels, else agreement.
      max_drop: Budget, ``"1%"`` or 0.01; 1 % by default, none with a forced scheme or plan.
      confidence: Of the one-sided bound that must lie inside the budget.
      target: Runtime and instruction set of the deployment, e.g. ``ort-cpu`` or ``ort-cpu:avx2``; ``auto`` times all
        that this machine has and takes the fastest.
      scheme: Forced scheme, e.g. ``w8a8``; no search.
      plan: A plan, or the path of one, to apply as it is.
      costs: Path of the costs.json of an earlier run here: the search takes the form of each layer from it.
      effort: ``fast``, ``balanced`` or ``best``.
      time_budget: Seconds after which the search ends with the best so far.
      seed: Of all randomness.
      labels_key: Name of the labels in an .npz.
      score_output: Name of the output that holds the answer, where it is not the first.
      allow_slower: Hand over a quantized file even if it is slower than float.
      jobs: Calibration shards in work at a time; the result is the same for any number.
      max_memory: Bytes that the run may take; what the machine has free where None.
      scratch: Folder for large tensors while the run goes; a temporary one where None.
      progress: Called with (stage, done, total).
      notice: Called with each warning that is known before work starts; all of them are in the report too.
    Raises: FewbitsError; see docs/messages.md for every slug.
    """
    from fewbits.search.job import run
    from fewbits.search.preparing import Request

    forced = scheme is not None or plan is not None
    asked = max_drop if max_drop is not None else (None if forced else DEFAULT_MAX_DROP)
    loaded = plan if plan is None or isinstance(plan, Plan) else load_plan(plan)
    request = Request(
        model=_model_path(model),
        data=data,
        evaluation=eval,
        metric=metric,
        max_drop=None if asked is None else parse_max_drop(asked),
        confidence=parse_confidence(confidence),
        target=target,
        scheme=scheme,
        plan=loaded,
        costs=None if costs is None else load_costs(costs),
        effort=effort,
        time_budget=time_budget,
        seed=seed,
        labels_key=labels_key,
        score_output=score_output,
        allow_slower=allow_slower,
        jobs=jobs,
        max_memory=max_memory,
        scratch=None if scratch is None else Path(scratch),
        progress=progress,
        notice=notice,
    )
    return Result(run=run(request), inputs=_paths(model, data, eval, plan))


def _model_path(model: object) -> str:
    """Returns the path that a model is given as; its file is what is opened and hashed.

    Raises: UsageError(slug="model-kind") for anything else, such as a model in memory.
    """
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        if isinstance(path, str):
            return path
    raise UsageError(
        f"a model is given as a path, not as a {type(model).__name__}; write it to a file first, e.g. "
        "onnx.save(model, 'model.onnx')",
        slug="model-kind",
    )


def _paths(*sources: object) -> tuple[str, ...]:
    return tuple(os.fspath(s) for s in sources if isinstance(s, str | os.PathLike))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Returns the plan in a file.

    Raises: UsageError(slug="plan-invalid") if it cannot be read as one, or is larger than any plan.
    """
    return plan_from_json(_text_of(path, "plan", slug="plan-invalid"), where=os.fspath(path))


def load_costs(path: str | os.PathLike[str]) -> CostTable:
    """Returns the cost table in a file.

    Raises: UsageError(slug="costs-invalid") if it cannot be read as one, or is larger than any.
    """
    from fewbits.search.costs import costs_from_json

    return costs_from_json(_text_of(path, "cost table", slug="costs-invalid"), where=os.fspath(path))


def _text_of(path: str | os.PathLike[str], kind: str, *, slug: str) -> str:
    place = Path(path)
    try:
        if place.exists() and not place.is_file():  # a pipe or a device would be read for ever
            raise UsageError(f"cannot read {kind} {os.fspath(path)}: it is not a plain file", slug=slug)
        if (size := place.stat().st_size) > MAX_PLAN_BYTES:
            raise UsageError(
                f"cannot read {kind} {os.fspath(path)}: it has {size} bytes, a {kind} has at most {MAX_PLAN_BYTES}",
                slug=slug,
            )
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {kind} {os.fspath(path)}: {error}", slug=slug) from error


def inspect(
    model: str | os.PathLike[str],
    *,
    target: str = "ort-cpu",
    scheme: str | None = None,
    max_memory: int | None = None,
) -> Inspection:
    """Returns what is in a model: sites, sizes, and what the target could do with each node.

    Args:
      model: Path of an ONNX file.
      target: Runtime and instruction set of the deployment.
      scheme: What ``quantize`` would be asked for, e.g. ``w4a16-g32``; static int8 where None.
      max_memory: Bytes that one run of the model may take; by its size where None.
    """
    from fewbits.search.inspection import inspect_model

    return inspect_model(_model_path(model), target=target, scheme=scheme, max_memory=max_memory)


def plan(
    model: str | os.PathLike[str],
    *,
    data: Data | None = None,
    eval: Data | None = None,
    metric: str | None = None,
    max_drop: str | float = DEFAULT_MAX_DROP,
    confidence: str | float = 0.95,
    target: str = "ort-cpu",
    scheme: str | None = None,
    effort: str = "balanced",
    time_budget: float | None = None,
    seed: int = 0,
    labels_key: str = "labels",
    score_output: str | None = None,
    max_memory: int | None = None,
) -> Forecast:
    """Returns a forecast: where a run would start, memory, disk, time, and how many examples the budget needs.

    Args: as for ``quantize``; without data, what needs them is None.
    """
    from fewbits.search.forecast import make_forecast
    from fewbits.search.preparing import Request

    return make_forecast(
        Request(
            model=_model_path(model),
            data=data,
            evaluation=eval,
            metric=metric,
            max_drop=parse_max_drop(max_drop),
            confidence=parse_confidence(confidence),
            target=target,
            scheme=scheme,
            effort=effort,
            time_budget=time_budget,
            seed=seed,
            labels_key=labels_key,
            score_output=score_output,
            max_memory=max_memory,
        )
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired comparison of two models.

    Args:
      metric: Name of the metric.
      unit: ``points`` or ``relative``.
      float_figure: Figure of the first model.
      figure: Figure of the second.
      bound: The loss with its bounds.
      quality: Closeness of the outputs.
      verdict: ``met``, ``not met``, ``undecided``, or ``no budget``.
      budget: The budget as a fraction; None where none was asked.
      examples_needed: Where undecided.
    """

    metric: str
    unit: str
    float_figure: float
    figure: float
    bound: PairedBound
    quality: Quality
    verdict: str
    budget: float | None
    examples_needed: int | None


def measure(
    float_model: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    *,
    data: Data,
    metric: str | None = None,
    max_drop: str | float | None = None,
    confidence: str | float = 0.95,
    labels_key: str = "labels",
    score_output: str | None = None,
    target: str | None = None,
    progress: Progress = _silent,
) -> Comparison:
    """Returns the paired comparison of any two models with the same inputs; all examples are verdict data.

    Args: as for ``quantize``; ``quantized`` is any ONNX file, or an output folder. It runs in the runtime of the
      target; where none is given in that of the folder's plan, or ONNX Runtime.
    """
    from fewbits.search.comparison import compare_models
    from fewbits.search.sessions import session_options
    from fewbits.targets import resolve_target

    second = Path(_model_path(quantized))
    if target is None:
        target = load_plan(second / "plan.json").target if (second / "plan.json").is_file() else "ort-cpu"
    outcome, bound, chosen, verdict = compare_models(
        _model_path(float_model),
        second / MODEL_FILE if second.is_dir() else second,
        data=data,
        metric=metric,
        max_drop=None if max_drop is None else parse_max_drop(max_drop),
        confidence=parse_confidence(confidence),
        labels_key=labels_key,
        score_output=score_output,
        progress=progress,
        options=session_options(resolve_target(target)),
    )
    return Comparison(
        metric=chosen.name,
        unit="points" if chosen.bounds == (0.0, 1.0) else "relative",
        float_figure=float(outcome.float_scores.mean()),
        figure=float(outcome.scores.mean()),
        bound=bound,
        quality=outcome.quality,
        verdict="no budget" if verdict is None else verdict.status,
        budget=None if verdict is None else verdict.budget,
        examples_needed=None if verdict is None else verdict.examples_needed,
    )


def _timing_files(out: OutputFolder) -> tuple[str, ...]:
    """Returns the names of what a folder holds that depends on the clock: only a search has a cost table."""
    return tuple(name for name in TIMING_FILES if out.path(name).exists())


def report(folder: str | os.PathLike[str]) -> Path:
    """Rebuilds report.html and the model card of an output folder from its report.json; opens no model.

    Returns: the path of report.html.
    Raises: VerificationError if the folder is not as it was written; nothing is rebuilt from a changed report.
    """
    from fewbits.reporting.schema import from_json

    place = Path(folder)
    _refuse_mismatches(place, ignore=("report.html", "README.md"))
    manifest = read_manifest(place)
    loaded = from_json((place / "report.json").read_bytes())
    pages = rendered(loaded)
    with OutputFolder(place, overwrite=True) as out:
        for name in (*manifest["files"], *manifest["timing_files"]):
            if name not in pages:
                shutil.copyfile(place / name, out.path(name))
        for name, text in pages.items():
            out.write(name, text.encode())
        out.commit(
            {key: manifest[key] for key in ("inputs", "versions", "seed") if key in manifest},
            timing_files=_timing_files(out),
        )
    return place / "report.html"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What ``verify`` found to hold.

    Args:
      files: How many files have the hash that was recorded.
      golden_equal: Whether the golden outputs came out equal to the bit; None where the run kept none.
      same_place: Whether runtime and instruction sets are those of the recording.
      figure: The metric measured again; None where no data were given.
    """

    files: int
    golden_equal: bool | None
    same_place: bool
    figure: float | None


def verify(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    data: Data | None = None,
    labels_key: str = "labels",
    score_output: str | None = None,
    progress: Progress = _silent,
) -> Verification:
    """Returns what holds of an output folder: every hash, the golden outputs, and with model and data the figure.

    Args:
      folder: The output folder.
      model: The float model of the run; needs ``data``.
      data: What the run had as ``eval``, or as ``data`` where it had none.
      labels_key: As in the run.
      score_output: As in the run.
      progress: Called with (stage, done, total).
    Raises: VerificationError naming the first thing that does not hold.
    """
    from fewbits.measurement.golden import replay_golden

    place = Path(folder)
    _refuse_mismatches(place)
    manifest = read_manifest(place)
    kept = "golden.npz" in manifest["files"]
    replay = replay_golden(place / MODEL_FILE, (place / "golden.npz").read_bytes()) if kept else None
    figure = None
    if (model is None) != (data is None):
        raise UsageError("--model and --data go together: give both to measure again, or neither", slug="options")
    if model is not None and data is not None:
        figure = _measure_again(
            place, os.fspath(model), data=data, labels_key=labels_key, score_output=score_output, progress=progress
        )
    files = len(manifest["files"]) + len(manifest["timing_files"])
    return Verification(
        files=files,
        golden_equal=None if replay is None else replay.equal,
        same_place=replay is None or replay.same_place,
        figure=figure,
    )


def _refuse_mismatches(place: Path, *, ignore: tuple[str, ...] = ()) -> None:
    mismatches = [m for m in verify_manifest(place) if m.name not in ignore]
    if mismatches:
        more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
        raise VerificationError(f"{place}: {mismatches[0]}{more}; restore or quantize again", slug="manifest-mismatch")


def _measure_again(
    place: Path, model: str, *, data: Data, labels_key: str, score_output: str | None, progress: Progress
) -> float:
    from fewbits.reporting.schema import from_json
    from fewbits.search.comparison import verdict_figure

    loaded = from_json((place / "report.json").read_bytes())
    figure = verdict_figure(
        model,
        place / MODEL_FILE,
        data=data,
        plan=load_plan(place / "plan.json"),
        metric=loaded.metric.name,
        labels_key=labels_key,
        score_output=score_output,
        progress=progress,
    )
    if loaded.metric.quantized is None or abs(figure - loaded.metric.quantized) > 1e-12:
        raise VerificationError(
            f"{place}: {loaded.metric.name} measured again is {figure:.6g}, the report says "
            f"{loaded.metric.quantized}; another runtime or CPU, other labels, or a metric that is not the run's",
            slug="figure-differs",
        )
    return figure


def quantize_array(
    values: Any, scheme: str | Scheme | ArrayScheme, *, axis: int = -1, seed: int | None = None
) -> QTensor:
    """Returns an array quantized by itself, by the scales that its scheme chooses.

    Args:
      values: Floating-point array, NumPy or any library that speaks the array API; the result is of the same.
      scheme: A name: ``int8`` (one scale), ``int4-g128`` (a scale for each run of 128 elements along ``axis``),
        ``int8-channel`` (one for each index of the first axis that is not ``axis``), ``nvfp4``, ``mxfp4``, ``q4_k``,
        ``w8a8`` (its weights); ``fewbits formats`` lists them. Or a Scheme of your own.
      axis: Reduction axis, along which groups lie.
      seed: If given, codes are rounded at random, up or down by the distance (stochastic rounding).
    Raises: UsageError for an unknown scheme; NumericsError for NaN, infinity, an axis or a block that does not fit.
    """
    from fewbits.numerics.quantizing import quantize_array as work

    return work(values, scheme, axis=axis, seed=seed)


__all__ = [
    "Comparison",
    "DataError",
    "Result",
    "Verification",
    "inspect",
    "load_plan",
    "measure",
    "plan",
    "quantize",
    "quantize_array",
    "report",
    "verify",
]
