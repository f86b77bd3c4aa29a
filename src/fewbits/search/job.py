"""One run from model and data to a measured candidate: what ``fewbits quantize`` does, step by step."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from fewbits._base.errors import UsageError
from fewbits._base.memory import available_bytes
from fewbits._version import VERSION
from fewbits.calibration.statistics import Statistics
from fewbits.evidence import smallest_certifiable_budget
from fewbits.evidence.verdict import decide
from fewbits.flow import observe
from fewbits.measurement.benchmark import ModelFiles, Performance, measure_performance
from fewbits.measurement.executed import read_executed
from fewbits.measurement.golden import make_golden
from fewbits.measurement.outcome import Reference
from fewbits.models.onnx.feeding import model_batches, rows_fed
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.probing import probe_feeds
from fewbits.models.onnx.protobuf import quantizes_batches
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.auto import AUTO, Offer, retargeted, rungs, taken, time_offers
from fewbits.search.building import Candidate, activation_sites, build, running_dynamic
from fewbits.search.calibrated import unchanging_sites, untaken_branches
from fewbits.search.draft import draft_dynamic, draft_plan, draft_stored
from fewbits.search.finished import DATA_FILE, MODEL_FILE, Finished, Judged, Ran, Scratch
from fewbits.search.halving import Halves, as_fast, draft_halves, judges_alike, saves, told_of
from fewbits.search.handing_over import choose_file
from fewbits.search.layerwise import STEP
from fewbits.search.loop import BudgetLoop, Task, Trial
from fewbits.search.memory import refuse_too_little
from fewbits.search.paying import hopeless, is_refuted, loses_speed, pays
from fewbits.search.preparing import Prepared, Request, prepare, wanted_scheme
from fewbits.search.repairing import NO_REPAIRS, PAIRED, Repaired, Repairs, repair
from fewbits.search.rows import rows_differ
from fewbits.search.sessions import session_options, told_of_sessions
from fewbits.search.stages import Stages
from fewbits.search.teaching import Teacher
from fewbits.search.transforming import TRANSFORMED, after_transforms, before_transforms, replayed
from fewbits.search.verdict_data import forecast, loss_bound
from fewbits.targets import Forms, Placement, may_be_paired, place_forms

# A session of a model holds its weights once as read and once packed for the kernels; a fifth for activations.
_SESSION_COPIES = 2.2
_NO_DATA = "no data were given to judge on"


def run(request: Request) -> Finished:
    """Returns the measured result of a request."""
    if request.target == AUTO and request.plan is None:
        return _run_fastest(request)
    plan = request.plan
    prepared = prepare(request if plan is None else replace(request, plan=before_transforms(plan)))
    for warning in prepared.warnings:
        request.notice(warning)
    return finish(prepared)


def _run_fastest(request: Request) -> Finished:
    """Returns the measured result for the target that runs the model fastest here; the others are searched and timed.

    Which target is taken goes by speed alone, and is settled before the verdict examples are read.
    """
    targets, notes = rungs(request)
    share = None if request.time_budget is None else request.time_budget / len(targets)
    first = prepare(replace(request, target=targets[0].full_name, time_budget=share))
    for warning in (*first.warnings, *notes):
        request.notice(warning)
    if len(targets) == 1:
        found = finish(first)
        return replace(found, warnings=(*found.warnings, *notes))
    # The large tensors of several candidates cannot be in the one folder that the request names.
    first = replace(first, request=replace(first.request, scratch=None))
    scratches = [Scratch() for _ in targets]
    jobs = [_Job(retargeted(first, t), scratch) for t, scratch in zip(targets, scratches, strict=True)]
    holding: Path | None = None
    try:
        offers = _offers(jobs)
        kept = next((i for i, offer in enumerate(offers) if offer.kept), 0)
        found = jobs[kept].run()
        holding = None if found.data_file is None else found.data_file.parent
    finally:
        for scratch in scratches:
            if scratch.folder != holding:
                scratch.close()
    return replace(found, offers=offers, warnings=(*found.warnings, *taken(offers), *notes))


def finish(prepared: Prepared) -> Finished:
    """Returns the measured result of what ``prepare`` opened."""
    scratch = Scratch()
    try:
        found = _Job(prepared, scratch).run()
    except BaseException:
        scratch.close()
        raise
    if found.data_file is None or found.data_file.parent != scratch.folder:
        scratch.close()
    return found


@final
class _Job:
    """The working state of one run."""

    def __init__(self, prepared: Prepared, scratch: Scratch) -> None:
        # The model as it was opened, and as repairs left it; both before factors are folded in.
        self._opened = self._mended = prepared.model
        self._request = prepared.request
        self._scratch = scratch
        self._clock = Stages()
        self._options = session_options(prepared.target, threads=prepared.request.threads)
        self._teacher = Teacher(prepared, self._options)
        self._notes: list[str] = []
        self._planned: tuple[Plan, tuple[Trial, ...], Repairs] | None = None

    def run(self) -> Finished:
        """Returns the finished run."""
        request = self._request
        plan, trail, repairs = self._plan()
        data_file = self._data_file()
        candidate = self._finalize(plan, data_file)
        float_reason = self._no_integers(candidate)
        unmeasured = "" if self._prepared.parts is not None else _NO_DATA
        ran, judged, halves = None, None, None
        data = candidate.data
        too_large = self.too_large()
        if too_large is not None:
            unmeasured = too_large
            self._notes.append(f"loss and speed were not measured: {too_large} [not-measured]")
        else:
            files = self._write(candidate, data_file)
            feeds = self._one_example()
            timed = performance = self._performance(files, feeds)
            choice = choose_file(
                performance,
                files,
                float_reason=self._by_rows(files[1]) if float_reason is None else float_reason,
                choosing=request.plan is None and not request.allow_slower,
            )
            float_reason, mended = choice.float_reason, choice.mended
            self._notes += choice.notes
            handed = files[1 if float_reason is None else 2 if mended else 0]
            if float_reason is not None:
                halves = self._halved(files, feeds, data_file, performance, mended=mended)
            if halves is not None:
                handed, performance, candidate = halves.file, halves.performance, halves.candidate
                self._teacher.use(halves.model, self._statistics)
                self._notes.append(told_of(float_reason or ""))
            elif float_reason is not None:
                performance = performance.of_mended(files[2].size) if mended else performance.of_float()
                candidate = replace(candidate, plan=_all_float(candidate.plan, float_reason))
            judged = self._judge(handed) if halves is None else halves.judged
            if float_reason is None or halves is not None:
                self._notes += self._sessions(handed)
            ran = self._ran(handed, files[0], feeds, candidate, performance, float_reason)
            if halves is not None:
                ran = replace(ran, integers=timed)
            data = handed.model.read_bytes()
        if float_reason is not None and halves is None and data_file is not None:
            data = self._float_file(data_file)
        elif float_reason is not None and ran is None:
            data = self._prepared.model.original
        return Finished(
            prepared=self._prepared,
            candidate=candidate,
            data=data,
            data_file=data_file,
            float_reason=float_reason,
            halved=halves is not None,
            trail=trail,
            repairs=repairs,
            ran=ran,
            judged=judged,
            unmeasured=unmeasured,
            graph=self._prepared.model.view,
            seconds=self._clock.seconds,
            warnings=(*self._prepared.warnings, *self._notes),
            scratch=self._scratch,
        )

    @property
    def _prepared(self) -> Prepared:
        return self._teacher.prepared

    @property
    def _statistics(self) -> Statistics:
        return self._teacher.statistics

    @property
    def target(self) -> str:
        """The target's name with its instruction set."""
        return self._prepared.target.full_name

    @property
    def request(self) -> Request:
        """What is asked for."""
        return self._request

    def offer(self) -> tuple[ModelFiles, ModelFiles, Options]:
        """Returns the float and the best quantized file, and how both are opened; no verdict example is read."""
        plan, _, _ = self._plan()
        data_file = self._data_file()
        files = self._write(self._finalize(plan, data_file), data_file)
        return files[0], files[1], self._options

    def feeds(self) -> tuple[dict[str, np.ndarray], int]:
        """Returns one example as the model is fed with it, and how many rows that is."""
        feeds = self._one_example()
        return feeds, rows_fed(self._prepared.model, feeds)

    def _plan(self) -> tuple[Plan, tuple[Trial, ...], Repairs]:
        """Returns what ``_found`` finds, found once."""
        if self._planned is None:
            self._planned = self._found()
        return self._planned

    def _found(self) -> tuple[Plan, tuple[Trial, ...], Repairs]:
        """Returns the plan that was asked for, or found; the model may have been repaired on the way."""
        prepared, request = self._prepared, self._request
        if request.plan is not None:
            asked = after_transforms(request.plan)
            evidence = self._teacher.evidence()
            if evidence is not None:
                self._teacher.use(replayed(prepared.model, asked.transforms, evidence), self._statistics)
            elif any(step.name in TRANSFORMED for step in asked.transforms):
                raise UsageError(
                    "the plan has factors between channels, which are computed again from its calibration examples; "
                    "give the --data DATA that it was made with, and --eval where that was given",
                    slug="data-missing",
                )
            prepared = self._prepared
            wanted = _renewed(prepared, asked)
            refuse_too_little(prepared.model, wanted.quantized, request.max_memory)
            self._observe(wanted)
            return wanted, (), NO_REPAIRS
        if request.weights_only:
            scheme = wanted_scheme(request, prepared.target)
            wanted = draft_stored(prepared.model, prepared.target, scheme, asked=request.scheme, base=prepared.base)
            blockwise = self._teacher.blockwise()
            beside = blockwise.memory(wanted) if blockwise.has_evidence else 0
            refuse_too_little(prepared.model, wanted.quantized, request.max_memory, beside=beside)
            with self._clock.stage("rounding"):
                return blockwise.choose(wanted), (), NO_REPAIRS
        draft = draft_dynamic if request.dynamic_only else draft_plan
        wanted = draft(prepared.model, prepared.target, base=prepared.base)
        refuse_too_little(prepared.model, wanted.quantized, request.max_memory)
        self._observe(wanted)
        with self._clock.stage("repair"):
            repaired = repair(prepared, self._statistics, self._options, self._one_example())
        self._teacher.prepared, self._teacher.statistics = repaired.prepared, repaired.statistics
        self._mended = repaired.prepared.model
        if not request.searches:
            with self._clock.stage("layers"):
                return self._teacher.taught(self._teacher.transformed(repaired)), (), repaired.repairs
        with self._clock.stage("search"):
            found = _choose(self._prepared, repaired, self._options, self._one_example(), self._teacher)
            candidate, trail, notes = found
        self._notes += notes
        repairs, pairs = repaired.repairs, set(repaired.forms.paired)
        if pairs and not pairs & set(candidate.integer):  # the budget did not bear them
            repairs = replace(repairs, kept=tuple(name for name in repairs.kept if name != PAIRED))
        return candidate.plan, trail, repairs

    def _observe(self, wanted: Plan) -> None:
        sites = activation_sites(wanted)
        parts = self._prepared.parts
        if not sites or parts is None:
            return
        with self._clock.stage("calibration"):
            self._teacher.statistics = observe(
                self._prepared.model,
                parts.data,
                parts.calibration,
                sites,
                jobs=self._request.jobs,
                progress=self._request.progress,
            )
            self._notes += unchanging_sites(wanted, self._statistics)
            self._notes += untaken_branches(self._prepared.model, parts.data, parts.calibration)

    def _data_file(self) -> Path | None:
        """Returns where large tensors go; None for a model whose weights are all inside."""
        if self._prepared.model.folder is None:
            return None
        return (self._request.scratch or self._scratch.folder) / DATA_FILE

    def _finalize(self, plan: Plan, data_file: Path | None, model: OnnxModel | None = None) -> Candidate:
        """Returns the candidate with the metadata that its file carries; of the model as it is now if none is given."""
        metadata = {"fewbits.version": VERSION, "fewbits.target": self._prepared.target.full_name}
        return build(
            self._prepared.model if model is None else model,
            plan,
            self._prepared.target,
            self._statistics,
            metadata=metadata,
            data_file=data_file,
            learned=self._teacher.learned(plan),
        )

    def _no_integers(self, candidate: Candidate) -> str | None:
        if candidate.plan.quantized:
            return None
        asked = self._request.plan is not None
        return "the plan keeps every site float" if asked else "no mix of integer and float nodes kept the budget"

    def too_large(self) -> str | None:
        """Returns why the models are not run: one would not fit into the memory that may be taken."""
        model = self._prepared.model
        if model.folder is None:
            return None
        limit = self._request.max_memory or available_bytes()
        needed = _SESSION_COPIES * model.file_bytes
        if limit is None or needed <= limit:
            return None
        return f"running the float model would take about {needed / 1e9:.3g} GB, and {limit / 1e9:.3g} GB may be taken"

    def _write(self, candidate: Candidate, data_file: Path | None) -> tuple[ModelFiles, ...]:
        """Returns the float and the quantized model as files, and the float model in canonical form if that differs."""
        model = self._prepared.model
        own = self._scratch.folder
        (own / "float.onnx").write_bytes(model.original)
        files = (
            ModelFiles(model=own / "float.onnx", data_folder=model.folder, external_bytes=model.external_bytes),
            self._file(MODEL_FILE, candidate.data, data_file),
        )
        if model.folder is not None or not model.steps or not candidate.plan.quantized:
            return files
        empty = Plan(target=self._prepared.target.full_name, decisions=())
        (own / "mended.onnx").write_bytes(self._finalize(empty, None).data)
        return (*files, ModelFiles(model=own / "mended.onnx"))

    def _file(self, name: str, data: bytes, data_file: Path | None) -> ModelFiles:
        """Returns a model that we made as a file, with its large tensors in our data file if there is one."""
        model = self._scratch.folder / name
        model.write_bytes(data)
        if data_file is None:
            return ModelFiles(model=model)
        return ModelFiles(model=model, data_folder=data_file.parent, external_bytes=data_file.stat().st_size)

    def _by_rows(self, file: ModelFiles) -> str | None:
        """Returns why the quantized file is not handed over: it answers one example otherwise than several."""
        prepared, parts = self._prepared, self._prepared.parts
        if parts is None:
            return None
        some = parts.calibration if len(parts.calibration) else parts.verdict
        data = parts.data if len(parts.calibration) else parts.verdict_data
        options = replace(self._options, data_folder=file.data_folder)
        found = rows_differ(file, prepared.model, data, some, output=prepared.output, options=options)
        if found is not None and quantizes_batches(file.model):
            self._notes.append(
                f"{found.partition(':')[0]}: inputs are quantized by the range of the whole batch. Every figure is of "
                "examples alone; give them one at a time, or with others of their size [batches-coarser]"
            )
            return None
        if found is not None:
            self._notes.append(f"the quantized file is not handed over: {found} [rows-differ]")
        return found

    def _sessions(self, handed: ModelFiles) -> tuple[str, ...]:
        """Returns what changes where the file is opened otherwise than it was measured."""
        prepared, parts = self._prepared, self._prepared.parts
        if parts is None:
            return ()
        return told_of_sessions(
            handed,
            prepared.model,
            parts.verdict_data,
            parts.verdict,
            output=prepared.output,
            options=replace(self._options, data_folder=handed.data_folder),
        )

    def _halved(
        self,
        files: tuple[ModelFiles, ...],
        feeds: dict[str, np.ndarray],
        data_file: Path | None,
        performance: Performance,
        *,
        mended: bool,
    ) -> Halves | None:
        """Returns the float model with 16-bit weights, where a search may hand that over and it is as good as float."""
        if not self._request.searches:
            return None
        gains = performance.mended is not None and performance.mended.faster
        model = self._mended if mended or gains else self._opened
        plan = draft_halves(model, self._prepared.target, self._prepared.base)
        if plan is None:
            return None
        if data_file is not None:
            data_file.unlink()
        candidate = self._finalize(plan, data_file, model)
        file = self._file("halves.onnx", candidate.data, data_file)
        if not saves(file, files[0]):
            return None
        found = self._performance((files[0], file, *(files[2:] if mended else ())), feeds)
        if not self._request.allow_slower and not as_fast(found, mended=mended):
            return None
        judged = self._judge(file)
        if judged is None or not (judges_alike(judged, None) or judges_alike(judged, self._judge(files[0]))):
            return None
        return Halves(model=model, candidate=candidate, file=file, performance=found, judged=judged)

    def _float_file(self, data_file: Path) -> bytes:
        """Returns the float model with its large tensors in our data file."""
        data_file.unlink()
        empty = Plan(target=self._prepared.target.full_name, decisions=())
        return self._finalize(empty, data_file).data

    def _one_example(self) -> dict[str, np.ndarray]:
        prepared = self._prepared
        if prepared.parts is None:
            feeds = probe_feeds(
                tuple(
                    replace(s, shape=(1, *s.shape[1:])) if s.shape[:1] == (None,) else s for s in prepared.model.inputs
                )
            )
            assert feeds is not None, "a model without data was probed when it was opened"
            return feeds
        indices = prepared.parts.calibration[:1] if len(prepared.parts.calibration) else prepared.parts.verdict[:1]
        data = prepared.parts.data if len(prepared.parts.calibration) else prepared.parts.verdict_data
        return next(iter(model_batches(prepared.model, data, indices, size=1)))[0]

    def _performance(self, files: tuple[ModelFiles, ...], feeds: dict[str, np.ndarray]) -> Performance:
        request = self._request
        with self._clock.stage("latency"):
            return measure_performance(
                files,
                feeds=feeds,
                batch=rows_fed(self._prepared.model, feeds),
                options=self._options,
                seconds=request.measuring_seconds,
                seed=request.seed,
            )

    def _judge(self, handed: ModelFiles) -> Judged | None:
        prepared, request, parts = self._prepared, self._request, self._prepared.parts
        if parts is None:
            return None
        with (
            self._clock.stage("verdict"),
            Reference(
                prepared.model,
                parts.verdict_data,
                parts.verdict,
                metric=prepared.metric,
                output=prepared.output,
                options=self._options,
            ) as reference,
        ):
            outcome = reference.compare(handed.model, request.progress, stage="verdict", data_folder=handed.data_folder)
        bound = loss_bound(prepared.metric, outcome, confidence=request.confidence, groups=parts.groups)
        return Judged(
            bound=bound,
            verdict=None if request.max_drop is None else decide(bound, request.max_drop),
            quality=outcome.quality,
            float_figure=float(outcome.float_scores.mean()),
            figure=float(outcome.scores.mean()),
        )

    def _ran(
        self,
        handed: ModelFiles,
        original: ModelFiles,
        feeds: dict[str, np.ndarray],
        candidate: Candidate,
        performance: Performance,
        float_reason: str | None,
    ) -> Ran:
        runtime = RUNTIMES[self._prepared.target.runtime]
        options = replace(self._options, data_folder=handed.data_folder)
        before = replace(self._options, data_folder=original.data_folder)
        placed = None if float_reason is not None else _placement_of(self._prepared, candidate)
        return Ran(
            performance=performance,
            executed=read_executed(runtime.executed(handed.model, options, feeds), placed, self._prepared.model.view),
            float_executed=read_executed(runtime.executed(original.model, before, feeds), None),
            golden=make_golden(handed.model, feeds, options, seed=self._request.seed),
        )


