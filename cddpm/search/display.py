"""What a person sees while a sweep runs: its stages, each running trial with step and loss, the best so far, time left."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rich.table
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from cddpm.search.time_left import TimeLeft
from cddpm.text import Console, whole
from cddpm.text.numbers import clock, setting
from cddpm.tracking import names

Look = Callable[[], dict[int, tuple[str, int, int, float]]]

REFRESH_SECONDS = 0.5
LINE_SECONDS = 15.0
"""Without a terminal (a log file), how often a line says where the trials are."""
BAR, SHORTEST_BAR = 24, 4
"""Columns of a bar of progress; what stands beside it is more important, so it gives way."""
STAGES = {
    "guide": ("training guide", "images"),
    "pretrain": ("pretraining encoder", "images"),
    "train": ("training", "images"),
    "reconstruction": ("reconstructing", "volumes"),
    "search": ("searching settings", "settings"),
}


class Display:
    """Prints to ``console``; with a terminal a live table, without one plain lines."""

    def __init__(self, console: Console, unit: str = "trial") -> None:
        """``unit``: what one of the things that run abreast is called."""
        self.console = console
        self.unit = unit
        self.start = time.monotonic()
        self.stopping = False
        """Set when the sweep was asked to end: trainings are saving their state."""
        self._trials: dict[int, str] = {}
        self._done = self._total = 0
        self._best: tuple[float, int] | None = None
        self._left = TimeLeft(0)
        self._told: Callable[[], list[str]] = list
        self._waiting: Callable[[], str] = str

    def stop(self) -> None:
        """Say from here on that everything is ending."""
        self.stopping = True

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        """Announce a stage; the yielded function sets what is said at its end."""
        said = [""]
        start = time.monotonic()
        with self._spinner(title):
            yield lambda text: said.__setitem__(0, text)
        note = f": {said[0]}" if said[0] else ""
        took = whole(f"({time.monotonic() - start:.1f} s)")
        self.console.print(f"[green]✓[/] {title}{note} [dim]{took}[/]")

    def _spinner(self, title: str) -> contextlib.AbstractContextManager[Any]:
        return self.console.status(f"{title} …") if self.console.is_terminal else contextlib.nullcontext()

    @contextlib.contextmanager
    def tuning(
        self,
        total: int,
        done: int,
        best: tuple[float, int] | None,
        look: Look,
        told: Callable[[], list[str]] = list,
        waiting: Callable[[], str] = str,
    ) -> Iterator[None]:
        """Show trials until the block ends. ``look`` asks where the running ones are; ``best``: (objective, trial) so far.

        ``told`` gives new lines that they left, ``waiting`` what they wait for now, if there is anything.
        """
        self._total, self._done, self._best = total, done, best
        self._left = TimeLeft(total - done)
        over = threading.Event()
        self._told, self._waiting = told, waiting
        show = self._live if self.console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(look, over), name="display", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5)
            self._pass_on()

    def started(self, number: int, params: dict[str, Any]) -> None:
        """A trial starts, or is continued."""
        self._trials[number] = "starting workers"
        settings = ", ".join(whole(f"{path.split('.', 1)[1]} {setting(value)}") for path, value in params.items())
        self._say(f"{self.unit} {number:04d} starts: {settings or 'settings as configured'}")

    def reported(self, number: int, metrics: dict[str, Any]) -> None:
        """A validation."""
        self._say(
            f"{self.unit} {number:04d} after {int(metrics['images']):>7,} images: "
            f"validation loss {metrics.get(names.VAL_LOSS, 0):.4f}, preview {metrics['objective']:.3f}"
        )

    def ended(self, number: int, how: str, objective: float | None = None) -> None:
        """A trial is over."""
        self._trials.pop(number, None)
        if how != "interrupted":
            self._done += 1
            self._left.ended(number)
        value = "" if objective is None else f", validation {objective:.3f}"
        self._say(f"{self.unit} {number:04d} {_HOW[how]}{value}")
        if objective is not None and (self._best is None or objective > self._best[0]):
            self._best = (objective, number)

    def say(self, text: str) -> None:
        """One line between the others."""
        self._say(text)

    def warn(self, text: str | None) -> None:
        """One line that must not be overlooked; nothing if there is none."""
        if text:
            self._say(f"[yellow]{escape(text)}[/]")

    def _say(self, text: str) -> None:
        stamp = clock(time.monotonic() - self.start)
        self.console.print(f"[dim]{stamp}[/] {text}", hang=len(stamp) + 1)

    def _pass_on(self) -> None:
        for line in self._told():
            self._say(f"[yellow]{escape(line)}[/]")

    def _live(self, look: Look, over: threading.Event) -> None:
        with Live(console=self.console, refresh_per_second=4, transient=True) as live:
            while not over.wait(REFRESH_SECONDS):
                live.update(self._table(look()))
                self._pass_on()

    def _lines(self, look: Look, over: threading.Event) -> None:
        while not over.wait(LINE_SECONDS):
            self._pass_on()
            self.warn(self._waiting())
            for number, (stage, seen, budget, loss) in sorted(look().items()):
                if number in self._trials:
                    self._left.saw(number, stage, seen, budget)
                    self._say(f"{self.unit} {number:04d} {_where(stage, seen, budget, loss)}{self._sweep_left()}")

    def _table(self, board: dict[int, tuple[str, int, int, float]]) -> RenderableType:
        rows, waiting = [], self._waiting()
        for number, starting in sorted(self._trials.items()):
            stage, seen, budget, loss = board.get(number, ("", 0, 1, 0.0))
            self._left.saw(number, stage, seen, budget)
            said = _where(stage, seen, budget, loss) if stage else starting
            rows.append((f"{self.unit} {number:04d}", ProgressBar(total=max(1, budget), completed=seen), said))
        shown = rows[: max(1, self.console.height - 4 - bool(waiting))]
        room = self.console.width - max((len(name) + len(said) for name, _, said in shown), default=0) - 4
        table = rich.table.Table.grid(padding=(0, 2))
        for name, bar, said in shown:
            bar.width = min(BAR, room)
            table.add_row(name, *([bar] if room >= SHORTEST_BAR else []), said)
        hidden = len(rows) - len(shown)
        more = [Text(f"and {hidden} more {self.unit}s run")] if hidden else []
        return Group(table, *more, *([Text(waiting, "yellow")] if waiting else []), self._summary())

    def _summary(self) -> Text:
        best = f"best so far {self._best[0]:.3f} ({self.unit} {self._best[1]:04d})" if self._best else "no result yet"
        elapsed = clock(time.monotonic() - self.start)
        return Text(
            f"{self._done} of {self._total} {self.unit}s done · {best} · {elapsed} elapsed{self._sweep_left()}", "bold"
        )

    def _sweep_left(self) -> str:
        left = self._left.seconds()
        return "" if left is None else f" · about {clock(left)} left"


_HOW = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "interrupted": "interrupted; --resume continues it",
}


def _where(stage: str, seen: int, budget: int, loss: float) -> str:
    title, unit = STAGES.get(stage, (stage, "steps"))
    value = {"search": f", best {loss:.3f}", "reconstruction": ""}.get(stage, f", loss {loss:.4f}")
    return f"{title}: {seen:,} of {budget:,} {unit}{value}"
