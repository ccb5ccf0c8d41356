"""The README of tracking tells what each tag and metric means, in the program's words; nothing but names.py spells them.

``python tests/tracking/test_meanings.py`` writes its tables.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cddpm.tracking import names
from cddpm.training import diffusion, preview

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "cddpm" / "tracking" / "README.md"
SPELLED = {
    "cddpm/training/diffusion.py": {names.VAL_LOSS},  # stand below names.py; tests tie them to it
    "cddpm/training/preview.py": {names.MONITOR_OBJECTIVE},
}
KNOWN = {name.removesuffix(".*") for name in names.TAGS} | {name for name in names.CURVES if "/" in name}


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def tables() -> dict[str, str]:
    tags = [(f"`{name}`", meaning) for name, meaning in names.TAGS.items()]
    metrics = [(f"`{name}`", meaning) for name, meaning in names.CURVES.items()]
    return {
        "metrics": table(("metric", "meaning"), metrics),
        "tags": table(("tag", "meaning"), tags),
    }


@pytest.mark.parametrize("name", sorted(tables()))
def test_readme_tells_every_meaning(name: str) -> None:
    told = tables()[name] in README.read_text()
    assert told, f"{README}: its table of {name} is not the program's: python {Path(__file__).relative_to(ROOT)}"


def test_every_tag_and_metric_has_a_meaning() -> None:
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    told = {name.removesuffix(".*") for name in (*names.TAGS, *names.CURVES)}
    own = {value for value in constants if value.startswith("cddpm.") or "/" in value}
    assert own <= told
    assert names.OBJECTIVE in told


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of each text that is no docstring."""
    tree = ast.parse(source)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def spellings(source: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in strings(source) if _is_name(text)]


def _is_name(text: str) -> bool:
    return text in KNOWN or any(text.startswith(f"{tag}.") for tag in KNOWN if tag.startswith("cddpm."))


@pytest.mark.slow
def test_nothing_else_spells_a_name() -> None:
    found = []
    for file in sorted([*(ROOT / "cddpm").rglob("*.py"), *(ROOT / "launch").glob("*.py")]):
        path = str(file.relative_to(ROOT))
        if path != "cddpm/tracking/names.py":
            allowed = SPELLED.get(path, set())
            found += [f"{path}:{line}: '{s}'" for line, s in spellings(file.read_text()) if s not in allowed]
    assert not found, "take these from cddpm.tracking.names:\n" + "\n".join(found)
    assert diffusion.LOSS == names.VAL_LOSS
    assert preview.OBJECTIVE == names.MONITOR_OBJECTIVE


@pytest.mark.parametrize(
    "line", ['x = "cddpm.kind"', 'f("val/loss")', 'y = f"cddpm.made_by.{stage}"', 'z = ["cddpm.fingerprint.store"]']
)
def test_a_spelling_is_found(line: str) -> None:
    assert spellings(line)


@pytest.mark.parametrize("line", ['"""cddpm.kind"""', "x = 'cddpm.tracking.runs'", 'y = "loss"', 'z = "objective"'])
def test_another_text_is_none(line: str) -> None:
    assert not spellings(line)


def write() -> None:
    text = README.read_text()
    for new in tables().values():
        head = new.splitlines()[0]
        (old,) = re.findall(rf"^{re.escape(head)}\n(?:\|.*\n)+", text, re.MULTILINE)
        text = text.replace(old, new + "\n")
    README.write_text(text)


if __name__ == "__main__":
    write()
