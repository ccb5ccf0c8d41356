"""What is frozen: small networks and steps of the method on made-up inputs, in the precision asked for.

Every input and weight comes from NumPy by a seed and a name, so nothing but results is stored. Float64 results are frozen
(``freeze.py``), float32 ones are compared with them (``test_frozen.py``).
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from reference_settings import in_precision
from torch import Tensor, nn

from cddpm.config import DataConfig, DiffusionConfig, EncoderConfig, ModelConfig, NoiseConfig, ScoringConfig
from cddpm.data.prepare import prepare
from cddpm.data.volume import Volume
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import Diffusion, level_index, schedule_buffers
from cddpm.models.encoder import ResNetEncoder
from cddpm.models.noise import octave_field, permutation, simplex_noise
from cddpm.models.spark import SparK
from cddpm.models.unet import UNet
from cddpm.published.scoring import ReferenceVolume, reference_metrics
from cddpm.scoring.metrics import confusion
from cddpm.scoring.operating_point import area_under_roc, average_precision, best_dice, histogram, seed_search
from cddpm.scoring.postprocess import anomaly_map, remove_small_components
from cddpm.scoring.residual import anomaly_scores, difference, eroded_mask

Arrays = dict[str, np.ndarray]
ENCODER = EncoderConfig(architecture="resnet18", width=8)
LEVELS = (250, 500, 750)


def cases() -> dict[str, Callable[[torch.dtype], Arrays]]:
    """Every frozen part by name."""
    parts = (unet, encoder, spark, diffusion, conditioned, simplex, preprocessing, postprocessing)
    return {part.__name__: part for part in parts}


def random(*name: Any) -> np.random.Generator:
    """A generator that belongs to this name alone."""
    return np.random.default_rng(zlib.crc32(repr(name).encode()))


def normal(dtype: torch.dtype, name: str, *shape: int) -> Tensor:
    """Standard normal numbers of this name, the same in each precision but for rounding."""
    return torch.from_numpy(random(name).standard_normal(shape)).to(dtype)


def pictures(dtype: torch.dtype, name: str, *shape: int) -> Tensor:
    """Numbers in [0, 1] of this name."""
    return torch.from_numpy(random(name).random(shape)).to(dtype)


def with_weights(network: nn.Module, dtype: torch.dtype) -> Any:
    """``network`` in ``dtype`` with weights drawn by their names, none of them zero."""
    state = {name: _weight(name, tensor, dtype) for name, tensor in network.state_dict().items()}
    in_precision(network, dtype).load_state_dict(state)
    return network


def _weight(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    values = random("weight", name).standard_normal(tuple(tensor.shape))
    if name.endswith("running_var"):
        values = 0.5 + random("weight", name).random(tuple(tensor.shape))
    elif tensor.ndim > 1:
        values *= (tensor[0].numel() or 1) ** -0.5
    else:
        values = 0.05 * values if name.endswith(("bias", "running_mean", "null_condition")) else 1 + 0.1 * values
    return torch.from_numpy(np.float32(values)).to(dtype)  # numbers that both precisions can hold


def gradient_norms(network: nn.Module, loss: Tensor) -> np.ndarray:
    """L2 norm of each parameter's gradient, in the order of the parameters."""
    network.zero_grad()
    loss.backward()
    return np.array([float(p.grad.double().norm()) for p in network.parameters() if p.grad is not None])


def unet(dtype: torch.dtype) -> Arrays:
    """Output, loss and gradients, with and without condition."""
    x, target = normal(dtype, "x", 2, 1, 16, 16), normal(dtype, "target", 2, 1, 16, 16)
    t, condition = torch.tensor([3, 700]), normal(dtype, "condition", 2, 128)
    result = {}
    for name, conditioned in (("conditioned", True), ("unconditioned", False)):
        model = ModelConfig(base_width=32, width_multipliers=(1, 2), residual_blocks=1, conditioned=conditioned)
        network = with_weights(UNet(model), dtype)
        out = network(x, t, condition if conditioned else None)
        loss = (out - target).abs().mean()
        result |= {f"{name}/out": out, f"{name}/loss": loss}
        result[f"{name}/gradients"] = gradient_norms(network, loss)
    return numbers(result)


