"""What was meant by a word that is none of those that are allowed."""

import difflib
from collections.abc import Iterable

_LIKENESS = 0.5
"""Share of letters in common, as ``difflib`` counts them, below which two words are not alike."""


def nearest(word: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """The up to ``count`` of ``allowed`` that look most like ``word``, the most similar first; none if nothing does."""
    return difflib.get_close_matches(word, sorted(set(allowed)), n=count, cutoff=_LIKENESS)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the most similar of ``allowed``, or nothing."""
    return "".join(f"; did you mean '{name}'?" for name in nearest(word, allowed, count=1))
