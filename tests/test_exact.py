"""The exact path: integer arithmetic by hand, the same integers on any device and setting, golden files."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, random_model
from golden.make import CHECKPOINT, DIGESTS, digests, read_golden

from hybridflow.checkpoint import load_release
from hybridflow.codec import Codec
from hybridflow.entropy import PRECISION, share_counts
from hybridflow.exact import EXPONENTIALS, LOGIT_STEPS, SHIFT, IntegerConv, activate, rescale

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
EXPECTED = json.loads(DIGESTS.read_text())


def random_integers(module, seed=0):
    """Every integer anywhere in its range."""
    generator = torch.Generator().manual_seed(seed)
    for buffer in module.buffers():
        limit = 127 if buffer.dtype == torch.int8 else 2**31 - 1
        buffer.copy_(torch.randint(-limit, limit + 1, buffer.shape, generator=generator))
    return module


def test_rescaling_rounds_halves_upwards():
    half = 1 << SHIFT - 1
    total = torch.tensor([0, half - 1, half, -half, -half - 1, 3 * half, 200 << SHIFT])
    assert rescale(total).tolist() == [0, 0, 1, 0, -1, 2, 200]
    assert activate(total).tolist() == [0, 0, 1, 0, 0, 2, 127]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_is_a_convolution_of_integers(device, kernel):
    layer = random_integers(IntegerConv(5, 7, kernel, rows=2)).to(device)
    x = torch.randint(-8191, 8192, (2, 5, 4, 6), generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([1, 0])
    total = layer(x.to(device), rows.to(device)).cpu().numpy().astype(object)
    weight, multiplier, bias = (t.cpu().numpy().astype(object) for t in layer.buffers())
    reach = kernel // 2
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (reach, reach), (reach, reach))).astype(object)
    for b, o, i, j in [(0, 0, 0, 0), (0, 3, 2, 5), (1, 6, 3, 0), (1, 2, 1, 1)]:
        window = padded[b, :, i : i + kernel, j : j + kernel].ravel()
        assert total[b, o, i, j] == (weight[o] * window).sum() * multiplier[o] + bias[rows[b], o]


def test_sums_that_float32_cannot_hold_are_exact():
    """As many inputs as `base` has, the largest there are, each of its weight's sign: over thirty times 2^24."""
    layer = random_integers(IntegerConv(112, 8, 3))
    x = 8191 * layer.weight[0].sign().long() - torch.arange(1008) % 3
    total = layer(x.view(1, 112, 3, 3))[0, :, 1, 1]
    weight, multiplier, bias = (t.numpy().astype(object) for t in layer.buffers())
    sums = (weight * x.numpy().astype(object)).sum(1)
    assert sums[0] > 30 * 2**24 and int(np.float32(sums[0])) != sums[0]
    assert total.tolist() == list(sums * multiplier + bias[0])


PLACES = torch.tensor([0, 8, 10, 33, 45, 53])
"""Some of the 6 x 9 positions, its corners among them."""


@pytest.fixture(scope="module")
def model():
    return random_model(0)


def everything(model, z, y, indices, known):
    """All that the exact path gives for a batch, step 2, on the model's device."""
    device, quality = model.codebook.codewords.device, torch.arange(len(z)) * 20
    z, y, indices, known, quality = (t.to(device) for t in (z, y, indices, known, quality))
    latent, prior = model.continuous.exact, model.index_prior.exact
    features = latent.features(z, quality)[..., : y.shape[2], : y.shape[3]]
    logits = prior.logits(prior.features(y, quality), indices, known, 2, PLACES.to(device))
    counts = torch.from_numpy(prior.counts(logits.flatten(0, 1)))
    return [t.cpu() for t in (*latent.distribution(y, 2, quality, features), logits, counts)]


def batch(model, size):
    generator = torch.Generator().manual_seed(2)
    preset = model.preset
    z = torch.randint(-9, 10, (size, preset.z_channels, 2, 3), generator=generator)
    y = torch.randint(-200, 201, (size, preset.latent_channels, 6, 9), generator=generator)
    indices = torch.randint(preset.num_codes, (size, 6, 9), generator=generator)
    return z, y, indices, torch.rand(size, 6, 9, generator=generator) < 0.5


def test_a_batch_gives_what_its_images_give(model):
    inputs = batch(model, 4)
    together = everything(model, *inputs)
    for image in range(4):
        quality = 20 * image
        latent, prior = model.continuous.exact, model.index_prior.exact
        z, y, indices, known = (t[image : image + 1] for t in inputs)
        mean, scale = latent.distribution(y, 2, quality, latent.features(z, quality)[..., :6, :9])
        logits = prior.logits(prior.features(y, quality), indices, known, 2, PLACES)
        assert torch.equal(mean[0], together[0][image]) and torch.equal(scale[0], together[1][image])
        assert torch.equal(logits[0], together[2][image])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    model = random_model(0)
    here = everything(model, *batch(model, 4))
    assert all(map(torch.equal, everything(model.cuda(), *batch(model, 4)), here))


