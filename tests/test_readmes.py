"""Every README: commands are those of the real command line, settings exist, links and files are there, examples are read."""

import itertools
import re
import runpy
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from readme_pages import FOLDERS, ROOT, SHELL, Command, Page, pages, read

from cddpm import errors
from cddpm.cli import app, registry
from cddpm.cli.shell import overrides
from cddpm.config import FIELDS, BenchmarkConfig, DataConfig, field_paths, load, parse
from cddpm.data.layout import scan_layout
from cddpm.data.pattern import Patterns
from cddpm.data.raw.custom import RawLayout
from cddpm.tracking import promotion, query

PAGES = pages()
FOREIGN = {"mlflow": ("mlflow.cli", "cli"), "ray": ("ray.scripts.scripts", "cli")}
LANGUAGES = (*SHELL, "console", "text", "yaml", "csv", "python")
QUICKSTART = ("python", "launch/sweep.py", "--config", "tune_configs/quickstart.yaml")
EXECUTED = {"cddpm/tracking/README.md": 1, "cddpm/predict/README.md": 1}
"""Python blocks that tests run: tests/search/test_lab.py, tests/predict/test_pyfunc.py."""
TOP_LINES, TOP_BYTES = 220, 13_000
"""The door stays a door."""
_PATH = re.compile(r"[\w./*-]+\.(?:py|sh|yaml|md|toml|lock|npz)")
_SETTING = re.compile(r"((?:[a-z_]+\.)+[a-z_]+)(?:[: ].*)?")
SECTIONS = {path.split(".")[0] for path in FIELDS if "." in path}
OTHER_NAMES = {"study.yaml", "cddpm.lock"}
"""A user's file; a tag."""


def fault(command: Command) -> str | None:
    """What is wrong with a command; None if the real command line takes it."""
    program, *words = command.words
    try:
        if program == "cddpm":
            _parsed(typer.main.get_command(app), words, command.whole)
        elif program == "python":
            _launched(words[0], words[1:], command.whole)
        elif program == "bash":
            _script(words[0], words[1:], command.whole)
        elif program == "pytest":
            _tested(words)
        elif program in FOREIGN:
            module, name = FOREIGN[program]
            _parsed(getattr(__import__(module, fromlist=[name]), name), words, command.whole)
        elif command.words != (".", ".venv/bin/activate"):
            return f"no rule for '{program}': teach this test how to look at it"
    except (errors.CddpmError, LookupError, AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - click's, of which three copies are in use
        if type(error).__name__ == "Exit":
            return None
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return None


def _parsed(command: Any, words: list[str], whole: bool) -> dict[str, Any]:
    """Values of the options of the subcommand that ``words`` name. Raises what the command line raises."""
    path: tuple[str, ...] = ()
    while hasattr(command, "commands") and words:
        path, command, words = (*path, words[0]), _subcommand(command, (*path, words[0])), words[1:]
        if command is None:
            return {}
    try:
        values: dict[str, Any] = command.make_context(path[-1] if path else "", list(words)).params
    except Exception as error:
        if not whole and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
            return {}
        raise
    for text in (values.get("where"), *(values.get("require") or ())):
        if text:
            query.parse(text, "--where") if text == values.get("where") else promotion.required(text, False)
    return values


def _subcommand(group: Any, path: tuple[str, ...]) -> Any:
    found = group.commands.get(path[-1]) or group.get_command(None, path[-1])  # an alias
    if found is None:
        raise LookupError(f"no command '{' '.join(path)}'; there are {', '.join(group.commands)}")
    return found


def _launched(script: str, words: list[str], whole: bool) -> None:
    """A program of launch/ (or a file of tests/): its options, and the configuration that they make."""
    found = runpy.run_path(str(ROOT / script), run_name="readme")
    program = found.get("app")
    if program is None:
        program = typer.Typer()
        program.command()(found["main"])
    values = _parsed(typer.main.get_command(program), words, whole)
    if "config" in values and "setting" in values:
        given = overrides({}, values["setting"] or [])
        path = ROOT / values["config"]
        if "methods" in yaml.safe_load(path.read_text()):
            assert not set(given) - set(field_paths(BenchmarkConfig)) - FIELDS
        else:
            load(path, given)


def _script(script: str, words: list[str], whole: bool) -> None:
    text = (ROOT / script).read_text()
    if script == "launch/quickstart.sh":
        assert f'{" ".join(QUICKSTART[1:])} "$@"' in text
        _launched(QUICKSTART[1], [*QUICKSTART[2:], *words], whole)
        return
    if script == "launch/test.sh":
        scopes = set(re.findall(r"\w+", re.findall(r"^    ([\w |]+)\) shift", text, re.MULTILINE)[0]))
        assert not words or words[0].startswith("-") or words[0] in scopes, f"{words[0]}: there are {scopes}"
        return
    unknown = [word for word in words if word.startswith("--") and word not in text]
    assert not unknown, f"{script} knows no {unknown}"


def _tested(words: list[str]) -> None:
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    named = [after for word, after in itertools.pairwise(words) if word == "-m"]
    assert set(named) <= {mark.split(":")[0] for mark in marks}
    missing = [word for word in words if word.startswith("tests/") and not (ROOT / word.split("::")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Page) -> None:
    unknown = [f"```{language}\n{content[:60]}" for language, content in page.fences if language not in LANGUAGES]
    assert not unknown, f"{page.name}: allowed are {', '.join(LANGUAGES)}\n" + "\n".join(unknown)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [f"{c}\n  {why}" for c in page.commands() if c.words[0] not in FOREIGN and (why := fault(c))]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, at its import
def test_every_command_of_others_is_one() -> None:
    commands = [c for page in PAGES for c in page.commands() if c.words[0] in FOREIGN]
    assert {c.words[0] for c in commands} == set(FOREIGN)
    faults = [f"{c}\n  {why}" for c in commands if (why := fault(c))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        "cddpm registry liist",
        "cddpm registry promote 2 --alais champion",
        "cddpm predict scan.nii.gz",
        "cddpm registry best --where 'metrics.dice >>> 1'",
        "python launch/sweep.py --config tune_configs/absent.yaml",
        "python launch/sweep.py --config tune_configs/joint.yaml --set training.image=5",
        "python launch/sweep.py --config tune_configs/joint.yaml --set training.images=-5",
        "python launch/absent.py",
        "bash launch/quickstart.sh --resumed",
        "bash launch/test.sh slow",
        "bash launch/mlflow_server.sh --authority",
        "pytest -m absent",
        "npm install",
    ],
)
def test_a_wrong_command_is_found(line: str, tmp_path: Path) -> None:
    (command,) = Page(ROOT / "README.md", f"```sh\n{line}\n```\n").commands()
    assert fault(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Page) -> None:
    assert not list(_broken(page))


def _broken(page: Page) -> Iterator[str]:
    for link in page.links:
        place, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = (page.path.parent / place).resolve() if place else page.path
        if not target.exists():
            yield f"{page.name}: {link}: no such file"
        elif target.is_dir() or not target.is_relative_to(ROOT):
            yield f"{page.name}: {link}: name a file of the project"
        elif anchor and anchor not in read(target).anchors:
            yield f"{page.name}: {link}: no such heading; there are {sorted(read(target).anchors)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Page) -> None:
    assert not list(_absent(page))


def _absent(page: Page) -> Iterator[str]:
    places = (page.path.parent, ROOT, ROOT / "launch", ROOT / "tune_configs")
    for span in page.plain_spans:
        named = _PATH.fullmatch(span) or (span.split("/")[0] in FOLDERS and " " not in span)
        if named and span not in OTHER_NAMES and not any([*place.glob(span)] for place in places):
            yield f"{page.name}: `{span}`: no such file"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_is_one(page: Page) -> None:
    assert not list(_unknown(page))


def _unknown(page: Page) -> Iterator[str]:
    known = FIELDS
    for span in page.spans:
        match = _SETTING.fullmatch(span)
        path = match[1] if match else ""
        if path.split(".")[0] not in SECTIONS or _PATH.fullmatch(span) or span.endswith((".safetensors", ".nii.gz")):
            continue
        if path not in known and not any(field.startswith(f"{path}.") for field in known):
            yield f"{page.name}: `{span}`: no such setting"


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("[x](absent.md)", _broken),
        ("[x](README.md#absent)", _broken),
        ("[x](cddpm)", _broken),
        ("`cddpm/absent.py`", _absent),
        ("`absent.yaml`", _absent),
        ("`training.image`", _unknown),
        ("`scoring.guide: 1`", _unknown),
    ],
)
def test_a_wrong_name_is_found(text: str, look: Callable[[Page], Iterator[str]]) -> None:
    assert len(list(look(Page(ROOT / "README.md", text)))) == 1


