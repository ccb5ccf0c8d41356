"""The layers hold: folders import only from rows below, modules in no circle, and foreign packages stay in their homes."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROWS = (  # lowest first: modules and folders of cddpm, and launch; each imports from rows below and from itself
    "errors",
    "labels",
    "seeds",
    "text",
    "place",
    "host",
    "compiled",
    "artifact",
    "storage",
    "shelf",
    "backup",
    "events",
    "config",
    "data",
    "models",
    "scoring",
    "reconstruct",
    "cluster",
    "training",
    "published",
    "tracking",
    "campaign",
    "search",
    "evaluation",
    "publishing",
    "predict",
    "inventory",
    "report",
    "cli",
    "__main__",
    "launch",
)
COMMAND_LINES = ("cddpm.cli.*", "launch.*")
HOMES = {
    "ray": ("cddpm.cluster.*", "cddpm.training.worker", "cddpm.training.worker_group", "cddpm.search.tuning"),
    "cddpm.cluster": (
        "cddpm.cluster.*",
        "cddpm.training.worker",
        "cddpm.training.worker_group",
        "cddpm.training.stages",
        "cddpm.training.prediction",
        "cddpm.search.*",
        "cddpm.evaluation.*",
        "cddpm.predict.batch",
        "cddpm.campaign",
        *COMMAND_LINES,
    ),
    "fcntl": ("cddpm.artifact", "cddpm.shelf"),  # a look that takes a lock keeps somebody from starting
    "mlflow": ("cddpm.tracking.*",),
    "nibabel": ("cddpm.data.volume",),
    "numba": ("cddpm.compiled",),
    "grpc": ("cddpm.cluster.door",),
    "optuna": ("cddpm.search.*",),
    "plotly": ("cddpm.report.*",),
    "jinja2": ("cddpm.report.document", "cddpm.cluster.slurm"),
    "typer": COMMAND_LINES,
    "rich.console": ("cddpm.text.*", "cddpm.search.display"),  # Rich's own break words and paths
    "rich.table": ("cddpm.text.*", "cddpm.search.display"),
    "rich.tree": ("cddpm.text.*",),
}
NAMELESS = {"utils", "util", "helpers", "common", "base", "misc", "manager"}


def modules() -> dict[str, str]:
    """Source by dotted name, of the package and of launch/."""
    files = [*(ROOT / "cddpm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    return {dotted(file): file.read_text() for file in sorted(files)}


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, source: str, known: set[str]) -> Iterator[str]:
    """Every module that ``source`` imports, inside functions too; a name from a package may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: line {node.lineno}: import by the full name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def row(name: str) -> int | None:
    """Index of the row of a module of this project; None for the bare package ``cddpm`` and foreign modules."""
    parts = name.split(".")
    part = parts[1] if parts[0] == "cddpm" and len(parts) > 1 else parts[0]
    if parts[0] not in ("cddpm", "launch") or part == "cddpm":
        return None
    assert part in ROWS, f"{name}: stands in no row; put it where it belongs in ROWS"
    return ROWS.index(part)


def within(name: str, patterns: tuple[str, ...]) -> bool:
    return any(Path(name).match(pattern) or name == pattern.removesuffix(".*") for pattern in patterns)


def faults(name: str, source: str, known: set[str]) -> Iterator[str]:
    """What in ``source``, as module ``name``, breaks the order or leaves a home."""
    own = row(name)
    for imported in imports(name, source, known):
        other = row(imported)
        if own is not None and other is not None and other > own:
            yield f"{name} imports {imported}, which stands above it"
        for package, homes in HOMES.items():
            if (imported == package or imported.startswith(f"{package}.")) and not within(name, homes):
                yield f"{name} imports {imported}; homes of {package}: {', '.join(homes)}"


def circle(sources: dict[str, str]) -> list[str]:
    """Modules of which each imports the one before, the first the last; imports inside functions and for types count too."""
    graph = {name: {i for i in imports(name, source, set(sources)) if i in sources} for name, source in sources.items()}
    try:
        graphlib.TopologicalSorter({name: found - {name} for name, found in graph.items()}).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


