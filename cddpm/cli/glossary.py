"""``cddpm glossary``: what each number of an evaluation means."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cddpm.scoring.glossary import Measure

ARROWS = {"higher": "↑", "lower": "↓", None: " "}
LEGEND = (
    "↑ higher is better, ↓ lower is better; [unit], none for shares and counts. {rate} is a healthy false-positive rate in "
    "percent (dice_at_fpr_5pct), {size} a stratum of lesion volumes (lesion_recall_0.1_to_1ml). NAME_std is the standard "
    "deviation over volumes, NAME_volumes how many have a value."
)
_NAME_WIDTH = 30
_WIDEST = 110


def glossary(
    columns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Columns such as dice, or dice_at_fpr_5pct; without any, all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say what each number of an evaluation means: columns of its tables, METRIC in val/METRIC of the lab book."""
    found = _measures(columns or [])
    if as_json:
        plain = {name: {"unit": m.unit, "better": m.better, "meaning": m.meaning} for name, m in found.items()}
        typer.echo(json.dumps(plain, indent=2))
        return
    width = min(_WIDEST, shutil.get_terminal_size((80, 24)).columns)
    if not columns:
        typer.echo(textwrap.fill(LEGEND, width, break_on_hyphens=False) + "\n")
    for name, measure in found.items():
        typer.echo("\n".join(entry(name, measure, width)))


def entry(name: str, measure: "Measure", width: int) -> Sequence[str]:
    """Lines of at most ``width`` characters; a name that is too long for its column has a line of its own."""
    unit = f" [{measure.unit}]" if measure.unit else ""
    arrow = f"{ARROWS[measure.better]} "
    indent = " " * _NAME_WIDTH
    room = max(20, width - _NAME_WIDTH - len(arrow))
    first, *rest = textwrap.wrap(measure.meaning + unit, room, break_on_hyphens=False)
    head = [f"{name:<{_NAME_WIDTH}}"] if len(name) < _NAME_WIDTH else [name, indent]
    lines = [*head[:-1], head[-1] + arrow + first]
    return [*lines, *(indent + " " * len(arrow) + line for line in rest)]


def _measures(columns: Sequence[str]) -> "dict[str, Measure]":
    """Those of ``columns``, or all. Raises ``ConfigError`` for a name that no evaluation has."""
    from cddpm.errors import ConfigError
    from cddpm.scoring.glossary import MEASURES, describe
    from cddpm.text import command
    from cddpm.text.likeness import did_you_mean

    if not columns:
        return dict(MEASURES)
    found = {}
    for name in columns:
        try:
            found[name] = describe(name)
        except KeyError:
            lists_all = command("cddpm", "glossary")
            raise ConfigError(
                f"'{name}': no evaluation has such a number; {lists_all} lists all{did_you_mean(name, MEASURES)}"
            ) from None
    return found
