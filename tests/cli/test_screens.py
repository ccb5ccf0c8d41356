"""Every command that runs without a network or a cluster, at 80 columns and into a file: nothing is broken, nothing is lost."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import built_sweep
import pytest
import registered
import stored_shelf
import typer
import yaml
from published_file import TINY, diffusion_state, network, save, whole
from screen import lost, too_long
from shelf import full
from typer.testing import CliRunner

from cddpm import publishing
from cddpm.cli import app, shell
from cddpm.tracking import connection

WIDTH = 80
SWEEP = "postprocessing-of-all-t2-cohorts-2d6e1f"
BUCKET = "memory://bucket-of-the-group/results-of-all-years"
CAMPAIGN = "benchmark-of-the-guided-reconstruction-t2"
FEW = "--subjects=2 --healthy-val=1 --healthy-test=1 --unhealthy-val=1 --unhealthy-test=1 --size=small --processes=1"
COMMANDS = (
    "cache ls",
    "cache verify",
    "cache prune --unreferenced --dry-run",
    "cache prune --max-gib 0 --keep-days 100 --dry-run",
    f"cache ls --storage {BUCKET}",
    f"cache verify --storage {BUCKET}",
    f"cache prune --max-gib 0 --keep-days 100 --dry-run --storage {BUCKET}",
    "cache ls --output-dir a-folder-that-is-nowhere/below-the-working-directory-of-this-program",
    "data check phantom-of-two-subjects --modality t1",
    "data check phantom-of-two-subjects --unhealthy Nowhere",
    "data splits phantom-of-two-subjects",
    "data splits phantom-of-two-subjects --write clean-splits-of-the-phantom-of-two-subjects",
    "data phantom phantom-of-two-subjects " + FEW,
    "import published.ckpt --config experiment.yaml --output-dir results-of-the-import --threshold 0.25",
    "registry list",
    "registry list --sort dice",
    "registry list --sweep nothing-of-this-name",
    "registry list --model a-model-that-nobody-has-registered-yet",
    "registry list --where metrics.val/no_such_measure_of_the_reconstruction>0",
    "registry best",
    "registry best --split test",
    "registry best --dataset Brats21 --metric foreground_reconstruction_error",
    "registry show champion",
    "registry show 5",
    "registry compare 1 2 3",
    "registry compare 1 2 3 4 5",
    "registry lineage champion",
    "registry verify",
    "registry verify 1 5",
    "registry pull champion packages-for-the-clinic/of-the-first-month",
    "registry promote 5 --alias challenger --require dice>0.9",
    "registry sync",
    "report postprocessing-of-all-t2-cohorts-2d6e1f",
    "report postprocessing-of-all-t2-cohorts-3d6e1f",
    "predict scan-that-is-nowhere.nii.gz --model packages/demo/1 --out results",
)
MISUSE = (
    "dat",
    "report a /very/long/path/of/a/scan/that/goes/on/and/on/to/the/end/of/the/line.nii.gz",
    "cache prune --keep-days -1",
    "data phantom",
    "predict scan.nii.gz",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with artifacts, sweeps, a lab book with five versions, a phantom and published weights."""
    folder = tmp_path_factory.mktemp("desk")
    shelf = full(folder / "outputs")
    shelf.campaign("evaluations", CAMPAIGN)
    connection.connect(connection.default_uri(folder / "empty"))
    registered.filled(folder / "outputs", folder / "empty" / "mlflow.db")
    _long_named(folder / "outputs")
    built_sweep.drawn(folder / "outputs", trials=3, points=4, name=SWEEP)
    publishing.publish_all(folder / "outputs")
    save(folder / "published.ckpt", diffusion_state(network(whole()), whole()))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(TINY))
    assert (
        CliRunner().invoke(app, ["data", "phantom", str(folder / "phantom-of-two-subjects"), *FEW.split()]).exit_code
        == 0
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(stored_shelf.memory(patch)) as memory:
        next(memory)
        stored_shelf.stored(full(folder / "elsewhere"), BUCKET)
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert not _run("registry promote 4 --alias champion --why better-than-all-others-on-every-data-set", WIDTH)[1]
        yield folder


def _long_named(output_dir: Path) -> None:
    """Two more versions, of a sweep with a long name and many measures."""

    measures = {"dice": 0.5, "auprc": 0.25, "foreground_reconstruction_error": 0.125}
    for number in range(2):
        metrics = {
            f"val/{d}/{m}": v + number / 100 for d in ("Brats21", "ATLAS_v2", "MSLUB") for m, v in measures.items()
        }
        metrics |= {"val/dice": 0.25 + number / 100, "val/healthy/false_positive_rate": 0.0123}
        params = {"scoring.minimum_component_voxels": number, "diffusion.noise.frequency": 64 + number}
        package = registered.make_package(output_dir, number, SWEEP)
        registered.register(output_dir, package, f"{SWEEP}/{number:04d}", params, metrics=metrics)


def _run(command: str, columns: int | None) -> tuple[str, str]:
    """What it prints and what it says to stderr, at so many columns or, with None, into a file."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["cddpm", *command.split()])
        patch.delenv("COLUMNS", raising=False)
        if columns is not None:
            patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            shell.guarded_app(app)
    return out.getvalue(), err.getvalue()


def thinned(commands: Sequence[str]) -> list[Any]:
    """Every third by day."""
    return [c if i % 3 == 0 else pytest.param(c, marks=pytest.mark.nightly) for i, c in enumerate(commands)]


@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", [*thinned(COMMANDS), *thinned(MISUSE)])
def test_no_command_breaks_a_word(command: str) -> None:
    if command.startswith("import"):
        _run(command, None)  # the first time it writes, then it was there
    for wide, narrow in zip(_run(command, None), _run(command, WIDTH), strict=True):
        assert not _lost_but_the_day(wide, narrow)
        assert not too_long(narrow, WIDTH)
        assert "…" not in wide + narrow


def _lost_but_the_day(wide: str, narrow: str) -> list[str]:
    """Lists of versions tell the day only where there is room; ``registry show`` has it always."""
    return [word for word in lost(wide, narrow) if not re.fullmatch(r"created|\d{4}-\d\d-\d\d", word)]


def _all_commands(command: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield before
    for name, below in getattr(command, "commands", {}).items():
        yield from _all_commands(below, (*before, name))


@pytest.mark.parametrize("command", list(_all_commands(typer.main.get_command(app))), ids=" ".join)
def test_no_help_is_cut(command: tuple[str, ...]) -> None:
    text = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(WIDTH)}).stdout
    assert "…" not in text
    assert not too_long(text, WIDTH)


@pytest.mark.slow
def test_a_real_terminal_is_as_wide_as_it_says(place: Path) -> None:
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    done = subprocess.Popen(
        [sys.executable, "-m", "cddpm", "registry", "best"],
        stdin=other, stdout=other, stderr=other, cwd=place, env={**environment, "TERM": "dumb"},
    )  # fmt: skip
    os.close(other)
    text = b""
    while chunk := _read(main):
        text += chunk
    assert done.wait(60) == 0
    shown = text.decode().replace("\r\n", "\n")
    assert not too_long(shown, WIDTH)
    assert not _lost_but_the_day(_run("registry best", None)[0], shown)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end was closed
        return b""
