"""What the numbers in a segmentation stand for, by data set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """Which labels of a segmentation are the anomaly, and which count neither way."""

    lesion: tuple[int, ...] | None = None
    """None: every label above 0 that is not ignored."""
    ignored: tuple[int, ...] = ()

    def __str__(self) -> str:
        lesion = "every other label" if self.lesion is None else _words(self.lesion)
        return f"lesion {lesion}, ignored {_words(self.ignored)}"

    def meaning(self, label: int) -> str:
        """``lesion``, ``ignored`` or ``unknown``."""
        if label in self.ignored:
            return "ignored"
        return "lesion" if self.lesion is None or label in self.lesion else "unknown"


PUBLISHED: dict[str, Labels] = {
    "Brats21": Labels(),
    "MSLUB": Labels((1,)),
    "ATLAS_v2": Labels((1,)),
    "WMH": Labels((1,), (2,)),
}
"""BraTS has several labels of one tumour; the second one of the WMH challenge is other pathology, to be ignored."""


def _words(labels: tuple[int, ...]) -> str:
    return ", ".join(map(str, labels)) or "none"