def test_known_indices_enter_as_in_a_convolution(model):
    """Gathering the neighbours of some positions against convolving the whole map."""
    prior = model.index_prior.exact
    _, _, indices, known = batch(model, 2)
    embedded = prior.embedding[indices] * known[..., None]
    kernel = prior.known.weight.unflatten(1, (-1, 5, 5)).double()
    sums = torch.nn.functional.conv2d(embedded.permute(0, 3, 1, 2).double(), kernel, padding=2).long()
    total = sums * prior.known.multiplier[:, None, None] + prior.known.bias[0][:, None, None]
    gathered = prior.known(prior._neighbours(indices, known, PLACES))
    assert torch.equal(gathered, total.flatten(2)[..., PLACES])


def test_absurd_inputs_stay_in_range(model):
    """Any file decodes to integers; those far outside what training saw must neither wrap nor fail."""
    z, y, indices, known = batch(model, 1)
    latent = model.continuous.exact
    for far in (2**48, -(2**48)):
        one = latent.features(torch.full_like(z, far), 63), torch.full_like(y, far)
        other = latent.features(torch.full_like(z, far // 2), 63), torch.full_like(y, far // 2)
        means = [latent.distribution(y, 1, 63, features[..., :6, :9]) for features, y in (one, other)]
        assert all(map(torch.equal, *means)) and 0 <= means[0][1].min() <= means[0][1].max() <= 63


def test_counts_follow_the_softmax(model):
    logits = torch.randint(-2000, 2000, (50, 64), generator=torch.Generator().manual_seed(0))
    logits[0, 5] = 10**6
    counts = model.index_prior.exact.counts(logits)
    assert (counts >= 1).all() and (counts.sum(1) == 2**PRECISION).all()
    expected = (logits.double() / LOGIT_STEPS).softmax(1).numpy()
    assert np.abs(counts / 2**PRECISION - expected).max() < 2 * 64 / 2**PRECISION
    assert counts[0, 5] == 2**PRECISION - 63
    exponential = model.index_prior.exact.exponential
    assert exponential[0] == 2**30 and (exponential.diff() < 0).all() and len(exponential) == EXPONENTIALS


def poison(model):
    """NaN in every floating-point weight and buffer outside the image encoders, which precede the coder, and gains."""
    for name, tensor in model.state_dict().items():
        writer = name.startswith(("continuous.analysis", "continuous.hyper_analysis", "continuous.log_gain"))
        if tensor.is_floating_point() and not writer:
            tensor.fill_(torch.nan)


@pytest.mark.parametrize("schedule", ["none", "1_4", "full"])
def test_no_float_network_touches_the_coder(schedule):
    """The same y and indices give the same bytes, and bytes the same integers, with all trained floats poisoned."""
    model = random_model(0)
    image = torch.rand(1, 3, 80, 112, generator=torch.Generator().manual_seed(0))
    analysed = model.analyse(image)
    stream, coded = model.write(analysed, 40, schedule)
    poison(model)
    assert not torch.isfinite(model.synthesise(coded, 40)).any()
    assert model.write(analysed, 40, schedule)[0] == stream
    read = model.read(stream, 5, 7, 40, schedule)
    assert all(map(np.array_equal, read, coded))


@pytest.fixture(scope="module")
def golden():
    return Codec(load_release(CHECKPOINT)[0], "golden")


def test_the_golden_checkpoint_is_small():
    assert CHECKPOINT.stat().st_size < 600_000


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_hold_what_they_held(golden, name):
    assert digests(read_golden(golden, name)) == EXPECTED[name]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_neither_threads_nor_precision_change_what_files_hold(golden, threads, precision):
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "medium"):
            held = {name: digests(read_golden(golden, name)) for name in EXPECTED}
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(precision_before)
    assert held == EXPECTED


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_pixels_and_devices_change_nothing_that_files_hold(device):
    codec = Codec(load_release(CHECKPOINT)[0], "golden")
    codec.model.to(device).bfloat16()
    assert {name: digests(read_golden(codec, name)) for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize("far", [2**40, -(2**40)])
def test_inputs_are_clamped_to_their_limits(far):
    model, given = random_model(0), []
    latent, prior = model.continuous.exact, model.index_prior.exact
    for layer in (latent.inward, latent.known, latent.hyper_prior.known, prior.first):
        layer.register_forward_pre_hook(lambda _, arguments: given.append(int(arguments[0].abs().max())))
    z = torch.full((1, SMALL.z_channels, 1, 1), far)
    y = torch.full((1, SMALL.latent_channels, 4, 4), far)
    latent.distribution(y, 0, 31, latent.features(z, 31))
    latent.hyper_prior.distribution(z, 0, 31)
    prior.features(y, 31)
    assert given == [127, 8191, 8191, 8191]


def test_logits_sixteen_below_the_highest_weigh_nothing():
    prior = random_model(0).index_prior.exact
    logits = torch.full((1, 64), -EXPONENTIALS)
    logits[0, :3] = torch.tensor([0, -128, 1 - EXPONENTIALS])
    weights = np.zeros(64, np.int64)
    weights[:3] = prior.exponential[-logits[0, :3]].numpy()
    assert np.array_equal(prior.counts(logits)[0], share_counts(weights))
