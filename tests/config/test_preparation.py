"""Settings of preparation: contradictions are refused with the remedy, defaults agree with each other."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from cddpm.config.preparation import PreparationConfig, StepName


def test_all_steps_are_done_without_any_setting() -> None:
    assert set(PreparationConfig().steps) == set(get_args(StepName))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "none"),
        ({"template": "t.nii"}, "affine"),
        ({"template": "t.nii", "registration": "rigid"}, "rigid"),
        ({"template": "t.nii", "registration": "none"}, "none"),
    ],
)
def test_a_template_is_registered_to_unless_told_otherwise(given: dict[str, Any], expected: str) -> None:
    assert PreparationConfig(**given).moves_to_template == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": ("crop", "crop")}, "named twice"),
        ({"steps": ("resample", "register")}, "register after resample"),
        ({"registration": "affine"}, "needs a template"),
        ({"template_mask": Path("m.nii")}, "name both"),
        ({"extractor_program": Path("hd-bet")}, "'auto' is no program"),
        ({"voxel_size_mm": 0}, "greater than 0"),
        ({"bias_iterations": ()}, "at least 1 item"),
        ({"steps": ("denoise",)}, "'reorient'"),
        ({"template": "s3://bucket/t.nii"}, "should be"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PreparationConfig(**given)
