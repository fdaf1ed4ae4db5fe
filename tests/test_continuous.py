"""The continuous stream: gains, the partition of symbols into steps, causality, networks that freeze to integers."""

import pytest
import torch
from conftest import SMALL, random_model
from torch import nn

from hybridflow.continuous import ContinuousCodec
from hybridflow.entropy import PRECISION, Encoder
from hybridflow.exact import IntegerConv, IntegerIndexPrior
from hybridflow.index_prior import IndexPrior
from hybridflow.model import PRESETS, HybridFlow
from hybridflow.probability import (
    LATENT_STEPS,
    MEAN_STEPS,
    QUALITIES,
    SCALE_MAX,
    SCALE_MIN,
    SCALES,
    ContextModel,
    HyperSynthesis,
    QualityTable,
    latent_step_masks,
    scale_of,
)
from hybridflow.stream_coding import code_y, code_z

SIZES = [(1, 1), (1, 3), (4, 4), (5, 7)]


@pytest.fixture(scope="module")
def model():
    return random_model(0)


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return ContinuousCodec(6, 4, 8, {"widths": (8, 8, 8), "depths": (1, 1, 1)})


def test_gains_grow_with_quality_and_their_inverses_undo_them(codec):
    quality = torch.arange(QUALITIES)
    gain, inverse = codec.log_gain(quality).exp(), codec.log_inverse_gain(quality).exp()
    assert (gain[1:] > gain[:-1]).all() and (inverse[1:] < inverse[:-1]).all()
    torch.testing.assert_close(gain * inverse, torch.ones_like(gain))
    y = torch.randn(2, 6, 3, 3)
    ends = torch.tensor([0, 63])
    torch.testing.assert_close(codec.ungain(codec.gain(y, ends)[0], ends), y)


def test_a_quality_table_meets_its_anchors_and_is_linear_between():
    table = QualityTable(3)
    nn.init.normal_(table.anchors)
    torch.testing.assert_close(table(torch.arange(0, 64, 9)), table.anchors)
    torch.testing.assert_close(table(torch.tensor([3]))[0], table.anchors[0] * 2 / 3 + table.anchors[1] / 3)


def test_the_scale_table_is_geometric():
    scales = scale_of(torch.arange(SCALES).double())
    torch.testing.assert_close(scales[[0, -1]], torch.tensor([SCALE_MIN, SCALE_MAX]).double())
    torch.testing.assert_close(scales[1:] / scales[:-1], (scales[1] / scales[0]).expand(SCALES - 1))


@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("channels", [1, 6, 8])
def test_steps_partition_every_symbol_exactly_once(channels, h, w):
    masks = latent_step_masks(channels, h, w)
    assert masks.shape == (LATENT_STEPS, channels, h, w)
    assert (masks.sum(0) == 1).all()


def test_every_step_sees_every_position_and_every_group_in_turn():
    masks = latent_step_masks(4, 2, 2)
    assert (masks.sum((1, 2, 3)) == 4).all()  # each of four groups codes one of four positions
    assert (masks.any(1)).all()  # together they touch all positions


