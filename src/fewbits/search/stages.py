"""How long each stage of a run took."""

from __future__ import annotations

import time
from typing import final


@final
class Stages:
    """Seconds by stage; a stage that comes again adds to its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._start = 0.0

    def stage(self, name: str) -> Stages:
        self._name, self._start = name, time.perf_counter()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        before = self.seconds.get(self._name, 0.0)
        self.seconds[self._name] = round(before + time.perf_counter() - self._start, 3)
