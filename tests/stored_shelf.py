"""The output folder of ``shelf.py`` in an object store; and a store in memory that tells when its objects were written."""

import datetime
import random
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf

from cddpm import shelf, storage
from cddpm.backup import WRITER
from cddpm.storage import Bucket

FOLDERS = ("sweeps", "evaluations")


def memory(patch: pytest.MonkeyPatch) -> Generator[dict[str, Any], None, None]:
    """Its objects by path; empty at the beginning and at the end."""
    from fsspec.implementations.memory import MemoryFileSystem

    def clear() -> None:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        storage.opened.cache_clear()

    find, info = MemoryFileSystem.find, MemoryFileSystem.info

    def timed(self: Any, path: str, **rest: Any) -> dict[str, Any]:
        return {name: {**facts, "mtime": facts.get("created")} for name, facts in find(self, path, **rest).items()}

    def told(self: Any, path: str, **rest: Any) -> dict[str, Any]:
        facts = info(self, path, **rest)
        return {**facts, "mtime": facts.get("created")}

    patch.setattr(MemoryFileSystem, "find", timed)
    patch.setattr(MemoryFileSystem, "info", told)
    clear()
    try:
        yield MemoryFileSystem.store
    finally:
        clear()


def stored(kept: Shelf, uri: str) -> Bucket:
    """Put all of ``kept`` into the store, as stages and sweeps do."""
    far, bucket = shelf.Shelf(kept.artifacts, uri), Bucket(uri)
    for path in sorted(kept.artifacts.glob("*/[!.]*")):
        if path.parent.name in ("prediction", "score"):
            far.share(file for file in path.rglob("*") if file.is_file())
        else:
            far.put(path)
    shelf.release()
    files = [file for top in FOLDERS for file in (kept.output_dir / top).rglob("*") if file.is_file()]
    bucket.upload_all((file, file.relative_to(kept.output_dir).as_posix()) for file in files)
    for folder in {file.relative_to(kept.output_dir).parts[:2] for file in files}:
        bucket.write(f"{'/'.join(folder)}/{WRITER}", b"0123")
    return bucket


def aged(objects: dict[str, Any], kept: Shelf) -> None:
    """Give each object in memory the age of the artifact that it belongs to."""
    for path in kept.artifacts.glob("*/[!.]*"):
        newest = max(file.stat().st_mtime for file in path.rglob("*"))
        for name, held in objects.items():
            if f"/artifacts/{path.parent.name}/{path.name}/" in name:
                held.created = datetime.datetime.fromtimestamp(newest, datetime.UTC)


def drawn(output_dir: Path, seed: int) -> Shelf:
    """Any state: stores, encoders, checkpoints, predictions, views of them, scores, and campaigns that name some of it."""
    draw, kept = random.Random(seed), Shelf(output_dir)
    names = iter(f"a{number:03d}" for number in range(1000))
    days = iter(draw.sample(range(1, 400), 300))

    def sealed(kind: Any, **origins: Any) -> str:
        return kept.sealed(kind, next(names), draw.randrange(1, 3000), next(days) / 4, **origins).name

    stores = [sealed("store") for _ in range(draw.randint(1, 2))]
    encoders = [sealed("encoder", store=draw.choice(stores)) for _ in range(draw.randint(0, 2))]
    results = []
    for _ in range(draw.randint(0, 3)):
        encoder = draw.choice([None, *encoders])
        model = sealed("checkpoint", store=draw.choice(stores), encoder=encoder)
        result = {"checkpoint": model, **({"encoder": encoder} if encoder else {})}
        for _ in range(draw.randint(0, 2)):
            levels = draw.sample((10, 250, 500, 750), 2)
            prediction = kept.prediction(next(names), model, "ab", levels, next(days) / 4).name
            for _ in range(draw.randint(0, 2)):
                asked = draw.sample(levels, draw.randint(1, 2))
                view = kept.view(next(names), prediction, draw.choice(("a", "b", "ab")), asked, next(days) / 4).name
                result["reconstruction"] = view
                if draw.random() < 0.5:
                    kept.score(next(names), view, next(days) / 4)
        results.append(result)
    if results:
        kept.campaign("sweeps", "mine", draw.sample(results, draw.randint(1, len(results))))
        kept.campaign("evaluations", "table", draw.sample(results, draw.randint(0, 1)), finished=draw.random() < 0.5)
    return kept


def names(bucket: Bucket) -> set[str]:
    """As ``Shelf.names``, of a store."""
    found = set()
    for name in bucket.names("artifacts"):
        kind, own, *rest = name.removeprefix("artifacts/").split("/")
        found.add(f"{kind}/{own}")
        if kind == "prediction" and (level := re.match(r"\d+", rest[-1])):
            found.add(f"prediction/{own}/{rest[0]}/{level[0]}")
    return found
