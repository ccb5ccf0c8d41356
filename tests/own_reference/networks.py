"""Arrays of the networks and of the diffusion process: inputs and weights by seed, results by our networks in float64.

Every ``..._results`` takes what stands in the files alone, so that it can be given the published code's inputs as well.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import reference_settings
import torch
from reference_settings import Arrays, State, in_precision
from torch import Tensor, nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig
from cddpm.models.diffusion import Diffusion, level_index, schedule_buffers, to_signed, to_unit
from cddpm.models.encoder import DropPath, ResNetEncoder
from cddpm.models.spark import UNREAD, SparK, draw_masks
from cddpm.models.sparse import VisibleSites
from cddpm.models.unet import AttentionBlock, UNet, timestep_embedding
from own_reference.sizes import Sizes

Table = dict[str, np.ndarray]
DOUBLE = torch.float64
SCHEDULES = ("cosine", "linear")
OBJECTIVES = {"x0": "pred_x0", "eps": "pred_noise"}


def array(value: Tensor | np.ndarray | float) -> np.ndarray:
    """As the files hold it: floating numbers of networks as float32, all else as it is."""
    found = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return found.astype(np.float32) if isinstance(value, Tensor) and found.dtype == np.float64 else found


def double(arrays: Arrays, name: str) -> Tensor:
    """An input as float64."""
    return torch.from_numpy(arrays[name]).to(DOUBLE)


def drawn_state(sizes: Sizes, network: nn.Module, prefix: str) -> State:
    """Weights by the name that they have in the file; matrices and kernels in float16, as a file may store them."""
    return {prefix + name: _weight(sizes, prefix + name, tensor) for name, tensor in network.state_dict().items()}


def _weight(sizes: Sizes, name: str, tensor: Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():
        return torch.full(shape, 7, dtype=tensor.dtype)
    values = sizes.normal("weight", name, shape=shape)
    if name.endswith("running_var"):
        values = 0.5 + sizes.uniform("weight", name, shape=shape)
    elif "mask_tokens" in name:
        values = 0.5 * values
    elif tensor.ndim > 1:
        gain = 2.0 if "encoder" in name or "de_" in name or "decoder" in name else 1.0
        return torch.from_numpy(values * (gain / max(1, tensor[0].numel())) ** 0.5).half()
    else:
        bias = name.endswith(("bias", "running_mean"))
        values = 0.05 * values if bias else 1 + 0.1 * values
    return torch.from_numpy(values)


def gradient_table(network: nn.Module, loss: Tensor) -> Table:
    """Names of parameters and the L2 norms of the loss's gradients."""
    network.zero_grad()
    loss.backward()
    found = {name: p.grad.double().norm().item() for name, p in network.named_parameters() if p.grad is not None}
    return {"grad_names": np.array(list(found)), "grad_l2": np.array(list(found.values()))}


# --- U-Net ------------------------------------------------------------------------------------------------------------


def unet_weights(sizes: Sizes, conditioned: bool) -> State:
    model = ModelConfig(
        base_width=sizes.base_width,
        width_multipliers=sizes.width_multipliers,
        residual_blocks=sizes.residual_blocks,
        conditioned=conditioned,
        condition_width=sizes.condition_width if conditioned else None,
    )
    return drawn_state(sizes, UNet(model), "")


def unet_inputs(sizes: Sizes, conditioned: bool) -> Table:
    batch, height, width = sizes.slices
    shape, name = (batch, 1, height, width), f"unet {conditioned}"
    inputs = {
        "x": sizes.normal(name, "x", shape=shape),
        "timesteps": sizes.random(name, "t").integers(0, 1000, batch),
        "target": sizes.normal(name, "target", shape=shape),
    }
    if conditioned:
        inputs["cond"] = sizes.normal(name, "cond", shape=(batch, sizes.condition_width))
    return inputs


def unet_results(arrays: Arrays, state: State) -> Table:
    network = in_precision(reference_settings.unet(state), DOUBLE)
    t, condition = torch.from_numpy(arrays["timesteps"]), double(arrays, "cond") if "cond" in arrays else None
    seen: list[Tensor] = []
    network.middle_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = network(double(arrays, "x"), t, condition)
    loss = (out - double(arrays, "target")).abs().mean()
    return {
        "out": array(out),
        "l1_loss": array(loss),
        "emb": array(network.embed(t, condition)),
        "mid_out": array(seen[0]),
        "temb": array(timestep_embedding(t, network.model.base_width)),
        **gradient_table(network, loss),
    }


