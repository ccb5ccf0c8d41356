"""The configuration: closed, typed, frozen, and all faults told at once before anything starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cddpm import config as configuration
from cddpm.config import Choice, ExperimentConfig, Float, Integer, flat, load, parse, with_values
from cddpm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "tune_configs").glob("*.yaml") if not p.name.startswith("benchmark"))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A raw configuration from dotted paths."""
    raw: dict[str, Any] = {"name": "one"}
    for path, value in values.items():
        *sections, name = path.split(".")
        target = raw
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return raw


def faults(values: Mapping[str, Any]) -> list[str]:
    """The lines that ``values`` are refused with."""
    with pytest.raises(ConfigError) as caught:
        parse(nested(values), "my.yaml")
    return str(caught.value).splitlines()


# one fault, one line: file, dotted path, what was found, what is allowed

ONE_FAULT = [
    # unknown names
    ({"training.learning_rat": 1}, "training.learning_rat: unknown setting; did you mean 'learning_rate'?"),
    ({"trainning": {}}, "trainning: unknown setting; did you mean 'training'?"),
    ({"diffusion.noise.octave": 6}, "diffusion.noise.octave: unknown setting; did you mean 'octaves'?"),
    ({"zzz": 1}, "zzz: unknown setting"),
    # wrong types
    ({"training.batch_size": "many"}, "training.batch_size: Input should be a valid integer"),
    ({"training.batch_size": 3.5}, "training.batch_size: Input should be a valid integer"),
    ({"training.images": True}, "training.images: Input should not be true or false (found True)"),
    ({"training.learning_rate": False}, "training.learning_rate: Input should not be true or false"),
    ({"training": 3}, "training: Input should be a valid dictionary"),
    ({"model.width_multipliers": 2}, "model.width_multipliers: Input should be a valid tuple"),
    ({"diffusion.loss": "huber"}, "diffusion.loss: Input should be 'l1', 'l2' or 'ssim-l1' (found 'huber')"),
    ({"name": "../elsewhere"}, "name: String should match pattern"),
    # impossible numbers
    ({"training.learning_rate": -1e-4}, "training.learning_rate: Input should be greater than 0 (found -0.0001)"),
    ({"training.learning_rate": float("nan")}, "training.learning_rate: Input should be"),
    ({"training.learning_rate": float("inf")}, "training.learning_rate: Input should be a finite number"),
    ({"diffusion.condition_dropout": 1.0}, "diffusion.condition_dropout: Input should be less than 1"),
    ({"pretraining.mask_ratio": 0}, "pretraining.mask_ratio: Input should be greater than 0"),
    ({"data.percentiles": [99, 1]}, "data.percentiles: 99.0, 1.0: allowed is 0 <= low < high <= 100"),
    ({"data.unhealthy": ["MSLUB", "MSLUB"]}, "data.unhealthy: MSLUB, MSLUB: a data set is named twice"),
    # settings that do not fit each other
    ({"reconstruction.noise_levels": [250, 1001]}, "reconstruction.noise_levels: 1001: allowed is 1 to 1000"),
    ({"diffusion.timesteps": 500}, "reconstruction.noise_levels: 750: allowed is 1 to 500 (diffusion.timesteps)"),
    ({"scoring.noise_levels": [300]}, "scoring.noise_levels: 300 is not reconstructed; allowed are [250, 500, 750]"),
    (
        {"compute.workers": 64, "pretraining.batch_size": 64},
        "training.batch_size: 32 is not divisible by compute.workers (64)",
    ),
    (
        {"compute.workers": 3, "pretraining.batch_size": 66},
        "training.batch_size: 32 is not divisible by compute.workers (3)",
    ),
    ({"training.images": 31}, "training.images: 31 is less than one batch (32)"),
    (
        {"scoring.guidance_scale": 1.5},
        "scoring.guidance_scale: 1.5 needs a model trained with diffusion.condition_dropout > 0",
    ),
    (
        {"model.conditioned": False, "diffusion.condition_dropout": 0.1},
        "diffusion.condition_dropout: 0.1: a model without condition",
    ),
    (
        {"model.conditioned": False, "reconstruction.guide": "ddpm"},
        "reconstruction.guide: 'ddpm' needs a model with condition",
    ),
    (
        {"model.conditioned": False, "reconstruction.embedding_scale": 2},
        "reconstruction.embedding_scale: 2.0: a model without condition",
    ),
    (
        {"model.conditioned": False, "model.conditioning": "cross-attention"},
        "model.conditioning: 'cross-attention' needs a model with condition",
    ),
    (
        {"diffusion.loss": "ssim-l1", "diffusion.objective": "eps"},
        "diffusion.loss: 'ssim-l1' compares pictures; with diffusion.objective 'eps' only l1 and l2 are allowed",
    ),
    (
        {"diffusion.loss": "ssim-l1", "diffusion.patch.enabled": True, "diffusion.patch.size": 10},
        "diffusion.loss: 'ssim-l1' compares windows of 11 pixels; slices (or boxes: diffusion.patch.size) of 10 are too small",
    ),
    (
        {"diffusion.patch.enabled": True, "diffusion.patch.size": 97},
        "diffusion.patch.size: 97: allowed is up to 96, the slice's edge",
    ),
    (
        {"diffusion.patch.enabled": True, "diffusion.patch.overlap": 48},
        "diffusion.patch.overlap: 48: allowed is less than diffusion.patch.size (48)",
    ),
    ({"scoring.operating_point": "fixed"}, "scoring.threshold: missing; operating_point 'fixed' needs a number"),
    ({"scoring.threshold": 0.5}, "scoring.threshold: 0.5 would be ignored; only operating_point 'fixed' reads it"),
    ({"scoring.level_weights": [1, 2, 3]}, "scoring.level_weights: [1.0, 2.0, 3.0] belong to no levels"),
    (
        {"scoring.noise_levels": [250, 500], "scoring.level_weights": [1, 2, 3]},
        "scoring.level_weights: [1.0, 2.0, 3.0] are 3 weights for the 2 levels of noise_levels",
    ),
    (
        {"scoring.noise_levels": [250, 250], "scoring.level_weights": [1, 2]},
        "scoring.level_weights: [1.0, 2.0]: noise_levels [250, 250] names a level twice",
    ),
    (
        {"scoring.noise_levels": [250, 500], "scoring.level_weights": [0, 0]},
        "scoring.level_weights: [0.0, 0.0]: at least one must be above 0",
    ),
    (
        {"scoring.noise_levels": [250, 500], "scoring.level_weights": [1, 2], "scoring.combine": "median"},
        "scoring.level_weights: [1.0, 2.0] would be ignored by combine 'median'",
    ),
    (
        {"scoring.noise_levels": [250, 500], "scoring.level_weights": [1, 2], "scoring.residual": "mahalanobis"},
        "scoring.level_weights: [1.0, 2.0] would be ignored by residual 'mahalanobis'",
    ),
    (
        {"scoring.combine": "mean", "scoring.residual": "mahalanobis"},
        "scoring.combine: 'mean' would be ignored; residual 'mahalanobis' looks at all reconstructions at once",
    ),
    (
        {"scoring.noise_levels": [250], "scoring.residual": "mahalanobis"},
        "scoring.residual: 'mahalanobis' needs two reconstructions or more; there is one noise level [250] and one noise seed",
    ),
    (
        {"data.volume_shape": [192, 160, 100]},
        "data.volume_shape: slices of 96x80 pixels after rescaling; allowed are square",
    ),
    ({"model.attention_head_width": 48}, "model.attention_head_width: 48; allowed are divisors of the 256 channels"),
    ({"search.datasets": ["WMH"]}, "search.datasets: 'WMH' is not among data.unhealthy (Brats21, MSLUB)"),
    # the space of a sweep
    ({"search.training.trials": 2}, "search.training.trials: 2 trainings of an empty space would all be the same"),
    (
        {"search.training.space": {"training.learning_rate": {"float": [0, 1e-3], "log": True}}},
        "search.training.space.training.learning_rate.float.range [0.0, 0.001]: a log range must start above 0",
    ),
    (
        {"search.training.space": {"training.learning_rate": {"float": [1e-3, 1e-4]}}},
        "search.training.space.training.learning_rate.float.range [0.001, 0.0001]: the first number must be below the second",
    ),
    (
        {"search.training.space": {"training.learning_rate": [1e-3, 1e-4]}},
        "search.training.space.training.learning_rate: allowed is {float: [low, high]}, {int: [low, high]} or {choice: [...]}",
    ),
    (
        {"search.training.space": {"diffusion.loss": {"choice": []}}},
        "search.training.space.diffusion.loss.choice.choice: Tuple should have at least 1 item",
    ),
    (
        {"search.training.space": {"training.learning_rat": {"float": [1e-4, 1e-3]}}},
        "search.training.space: 'training.learning_rat' is no setting; did you mean 'training.learning_rate'?",
    ),
    (
        {"search.training.space": {"scoring.residual": {"choice": ["l1", "l2"]}}},
        "search.training.space: 'scoring.residual': allowed here are",
    ),
    (
        {"search.scoring.space": {"training.learning_rate": {"float": [1e-4, 1e-3]}}},
        "search.scoring.space: 'training.learning_rate': allowed here are scoring.* settings",
    ),
    (
        {"search.scoring.space": {"scoring.residual": {"choice": ["l1", "l3"]}}},
        "search.scoring.space.scoring.residual: Input should be 'l1', 'l2', 'positive', 'negative', 'ssim', 'ssim-ensemble' or "
        "'mahalanobis' (found 'l3')",
    ),
    (
        {"search.scoring.space": {"scoring.erosion_divisor": {"int": [0, 25]}}},
        "search.scoring.space.scoring.erosion_divisor: Input should be greater than or equal to 1 (found 0)",
    ),
    (
        {"search.scoring.space": {"scoring.median_kernel": {"int": [1, 7]}}},
        "search.scoring.space.scoring.median_kernel: Input should be 1, 3, 5 or 7 (found 2)",
    ),
    (
        {"search.scoring.space": {"scoring.noise_levels": {"choice": [[250], [250, 400], None]}}},
        "search.scoring.space.scoring.noise_levels: 400 is not reconstructed; allowed are [250, 500, 750]",
    ),
    (
        {"search.scoring.space": {"scoring.guidance_scale": {"float": [0, 2]}}},
        "search.scoring.space: 'scoring.guidance_scale' is searched, but diffusion.condition_dropout is 0 in every trial",
    ),
    (
        {"search.training.space": {"training.batch_size": {"choice": [32, 33]}}, "compute.workers": 2},
        "search.training.space.training.batch_size: 33 is not divisible by compute.workers (2)",
    ),
    (
        {"search.training.space": {"training.batch_size": {"int": [32, 64]}}, "compute.workers": 2},
        "search.training.space.training.batch_size: 33 is not divisible by compute.workers (2)",
    ),
    (
        {"search.training.start": [{"training.learning_rate": 1e-4}]},
        "search.training.start: 'training.learning_rate' is not in search.training.space",
    ),
]


