"""How a run can end early, and with which exit status the launcher reports it."""

import signal


class UsageError(ValueError):
    """The command asks for something that cannot be: a name, a value, a file, a folder (exit status 2)."""


class RunError(RuntimeError):
    """The run cannot go on for a reason that one line explains, such as a full disk or a loss of NaN (exit status 1)."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop; its checkpoint is written (exit status 128 + the signal's number)."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class StopRequest:
    """Turns SIGTERM and SIGINT into a request that the training loop answers between two compiled calls.

    Use as a context manager. Inside ``training()`` a signal only sets ``number``; outside it raises ``Stopped`` at
    once, because nothing would be lost. Outside the main thread signals cannot be caught and are left alone.
    """

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, object] = {}
        self._deferred = False

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number, frame):
        if self.number == signal.SIGINT == number:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.number = number
        if not self._deferred:
            raise Stopped(number, f"stopped by {signal.Signals(number).name}")

    def defer(self, deferred: bool) -> None:
        """From now on a signal waits for the training loop (True), or ends the run at once (False)."""
        self._deferred = deferred
        if not deferred and self.number is not None:
            raise Stopped(self.number, f"stopped by {signal.Signals(self.number).name}")
