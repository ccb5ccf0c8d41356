"""Which versions are meant: by a reference, by conditions on them, and in which order.

A **reference** is a version's number, an alias, MLflow's run id, or its trial's name ``<sweep>/0003``. A **condition** is like
``metrics.dice > 0.4 and params.guidance_scale > 1 and tags.cddpm.sweep = 'demo'``::

    condition   comparison [and comparison]...
    comparison  NAME OPERATOR VALUE
    NAME        metrics.NAME, params.NAME or tags.NAME; a name with blanks stands in `backquotes`
    OPERATOR    > >= < <= = != (== is =)
    VALUE       a number, or text: a word, or anything in quotes

``metrics.dice`` is ``val/dice``, ``metrics.Brats21/dice`` is ``val/Brats21/dice``. ``params.guidance_scale`` is the one setting
whose dotted path ends so. A version without the value does not fulfil the comparison.
"""

import json
import operator
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cddpm.errors import ConfigError, TrackingError
from cddpm.text.likeness import nearest
from cddpm.tracking import names
from cddpm.tracking.catalogue import Catalogue, Run, Version

KINDS = ("metrics", "params", "tags")
ALLOWED = "a version number, an alias, a run id or <sweep>/<trial>"
_RUN_ID_LENGTH = 32
_SHOWN = 8
_QUOTES = "'\"`"
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_OPERATORS = {**_ORDER, "=": operator.eq, "!=": operator.ne}
_SORTS: dict[str, Callable[[Version], tuple[int | str, ...]]] = {
    "version": lambda version: (-version.number,),
    "created": lambda version: (version.created, version.number),
    "trial": lambda version: (version.trial_name or "", version.number),
}


def nearest_names(word: str, known: Iterable[str]) -> str:
    """What to offer instead of ``word``: the most similar of ``known``, else the first of them; empty if there are none."""
    there = sorted(set(known))
    return ", ".join(nearest(word, there) or there[:_SHOWN])


# References


def find(ref: str, versions: Sequence[Version], where: str) -> Version:
    """The version that ``ref`` means; the newest, if a run has several.

    ``versions``: newest first. Raises ``TrackingError`` with the nearest names, beginning with ``where``.
    """
    known: list[str] = []
    for version in versions:
        trial = [version.trial_name] if version.trial_name else []
        own = [*version.aliases, *trial, str(version.number), version.run_id]
        if ref in own:
            return version
        known += own
    near = nearest(ref, known)
    short = [name for name in known if len(name) != _RUN_ID_LENGTH]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(short[:_SHOWN]) or 'none yet'}"
    raise TrackingError(f"'{ref}' is no version of {where}; {hint} (allowed: {ALLOWED})")


# Conditions


@dataclass(frozen=True)
class Comparison:
    """One comparison; ``name`` without its kind."""

    kind: str
    name: str
    operator: str
    value: float | str

    def holds(self, found: float | str | None) -> bool:
        """Whether it holds of a value; never of none. Numbers are compared as numbers, all else as text."""
        if found is None:
            return False
        if isinstance(self.value, str):
            return bool(_OPERATORS[self.operator](str(found), self.value))
        number = _number(found)
        return self.operator == "!=" if number is None else bool(_OPERATORS[self.operator](number, self.value))


def parse(text: str, option: str, kind: str | None = None) -> list[Comparison]:
    """The comparisons of a condition; ``kind``: that of a name without one. Raises ``ConfigError`` naming ``option``."""
    where = f'{option} "{text}"'
    parts: list[list[str]] = [[]]
    for token in _tokens(text, where):
        if token.lower() == "and":
            parts.append([])
        else:
            parts[-1].append(token)
    return [_comparison(part, where, kind) for part in parts]


def is_about_test(comparisons: Iterable[Comparison]) -> bool:
    """Whether anything in it was measured on test."""
    return any(c.kind == "metrics" and c.name.startswith("test/") for c in comparisons)


def metric_key(name: str, known: Iterable[str]) -> str | None:
    """The full name of a metric among ``known``: ``dice`` is ``val/dice``; None if it is not there."""
    keys = set(known)
    return next((key for key in (name, f"val/{name}") if key in keys), None)


def param_key(name: str, known: Iterable[str]) -> str | None:
    """The setting that ``name`` is the path, or the end of the path, of. Raises ``ConfigError`` if there are several.

    What a sweep searched *through* (``search.scoring.space.scoring.guidance_scale``) is found by its whole path only.
    """
    keys = set(known)
    if name in keys:
        return name
    ends = sorted(key for key in keys if key.endswith(f".{name}") and not key.startswith("search."))
    if len(ends) > 1:
        raise ConfigError(f"params.{name}: may be {' or '.join(ends)}; write the whole path")
    return ends[0] if ends else None


def where(versions: Sequence[Version], comparisons: Sequence[Comparison], catalogue: Catalogue) -> list[Version]:
    """The versions that fulfil all comparisons, in their order; settings are looked up only if a comparison names one.

    Raises ``TrackingError`` with the nearest names for one that no version has, ``ConfigError`` for an ambiguous one.
    """
    if not comparisons or not versions:
        return list(versions)
    params = settings_of(versions, catalogue) if any(c.kind == "params" for c in comparisons) else {}
    values: dict[int, dict[str, Mapping[str, Any]]] = {
        v.number: {"metrics": v.metrics, "params": params.get(v.number, {}), "tags": v.tags} for v in versions
    }
    found = list(versions)
    for comparison in comparisons:
        kind = comparison.kind
        name = _full_name(comparison, {name for version in values.values() for name in version[kind]})
        found = [version for version in found if comparison.holds(values[version.number][kind].get(name))]
    return found


