"""How settings are named and shown on a page."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cddpm.text.numbers import number


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted path where that is enough to tell it from the others."""
    listed = list(paths)
    count = Counter(path.rsplit(".", 1)[-1] for path in listed)
    return {path: last if count[last := path.rsplit(".", 1)[-1]] == 1 else path for path in listed}


def shown(path: str, value: Any) -> str:
    """A setting's value in words: an empty choice of noise levels means all of them."""
    if value is None:
        return "all" if path.endswith("noise_levels") else "none"
    return number(value)


def described(settings: dict[str, Any]) -> str:
    """Settings in one line: ``guidance_scale 1.3, residual l1``."""
    names = short_names(settings)
    return ", ".join(f"{names[path]} {shown(path, value)}" for path, value in settings.items()) or "as configured"
