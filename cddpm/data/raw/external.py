"""Brain extraction by programs that live in environments of their own: HD-BET and SynthStrip. They get and give files."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cddpm.artifact import file_digest, storage_errors
from cddpm.data.raw.head import Grid
from cddpm.errors import DataError
from cddpm.text.numbers import extent

Kind = Literal["hd-bet", "synthstrip"]
Device = Literal["cpu", "cuda"]
NAMES: dict[Kind, tuple[str, ...]] = {
    "hd-bet": ("hd-bet",),
    "synthstrip": ("mri_synthstrip", "synthstrip-docker", "synthstrip-singularity"),
}
"""What the programs are called on PATH, the first that is there."""
PATIENCE_SECONDS = 3600.0
VERSION_SECONDS = 120.0
LAST_LINES = 6
"""Of what a program said, in the error that tells of its end."""


@dataclass(frozen=True)
class Program:
    """A program that makes brain masks. ``version``: as it says itself, else the digest of its file."""

    kind: Kind
    path: Path
    version: str


def on_path(kind: Kind) -> Program | None:
    """The program of this kind on PATH; None if there is none."""
    found = next((place for name in NAMES[kind] if (place := shutil.which(name))), None)
    return None if found is None else Program(kind, Path(found), _version(Path(found)))


def program(kind: Kind, path: Path | None) -> Program:
    """The program in the file ``path``, or on PATH without one. Raises ``DataError`` when it is not there."""
    if path is None:
        found = on_path(kind)
        if found is None:
            raise DataError(
                f"extractor {kind}: none of {', '.join(NAMES[kind])} is on PATH; install it in an environment of its own and "
                "name its file in extractor_program, or choose another extractor"
            )
        return found
    if not path.is_file() or not os.access(path, os.X_OK):
        raise DataError(f"{path}: no file that can be run; extractor_program names the program of {kind} itself")
    return Program(kind, path, _version(path))


def _version(path: Path) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        done = None
    said = done.stdout.strip().splitlines() if done is not None and done.returncode == 0 else []
    return said[0][:200] if said else f"sha256 {file_digest(path)[:16]}"


def extract(program: Program, image: Grid, device: Device) -> Grid:
    """The program's brain mask, uint8 {0, 1}, on the grid of ``image``.

    Raises ``DataError`` when the program fails, takes over an hour, or leaves no mask of this shape.
    """
    from cddpm.data.volume import read_mask, write_volume  # nibabel

    with tempfile.TemporaryDirectory(prefix="cddpm-extract-") as folder:
        given, made = Path(folder) / "head.nii.gz", Path(folder) / "brain.nii.gz"
        with storage_errors(given):
            write_volume(given, image.data, image.affine)
        mask_file = Path(folder) / ("brain_bet.nii.gz" if program.kind == "hd-bet" else "brain_mask.nii.gz")
        _run(program, _arguments(program.kind, given, made, mask_file, device))
        if not mask_file.is_file():
            raise DataError(
                f"{program.path}: ended well, but left no mask {mask_file.name}; is it {_what(program.kind)}?"
            )
        mask = read_mask(mask_file).data
    if mask.shape != image.data.shape:
        raise DataError(
            f"{program.path}: its mask has {extent(mask.shape)} voxels, the scan {extent(image.data.shape)}; both must lie on "
            "one grid"
        )
    return Grid(mask, image.affine)


def _what(kind: Kind) -> str:
    return "HD-BET of version 2" if kind == "hd-bet" else "SynthStrip"


def _arguments(kind: Kind, given: Path, made: Path, mask_file: Path, device: Device) -> list[str]:
    match kind:
        case "hd-bet":  # the mask's name follows from that of the brain, which is not written
            fast = ["--disable_tta"] if device == "cpu" else []
            return ["-i", str(given), "-o", str(made), "-device", device, "--save_bet_mask", "--no_bet_image", *fast]
        case "synthstrip":
            return ["-i", str(given), "-m", str(mask_file), *(["-g"] if device == "cuda" else [])]
    raise AssertionError(kind)


def _run(program: Program, arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            [program.path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{program.path}: not done after {PATIENCE_SECONDS / 60:.0f} minutes and stopped; try it by hand, or choose another "
            "extractor"
        ) from None
    except OSError as error:
        raise DataError(f"{program.path}: cannot be started ({error.strerror}); try it by hand") from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        told = " | ".join(" ".join(line.split())[:200] for line in said) or "nothing"
        raise DataError(
            f"{program.path}: ended with code {done.returncode} and said: {told}; try it by hand (its weights are its own to "
            "fetch), or choose another extractor"
        )
