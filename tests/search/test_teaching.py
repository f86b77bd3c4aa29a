"""What few calibration examples suffer is mended though those that nothing is learned from do not show it."""

from __future__ import annotations

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


def taught(monkeypatch: pytest.MonkeyPatch, *, calibration: np.ndarray, off: dict[str, float]) -> tuple[Any, list[str]]:
    """Returns the plan that is taken, and the models that were asked; KL is ``off`` where the example is among them."""
    model, other = SimpleNamespace(name=PLAIN), SimpleNamespace(name=SMOOTHED)
    prepared = SimpleNamespace(model=model, parts=SimpleNamespace(calibration=calibration))
    teacher = Teacher(prepared, Options())  # type: ignore[arg-type]
    asked = []

    def distance(plan: str, reference: np.ndarray) -> SimpleNamespace:
        asked.append(plan)
        kl = off[plan] if SUFFERS in reference else 9e-6
        return SimpleNamespace(quality=SimpleNamespace(kl=kl, gauge=kl))

    def use(model: Any, statistics: Any) -> None:
        teacher.prepared = SimpleNamespace(model=model, parts=prepared.parts)  # type: ignore[assignment]

    variant = SimpleNamespace(model=other, statistics=None, plan=SMOOTHED)
    for name, value in (
        ("_reference", nullcontext),
        ("_distance", distance),
        ("variants", lambda plan, forms: [variant]),
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


def test_little_is_mended_too_by_all_examples(monkeypatch):
    """Half of what is close enough for layers to learn nothing: factors are tried all the same."""
    plan, asked = taught(monkeypatch, calibration=np.arange(100), off={PLAIN: 5e-4, SMOOTHED: 1e-4})
    assert plan == SMOOTHED
    assert asked == [PLAIN, PLAIN, SMOOTHED]


def test_where_no_example_suffers_nothing_is_tried(monkeypatch):
    plan, asked = taught(monkeypatch, calibration=np.arange(100), off={PLAIN: 9e-6, SMOOTHED: 0.0})
    assert plan == PLAIN
    assert asked == [PLAIN, PLAIN]
