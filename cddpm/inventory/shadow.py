"""What lies in an object store, seen as a folder: its shadow.

All that looks at artifacts and campaigns looks at folders. A shadow is one for them, as long as it is looked at: every file of
every artifact with its size and its age, but without blocks; only those few that say what things are have their content. So a
store is listed and freed by the rules that hold for a folder.

    artifacts/KIND/NAME/FILE               parts/DIGEST in the store, as the manifest names it
    artifacts/KIND/.NAME.upload.partial    parts that no manifest names: what an upload that never ended has left
    sweeps/NAME, evaluations/NAME          their records

Nobody holds a lock on a store, so a campaign that is not finished counts as one that runs; one that has just begun, of which
nothing but its writer is there, keeps everything.
"""

import contextlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cddpm import artifact
from cddpm.backup import WRITER
from cddpm.campaign import FINISHED, IDENTITY
from cddpm.errors import ArtifactError, StorageError
from cddpm.inventory import entry as listed
from cddpm.inventory import pruning
from cddpm.inventory.entry import FOLDERS, SEALED, Entry, Referrer
from cddpm.inventory.pruning import Step
from cddpm.reconstruct import part, reconstruction
from cddpm.scoring import score_book
from cddpm.shelf import ARTIFACTS, PARTS
from cddpm.storage import Bucket, at_once

READS = 16
"""Small objects that are on their way at once."""
SECOND_NS = 10**9
"""A store tells the time of one object by the second, of many more finely."""
_UPLOAD = ".upload.partial"
_GROWING = (reconstruction.PREDICTION, score_book.KIND)
"""Kinds whose files lie in the store under their own names."""
_RECORD = re.compile(
    rf"({'|'.join(FOLDERS)})/[^/]+/({IDENTITY}|{FINISHED}|{WRITER}"
    rf"|origin\.json|(trials|runs)/[^/]+/(config|result)\.json|packages/[^/]+/{artifact.MANIFEST})"
)
_EMPTY = re.compile(rf"({IDENTITY}|{FINISHED}|{WRITER})$")
"""Records of which it matters alone that they are there."""

Facts = Mapping[str, tuple[int, int]]
"""Size in bytes and time of writing (ns since 1970, 0 where the store tells none) of objects, by name."""
Marks = Mapping[str, "Mark"]


