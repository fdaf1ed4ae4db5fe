"""The composite: budgets, CompressAI's conventions, joins that start at zero, and parts that matter."""

import pytest
import torch
from compressai.registry import MODELS
from conftest import SMALL, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import released
from hybridflow.errors import FormatError, HybridFlowError
from hybridflow.masking import UNIFORM_SCHEDULES, schedule_mask
from hybridflow.model import HybridFlow
from hybridflow.training.freeze import freeze


@pytest.fixture(scope="module")
def model():
    return random_model(0)


def image(batch=1, height=48, width=80):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset, budget", [("tiny", 6e6), ("base", 33e6)])
def test_parameters_stay_in_budget(preset, budget):
    weights = HybridFlow(preset).state_dict()
    stored = sum(value.numel() for key, value in weights.items() if released(key))
    assert 0.5 * budget < stored <= budget


@pytest.mark.parametrize("preset, encoding_budget, decoding_budget", [("tiny", 80, 50), ("base", 80, 120)])
def test_operations_stay_in_budget(preset, encoding_budget, decoding_budget):
    torch.manual_seed(0)
    model, x = HybridFlow(preset), image(height=128, width=128)
    freeze(model, x)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        with FlopCounterMode(display=False) as encoding:
            stream, _ = model.write(model.analyse(x), 31, "full")
        with FlopCounterMode(display=False) as decoding:
            model.synthesise(model.read(stream, 8, 8, 31, "full"), 31)
    kmac = [counter.get_total_flops() / 2 / 1000 / 128**2 for counter in (encoding, decoding)]
    assert 20 < kmac[0] <= encoding_budget and 20 < kmac[1] <= decoding_budget