@pytest.mark.parametrize(("values", "expected"), ONE_FAULT, ids=[expected[:60] for _, expected in ONE_FAULT])
def test_a_fault_is_one_line_with_file_path_and_what_is_allowed(values: dict[str, Any], expected: str) -> None:
    lines = faults(values)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"my.yaml: {expected}")


def test_the_name_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml: name: Field required"):
        parse({}, "my.yaml")


def test_what_a_searched_setting_makes_possible_is_allowed() -> None:
    values = {
        "search.training.space": {"diffusion.condition_dropout": {"choice": [0.0, 0.2]}},
        "search.scoring.space": {"scoring.guidance_scale": {"float": [0, 2]}},
        "search.training.trials": 4,
    }
    parse(nested(values), "my.yaml")
    levels = {
        "reconstruction.noise_levels": [100],
        "search.training.space": {"reconstruction.noise_levels": {"choice": [[100], [200]]}},
        "search.scoring.space": {"scoring.noise_levels": {"choice": [None, [100]]}},
    }
    parse(nested(levels), "my.yaml")


@pytest.mark.parametrize(
    ("path", "value", "parameter"),
    [
        ("training.learning_rate", 0.1, {"float": [1e-5, 1e-3], "log": True}),
        ("training.batch_size", 16, {"choice": [32, 64]}),
        ("training.warmup_images", 5, {"int": [10, 20]}),
        ("training.gradient_clip", None, {"float": [0.5, 2.0]}),
        ("reconstruction.noise_levels", [100], {"choice": [[200], [300]]}),
    ],
)
def test_the_setting_itself_must_lie_in_its_space(path: str, value: Any, parameter: dict[str, Any]) -> None:
    (line,) = faults({path: value, "search.training.space": {path: parameter}})
    assert line.startswith(f"my.yaml: search.training.space.{path}: ")
    assert "the first trial tries that" in line


