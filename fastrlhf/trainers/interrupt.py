"""SIGINT and SIGTERM during training: the first lets the step finish, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading


class Interrupts:
    """A context manager that notes the first signal instead of dying of it.

    Attributes:
        received: the first signal's number, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        self.received, self._before = None, {}
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers anywhere else
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        with contextlib.suppress(Exception):  # a handler must not raise into the step
            print(
                f"\n{signal.Signals(number).name}: finishing this step, then a checkpoint; again to stop at once",
                file=sys.stderr,
                flush=True,
            )