@pytest.mark.parametrize(
    ("page", "content"), [(p, c) for p in PAGES for c in p.blocks("yaml")], ids=lambda v: getattr(v, "name", "block")
)
def test_every_yaml_example_is_taken(page: Page, content: str) -> None:
    raw = yaml.safe_load(content)
    if any("images" in one for one in raw.get("datasets", {}).values()):
        RawLayout.model_validate(raw)
    elif "datasets" in raw:
        Patterns.model_validate(raw)
    else:
        parse({"name": "example", **raw}, page.name)


def test_the_table_of_data_sets_is_read(tmp_path: Path) -> None:
    (content,) = (c for page in PAGES for c in page.blocks("csv"))
    (tmp_path / "study.csv").write_text(content)
    data = DataConfig(table=tmp_path / "study.csv", healthy="Controls", unhealthy=("Tumours",), modality="t2")
    layout = scan_layout(data, tmp_path)
    assert not layout.findings
    assert len(layout.rows) == len(content.splitlines()) - 1


def test_every_python_example_is_run_by_a_test() -> None:
    found = {page.name: len(page.blocks("python")) for page in PAGES if page.blocks("python")}
    assert found == EXECUTED


def codes(page: str) -> set[int]:
    """Of its table of exit codes."""
    rows = re.search(r"^\| (?:Exit c|C)ode \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(ROOT / page).text, re.MULTILINE)
    assert rows
    return {int(row.split("|")[1]) for row in rows[1].splitlines()}


def test_exit_codes_are_those_of_the_program() -> None:
    own = {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    assert codes("launch/README.md") == {0, *own}
    assert codes("cddpm/tracking/README.md") == {int(n) for n in re.findall(r"\d+", registry.EXIT_CODES)}


def test_the_first_page_stays_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= TOP_LINES
    assert len(text.encode()) <= TOP_BYTES
