"""What a page holds for plotly: its figures, as plotly.js reads them."""

import base64
import json
import re
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

FIGURE = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


def without_plotly(text: str) -> str:
    """The page without the library itself."""
    return text.replace(get_plotlyjs(), "")


def figures(text: str) -> list[dict[str, Any]]:
    """Data and layout of each figure of a page."""
    return [json.loads(found) for found in FIGURE.findall(without_plotly(text))]


def values(array: Any) -> list[float]:
    """Numbers of a trace, whether they were written as a list or as bytes."""
    if isinstance(array, dict):
        return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]).tolist()
    return list(array)


def tooltips(found: list[dict[str, Any]]) -> list[str]:
    """Of all marks of ``found``; each trace of marks has one for each."""
    told = []
    for figure in found:
        for trace in figure["data"]:
            if trace.get("mode") == "markers" or trace["type"] == "bar":
                assert len(trace["hovertext"]) == len(values(trace["x"])) == len(values(trace["y"])) > 0
                told += trace["hovertext"]
    return told
