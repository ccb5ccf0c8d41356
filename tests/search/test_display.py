"""What a person sees: lines without a terminal, a live table with one."""

import io
import time

import pytest

from cddpm.search import display as displays
from cddpm.search.display import Display
from cddpm.text import Console


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(text: io.StringIO) -> Display:
    return Display(Console(file=text, width=200))


def test_a_stage_is_told_with_its_outcome(display: Display, text: io.StringIO) -> None:
    with display.stage("slice store") as say:
        say("12 volumes")
    with display.stage("nothing to say"):
        pass
    assert "✓ slice store: 12 volumes (0.0 s)\n✓ nothing to say (0.0 s)\n" in text.getvalue()


def test_a_failed_stage_is_not_ticked(display: Display, text: io.StringIO) -> None:
    with pytest.raises(ValueError, match="bad"), display.stage("slice store"):
        raise ValueError("bad")
    assert "✓" not in text.getvalue()


def test_the_life_of_a_trial(display: Display, text: io.StringIO) -> None:
    display.started(3, {"training.learning_rate": 0.000123456, "diffusion.loss": "l2"})
    display.reported(3, {"images": 12800.0, "val/loss": 0.25, "objective": 0.5})
    display.ended(3, "finished", 0.625)
    lines = text.getvalue().splitlines()
    assert lines[0].endswith("trial 0003 starts: learning_rate 0.000123, loss l2")
    assert lines[1].endswith("trial 0003 after  12,800 images: validation loss 0.2500, preview 0.500")
    assert lines[2].endswith("trial 0003 finished, validation 0.625")


@pytest.mark.parametrize("how", ["finished", "stopped", "failed", "interrupted"])
def test_each_ending_has_words(display: Display, text: io.StringIO, how: str) -> None:
    display.started(0, {})
    display.ended(0, how)
    assert "trial 0000 starts: settings as configured" in text.getvalue()
    assert {"interrupted": "--resume continues it", "stopped": "stopped early"}.get(how, how) in text.getvalue()


def test_the_summary_counts_ends_but_not_interruptions(display: Display) -> None:
    with display.tuning(5, 1, (0.4, 0), dict):
        display.started(1, {})
        display.ended(1, "finished", 0.3)
        assert "2 of 5 trials done · best so far 0.400 (trial 0000)" in display._summary().plain
        display.ended(2, "finished", 0.6)
        display.ended(3, "interrupted")
        assert "3 of 5 trials done · best so far 0.600 (trial 0002)" in display._summary().plain


def test_without_a_terminal_lines_say_where_trials_are(
    display: Display, text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(displays, "LINE_SECONDS", 0.01)
    board = {0: ("train", 1000, 4000, 0.125), 1: ("search", 3, 60, 0.5), 9: ("train", 1, 2, 0.0)}
    with display.tuning(2, 0, None, lambda: board):
        display.started(0, {})
        display.started(1, {})
        wait_for(text, "searching settings: 3 of 60 settings, best 0.500")
    assert "trial 0000 training: 1,000 of 4,000 images, loss 0.1250" in text.getvalue()
    assert "trial 0009" not in text.getvalue()  # not running


@pytest.mark.slow
def test_with_a_terminal_a_table_is_live(text: io.StringIO) -> None:
    display = Display(Console(file=text, width=160, force_terminal=True))
    with display.tuning(2, 0, None, lambda: {0: ("pretrain", 10, 100, 0.5)}):
        display.started(0, {})
        display.started(1, {})
        wait_for(text, "pretraining encoder: 10 of 100 images")
        wait_for(text, "starting workers")


def wait_for(text: io.StringIO, wanted: str) -> None:
    end = time.monotonic() + 10
    while wanted not in text.getvalue():
        assert time.monotonic() < end, text.getvalue()
        time.sleep(0.01)


def test_markup_in_settings_is_shown_as_it_is(display: Display, text: io.StringIO) -> None:
    display.started(0, {"reconstruction.noise_levels": [10, 25]})
    assert "noise_levels [10, 25]" in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_trials_left_to_say_is_said_once_and_as_it_is(text: io.StringIO, terminal: bool) -> None:
    display = Display(Console(file=text, width=200, force_terminal=terminal))
    lines = [["trial 0001: a[0] is damaged"]]
    with display.tuning(1, 0, None, dict, lambda: lines.pop() if lines else []):
        pass
    assert text.getvalue().count("trial 0001: a[0] is damaged") == 1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("trials", [1, 4, 40])
def test_the_live_table_fits_the_terminal_and_says_how_many_it_leaves_out(width: int, trials: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=20, force_terminal=True, color_system=None)
    display = Display(console)
    board = {n: (stage, 1_234_567, 10_000_000, 0.1234) for n, stage in enumerate([*displays.STAGES] * 8)}
    for number in range(trials):
        display._trials[number] = "starting workers"
    lines = ["".join(s.text for s in line).rstrip() for line in console.render_lines(display._table(board), pad=False)]
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert ("more trials run" in text) == (trials == 40)
    for word in ("reconstructing:", "1,234,567", "10,000,000", "0.1234") if trials > 3 else ("0000", "images,"):
        assert word in text
    if width >= 80:
        assert len(lines) <= 20
    if width >= 120:
        assert "━" in text


def test_a_stage_s_path_is_whole_at_80_columns(text: io.StringIO) -> None:
    display, place = Display(Console(file=text, width=80)), "/home/me/my scans/outputs/data/phantom-" + "0" * 16
    with display.stage("synthetic cohort (phantom)") as say:
        say(display.console.path(place))
    assert text.getvalue() == f"✓ synthetic cohort (phantom):\n  {place} (0.0 s)\n"


def test_settings_of_a_trial_are_not_broken_from_their_values(text: io.StringIO) -> None:
    settings = {f"scoring.setting_{n}": n / 10 for n in range(12)}
    Display(Console(file=text, width=80)).started(0, settings)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for number in range(12):
        assert any(f"setting_{number} {number / 10:.3g}" in line for line in lines)
    assert lines[1].startswith("     setting_")  # below the text, beside the clock
