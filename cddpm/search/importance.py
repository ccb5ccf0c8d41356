"""Which settings mattered: the share of the objective's variance that each searched setting explains.

Functional ANOVA over a random forest (Hutter, Hoos & Leyton-Brown 2014, "An efficient approach for assessing
hyperparameter importance", eq. 8 to 10), by Optuna's evaluator.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator

from cddpm.config import Space
from cddpm.search import space as spaces

FEWEST = 6
"""With fewer observations the forest tells noise."""
MOST, TREES = 250, 24
"""So many observations are drawn from larger tables, and trees grown: the time grows with the square of the leaves, the
shares move by a few hundredths."""

Observation = tuple[Mapping[str, Any], float]
"""(settings by dotted path, objective)."""


def importance(space: Space, observations: Sequence[Observation]) -> dict[str, float]:
    """Share of each setting of ``space`` in [0, 1], largest first; they add up to 1. The same input gives the same shares.

    Empty if there are fewer than ``FEWEST`` observations, or all have one value or the same settings. A setting that some
    observations lack, or have outside of the space, is left out.
    """
    rows = [(spaces.point(space, {p: v for p, v in s.items() if p in space}), value) for s, value in observations]
    rows = random.Random(0).sample(rows, MOST) if len(rows) > MOST else rows
    shared = [path for path in space if all(path in params for params, _ in rows)]
    if len(rows) < FEWEST or not shared or len({value for _, value in rows}) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    try:
        shares = optuna.importance.get_param_importances(
            _study(space, shared, rows), evaluator=evaluator, params=shared
        )
    except RuntimeError:  # no tree has a branch: values differ by rounding only, or settings do not differ
        return {}
    return {path: float(share) for path, share in shares.items()}


def _study(space: Space, shared: Sequence[str], rows: Sequence[tuple[dict[str, Any], float]]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = spaces.distributions(space)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={path: params[path] for path in shared},
                distributions={path: known[path] for path in shared},
                value=value,
            )
            for params, value in rows
        ]
    )
    return study
