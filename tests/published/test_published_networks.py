"""Published names: prefixes are found wherever they stand, twins are refused, and shapes tell the settings back."""

import itertools
from typing import Any

import pytest
import torch
from published_file import diffusion_state, network, pretraining_state, spark, whole
from torch import Tensor

from cddpm.config import EncoderConfig, ModelConfig
from cddpm.errors import ArtifactError
from cddpm.models.diffusion import schedule_buffers
from cddpm.models.encoder import BLOCKS, ResNetEncoder
from cddpm.models.unet import UNet
from cddpm.published.networks import (
    encoder_settings,
    find_parts,
    schedule_settings,
    spark_settings,
    unet_settings,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return diffusion_state(network(whole()), whole())


def moved(state: dict[str, Tensor], **prefixes: str) -> dict[str, Tensor]:
    """The state with other prefixes; keywords U, E, S for the three."""
    ours = {"U": "diffusion.model.", "E": "encoder.encoder.", "S": "diffusion."}
    out = {}
    for name, tensor in state.items():
        key = next(k for k, prefix in ours.items() if name.startswith(prefix))
        out[prefixes.get(key, ours[key]) + name.removeprefix(ours[key])] = tensor
    return out


@pytest.mark.parametrize(
    "prefixes",
    [
        {},
        {"U": "", "E": "", "S": ""},
        {"U": "model.", "E": "model.", "S": "model."},
        {"U": "a.b.c.", "E": "encoder.", "S": "x."},
        {"U": "encoder.", "E": "unet.cond.", "S": "schedule.out."},
    ],
)
def test_networks_are_found_below_any_prefix(state: dict[str, Tensor], prefixes: dict[str, str]) -> None:
    parts = find_parts(moved(state, **prefixes))
    home = find_parts(state)
    assert parts.unknown == parts.copies == ()
    for kind, part in home.found.items():
        assert parts.found[kind].tensors.keys() == part.tensors.keys()
        assert all(parts.found[kind].tensors[name] is tensor for name, tensor in part.tensors.items())
    assert [parts.found[kind].prefix for kind in ("unet", "encoder", "schedule")] == [
        {"U": "diffusion.model.", "E": "encoder.encoder.", "S": "diffusion.", **prefixes}[key] for key in "UES"
    ]


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_no_trace(state: dict[str, Tensor], wrapper: str) -> None:
    wrapped = {wrapper + name.replace("diffusion.model.", f"diffusion.model.{wrapper}"): t for name, t in state.items()}
    assert find_parts(wrapped) == find_parts(state)


def test_a_network_with_and_without_its_wrapper_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ArtifactError, match=r"'module\.encoder\.encoder\.bn1\.bias' and 'encoder\.enc"):
        find_parts({**state, "module.encoder.encoder.bn1.bias": torch.zeros(8)})


def test_two_networks_of_a_kind_are_refused_by_name(state: dict[str, Tensor]) -> None:
    other = {f"other.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(
        ArtifactError, match=r"(?s)--ignore.*unet: below 'diffusion.model.'.*'other.diffusion.model.'.*encoder:"
    ):
        find_parts({**state, **other})


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.", "ema_model.", "trainer.ema.module."])
def test_a_moving_average_is_left_or_taken_as_asked(state: dict[str, Tensor], prefix: str) -> None:
    average = {f"{prefix}{name}": tensor + 1 for name, tensor in state.items()} | {
        f"{prefix}num_updates": torch.tensor(3)
    }
    plain, averaged = (find_parts({**state, **average}, taken) for taken in (False, True))
    assert plain.unknown == averaged.unknown == ()
    name = "out.2.bias"
    assert torch.equal(averaged.found["unet"].tensors[name], plain.found["unet"].tensors[name] + 1)
    assert plain.found["unet"].tensors[name] is state["diffusion.model." + name]
    assert averaged.copies == ("diffusion.", "diffusion.model.", "encoder.encoder.")
    assert all("ema" in copy for copy in plain.copies)
    assert len(plain.copies) == 3


def test_a_file_of_averages_alone_is_taken_as_it_is(state: dict[str, Tensor]) -> None:
    parts = find_parts({f"ema.{name}": tensor for name, tensor in state.items()})
    assert parts.found["unet"].prefix == "ema.diffusion.model."


def test_an_average_that_is_not_there_cannot_be_taken(state: dict[str, Tensor]) -> None:
    with pytest.raises(ArtifactError, match="no moving average"):
        find_parts(state, average=True)


