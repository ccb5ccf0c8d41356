"""References: how a person names a version, and what was meant by a name that is none."""

from collections.abc import Sequence

from cddpm.errors import TrackingError
from cddpm.text.likeness import nearest
from cddpm.tracking.version import Version

ALLOWED = "a version number, an alias, a run id or <sweep>/<trial>"
_RUN_ID_LENGTH = 32
_SHOWN = 9


def find(ref: str, versions: Sequence[Version], where: str) -> Version:
    """The version that ``ref`` means: its number, an alias, the run's id or the trial's name (the newest, if a run has several).

    ``versions``: newest first. Raises ``TrackingError`` with the nearest names, beginning with ``where``.
    """
    for version in versions:
        if ref in (str(version.number), version.run_id, version.trial_name, *version.aliases):
            return version
    known = [name for version in versions for name in references(version)]
    short = [name for name in known if len(name) != _RUN_ID_LENGTH]
    near = nearest(ref, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(short[:_SHOWN]) or 'none yet'}"
    raise TrackingError(f"'{ref}' is no version of {where}; {hint} (allowed: {ALLOWED})")


def references(version: Version) -> list[str]:
    """All names of a version."""
    trial = [version.trial_name] if version.trial_name else []
    return [*version.aliases, *trial, str(version.number), version.run_id]
