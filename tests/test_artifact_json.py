"""Records: read as the form that was written, or refused with the reason and a remedy."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from cddpm import artifact
from cddpm.errors import SearchError


@dataclass(frozen=True)
class Found:
    """A record, as sweeps keep them."""

    name: str
    seconds: float
    made: tuple[str, ...] = ()


def read(path: Path, text: str | None = None, form: Any = Found) -> Any:
    if text is not None:
        path.write_text(text)
    return artifact.read_json(path, form, "a record", "delete it", SearchError)


def test_a_file_is_read_as_the_form_that_was_written(tmp_path: Path) -> None:
    record = Found("a", 1.5, ("x", "y"))
    artifact.write_json(tmp_path / "a.json", asdict(record))
    assert read(tmp_path / "a.json") == record
    assert read(tmp_path / "b.json", "[1, 2]", list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", r"not a record \(Expecting"),
        ("", r"not a record \(Expecting"),
        ("[]", r"not a record \(Input should be a dictionary"),
        ('{"name": "a"}', r"not a record \(seconds: Field required"),
        ('{"name": "a", "seconds": "long"}', r"not a record \(seconds: Input should be a valid number"),
        ('{"name": "a", "seconds": 1, "minutes": 2, "hours": 1}', r"not a record \(unknown: hours, minutes"),
    ],
)
def test_what_has_another_form_is_refused_with_the_reason_and_a_remedy(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SearchError, match=rf"a\.json: {why}.*\); delete it$"):
        read(tmp_path / "a.json", text)


def test_what_is_missing_or_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"a\.json: missing; delete it$"):
        read(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SearchError, match=r"folder: cannot be read \(Is a directory\)$"):
        read(tmp_path / "folder")
