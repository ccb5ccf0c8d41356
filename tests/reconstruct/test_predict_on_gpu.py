"""On a GPU: passes that are replayed as a graph predict the same bits as passes whose kernels start one by one."""

import numpy as np
import pytest
import torch

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig, NoiseConfig
from cddpm.models import replay
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format
from cddpm.reconstruct.predict import Manner, Request, predict_volumes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]


@pytest.mark.parametrize("conditioning", ["vector", "cross-attention"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_prediction_is_that_of_single_kernels(conditioning, precision, monkeypatch):
    torch.manual_seed(0)
    networks = ModelConfig(base_width=32, conditioning=conditioning), EncoderConfig()
    model = ConditionedDiffusion(*networks, DiffusionConfig(condition_dropout=0.1)).to("cuda")
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    model.to(memory_format=memory_format("cuda"))
    volumes = np.random.default_rng(0).random((3, 11, 32, 32)).astype(np.float32)
    manner = Manner(NoiseConfig(), 7, batch_size=8, precision=precision, device="cuda")

    def predicted():
        requests = [Request(f"v{i}", volume, ((100, 0), (500, 0))) for i, volume in enumerate(volumes)]
        return [arrays for _, arrays in predict_volumes(model, requests, manner)]

    replayed = predicted()
    monkeypatch.setattr(replay, "_FIRST", 10**9)
    plain = predicted()
    assert len(plain) == len(volumes)
    for found, expected in zip(replayed, plain, strict=True):
        assert found.keys() == expected.keys()
        for key in expected:
            assert np.array_equal(found[key], expected[key]), key
