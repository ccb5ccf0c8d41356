"""Every setting is read by code: a setting that nothing reads is a lie to the person who sets it.

The type checker looks at the package with a configuration from which all settings were taken out: what it then misses is
exactly what the code reads, section by section, not merely a name that occurs somewhere.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cddpm import config as configuration
from cddpm.config import (
    BenchmarkConfig,
    Choice,
    CohortConfig,
    Conditional,
    ExperimentConfig,
    Float,
    Integer,
    MethodConfig,
    ObjectiveConfig,
    Test,
    field_paths,
)
from cddpm.config.preparation import PreparationConfig

ROOT = Path(__file__).resolve().parents[2]
MISSED = re.compile(
    r'^(?P<file>[^:]+):\d+: error: .*?"(?P<owner>\w+)"(?: of "[^"]*")? has no attribute "(?P<name>\w+)"'
)
EXTRA = "never_read_by_anything"


def by_type(test: Any) -> Any:
    """A whole run of the type checker: at night."""
    return pytest.mark.nightly(pytest.mark.slow(pytest.mark.timeout(600)(test)))


FILES = sorted(Path(configuration.__file__).parent.glob("*.py"))


@functools.cache
def sections() -> dict[str, ast.ClassDef]:
    """The configuration's classes by name."""
    trees = [ast.parse(file.read_text()) for file in FILES]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def is_setting(node: ast.stmt) -> bool:
    """A field that is no section itself."""
    return isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config")


def is_property(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(ast.unparse(mark) == "property" for mark in node.decorator_list)


def bared(file: Path) -> str:
    """A file of the configuration without settings and properties."""
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            kept = [part for part in node.body if not is_setting(part) and not is_property(part)]
            node.body = kept or [ast.Pass()]
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def missed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """(section, setting or property) that code outside of the configuration reads."""
    folder = tmp_path_factory.mktemp("types")
    shadow = []
    for file in FILES:
        (folder / file.name).write_text(bared(file))
        shadow += ["--shadow-file", str(file.relative_to(ROOT)), str(folder / file.name)]
    cache = ROOT / ".mypy_cache"
    if cache.is_dir():
        shutil.copytree(cache, folder / "cache")
    options = ["--cache-dir", str(folder / "cache"), "--no-error-summary", "--show-absolute-path", "--no-pretty"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *shadow], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    matches = [MISSED.match(line) for line in done.stdout.splitlines()]
    outside = [m for m in matches if m and Path(m["file"]).parent != FILES[0].parent]
    return {(owner, m["name"]) for m in outside for owner in with_bases(m["owner"])}


def with_bases(section: str) -> Iterator[str]:
    """A class and those that it extends: what is read of it may be declared there."""
    yield section
    for base in sections()[section].bases if section in sections() else ():
        yield from with_bases(ast.unparse(base))


def read_by_property(section: str) -> dict[str, set[str]]:
    """What each property of ``section`` reads of it."""
    properties = [node for node in sections()[section].body if isinstance(node, ast.FunctionDef) and is_property(node)]
    return {
        node.name: {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
        }
        for node in properties
    }


def read_in_other_sections(section: str) -> dict[str, set[tuple[str, str]]]:
    """What each property of ``section`` reads of a section that it holds: ``self.search.datasets``."""
    held = {
        ast.unparse(part.target): ast.unparse(part.annotation)
        for name in with_bases(section)
        if name in sections()
        for part in sections()[name].body
        if isinstance(part, ast.AnnAssign)
    }
    properties = [node for node in sections()[section].body if isinstance(node, ast.FunctionDef) and is_property(node)]
    return {
        node.name: {
            (held.get(part.value.attr, ""), part.attr)
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute)
            and isinstance(part.value, ast.Attribute)
            and ast.unparse(part.value.value) == "self"
        }
        for node in properties
    }


def unread(missed: set[tuple[str, str]], declared: dict[str, set[str]]) -> list[str]:
    """Settings that no code reads, neither itself nor through a property that is read."""
    found = set(missed)
    for section in declared:
        through = read_by_property(section)
        grown = {name for owner, name in found if owner == section}
        while True:
            more = set().union(*(through.get(name, set()) for name in grown)) - grown
            if not more:
                break
            grown |= more
        found |= {(section, name) for name in grown}
        found |= set().union(*(pairs for name, pairs in read_in_other_sections(section).items() if name in grown))
    return sorted(
        f"{section}.{name}" for section, names in declared.items() for name in names if (section, name) not in found
    )


def declared() -> dict[str, set[str]]:
    """Settings by section."""
    return {
        name: {ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign) and is_setting(part)}
        for name, node in sections().items()
    }


@pytest.mark.slow
def test_every_setting_has_a_name_that_is_read() -> None:
    """What a look at the source finds at once: no code outside of the configuration reads anything of that name."""
    others = [file for file in (ROOT / "cddpm").rglob("*.py") if file not in FILES] + sorted(
        (ROOT / "launch").glob("*.py")
    )
    nodes = [node for file in others for node in ast.walk(ast.parse(file.read_text()))]
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert EXTRA not in names
    assert unread({(section, name) for section in sections() for name in names}, declared()) == []


@by_type
def test_every_setting_is_read_by_code_outside_of_the_configuration(missed: set[tuple[str, str]]) -> None:
    assert unread(missed, declared()) == []


@by_type
@pytest.mark.parametrize("section", ["TrainingConfig", "DataConfig", "ExperimentConfig"])
def test_a_setting_that_nothing_reads_is_found(missed: set[tuple[str, str]], section: str) -> None:
    settings = declared()
    settings[section].add(EXTRA)
    assert f"{section}.{EXTRA}" in unread(missed, settings)


@by_type
def test_a_name_that_is_read_of_another_section_does_not_count(missed: set[tuple[str, str]]) -> None:
    assert ("TrainingConfig", "images") in missed
    settings = declared()
    settings["ScoringConfig"].add("images")
    assert "ScoringConfig.images" in unread(missed, settings)


def test_all_settings_are_looked_at() -> None:
    """Both ways to list the settings agree: by dotted path, and by section."""
    plans = (ExperimentConfig, BenchmarkConfig, CohortConfig, MethodConfig, PreparationConfig)
    names = {path.rsplit(".", 1)[-1] for plan in plans for path in field_paths(plan)}
    inner = (Float, Integer, Choice, Conditional, Test, ObjectiveConfig)  # parts of a setting, without a dotted path
    listed = set().union(*(fields for name, fields in declared().items() if name not in {c.__name__ for c in inner}))
    assert names == listed