def test_all_faults_are_told_at_once_also_those_between_settings() -> None:
    lines = faults(
        {
            "training.learning_rat": 1,
            "training.weight_decay": -1,
            "diffusion.loss": "huber",
            "data.percentiles": [5, 5],
            "scoring.threshold": 1,
            "compute.workers": 5,
            "reconstruction.noise_levels": [2000],
            "model.attention_head_width": 48,
        }
    )
    places = {line.split(": ")[1] for line in lines}
    assert places == {
        "training.learning_rat",
        "training.weight_decay",
        "diffusion.loss",
        "data.percentiles",
        "scoring.threshold",
        "training.batch_size",
        "pretraining.batch_size",
        "reconstruction.noise_levels",
        "model.attention_head_width",
    }
    assert len(lines) == len(places)
    assert all(line.startswith("my.yaml: ") for line in lines)


def test_a_faulty_setting_raises_no_second_fault_by_its_default() -> None:
    """33 is right for 3 workers; the default that stands in for the faulty size must not be blamed."""
    lines = faults({"training.batch_size": -33, "pretraining.batch_size": 66, "compute.workers": 3})
    assert len(lines) == 1
    lines = faults({"data.rescale_factor": 0, "data.volume_shape": [50, 50, 50]})
    assert len(lines) == 1


