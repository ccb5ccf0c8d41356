"""``cddpm registry``: find, compare, promote and fetch trained models."""

import typer

from cddpm.cli.registry import calibration, changing, reading

EXIT_CODES = """Exit codes: 0 done; 1 some healthy scans could not be used; 2 a wrong option or condition; 3 no healthy scan, or
too few for that rate; 4 a registered package is damaged or gone; 5 no such version, or MLflow does not answer; 7 the disk
refuses; 8 refused, nothing was changed (a condition does not hold, an alias points to it, somebody else was faster); 9 entries
still wait for MLflow."""

app = typer.Typer(
    no_args_is_help=True, help="Find, compare, promote and fetch trained models.", epilog=" ".join(EXIT_CODES.split())
)
app.command("list")(reading.list_command)
app.command()(reading.best)
app.command()(reading.show)
app.command()(reading.compare)
app.command()(reading.lineage)
app.command()(changing.promote)
app.command()(changing.rollback)
app.command()(reading.pull)
app.command()(reading.verify)
app.command()(calibration.calibrate)
app.command()(changing.archive)
app.command()(changing.restore)
app.command()(changing.sync)
