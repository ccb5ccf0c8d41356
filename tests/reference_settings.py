"""Networks of the reference arrays: every width, depth and size is read from the files, so that others can take their place.

What no file tells is the published code's constant: 64 channels per attention head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cddpm.config import DataConfig, EncoderConfig, ModelConfig, NoiseConfig, RescaleGrid
from cddpm.models.encoder import ResNetEncoder
from cddpm.models.spark import SparK
from cddpm.models.unet import UNet
from cddpm.published.networks import encoder_settings, spark_settings, unet_settings

State = dict[str, Tensor]
Arrays = Mapping[str, np.ndarray]


def load_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Every array of ``name``.npz, read once."""
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def weights(folder: Path, name: str) -> State:
    """Tensors of ``name``.safetensors; numbers of any stored type as float32."""
    stored = load_file(folder / f"{name}.safetensors")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in stored.items()}


def _section(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}


def unet(state: State) -> UNet:
    """The U-Net that these tensors are of, in evaluation mode; names and shapes must fit exactly."""
    network = UNet(ModelConfig.model_validate(_section(unet_settings(state), "model")))
    network.load_state_dict(state)
    return network.eval()


def trunk_of(state: State) -> State:
    """The encoder's tensors (``encoder.*``) under their own names."""
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items()}


def encoder(state: State, drop_path: float = 0.0) -> ResNetEncoder:
    """The encoder that these tensors are of."""
    own = trunk_of(state)
    config = EncoderConfig.model_validate(_section(encoder_settings(own), "encoder") | {"drop_path": drop_path})
    network = ResNetEncoder(config, len(own["fc.bias"]))
    network.load_state_dict(own)
    return network


def spark_state(folder: Path) -> State:
    """SparK's tensors: those of its own file, and the trunk from the encoder's file."""
    trunk = {
        name.replace("encoder.", "sparse_encoder.sp_cnn.", 1): tensor
        for name, tensor in weights(folder, "encoder_small").items()
        if ".fc." not in name
    }
    return weights(folder, "spark_small") | trunk


def spark(state: State, mask_ratio: float, **settings: Any) -> SparK:
    """The pretraining that these tensors are of."""
    found = spark_settings(state)
    config = EncoderConfig.model_validate(_section(found, "encoder"))
    network = SparK(config, found["pretraining.decoder_width"], mask_ratio, **settings)
    network.load_state_dict(dict(state))
    return network


def timesteps(arrays: Arrays) -> int:
    """Noise levels of ``diffusion_io``."""
    return len(arrays["cosine/betas"])


def noise_config(arrays: Arrays) -> NoiseConfig:
    """Settings of the fields in ``simplex``."""
    octaves, frequency = int(arrays["octaves"]), int(arrays["frequency"])
    return NoiseConfig(octaves=octaves, persistence=float(arrays["persistence"]), frequency=frequency)


def noise_shape(arrays: Arrays) -> tuple[int, int]:
    """(H, W) of the fields in ``simplex``."""
    height, width = (int(n) for n in arrays["shape"])
    return height, width


def radial_power(fields: np.ndarray, rings: int) -> np.ndarray:
    """(B, rings): mean over rings of whole radius of |FFT(field - mean)|^2 / pixels, of fields (B, H, W)."""
    height, width = fields.shape[1:]
    power = np.abs(np.fft.fft2(fields - fields.mean((1, 2), keepdims=True))) ** 2 / (height * width)
    frequencies = np.meshgrid(np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width), indexing="ij")
    ring = np.rint(np.hypot(*frequencies)).astype(int)
    return np.stack([power[:, ring == radius].mean(1) for radius in range(rings)], axis=1)


def preprocessing(arrays: Arrays) -> DataConfig:
    """Settings of ``preprocess``: volumes as they are stored, on the grid that the final volume's shape shows."""
    plain = {
        "orientation": "stored",
        "voxel_size_mm": None,
        "centre": "scan",
        "volume_shape": arrays["imageDim"].tolist(),
        "rescale_factor": float(arrays["rescaleFactor"]),
    }
    grids = [DataConfig.model_validate(plain | {"rescale_grid": grid}) for grid in get_args(RescaleGrid)]
    shape = arrays["final_vol"].shape
    fitting = [data for data in grids if data.working_shape == shape]
    sizes = [data.working_shape for data in grids]
    assert fitting, f"final_vol has shape {shape}; of {plain['volume_shape']} by {plain['rescale_factor']}: {sizes}"
    return fitting[-1]


def turned(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) as slices (S, H, W) = (Z, X, Y)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def in_precision(network: Any, dtype: torch.dtype) -> Any:
    """``network`` computing in ``dtype``; a U-Net's sinusoids stay float32 numbers, as in any precision."""
    network.to(dtype)
    for module in network.modules():
        if isinstance(module, UNet):
            module.time_embed.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    return network