@pytest.mark.slow
def test_no_module_breaks_the_order_or_leaves_a_home() -> None:
    sources = modules()
    found = [fault for name, source in sources.items() for fault in faults(name, source, set(sources))]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(modules()) == []


@pytest.mark.parametrize(
    "back",
    [
        "import a",
        "def f() -> None:\n    from a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import X",
    ],
)
def test_a_circle_is_found(back: str) -> None:
    assert set(circle({"a": "import b", "b": "from c import x", "c": back, "d": "import a"})) == {"a", "b", "c"}


def test_the_picture_of_the_layers_is_true() -> None:
    """In cddpm/README.md: a line for each row, highest first, that names only modules which are there."""
    text = (ROOT / "cddpm" / "README.md").read_text()
    (picture,) = re.findall(r"^```text\n(launch/.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  ") for line in picture.splitlines()]
    assert [name.removesuffix("/") for name, _, _ in lines] == [name for name in reversed(ROWS) if name != "__main__"]
    for name, _, said in lines:
        folder = ROOT / name if name == "launch/" else ROOT / "cddpm" / name
        named = re.sub(r" \(.*?\)", "", said.rpartition(": ")[2]).strip().split(", ") if name.endswith("/") else []
        assert not [one for one in named if not (folder / f"{one}.py").exists() and not (folder / one).is_dir()]


def test_every_home_that_is_one_module_exists() -> None:
    names = set(modules())
    homes = {home for places in HOMES.values() for home in places if "*" not in home} - set(COMMAND_LINES)
    assert homes <= names


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cddpm.data.store", "from cddpm.models import unet"),
        ("cddpm.models.unet", "def f():\n    import cddpm.training.loop"),
        ("cddpm.training.loop", "from cddpm import tracking"),
        ("cddpm.config", "from cddpm.data.volume import read_volume"),
        ("cddpm.errors", "from cddpm import config"),
        ("cddpm.search.sweep", "from cddpm.cli import shell"),
        ("cddpm.search.sweep", "from cddpm.evaluation import plan"),
        ("cddpm.scoring.score", "from cddpm.training import loop"),
        (
            "cddpm.scoring.score",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cddpm.reconstruct.part",
        ),
        ("cddpm.training.loop", "import ray"),
        ("cddpm.training.loop", "from cddpm import cluster"),
        ("cddpm.scoring.score", "from cddpm.cluster import connect"),
        ("cddpm.search.mirror", "from mlflow.entities import Run"),
        ("cddpm.search.mirror", "import typer"),
        ("cddpm.search.record", "import fcntl"),
        ("cddpm.data.geometry", "from nibabel.affines import voxel_sizes"),
        ("cddpm.training.stages", "import optuna.trial"),
        ("cddpm.cli.registry.tables", "from rich.console import Console"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert list(faults(name, source, set(modules()) | {"cddpm.tracking"}))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cddpm.models.unet", "from cddpm.data import slices\nimport torch"),
        ("cddpm.training.worker", "import ray.train\nfrom cddpm import cluster"),
        ("cddpm.search.tuning", "from ray import tune\nimport optuna"),
        ("cddpm.cli.registry", "import typer\nfrom cddpm.search import sweep"),
        ("launch.sweep", "import typer\nfrom cddpm.cli.shell import guarded"),
        ("cddpm.data.store", "import raytracer"),
    ],
)
def test_a_right_import_passes(name: str, source: str) -> None:
    assert not list(faults(name, source, set(modules())))


def test_a_module_without_a_row_is_told() -> None:
    with pytest.raises(AssertionError, match="stands in no row"):
        row("cddpm.novelty")


def test_modules_are_named_after_things() -> None:
    assert not [name for name in modules() if name.rsplit(".", 1)[-1] in NAMELESS]


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