# reading files


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "my.yaml").write_text(text)
    return tmp_path / "my.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: one\nseed: 1\nname: two\n", "'name' is set twice"),
        ("name: one\ntraining: {images: 100, images: 200}\n", "'images' is set twice"),
        ("name: one\ntraining:\n  images: 100\n  batch_size: 10\n  images: 200\n", "'images' is set twice"),
        ("name: [one\n", "not readable as YAML"),
        ("name: one\n\tseed: 1\n", "not readable as YAML"),
        ("- one\n", "holds list, a mapping of settings is needed"),
        ("", "holds NoneType, a mapping of settings is needed"),
    ],
)
def test_a_file_that_is_no_clear_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_repeated_key_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3, column 1"):
        load(written(tmp_path, "name: one\nseed: 1\nname: two\n"))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system", "!custom"]
)
def test_yaml_tags_are_refused_and_nothing_runs(tmp_path: Path, tag: str) -> None:
    path = written(tmp_path, f"name: one\noutput_dir: {tag} ['{tmp_path}/payload']\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load(path)
    assert not (tmp_path / "payload").exists()


def test_anchors_and_merges_of_plain_yaml_work(tmp_path: Path) -> None:
    text = "name: one\npretraining: &sizes {batch_size: 16}\ntraining:\n  <<: *sizes\n  images: 160\n"
    assert load(written(tmp_path, text)).training.batch_size == 16


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: not readable as YAML"):
        load(tmp_path / "bytes.yaml")


def test_overrides_win_over_the_file_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "name: one\ntraining: {images: 100, batch_size: 10}\n")
    config = load(path, {"training.images": 200, "diffusion.noise.octaves": 3})
    assert (config.training.images, config.training.batch_size, config.diffusion.noise.octaves) == (200, 10, 3)
    with pytest.raises(
        ConfigError, match=r"my\.yaml: training\.image: no such setting; did you mean 'training\.images'\?"
    ):
        load(path, {"training.image": 1})
    with pytest.raises(ConfigError, match="training: holds 3"):
        load(written(tmp_path, "name: one\ntraining: 3\n"), {"training.images": 200})


