"""Every command that is printed means, when it is copied, what was meant: also in a folder with spaces, # and %."""

import ast
import functools
import io
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import built_sweep
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from launched import ROOT
from typer.testing import CliRunner

from cddpm.cli import app, cache, importing
from cddpm.cli.registry import calibration
from cddpm.config import parse
from cddpm.inventory.pruning import Policy
from cddpm.predict import threshold_calibration
from cddpm.search import leaderboard, report
from cddpm.search.registering import Registered
from cddpm.search.sweep import Summary
from cddpm.text import Console, command
from cddpm.tracking import address
from cddpm.tracking.address import file_uri, registry_command
from cddpm.training.stages import CHECKPOINT, ENCODER

NAME = "My Study #1 50% ü"
COMMAND = re.compile(r"(?<!')\b(cddpm (data|cache|predict|registry|report|import|glossary)\b|(python|bash) launch/)")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / NAME
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def parsed(line: str) -> dict[str, Any]:
    """What the program's own parser makes of a line, as its shell splits it."""
    program, *words = shlex.split(line)
    if Path(program).name == "python":
        script = runpy.run_path(str(ROOT / words.pop(0)))
        own = typer.Typer()
        own.command()(script["main"])
        found: Any = typer.main.get_command(own)
    else:
        assert Path(program).name == "cddpm"
        found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]
    return cast(dict[str, Any], found.make_context("x", words).params)


def inside(value: Any, study: Path) -> Path:
    place = Path(value).absolute()
    assert place.is_relative_to(study), place
    return place


def _candidate(kind: str) -> Any:
    config = parse({"name": "x"}, "here")
    return SimpleNamespace(kind=kind, config=config)


def test_after_an_import(study: Path) -> None:
    for kind, script in ((ENCODER, "sweep"), (CHECKPOINT, "evaluate")):
        place = study / "out" / kind / "f00d"
        line = importing._next(_candidate(kind), place, None)
        assert f"launch/{script}.py" in line
        found = parsed(line)
        assert inside(found["config"], study) == place / "config.json"
        assert found["data_dir"] == "DATA_DIR"
        assert found["setting"][0].endswith(".artifact=f00d")
    line = importing._next(_candidate(CHECKPOINT), study, study / "out" / "a package")
    assert inside(parsed(line)["model"], study) == study / "out" / "a package"


def test_after_a_calibration(study: Path) -> None:
    uri = file_uri(study / "mlflow.db")
    found = parsed(calibration._use("a sweep/0003", "my models", uri, study / "thresholds of us.json", "package"))
    assert inside(found["threshold_from"], study) == study / "thresholds of us.json"
    assert (found["model"], found["registered_model"], found["tracking_uri"]) == ("a sweep/0003", "my models", uri)
    assert found["window"] == "package"


@pytest.mark.parametrize("promoted", [True, False])
def test_after_a_sweep(study: Path, promoted: bool) -> None:
    folder, uri = study / "my outputs", file_uri(study / "lab book.db")
    config = built_sweep.config(folder)
    mine = config.model_copy(update={"tracking": config.tracking.model_copy(update={"registered_model": "our models"})})
    summary = Summary(study / "a sweep", [], [], Registered(3, promoted, "", 0), uri, study / "-a scan.nii.gz", [])
    lines = dict(report._next(mine, summary))
    assert inside(shlex.split(lines.pop("look at the picture"))[0], study) == study / "a sweep/champion.png"
    assert inside(parsed(lines.pop("everything on one page"))["sweep"], study) == study / "a sweep"
    found = parsed(lines.pop("find anomalies in a scan"))
    assert inside(found["scans"][0], study) == study / "-a scan.nii.gz"
    assert inside(found["out"], study) == folder / "predictions"
    assert found["registered_model"] == "our models"
    assert found["tracking_uri"] == uri
    (browse,) = (line for title, line in lines.items() if title.startswith("browse"))
    assert shlex.split(browse)[1:] == ["ui", "--workers", "1", "--backend-store-uri", uri]
    for title, line in lines.items():
        if not title.startswith("browse"):
            assert parsed(line)["uri"] == uri
            assert parsed(line)["model"] == "our models"
    assert "make it the champion all the same" in lines or promoted


