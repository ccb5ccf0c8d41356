"""Where prepared files go: a folder, or a prefix of an object store. Every file appears whole."""

import json
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.artifact import file_digest, storage_errors
from cddpm.errors import ArtifactError
from cddpm.shelf import cache_root
from cddpm.storage import Bucket, is_uri

STATES = ".prepare"


class Depot:
    """DATA_DIR. Pickles; names are relative to it, with ``/`` between their parts."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.bucket = Bucket(place) if is_uri(place) else None
        self.folder = None if self.bucket else Path(place)

    @property
    def workplace(self) -> Path:
        """Where unfinished work is kept: in the folder, or on the node's own disk."""
        if self.folder is not None:
            return self.folder / STATES
        return cache_root().joinpath(".cddpm-prepare", artifact.fingerprint(self.place))

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none. Raises ``StorageError``."""
        if self.bucket is not None:
            return self.bucket.read(name)
        assert self.folder is not None
        with storage_errors(self.folder / name):
            return (self.folder / name).read_bytes() if (self.folder / name).is_file() else None

    def read_json(self, name: str) -> dict[str, Any]:
        """A record; empty if there is none or it is damaged, which means that it is made again."""
        try:
            found = json.loads(self.read(name) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def has(self, name: str, digest: str, size: int) -> bool:
        """Whether the file is there as it was written; of an object store the size is compared alone."""
        if self.bucket is not None:
            facts = self.bucket.facts(name)
            return facts is not None and facts[0] == size
        assert self.folder is not None
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size and file_digest(path) == digest

    def is_there(self, name: str) -> bool:
        """Whether a file of that name is there, whatever it holds."""
        if self.bucket is not None:
            return self.bucket.facts(name) is not None
        assert self.folder is not None
        return (self.folder / name).exists()

    def put(self, file: Path, name: str) -> None:
        """Move a local file there. Raises ``StorageError``."""
        if self.bucket is not None:
            self.bucket.upload(file, name)
            file.unlink()
            return
        assert self.folder is not None
        target = self.folder / name
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a small file. Raises ``StorageError``."""
        if self.bucket is not None:
            self.bucket.write(name, data)
        else:
            assert self.folder is not None
            artifact.write_bytes(self.folder / name, data)

    def write_json(self, name: str, value: Any) -> None:
        """Make or replace a record. Raises ``StorageError``, ``ArtifactError`` for what is no JSON."""
        try:
            text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{name}: holds what is no JSON ({error})") from error
        self.write(name, f"{text}\n".encode())

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""
        if self.bucket is not None:
            self.bucket.delete(name)
        else:
            assert self.folder is not None
            (self.folder / name).unlink(missing_ok=True)