def encoder(dtype: torch.dtype) -> Arrays:
    """Condition vectors in evaluation and training, and the buffers after that one training step."""
    network, x = with_weights(ResNetEncoder(ENCODER, 16), dtype), pictures(dtype, "slices", 3, 1, 64, 64)
    result = {"evaluation": network.eval()(x), "last_map": network.forward_features(x)[-1]}
    result["training"] = network.train()(x)
    result["buffers"] = torch.cat([b.flatten() for n, b in network.named_buffers() if "running" in n])
    return numbers(result)


def spark(dtype: torch.dtype) -> Arrays:
    """Reconstruction, all loss flags, and a training step on given masks."""
    x, result = pictures(dtype, "slices", 6, 1, 96, 96), {}
    active = torch.zeros(6, 9, dtype=torch.bool)
    active.scatter_(1, torch.from_numpy(random("masks").random((6, 9)).argsort(1)[:, :3].copy()), True)
    active = active.view(6, 1, 3, 3)
    network = with_weights(SparK(ENCODER, 32, 0.65), dtype).eval()
    rec = network.reconstruct(x, active)
    result["reconstruction"] = rec[:2, :, ::3, ::3]
    flags: list[tuple[bool, Literal["l1", "l2"], bool]] = [
        (norm, loss, dense) for norm in (False, True) for loss in ("l1", "l2") for dense in (False, True)
    ]
    losses = [
        SparK(ENCODER, 32, 0.65, patch_norm=norm, loss=loss, dense_loss=dense).reconstruction_loss(rec, x, active)
        for norm, loss, dense in flags
    ]
    result["losses"] = torch.stack(losses)
    result["evaluation_gradients"] = gradient_norms(network, network(x, active))
    loss = network.train()(x, active)
    return numbers(result | {"training_loss": loss})


def diffusion(dtype: torch.dtype) -> Arrays:
    """Schedules (every 37th level), noising, posterior, losses and one-step reconstructions of both objectives."""
    x0, noise = 2 * pictures(dtype, "x0", 3, 1, 8, 8) - 1, normal(dtype, "noise", 3, 1, 8, 8)
    prediction, t, result = normal(dtype, "prediction", 3, 1, 8, 8), torch.tensor([0, 400, 999]), {}
    for schedule in ("cosine", "linear"):
        buffers = schedule_buffers(schedule, 1000, 0.5, 1.0)
        result[f"{schedule}/buffers"] = torch.stack([values[::37].double() for values in buffers.values()])
        for objective in ("x0", "eps"):
            for loss in ("l1", "l2"):
                process = Diffusion(DiffusionConfig(schedule=schedule, objective=objective, loss=loss, p2_gamma=0.5))
                result[f"{schedule}/{objective}/{loss}"] = process.loss(prediction, x0, noise, t)
            x_t = process.q_sample(x0, t, noise)
            result[f"{schedule}/{objective}/x0"] = process.predict_x0(prediction, x_t, t)[:2]
        result[f"{schedule}/x_t"] = x_t
        result[f"{schedule}/posterior_mean"] = process.q_posterior(x0, x_t, t)[0]
    return numbers(result)


def conditioned(dtype: torch.dtype) -> Arrays:
    """The whole model: ensemble over levels of both branches, guidance, and three steps of Adam with dropped conditions."""
    model = ModelConfig(base_width=32, width_multipliers=(1, 2), residual_blocks=1)
    small = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
    whole = with_weights(ConditionedDiffusion(model, small, DiffusionConfig(condition_dropout=0.5)), dtype)
    x, result = pictures(dtype, "slices", 3, 1, 32, 32), {}
    noise = [normal(dtype, f"noise {step}", 3, 1, 32, 32) for step in range(3)]
    with torch.no_grad():
        levels = [torch.full((3,), level_index(level)) for level in LEVELS]
        condition = {"c": whole.eval().condition(x), "u": whole.null(3)}
        for name, given in condition.items():
            parts = [whole.predict_x0(x, t, eps, given) for t, eps in zip(levels, noise, strict=True)]
            result[name] = torch.stack(parts).mean(0)
    result["guided"] = result["u"] + 2.5 * (result["c"] - result["u"])
    return numbers({name: value[:2] for name, value in result.items()} | {"losses": _three_steps(whole, x, noise)})


