"""The score book: a setting is run once, whoever asks, and found exactly as it was."""

import json
import multiprocessing
import resource
import time
from pathlib import Path

import pytest

from cddpm.config import ScoringConfig
from cddpm.errors import StorageError
from cddpm.scoring import score_book
from cddpm.scoring.score import Score, Scorer
from cddpm.scoring.score_book import ScoreBook, damaged_lines

GROUPS, HEALTHY = {"A": [0, 1, 2], "B": [3, 4]}, [5, 6]


class Counting(Scorer):
    """Counts what is run."""

    runs = 0

    def score(self, *arguments, **settings) -> Score:
        self.runs += 1
        return super().score(*arguments, **settings)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(score_book, "REFRESH_SECONDS", 0.0)


@pytest.fixture
def scorer(store, reconstructions) -> Counting:
    return Counting(store, reconstructions, GROUPS, HEALTHY)


def open_book(scorer: Scorer, folder: Path, reconstruction: str = "r", store: str = "s") -> ScoreBook:
    return ScoreBook.open(scorer, folder, reconstruction, store)


SETTINGS = [
    (ScoringConfig(median_kernel=3), "dice", None),
    (ScoringConfig(median_kernel=3), "auprc", None),
    (ScoringConfig(median_kernel=3), "dice", ["A"]),
    (ScoringConfig(median_kernel=3, guidance_scale=1.5), "dice", None),
    (ScoringConfig(median_kernel=1, normalise="healthy-z-by-intensity"), "dice", None),
]


def test_a_second_book_finds_every_score_as_it_was(scorer, tmp_path):
    first = open_book(scorer, tmp_path)
    scores = [first.score(*setting) for setting in SETTINGS]
    assert scorer.runs == len(SETTINGS)
    assert [first.score(*setting) for setting in SETTINGS] == scores
    second = open_book(scorer, tmp_path)
    assert [second.score(*setting) for setting in SETTINGS] == scores
    assert scorer.runs == len(SETTINGS)
    assert (first.found, second.found) == (len(SETTINGS), len(SETTINGS))


def test_a_found_score_is_the_one_that_would_be_run(scorer, tmp_path):
    for setting in SETTINGS:
        open_book(scorer, tmp_path).score(*setting)
    for setting in SETTINGS:
        found, run = open_book(scorer, tmp_path).score(*setting), scorer.score(*setting)
        assert (found.objective, found.thresholds, found.datasets) == (run.objective, run.thresholds, run.datasets)
        assert (found.values, found.statistics) == (run.values, run.statistics)


def test_the_time_of_forward_passes_is_not_that_of_who_ran_the_score(scorer, store, reconstructions, tmp_path):
    slow, fast = (Scorer(store, reconstructions, GROUPS, HEALTHY, seconds_per_pass=s) for s in (8.0, 2.0))
    run = [open_book(one, tmp_path).score(*SETTINGS[0]).values for one in (slow, scorer, fast)]
    seconds = slow.score(*SETTINGS[0]).values["seconds_per_volume"]
    assert [values.get("seconds_per_volume") for values in run] == [seconds, None, seconds / 4]
    assert {name: value for name, value in run[0].items() if name != "seconds_per_volume"} == run[1]


def test_two_open_books_share_what_either_runs(scorer, tmp_path):
    one, other = open_book(scorer, tmp_path), open_book(scorer, tmp_path)
    for i, setting in enumerate(SETTINGS):
        (one, other)[i % 2].score(*setting)
        (other, one)[i % 2].score(*setting)
    assert scorer.runs == len(SETTINGS)


def test_other_reconstructions_and_cohorts_have_other_books(scorer, store, reconstructions, tmp_path):
    fewer = Counting(store, reconstructions, {"A": [0, 1], "B": [3, 4]}, HEALTHY)
    without = Counting(store, reconstructions, GROUPS)
    books = [
        open_book(scorer, tmp_path),
        open_book(scorer, tmp_path, reconstruction="q"),
        open_book(scorer, tmp_path, store="t"),
        open_book(fewer, tmp_path),
        open_book(without, tmp_path),
    ]
    assert len({book.folder for book in books}) == len(books)
    assert open_book(scorer, tmp_path).folder == books[0].folder
    origin = json.loads((books[0].folder / "made_from.json").read_text())
    assert (origin["reconstruction"], origin["store"], origin["healthy"]) == ("r", "s", ["IXI/0", "IXI/1"])


def test_damaged_lines_are_run_again_and_told(scorer, tmp_path, caplog):
    book = open_book(scorer, tmp_path)
    scores = [book.score(*setting) for setting in SETTINGS]
    (file,) = book.folder.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"0.", b"0.9", 1)  # still JSON
    lines[2] = lines[2][:50] + b"\n"
    lines[-1] = lines[-1][:-9]  # its end is still to be written, or never will be
    file.write_bytes(b"".join(lines))
    assert damaged_lines(file) == 2
    again = open_book(scorer, tmp_path)
    assert "2 damaged lines" in caplog.text
    before = scorer.runs
    found = [again.score(*setting) for setting in SETTINGS]
    assert scorer.runs == before + 3
    assert [score.objective for score in found] == [score.objective for score in scores]


def test_scores_of_another_version_are_left_out(scorer, tmp_path):
    book = open_book(scorer, tmp_path)
    book.score(*SETTINGS[0])
    (file,) = book.folder.glob("*.jsonl")
    entry = json.loads(file.read_text())
    del entry["sha256"]
    entry["score"]["a number of the future"] = 1.0
    file.write_text(json.dumps({**entry, "sha256": score_book._digest(entry)}) + "\n")
    before = scorer.runs
    open_book(scorer, tmp_path).score(*SETTINGS[0])
    assert scorer.runs == before + 1
    assert damaged_lines(file) == 0


def test_a_lookup_takes_less_than_a_millisecond(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(score_book, "REFRESH_SECONDS", 2.0)
    book = open_book(scorer, tmp_path)
    book.score(*SETTINGS[0])
    times = []
    for _ in range(200):
        start = time.thread_time()
        book.score(*SETTINGS[0])
        times.append(time.thread_time() - start)
    assert sorted(times)[100] < 1e-3


def write_many(folder: Path, store, reconstructions, count: int) -> None:
    book = open_book(Scorer(store, reconstructions, GROUPS, HEALTHY), folder)
    for i in range(count):
        book.score(ScoringConfig(median_kernel=1, guidance_scale=1 + i / 100), "dice", ["A"])


@pytest.mark.slow
def test_processes_write_at_once(scorer, store, reconstructions, tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=write_many, args=(tmp_path, store, reconstructions, n)) for n in (4, 6)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    book = open_book(scorer, tmp_path)
    for i in range(6):
        book.score(ScoringConfig(median_kernel=1, guidance_scale=1 + i / 100), "dice", ["A"])
    assert scorer.runs == 0


def fill_the_disk(folder: Path, store, reconstructions, answers) -> None:
    book = open_book(Scorer(store, reconstructions, GROUPS, HEALTHY), folder)
    book.score(*SETTINGS[0])
    size = book._own.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 10000))
    try:
        book.score(*SETTINGS[1])
    except StorageError as error:
        answers.put(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10000, size + 10000))
    book.score(*SETTINGS[2])
    answers.put(damaged_lines(book._own))


def test_a_full_disk_is_named_and_spoils_no_line(store, reconstructions, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=fill_the_disk, args=(tmp_path, store, reconstructions, answers))
    child.start()
    message = answers.get(timeout=30)
    assert str(tmp_path) in message
    assert "no space left" in message
    assert answers.get(timeout=30) == 0
    child.join()
