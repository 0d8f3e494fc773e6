"""How far a run is: a bar on a terminal, one line every ten seconds anywhere else.

`update` may be called often: when nothing is due it reads the clock and returns. The simulator makes tens of thousands
of plans a second, and asks `due` before it makes anything to show.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, Self, TextIO

_BAR_PERIOD_S = 0.1
_LINE_PERIOD_S = 10.0


class _Face(Protocol):
    period_s: float

    def show(self, done: int, total: int, elapsed_s: float, fields: str) -> None: ...

    def close(self) -> None: ...


class Progress:
    """Shows progress on standard error; use it as a context manager, so that the terminal is left as it was."""

    def __init__(
        self, total: int, label: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        """Chooses how to show it.

        Args:
          total: what `done` will be at the end.
          label: what is being done.
          stream: where to; None means standard error. clock: seconds that only grow.
        """
        out = stream or sys.stderr
        self._face: _Face = _Bar(label, out) if out.isatty() else _Lines(label, out)
        self._total = total
        self._clock = clock
        self._start_s = clock()
        self._due_s = self._start_s + self._face.period_s

    def due(self) -> bool:
        """Whether it is time to show something."""
        return self._clock() >= self._due_s

    def update(self, done: int, **fields: Any) -> None:
        """Says how much is done; shows it if it is time.

        Args:
          done: at most `total`.
          fields: more to show, name -> number or text.
        """
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._face.period_s
        self._show(done, fields, now_s)

    def close(self, done: int | None = None, **fields: Any) -> None:
        """Shows the last state, if given, and leaves the terminal as it was."""
        if done is not None:
            self._show(done, fields, self._clock())
        self._face.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, done: int, fields: dict[str, Any], now_s: float) -> None:
        self._face.show(done, self._total, now_s - self._start_s, ", ".join(_field(*item) for item in fields.items()))


class _Lines:
    """Whole lines, for logs."""

    period_s = _LINE_PERIOD_S

    def __init__(self, label: str, stream: TextIO):
        self._label = label
        self._stream = stream

    def show(self, done: int, total: int, elapsed_s: float, fields: str) -> None:
        share = f" ({done / total:.0%})" if total else ""
        extra = f", {fields}" if fields else ""
        print(
            f"{self._label}: {done:,} of {total:,}{share} after {elapsed_s:.0f} s{extra}", file=self._stream, flush=True
        )

    def close(self) -> None:
        return


class _Bar:
    """A bar that is drawn only when told to: no thread."""

    period_s = _BAR_PERIOD_S

    def __init__(self, label: str, stream: TextIO):
        from rich import console, progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[extra]}"),
        )
        self._progress = progress.Progress(*columns, console=console.Console(file=stream), auto_refresh=False)
        self._task = self._progress.add_task(label, total=None, extra="")
        self._progress.start()

    def show(self, done: int, total: int, elapsed_s: float, fields: str) -> None:
        self._progress.update(self._task, completed=done, total=total, extra=fields, refresh=True)

    def close(self) -> None:
        self._progress.stop()


def _field(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name} {value:,.4g}"
    return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