def test_in_the_note_of_a_sweep(study: Path) -> None:
    config = built_sweep.config(study)
    (line,) = re.findall(r"`(cddpm [^`]+)`", leaderboard.note(config, []))
    assert parsed(line)["sweep"] == config.name


def test_for_what_waits(study: Path) -> None:
    (line,) = re.findall(r"`([^`]+)`", address.to_publish(3, study / "my outputs"))
    assert inside(parsed(line)["output_dir"], study) == study / "my outputs"
    done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    assert done.stdout.startswith("No sweep or evaluation in my outputs")
    assert address.sync_command(study / "outputs") == "cddpm registry sync"


def test_of_the_registry(study: Path) -> None:
    uri = file_uri(study / "mlflow.db")
    found = parsed(registry_command(uri, "our models", "restore", "7"))
    assert (found["ref"], found["uri"], found["model"]) == ("7", uri, "our models")
    usual = file_uri(study / "outputs" / "mlflow.db")
    assert registry_command(usual, "cddpm", "restore", "7") == "cddpm registry restore 7"


def test_to_calibrate_again() -> None:
    found = parsed(threshold_calibration._again(cast(Any, SimpleNamespace(healthy_false_positive_rate=0.0123))))
    assert found["fpr"] == 0.0123


def test_after_freeing_space(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache._print_freed(9, [], Policy(None, 1, False), cache._shown(study / "my outputs"), True, False)
    (line,) = re.findall(r"\((cddpm .*) shows", capsys.readouterr().out)
    assert inside(parsed(line)["output_dir"], study) == study / "my outputs"


def test_for_an_unknown_number() -> None:
    done = CliRunner().invoke(app, ["glossary", "nothing"])
    (line,) = re.findall(r"; (cddpm .*) lists all", str(done.exception))
    assert CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False).exit_code == 0


PARTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda part: "/" not in part and part not in (".", "..")
)


@pytest.mark.slow
@given(st.lists(PARTS, min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_any_path_comes_out_as_it_was(parts: list[str]) -> None:
    for place in (Path(*parts), Path("/data", *parts), Path.cwd().joinpath(*parts)):
        line = command("cddpm", "report", "--output-dir", place, "--scan", place)
        text = io.StringIO()
        Console(file=text, width=70).command(line)
        for shown in (line, text.getvalue().replace(" \\\n", " ")):
            _, _, _, one, _, other = shlex.split(shown)
            assert one == other
            assert not one.startswith(("-", "~"))
            assert Path(one).absolute() == place.absolute()


@functools.cache
def trees() -> dict[Path, ast.Module]:
    files = [*(ROOT / "cddpm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    sources = {file: file.read_text() for file in files}
    return {
        file: ast.parse(text)
        for file, text in sources.items()
        if "cddpm " in text or "command(" in text or "shlex" in text
    }


@pytest.mark.slow
def test_no_message_puts_a_command_together_by_hand() -> None:
    """A name in single quotes, without a value, is no command: 'cddpm predict --out'."""
    for file, tree in trees().items():
        for node in ast.walk(tree):
            elsewhere = file.name in ("words.py", "slurm.py")  # where words are joined, and where a script is written
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and not elsewhere:
                called = (node.value.id, node.attr)
                assert called not in (("shlex", "join"), ("shlex", "quote")), f"{file}: text.command joins words"
            if isinstance(node, ast.JoinedStr):
                words = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                assert not COMMAND.search(words), f"{file}:{node.lineno}: make it by text.command"


def _calls(name: str) -> set[str]:
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("cddpm.")
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    }


@pytest.mark.slow
def test_every_place_that_makes_a_command_is_in_this_file() -> None:
    known: dict[str, Callable[..., None]] = {
        "cli.importing": test_after_an_import,
        "cli.registry.calibration": test_after_a_calibration,
        "search.report": test_after_a_sweep,
        "search.leaderboard": test_in_the_note_of_a_sweep,
        "tracking.address": test_of_the_registry,
        "predict.threshold_calibration": test_to_calibrate_again,
        "cli.cache": test_after_freeing_space,
        "cli.glossary": test_for_an_unknown_number,
    }
    slurm = {"launch.sweep", "cluster.slurm"}  # its own commands: tests/cluster/test_slurm_job.py
    assert _calls("command") == set(known) | slurm
