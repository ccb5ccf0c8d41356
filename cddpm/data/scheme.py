"""Which published division into validation and test a data set has, told by the numbers of its scans.

Of the 655 scans of ATLAS two divisions are in use: the paper's 175 and 480 (Behrendt et al. 2025, arXiv 2312.04215), and
66 and 589 in sibling projects of it. The 480 are among the 589, the other 109 are of the paper's validation: results on one
say nothing about the other, and the one's validation with the other's test tunes on what it tests.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Scheme:
    """A division of one data set: how many scans are for validation and for test."""

    name: str
    validation: int
    test: int

    def __str__(self) -> str:
        return f"{self.name} {self.validation} and {self.test}"


SCHEMES: dict[str, tuple[Scheme, ...]] = {
    "Brats21": (Scheme("published", 100, 1151),),
    "MSLUB": (Scheme("published", 10, 20),),
    "ATLAS_v2": (Scheme("published", 175, 480), Scheme("sibling", 66, 589)),
    "WMH": (Scheme("published", 15, 45),),
}
"""By data set, the published one first."""


@dataclass(frozen=True)
class Division:
    """Distinct subjects of an unhealthy data set in validation, in test and in both, as its tables have them."""

    dataset: str
    validation: int
    test: int
    shared: int = 0

    @property
    def scheme(self) -> Scheme | None:
        """The known scheme that has both numbers."""
        sizes = (self.validation, self.test)
        return next((s for s in self._known if (s.validation, s.test) == sizes and not self.shared), None)

    @property
    def mixed(self) -> tuple[Scheme, Scheme] | None:
        """The scheme that the validation is of, and the other one that the test is of."""
        validation = next((s for s in self._known if s.validation == self.validation), None)
        test = next((s for s in self._known if s.test == self.test), None)
        return (validation, test) if validation and test and validation != test else None

    @property
    def _known(self) -> tuple[Scheme, ...]:
        return SCHEMES.get(self.dataset, ())

    def __str__(self) -> str:
        """One line: the numbers, and whose they are."""
        others = "; ".join(str(scheme) for scheme in self._known if scheme != self.scheme)
        told = f"{self.dataset}: {self.validation} validation and {self.test} test scans"
        if self.shared:
            told += f", {self.shared} of them in both"
        if self.scheme:
            return f"{told}: the {self.scheme.name} splits" + (f" (not {others})" if others else "")
        return told + (f": no known splits ({others})" if self._known else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; ``scheme`` is its name or None."""
        return {**asdict(self), "scheme": self.scheme.name if self.scheme else None}


def both_of_one(dataset: str) -> str:
    """What is allowed where validation and test share scans: both tables of one scheme, where more than one is known."""
    known = SCHEMES.get(dataset, ())
    choice = f"; take both files from one division: {' or '.join(map(str, known))}" if len(known) > 1 else ""
    return f"a scan of an unhealthy data set is for validation or for test, never for both{choice}"
