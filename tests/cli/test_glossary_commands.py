"""``cddpm glossary``: every number, readable in narrow terminals, at once."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.cli.glossary import ARROWS, entry
from cddpm.errors import ConfigError
from cddpm.scoring.glossary import MEASURES


def ran(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["glossary", *arguments], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_every_measure_is_told_and_no_line_is_wider_than_the_terminal(columns: int) -> None:
    done = ran(columns=columns)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert {line.split()[0] for line in lines if line and line[0] not in " ↑"} >= set(MEASURES)
    words = " ".join(done.stdout.split())
    assert all(measure.meaning in words for measure in MEASURES.values())


@pytest.mark.slow
@given(st.sampled_from(sorted(MEASURES)), st.integers(60, 120))
def test_an_entry_holds_its_own_words_in_order(name: str, width: int) -> None:
    measure = MEASURES[name]
    unit = f" [{measure.unit}]" if measure.unit else ""
    lines = entry(name, measure, width)
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == f"{name} {ARROWS[measure.better]} {measure.meaning}{unit}".split()


def test_as_json_it_is_the_table_itself() -> None:
    found = json.loads(ran("--json").stdout)
    assert list(found) == list(MEASURES)
    assert found["hd95"] == {"unit": "mm", "better": "lower", "meaning": MEASURES["hd95"].meaning}


def test_columns_that_settings_make_are_found() -> None:
    found = json.loads(ran("dice_at_fpr_5pct", "hd95_std", "--json").stdout)
    assert found["dice_at_fpr_5pct"]["meaning"] == MEASURES["dice_at_fpr_{rate}pct"].meaning
    assert found["hd95_std"]["unit"] == "mm"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    done = ran("disce")
    assert isinstance(done.exception, ConfigError)
    assert "did you mean 'dice'" in str(done.exception)


@pytest.mark.slow
def test_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "mlflow", "numpy", "pandas", "scipy")
    code = f"""
import sys
from cddpm.cli import app
sys.argv = ["cddpm", "glossary", "dice"]
try:
    app()
except SystemExit as left:
    assert not left.code, left.code
print([m for m in {heavy} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
