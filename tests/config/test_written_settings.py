"""What messages print can be written: every choice of every closed setting, and every setting that a message tells to set."""

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from cddpm.cli.shell import overrides
from cddpm.config import FIELDS, ExperimentConfig, load, setting, value_at
from cddpm.config.sections import takes
from cddpm.config.settings import annotation_at
from cddpm.data.pattern import DatasetPattern
from cddpm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(
    r"(?<![\w.])(" + "|".join(re.escape(p) for p in sorted(FIELDS, key=len, reverse=True)) + r")(: |=)(\[[^\]]*\]|\S+)"
)


def choices(annotation: Any) -> Iterator[Any]:
    """Every choice of every ``Literal`` in an annotation, in lists and sections too."""
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for field in annotation.model_fields.values():
            yield from choices(field.annotation)
    else:
        for part in typing.get_args(annotation):
            yield from choices(part)


EVERY = sorted(
    {repr(choice): choice for root in (ExperimentConfig, DatasetPattern) for choice in choices(root)}.items()
)
CLOSED = [
    (path, choice)
    for path in sorted(FIELDS)
    if takes(annotation := annotation_at(ExperimentConfig, path), str, int) and "Literal" in str(annotation)
    for choice in choices(annotation)
]


def test_choices_are_found() -> None:
    assert {"none", "ddpm", "stored", "nsga-ii", 26, "seconds_per_volume", "maximize"} <= {
        choice for _, choice in EVERY
    }
    assert ("reconstruction.guide", "none") in CLOSED
    assert ("search.scoring.sampler", "cma-es") in CLOSED


@pytest.mark.slow
@pytest.mark.parametrize("choice", [choice for _, choice in EVERY], ids=[name for name, _ in EVERY])
@pytest.mark.parametrize("form", ["x: {}", "x: {} # comment", "{{x: {}}}", "x: [{}, l1]", "x: {!r}"])
def test_yaml_reads_every_choice_as_it_is_printed(choice: Any, form: str) -> None:
    found = yaml.safe_load(form.format(choice))["x"]
    assert (found[0] if isinstance(found, list) else found) == choice
    assert type(found[0] if isinstance(found, list) else found) is type(choice)


def loaded(path: str, folder: Path, text: str, by: str) -> ExperimentConfig | None:
    """The configuration with one setting written in a file or on the command line; None if another setting misses it."""
    file = folder / "my.yaml"
    *sections, name = path.split(".")
    opening = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    file.write_text("name: one\n" + (f"{opening}{'  ' * len(sections)}{name}: {text}\n" if by == "file" else ""))
    try:
        return load(file, overrides({}, [] if by == "file" else [f"{path}={text}"]))
    except ConfigError as error:
        if f"{path}: Input" in str(error):
            pytest.fail(f"{text!r} by {by}: {error}")
        return None


@pytest.mark.slow
@pytest.mark.parametrize("by", ["file", "--set"])
@pytest.mark.parametrize(("path", "choice"), CLOSED, ids=[f"{path}={choice}" for path, choice in CLOSED])
def test_every_choice_is_taken_in_a_file_and_by_set(path: str, choice: Any, by: str, tmp_path: Path) -> None:
    config = loaded(path, tmp_path, str(choice), by)
    assert config is None or value_at(config, path) == choice


def test_nearly_every_choice_needs_no_other_setting(tmp_path: Path) -> None:
    """So that the law above does not hold for want of anything that loads."""
    alone = [loaded(path, tmp_path, str(choice), "--set") for path, choice in CLOSED]
    assert alone.count(None) <= len(alone) // 10


@pytest.mark.parametrize("path", sorted({path for path, _ in CLOSED}))
def test_what_the_message_of_a_refusal_prints_is_taken(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path), overrides({}, [f"{path}=no-such-choice"]))
    printed = re.search(rf"{path}: Input should be (.*) \(found 'no-such-choice'\)", str(refused.value))
    assert printed is not None
    texts = re.findall(r"'[^']*'|\d+", printed[1])
    assert len(texts) == sum(one == path for one, _ in CLOSED)
    for text in texts:
        for by in ("file", "--set"):
            loaded(path, tmp_path, text, by)


