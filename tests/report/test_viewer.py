"""What the viewer says of itself: post-processing in words, whether the component filter is in, labels for every control."""

from html.parser import HTMLParser

import pytest
from drawn_exhibit import drawn

from cddpm.config import ScoringConfig
from cddpm.report.document import html
from cddpm.report.viewer import described, viewer


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {},
            "residual l1, brain mask eroded (divisor 25), 3D median filter of 5 voxels. The kept segmentation is also without "
            "components of fewer than 8 voxels (26 neighbours, holes filled); the live threshold works without that filter.",
        ),
        (
            {"residual": "ssim", "erosion_divisor": None, "median_kernel": 1, "minimum_component_voxels": 0},
            "residual ssim, no median filter. The kept segmentation has no component filter either.",
        ),
        (
            {"connectivity": 6, "component_size": "voxels"},
            "fewer than 8 voxels (6 neighbours, holes not counted)",
        ),
    ],
)
def test_post_processing_in_words(settings: dict[str, object], words: str) -> None:
    assert words in described(ScoringConfig.model_validate(settings))


class Controls(HTMLParser):
    """Ids of controls, and of what labels are for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.controls: set[str | None] = set()
        self.labels: set[str | None] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("input", "select"):
            self.controls.add(given.get("id"))
        if tag == "label":
            self.labels.add(given.get("for"))


def test_every_control_has_a_label() -> None:
    found = Controls(html([viewer([drawn()])]))
    assert found.controls == found.labels
    assert len(found.controls) == 5


def test_every_volume_is_inside() -> None:
    assert html([viewer([drawn("one"), drawn("two")])]).count('class="exhibit"') == 2
