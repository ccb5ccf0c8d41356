"""What the trainings of a cluster are doing now, and what they have to say to the person at the driver."""

import contextlib
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cddpm.cluster.session import HEAD

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0


class Board:
    """What the trainings are doing now, in one actor beside the driver: workers post, the driver looks.

    Posting never waits or fails. Through it workers on other nodes learn what the driver's folder asks of them (``watch``
    of a list of files there), and leave what is to be kept in it: they see nothing of that folder themselves. Its boxes carry
    trainings to worker groups, and back what comes of them.
    """

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0, resources={HEAD: 1})(_BoardActor).remote()
        self._last = 0.0
        self._read = 0

    def watch(self, files: Sequence[Path]) -> Callable[[], bool]:
        """Asks whether one of ``files`` is there on the driver's node; once it was, it stays so.

        Where no answer comes in a second, it is that of the next look.
        """
        return _Watch(self._actor, [str(file) for file in files]).there

    def keep(self, write: Callable[..., None], *arguments: Any) -> None:
        """Have ``write(*arguments)`` done on the driver's node. Raises what it raises."""
        import ray

        try:
            ray.get(self._actor.keep.remote(write, arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float, every_seconds: float = 0.5) -> None:
        """Tell where ``trial`` is; at most once in ``every_seconds``, and always at the end of a stage."""
        now = time.monotonic()
        if now - self._last < every_seconds and images < budget:
            return
        self._last = now
        self._actor.post.remote(trial, stage, images, budget, loss)

    def look(self, timeout_seconds: float = 2.0) -> dict[int, tuple[str, int, int, float]]:
        """(stage, images, budget, loss) by trial; empty if the actor does not answer in time."""
        import ray

        try:
            state: dict[int, tuple[str, int, int, float]] = ray.get(self._actor.look.remote(), timeout=timeout_seconds)
        except (ray.exceptions.RayError, TimeoutError):
            return {}
        return state

    def clear(self, trial: int) -> None:
        """Forget a trial that has ended."""
        self._actor.clear.remote(trial)

    def tell(self, line: str) -> None:
        """Leave a line for the person at the driver; the same line comes once."""
        self._actor.tell.remote(line)

    def told(self, timeout_seconds: float = 2.0) -> list[str]:
        """Lines that were left since the last answer; none if the actor does not answer in time: they come with the next."""
        import ray

        try:
            lines: list[str] = ray.get(self._actor.told.remote(self._read), timeout=timeout_seconds)
        except (ray.exceptions.RayError, TimeoutError):
            return []
        self._read += len(lines)
        return lines

    def leave(self, box: str, item: Any) -> None:
        """Leave an item for whoever looks into ``box``; it pickles by names of modules, and has no handle of Ray in it.

        It is there when this returns.
        """
        import ray

        ray.get(self._actor.leave.remote(box, pickle.dumps(item)))

    def left(self, box: str, after: int) -> list[Any]:
        """All items of ``box`` but the first ``after``, in the order in which they were left."""
        import ray

        return [pickle.loads(item) for item in ray.get(self._actor.left.remote(box, after))]

    @contextlib.contextmanager
    def warnings(self, name: str) -> Iterator[None]:
        """Leave every warning of this program's own for the person, until the block ends; a worker's output is seen by nobody."""
        handler, source = _Warnings(self, name), logging.getLogger("cddpm")
        source.addHandler(handler)
        try:
            yield
        finally:
            source.removeHandler(handler)


class _Watch:
    def __init__(self, actor: Any, files: list[str]) -> None:
        self._actor, self._files = actor, files
        self._asked: Any = None
        self._there = False

    def there(self) -> bool:
        import ray

        if self._there:
            return True
        if self._asked is None:
            self._asked = self._actor.any_there.remote(self._files)
        done, _ = ray.wait([self._asked], timeout=ANSWER_SECONDS)
        if done:
            try:
                self._there = bool(ray.get(self._asked))
            except ray.exceptions.RayError:  # the driver is gone: the cluster ends this process, too
                logger.info("the board does not answer")
            self._asked = None
        return self._there


class _Warnings(logging.Handler):
    def __init__(self, board: Board, name: str) -> None:
        super().__init__(logging.WARNING)
        self._board, self._name = board, name

    def emit(self, record: logging.LogRecord) -> None:
        """As ``logging`` asks."""
        self._board.tell(f"{self._name}: {record.getMessage()}")


class _BoardActor:
    def __init__(self) -> None:
        self.state: dict[int, tuple[str, int, int, float]] = {}
        self.lines: dict[str, None] = {}  # in the order in which they were left
        self.boxes: dict[str, list[bytes]] = {}

    def any_there(self, files: list[str]) -> bool:
        return any(Path(file).exists() for file in files)

    def keep(self, write: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        write(*arguments)

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float) -> None:
        self.state[trial] = (stage, images, budget, loss)

    def look(self) -> dict[int, tuple[str, int, int, float]]:
        return self.state

    def clear(self, trial: int) -> None:
        self.state.pop(trial, None)

    def tell(self, line: str) -> None:
        self.lines.setdefault(line)

    def told(self, after: int) -> list[str]:
        return list(self.lines)[after:]

    def leave(self, box: str, item: bytes) -> None:
        self.boxes.setdefault(box, []).append(item)

    def left(self, box: str, after: int) -> list[bytes]:
        return self.boxes.get(box, [])[after:]