def _three_steps(whole: ConditionedDiffusion, x: Tensor, noise: list[Tensor]) -> Tensor:
    optimizer = torch.optim.Adam(whole.train().parameters(), lr=1e-4)
    drop, losses = torch.tensor([True, False, False]), []
    for step, eps in enumerate([*noise, noise[0]]):
        loss = whole(x, torch.tensor([10, 500, 900]) + step, eps, drop)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def simplex(dtype: torch.dtype) -> Arrays:
    """Permutations and fields: the plain sum in float64, the fast generator in float32."""
    seeds, config = [1, -77, 2**62], NoiseConfig()
    settings = config.octaves, config.persistence, config.frequency
    fields = np.stack([octave_field(seed, (24, 32), *settings) for seed in seeds])
    if dtype == torch.float32:
        fields = simplex_noise(seeds, (24, 32), config)
    return numbers({"permutations": np.stack([permutation(seed) for seed in seeds]), "fields": fields})


def preprocessing(dtype: torch.dtype) -> Arrays:
    """A textured ball with odd sizes through the whole preparation, as published and as by default."""
    shape, affine = (29, 33, 22), np.diag([-1.0, -1.0, 1.5, 1.0])
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 0.7
    image = np.where(inside, 400 + 200 * axes[0] - 100 * axes[1] + random("scan").normal(0, 20, shape), 0)
    scan = Volume(image.astype(np.float32), affine, Path("ball.nii"))
    mask = Volume(inside.astype(np.uint8), affine, Path("ball_mask.nii"))
    result = {}
    plain = DataConfig(volume_shape=(28, 34, 20), centre="scan")
    published = plain.model_copy(update={"orientation": "stored", "voxel_size_mm": None})
    for name, settings in (("default", plain), ("published", published)):
        done = prepare(scan, mask, None, settings)
        result |= {f"{name}/image": done.image, f"{name}/mask": done.mask}
    return numbers(result)


def postprocessing(dtype: torch.dtype) -> Arrays:
    """Residual, erosion, median, components, curves, both threshold searches, and the published dictionary's means."""
    shape, generator = (10, 30, 27), random("volume")
    grid = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1) - 0.5
    brain, lesion = (grid**2).sum(0) < 0.2, ((grid - 0.12) ** 2).sum(0) < 0.012
    image = brain * (0.4 + 0.05 * generator.standard_normal(shape)) + 0.3 * lesion
    reconstruction = (0.4 * brain + 0.02 * generator.standard_normal(shape)).astype(np.float32)
    scores = anomaly_map(
        anomaly_scores(difference(image, reconstruction, "l1")), eroded_mask(brain.astype(np.uint8), 25), 3
    )
    counted = histogram(scores, lesion)
    best, searched = best_dice([[counted]]), seed_search(counted)
    kept = remove_small_components(scores > searched.threshold, 8)
    counts = confusion(kept, lesion)
    volume = ReferenceVolume(image, reconstruction, brain.astype(np.uint8), lesion.astype(np.uint8))
    published = reference_metrics([volume], ScoringConfig(median_kernel=3), searched.threshold)
    return numbers(
        {
            "anomaly_map": scores,
            "kept": np.packbits(kept),
            "optimum": [best.dice, best.threshold, searched.dice, searched.threshold],
            "curves": [average_precision(counted), area_under_roc(counted)],
            "counts": [counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative],
            "published": [published[name] for name in sorted(published) if name.endswith("Mean")],
        }
    )


def numbers(table: dict[str, Any]) -> Arrays:
    """Arrays of whatever was computed; float64 for all that is not whole numbers or float16."""
    arrays = {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in table.items()
    }
    exact = (np.float16, np.uint8, np.int64)
    return {name: a if a.dtype in exact else a.astype(np.float64) for name, a in arrays.items()}
