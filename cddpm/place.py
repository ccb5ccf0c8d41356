"""Places on disks, as people write them: relative, absolute, or from ``~``. An address (``s3://bucket/x``) is none yet.

``pathlib`` takes an address for a relative path, and so makes a local folder named ``s3:`` of it without a word.
"""

import re
from pathlib import Path

from cddpm.errors import ConfigError

ON_DISK = "a path on a local or shared disk, without a scheme such as s3:// or file://"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")


def address(place: str | Path) -> str | None:
    """``place`` as an address is written, also where a path has made one slash of several; None for a path."""
    found = _ADDRESS.match(str(place))
    if found is None:
        return None
    scheme, rest = found[1], str(place)[found.end() :]
    return f"{scheme}:{'///' if scheme.lower() == 'file' else '//'}{rest}"


def local(place: Path, what: str) -> Path:
    """``place`` with the home folder for ``~``. Raises ``ConfigError`` that begins with ``what`` for an address."""
    found = address(place)
    if found is not None:
        raise ConfigError(f"{what} {found}: an address; allowed is {ON_DISK}")
    return home(place)


def home(place: Path) -> Path:
    """``place`` with the home folder for a leading ``~``, which YAML knows nothing of and a shell leaves in ``--set a=~/b``."""
    return Path.home().joinpath(*place.parts[1:]) if place.parts[:1] == ("~",) else place
