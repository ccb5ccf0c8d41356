"""What the driver of a sweep or an evaluation does before its first trial: data, Ray, number formats, slice store."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from cddpm import artifact, cluster
from cddpm.backup import Backup
from cddpm.campaign import Campaign
from cddpm.config import Choice, ExperimentConfig, active, to_dict, value_at, with_values
from cddpm.data.check import check
from cddpm.data.finding import refuse_errors
from cddpm.data.layout import read_layout, root_of
from cddpm.data.phantom.folder import GENERATOR_VERSION, make_phantom
from cddpm.data.store import SliceStore, build_store
from cddpm.errors import SearchError, StorageError
from cddpm.models import precision
from cddpm.search import forecast, record
from cddpm.search.display import Display
from cddpm.shelf import ARTIFACTS, Shelf
from cddpm.storage import Bucket, is_uri
from cddpm.training import probe, stages, worker
from cddpm.training.watch import Watch, keep_record


@dataclass(frozen=True)
class Cluster:
    """What Ray has: resources by Ray's names, and how many trainings fit at once."""

    available: Mapping[str, float]
    fits: int

    @property
    def gpus(self) -> float:
        """On all nodes."""
        return self.available.get("GPU", 0.0)


def shelf_of(config: ExperimentConfig) -> Shelf:
    """The storage's shelf on this node, which ``output_dir/artifacts`` leads to.

    Raises ``StorageError`` if artifacts of another storage lie there.
    """
    shelf, link = Shelf.of(config.kept_in), config.output_dir / ARTIFACTS
    if shelf.artifacts.resolve() == link.resolve():
        return shelf
    shelf.artifacts.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise StorageError(
            f"{link}: holds artifacts of its own, but the storage is {config.kept_in}; name another output_dir (--output-dir)"
        )
    link.symlink_to(shelf.artifacts, target_is_directory=True)
    return shelf


def backup_of(config: ExperimentConfig, folder: Path) -> Backup:
    """The copy in the storage of a campaign's ``folder``."""
    return Backup(folder, config.kept_in, folder.relative_to(config.output_dir).as_posix())


def join(address: str | None, configs: Sequence[ExperimentConfig], display: Display) -> Cluster:
    """Join the cluster at ``address``, or start one here; every node must reach the storage.

    Raises as ``cluster.connect``, ``check_shared`` and ``refuse_unfit``, ``SearchError`` for a training that fits nowhere.
    """
    with display.stage("Ray") as say:
        cluster.connect(address)
        storage = configs[0].kept_in
        if is_uri(storage):
            Bucket(storage).check()
        else:
            cluster.check_shared(Path(storage))
        cluster.refuse_unfit(storage)
        available = cluster.capacity()
        fits = min(worker.check_capacity(config.compute, available) for config in configs)
        say(f"{available.get('CPU', 0):g} CPUs, {available.get('GPU', 0):g} GPUs, {fits} training(s) at a time")
    return Cluster(available, fits)


def phantom_folder(config: ExperimentConfig) -> Path:
    """Where the phantom of ``config`` is, or will be made."""
    name = artifact.fingerprint(GENERATOR_VERSION, to_dict(config.data.phantom))
    return config.output_dir / "data" / f"phantom-{name}"


def prepare_data(config: ExperimentConfig, display: Display) -> Path:
    """The checked data root: the phantom (made if need be), ``data.data_dir``, or where ``data.table`` counts paths from.

    Raises ``DataError`` with all faults.
    """
    data = config.data
    if data.data_dir is None and data.table is None:
        with display.stage("synthetic cohort (phantom)") as say:
            made = make_phantom(phantom_folder(config), data.phantom)
            data = data.model_copy(update={"data_dir": str(made)})
            say(display.console.path(made))
    root = root_of(data)
    with display.stage("data check") as say:
        report = check(
            config.data,
            root,
            cluster.over_scans(config) if is_uri(str(data.data_dir)) and cluster.connected() else None,
        )
        for warning in report.warnings:
            said = escape(warning.said)
            display.say(f"[yellow]warning: {display.console.path(warning.file)}: {said}[/]")
        refuse_errors(report.findings)
        for fact in report.facts():
            display.say(escape(fact))
        say(f"{report.volumes} scans, no errors, {len(report.warnings)} warnings")
    return root


