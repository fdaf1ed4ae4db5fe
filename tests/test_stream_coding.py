"""The stream: what is written is read again, whatever the schedule, the size, the batch and the threads."""

import numpy as np
import pytest
import torch
from conftest import SMALL, random_model

from hybridflow.entropy import PRECISION, Decoder, Encoder
from hybridflow.errors import FormatError
from hybridflow.masking import SCHEDULES, UNIFORM_SCHEDULES, coding_steps, region_grid, region_mask, step_places
from hybridflow.model import HybridFlow
from hybridflow.probability import MEAN_STEPS
from hybridflow.stream_coding import RUN, code_indices, code_sent, code_y, code_z

SIZES = [(16, 16), (16, 32), (256, 48), (112, 80)]
HEADER = b"header"


@pytest.fixture(scope="module")
def model():
    return random_model(0)


@pytest.fixture(scope="module")
def probability(model):
    return model.probability()


def picture(height, width, seed=0):
    """Smooth noise (1,3,H,W): neighbours resemble each other as in a photo."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")


def mixed_regions(monkeypatch):
    """Let `dynamic` choose its regions at random, so that all schedules meet in one map."""

    def choose(self, analysed, y, quality):
        grid = region_grid(*analysed.indices.shape)
        return np.random.default_rng(0).integers(0, len(UNIFORM_SCHEDULES), grid)

    monkeypatch.setattr(HybridFlow, "_choose_regions", choose)


def assert_equal(read, written):
    for name in written._fields:
        assert np.array_equal(getattr(read, name), getattr(written, name)), name


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("quality", [0, 63])
def test_round_trip(model, probability, height, width, schedule, quality, monkeypatch):
    mixed_regions(monkeypatch)
    analysed, h, w = model.analyse(picture(height, width)), height // 16, width // 16
    stream, written = model.write(analysed, quality, schedule, HEADER, probability)
    sections = {}
    assert_equal(model.read(stream, h, w, quality, schedule, HEADER, probability, sections), written)
    assert (written.indices == analysed.indices * written.sent).all()
    assert list(sections) == ["z", "y", "check", "regions", "indices"]
    assert sections["check"] == pytest.approx(16)
    assert abs(len(stream) - sum(sections.values()) / 8) < 1.01
    assert (sections["indices"] > 0) == written.sent.any() and (sections["regions"] > 0) == (schedule == "dynamic")


def test_z_of_many_runs_and_far_from_its_means_comes_back(probability):
    h, w, rng = 4 * 60, 4 * 50, np.random.default_rng(0)
    z = rng.integers(-2, 3, (probability.z_channels, 60, 50))
    assert z.size > 4 * RUN
    z[rng.random(z.shape) < 0.01] *= 1000  # escapes
    coder = Encoder()
    code_z(coder, probability, 40, h, w, z)
    assert np.array_equal(code_z(Decoder(coder.finish()), probability, 40, h, w), z)


def test_random_models_have_something_to_code(model, probability):
    """Else the round trips above would prove little."""
    _, coded = model.write(model.analyse(picture(112, 80)), 31, "full", HEADER, probability)
    assert coded.sent.all() and len(np.unique(coded.indices)) > 3
    assert len(np.unique(coded.z)) > 3 and len(np.unique(coded.y)) > 16
    assert (coded.y % MEAN_STEPS != 0).any()  # means count


def test_a_file_without_indices_does_without_their_encoder(model, probability, monkeypatch):
    expected, _ = model.write(model.analyse(picture(112, 80)), 31, "none", HEADER, probability)
    calls, indices_of = [], model.indices_of
    monkeypatch.setattr(model, "indices_of", lambda image: calls.append(1) or indices_of(image))
    analysed = model.analyse(picture(112, 80))
    assert model.write(analysed, 31, "none", HEADER, probability)[0] == expected and not calls
    for schedule in ("1_4", "full"):
        model.write(analysed, 31, schedule, HEADER, probability)
    assert len(calls) == 1


def test_an_empty_stream_of_a_large_image_is_refused_before_memory_is_taken(model, probability, monkeypatch):
    monkeypatch.setattr(type(probability), "hyper_features", lambda *_: pytest.fail("works on what is not there"))
    with pytest.raises(FormatError, match="cut short"):
        model.read(b"", 1, 2**16, 31, "none", HEADER, probability)


def test_more_schedules_send_more(model, probability):
    analysed = model.analyse(picture(256, 256))
    sizes = [len(model.write(analysed, 31, s, HEADER, probability)[0]) for s in UNIFORM_SCHEDULES]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


@pytest.mark.parametrize("schedule", UNIFORM_SCHEDULES)
@pytest.mark.parametrize("quality", [0, 31, 63])
@torch.inference_mode()
def test_the_estimate_agrees_with_the_bytes(model, probability, schedule, quality):
    x = picture(256, 192)
    stream, _ = model.write(model.analyse(x), quality, schedule, HEADER, probability)
    likelihoods = model(x, quality, schedule)["likelihoods"].values()
    estimate = 2 + sum(float(-likelihood.double().log2().sum()) for likelihood in likelihoods) / 8
    assert abs(len(stream) - estimate) < 2


@torch.inference_mode()
def test_indices_that_the_prior_takes_for_impossible_are_estimated_as_they_are_coded():
    """At one count of a table, whatever the logits: at no more than 20 bits."""
    model = random_model(0).eval()
    bias = model.index_prior.exact.out.bias
    bias.fill_(-(2**31))[0, 0] = 2**31 - 1  # index 0 is ahead by 32 nats, which are 46 bits
    x = picture(256, 192)
    analysed, likelihoods = model.analyse(x), model(x, 31, "full")["likelihoods"]["indices"]
    assert likelihoods.min() == 2**-PRECISION and (likelihoods == likelihoods.min()).float().mean() > 0.5
    sizes = [len(model.write(analysed, 31, schedule, HEADER, model.probability())[0]) for schedule in ("full", "none")]
    assert sizes[0] - sizes[1] == pytest.approx(float(-likelihoods.log2().sum()) / 8, rel=0.006)


@torch.inference_mode()
def test_estimates_of_indices_do_not_depend_on_the_length_of_runs(model, monkeypatch):
    x = torch.cat([picture(96, 80), picture(96, 80, seed=1)])
    whole = model(x, 31, "1_4")["likelihoods"]["indices"]
    monkeypatch.setattr("hybridflow.index_prior.RUN", 3)
    assert torch.equal(model(x, 31, "1_4")["likelihoods"]["indices"], whole)


def test_y_is_rounded_to_within_half_a_step(model, probability):
    y = 5 * np.random.default_rng(0).standard_normal((model.preset.latent_channels, 5, 7))
    z = np.zeros((model.preset.z_channels, 2, 2), np.int64)
    decoded = code_y(Encoder(), probability, 31, z, 5, 7, y)
    assert np.abs(decoded / MEAN_STEPS - y)[:-1].max() <= 0.5 + 1e-9


def test_symbols_of_the_smallest_scale_are_their_means_and_cost_nothing(model, probability):
    """Those of the last channel, see conftest."""
    y = 5 * np.random.default_rng(0).standard_normal((model.preset.latent_channels, 5, 7))
    z = np.zeros((model.preset.z_channels, 2, 2), np.int64)
    coder, other = Encoder(), Encoder()
    decoded = code_y(coder, probability, 31, z, 5, 7, y)
    y[-1] = 100
    assert (code_y(other, probability, 31, z, 5, 7, y) == decoded).all()
    assert other.finish() == coder.finish()
    assert (code_y(Decoder(coder.finish()), probability, 31, z, 5, 7) == decoded).all()


def test_symbols_far_outside_their_tables(model, probability):
    y = np.random.default_rng(0).standard_normal((model.preset.latent_channels, 3, 3))
    y[0, 1, 1], y[3, 2, 0] = 1e4, -300
    z = np.zeros((model.preset.z_channels, 1, 1), np.int64)
    coder = Encoder()
    written = code_y(coder, probability, 0, z, 3, 3, y)
    assert (code_y(Decoder(coder.finish()), probability, 0, z, 3, 3) == written).all()


def test_the_check_covers_header_z_and_y(model, probability):
    stream, _ = model.write(model.analyse(picture(64, 64)), 31, "none", HEADER, probability)
    with pytest.raises(FormatError):
        model.read(stream, 4, 4, 31, "none", b"Header", probability)
    survived = 0
    for position in range(0, len(stream) - 2, 3):
        damaged = bytearray(stream)
        damaged[position] ^= 0x40
        try:
            model.read(bytes(damaged), 4, 4, 31, "none", HEADER, probability)
            survived += 1
        except FormatError as error:
            assert "\n" not in str(error)
    assert survived == 0


@pytest.mark.parametrize("schedule", ["full", "1_4"])
def test_salvage_keeps_the_first_steps(model, probability, schedule):
    h, w = 9, 11
    stream, written = model.write(model.analyse(picture(16 * h, 16 * w)), 31, schedule, HEADER, probability)
    sections = {}
    model.read(stream, h, w, 31, schedule, HEADER, probability, sections)
    behind_y = -(-int(sections["z"] + sections["y"] + sections["check"]) // 8) + 1
    steps, counts = coding_steps(h, w).numpy(), []
    for length in range(behind_y, len(stream)):
        read = model.read(stream[:length], h, w, 31, schedule, HEADER, probability, salvage=True)
        assert np.array_equal(read.z, written.z) and np.array_equal(read.y, written.y)
        assert np.array_equal(read.indices, written.indices * read.sent)
        whole = steps[read.sent].max(initial=-1)
        assert np.array_equal(read.sent, written.sent & (steps <= whole))
        counts.append(int(read.sent.sum()))
    assert counts == sorted(counts) and counts[0] == 0 and 0 < counts[-1] < written.sent.sum()


@pytest.mark.parametrize("schedule", ["full", "dynamic"])
def test_salvage_stops_where_damage_says_what_cannot_be(model, probability, schedule, monkeypatch):
    decode, left = Decoder.decode, 0

    def damaged(decoder, count, counts):
        nonlocal left
        left -= 1
        if left < 0:
            raise FormatError("damaged")
        return decode(decoder, count, counts)

    mixed_regions(monkeypatch)
    analysed = model.analyse(picture(160, 160))
    continuous, _ = model.write(analysed, 31, "none", HEADER, probability)
    stream, _ = model.write(analysed, 31, schedule, HEADER, probability)
    monkeypatch.setattr(Decoder, "decode", damaged)
    left = whole = 10**6
    model.read(continuous, 10, 10, 31, "none", HEADER, probability)
    continuous_calls, found, refused = whole - left, [], True
    while refused:
        calls = continuous_calls + len(found)
        left = calls
        found.append(model.read(stream, 10, 10, 31, schedule, HEADER, probability, salvage=True).sent.sum())
        left = calls
        try:
            model.read(stream, 10, 10, 31, schedule, HEADER, probability)
            refused = False
        except FormatError:
            refused = True
    assert found == sorted(found) and found[0] == 0 < found[-1]


def test_regions_are_coded_adaptively():
    h, w = 32, 48
    rng = np.random.default_rng(0)
    costs = []
    for regions in (rng.integers(0, 4, (6, 8)), np.full((6, 8), 3)):
        coder = Encoder()
        sent = code_sent(coder, "dynamic", h, w, regions)
        assert (sent == region_mask(torch.from_numpy(regions), h, w).numpy()).all()
        assert (code_sent(Decoder(coder.finish()), "dynamic", h, w) == sent).all()
        costs.append(coder.bits / 8)
    assert costs[0] < 14 and costs[1] < 3


def test_threads_change_no_byte(model):
    analysed, streams = model.analyse(picture(80, 112)), []
    for number in (1, 2):
        torch.set_num_threads(number)
        stream, written = model.write(analysed, 45, "full")
        assert_equal(model.read(stream, 5, 7, 45, "full"), written)
        streams.append(stream)
        assert torch.get_num_threads() == number
    assert streams[0] == streams[1]


def test_indices_of_a_step_do_not_see_each_other_however_many_there_are(probability, monkeypatch):
    h, w, seen, index_step = 100, 90, {}, type(probability).index_step

    def recorded(self, features, indices, known, step, places):
        assert len(places) <= RUN
        seen.setdefault(step, set()).add(int(known.sum()))
        return index_step(self, features, indices, known, step, places)

    monkeypatch.setattr(type(probability), "index_step", recorded)
    y, sent = np.zeros((probability.channels, h, w), np.int64), np.ones((h, w), bool)
    indices = np.random.default_rng(0).integers(0, SMALL.num_codes, (h, w))
    coder = Encoder()
    code_indices(coder, probability, 40, y, sent, indices)
    assert np.array_equal(code_indices(Decoder(coder.finish()), probability, 40, y, sent)[1], indices)
    sizes = [len(places) for places in step_places(h, w)]
    assert max(sizes) > RUN and seen == {step: {sum(sizes[:step])} for step in range(4)}


def test_escapes_of_z_follow_each_4096_values(probability):
    """Else files of large images with escapes could not be read any more."""
    rows, columns, steps = 50, 64, []
    z = np.zeros((probability.z_channels, rows, columns), np.int64)
    z[::2, ::3, ::5] = 10**6
    encode = Encoder.encode_signed

    class Noting(Encoder):
        def encode_signed(self, values, counts):
            steps.append(len(values))
            encode(self, values, counts)

    code_z(Noting(), probability, 31, 4 * rows, 4 * columns, z)
    assert steps == 4 * [4096, 2304]


def test_nothing_is_sent_where_the_regions_are_damaged(monkeypatch):
    def damaged(*_):
        raise FormatError("damaged")

    monkeypatch.setattr(Decoder, "decode", damaged)
    assert not code_sent(Decoder(b""), "dynamic", 7, 8, salvage=True).any()
    with pytest.raises(FormatError):
        code_sent(Decoder(b""), "dynamic", 7, 8)
