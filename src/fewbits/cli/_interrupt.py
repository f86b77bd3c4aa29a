"""Ctrl-C: the first ends the work in order, those that follow it at once do not disturb that."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import final

# Seconds for removing what is half written. Who still waits after that means the process, not the work.
_PATIENCE = 5.0


@final
class _OneAtATime:
    """Raises KeyboardInterrupt, but not again while the first one is being obeyed: the cleaning would stop halfway."""

    def __init__(self) -> None:
        self._last = -_PATIENCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= _PATIENCE:
            self._last = now
            raise KeyboardInterrupt


def obey_once() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt once; a handler of somebody else, or an ignored signal, stays as it is."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _OneAtATime())