def test_strangers_keep_their_names_in_the_file(state: dict[str, Tensor]) -> None:
    strangers = {"module.lpips.weight": torch.zeros(1), "diffusion.extra": torch.zeros(1), "emanation": torch.zeros(1)}
    assert set(find_parts({**state, **strangers}).unknown) == strangers.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(base_width=b, width_multipliers=m, residual_blocks=r, conditioned=c, attention_head_width=32)
        for (b, m), r, c in itertools.product(
            [(32, (1,)), (32, (1, 2)), (32, (1, 2, 2)), (64, (1, 1, 3, 2)), (32, (2, 1))], (1, 2, 3), (True, False)
        )
    ],
    ids=lambda m: f"{m.base_width}-{m.width_multipliers}-{m.residual_blocks}-{m.conditioned}",
)
def test_shapes_of_a_unet_tell_its_settings(model: ModelConfig) -> None:
    with torch.device("meta"):
        found = unet_settings(UNet(model).state_dict())
    expected = {
        "model.base_width": model.base_width,
        "model.width_multipliers": list(model.width_multipliers),
        "model.residual_blocks": model.residual_blocks,
        "model.conditioned": model.conditioned,
    }
    assert found == expected | ({"model.condition_width": 4 * model.base_width} if model.conditioned else {})


@pytest.mark.slow
@pytest.mark.parametrize("architecture", BLOCKS)
def test_shapes_of_an_encoder_tell_its_settings(architecture: Any) -> None:
    with torch.device("meta"):
        state = ResNetEncoder(EncoderConfig(architecture=architecture, width=24), 16).state_dict()
    assert encoder_settings(state) == {"encoder.architecture": architecture, "encoder.width": 24}


def test_an_encoder_of_another_depth_is_refused(state: dict[str, Tensor]) -> None:
    encoder = find_parts(state).found["encoder"].tensors
    less = {name: tensor for name, tensor in encoder.items() if not name.startswith("layer3.1.")}
    with pytest.raises(ArtifactError, match=r"\(2, 2, 1, 2\) basic blocks; known are resnet18 \(2, 2, 2, 2\)"):
        encoder_settings(less)


@pytest.mark.parametrize("max_pool", [True, False])
def test_shapes_of_a_pretraining_tell_its_settings(max_pool: bool) -> None:
    config = whole(encoder__max_pool=max_pool, pretraining__decoder_width=32, data__rescale_factor=1)
    parts = find_parts(pretraining_state(spark(config)))
    assert parts.unknown == ()
    assert parts.found.keys() == {"spark"}
    assert spark_settings(parts.found["spark"].tensors) == {
        "encoder.architecture": "resnet18",
        "encoder.width": 8,
        "encoder.max_pool": max_pool,
        "pretraining.decoder_width": 32,
    }


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("timesteps", [50, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_buffers_tell_their_schedule(schedule: Any, timesteps: int, dtype: torch.dtype) -> None:
    buffers = {name: values.to(dtype) for name, values in schedule_buffers(schedule, timesteps).items()}
    expected = {"diffusion.schedule": schedule, "diffusion.timesteps": timesteps, "diffusion.p2_gamma": 0.0}
    assert schedule_settings(buffers) == expected


def test_weights_by_level_are_no_part_of_the_schedule() -> None:
    assert "diffusion.p2_gamma" not in schedule_settings(schedule_buffers("linear", 100, 1.0))


@pytest.mark.parametrize("name", [name for name in schedule_buffers("cosine", 2) if name != "p2_loss_weight"])
def test_one_other_buffer_is_told(name: str) -> None:
    buffers = schedule_buffers("cosine", 100)
    buffers[name] = buffers[name] * 1.001 + 1e-3
    with pytest.raises(ArtifactError, match=f"T = 100.*cosine: {name} differ"):
        schedule_settings(buffers)


def test_buffers_of_two_lengths_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"one common length.*betas \(7,\)"):
        schedule_settings({**schedule_buffers("cosine", 100), "betas": torch.zeros(7)})


def test_stages_that_make_no_levels_are_refused(state: dict[str, Tensor]) -> None:
    unet = find_parts(state).found["unet"].tensors
    with pytest.raises(ArtifactError, match="3 input and 4 output stages, 1 of them enlarging"):
        unet_settings({name: t for name, t in unet.items() if not name.startswith("input_blocks.3.")})
