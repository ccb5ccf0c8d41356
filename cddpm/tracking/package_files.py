"""The files of a model package, and whether they are the ones that were written. No weights are read, no PyTorch is needed.

What is in them, and who writes them: ``cddpm.tracking.package``.
"""

from pathlib import Path

from cddpm import artifact
from cddpm.errors import ArtifactError

KIND = "model"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PIPELINE = "pipeline.json"
FILES = frozenset({WEIGHTS, CONFIG, PIPELINE})


def verify_package(directory: Path) -> artifact.Manifest:
    """Compare the package's files with its manifest; the weights are not loaded. Raises ``ArtifactError``."""
    listed_files(directory)
    return artifact.verify(directory, KIND)


def listed_files(directory: Path) -> artifact.Manifest:
    """The package's manifest, if it lists what a package has; no file is read. Raises ``ArtifactError``."""
    manifest = artifact.read_manifest(directory, KIND)
    listed = set(manifest.files)
    if listed != FILES:
        raise ArtifactError(
            f"{directory / artifact.MANIFEST}: lists {', '.join(sorted(listed)) or 'nothing'}; a model package has exactly "
            f"{', '.join(sorted(FILES))}"
        )
    for name in (*FILES, artifact.MANIFEST):
        if (directory / name).is_symlink():
            raise ArtifactError(f"{directory / name}: is a link; a model package holds its files itself")
    return manifest
