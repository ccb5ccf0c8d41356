"""Tables as spreadsheets save them: CSV with commas, semicolons (where the comma is for decimals) or tabs, UTF-8 or UTF-16.

The separator is the one that tells the known columns of the header apart, or that a first line ``sep=;`` names.
"""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class SheetError(DataError):
    """A file that is no table: what was ``found`` in ``path``, what is ``allowed``."""

    def __init__(self, path: str, found: str, allowed: str) -> None:
        super().__init__(path, found, allowed)
        self.path, self.found, self.allowed = path, found, allowed

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.allowed}"


@dataclass(frozen=True)
class Sheet:
    """A table with a header. Each record: (``file.csv:line``, text by column), None in it as ``csv.DictReader`` has it."""

    columns: tuple[str, ...]
    records: tuple[tuple[str, dict[str | Any, str | Any]], ...]
    separator: str

    def without(self, missing: Sequence[str]) -> str:
        """One sentence: these columns are not there, those are."""
        wanted = ", ".join(f"'{name}'" for name in missing)
        shown = ", ".join(f"'{name}'" for name in self.columns if name) or "nothing"
        return f"no column {wanted} (there are {shown}, separated by {SEPARATORS[self.separator]})"


def read_sheet(path: Path, known: Sequence[str]) -> Sheet:
    """Read a table of which the columns ``known`` are expected. Raises ``SheetError``."""
    text = text_of(path)
    separator = _separator(text, known)
    rows = list(_rows(path, text, separator))
    columns = tuple(cell.strip() for cell in rows[0][1]) if rows else ()
    records = tuple((source, _record(columns, cells)) for source, cells in rows[1:] if any(c.strip() for c in cells))
    return Sheet(columns, records, separator)


def read_rows(path: Path, known: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Every row, the header too: (``file.csv:line``, cells). Raises ``SheetError``."""
    text = text_of(path)
    return list(_rows(path, text, _separator(text, known)))


def text_of(path: Path) -> str:
    """The text of a table without a byte order mark. Raises ``SheetError``."""
    try:
        raw = path.read_bytes()
        return raw.decode("utf-16" if raw.startswith(_UTF16) else "utf-8-sig")
    except OSError as error:
        raise SheetError(str(path), f"cannot be read ({error.strerror})", "a CSV table is needed") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        found = f"cannot be read as text (byte 0x{byte:02x} at {error.start} is no {error.encoding.upper()})"
        raise SheetError(str(path), found, "save it as CSV in UTF-8 or UTF-16") from None


def _separator(text: str, known: Sequence[str]) -> str:
    first = next(iter(text.splitlines()), "")
    if first[:4].lower() == "sep=" and first[4:] in SEPARATORS:
        return first[4:]

    def told_apart(separator: str) -> int:
        header = first.split(separator)
        return len({cell.strip(' "') for cell in header} & set(known))

    return max(SEPARATORS, key=told_apart)  # of equal ones the comma


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for cells in reader:
            named = reader.line_num == 1 and len(cells) and cells[0].lower().startswith("sep=")
            if cells and not named:
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise SheetError(f"{path}:{reader.line_num}", f"cannot be read ({error})", "a CSV table is needed") from None


def _record(columns: Sequence[str], cells: Sequence[str]) -> dict[str | Any, str | Any]:
    record: dict[str | Any, str | Any] = {**dict.fromkeys(columns), **dict(zip(columns, cells, strict=False))}
    more = " ".join(cells[len(columns) :])
    return {**record, None: more} if len(cells) > len(columns) else record