def settle(
    campaign: Campaign,
    configs: list[ExperimentConfig],
    available: Mapping[str, float],
    display: Display,
    changed: list[str],
    force: bool = False,
) -> list[ExperimentConfig]:
    """``configs`` in the number formats of the cluster's workers, told to the person; those of the start before, or an error.

    What is other than then and gone on with (``force``) is added to ``changed``. Raises ``SearchError``.
    """
    with display.stage("precision") as say:
        found = settled(configs, available)
        formats = {
            f"{number}.{path}" if len(configs) > 1 else path: value
            for number, config in enumerate(found.configs)
            for path, value in precision.formats(config).items()
        }
        changed += campaign.same("precision", formats, force)
        say(escape(found.said))
    for line in found.warnings:
        display.warn(line)
    return found.configs


@dataclass(frozen=True)
class Settled:
    """Configurations with the number formats that the cluster's workers compute in, and what to tell of it."""

    configs: list[ExperimentConfig]
    said: str
    """Which formats, and why."""
    warnings: tuple[str, ...]


def settled(
    configs: Sequence[ExperimentConfig],
    available: Mapping[str, float],
    ask: Callable[..., dict[str, precision.Hardware]] = cluster.on_each_node,
) -> Settled:
    """``precision: auto`` of ``configs`` settled by the nodes that could hold a worker of theirs.

    bfloat16 where all of them compute it, so that no artifact is made in two formats; an explicit bfloat16 that some only
    emulate is a warning that says how slow that is. ``ask`` is ``cluster.on_each_node``. Raises ``SearchError`` if no node
    could hold a worker.
    """
    found, said, warnings = list[ExperimentConfig](), list[str](), list[str]()
    asked: dict[tuple[str, bool, str], dict[str, precision.Hardware]] = {}
    for config in configs:
        needed = worker.resources_per_worker(config.compute, available.get("GPU", 0.0))
        device: precision.Device = "cuda" if "GPU" in needed else "cpu"
        explicit = "bfloat16" in precision.formats(config).values()
        key = (device, explicit, str(needed))
        if key not in asked:
            asked[key] = ask(precision.hardware, device, explicit, needed=needed)
        nodes = asked[key]
        if not nodes:
            raise SearchError(_no_node(needed))
        chosen = precision.settled(config, all(node.bfloat16 for node in nodes.values()))
        found.append(chosen)
        said.append(_format_line(config, chosen, nodes))
        warnings += _slow(config, nodes)
    return Settled(found, "; ".join(dict.fromkeys(said)), tuple(dict.fromkeys(warnings)))


def probed(config: ExperimentConfig, address: str | None) -> probe.Probe | None:
    """A probe of the largest networks of ``config``: of this machine, or of the slowest node of the cluster at ``address``.

    Memory and CPUs are those of the node that has least memory for each. None where a GPU is asked for and this machine has
    none. Raises ``SearchError`` if no node could hold a worker.
    """
    wanted = forecast.largest(config)
    if not cluster.elsewhere(address):
        gpus = torch.cuda.device_count()
        if not worker.on_gpu(wanted.compute, gpus):
            return probe.measure(wanted, "cpu")
        return probe.measure(wanted, "cuda") if gpus else None
    cluster.connect(address)
    needed = worker.resources_per_worker(wanted.compute, cluster.capacity().get("GPU", 0.0))
    found = cluster.on_each_node(probe.measure, wanted, "cuda" if "GPU" in needed else "cpu", needed=needed)
    if not found:
        raise SearchError(_no_node(needed))
    slowest = max(found.values(), key=lambda one: one.diffusion.seconds)
    least = min(found.values(), key=lambda one: one.memory_bytes / (1 if one.gpu else one.cpus))
    return replace(slowest, memory_bytes=least.memory_bytes, cpus=least.cpus)