def attention_inputs(sizes: Sizes) -> Table:
    channels = sizes.attention[1]
    block = AttentionBlock(channels, 64)
    state = drawn_state(sizes, block, "attention.")
    parameters = {name.replace("attention.", "param/"): array(tensor.float()) for name, tensor in state.items()}
    return {"x": sizes.normal("attention", shape=sizes.attention), "num_heads": array(block.heads), **parameters}


def attention_results(arrays: Arrays) -> Table:
    return {"out": array(attention_block(arrays).double()(double(arrays, "x")))}


def attention_block(arrays: Arrays) -> AttentionBlock:
    """The block of the arrays, float32."""
    channels = arrays["x"].shape[1]
    block = AttentionBlock(channels, channels // int(arrays["num_heads"]))
    block.load_state_dict({key[6:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("param/")})
    return block


# --- encoder and SparK ------------------------------------------------------------------------------------------------


def encoder_config(sizes: Sizes) -> EncoderConfig:
    return EncoderConfig(architecture=sizes.architecture, width=sizes.encoder_width, drop_path=sizes.drop_path)


def encoder_weights(sizes: Sizes) -> State:
    network = ResNetEncoder(encoder_config(sizes), sizes.condition_width)
    return drawn_state(sizes, network, "encoder.")


def encoder_inputs(sizes: Sizes) -> Table:
    batch, height, width = sizes.encoder_slices
    drops = {n: m.p for n, m in ResNetEncoder(encoder_config(sizes), 2).named_modules() if isinstance(m, DropPath)}
    active = {f"encoder.{name}": p for name, p in drops.items() if p}
    return {
        "x": sizes.uniform("encoder", shape=(batch, 1, height, width)),
        "droppath_names": np.array(list(active)),
        "droppath_probs": np.array(list(active.values())),
    }


def encoder_results(arrays: Arrays, state: State) -> Table:
    network, x = reference_settings.encoder(state).double().eval(), double(arrays, "x")
    maps = network.forward_features(x)
    result = {"features_eval": array(network(x)), "layer4_eval": array(maps[3])}
    for i, layer in enumerate(maps, start=1):
        result[f"layer{i}_mean_std"] = np.array([layer.mean().item(), layer.std().item()])
    result["features_train_nodrop"] = array(network.train()(x))
    buffers = {f"after_train/encoder.{name}": array(tensor) for name, tensor in network.named_buffers()}
    return result | buffers


def spark_weights(sizes: Sizes) -> State:
    """What the encoder's file does not hold, display constants too."""
    network = SparK(encoder_config(sizes), sizes.decoder_width, sizes.mask_ratio)
    state = drawn_state(sizes, network, "")
    unread = {name: torch.zeros(1, 3, 1, 1) for name in UNREAD}
    return {name: tensor for name, tensor in state.items() if not name.startswith("sparse_encoder.")} | unread


def spark_inputs(sizes: Sizes) -> Table:
    count, side = sizes.spark_slices, sizes.patches
    patches = side**2
    visible = round(patches * (1 - sizes.mask_ratio))
    order = sizes.random("masks").random((count, patches)).argsort(1)
    names = encoder_inputs(sizes)["droppath_names"]
    keep = 1 - encoder_inputs(sizes)["droppath_probs"]
    kept = sizes.random("drops").random((len(names), count)) < 0.7  # more are dropped than by chance
    return {
        "x": sizes.uniform("spark", shape=(count, 1, 32 * side, 32 * side)),
        "active": (order < visible).reshape(count, 1, side, side),
        "len_keep": np.array(visible),
        "fmap_size": np.array(side),
        "mask_ratio": np.array(sizes.mask_ratio),
        "mask_seed": np.array(sizes.seed + 1),
        "train_drop_keep": kept,
        "train_drop_keep_prob": keep,
        "train_drop_names": np.array([name.replace("encoder.", "sparse_encoder.sp_cnn.", 1) for name in names]),
    }


class GivenPath(nn.Module):
    """Stochastic depth whose outcome is given."""

    def __init__(self, keep: np.ndarray, probability: float) -> None:
        super().__init__()
        self.scale = torch.tensor(keep)[:, None, None, None] / probability

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


def give_paths(network: SparK, arrays: Arrays) -> SparK:
    """``network`` with the branches kept that the arrays keep."""
    names = ("train_drop_names", "train_drop_keep", "train_drop_keep_prob")
    for name, keep, probability in zip(*(arrays[n] for n in names), strict=True):
        network.set_submodule(str(name), GivenPath(keep, float(probability)))
    return network


def spark_results(arrays: Arrays, state: State) -> Table:
    network = reference_settings.spark(state, float(arrays["mask_ratio"])).double().eval()
    x, active = double(arrays, "x"), torch.from_numpy(arrays["active"])
    visible, rec = VisibleSites(active), network.reconstruct(x, active)
    result = {
        "eval_rec": array(rec),
        "eval_spatial_loss": array(network(x, active)),
        "eval_l1_full": array((rec - x).abs().mean()),
        "eval_active_ex_sum": array(int(visible.mask(*x.shape[2:]).sum())),
    }
    maps = network.trunk.forward_features(visible.hide(x), visible)
    result |= {f"eval_fea{i}": array(layer[:2]) for i, layer in enumerate(reversed(maps))}
    for norm in (0, 1):
        for square in (0, 1):
            for dense in (0, 1):
                flagged = with_flags(network, norm, square, dense)
                result[f"loss_pix{norm}_l2{square}_dense{dense}"] = array(flagged.reconstruction_loss(rec, x, active))
    generator = torch.Generator().manual_seed(int(arrays["mask_seed"]))
    grid = (int(arrays["fmap_size"]),) * 2
    result["mask_seeded"] = array(draw_masks(len(x), grid, network.visible_patches(grid), generator))
    network = network.train()
    dropped = spark_step(arrays, give_paths(copy.deepcopy(network), arrays))
    result |= {f"train_nodrop_{key}": array(value) for key, value in spark_step(arrays, copy.deepcopy(network)).items()}
    result |= {f"train_drop_{key}": array(dropped[key]) for key in ("rec", "spatial_loss")}
    buffers = {key: array(value) for key, value in dropped.items() if key.startswith("after_train/")}
    loss = network(double(arrays, "x"), torch.from_numpy(arrays["active"]))
    return _without_buffers(result) | buffers | gradient_table(network, loss)


def _without_buffers(table: Table) -> Table:
    return {key: value for key, value in table.items() if "after_train/" not in key}


def spark_step(arrays: Arrays, network: SparK) -> dict[str, Tensor]:
    """One pass in training mode, in the network's precision: smallest map, reconstruction, loss and statistics after it."""
    dtype = network.mask_tokens[0].dtype
    x, active = torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["active"])
    visible, twin = VisibleSites(active), copy.deepcopy(network)
    rec = network.reconstruct(x, active)
    return {
        "fea0": twin.trunk.forward_features(visible.hide(x), visible)[-1],
        "rec": rec,
        "spatial_loss": network.reconstruction_loss(rec, x, active),
        **{f"after_train/{name}": b for name, b in network.named_buffers() if "running" in name},
    }


def with_flags(network: SparK, norm: int, square: int, dense: int) -> SparK:
    """``network`` with the loss that the published code's flags mean."""
    flagged = copy.copy(network)
    flagged.patch_norm, flagged.dense_loss = bool(norm), bool(dense)
    flagged.loss = "l2" if square else "l1"
    return flagged


# --- the diffusion process --------------------------------------------------------------------------------------------


def diffusion_inputs(sizes: Sizes) -> Table:
    batch, height, width = sizes.slices
    shape, last = (batch, 1, height, width), sizes.timesteps
    noise = sizes.normal("forward noise", shape=shape)
    return {
        "q_x0": 2 * sizes.uniform("q_x0", shape=shape) - 1,
        "q_noise": sizes.normal("q_noise", shape=shape),
        "q_t": sizes.random("q_t").integers(0, int(0.9 * last), batch),
        "fwd_img": sizes.uniform("image", shape=shape),
        "fwd_cond": sizes.normal("condition", shape=(batch, sizes.condition_width)),
        "fwd_noise": noise,
        "fwd_noise_f16": noise.astype(np.float16),
        "fwd_t": np.array(last // 2),
        "ens_steps": np.array(sizes.levels),
        "ens_noise": sizes.normal("ensemble", shape=(len(sizes.levels), *shape)),
        "train3_t": sizes.random("training").integers(0, last, (3, batch)),
        "train3_noise": sizes.normal("training", shape=(3, *shape)),
    }


class Forward:
    """One pass of the conditioned U-Net on the arrays' image in a precision: noise, predict, compare, reconstruct."""

    def __init__(self, arrays: Arrays, state: State, dtype: torch.dtype, length: int) -> None:
        self.dtype, self.length = dtype, length
        self.network = in_precision(reference_settings.unet(state), dtype)
        self.x0 = to_signed(torch.from_numpy(arrays["fwd_img"]).to(dtype))
        self.condition = torch.from_numpy(arrays["fwd_cond"]).to(dtype)

    def __call__(self, settings: Mapping[str, object], t: np.ndarray | int, noise: np.ndarray) -> tuple[Tensor, Tensor]:
        """Loss and published reconstruction (B, 1, H, W) on [0, 1] of ``t`` () or (B,) and noise."""
        diffusion = Diffusion(DiffusionConfig.model_validate({"timesteps": self.length, **settings}))
        eps = torch.from_numpy(noise).to(self.dtype)
        levels = torch.from_numpy(np.broadcast_to(t, len(self.x0)).copy())
        x_t = diffusion.q_sample(self.x0, levels, eps)
        prediction = self.network(x_t, levels, self.condition)
        loss = diffusion.loss(prediction, self.x0, eps, levels)
        return loss, to_unit(diffusion.predict_x0(prediction, x_t, levels))

    def train(self, arrays: Arrays) -> tuple[list[float], float]:
        """Losses of the three steps of Adam, and that of the first inputs after them."""
        optimizer = torch.optim.Adam(self.network.train().parameters(), lr=1e-4)
        losses = []
        for t, noise in zip(arrays["train3_t"], arrays["train3_noise"], strict=True):
            loss, _ = self({}, t, noise)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses, self({}, arrays["train3_t"][0], arrays["train3_noise"][0])[0].item()


def diffusion_results(arrays: Arrays, state: State, length: int) -> Table:
    result: Table = {}
    for schedule in SCHEDULES:
        buffers = schedule_buffers(schedule, length)
        result |= {f"{schedule}/{name}": array(values) for name, values in buffers.items()}
        weighted = schedule_buffers(schedule, length, p2_gamma=1.0, p2_k=1.0)["p2_loss_weight"]
        result[f"{schedule}/p2_loss_weight_gamma1"] = array(weighted)
        result |= {f"{schedule}/{name}": array(v) for name, v in process(arrays, schedule, length, DOUBLE).items()}
    with torch.no_grad():
        result |= _forwards(arrays, Forward(arrays, state, DOUBLE, length))
    losses, after = Forward(arrays, state, DOUBLE, length).train(arrays)
    return result | {"train3_losses": np.array(losses), "train3_loss_step0_after": np.array(after, np.float32)}


def process(arrays: Arrays, schedule: str, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Noising, its inverses and the posterior of the arrays' images, under the published names."""
    x0, noise = (torch.from_numpy(arrays[name]).to(dtype) for name in ("q_x0", "q_noise"))
    t, diffusion = torch.from_numpy(arrays["q_t"]), Diffusion(DiffusionConfig(schedule=schedule, timesteps=length))
    x_t = diffusion.q_sample(x0, t, noise)
    mean, variance, log_variance = diffusion.q_posterior(x0, x_t, t)
    return {
        "q_sample": x_t,
        "predict_start_from_noise": diffusion.predict_start_from_noise(x_t, t, noise),
        "predict_noise_from_start": diffusion.predict_noise_from_start(x_t, t, x0),
        "q_post_mean": mean,
        "q_post_var": variance,
        "q_post_logvar": log_variance,
    }


def _forwards(arrays: Arrays, forward: Callable[..., tuple[Tensor, Tensor]]) -> Table:
    result: Table = {}
    for schedule in SCHEDULES:
        for objective, published in OBJECTIVES.items():
            for kind in ("l1", "l2"):
                settings = {
                    "schedule": schedule,
                    "objective": objective,
                    "loss": kind,
                    "eps_reconstruction": "unscaled",
                }
                loss, reco = forward(settings, arrays["fwd_t"], arrays["fwd_noise"])
                result[f"fwd/{schedule}/{published}/{kind}/loss"] = array(loss)
            result[f"fwd/{schedule}/{published}/reco"] = array(reco)
    loss, reco = forward({}, arrays["fwd_t"], arrays["fwd_noise_f16"])
    result |= {"fwd_halfnoise/loss": array(loss), "fwd_halfnoise/reco": array(reco)}
    result["fwd_p2gamma1/loss"] = array(forward({"p2_gamma": 1.0}, arrays["fwd_t"], arrays["fwd_noise"])[0])
    runs = [forward({}, level_index(int(s)), n) for s, n in zip(arrays["ens_steps"], arrays["ens_noise"], strict=True)]
    result["ens_losses"] = np.array([loss.item() for loss, _ in runs])
    return result | {"ens_reco": array(torch.stack([reco for _, reco in runs]).mean(0))}