def test_an_override_does_not_change_what_was_read() -> None:
    raw = {"name": "one", "training": {"images": 100}}
    configuration.override(raw, {"training.images": 200, "seed": 3}, "here")
    assert raw == {"name": "one", "training": {"images": 100}}


def test_paths_become_absolute_so_that_workers_may_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(written(tmp_path, "name: one\noutput_dir: here\ndata: {data_dir: ../there}\n"))
    assert config.output_dir == tmp_path / "here"
    assert config.data.data_dir == str(tmp_path.parent / "there")


# the object


def test_it_cannot_be_changed() -> None:
    config = ExperimentConfig(name="one")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.training.images = 1  # type: ignore[misc]


def test_replacing_values_makes_a_new_one_and_validates_it() -> None:
    config = ExperimentConfig(name="one")
    other = with_values(config, {"training.learning_rate": 5e-4, "scoring.noise_levels": [500]})
    assert (other.training.learning_rate, other.scoring.noise_levels) == (5e-4, (500,))
    assert config.training.learning_rate == 1e-4
    with pytest.raises(ConfigError, match=r"trial: training\.learning_rate: Input should be greater than 0"):
        with_values(config, {"training.learning_rate": -1})


def test_every_section_is_closed_and_frozen() -> None:
    found = [
        member for member in vars(configuration).values() if isinstance(member, type) and issubclass(member, BaseModel)
    ]
    sections = [section for section in found if section is not BaseModel]
    assert {Float, Integer, Choice, ExperimentConfig} <= set(sections)
    for section in sections:
        assert section.model_config.get("extra") == "forbid"
        assert section.model_config.get("frozen") is True
        assert section.model_config.get("allow_inf_nan") is False


def test_hand_worked_shapes() -> None:
    data = configuration.DataConfig(volume_shape=(192, 192, 100), rescale_factor=2)
    assert (data.working_shape, data.slice_shape) == ((96, 96, 50), (96, 96))
    assert configuration.DataConfig(volume_shape=(97, 97, 33), rescale_factor=2).working_shape == (48, 48, 16)
    assert configuration.DataConfig(volume_shape=(90, 90, 1), rescale_factor=1.2).working_shape == (75, 75, 1)
    uneven = {"volume_shape": (64, 64, 40), "rescale_factor": 3}
    assert configuration.DataConfig(**uneven).working_shape == (21, 21, 13)
    assert configuration.DataConfig(**uneven, rescale_grid="published").working_shape == (22, 22, 14)
    tiny = {"volume_shape": (21, 2, 1), "rescale_factor": 1.4}  # 21 / 1.4 is more than 15 in float64
    assert configuration.DataConfig(**tiny).working_shape == (15, 1, 1)
    assert configuration.DataConfig(**tiny, rescale_grid="published").working_shape == (15, 2, 1)
    assert configuration.EncoderConfig(max_pool=False).downsampling == 16
    assert configuration.ModelConfig(base_width=64).condition_channels == 256


def test_settings_by_dotted_path() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
