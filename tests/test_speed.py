"""The cost of parts: MACs counted by hand agree, none is counted twice; growth, other codecs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eval import speed as speeds
from eval.cost import Cost
from eval.speed import (
    against,
    attribute,
    by_size,
    count_macs,
    growth,
    main,
    median_seconds,
    speed,
    stored_numbers,
    tiled,
)
from hybridflow.image_io import read_image
from hybridflow.model import HybridFlow
from hybridflow.predictor import WindowAttention


def test_macs_go_to_the_part_that_spends_them():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    linear, unused = nn.Linear(16, 5), nn.Linear(2, 2)
    image, vector = torch.zeros(1, 3, 10, 12), torch.zeros(7, 16)

    @torch.inference_mode()
    def call():
        conv[2](conv[0](image))  # the part itself is not called, only what is in it
        conv(image)
        linear(vector)
        vector @ vector.T

    macs = count_macs({"conv": conv, "linear": linear, "unused": unused}, call)
    per_pass = 120 * (3 * 8 * 9 + 8 * 4)
    assert macs == {"conv": 2 * per_pass, "linear": 7 * 16 * 5, "unused": 0, "other": 7 * 16 * 7}


@torch.inference_mode()
def test_attention_is_counted_on_the_cpu():
    attention = WindowAttention(16, heads=2)
    tokens = torch.zeros(1, 16, 8, 16)
    visible = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    macs = count_macs({"attention": attention}, lambda: attention(tokens, tokens, visible, 0))
    assert macs == {"attention": 2 * 64 * (4 * 16 * 16 + 2 * 64 * 16), "other": 0}


def test_no_hook_stays_behind():
    part = nn.Linear(2, 2)
    count_macs({"part": part}, lambda: part(torch.zeros(1, 2)))
    assert not part._forward_hooks and not part._forward_pre_hooks


def test_stored_numbers_are_parameters_and_buffers():
    assert stored_numbers(nn.BatchNorm1d(4)) == 4 * 4 + 1


def test_every_network_that_runs_has_a_row(codec, photos, monkeypatch):
    monkeypatch.setattr(speeds, "part_seconds", lambda parts, call, device: dict.fromkeys([*parts, "other"], 0.25))
    parts = speed(codec, read_image(photos[0]).crop((0, 0, 64, 48)), 31, "1_4", repeats=1)["parts"]
    assert set(parts) == {name for name, _ in codec.model.named_children()} | {"other", "total"}
    assert parts["index_prior"]["encode_kmac_per_pixel"] == parts["index_prior"]["decode_kmac_per_pixel"] > 0
    assert parts["continuous"]["encode_kmac_per_pixel"] > parts["continuous"]["decode_kmac_per_pixel"] > 0
    assert parts["pixel_decoder"]["decode_kmac_per_pixel"] > 0 == parts["pixel_decoder"]["encode_kmac_per_pixel"]
    total = parts.pop("total")
    assert total["parameters"] == stored_numbers(codec.model)
    data = codec.encode(read_image(photos[0]).crop((0, 0, 64, 48)), quality=31, schedule="1_4")
    macs = count_macs({}, lambda: codec.decode(data))["other"]
    assert total["decode_kmac_per_pixel"] == pytest.approx(macs / (64 * 48) / 1000)
    assert {part["decode_ms"] for part in parts.values()} == {250} and total["decode_ms"] == 250 * len(parts)


def test_a_meter_is_read_around_each_part():
    part, seconds = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), iter(range(100))
    totals = attribute({"part": part}, lambda: part(torch.zeros(1, 2)), lambda: next(seconds))
    assert totals == {"part": 3, "other": 2}  # read on entering each of three modules, on leaving the outer one


def test_sizes_are_measured_and_growth_is_a_power(codec, photos, monkeypatch):
    known = iter([Cost(1.0, 10.0, 99.0), Cost(2.0, 20.0, 99.0), Cost(3.0, 30.0, 99.0), Cost(4.0, 40.0, 99.0)])
    monkeypatch.setattr(speeds, "cost_of", lambda call, device: (call(), next(known)))
    rows = by_size(codec, read_image(photos[0]), [0.002, 0.01], (31, "1_4"), "cpu")
    assert [round(row["width"] * row["height"] / 1e6, 3) for row in rows] == [0.002, 0.01]
    figures = ("encode_seconds", "decode_seconds", "encode_mib", "decode_mib")
    assert [[row[figure] for figure in figures] for row in rows] == [[1, 2, 10, 20], [3, 4, 30, 40]]
    quadratic = [{"width": side, "height": 1, "seconds": side**2} for side in (10, 50)]
    assert growth(quadratic, "seconds") == pytest.approx(2)


def test_a_larger_photo_is_the_same_one_again():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    larger = np.asarray(tiled(Image.fromarray(pixels), 7, 5))
    assert np.array_equal(larger, np.tile(pixels, (3, 3, 1))[:5, :7])


def test_a_median_leaves_the_first_call_out(monkeypatch):
    known = iter([9.0, 1.0, 4.0, 2.0])
    monkeypatch.setattr(speeds, "cost_of", lambda call, device: (None, Cost(next(known), None, None)))
    assert median_seconds(lambda: None, 3) == 2


def test_codecs_are_compared_at_every_number_of_threads(codec, photos, one_thread, monkeypatch):
    monkeypatch.setattr(speeds, "median_seconds", lambda *_: torch.get_num_threads())
    monkeypatch.setattr(speeds, "peer_seconds", lambda *_: {"encode_seconds": 6, "decode_seconds": 12})
    image = read_image(photos[0]).crop((0, 0, 64, 48))
    rows = against(codec, image, (31, "1_4"), ["peer"], [1, 2], 1, "cpu")
    assert [(row["codec"], row["threads"], row["encode_ratio"], row["decode_ratio"]) for row in rows] == [
        (codec.name, 1, 1, 1), ("peer", 1, 6, 12), (codec.name, 2, 1, 1), ("peer", 2, 3, 6)
    ]


def test_a_size_over_the_limit_is_refused_before_the_work(capsys):
    with pytest.raises(SystemExit):
        main(["--random", "tiny", "--megapixels", "0.1", "1e9"])
    assert "1e9 megapixels are too many" in capsys.readouterr().err


def test_the_command_measures_random_weights(codec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speeds, "PRESETS", {"small": codec.model.preset})
    monkeypatch.setattr(speeds, "HybridFlow", lambda preset: HybridFlow(speeds.PRESETS[preset]))
    monkeypatch.setattr(speeds, "read_image", lambda path: read_image(path).crop((0, 0, 64, 64)))
    output = tmp_path / "speed.json"
    command = ["--random", "small", "--repeats", "1", "--threads", "1", "--against", "mbt2018-mean"]
    command += ["--megapixels", "0.002", "0.002"]  # of which no growth can be told
    assert main([*command, "-o", str(output)]) == 0
    result = json.loads(output.read_text())
    assert len(result["sizes"]) == 2 and all(row["encode_seconds"] > 0 for row in result["sizes"])
    ours, peer = result["against"]
    assert ours["encode_ratio"] == ours["decode_ratio"] == 1
    assert peer["decode_ratio"] == pytest.approx(peer["decode_seconds"] / ours["decode_seconds"])
    printed = capsys.readouterr().out
    assert "small, random weights" in printed and "index_prior" in printed