def _offers(jobs: list[_Job]) -> tuple[Offer, ...]:
    """Returns what each job's target would give; nothing where a model is too large to be run."""
    if any(job.too_large() for job in jobs):
        return ()
    request = jobs[0].request
    offered = {job.target: job.offer() for job in jobs}
    feeds, batch = jobs[0].feeds()
    return time_offers(
        {target: (file, options) for target, (file, _, options) in offered.items()},
        {target: (file, options) for target, (_, file, options) in offered.items()},
        feeds=feeds,
        batch=batch,
        seconds=request.measuring_seconds,
        seed=request.seed,
    )


def _renewed(prepared: Prepared, plan: Plan) -> Plan:
    """Returns a replayed plan with what this run read and used: an output's hashes are those of its own inputs."""
    base = prepared.base
    return replace(
        plan,
        target=base.target,
        calibration_examples=base.calibration_examples,
        split=base.split,
        hashes=base.hashes,
        versions=base.versions,
        transforms=(*prepared.model.steps, *(step for step in plan.transforms if step.name == STEP)),
    )


def _all_float(plan: Plan, reason: str) -> Plan:
    """Returns the plan of the float model: what is handed over is what the plan says, and replaying it gives that."""
    decisions = tuple(
        decision
        if decision.is_float
        else replace(decision, scheme=None, range_rule=None, rounder=None, reason=f"float model kept: {reason}")
        for decision in plan.decisions
    )
    return replace(plan, decisions=decisions, links=())


