"""The note on top of a sweep's run in MLflow: what came of it, as Markdown, with the ways on from there."""

from collections.abc import Sequence

from cddpm.config import ExperimentConfig
from cddpm.search.leaderboard import Row
from cddpm.text import command
from cddpm.text.numbers import score, setting
from cddpm.tracking import names

MOST_TRIALS = 10


def markdown(config: ExperimentConfig, rows: Sequence[Row]) -> str:
    """The leaderboard of a finished sweep (``rows`` as they are shown to the person), and links.

    The best ``MOST_TRIALS`` trials and every contender on test are in it; how many others there are is said.
    """
    objective, model = config.search.objective, config.tracking.registered_model
    tested = sorted({name for row in rows for name in row.test or {}})
    shown = [row for row in rows if row.test is not None or row in rows[:MOST_TRIALS]]
    head = ["trial", f"validation {objective}", *(f"test {objective}: {name}" for name in tested), "state", "settings"]
    lines = [head, ["---", *("---:" for _ in range(1 + len(tested))), "---", "---"]]
    for row in shown:
        test = [score((row.test or {}).get(name)) for name in tested]
        settings = ", ".join(f"{_leaf(path)} {setting(value)}" for path, value in row.settings.items())
        lines.append([row.name, score(row.validation), *test, row.state, settings or "as configured"])
    table = "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)
    left = len(rows) - len(shown)
    parts = [
        f"Best by **{objective} on validation**; test was scored once, at the operating points of validation.",
        table,
        *([f"And {left} more, in `leaderboard.csv` among the artifacts."] if left else []),
        f"[Registered model `{model}`](#/models/{model}) · pictures, tables and `leaderboard.csv` are among this run's "
        f"artifacts · the whole sweep on one page: `{command('cddpm', 'report', config.name)}`",
        f"The trials alone, in the list of runs: ``tags.`{names.SWEEP}` = '{config.name}' and tags.`{names.KIND}` = "
        f"'{names.KIND_TRIAL}'``",
    ]
    return "\n\n".join(parts) + "\n"


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
