"""What an object store costs: an artifact put and got beside one plain stream, and a training whose states are sent away.

``python -m speed.storage put|get URI FOLDER`` moves one artifact in a process of its own and writes JSON: seconds, and how far
memory rose above what the process had before.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import BinaryIO

import numpy as np

from cddpm import artifact
from cddpm.errors import CddpmError
from cddpm.shelf import Shelf
from cddpm.storage import Bucket, opened
from cddpm.training import checkpoint
from cddpm.training.away import kept_away
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks
from speed.logging_cost import training_step
from speed.memory import of_this_process
from speed.row import Row
from speed.timing import seconds

KIND = "bench"
FILES = 4
"""Of the artifact; all bytes differ, so nothing can be sent less."""
STATE_SECONDS = 30.0
"""Between two states of a training, as the bar says."""
PART = 16 * 2**20
"""Bytes that the plain stream writes and reads at once."""
_LAUNCH = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are those that the bars are about."""

    megabytes: int = 1000
    repeats: int = 3
    states: int = 10
    steps_a_state: int = 3


QUICK = Sizes(megabytes=8, repeats=1, states=2, steps_a_state=1)


@dataclass(frozen=True)
class Moved:
    """One transfer."""

    seconds: float
    risen_bytes: int


def measure(uri: str, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Rows of the table, each as soon as it is measured. Writes twice ``sizes.megabytes`` below ``folder`` and into ``uri``."""
    place = str(Bucket(uri).place(f"bench-{uuid.uuid4().hex[:8]}"))
    try:
        yield from _transfers(place, folder, sizes)
        yield _training(place, folder, sizes)
    finally:
        Bucket(place).delete_all("")


def _transfers(place: str, folder: Path, sizes: Sizes) -> Iterator[Row]:
    big = folder / "plain.bin"
    _fill(big, sizes.megabytes * 10**6)
    ours, plain = {"put": list[Moved](), "get": list[Moved]()}, {"put": list[Moved](), "get": list[Moved]()}
    for turn in range(sizes.repeats):
        for verb in ("put", "get"):  # by turns: the machine does not stay the same
            plain[verb].append(_in_a_process(f"plain-{verb}", place, str(big), folder / "plain"))
            if verb == "put":
                _make(Shelf(folder / verb / "artifacts"), f"turn{turn}", big)
            ours[verb].append(_in_a_process(verb, place, f"turn{turn}", folder / verb))
    for verb, what in (("put", "put into the store"), ("get", "fetched from it")):
        rates = [sizes.megabytes / move.seconds for move in ours[verb]]
        ratio = median(b.seconds / a.seconds for a, b in zip(ours[verb], plain[verb], strict=True))
        told = f"{median(rates):.0f} MB/s; digests are computed on the way, files are {FILES}, transfers parallel"
        yield Row(f"an artifact {what}, of the rate of one plain stream", "%", 100 * ratio, 70.0, "at least", told)
        risen = max(move.risen_bytes for move in ours[verb]) / 1e6
        beside = max(move.risen_bytes for move in plain[verb]) / 1e6
        yield Row(f"memory for it, {verb}", "MB", risen, 300.0, "at most", f"one plain stream: {beside:.0f} MB")
    again = _in_a_process("get", place, f"turn{sizes.repeats - 1}", folder / "get")
    yield Row(
        "the same artifact again on this node", "ms", 1000 * again.seconds, 100.0, "at most", "nothing is fetched"
    )


def _training(place: str, folder: Path, sizes: Sizes) -> Row:
    """Steps by turns: a state was just saved, and is on its way while they go on; or nothing is on its way."""
    step, model, optimizer = training_step()
    shelf = Shelf(folder / "training" / "artifacts", place)
    work = shelf.path(KIND, "states.work")
    turns = []
    with kept_away(shelf, work, Ranks(), Hooks()) as hooks:
        step()
        for turn in range(1, sizes.states + 1):
            state = checkpoint.State(turn, model.state_dict(), None, optimizer.state_dict())
            hooks.saved(checkpoint.save_state(work, state, "bench"))
            turns.append([seconds(step) for _ in range(2 * sizes.steps_a_state)])
    half = sizes.steps_a_state
    lost = median(sum(turn[:half]) - sum(turn[half:]) for turn in turns)
    size = sum(file.stat().st_size for file in checkpoint.states(work)[0].iterdir()) / 1e6
    alone = median(sum(turn[half:]) for turn in turns)
    told = (
        f"a state of {size:.0f} MB on its way costs {half} steps {lost:.3f} s, which take {alone:.2f} s alone; one state every "
        f"{STATE_SECONDS:.0f} s"
    )
    percent = max(0.0, 100 * lost / STATE_SECONDS)
    return Row("a training waits for states on their way, of its steps' time", "%", percent, 2.0, "at most", told)


def _fill(file: Path, count: int) -> None:
    random = np.random.default_rng(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        for start in range(0, count, PART):
            stream.write(random.bytes(min(PART, count - start)))


def _make(shelf: Shelf, name: str, big: Path) -> None:
    """An artifact out of the bytes of ``big``."""
    size = big.stat().st_size // FILES

    def fill(temporary: Path) -> None:
        with big.open("rb") as stream:
            for number in range(FILES):
                with (temporary / f"{number}.bin").open("wb") as target:
                    shutil.copyfileobj(_Part(stream, size), target, PART)
                    target.write(name.encode())  # of each turn its own

    artifact.create(shelf.path(KIND, name), KIND, name, {}, fill)


@dataclass
class _Part:
    """The next ``left`` bytes of a stream."""

    stream: BinaryIO
    left: int

    def read(self, count: int = -1, /) -> bytes:
        """The next bytes, as ``shutil.copyfileobj`` asks for them."""
        found = self.stream.read(min(count, self.left))
        self.left -= len(found)
        return found


def _in_a_process(verb: str, place: str, name: str, cache: Path) -> Moved:
    done = subprocess.run(
        [sys.executable, "-m", "speed.storage", verb, place, name, str(cache)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_LAUNCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CddpmError(f"{place}: {done.stderr.strip()[-500:] or 'the transfer failed without a word'}")
    return Moved(**json.loads(done.stdout))


def move(verb: str, place: str, name: str, cache: Path) -> Moved:
    """Put or get the artifact ``name`` in the cache folder ``cache``, or the file ``name`` as one plain stream."""
    bucket, shelf = Bucket(place), Shelf(cache / "artifacts", place)
    bucket.read("nothing")  # opens the connection
    path = shelf.path(KIND, name)
    cache.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    work: dict[str, Callable[[], object]] = {
        "put": lambda: shelf.put(path),
        "get": lambda: shelf.need(path),
        "plain-put": lambda: _plain_put(bucket, Path(name)),
        "plain-get": lambda: _plain_get(bucket, cache / "fetched.bin"),
    }
    with _watched() as highest:
        before = of_this_process().own
        taken = seconds(work[verb])
    return Moved(taken, max(0, max(highest) - before))


def _plain_put(bucket: Bucket, file: Path) -> None:
    system, root = opened(bucket.uri)
    with file.open("rb") as source, system.open_output_stream(f"{root}/plain.bin", compression=None) as stream:
        while data := source.read(PART):
            stream.write(data)


def _plain_get(bucket: Bucket, file: Path) -> None:
    system, root = opened(bucket.uri)
    with system.open_input_file(f"{root}/plain.bin") as source, file.open("wb") as target:
        while data := source.read(PART):
            target.write(data)


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Bytes of this process's own memory, looked at every few milliseconds while the block runs."""
    found, over = [of_this_process().own], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            found.append(of_this_process().own)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    verb, place, name, cache = sys.argv[1:]
    sys.stdout.write(json.dumps(asdict(move(verb, place, name, Path(cache)))))
