"""What few calibration examples suffer is mended though those that nothing is learned from do not show it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewbits.runtimes.base import Options
from fewbits.search.layerwise import closeness_part
from fewbits.search.teaching import Teacher

SUFFERS = 3  # one of the first three quarters, which layers learn from
PLAIN, SMOOTHED = "plain", "smoothed"


def taught(
    monkeypatch: pytest.MonkeyPatch,
    *,
    calibration: np.ndarray,
    off: dict[str, float],
    lopsided: Sequence[str] = (),
) -> tuple[Any, list[str]]:
    """Returns the plan that is taken, and the models that were asked; KL is ``off`` where the example is among them.

    ``lopsided`` are the models that sizes of channels ask for.
    """
    model, other = SimpleNamespace(name=PLAIN), SimpleNamespace(name=SMOOTHED)
    prepared = SimpleNamespace(model=model, parts=SimpleNamespace(calibration=calibration))
    teacher = Teacher(prepared, Options())  # type: ignore[arg-type]
    asked = []

    def distance(plan: str, reference: np.ndarray) -> SimpleNamespace:
        asked.append(plan)
        kl = off[plan] if SUFFERS in reference else 1e-5
        return SimpleNamespace(quality=SimpleNamespace(kl=kl, gauge=kl))

    def use(model: Any, statistics: Any) -> None:
        teacher.prepared = SimpleNamespace(model=model, parts=prepared.parts)  # type: ignore[assignment]

    variant = SimpleNamespace(model=other, statistics=None, plan=SMOOTHED)
    asks = lopsided

    def found(plan: str, forms: object, lopsided: bool = False) -> list[SimpleNamespace]:
        return [variant] if not lopsided or SMOOTHED in asks else []

    for name, value in (
        ("_reference", nullcontext),
        ("_distance", distance),
        ("variants", found),
        ("use", use),
    ):
        monkeypatch.setattr(teacher, name, value, raising=True)
    plan = teacher.transformed(SimpleNamespace(plan=PLAIN, forms=None))  # type: ignore[arg-type]
    assert teacher.prepared.model.name == plan
    return plan, asked


def test_an_example_that_layers_learn_from_is_asked_too(monkeypatch):
    calibration = np.arange(100)
    assert SUFFERS not in closeness_part(calibration)
    plan, asked = taught(monkeypatch, calibration=calibration, off={PLAIN: 0.03, SMOOTHED: 0.002})
    assert plan == SMOOTHED
    assert asked == [PLAIN, PLAIN, SMOOTHED]


def test_what_does_not_help_that_example_is_left(monkeypatch):
    plan, _ = taught(monkeypatch, calibration=np.arange(100), off={PLAIN: 0.03, SMOOTHED: 0.03})
    assert plan == PLAIN


def test_close_outputs_are_not_asked_but_sizes_of_channels(monkeypatch):
    """All examples are close to float, by either model: which is closer by a little decides nothing."""
    plan, asked = taught(
        monkeypatch, calibration=np.arange(100), off={PLAIN: 2e-4, SMOOTHED: 5e-4}, lopsided=[SMOOTHED]
    )
    assert plan == SMOOTHED
    assert asked == [PLAIN, PLAIN, SMOOTHED]


def test_channels_are_left_lopsided_where_outputs_would_not_stay_close(monkeypatch):
    plan, _ = taught(monkeypatch, calibration=np.arange(100), off={PLAIN: 2e-4, SMOOTHED: 2e-3}, lopsided=[SMOOTHED])
    assert plan == PLAIN


def test_where_no_example_suffers_nothing_is_tried(monkeypatch):
    plan, asked = taught(monkeypatch, calibration=np.arange(100), off={PLAIN: 1e-5, SMOOTHED: 0.0})
    assert plan == PLAIN
    assert asked == [PLAIN, PLAIN]
