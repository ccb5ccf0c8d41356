"""A study's memory for long searches: it keeps every trial, and shows a sampler the best and the latest of them.

A tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization") compares the good trials
with all others, so that a proposal costs more the longer a search is. The good ones are few (Optuna takes a tenth of all, at most
25), and of the others the latest weigh most. In a window of the ``BEST`` and the ``LATEST`` of the others the good ones are
exactly those of the whole study, and the others a sample. Of several objectives Optuna takes a tenth of all for good ones without
a limit: there it is a tenth of the window, which holds the latest of the Pareto front.
"""

import bisect
import copy
from collections.abc import Container, Sequence
from typing import Literal

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from cddpm.config import LevelConfig

BEST, LATEST = 25, 225
"""Of 250 trials TPE takes 25 for good ones."""
FRONT = 1000
"""Of a longer Pareto front the latest are remembered."""
Goal = Literal["minimize", "maximize"]
Standing = tuple[tuple[float, ...], int]
"""Values, the higher the better, and the negative number: the earlier of equals is the better one."""


class Window(InMemoryStorage):
    """Memory of one study with these ``goals``, whose trials are told one by one; what a study says of itself is of the window.

    Of several objectives the best are the latest on the Pareto front.
    """

    def __init__(self, goals: Sequence[Goal]) -> None:
        super().__init__()
        self._signs = [1.0 if goal == "maximize" else -1.0 for goal in goals]
        self._best: list[Standing] = []

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those of the window and what has not ended since, in the order of their numbers; of these, those in ``states``."""
        if states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)  # all of them: the next to be tried is one
        trials = super().get_all_trials(study_id, deepcopy=False)
        shown = [t for t in self._shown(trials) if states is None or t.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

    def _shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        best = {-number for _, number in self._best[-BEST:]}
        first, others = len(trials), 0
        while first > 0 and others < LATEST:
            first -= 1
            others += trials[first].state.is_finished() and first not in best
        return [trials[number] for number in sorted(best) if number < first] + trials[first:]

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna asks."""
        done = super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.COMPLETE and values is not None:
            number = self.get_trial_number_from_id(trial_id)
            self._stand((tuple(s * v for s, v in zip(self._signs, values, strict=True)), -number))
        return done

    def _stand(self, new: Standing) -> None:
        if len(self._signs) == 1:
            bisect.insort(self._best, new)
            self._best = self._best[-BEST:]
        elif not any(_dominates(old, new) for old in self._best):
            self._best = [*(old for old in self._best if not _dominates(new, old)), new][-FRONT:]


def _dominates(one: Standing, other: Standing) -> bool:
    return one[0] != other[0] and all(a >= b for a, b in zip(one[0], other[0], strict=True))


def memory_for(level: LevelConfig, goals: Sequence[Goal]) -> InMemoryStorage:
    """A window for samplers that look at every trial anew; NSGA-II looks at one generation, and may go far back for it."""
    return Window(goals) if level.sampler in ("tpe", "cma-es") else InMemoryStorage()
