"""``cddpm import``: published weights become a checkpoint, an encoder or a model package of this project."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.shell import overrides
from cddpm.text import Console, Table, command, name, whole

if TYPE_CHECKING:
    from cddpm.published.lightning_file import LightningFile
    from cddpm.published.weights import Candidate

_TITLES = {"unet": "U-Net", "encoder": "encoder", "spark": "SparK", "schedule": "schedule"}


def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(metavar="CKPT", help="PyTorch Lightning checkpoint of the published code.", show_default=False),
    ],
    config: Annotated[Path, typer.Option("--config", help="Experiment file: what the tensors do not tell.")] = Path(
        "tune_configs/reference.yaml"
    ),
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Instead of the file's output_dir.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Any setting, by dotted path.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Residual above which a voxel is anomalous, in units of [0, 1]: also makes a package for cddpm predict.",
            show_default=False,
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the moving average of the weights, if one is there.")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="PREFIX", help="Leave out all names that begin so.", show_default=False),
    ] = None,
) -> None:
    """Import weights of the published code: of its diffusion models and of its encoder pretraining.

    The tensors decide widths, depths and schedule; all else is taken from the experiment file.

    Nothing in the file is run. A tensor that is missing, unknown or misshapen is refused.
    """
    from cddpm.config import load

    settings = load(config, overrides({"output_dir": output_dir, **_fixed(threshold)}, setting or []))
    from cddpm.published import lightning_file, weights  # with torch: a wrong setting is told at once

    source = lightning_file.read(file)
    candidate = weights.examine(source, settings, ema, ignore or ())
    if threshold is not None:
        _check_packable(candidate)
    path, made = weights.write(candidate, source, settings.output_dir / "artifacts")
    _print_import(source, candidate, config)
    console = Console()
    console.print(f"\n{candidate.kind}: {console.path(path)}{'' if made else ' (was there)'}")
    package = _package(candidate, source, path, threshold) if threshold is not None else None
    if package:
        console.print(f"package: {console.path(package)}")
    console.print("Next:")
    console.command(_next(candidate, path, package))


def _fixed(threshold: float | None) -> dict[str, Any]:
    return {} if threshold is None else {"scoring.operating_point": "fixed", "scoring.threshold": threshold}


def _check_packable(candidate: "Candidate") -> None:
    from cddpm.errors import ConfigError
    from cddpm.training.stages import CHECKPOINT

    if candidate.kind != CHECKPOINT:
        raise ConfigError("--threshold: this file holds an encoder alone, which segments nothing; leave the option out")
    if candidate.config.reconstruction.guide != "none":
        raise ConfigError(
            f"reconstruction.guide: '{candidate.config.reconstruction.guide}' needs a second model, which is not in this "
            "file; a package of it alone needs 'none'"
        )


def _package(candidate: "Candidate", source: "LightningFile", path: Path, threshold: float) -> Path:
    """A model package with one threshold and without any measured number: nobody has validated it here."""
    from cddpm import artifact
    from cddpm.tracking.package import KIND, Pipeline, write_package

    made_from = {"checkpoint": path.name, "imported_file_sha256": source.digest}
    pipeline = Pipeline(scoring=candidate.config.scoring, thresholds={"all": threshold}, fingerprints=made_from)
    folder = path.parents[1] / KIND / artifact.fingerprint(path.name, threshold)
    write_package(folder, candidate.weights, candidate.config, pipeline)
    return folder


def _print_import(source: "LightningFile", candidate: "Candidate", config: Path) -> None:
    from cddpm.published.weights import parameters, untold

    console = Console()
    about = [f"{what.replace('_', ' ')} {value}" for what, value in source.about.items()]
    about.append(f"SHA-256 {source.digest[:16]}")
    console.print(", ".join([console.path(source.path), *map(whole, about)]))
    table = Table()
    for heading in ("network", "below", "tensors", "numbers"):
        table.add_column(heading, justify="right" if heading in ("tensors", "numbers") else "left")
    for kind, part in candidate.parts.found.items():
        table.add_row(
            _TITLES[kind], name(part.prefix) if part.prefix else "-", str(len(part.tensors)), f"{parameters(part):,}"
        )
    console.print(table)
    _print_settings(console, "The tensors show", candidate.decided)
    taken = f"Taken from {console.path(config)}, which no tensor can confirm"
    _print_settings(console, taken, untold(candidate))
    left_out = [*(f"the copy below '{prefix}'" for prefix in candidate.parts.copies), *_summed(candidate.dropped)]
    left_out += [f"pickled settings of the training ({len(source.unread)} classes)"] if source.unread else []
    if left_out:
        console.print(f"Left out: {escape('; '.join(left_out))}")


def _print_settings(console: Console, title: str, settings: dict[str, Any]) -> None:
    if settings:
        console.print(f"[bold]{title}[/]")
        for path, value in sorted(settings.items()):
            console.print(f"  {name(path)}: {escape(_plain(value))}")


def _plain(value: Any) -> str:
    if value is None:
        return "null (the default)"
    return (
        str(list(value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _summed(names: tuple[str, ...]) -> list[str]:
    return [f"{len(names)} tensors that only the pretraining needs"] if names else []


def _next(candidate: "Candidate", path: Path, package: Path | None) -> str:
    from cddpm.training.checkpoint import CONFIG
    from cddpm.training.stages import ENCODER

    if package:
        return command("cddpm", "predict", "SCAN.nii.gz", "--out", "results", "--model", package)
    data = () if candidate.config.data.data_dir else ("--data-dir", "DATA_DIR")
    script, setting = ("sweep", "pretraining") if candidate.kind == ENCODER else ("evaluate", "training")
    made = f"{setting}.artifact={path.name}"
    return command("python", f"launch/{script}.py", "--config", path / CONFIG, "--set", made, *data)