def _full_name(comparison: Comparison, known: set[str]) -> str:
    keys = {"metrics": metric_key, "params": param_key}
    found = keys[comparison.kind](comparison.name, known) if comparison.kind in keys else comparison.name
    if found not in known:
        near = nearest_names(comparison.name, known) or "none at all"
        raise TrackingError(f"--where: no version has {comparison.kind}.{comparison.name}; there are {near}")
    return str(found)


def _tokens(text: str, where: str) -> list[str]:
    """Words, operators, and texts with their quotes."""
    reader = shlex.shlex(text, punctuation_chars="<>=!")
    reader.whitespace_split, reader.commenters, reader.quotes = True, "", _QUOTES
    try:
        return list(reader)
    except ValueError:
        raise ConfigError(f"{where}: cannot read '{reader.token}'; quotes come in pairs") from None


def _comparison(tokens: list[str], where: str, kind: str | None) -> Comparison:
    name, sign, value = tokens if len(tokens) == 3 else ("", "", "")
    sign = "=" if sign == "==" else sign
    if sign not in _OPERATORS or name in _OPERATORS or value in _OPERATORS:
        raise ConfigError(
            f"{where}: '{' '.join(tokens) or 'nothing'}' is no comparison; write NAME OPERATOR VALUE, several joined by 'and' "
            f"(operators: {', '.join(_OPERATORS)})"
        )
    before, _, rest = name.strip(_QUOTES).partition(".")
    if before in KINDS and rest:
        kind, name = before, rest
    elif kind is None:
        near = nearest(before, KINDS, 1)
        begin = f"begin it with {', '.join(f'{kind}.' for kind in KINDS)}"
        raise ConfigError(f"{where}: '{name}': " + (f"did you mean {near[0]}.{rest or 'NAME'}?" if near else begin))
    number = None if value[0] in _QUOTES else _number(value)
    if number is None and sign in _ORDER:
        raise ConfigError(f"{where}: '{name} {sign} {value}': {sign} needs a number behind it")
    return Comparison(kind, name.strip(_QUOTES), sign, value.strip(_QUOTES) if number is None else number)


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


# Settings


def settings_of(versions: Iterable[Version], catalogue: Catalogue) -> dict[int, dict[str, str]]:
    """Setting by dotted path, as text, by version number: the sweep's over the defaults, and over those the trial's.

    Of a run that is gone nothing is known.
    """
    wanted = {version.number: version.run_id for version in versions}
    trials = catalogue.runs(wanted.values())
    parents = catalogue.runs({run.tags[names.PARENT] for run in trials.values() if names.PARENT in run.tags})
    defaults = _defaults() if trials else {}
    return {number: _settings(trials.get(run_id), parents, defaults) for number, run_id in wanted.items()}


def texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Plain JSON data by dotted path, each value as the text that the lab book keeps."""
    from cddpm.config import flat  # a fifth of a second, for conditions on settings alone

    return {path: value if isinstance(value, str) else json.dumps(value) for path, value in flat(config).items()}


def _settings(run: Run | None, parents: dict[str, Run], defaults: dict[str, str]) -> dict[str, str]:
    if run is None:
        return {}
    parent = parents.get(run.tags.get(names.PARENT, ""))
    return {**defaults, **(parent.params if parent else {}), **run.params}


def _defaults() -> dict[str, str]:
    """Runs keep only what differs from these."""
    from cddpm.config import ExperimentConfig, to_dict

    return texts(to_dict(ExperimentConfig(name="defaults")))


# Orders


def score_key(metric: str, dataset: str | None = None, split: str = "val") -> str:
    """The full name of a score, by which versions are ranked. Raises ``TrackingError`` for another split than val or test."""
    if split not in names.SPLITS:
        raise TrackingError(f"split: '{split}': allowed are {', '.join(names.SPLITS)}")
    if metric == names.OBJECTIVE and split == "val" and dataset is None:
        return metric
    return names.metric(split, metric, dataset)


def ranked(versions: Sequence[Version], key: str, model: str) -> list[Version]:
    """Those that have the metric, best first; the newest of equals. Raises ``TrackingError`` if none has it."""
    having = [version for version in versions if key in version.metrics]
    if not having:
        near = nearest_names(key, (name for version in versions for name in version.metrics))
        raise TrackingError(
            f"'{model}': none of {len(versions)} versions has the metric '{key}'; "
            + (f"there are {near}" if near else "register a model first")
        )
    sign = -1.0 if names.higher_is_better(key) else 1.0
    return sorted(having, key=lambda version: (sign * version.metrics[key], -version.number))


def in_order(versions: Sequence[Version], order: str, model: str) -> list[Version]:
    """By ``version`` (newest first), ``created``, ``trial``, or by a metric, best first; those without it come last.

    Raises ``ConfigError`` with the nearest names for another order.
    """
    if order in _SORTS:
        return sorted(versions, key=_SORTS[order])
    if not versions:
        return []
    known = {name for version in versions for name in version.metrics}
    key = order if order in known else f"val/{order}"
    if key not in known:
        near = nearest(order, [*_SORTS, *known]) or list(_SORTS)
        raise ConfigError(
            f"--sort {order}: allowed are {', '.join(_SORTS)} or a metric; did you mean {', '.join(near)}?"
        )
    return [*ranked(versions, key, model), *(version for version in versions if key not in version.metrics)]