def _choose(
    prepared: Prepared,
    repaired: Repaired,
    options: Options,
    feeds: dict[str, np.ndarray],
    teacher: Teacher,
) -> tuple[Candidate, tuple[Trial, ...], tuple[str, ...]]:
    """Returns the best candidate of the search, the trail to it, and notes for the reader."""
    request, model, parts = prepared.request, prepared.model, prepared.parts
    assert parts is not None, "a search has data"
    deadline = None if request.time_budget is None else time.monotonic() + request.time_budget
    confidence, verdict_examples = request.confidence, len(parts.verdict)
    groups = None if parts.data.groups is None else parts.data.groups[parts.selection]
    with Reference(
        model, parts.data, parts.selection, metric=prepared.selection_metric, output=prepared.output, options=options
    ) as reference:
        task = Task(
            model=model,
            target=prepared.target,
            base=prepared.base,
            statistics=repaired.statistics,
            forms=repaired.forms,
            reference=reference,
            bound=lambda outcome: forecast(
                prepared.selection_metric,
                outcome,
                confidence=confidence,
                verdict_examples=verdict_examples,
                groups=None if groups is None else groups[: len(outcome.scores)],
            ),
            max_drop=request.max_drop,
            certifiable=smallest_certifiable_budget(verdict_examples, confidence),
            effort=request.effort,
            deadline=deadline,
            progress=request.progress,
            pays=lambda candidate: pays(prepared, candidate, options, feeds),
            refuted=lambda outcome: is_refuted(prepared, outcome),
            hopeless=lambda candidate: hopeless(prepared, candidate, options, feeds),
            learn=teacher.learned_layers,
            ranges=teacher.ranged,
            variants=teacher.variants,
            use=teacher.use,
            slower=lambda candidate, other: loses_speed(prepared, (other.data, candidate.data), options, feeds),
        )
        result = BudgetLoop(task).run()
    return result.candidate, result.trail, (result.stopped,) if result.stopped else ()


def _placement_of(prepared: Prepared, candidate: Candidate) -> Placement:
    """Returns the placement that a candidate's plan amounts to, for naming its float islands."""
    if not prepared.request.calibrates:
        return prepared.placement
    view, target = prepared.model.view, prepared.target
    forms = Forms(
        dynamic=running_dynamic(prepared.model, candidate.plan, target),
        paired=tuple(set(may_be_paired(view, target)) & set(candidate.integer)),
    )
    # Beside products that give float, light operators have no integers to pass on: that is not a choice.
    kept = tuple(set(place_forms(view, target, forms).integer) - set(candidate.integer))
    placed = place_forms(view, target, forms.without(kept))
    # The plan's own words for what it keeps float, not the placer's.
    told = {d.node: d.reason for d in candidate.plan.decisions if d.is_float and d.role is Role.WEIGHT and d.reason}
    reasons = {
        name: replace(reason, text=told[name]) if name in kept and name in told else reason
        for name, reason in placed.kept_float.items()
    }
    return replace(placed, kept_float=reasons)
