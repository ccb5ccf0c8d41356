"""What was meant: few names, each once, the most alike first; nothing where nothing is alike."""

from cddpm.text.likeness import did_you_mean, nearest


def test_the_nearest_are_few_and_named_once() -> None:
    assert nearest("dise", ["dice", "dice", "auprc"]) == ["dice"]
    assert len(nearest("dice", ["dice1", "dice2", "dice3", "dice4"])) == 3
    assert nearest("x", ["dice"]) == []


def test_the_most_alike_is_asked_for() -> None:
    assert (
        did_you_mean("learning_rat", {"learning_rate", "batch_size", "learning_rates"})
        == "; did you mean 'learning_rate'?"
    )
    assert did_you_mean("x", ["learning_rate"]) == ""
    assert did_you_mean("x", []) == ""
