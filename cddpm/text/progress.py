"""How far work is: a bar in a terminal, now and then a line elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cddpm.text.console import Console

EVERY_SECONDS = 30.0


@contextlib.contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Tells of ``what`` while ``total`` pieces are done; what it gives is called with the name of each, when it is."""
    if console.is_terminal:
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[name]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, name="")
            yield lambda name: bar.update(task, advance=1, name=escape(name))
        return
    done, told = 0, time.monotonic()

    def one(name: str) -> None:
        nonlocal done, told
        done += 1
        if done == total or time.monotonic() - told > EVERY_SECONDS:
            told = time.monotonic()
            console.print(f"{what}: {done} of {total} ({escape(name)})")

    yield one