def _no_node(needed: Mapping[str, float]) -> str:
    return (
        f"compute: no node has {', '.join(f'{amount:g} {name}' for name, amount in needed.items())} for one worker; "
        "lower compute.cpus_per_worker or compute.gpus_per_worker"
    )


def _format_line(asked: ExperimentConfig, chosen: ExperimentConfig, nodes: Mapping[str, precision.Hardware]) -> str:
    """``float32 (auto: a CPU without AMX-BF16 or AVX512-BF16)``."""
    formats = precision.formats(chosen)
    training, reconstruction = formats.values()
    words = training if training == reconstruction else f"{training}, reconstruction {reconstruction}"
    if "auto" not in precision.formats(asked).values():
        return f"{words} (as configured)"
    # where not all compute bfloat16, those that do not are the reason
    reasons = [n.why for n in nodes.values() if not n.bfloat16] or [n.why for n in nodes.values()]
    return f"{words} (auto: {', '.join(dict.fromkeys(reasons))})"


def _slow(config: ExperimentConfig, nodes: Mapping[str, precision.Hardware]) -> Iterator[str]:
    explicit = [path for path, value in precision.formats(config).items() if value == "bfloat16"]
    for address, node in nodes.items():
        if explicit and not node.bfloat16:
            factor = f": a convolution takes {node.slowdown:.0f} times as long as in float32" if node.slowdown else ""
            yield (
                f"{' and '.join(explicit)}: bfloat16 is only emulated by node {address} ({node.why}){factor}; "
                "auto or float32 is faster there"
            )


def slice_store(config: ExperimentConfig, root: Path, display: Display, campaign: Path) -> stages.Place:
    """Build (or find) the slice store of ``config.data`` on the cluster; ``campaign`` keeps what building it cost."""
    with display.stage("slice store") as say:
        rows, shelf = read_layout(config.data, root).rows, shelf_of(config)
        made = threading.Event()
        with Watch(torch.device("cpu")) as watch:
            path = build_store(config.data, root, rows, shelf, cluster.over_scans(config), on_made=made.set)
        if made.is_set():
            keep_record(campaign, watch.record("store", path.name), None)
        store = SliceStore.open(path, verify=False)  # `build_store` has
        say(
            f"{len(store.volumes)} volumes, {len(store)} slices of {store.slice_shape[0]}x{store.slice_shape[1]}, {path.name}"
        )
    return stages.Place(shelf.artifacts, path, shelf.storage)


def slice_stores(config: ExperimentConfig, root: Path, display: Display, campaign: Path) -> stages.Place:
    """``slice_store`` of ``config``, and of every way to prepare that its training space searches, or that a trial had."""
    own = slice_store(config, root, display, campaign)
    found = {config.data.preparation: own.store}
    earlier = (with_values(config, result.params, f"trial {result.number}") for result in record.results(campaign))
    searched = (with_values(config, values, "search.training.space") for values in preparations(config))
    for other in (*searched, *earlier):
        if other.data.preparation not in found:
            found[other.data.preparation] = slice_store(other, root, display, campaign).store
    return replace(own, stores=tuple(found.items()))


def preparations(config: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """Every combination of searched data settings by dotted path, without those whose condition does not hold there."""
    space = {path: p for path, p in config.search.training.space.items() if path.startswith("data.")}
    choices = [p.choice for p in space.values() if isinstance(p, Choice)]
    for values in product(*choices):
        point = dict(zip(space, values, strict=True))
        yield {path: point[path] for path in active(space, lambda path: value_at(config, path), point)}
