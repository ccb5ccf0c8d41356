import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

from cddpm.tracking import names

CONSTANTS = {name: value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_mlflow_takes_every_name(name: str) -> None:
    _validate_metric_name(CONSTANTS[name])
    _validate_tag_name(CONSTANTS[name])
    assert names.safe(CONSTANTS[name]) == CONSTANTS[name]


def test_no_two_tags_share_a_name() -> None:
    tags = [value for value in CONSTANTS.values() if value.startswith("cddpm.")]
    assert len(tags) == len(set(tags))


def test_metrics_are_filed_by_split_and_data_set() -> None:
    assert names.metric("val", "dice") == "val/dice"
    assert names.metric("test", "dice", "Brats21") == "test/Brats21/dice"
    assert names.trial_key("demo", 3) == "demo/0003"


def test_only_val_and_test_are_splits() -> None:
    with pytest.raises(ValueError, match="split: 'train': allowed are val, test"):
        names.metric("train", "dice")


@pytest.mark.parametrize(
    "ugly", ["", "/", "a//b", "../../etc", "./a", "a/./b", "dice@0.5", "größe", "x" * 400, "a\nb", "/a/"]
)
def test_safe_names_are_accepted_and_stay(ugly: str) -> None:
    safe = names.safe(ugly)
    _validate_metric_name(safe)
    assert names.safe(safe) == safe


def test_directions() -> None:
    assert names.higher_is_better("val/Brats21/dice")
    assert names.higher_is_better(names.OBJECTIVE)
    assert not names.higher_is_better(names.VAL_LOSS)