def written(folder: Path, text: str = "name: one\n") -> Path:
    (folder / "my.yaml").write_text(text)
    return folder / "my.yaml"


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_whatever_may_be_empty_is_emptied_so(text: str, tmp_path: Path) -> None:
    optional = [path for path in sorted(FIELDS) if takes(annotation_at(ExperimentConfig, path), type(None))]
    assert {"data.data_dir", "tracking.uri", "scoring.erosion_divisor", "training.gradient_clip"} <= set(optional)
    for path in optional:
        for by in ("file", "--set"):
            config = loaded(path, tmp_path, text, by)
            assert config is not None
            assert value_at(config, path) is None


# text that YAML takes for something else


TEXTS = [path for path in sorted(FIELDS) if takes(annotation_at(ExperimentConfig, path), str, Path)]
WORDS = st.one_of(
    st.sampled_from(["no", "Off", "on", "yes", "null", "true", "2024", "0123456701234567", "1e3", "1.5", "2024-01-02"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
)


@pytest.mark.slow
@given(st.sampled_from(TEXTS), WORDS)
def test_a_setting_of_text_is_given_text_by_set(path: str, word: str) -> None:
    empty = word in ("null", "Null", "NULL", "~") and takes(annotation_at(ExperimentConfig, path), type(None))
    assert setting(path, word, "here") == (None if empty else word)


def test_a_name_of_digits_is_a_name(tmp_path: Path) -> None:
    config = load(written(tmp_path), overrides({}, ["training.artifact=0123456701234567", "output_dir=2024"]))
    assert config.training.artifact == "0123456701234567"
    assert config.output_dir.name == "2024"


def test_in_a_file_such_text_is_refused_with_the_way_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name: .* \(found 2024; text that YAML reads otherwise needs quotes\)"):
        load(written(tmp_path, "name: 2024\n"))
    with pytest.raises(
        ConfigError, match=r"guide: Input should be 'none' or 'ddpm' \(found None; text .* needs quotes"
    ):
        load(written(tmp_path, "name: one\nreconstruction: {guide: null}\n"))
    with pytest.raises(ConfigError, match=r"unhealthy\.0: .* \(found False; text .* needs quotes\)"):
        load(written(tmp_path, "name: one\ndata: {unhealthy: [no]}\n"))
    with pytest.raises(ConfigError, match=r"scoring\.median_kernel: Input should be 1, 3, 5 or 7 \(found None\)$"):
        load(written(tmp_path, "name: one\nscoring: {median_kernel: null}\n"))
    assert load(written(tmp_path, "name: '2024'\n")).name == "2024"


def test_a_set_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set data\.unhealthy=\[one: not readable as YAML"):
        overrides({}, ["data.unhealthy=[one"])


# what messages, docstrings and pages tell people to write


def texts(source: str) -> Iterator[str]:
    """Every text in a module; what a formatted one fills in is a zero character."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.JoinedStr, ast.Constant))]
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def told(text: str) -> Iterator[tuple[str, str]]:
    """(setting, value) that ``text`` names as something to write. One at its beginning is what a fault is about."""
    for found in NAMED.finditer(text):
        path, _, value = found.groups()
        value = value if value.startswith("[") and value.endswith("]") else re.split(r"[`,;)}\]]", value)[0].rstrip(".")
        if found.start() and "." in path and value and not set(value) & set("\0{"):
            yield path, value


def of_the_program() -> Iterator[tuple[str, str, str]]:
    for file in [*(ROOT / "cddpm").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for text in texts(file.read_text()):
            yield from ((file.name, *one) for one in told(text))
    pages = [
        ROOT / "README.md",
        *(page for name in ("cddpm", "launch", "tune_configs") for page in (ROOT / name).rglob("*.md")),
    ]
    for page in pages:
        spans = re.findall(r"`[^`\n]+`", page.read_text())
        yield from ((page.name, *one) for span in spans for one in told(span))


TOLD = sorted(set(of_the_program()))


def test_advice_is_found() -> None:
    settings = {(path, value) for _, path, value in TOLD}
    assert {("reconstruction.guide", "none"), ("reconstruction.guide", "ddpm"), ("data.splits", "clean")} <= settings
    assert list(told("set reconstruction.guide: null")) == [("reconstruction.guide", "null")]


@pytest.mark.parametrize(("page", "path", "value"), TOLD)
def test_what_is_told_to_be_set_is_taken(page: str, path: str, value: str) -> None:
    try:
        TypeAdapter(annotation_at(ExperimentConfig, path)).validate_python(yaml.safe_load(value))
    except ValidationError as error:
        pytest.fail(f"{page} says {path}: {value}, which is refused: {error}")
