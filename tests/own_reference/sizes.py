"""How large the arrays are, and by which seed they are drawn."""

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Everything that one set of arrays may choose freely."""

    seed: int
    base_width: int = 32
    width_multipliers: tuple[int, ...] = (1, 2)
    residual_blocks: int = 1
    condition_width: int = 20
    """Of the U-Net and of the encoder: they make one model."""
    slices: tuple[int, int, int] = (3, 8, 12)
    """Batch, height and width of what the U-Net sees."""
    attention: tuple[int, int, int, int] = (2, 64, 4, 5)
    """Batch, channels, height and width."""
    architecture: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    encoder_width: int = 8
    encoder_slices: tuple[int, int, int] = (3, 64, 96)
    drop_path: float = 0.1
    decoder_width: int = 32
    patches: int = 2
    """Along each axis, of 32 pixels."""
    mask_ratio: float = 0.5
    spark_slices: int = 3
    timesteps: int = 120
    levels: tuple[int, ...] = (20, 60, 90, 100)
    noise_side: int = 24
    octaves: int = 4
    persistence: float = 0.7
    frequency: int = 16
    noise_seeds: tuple[int, ...] = (5, -4096, 2**61 + 1)
    single_octaves: int = 2
    statistics_seeds: int = 120
    noise_batch: int = 3
    volume_a: Shape = (40, 52, 15)
    volume_b: Shape = (26, 28, 10)
    """(X, Y, Z) of the evaluation."""
    erosion_unit: Shape = (33, 76, 5)
    scans: tuple[tuple[Shape, Shape, float], ...] = (
        ((34, 42, 27), (36, 34, 20), 2.0),
        ((31, 37, 22), (33, 32, 20), 3.0),
    )
    """Of a and b: shape of the file, of the crop, and the rescaling factor."""
    augmented: Shape = (9, 11, 7)
    bias_order: int = 2
    ghost: tuple[int, int, float, float] = (4, 0, 0.6, 0.1)
    """Number of ghosts, axis, intensity, restored share."""
    healthy: tuple[int, int, int] = (30, 6, 9)
    """Subjects of IXI: training, validation, test."""

    def random(self, *name: Any) -> np.random.Generator:
        """A generator that belongs to this seed and this name alone."""
        return np.random.default_rng(zlib.crc32(repr((self.seed, *name)).encode()))

    def normal(self, *name: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal float32 numbers of this name."""
        return self.random(*name).standard_normal(shape).astype(np.float32)

    def uniform(self, *name: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Float32 numbers in [0, 1) of this name."""
        return self.random(*name).random(shape).astype(np.float32)


FROZEN = Sizes(seed=20)
OTHERS = {
    "larger": Sizes(
        seed=31,
        base_width=64,
        width_multipliers=(1, 1, 3),
        residual_blocks=2,
        condition_width=72,
        slices=(2, 24, 24),
        attention=(3, 192, 4, 7),
        architecture="resnet50",
        encoder_width=16,
        encoder_slices=(4, 64, 64),
        drop_path=0.05,
        decoder_width=64,
        patches=4,
        mask_ratio=0.7,
        spark_slices=5,
        timesteps=1000,
        levels=(250, 500),
        noise_side=48,
        octaves=6,
        persistence=0.8,
        frequency=64,
        noise_seeds=(1, 2, 77777, -9),
        single_octaves=3,
        statistics_seeds=150,
        noise_batch=5,
        volume_a=(80, 101, 41),
        volume_b=(50, 64, 22),
        erosion_unit=(52, 128, 7),
        scans=(((90, 105, 55), (96, 96, 50), 2.0), ((64, 66, 41), (64, 64, 40), 3.0)),
        augmented=(21, 24, 30),
        bias_order=3,
        ghost=(7, 2, 0.9, 0.05),
        healthy=(60, 10, 20),
    ),
    "odd": Sizes(
        seed=47,
        width_multipliers=(2,),
        residual_blocks=3,
        condition_width=128,
        slices=(4, 9, 9),
        architecture="resnet34",
        encoder_slices=(2, 96, 96),
        patches=3,
        mask_ratio=0.65,
        spark_slices=4,
        timesteps=55,
        levels=(1, 30, 55),
        noise_side=33,
        octaves=2,
        frequency=9,
        volume_a=(31, 24, 11),
        volume_b=(29, 51, 13),
        scans=(((41, 43, 29), (33, 35, 22), 1.5), ((30, 30, 20), (28, 31, 17), 4.0)),
        bias_order=4,
        ghost=(5, 1, 1.0, 0.02),
    ),
}