@pytest.mark.parametrize("preset, share", [("tiny", 0.95), ("base", 0.92)])
def test_the_continuous_stream_alone_is_decoded_at_nearly_the_hybrids_cost(preset, share):
    model = HybridFlow(preset)
    y_hat, indices = torch.zeros(1, model.preset.latent_channels, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    alone = Ablations(model.preset).continuous_decoder
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as decoding:
            model.decode_pixels(indices, indices > 0, y_hat)
        with FlopCounterMode(display=False) as decoding_alone:
            alone(y_hat)
    assert decoding_alone.get_total_flops() / decoding.get_total_flops() == pytest.approx(share, abs=0.01)


def test_compressai_knows_the_model():
    assert MODELS["hybridflow"] is HybridFlow


@pytest.mark.parametrize("sent", UNIFORM_SCHEDULES)
@pytest.mark.parametrize("training", [True, False])
def test_forward_keeps_compressais_contract(sent, training):
    model, x = random_model(0).train(training), image(batch=2)
    out = model(x, quality=torch.tensor([5, 60]), sent=sent)
    assert out["x_hat"].shape == x.shape
    assert out["indices"].shape == (2, 3, 5) and out["index_logits"].shape == (2, SMALL.num_codes, 3, 5)
    assert (out["sent"] == schedule_mask(sent, 3, 5)).all()
    assert set(out["likelihoods"]) == {"y", "z", "indices"}
    for likelihood in out["likelihoods"].values():
        assert len(likelihood) == 2 and likelihood.min() > 0 and likelihood.max() <= 1.001
    assert (out["likelihoods"]["indices"][~out["sent"]] == 1).all()
    assert (out["likelihoods"]["indices"][out["sent"]] < 1).all()


@torch.inference_mode()
def test_an_int_quality_is_one_for_all(model):
    x = image(batch=2)
    one, both = model(x, 20)["x_hat"], model(x, torch.tensor([20, 20]))["x_hat"]
    assert torch.equal(one, both) and not torch.allclose(one, model(x, 50)["x_hat"])


@torch.inference_mode()
def test_joins_start_at_zero():
    torch.manual_seed(0)
    model = HybridFlow(SMALL).eval()
    indices, y_hat = torch.randint(SMALL.num_codes, (1, 3, 5)), torch.randn(1, SMALL.latent_channels, 3, 5)
    sent = schedule_mask("1_4", 3, 5)[None]
    corrected, bare = (model.decode_pixels(indices, sent, y_hat, corrected=c) for c in (True, False))
    assert torch.equal(corrected, bare)


@torch.inference_mode()
def test_correction_and_both_streams_reach_the_pixels(model):
    indices, y_hat = torch.randint(SMALL.num_codes, (1, 3, 5)), torch.randn(1, SMALL.latent_channels, 3, 5)
    sent = schedule_mask("1_4", 3, 5)[None]
    x_hat = model.decode_pixels(indices, sent, y_hat)
    assert not torch.allclose(model.decode_pixels(indices, sent, y_hat, corrected=False), x_hat)
    assert not torch.allclose(model.decode_pixels(indices, sent, -y_hat), x_hat)
    other = (indices + 7) % SMALL.num_codes
    assert not torch.allclose(model.decode_pixels(other, sent, y_hat), x_hat)
    assert torch.equal(model.decode_pixels(torch.where(sent, indices, other), sent, y_hat), x_hat)


@torch.inference_mode()
def test_sent_positions_get_their_codeword_and_others_the_expected_one(model):
    indices = torch.randint(SMALL.num_codes, (1, 3, 5))
    sent = schedule_mask("1_4", 3, 5)[None]
    logits = torch.randn(1, SMALL.num_codes, 3, 5)
    codes = model.fill_in(indices, sent, logits).permute(0, 2, 3, 1)
    assert torch.equal(codes[sent], model.codebook.codewords[indices[sent]])
    torch.testing.assert_close(codes[~sent], model.codebook.expected(logits).permute(0, 2, 3, 1)[~sent])


@pytest.mark.parametrize("schedule", [*UNIFORM_SCHEDULES, "dynamic"])
def test_compress_then_decompress(model, schedule):
    x = image(batch=2)
    out = model.compress(x, quality=40, schedule=schedule)
    assert out["shape"] == (3, 5) and len(out["strings"]) == 1 and len(out["strings"][0]) == 2
    x_hat = model.decompress(**out)["x_hat"]
    assert x_hat.shape == x.shape and x_hat.min() >= 0 and x_hat.max() <= 1
    for i in range(2):
        _, coded = model.write(model.analyse(x[i : i + 1]), 40, schedule)
        assert torch.equal(model.synthesise(coded, 40)[0], x_hat[i])


@torch.inference_mode()
def test_forward_shows_what_decompress_gives(model):
    x = image()
    shown = model(x, 40, "1_4")["x_hat"].clamp(0, 1)
    decoded = model.decompress(**model.compress(x, 40, "1_4"))["x_hat"]
    torch.testing.assert_close(shown, decoded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("schedule", [*UNIFORM_SCHEDULES, "dynamic"])
def test_decompress_tells_that_it_was_given_another_point(model, schedule):
    out = model.compress(image(), 40, schedule)
    for other in ({"schedule": "full" if schedule == "1_4" else "1_4"}, {"quality": 41}):
        with pytest.raises(FormatError, match="or give the quality and schedule that compress returned"):
            model.decompress(**(out | other))


@pytest.mark.parametrize("call", ["forward", "compress"])
@pytest.mark.parametrize(
    "point, told",
    [
        ((-1, "none"), "quality must be 0 to 63, not -1"),
        ((64, "none"), "quality must be 0 to 63, not 64"),
        ((3.5, "none"), "quality must be a whole number, not 3.5"),
        ((3, "some"), "no schedule 'some': choose one of full, 1_4, 1_9, none"),
    ],
)
def test_points_that_do_not_exist_are_refused(model, call, point, told):
    with pytest.raises(HybridFlowError, match=told):
        getattr(model, call)(image(), *point)


@pytest.mark.parametrize("call", ["forward", "compress"])
def test_images_of_integers_are_refused(model, call):
    with pytest.raises(HybridFlowError, match=r"image of torch.uint8 has no agreed range: give floats in \[0,1\]"):
        getattr(model, call)((image() * 255).byte())


@pytest.mark.parametrize("call", ["forward", "compress"])
def test_sides_that_do_not_fit_are_refused_rather_than_cut(model, call):
    with pytest.raises(HybridFlowError, match="images of 50 x 80 .* multiples of 16"):
        getattr(model, call)(image(height=50))


def test_names_that_do_not_exist_are_refused(model):
    with pytest.raises(HybridFlowError, match="no decoder 'percept': choose one of fidelity, perceptual"):
        model(image(), decoder="percept")
    with pytest.raises(HybridFlowError, match="has no perceptual decoder"):
        model(image(), decoder="perceptual")
    with pytest.raises(HybridFlowError, match="no preset 'large': choose one of tiny, base"):
        HybridFlow("large")


def test_tables_are_baked_once():
    model = HybridFlow(SMALL).eval()
    assert model.update() and not model.update()
    tables = model.continuous.scale_counts
    before = tables.clone()
    tables.add_(1)
    assert not model.update() and torch.equal(tables, before + 1)
    assert model.update(force=True) and torch.equal(tables, before)


def test_bits_that_are_not_frozen_are_not_coded():
    model = HybridFlow(SMALL).eval()
    model.update()
    with pytest.raises(RuntimeError, match="hybridflow freeze"):
        model.probability()
