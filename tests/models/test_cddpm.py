"""The conditioned model: its loss is the diffusion's, dropped rows see the null condition, every parameter learns."""

import pickle
from typing import get_args

import pytest
import torch

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig
from cddpm.errors import ConfigError
from cddpm.models.cddpm import Condition, ConditionedDiffusion
from cddpm.models.diffusion import to_signed, to_unit
from cddpm.models.spark import SparK

MODEL = ModelConfig(base_width=32, width_multipliers=(1, 2), residual_blocks=1)
ENCODER = EncoderConfig(architecture="resnet18", width=8, max_pool=False)
DROPPING = DiffusionConfig(condition_dropout=0.1)
ATTENDING = MODEL.model_copy(update={"conditioning": "cross-attention"})
CONDITIONINGS = pytest.mark.parametrize("config", [MODEL, ATTENDING], ids=["vector", "cross-attention"])


def small(model: ModelConfig = MODEL, diffusion: DiffusionConfig = DROPPING) -> ConditionedDiffusion:
    """A small model in evaluation mode without zeroed layers: an untrained one would ignore its inputs."""
    torch.manual_seed(0)
    network = ConditionedDiffusion(model, ENCODER, diffusion).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5 if name.startswith("null") else 0.1)
    return network


def batch(edge: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices (3, 1, edge, edge) in [0, 1], t (3,) and noise."""
    generator = torch.Generator().manual_seed(1)
    slices = torch.rand(3, 1, edge, edge, generator=generator)
    return slices, torch.tensor([0, 499, 900]), torch.randn(3, 1, edge, edge, generator=generator)


def test_the_loss_is_that_of_the_parts():
    model = small(diffusion=DiffusionConfig())
    slices, t, noise = batch()
    x0 = to_signed(slices)
    prediction = model.unet(model.diffusion.q_sample(x0, t, noise), t, model.encoder(slices))
    torch.testing.assert_close(model(slices, t, noise), (prediction - x0).abs().mean())


def test_without_dropped_rows_dropout_is_the_reference_path():
    slices, t, noise = batch()
    dropping, plain = small(), small(diffusion=DiffusionConfig())
    plain.load_state_dict({k: v for k, v in dropping.state_dict().items() if k != "null_condition"})
    expected = plain(slices, t, noise)
    torch.testing.assert_close(dropping(slices, t, noise), expected)
    torch.testing.assert_close(dropping(slices, t, noise, torch.zeros(3, dtype=torch.bool)), expected)


@pytest.mark.slow
@CONDITIONINGS
def test_dropped_rows_see_the_null_condition_and_no_others(config):
    model = small(config)
    slices, t, noise = batch(32)
    drop = torch.tensor([True, False, True])
    x_t = model.diffusion.q_sample(to_signed(slices), t, noise)
    given, null = model.condition(slices), model.null(3)
    rows = [model.restore(x_t[i : i + 1], t[i : i + 1], (null if drop[i] else given)[i : i + 1]) for i in range(3)]
    expected = model.diffusion.loss(torch.cat(rows), to_signed(slices), noise, t)
    torch.testing.assert_close(model(slices, t, noise, drop), expected)
    assert model(slices, t, noise) != model(slices, t, noise, drop)


def test_tokens_are_the_pixels_of_the_encoders_last_map():
    model = small(ATTENDING)
    slices, _, _ = batch(32)
    last, condition = model.encoder.forward_features(slices)[-1], model.condition(slices)
    torch.testing.assert_close(condition.vector, model.encoder(slices))
    assert condition.tokens.shape == (3, 4, 64)
    torch.testing.assert_close(condition.tokens[1, 2], last[1, :, 1, 0])
    assert model.null(2).tokens.shape == (2, 1, 64)
    assert small().condition(slices).tokens is None
    assert small().null_token is None


def test_an_attending_model_needs_tokens_and_a_vector():
    model = small(ATTENDING)
    slices, t, noise = batch(32)
    x_t = model.diffusion.q_sample(to_signed(slices), t, noise)
    condition = model.condition(slices)
    shown = model.restore(x_t, t, condition)
    for other in (
        Condition(condition.vector, condition.tokens.flip(0)),
        Condition(condition.vector.flip(0), condition.tokens),
    ):
        assert (model.restore(x_t, t, other) - shown).abs().amax() > 1e-4


def test_without_condition_there_is_nothing_to_attend_to():
    with pytest.raises(ConfigError, match=r"'cross-attention': a model without condition .* allowed is 'vector'"):
        ConditionedDiffusion(ATTENDING.model_copy(update={"conditioned": False}), ENCODER, DiffusionConfig())


def test_prediction_is_one_step_on_the_unit_scale():
    model = small()
    slices, t, noise = batch()
    condition = model.condition(slices)
    x_t = model.diffusion.q_sample(to_signed(slices), t, noise)
    expected = to_unit(model.unet(x_t, t, condition.vector))
    torch.testing.assert_close(model.predict_x0(slices, t, noise, condition), expected)


def test_right_eps_gives_the_slices_back():
    model = small(diffusion=DiffusionConfig(objective="eps"))
    slices, t, noise = batch()
    model.unet.forward = lambda x, t: noise
    torch.testing.assert_close(model.predict_x0(slices, t, noise, None), slices, rtol=1e-4, atol=1e-4)


def test_guidance_meets_both_branches_at_its_ends():
    model = small()
    slices, t, noise = batch()
    conditional = model.predict_x0(slices, t, noise, model.condition(slices))
    unconditional = model.predict_x0(slices, t, noise, model.null(3))
    assert (conditional - unconditional).abs().max() > 1e-4
    for scale, expected in ((0, unconditional), (1, conditional)):
        torch.testing.assert_close(unconditional + scale * (conditional - unconditional), expected)


@pytest.mark.slow
@CONDITIONINGS
def test_predictions_of_a_slice_do_not_depend_on_its_batch(config):
    model = small(config)
    slices, t, noise = batch(32)
    together = model.predict_x0(slices, t, noise, model.condition(slices))
    for i in range(3):
        one = slices[i : i + 1]
        alone = model.predict_x0(one, t[i : i + 1], noise[i : i + 1], model.condition(one))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@CONDITIONINGS
@pytest.mark.parametrize("drop", [None, torch.tensor([False] * 3), torch.tensor([True] * 3)])
def test_every_parameter_gets_a_gradient_whatever_is_dropped(config, drop):
    model = small(config).train()
    slices, t, noise = batch(32)
    model(slices, t, noise, drop).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
def test_only_dropped_rows_teach_the_null_condition():
    model = small(ATTENDING)
    slices, t, noise = batch(32)
    model(slices, t, noise).backward()
    assert not model.null_condition.grad.any()
    assert not model.null_token.grad.any()
    model(slices, t, noise, torch.tensor([True, False, False])).backward()
    assert model.null_condition.grad.any()
    assert model.null_token.grad.any()


def test_a_plain_ddpm_has_no_encoder_and_no_condition():
    model = small(MODEL.model_copy(update={"conditioned": False}), DiffusionConfig())
    slices, t, noise = batch()
    assert model.encoder is None
    assert model.condition(slices) is None
    assert model(slices, t, noise).isfinite()
    assert model.predict_x0(slices, t, noise, None).shape == slices.shape


def test_a_null_condition_that_was_never_learned_is_refused():
    slices, t, noise = batch()
    for model in (
        small(diffusion=DiffusionConfig()),
        small(MODEL.model_copy(update={"conditioned": False}), DiffusionConfig()),
    ):
        with pytest.raises(ConfigError, match="no null condition"):
            model.null(2)
        with pytest.raises(ConfigError, match="no null condition"):
            model(slices, t, noise, torch.tensor([True, False, False]))


def test_a_plain_ddpm_has_nothing_to_drop():
    with pytest.raises(ConfigError, match=r"condition_dropout: 0\.1: a model without condition") as caught:
        ConditionedDiffusion(MODEL.model_copy(update={"conditioned": False}), ENCODER, DROPPING)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", get_args(EncoderConfig.model_fields["architecture"].annotation))
def test_every_encoder_is_pretrained_and_then_conditions(architecture):
    """One step of SparK and one of the diffusion model, starting from the pretrained weights."""
    torch.manual_seed(0)
    encoder = EncoderConfig(architecture=architecture, width=4, max_pool=False, drop_path=0.05)
    slices, t, noise = batch(32)
    pretraining = SparK(encoder, 16, 0.65)
    before = pretraining.encoder_state()
    assert step(pretraining, slices) == []
    pretrained = pretraining.encoder_state()
    assert not torch.equal(pretrained["conv1.weight"], before["conv1.weight"])

    model = ConditionedDiffusion(ATTENDING, encoder, DROPPING)
    model.encoder.load_state_dict(pretrained, strict=False)
    assert torch.equal(model.encoder.layer4[0].conv1.weight, pretrained["layer4.0.conv1.weight"])
    assert model.condition(slices).tokens.shape == (3, 4, model.encoder.channels[-1])
    for layer in (
        model.unet.out[2],
        model.unet.middle_block.cross.proj_out,
        model.unet.output_blocks[-1][0].out_layers[3],
    ):
        torch.nn.init.normal_(layer.weight, std=0.1)  # a zeroed layer gives no gradient to those before it
    assert step(model, slices, t, noise, torch.tensor([True, False, False])) == []
    assert model.encoder.conv1.weight.grad.any()
    assert not torch.equal(model.encoder.conv1.weight, pretrained["conv1.weight"])


def step(module: torch.nn.Module, *inputs: torch.Tensor) -> list[str]:
    """One training step on the loss of ``inputs``; names of the parameters without finite gradient."""
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-3)
    module(*inputs).backward()
    optimizer.step()
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()]


@pytest.mark.slow
@CONDITIONINGS
def test_bfloat16_training_loss_is_float32_and_near(config):
    model = small(config)
    slices, t, noise = batch(32)
    exact = model(slices, t, noise)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(slices, t, noise, torch.tensor([False, False, False]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