@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_likelihoods_of_any_size_in_both_modes(codec, h, w, training):
    codec.train(training)
    latent = codec(torch.rand(2, 3, 16 * h, 16 * w), torch.tensor([0, 63]))
    assert latent.y_hat.shape == latent.y_gained.shape == latent.likelihoods["y"].shape == (2, 6, h, w)
    assert latent.likelihoods["z"].shape == (2, 4, -(-h // 4), -(-w // 4))
    for likelihood in latent.likelihoods.values():
        assert likelihood.min() > 0 and likelihood.max() <= 1.001
    assert (16 * latent.y_gained == (16 * latent.y_gained).round()).all()
    torch.testing.assert_close(latent.y_hat, codec.ungain(latent.y_gained, torch.tensor([0, 63])))


def test_rounding_is_repeatable_and_noise_is_not(codec):
    image, quality = torch.rand(1, 3, 64, 64), torch.tensor([40])

    def likelihoods():
        return codec(image, quality).likelihoods["y"]

    assert not torch.equal(likelihoods(), likelihoods())
    codec.eval()
    assert torch.equal(likelihoods(), likelihoods())


def test_rate_and_decoded_latent_reach_the_encoder(codec):
    for wanted in ("y", "z", "y_hat"):
        codec.zero_grad()
        latent = codec(torch.rand(1, 3, 64, 64), torch.tensor([31]))
        value = latent.y_hat.square() if wanted == "y_hat" else -latent.likelihoods[wanted].log()
        value.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.analysis.parameters())


class Recorder:
    """A probability model that keeps what it gave for each step."""

    def __init__(self, model):
        self._model, self.given = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def latent_step(self, *arguments):
        self.given.append(self._model.latent_step(*arguments))
        return self.given[-1]

    def hyper_step(self, *arguments):
        self.given.append(self._model.hyper_step(*arguments))
        return self.given[-1]


@pytest.mark.parametrize("step", range(LATENT_STEPS))
def test_later_symbols_change_no_earlier_distribution(model, step):
    h, w, channels = 5, 7, model.preset.latent_channels
    generator = torch.Generator().manual_seed(step)
    y = 3 * torch.randn(channels, h, w, generator=generator).numpy()
    z = torch.randint(-3, 4, (model.preset.z_channels, 2, 2), generator=generator).numpy()
    mask = latent_step_masks(channels, h, w)[step].numpy()
    first, second = Recorder(model.probability()), Recorder(model.probability())
    code_y(Encoder(), first, 31, z, h, w, y)
    code_y(Encoder(), second, 31, z, h, w, y + 8 * mask)
    assert [agree(*pair) for pair in zip(first.given, second.given)] == [n <= step for n in range(LATENT_STEPS)]


@pytest.mark.parametrize("step", range(LATENT_STEPS))
def test_later_symbols_of_z_change_no_earlier_distribution(model, step):
    rows, columns, channels = 5, 7, model.preset.z_channels
    z = torch.randint(-3, 4, (channels, rows, columns), generator=torch.Generator().manual_seed(step)).numpy()
    mask = latent_step_masks(channels, rows, columns)[step].numpy()
    first, second = Recorder(model.probability()), Recorder(model.probability())
    code_z(Encoder(), first, 31, 4 * rows, 4 * columns, z)
    code_z(Encoder(), second, 31, 4 * rows, 4 * columns, z + 8 * mask)
    assert [agree(*pair) for pair in zip(first.given, second.given)] == [n <= step for n in range(LATENT_STEPS)]


def agree(one, other):
    """Whether means and scales are the same."""
    return all((a == b).all() for a, b in zip(one, other))


@torch.inference_mode()
def test_what_training_sees_is_what_is_coded(model):
    """y^_c of the forward pass against the coder's integers."""
    image, quality = torch.rand(1, 3, 80, 112, generator=torch.Generator().manual_seed(0)), torch.tensor([31])
    gained = model.continuous(image, quality).y_gained[0]
    _, coded = model.write(model.analyse(image), 31, "none")
    assert (16 * gained.numpy() == coded.y).all()


def test_tables_are_whole_and_follow_the_densities():
    continuous = HybridFlow(SMALL).continuous
    continuous.bake_tables()
    counts, scales = continuous.scale_counts, scale_of(torch.arange(SCALES).double())
    assert counts.min() >= 1 and (counts.long().sum(-1) == 2**PRECISION).all()
    probabilities = counts[..., :-1].double() / 2**PRECISION
    values = torch.arange(probabilities.shape[-1]).double() - probabilities.shape[-1] // 2
    means = (probabilities * values).sum(-1)
    torch.testing.assert_close(means[0], torch.zeros(SCALES).double(), atol=2e-3, rtol=0)
    wide_enough = (scales > 1) & (scales < 8)  # wider ones reach beyond the table
    expected = (torch.arange(MEAN_STEPS).double() / MEAN_STEPS)[:, None].expand_as(means)
    torch.testing.assert_close(means[:, wide_enough], expected[:, wide_enough], atol=5e-3, rtol=0)
    deviations = (probabilities * (values - means[..., None]) ** 2).sum(-1).sqrt()
    expected = (scales**2 + 1 / 12).sqrt().expand_as(deviations)
    torch.testing.assert_close(deviations[:, wide_enough], expected[:, wide_enough], rtol=0.02, atol=0)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_probability_networks_have_the_shape_that_freezes_to_integers(preset):
    width = preset.context_width
    networks = [
        HyperSynthesis(preset.z_channels, width, width),
        ContextModel(preset.latent_channels, width, width),
        ContextModel(preset.z_channels, preset.z_channels),
        IndexPrior(preset.latent_channels, preset.num_codes, preset.prior_width, preset.prior_embedding),
    ]
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight[0].numel() <= 1024 and module.padding_mode == "zeros"
            elif isinstance(module, nn.Linear):
                assert module.in_features <= 1024
            else:
                allowed = (nn.ReLU, nn.PixelShuffle, nn.Embedding, QualityTable, nn.Sequential)
                allowed += (IntegerIndexPrior, IntegerConv)
                assert module is network or isinstance(module, allowed), module


def test_probability_networks_know_quality_step_and_place():
    torch.manual_seed(0)
    context, hyper = ContextModel(4, 8, 6), HyperSynthesis(3, 8, 6)
    for parameter in (*context.parameters(), *hyper.parameters()):
        torch.nn.init.normal_(parameter)
    known, features, qualities = torch.zeros(2, 4, 2, 2), torch.zeros(2, 6, 2, 2), torch.tensor([0, 63])
    means = torch.stack([context(known, step, qualities, features)[0] for step in range(4)])
    assert len(means.movedim(2, -1).flatten(0, -2).unique(dim=0)) == 4 * 2 * 2 * 2  # steps, qualities, places
    low, high = hyper(torch.zeros(2, 3, 1, 1), qualities)
    assert not torch.equal(low, high)
