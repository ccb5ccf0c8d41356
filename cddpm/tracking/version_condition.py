"""Conditions on versions: ``metrics.dice > 0.4 and params.guidance_scale > 1 and tags.cddpm.sweep = 'demo'``.

::

    condition   comparison [and comparison]...
    comparison  NAME OPERATOR VALUE
    NAME        metrics.NAME, params.NAME or tags.NAME; a name with blanks stands in `backquotes`
    OPERATOR    > >= < <= = != (== is =)
    VALUE       a number, or text: a word, or anything in quotes

``metrics.dice`` is ``val/dice``, ``metrics.Brats21/dice`` is ``val/Brats21/dice``. ``params.guidance_scale`` is the one setting
whose dotted path ends so. A version without the value does not fulfil the comparison.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cddpm.errors import ConfigError, TrackingError
from cddpm.text.likeness import nearest

KINDS = ("metrics", "params", "tags")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_OPERATORS = {**_ORDER, "=": operator.eq, "!=": operator.ne}
_TOKEN = re.compile(
    r"""\s*(?: (?P<operator>>=|<=|!=|==|=|>|<) | (?P<quoted>'[^']*'|"[^"]*"|`[^`]*`) | (?P<word>[^\s=<>!'"`]+) )""",
    re.VERBOSE,
)


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
    tokens = _tokens(text, where)
    parts: list[list[tuple[str, str]]] = [[]]
    for token in tokens:
        if token[0] == "word" and token[1].lower() == "and":
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


def full_name(comparison: Comparison, known: Iterable[str], where: str) -> str:
    """The name that is meant among ``known`` ones. Raises ``TrackingError`` with the nearest if none has it."""
    names = list(known)
    found: str | None
    match comparison.kind:
        case "metrics":
            found = metric_key(comparison.name, names)
        case "params":
            found = param_key(comparison.name, names)
        case _:
            found = comparison.name if comparison.name in names else None
    if found is None:
        near = nearest(comparison.name, names) or sorted(set(names))[:8]
        raise TrackingError(
            f"{where}: no version has {comparison.kind}.{comparison.name}; there are {', '.join(near) or 'none at all'}"
        )
    return found


def fulfilled(comparisons: Iterable[tuple[Comparison, str]], values: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all comparisons, each with its full name, hold of ``values`` (kind -> name -> value)."""
    return all(c.holds(values[c.kind].get(name)) for c, name in comparisons)


def _tokens(text: str, where: str) -> list[tuple[str, str]]:
    found, place = [], 0
    while place < len(text.rstrip()):
        token = _TOKEN.match(text, place)
        if token is None:
            raise ConfigError(f"{where}: cannot read '{text[place:].strip()}'; quotes come in pairs")
        found.append((str(token.lastgroup), token.group(str(token.lastgroup))))
        place = token.end()
    return found


def _comparison(tokens: list[tuple[str, str]], where: str, kind: str | None) -> Comparison:
    if [name for name, _ in tokens][1:2] != ["operator"] or len(tokens) != 3 or tokens[2][0] == "operator":
        found = " ".join(text for _, text in tokens) or "nothing"
        raise ConfigError(
            f"{where}: '{found}' is no comparison; write NAME OPERATOR VALUE, several joined by 'and' "
            f"(operators: {', '.join(_OPERATORS)})"
        )
    (_, name), (_, sign), (how, text) = tokens
    sign = "=" if sign == "==" else sign
    before, dot, rest = name.strip("`'\"").partition(".")
    if before in KINDS and dot and rest:
        kind, name = before, rest
    elif kind is None:
        near = nearest(before, KINDS, 1)
        hint = (
            f"did you mean {near[0]}.{rest or 'NAME'}?"
            if near
            else f"begin it with {', '.join(f'{k}.' for k in KINDS)}"
        )
        raise ConfigError(f"{where}: '{name}': {hint}")
    else:
        name = name.strip("`'\"")
    value = None if how == "quoted" else _number(text)
    if value is None and sign in _ORDER:
        raise ConfigError(f"{where}: '{name} {sign} {text}': {sign} needs a number behind it")
    return Comparison(kind, name.strip("`'\""), sign, text.strip("'\"`") if value is None else value)


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
