"""Split files in the published form, read with nothing of this project: what its readers are compared with."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

FOLDS = range(5)
_SPLIT = re.compile(r"_(?:train|val|test)(?:_fold\d)?$")


class PlainTables:
    """Subjects of each file by its name without the ending, in order and as often as they stand there."""

    def __init__(self, root: Path) -> None:
        self.rows = {
            path.stem: _read(path) for path in sorted((root / "splits").glob("*.csv")) if _SPLIT.search(path.stem)
        }
        with (root / "splits" / "avail_t2.csv").open(newline="") as stream:
            self.with_t2 = {_subject(row[-1]) for row in list(csv.reader(stream))[1:]}

    def __getitem__(self, name: str) -> list[str]:
        return [_subject(row["img_name"]) for row in self.rows[name]]

    def used(self) -> Iterator[list[str]]:
        """The files that the default settings read."""
        for name in self.rows:
            if name.startswith(("IXI_", "Brats21_", "MSLUB_")):
                yield self[name]

    def held_out(self) -> Iterator[tuple[str, set[str]]]:
        """Of every healthy table of training or validation: the subjects that must not be in it."""
        test = set(self["IXI_test"])
        for fold in FOLDS:
            yield f"IXI_train_fold{fold}", test | set(self[f"IXI_val_fold{fold}"])
            yield f"IXI_val_fold{fold}", test

    def leaks(self) -> int:
        """Subjects in a table that must not be there, added up over the tables."""
        return sum(len(set(self[name]) & held) for name, held in self.held_out())

    def in_two(self, fold: int) -> int:
        """Subjects in more than one of a fold's three splits."""
        parts = [set(self[name]) for name in (f"IXI_train_fold{fold}", f"IXI_val_fold{fold}", "IXI_test")]
        return len({subject for subject in set.union(*parts) if sum(subject in part for part in parts) > 1})

    def clean(self, fold: int) -> tuple[int, int, int]:
        """How many subjects of training, validation and test are left once none is in two."""
        names = (f"IXI_train_fold{fold}", f"IXI_val_fold{fold}")
        held = dict(self.held_out())
        train, val = (len(set(self[name]) - held[name]) for name in names)
        return train, val, len(set(self["IXI_test"]))

    def validated_again(self) -> int:
        """Subjects that more than one fold validates on."""
        folds = [set(self[f"IXI_val_fold{fold}"]) for fold in FOLDS]
        return len({s for s in set.union(*folds) if sum(s in fold for fold in folds) > 1})

    def differing(self, column: str) -> set[str]:
        """``dataset/subject`` whose rows do not agree in ``column``."""
        values: dict[str, set[str]] = {}
        for name, rows in self.rows.items():
            for row in rows:
                values.setdefault(f"{_dataset(name)}/{_subject(row['img_name'])}", set()).add(row[column])
        return {key for key, found in values.items() if len(found) > 1}

    def scans(self) -> int:
        """Distinct images of all tables."""
        return len({row["img_path"] for rows in self.rows.values() for row in rows})


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _subject(name: str) -> str:
    return name.removesuffix(".nii.gz").removesuffix("_t1").removesuffix("_t2")


def _dataset(name: str) -> str:
    return _SPLIT.split(name)[0]
