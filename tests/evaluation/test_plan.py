"""What is to be evaluated: settings win in the right order, and rows of one table are measured alike."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cddpm.errors import ConfigError
from cddpm.evaluation.plan import benchmark, evaluation
from cddpm.evaluation.report import write

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "tune_configs").glob("benchmark*.yaml"))


def test_an_evaluation_is_one_method_under_its_own_name() -> None:
    plan = evaluation(ROOT / "tune_configs" / "ddpm.yaml", {"evaluation.folds": [1, 3]})
    assert (plan.name, list(plan.methods), plan.folds) == ("ddpm", ["ddpm"], (1, 3))


def test_landmarks_of_one_fold_are_doubted_in_several_and_only_there(tmp_path: Path) -> None:
    given = [number / 10 for number in range(11)]
    alike = {"data.intensities": "landmarks", "data.landmarks": given, "evaluation.folds": [0, 2]}

    def doubt(**changed: Any) -> str | None:
        values = {name: value for name, value in (alike | changed).items() if value is not None}
        return evaluation(ROOT / "tune_configs" / "ddpm.yaml", values | {"output_dir": str(tmp_path)}).doubt

    found = doubt()
    assert found is not None
    assert found.startswith("data.landmarks: the same are used in the folds 0, 2;")
    assert doubt(**{"evaluation.folds": [2]}) is None
    assert doubt(**{"data.landmarks": None}) is None  # each fold learns its own
    assert doubt(**{"data.landmarks": None, "data.intensities": None}) is None
    plan = evaluation(ROOT / "tune_configs" / "ddpm.yaml", alike | {"output_dir": str(tmp_path)})
    assert " ".join(write(plan, []).markdown.read_text().split()).count(f"**Beware:** {found}") == 1


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_every_benchmark_file_loads_and_bears_its_own_name(path: Path) -> None:
    plan = benchmark(path, {})
    assert plan.name == path.stem
    assert len(plan.methods) == 5
    for configs in plan.methods.values():
        assert [c.data.modality for c in configs] == ["t2", "t1"]


def benchmark_file(folder: Path, **changed: Any) -> Path:
    """A benchmark of two methods; its own folder holds their files."""
    (folder / "one.yaml").write_text("name: one\nscoring: {median_kernel: 3}\n")
    (folder / "two.yaml").write_text("name: two\n")
    raw = {
        "name": "both",
        "cohorts": [{"modality": "t1", "unhealthy": ["WMH"]}],
        "methods": [{"label": "one", "config": "one.yaml"}, {"label": "two", "config": "two.yaml"}],
        **changed,
    }
    (folder / "both.yaml").write_text(yaml.safe_dump(raw))
    return folder / "both.yaml"


def test_a_method_s_settings_win_over_the_benchmark_s_and_the_command_line_over_both(tmp_path: Path) -> None:
    methods = [
        {"label": "one", "config": "one.yaml", "set": {"training.images": 500}},
        {"label": "two", "config": "two.yaml"},
    ]
    path = benchmark_file(tmp_path, methods=methods, set={"training.images": 1000, "seed": 7})
    found = benchmark(path, {"seed": 8})
    (one,), (two,) = found.methods["one"], found.methods["two"]
    assert found.compared_with == "two"
    assert (one.training.images, two.training.images) == (500, 1000)
    assert (one.seed, two.seed) == (8, 8)
    assert (one.scoring.median_kernel, two.scoring.median_kernel) == (3, 5)
    assert (one.data.modality, one.data.unhealthy) == ("t1", ("WMH",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": []}, "both.yaml: method: unknown setting; did you mean 'methods'?"),
        ({"compared_with": "three"}, "compared_with: 'three': allowed are one, two"),
        ({"set": {"training.image": 5}}, "training.image: no such setting; did you mean 'training.images'?"),
        (
            {"methods": [{"label": "one", "config": "one.yaml"}, {"label": "one", "config": "two.yaml"}]},
            "methods: 'one' is the label of two methods",
        ),
        (
            {
                "cohorts": [
                    {"modality": "t1", "unhealthy": ["WMH"]},
                    {"modality": "t2", "unhealthy": ["WMH"]},
                ]
            },
            "cohorts: data set 'WMH' stands in two cohorts",
        ),
        (
            {
                "methods": [
                    {"label": "one", "config": "one.yaml", "set": {"evaluation.lesion_overlap": 0.5}},
                    {"label": "two", "config": "two.yaml"},
                ]
            },
            "evaluation.lesion_overlap differs between 'one' and 'two'",
        ),
        (
            {
                "methods": [
                    {"label": "one", "config": "one.yaml"},
                    {"label": "two", "config": "two.yaml", "set": {"data.smoothing_iterations": 0}},
                ]
            },
            "data.smoothing_iterations differs between 'one' and 'two'",
        ),
    ],
)
def test_what_a_benchmark_cannot_be_is_told(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        benchmark(benchmark_file(tmp_path, **changed), {})


def test_one_modality_alone_has_a_name_of_its_own() -> None:
    path = ROOT / "tune_configs" / "benchmark_small.yaml"
    plan = benchmark(path, {}, "t2")
    assert plan.name == "benchmark_small-t2"
    assert {c.data.modality for configs in plan.methods.values() for c in configs} == {"t2"}
    with pytest.raises(ConfigError, match="no cohort of modality 'flair'; there are t2, t1"):
        benchmark(path, {}, "flair")


@pytest.mark.parametrize("path", sorted((ROOT / "tune_configs").glob("benchmark*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_has_all_methods_and_data_sets(path: Path) -> None:
    plan = benchmark(path, {})
    assert plan.name == path.stem
    assert len(plan.methods) == 5
    for configs in plan.methods.values():
        assert {name for c in configs for name in c.data.unhealthy} == {"Brats21", "MSLUB", "ATLAS_v2", "WMH"}
