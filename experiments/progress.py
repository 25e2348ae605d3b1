"""What a user sees while an arm trains: a bar on a terminal or in a notebook, a line every ten seconds in a log."""

import os
import sys
import time

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """Progress of one arm.

    Args:
      name: of the arm.
      steps: of the arm.
      start: steps done before, when resuming.
      per_step: tokens or examples in a step.
      unit: "tokens" or "examples".
      show: whether to print at all.
      interval: seconds between lines where there is no terminal.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        *,
        start: int = 0,
        per_step: int,
        unit: str,
        show: bool = True,
        interval: float = 10.0,
    ):
        self.name, self.steps, self.start, self.per_step, self.unit = name, steps, start, per_step, unit
        self.interval = interval
        self._began = self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # after the first call: compilation is not part of the speed
        self._bar = None
        self._lines = False
        if not show or steps == 0:
            return
        if sys.stderr.isatty() or _in_notebook():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, initial=start, desc=name, bar_format=_BAR, **_width())
        else:
            self._lines = True

    def update(self, step: int, loss: float) -> None:
        """Step ``step`` is done."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done, since = step - self._first[0], now - self._first[1]
        speed = done / since if done and since else (step - self.start) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.4g}, {_short(speed)} steps/s, {_short(speed * self.per_step)} {self.unit}/s, "
                f"{_clock((self.steps - step) / max(speed, 1e-9))} left",
                refresh=False,
            )
            self._bar.update(step - self._bar.n)
        elif self._lines and (now - self._last_line >= self.interval or step == self.steps):
            self._last_line = now
            print(
                f"{self.name}: step {step}/{self.steps}, loss {loss:.4g}, {_short(speed)} steps/s, "
                f"{_short(speed * self.per_step)} {self.unit}/s, {_clock((self.steps - step) / max(speed, 1e-9))} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def say(message: str, show: bool = True) -> None:
    """A line on stderr that does not tear a progress bar."""
    if not show:
        return
    if "tqdm.std" in sys.modules:
        sys.modules["tqdm.std"].tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
    else:
        print(message, file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


def _width() -> dict[str, object]:
    """Options of the bar: follow the terminal's width; 100 columns for a terminal that says it has none."""
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns == 0:
        return {"ncols": 100}
    return {"dynamic_ncols": True}


def _short(value: float) -> str:
    """Three significant digits with k, M or G."""
    for suffix in ("", "k", "M"):
        if abs(value) < 1000:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.3g}G"


def _clock(seconds: float) -> str:
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 60}:{seconds % 60:02d}"
