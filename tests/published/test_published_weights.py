"""Published checkpoints become ours: same outputs, every tensor accounted for, tensors and configuration in agreement."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_settings
import torch
from published_file import (
    ENCODER,
    UNET,
    diffusion_state,
    known,
    network,
    pretraining_state,
    save,
    spark,
    whole,
)
from reference_settings import load_arrays, spark_state, timesteps, weights
from tiny_training import tiny_config, train
from torch import Tensor

from cddpm import artifact
from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError, ConfigError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import schedule_buffers
from cddpm.published.lightning_file import read
from cddpm.published.weights import Candidate, examine, untold, write
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.training import checkpoint, prediction, stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks

CPU = torch.device("cpu")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ConditionedDiffusion:
    return network(whole())


@pytest.fixture(scope="module")
def state(model: ConditionedDiffusion) -> State:
    return diffusion_state(model, whole())


def examined(folder: Path, state: State, config: ExperimentConfig | None = None, **options: Any) -> Candidate:
    return examine(read(save(folder / "x.ckpt", state)), config or known(), **options)


def imported(folder: Path, state: State, config: ExperimentConfig | None = None, **options: Any) -> Path:
    file = read(save(folder / "x.ckpt", state))
    return write(examine(file, config or known(), **options), file, folder / "artifacts")[0]


def predicted(model: ConditionedDiffusion) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, noise = (torch.rand(2, 1, 32, 32, generator=generator) for _ in range(2))
    with torch.no_grad():
        return model.predict_x0(x, torch.tensor([3, 30]), noise, model.condition(x))


def listed(error: pytest.ExceptionInfo[Exception], kind: str) -> list[str]:
    return re.findall(rf"^  {kind}: (\S+)", str(error.value), re.MULTILINE)


@pytest.mark.slow
def test_a_round_trip_keeps_every_tensor_and_output(tmp_path: Path, model: ConditionedDiffusion, state: State) -> None:
    path = imported(tmp_path, state)
    loaded, config = stages.load_model(path, CPU)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(predicted(loaded), predicted(model))
    assert config == whole(pretraining__decoder_width=512)  # the pretraining's shapes are not in this file


@pytest.mark.slow
def test_a_plain_ddpm_needs_no_encoder(tmp_path: Path) -> None:
    config = whole(model__conditioned=False, model__condition_width=None, pretraining__enabled=False)
    model = network(config)
    loaded, found = stages.load_model(imported(tmp_path, diffusion_state(model, config)), CPU)
    assert not found.model.conditioned
    assert torch.equal(predicted(loaded), predicted(model))


@pytest.mark.slow
def test_a_moving_average_is_imported_when_asked(tmp_path: Path, state: State) -> None:
    both = state | {f"ema.{name}": tensor * 2 for name, tensor in state.items() if name.startswith(UNET)}
    name = "unet.out.2.bias"
    plain, average = (examined(tmp_path, both, average=taken).weights for taken in (False, True))
    assert torch.equal(average[name], 2 * plain[name])
    encoder = "encoder.fc.bias"
    assert torch.equal(average[encoder], plain[encoder])  # the average holds none


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_exactly(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    weights = examined(tmp_path, half).weights
    assert {t.dtype for t in weights.values()} == {torch.float32, torch.int64}
    for name, tensor in half.items():
        ours = weights.get(name.replace(UNET, "unet.").replace(ENCODER, "encoder."))
        assert ours is None or torch.equal(ours, tensor.to(ours.dtype))


def test_missing_and_unknown_tensors_are_all_listed(tmp_path: Path, state: State) -> None:
    gone = [name for name in state if ".middle_block.0." in name or name.startswith(f"{ENCODER}layer2.1.bn")]
    strange = {"diffusion.what": torch.zeros(3), f"{UNET}out.9.weight": torch.zeros(1), "lpips.lin": torch.zeros(2)}
    assert len(gone) > 15
    left = {name: tensor for name, tensor in state.items() if name not in gone}
    with pytest.raises(ArtifactError, match="Nothing was imported") as error:
        examined(tmp_path, left | strange)
    assert sorted(listed(error, "missing")) == sorted(gone)
    assert sorted(listed(error, "unknown")) == sorted(strange)


def test_names_can_be_left_out_on_purpose(tmp_path: Path, state: State) -> None:
    assert examined(tmp_path, state | {"lpips.lin": torch.zeros(2)}, ignore=["lpips."]).weights
    with pytest.raises(ArtifactError, match=r"--ignore nothing\.: no name in the file begins with it"):
        examined(tmp_path, state, ignore=["nothing."])


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("shape", f"{UNET}out.2.weight", lambda t: torch.cat([t, t])),
        ("shape", f"{UNET}time_embed.2.bias", lambda t: t[:-1]),
        ("shape", f"{ENCODER}conv1.weight", lambda t: t.expand(-1, 3, -1, -1).clone()),
        ("type", f"{UNET}out.2.weight", lambda t: t.to(torch.int64)),
        ("type", f"{ENCODER}bn1.num_batches_tracked", lambda t: t.float()),
        ("value", f"{UNET}out.2.weight", lambda t: t * torch.nan),
        ("value", f"{ENCODER}bn1.running_var", lambda t: t.double() * 1e300),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    tmp_path: Path, state: State, kind: str, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(ArtifactError) as error:
        examined(tmp_path, {**state, name: change(state[name])})
    assert listed(error, kind) == [name]


@pytest.mark.slow
def test_huge_claims_take_no_memory(tmp_path: Path, state: State) -> None:
    """A U-Net of 2^20 channels would need terabytes; 40 MB of a file cannot make us ask for them."""
    wide = {**state, f"{UNET}input_blocks.0.0.weight": torch.zeros(2**20, 1, 3, 3)}
    with pytest.raises(ArtifactError, match="needed are multiples of the first 1048576"):
        examined(tmp_path, wide)
    norms = {
        name: torch.zeros(2**20) for name in state if re.search(r"input_blocks\.[13]\.0\.out_layers\.0\.weight", name)
    }
    with pytest.raises(ArtifactError, match=r"shape: .*needed is \(4194304, 1048576\)"):
        examined(tmp_path, wide | norms)


def test_every_contradiction_is_listed_with_its_remedy(tmp_path: Path, state: State) -> None:
    config = known(
        model__base_width=64,
        model__width_multipliers=[1, 2, 2],
        model__condition_width=99,
        diffusion__schedule="cosine",
        diffusion__condition_dropout=0.1,
        encoder__architecture="resnet50",
        model__residual_blocks=1,
        reconstruction__noise_levels=[5],
    )
    with pytest.raises(ConfigError) as error:
        examined(tmp_path, state, config)
    assert set(re.findall(r"^  ([\w.]+):", str(error.value), re.MULTILINE)) == {
        "model.base_width",
        "model.width_multipliers",
        "model.condition_width",
        "diffusion.schedule",
        "diffusion.condition_dropout",
        "encoder.architecture",
    }
    assert "'resnet50', but the tensors show 'resnet18' (--set encoder.architecture=\"resnet18\")" in str(error.value)


def test_what_agrees_may_be_said(tmp_path: Path, state: State) -> None:
    assert examined(tmp_path, state, whole()).config == whole()


@pytest.mark.slow
def test_a_condition_of_the_default_width_may_be_said_either_way(tmp_path: Path) -> None:
    config = whole(model__condition_width=None)
    state = diffusion_state(network(config), config)
    for width in (None, 128):
        assert examined(tmp_path, state, known(model__condition_width=width)).config.model == config.model


@pytest.mark.slow
def test_another_loss_weight_is_a_contradiction(tmp_path: Path) -> None:
    config = whole(diffusion__p2_gamma=1.0)
    state = diffusion_state(network(config), config)
    assert examined(tmp_path, state, known(diffusion__p2_gamma=1.0)).config.diffusion.p2_gamma == 1
    with pytest.raises(ConfigError, match=r"p2_gamma: 0\.0 with p2_k 1\.0, but the tensors show other weights"):
        examined(tmp_path, state)


@pytest.mark.slow
def test_without_buffers_the_schedule_is_the_configurations(tmp_path: Path, state: State) -> None:
    bare = {name: t for name, t in state.items() if name.split(".")[-1] not in schedule_buffers("linear", 2)}
    candidate = examined(tmp_path, bare, known(diffusion__timesteps=77))
    assert candidate.config.diffusion.timesteps == 77
    assert untold(candidate)["diffusion.schedule"] == "cosine"
    assert "diffusion.schedule" not in untold(examined(tmp_path, state))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {n: t for n, t in s.items() if not n.startswith(ENCODER)}, "no encoder is there"),
        (lambda s: {n: t for n, t in s.items() if ".label_emb." not in n}, "takes no condition"),
        (lambda s: {"a.b": torch.zeros(1)}, r"(?s)no network.*unknown: a\.b"),
        (lambda s: s | pretraining_state(spark(whole())), "a pretraining .*and another network are in one file"),
        (lambda s: s | {f"copy.{n}": t for n, t in s.items()}, r"more than once"),
    ],
)
def test_sets_that_make_no_model_are_refused(
    tmp_path: Path, state: State, change: Callable[[State], State], reason: str
) -> None:
    with pytest.raises(ArtifactError, match=f"x.ckpt: .*{reason}" if "(?s)" not in reason else reason):
        examined(tmp_path, change(state))


@pytest.mark.slow
def test_the_same_file_is_imported_once_and_others_apart(tmp_path: Path, state: State) -> None:
    file = read(save(tmp_path / "x.ckpt", state))
    first, made = write(examine(file, known()), file, tmp_path / "artifacts")
    again, made_again = write(examine(file, known(name="other", output_dir="/else")), file, tmp_path / "artifacts")
    assert (made, made_again, again) == (True, False, first)
    other, _ = write(examine(file, known(diffusion__objective="eps")), file, tmp_path / "artifacts")
    assert other != first
    manifest = artifact.verify(first, stages.CHECKPOINT)
    assert manifest.fingerprint == first.name
    assert manifest.made_from["imported"]["sha256"] == file.digest
    assert manifest.made_from["imported"]["epoch"] == 12
    assert checkpoint.read_history(first / checkpoint.HISTORY) == []


@pytest.mark.slow
def test_a_pretraining_becomes_an_encoder(tmp_path: Path) -> None:
    model = spark(whole())
    candidate = examined(tmp_path, pretraining_state(model))
    assert candidate.kind == stages.ENCODER
    assert candidate.config.encoder == whole().encoder
    expected = model.encoder_state()
    assert candidate.weights.keys() == expected.keys()
    assert all(torch.equal(candidate.weights[name], tensor) for name, tensor in expected.items())
    assert "model.dense_decoder.proj.weight" in candidate.dropped
    with pytest.raises(ArtifactError, match=r"missing: model\.mask_tokens\.2"):
        examined(tmp_path, {n: t for n, t in pretraining_state(model).items() if n != "model.mask_tokens.2"})


def test_an_encoder_alone_loses_its_last_layer(tmp_path: Path, model: ConditionedDiffusion, state: State) -> None:
    candidate = examined(tmp_path, {n: t for n, t in state.items() if n.startswith(ENCODER)})
    assert candidate.kind == stages.ENCODER
    assert candidate.dropped == (f"{ENCODER}fc.bias", f"{ENCODER}fc.weight")
    assert candidate.weights.keys() == {n for n in model.encoder.state_dict() if not n.startswith("fc.")}


QUICK = {"training__images": 4, "training__evaluations": 1, "training__validation_volumes": 1}


@pytest.mark.slow
def test_an_imported_encoder_starts_a_training(tmp_path: Path, store_path: Path) -> None:
    config = tiny_config(**QUICK, training__learning_rate=1e-12)
    model = spark(config)
    path = imported(tmp_path, pretraining_state(model), config)
    chosen = tiny_config(**QUICK, training__learning_rate=1e-12, pretraining__artifact=path.name)
    made = train(chosen, store_path, tmp_path / "artifacts")
    assert made.encoder == path
    assert made.made == ("checkpoint",)
    trained = checkpoint.load_weights(made.checkpoint / checkpoint.WEIGHTS)
    torch.testing.assert_close(trained["encoder.layer1.0.conv1.weight"], model.trunk.layer1[0].conv1.weight.detach())


@pytest.mark.slow
def test_an_imported_model_reconstructs_without_training(tmp_path: Path, store: SliceStore, store_path: Path) -> None:
    config = tiny_config(diffusion__condition_dropout=0.0)
    path = imported(tmp_path, diffusion_state(network(config), config), config)
    chosen = tiny_config(diffusion__condition_dropout=0.0, training__artifact=path.name)
    made = train(chosen, store_path, tmp_path / "artifacts")
    assert made == stages.Made(path, None, ())
    place = stages.Place(tmp_path / "artifacts", store_path)
    volumes = store.cohort("A", "test", 0)
    cache = Reconstruction.open(prediction.reconstruct(chosen, place, made.checkpoint, volumes, Ranks(), Hooks()))
    assert np.isfinite(cache.c(store.volumes[volumes[0]].id, 10, 0)).all()


def test_artifacts_that_do_not_fit_or_are_not_there_are_refused(tmp_path: Path, store_path: Path) -> None:
    config = tiny_config(diffusion__condition_dropout=0.0)
    path = imported(tmp_path, diffusion_state(network(config), config), config)
    with pytest.raises(ConfigError, match="made with other settings in diffusion"):
        train(tiny_config(training__artifact=path.name), store_path, tmp_path / "artifacts")
    for section in ("training", "pretraining"):
        with pytest.raises(ArtifactError, match=r"nowhere: this .* does not exist"):
            train(tiny_config(**{f"{section}__artifact": "nowhere"}), store_path, tmp_path / "artifacts")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"pretraining__artifact": "x", "pretraining__enabled": False}, "pretraining.artifact: 'x' would be ignored"),
        ({"pretraining__artifact": "x", "training__artifact": "y"}, "pretraining.artifact: 'x' would be ignored"),
        ({"training__artifact": "y", "reconstruction__guide": "ddpm"}, "a finished model stands alone"),
    ],
)
def test_artifacts_that_would_be_ignored_are_a_fault(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        tiny_config(**values)


# --- the reference's own weights ------------------------------------------------------------------------------------


PREFIXES = {
    "unet_small": "diffusion.model.",
    "unet_uncond_small": "diffusion.model.",
    "encoder_small": "encoder.",
    "spark_small": "model.",
}
"""Where Lightning modules hold the networks."""


def reference_state(folder: Path, *names: str) -> State:
    """Weights of the arrays under the names of Lightning modules."""
    return {PREFIXES[file] + name: tensor for file in names for name, tensor in weights(folder, file).items()}


def reference_config(**values: Any) -> ExperimentConfig:
    return known(**{"encoder__max_pool": True, "model__attention_head_width": 64, "data__rescale_factor": 1} | values)


@pytest.mark.slow
@pytest.mark.parity
def test_reference_diffusion_weights_give_the_reference_outputs(
    tmp_path: Path, reference_dir: Path, near: Callable[..., None]
) -> None:
    buffers = load_arrays(reference_dir, "diffusion_io")
    names = [
        name for name in buffers if name.startswith("cosine/") and name.split("/")[1] in schedule_buffers("cosine", 2)
    ]
    schedule = {f"diffusion.{name.split('/')[1]}": torch.from_numpy(buffers[name]) for name in names}
    state = reference_state(reference_dir, "unet_small", "encoder_small") | schedule
    loaded, config = stages.load_model(imported(tmp_path, state, reference_config()), CPU)
    assert (config.diffusion.schedule, config.diffusion.timesteps) == ("cosine", timesteps(buffers))
    assert set(schedule) == {f"diffusion.{name}" for name in schedule_buffers("cosine", 2)}
    unet, encoder = (dict(np.load(reference_dir / f"{name}_small_io.npz")) for name in ("unet", "encoder"))
    x, t, condition = (torch.from_numpy(unet[key]) for key in ("x", "timesteps", "cond"))
    with torch.no_grad():
        near("imported U-Net", loaded.unet(x, t, condition), unet["out"])
        near("imported encoder", loaded.condition(torch.from_numpy(encoder["x"])).vector, encoder["features_eval"])


@pytest.mark.slow
@pytest.mark.parity
def test_reference_ddpm_weights_give_the_reference_outputs(
    tmp_path: Path, reference_dir: Path, near: Callable[..., None]
) -> None:
    state = reference_state(reference_dir, "unet_uncond_small")
    loaded, _ = stages.load_model(imported(tmp_path, state, reference_config()), CPU)
    arrays = np.load(reference_dir / "unet_uncond_small_io.npz")
    with torch.no_grad():
        near(
            "imported plain U-Net",
            loaded.unet(*map(torch.from_numpy, (arrays["x"], arrays["timesteps"]))),
            arrays["out"],
        )


@pytest.mark.slow
@pytest.mark.parity
def test_reference_pretraining_weights_give_the_reference_features(
    tmp_path: Path, reference_dir: Path, near: Callable[..., None]
) -> None:
    trunk = {
        name.replace("encoder.encoder.", "model.sparse_encoder.sp_cnn."): tensor
        for name, tensor in reference_state(reference_dir, "encoder_small").items()
        if ".fc." not in name
    }
    path = imported(tmp_path, reference_state(reference_dir, "spark_small") | trunk, reference_config())
    config = json.loads((path / checkpoint.CONFIG).read_text())
    arrays, state = load_arrays(reference_dir, "spark_small_io"), spark_state(reference_dir)
    assert config["pretraining"]["decoder_width"] == len(state["en_de_lins.0.bias"])
    imported_spark = reference_settings.spark(state, float(arrays["mask_ratio"])).eval()
    for tensor in imported_spark.trunk.state_dict().values():
        tensor.zero_()
    imported_spark.trunk.load_state_dict(checkpoint.load_weights(path / checkpoint.WEIGHTS))
    with torch.no_grad():
        found = imported_spark.reconstruct(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["active"]))
    near("imported SparK", found, arrays["eval_rec"])