@dataclass(frozen=True)
class Shadow:
    """``folder`` looks like the output folder whose artifacts and campaigns lie in ``bucket``."""

    folder: Path
    bucket: Bucket
    objects: Mapping[Path, str]
    """Name of the object behind each file."""
    facts: Facts
    """Of those objects, when this was cast."""
    marks: Marks
    """Who wrote to each campaign's folder last, and whether it was finished, when this was cast."""

    @property
    def artifacts(self) -> Path:
        """The artifacts' folder."""
        return self.folder / ARTIFACTS

    def told(self, text: str | Path) -> str:
        """``text`` with the store's places instead of the shadow's."""
        return str(text).replace(str(self.folder), self.bucket.place(""))

    def survey(self) -> list[Entry]:
        """As ``entry.survey``, of the store."""
        return listed.survey(self.artifacts)

    def referrers(self, stores: Iterable[str], project: Path) -> list[Referrer]:
        """As ``entry.referrers``, of the store; whatever is not finished counts as running.

        ``project``: where relative places in their configurations count from.
        """
        try:
            found = listed.referrers(self.folder, stores, project)
        except ArtifactError as error:
            raise ArtifactError(self.told(str(error))) from error
        return [one if one.state == "finished" else replace(one, state="running") for one in found]

    def now(self) -> float:
        """Seconds since 1970 by the store's clock, or by this machine's if it tells none. Raises ``StorageError``."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.bucket.write(probe, b"")
        facts = self.bucket.facts(probe)
        self.bucket.delete(probe)
        return facts[1] / 1e9 if facts and facts[1] else time.time()

    def protected(
        self, entries: Sequence[Entry], campaigns: Sequence[Referrer], models: Mapping[str, Iterable[str]], now: float
    ) -> dict[str, str]:
        """As ``pruning.protected``, and what may be somebody's work, whose claims nobody sees from here."""
        reasons = pruning.protected(entries, campaigns, models)
        at_work = [one.label for one in campaigns if one.state == "running"]
        for one in entries:
            if one.kind == "unfinished" and now - one.modified < pruning.DAY_SECONDS:
                reasons.setdefault(one.fingerprint, "it was written to less than a day ago")
            if one.fault is not None and at_work:
                reasons.setdefault(one.fingerprint, f"its origin is unknown, and {at_work[0]} may need it")
        return reasons

    def sizes(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Bytes of each object of ``entries``, by name: what it costs to read them."""
        files = [file for one in entries for file in _files_below(one.path)]
        return {self.objects[file]: file.stat().st_size for file in files if file in self.objects}

    def damage(self, entries: Sequence[Entry]) -> list[str]:
        """As ``entry.damage``, of all of ``entries``; every byte is fetched, and none kept.

        Raises ``StorageError``.
        """
        return [self.told(fault) for faults in at_once(self._damage, list(entries)) for fault in faults]

    def _damage(self, one: Entry) -> list[str]:
        if one.fault is not None or one.kind in ("unfinished", "leftover"):
            return listed.damage(one)
        if one.kind == score_book.KIND:
            for file in one.path.glob("*.jsonl"):
                file.write_bytes(self.bucket.read(self.objects[file]) or b"")
            return listed.damage(one)
        expected = _digests_of_parts(one) if one.kind == reconstruction.PREDICTION else _digests_of_files(one)
        faults = [fault for file, digest in expected for fault in self._altered(file, digest, one.kind)]
        return faults + listed.lost_parts(one)

    def _altered(self, file: Path, digest: str, kind: str) -> Iterator[str]:
        name = self.objects.get(file)
        if name is None:
            yield f"{file}: missing from this {kind}"
            return
        try:
            found = self.bucket.download(name, Path(os.devnull))  # for its digest alone
        except StorageError:
            if self.bucket.facts(name) is not None:
                raise  # the store's fault, not the object's
            yield f"{self.bucket.place(name)}: missing from this {kind}"
            return
        if not found.startswith(digest):
            yield (
                f"{self.bucket.place(name)}: truncated, altered or damaged since it was written (its SHA-256 is another)"
            )

    def carry_out(
        self, steps: Sequence[Step], output_dir: Path | None = None, before: Sequence[str] = ()
    ) -> Iterator[tuple[Step, int]]:
        """As ``pruning.carry_out``, in the store: yields each step with the bytes that it freed.

        ``before``: what was running in ``output_dir`` before this was cast. Raises ``ArtifactError`` when a sweep or an
        evaluation has begun or gone on since, there or in the store, ``StorageError``.
        """
        self._refuse_beginnings()
        for step in steps:
            here = set(listed.running(output_dir)) - set(before) if output_dir is not None else set()
            began = sorted({*_began(self.marks, marks(self.bucket)), *here})
            if began:
                raise ArtifactError(
                    f"{', '.join(began)} has begun or gone on meanwhile; nothing more is freed. Run this again"
                )
            yield step, self._free(step)

    def _refuse_beginnings(self) -> None:
        """What a campaign needs is not known before its identity is there, a moment after its writer; a day is for clocks."""
        for folder, mark in self.marks.items():
            young = not mark.written_ns or self.now() - mark.written_ns / 1e9 < pruning.DAY_SECONDS
            if not mark.known and young:
                raise ArtifactError(f"{folder} has just begun, and what it needs is not known yet; run this again")

    def _free(self, step: Step) -> int:
        one, parts = step.entry, step.parts
        names = self._names(
            _files_below(one.path)
            if parts is None
            else [file for volume, number in parts if (file := part.parts_of(one.path, volume).get(number))]
        )
        if one.path.name.endswith(_UPLOAD) and self._was_ended(names):
            return 0
        says_whole = {name for name in names if name.endswith(f"/{artifact.MANIFEST}")}
        for name in says_whole:  # first: whoever comes now sees none
            self._delete(name)
        at_once(self._delete, [name for name in names if name not in says_whole])
        return step.bytes

    def _delete(self, name: str) -> None:
        """One that was written anew since this was cast stays: somebody has made or sent what it belongs to again."""
        (size, written), now = self.facts[name], self.bucket.facts(name)
        if now and now[0] == size and abs(now[1] - written) < SECOND_NS:
            self.bucket.delete(name)

    def _names(self, files: Iterable[Path]) -> list[str]:
        return sorted({self.objects[file] for file in files if file in self.objects})

    def _was_ended(self, parts: Sequence[str]) -> bool:
        """Whether an upload of these parts has come to its end after all."""
        manifests = {f"{name.rpartition(f'/{PARTS}/')[0]}/{artifact.MANIFEST}" for name in parts}
        named = {digest for name in manifests for digest in (_named(self.bucket.read(name)) or {}).values()}
        return any(name.rpartition("/")[2] in named for name in parts)


@contextlib.contextmanager
def shadow(storage: str) -> Iterator[Shadow]:
    """Of the object store ``storage`` (a settled URI), as long as the block runs. Raises ``StorageError``."""
    bucket = Bucket(storage)
    with tempfile.TemporaryDirectory(prefix="cddpm-shadow-") as folder:
        yield _cast(Path(folder).resolve(), bucket)


@dataclass(frozen=True)
class Mark:
    """What tells that a process goes on with a campaign: it writes anew, or takes back that it is finished."""

    writer: Any
    written_ns: int
    finished: bool
    known: bool
    """Whether it says what it is, and so what it needs."""


def marks(bucket: Bucket) -> Marks:
    """Of the campaigns below a store, by their folders. Raises ``StorageError``."""
    return _marks(bucket, {name: facts for top in FOLDERS for name, facts in bucket.objects(top).items()})


def _marks(bucket: Bucket, there: Facts) -> Marks:
    own = [name for name in there if re.fullmatch(rf"({'|'.join(FOLDERS)})/[^/]+/{WRITER}", name)]
    found = {}
    for name in own:
        folder, written = name.rpartition("/")[0], there[name][1]
        finished, known = (f"{folder}/{file}" in there for file in (FINISHED, IDENTITY))
        found[folder] = Mark(written or bucket.read(name), written, finished, known)
    return found


def _began(then: Marks, now: Marks) -> Iterator[str]:
    for folder, mark in now.items():
        last = then.get(folder)
        if last is None or last.writer != mark.writer or (last.finished and not mark.finished):
            yield folder


def _cast(folder: Path, bucket: Bucket) -> Shadow:
    there: dict[str, tuple[int, int]] = {
        name: facts for top in (ARTIFACTS, *FOLDERS) for name, facts in bucket.objects(top).items()
    }
    last = _marks(bucket, there)  # before anything is read: who begins meanwhile is seen later
    told = _contents(bucket, [name for name in there if _tells(name)])
    places = dict(_places(there, {name: _named(data) for name, data in told.items()}))
    views = {place: name for place, name in places.items() if _is_view(place)}
    told |= _contents(bucket, set(views.values()))
    for place, name in places.items():
        _lay(folder / place, told.get(name), *there[name])
    _tell_origins(folder / ARTIFACTS)
    for path in folder.rglob("*"):
        if path.is_dir():
            os.utime(path, (0, 0))  # the age of an artifact is that of its files
    return Shadow(folder, bucket, {folder / place: name for place, name in places.items()}, there, last)


def _contents(bucket: Bucket, names: Iterable[str]) -> dict[str, bytes | None]:
    names = list(names)
    return dict(zip(names, at_once(bucket.read, names, READS), strict=True))


def _tells(name: str) -> bool:
    """Whether an object says what something is."""
    top, *rest = name.split("/")
    if top != ARTIFACTS:
        return bool(_RECORD.fullmatch(name)) and not _EMPTY.search(name)
    if len(rest) != 3:
        return False
    return (rest[0] in SEALED and rest[2] == artifact.MANIFEST) or (
        rest[0] in _GROWING and rest[2] == reconstruction.MADE_FROM
    )


def _is_view(place: str) -> bool:
    return bool(re.fullmatch(rf"{ARTIFACTS}/{reconstruction.KIND}/[^/]+/{reconstruction.VIEW}", place))


def _named(data: bytes | None) -> dict[str, str] | None:
    """Digest of each file that a manifest names; None if it is none."""
    try:
        files = json.loads(data or b"")["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _places(there: Facts, manifests: Mapping[str, dict[str, str] | None]) -> Iterator[tuple[str, str]]:
    """Where each object lies in the shadow; one that is two files of its artifact lies twice."""
    for name in there:
        top, *rest = name.split("/")
        if top != ARTIFACTS:
            if _RECORD.fullmatch(name):
                yield name, name
        elif len(rest) == 4 and rest[0] in SEALED and rest[2] == PARTS and rest[1] != ".work":
            yield from _places_of_part(name, rest, manifests)
        elif len(rest) > 2 and rest[0] in (*SEALED, *_GROWING):
            yield name, name


def _places_of_part(
    name: str, rest: Sequence[str], manifests: Mapping[str, dict[str, str] | None]
) -> Iterator[tuple[str, str]]:
    kind, own, _, digest = rest
    manifest = f"{ARTIFACTS}/{kind}/{own}/{artifact.MANIFEST}"
    if manifest in manifests and manifests[manifest] is None:
        yield name, name  # who knows whose
        return
    files = [file for file, its in (manifests.get(manifest) or {}).items() if its == digest and _is_inside(file)]
    for file in files:
        yield f"{ARTIFACTS}/{kind}/{own}/{PurePosixPath(file)}", name
    if not files:
        yield f"{ARTIFACTS}/{kind}/.{own}{_UPLOAD}/{digest}", name


def _is_inside(file: str) -> bool:
    """A manifest must not have us write elsewhere."""
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and file != artifact.MANIFEST


def _lay(path: Path, data: bytes | None, size: int, written_ns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        with path.open("wb") as stream:
            stream.truncate(size)
    else:
        path.write_bytes(data)
    stamp = written_ns or time.time_ns()  # unknown is young: nothing is freed for its age
    os.utime(path, ns=(stamp, stamp))


def _tell_origins(artifacts: Path) -> None:
    """Earlier versions kept what predictions were made from on nodes alone; their reconstructions say it, too."""
    for path in (artifacts / reconstruction.KIND).glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            made_from: dict[str, Any] = json.loads((path / artifact.MANIFEST).read_text())["made_from"]
            prediction = str(made_from["prediction"])
            folder = artifacts / reconstruction.PREDICTION / prediction
            if folder.is_dir() and Path(prediction).name == prediction:
                own = {name: value for name, value in made_from.items() if name not in reconstruction.OWN_OF_VIEW}
                if not (folder / reconstruction.MADE_FROM).exists():
                    _lay(folder / reconstruction.MADE_FROM, json.dumps(own).encode(), 0, 1)


def _files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _digests_of_files(one: Entry) -> list[tuple[Path, str]]:
    named = _named((one.path / artifact.MANIFEST).read_bytes()) or {}
    return [(one.path / name, digest) for name, digest in named.items()]


def _digests_of_parts(one: Entry) -> list[tuple[Path, str]]:
    """Their names have the first digits."""
    files = [file for volume in part.volumes_of(one.path) for file in part.parts_of(one.path, volume).values()]
    return [(file, part.digest_of(file)) for file in files]
