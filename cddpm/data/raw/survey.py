"""What there is below RAW_DIR, whatever kind of tree it is."""

from collections.abc import Sequence
from pathlib import Path

from cddpm.data.raw import bids, custom, official
from cddpm.data.raw.tree import Found
from cddpm.errors import ConfigError, DataError
from cddpm.text.likeness import did_you_mean

CUSTOM = "custom"
DATASETS = (*official.DOWNLOADS, CUSTOM)


def survey(
    dataset: str,
    root: Path,
    modalities: Sequence[str] = (),
    layout: Path | None = None,
    name: str = "Custom",
) -> list[Found]:
    """Subjects and oddities of an official download, of the data sets that the YAML file ``layout`` names, or of a BIDS folder.

    Raises ``ConfigError`` for an unknown ``dataset``, modality or layout, ``DataError`` where RAW_DIR is not there.
    """
    known = {one.lower(): one for one in DATASETS}
    chosen = known.get(dataset.lower())
    if chosen is None:
        near = did_you_mean(dataset, DATASETS)
        raise ConfigError(f"DATASET {dataset}: allowed are {', '.join(DATASETS)}{near}")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; RAW_DIR is the folder of the download")
    if chosen != CUSTOM:
        if layout is not None:
            raise ConfigError(f"--layout: for DATASET {CUSTOM} alone; {chosen} has a layout of its own")
        return [official.find(official.DOWNLOADS[chosen], root, _allowed(chosen, modalities))]
    if layout is not None:
        return custom.find(custom.read_layout(layout), layout, root, modalities)
    if bids.is_bids(root):
        return [bids.find(root, name, modalities)]
    raise DataError(
        f"{root}: no BIDS folder (dataset_description.json, sub-*/anat); say by --layout FILE where images, masks and "
        "segmentations are"
    )


def _allowed(dataset: str, modalities: Sequence[str]) -> Sequence[str]:
    there = official.DOWNLOADS[dataset].kinds.values()
    known = sorted({kind for kind in there if kind not in (official.MASK, official.SEGMENTATION)})
    for modality in modalities:
        if modality not in known:
            raise ConfigError(f"--modality {modality}: {dataset} has {', '.join(known)}{did_you_mean(modality, known)}")
    return modalities
