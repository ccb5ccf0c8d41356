"""Which versions, in which order: filters, and the ranking by a metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from cddpm.errors import ConfigError, TrackingError
from cddpm.text.likeness import nearest
from cddpm.tracking import names
from cddpm.tracking.version import Version
from cddpm.tracking.version_condition import Comparison, fulfilled, full_name

Settings = Callable[[Sequence[Version]], Mapping[int, Mapping[str, str]]]
"""Settings of versions, by number; asked only if a condition names one."""
_ORDERS: dict[str, Callable[[Version], tuple[int | str, ...]]] = {
    "version": lambda version: (-version.number,),
    "created": lambda version: (version.created, version.number),
    "trial": lambda version: (version.trial_name or "", version.number),
}


def metric_key(metric: str, dataset: str | None = None, split: str = "val") -> str:
    """The full name of a metric. Raises ``TrackingError`` for another split than val or test."""
    if split not in names.SPLITS:
        raise TrackingError(f"split: '{split}': allowed are {', '.join(names.SPLITS)}")
    if metric == names.OBJECTIVE and split == "val" and dataset is None:
        return metric
    return names.metric(split, metric, dataset)


def where(versions: Sequence[Version], comparisons: Sequence[Comparison], settings: Settings) -> list[Version]:
    """The versions that fulfil all comparisons, in their order.

    Raises ``TrackingError`` with the nearest names for one that no version has, ``ConfigError`` for an ambiguous one.
    """
    if not comparisons or not versions:
        return list(versions)
    params = settings(versions) if any(c.kind == "params" for c in comparisons) else {}
    values = {v.number: {"metrics": v.metrics, "params": params.get(v.number, {}), "tags": v.tags} for v in versions}
    named = [(c, full_name(c, _known(values.values(), c.kind), "--where")) for c in comparisons]
    return [version for version in versions if fulfilled(named, values[version.number])]


def ranked(versions: Sequence[Version], key: str, model: str) -> list[Version]:
    """Those that have the metric, best first; the newest of equals. Raises ``TrackingError`` if none has it."""
    having = [version for version in versions if key in version.metrics]
    if not having:
        known = sorted({name for version in versions for name in version.metrics})
        near = nearest(key, known) or known[:8]
        raise TrackingError(
            f"'{model}': none of {len(versions)} versions has the metric '{key}'; "
            + (f"there are {', '.join(near)}" if near else "register a model first")
        )
    sign = -1.0 if names.higher_is_better(key) else 1.0
    return sorted(having, key=lambda version: (sign * version.metrics[key], -version.number))


def in_order(versions: Sequence[Version], order: str, model: str) -> list[Version]:
    """By ``version`` (newest first), ``created``, ``trial``, or by a metric, best first; those without it come last.

    Raises ``ConfigError`` with the nearest names for another order.
    """
    if order in _ORDERS:
        return sorted(versions, key=_ORDERS[order])
    known = {name for version in versions for name in version.metrics}
    key = order if order in known else f"val/{order}"
    if versions and key not in known:
        near = nearest(order, [*_ORDERS, *known]) or list(_ORDERS)
        raise ConfigError(
            f"--sort {order}: allowed are {', '.join(_ORDERS)} or a metric; did you mean {', '.join(near)}?"
        )
    first = ranked(versions, key, model) if versions else []
    return [*first, *(version for version in versions if key not in version.metrics)]


def _known(values: Iterable[Mapping[str, Mapping[str, object]]], kind: str) -> list[str]:
    return list(dict.fromkeys(name for found in values for name in found[kind]))
