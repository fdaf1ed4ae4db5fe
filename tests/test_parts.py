"""The tables on what each part is worth: on random weights, and on numbers worked out by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_crops
from PIL import Image
from safetensors.torch import save_file

import hybridflow
from eval.parts import (
    USUAL,
    at_equal_bytes,
    averages,
    codewords,
    curves,
    decoders,
    main,
    masked_indices,
    order_of_bytes,
    round_trips,
    sent_indices,
    unigram_entropy,
)
from eval.photo import CHECKS, Photo
from eval.run import digest
from eval.study import markdown
from hybridflow.ablation import Ablations
from hybridflow.container import unpack
from hybridflow.masking import SCHEDULES, UNIFORM_SCHEDULES, schedule_mask
from hybridflow.metrics import psnr


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """Crops of two photos, the second with sides that are no multiples of 16."""
    return save_crops(photos, tmp_path_factory.mktemp("parts") / "crops", (96, 64), (75, 50))


@pytest.fixture(scope="module")
def ablations(codec) -> Ablations:
    torch.manual_seed(0)
    return Ablations(codec.model.preset).eval()


@pytest.fixture(scope="module")
def crops(codec, ablations, folder) -> list[Photo]:
    return [Photo(codec, ablations, path) for path in sorted(folder.iterdir())]


def test_unigram_entropy_counts_all_maps_together():
    assert unigram_entropy([np.array([[0, 7]]), np.array([[2, 5]])]) == 2
    assert unigram_entropy([np.array([[3, 3], [3, 3]])]) == 0


def test_a_photo_agrees_with_the_codec(codec, crops):
    for crop in crops:
        data = crop.file(31, "1_4")[0]
        assert data == codec.encode(crop.original, quality=31, schedule="1_4")
        torch.testing.assert_close(crop.y_hat(31), crop.latent(crop.model, 31).y_hat)
        decoded = codec.decode(data)
        assert crop.figures(31, "1_4")["psnr"] == pytest.approx(psnr(crop.original, decoded))


def certain(indices, *_):
    """Logits (B,64,h,w) of a predictor that knows the true index, and gives it e^9 times the chance of any other."""
    return 9 * torch.nn.functional.one_hot(indices, 64).movedim(-1, 1).float()


def test_a_predictor_needs_the_bits_of_its_opinion(crops, monkeypatch):
    """Of an even choice, if it has none."""
    codes = crops[0].model.preset.num_codes
    monkeypatch.setattr(crops[0].model.predictor, "forward", certain)
    monkeypatch.setattr(
        crops[0].ablations.blind_predictor, "forward", lambda i, *_: torch.zeros(len(i), codes, *i.shape[1:])
    )
    rows = {row["schedule"]: row for row in masked_indices(crops)}
    for row in rows.values():
        assert row["bits_with_y"] == pytest.approx(math.log2(1 + (codes - 1) * math.exp(-9)), rel=1e-3)
        assert row["bits_without_y"] == pytest.approx(math.log2(codes))
        assert row["unigram_bits"] == unigram_entropy(crop.analysed.indices for crop in crops)
    assert rows["none"]["masked"] == 4 * 6 + 4 * 5
    assert rows["1_4"]["masked"] == 4 * 6 + 4 * 5 - 2 * 3 - 2 * 3


@pytest.mark.parametrize("schedule, sent", [("full", 4 * 6), ("1_4", 2 * 3), ("1_9", 1 * 2)])
def test_the_codebook_stream_alone_costs_what_its_own_predictor_says(schedule, sent, crops, monkeypatch):
    codes, seen = crops[0].model.preset.num_codes, []

    def no_opinion(indices, known):
        seen.append(int(known.sum()))
        return torch.zeros(1, codes, *indices.shape[1:])

    monkeypatch.setattr(crops[0].ablations.blind_predictor, "forward", no_opinion)
    size, pixels = crops[0].codebook_alone(schedule)
    header, _ = unpack(crops[0].file(0, "none")[0])
    assert size == pytest.approx(sent * math.log2(codes) / 8 + len(header.pack()) + CHECKS)
    assert pixels.shape == (1, 3, 64, 96)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == sent
    known = schedule_mask(schedule, 4, 6, pixels.device)
    lookup, expected = crops[0].model.codebook.lookup, crops[0].model.codebook.codewords.mean(0)
    filled = torch.where(known, lookup(crops[0].indices), expected[:, None, None])
    with torch.inference_mode():
        torch.testing.assert_close(pixels, crops[0].ablations.codebook_decoder(filled))


@torch.inference_mode()
def test_the_continuous_stream_alone_costs_its_likelihoods(crops):
    crop, sizes = crops[0], []
    header, _ = unpack(crop.file(0, "none")[0])
    for quality in (0, 63):
        latent = crop.ablations.continuous_alone(crop.analysed.image, torch.tensor([quality]))
        total = -sum(float(p.double().log2().sum()) for p in latent.likelihoods.values())
        size, pixels = crop.continuous_alone(quality)
        assert size == pytest.approx(total / 8 + len(header.pack()) + CHECKS)
        torch.testing.assert_close(pixels, crop.ablations.continuous_decoder(latent.y_hat))
        sizes.append(size)
    assert sizes[0] != sizes[1]


def test_bits_per_pixel_are_of_each_photo(crops):
    found = averages(crops, [100, 50], [{"psnr": 20.0}, {"psnr": 23.0}])
    bpp = (8 * 100 / (96 * 64) + 8 * 50 / (75 * 50)) / 2
    assert found == {"bytes": 75, "bpp": pytest.approx(bpp), "psnr": 21.5}


class Known:
    """A photo of 10 x 8 pixels whose figures say what they are of."""

    original = SimpleNamespace(width=10, height=8)
    ablations = SimpleNamespace(continuous_decoder=True)
    estimate = 0.0

    def __init__(self, *sizes):
        self.sizes = dict(zip(UNIFORM_SCHEDULES, sizes))

    def file(self, quality, schedule):
        return bytes(self.sizes[schedule] + quality), SimpleNamespace(sent=np.arange(6) < 4)

    def figures(self, quality, schedule):
        return {"psnr": quality + self.sizes[schedule] / 100}

    def whole(self, quality, schedule):
        assert (quality, schedule) == USUAL
        return 100, 20.0

    def uncorrected(self, quality, schedule):
        return 100, self.whole(quality, schedule)[1] - 1

    def codebook_alone(self, schedule):
        return 60.5, {"full": 16.0}[schedule]

    def continuous_alone(self, quality):
        return 40.5 + quality, 18.0 + quality

    def compare(self, pixels):
        return {"psnr": pixels}

    def reading(self, quality, schedule):
        return True, {"indices": 20.0, "y": 8 * 900.0, "regions": 0.0, "check": 16.0}

    def estimated_bytes(self, quality, schedule):
        return self.estimate


def test_decoders_are_each_measured_as_they_are_named():
    quality = USUAL[0]
    assert [(row["decoder"], row["bytes"], row["psnr"]) for row in decoders([Known()])] == [
        ("both streams", 100, 20.0),
        ("uncorrected", 100, 19.0),
        ("codebook alone", 60.5, 16.0),
        ("continuous alone", 40.5 + quality, 18.0 + quality),
    ]


def test_curves_hold_every_quality_of_every_schedule():
    rows = {(row["curve"], row["quality"]): row for row in curves([Known(400, 300, 200, 100)], [0, 63])}
    assert set(rows) == {(name, quality) for name in (*UNIFORM_SCHEDULES, "continuous alone") for quality in (0, 63)}
    for (name, quality), row in rows.items():
        size = dict(zip(UNIFORM_SCHEDULES, (400, 300, 200, 100))).get(name, 40.5) + quality
        assert (row["bytes"], row["bpp"]) == (size, pytest.approx(size / 10))
        assert row["psnr"] == (18.0 + quality if name == "continuous alone" else quality + (size - quality) / 100)


def test_a_sent_index_costs_its_share_of_their_section():
    photos = [Known(9, 9, 9, 9), Known(9, 9, 9, 9)]
    assert [(row["sent"], row["bits_each"]) for row in sent_indices(photos)] == [(8, 5.0)] * 3


def test_bytes_in_order_fall_from_schedule_to_schedule():
    count = len(UNIFORM_SCHEDULES)
    falling, equal, rising = (Known(*sizes[:count]) for sizes in ([9, 7, 5, 3], [9, 7, 7, 3], [3, 5, 7, 9]))
    assert order_of_bytes([falling, equal, rising], [5]) == [{"quality": 5, "images": 3, "in_order": 1}]


def test_an_estimate_is_right_within_two_per_cent_or_eight_bytes(monkeypatch):
    monkeypatch.setattr("eval.parts.SCHEDULES", ("none",))
    photos = [Known(*[size] * len(UNIFORM_SCHEDULES)) for size in (1000, 1000, 1000, 100, 100)]
    for photo, estimate in zip(photos, (1000, 1019, 978, 93, 109)):
        photo.estimate = estimate
    (row,) = round_trips(photos, [0])
    assert (row["estimate_right"], row["estimate_error"], row["bytes"]) == (3, 22, 640)
    assert (row["intact"], row["overhead"], row["region_bytes"]) == (5, 1000 - 900 - 2.5, 0)


def test_codewords_are_the_expected_and_the_likeliest(codec, ablations, folder, monkeypatch):
    crop = Photo(codec, ablations, min(folder.iterdir()))
    monkeypatch.setattr(crop.model.predictor, "forward", lambda *arguments: certain(*arguments) / 3)
    expected, likeliest = codewords([crop])
    assert expected == {"codeword": "expected"} | crop.figures(*USUAL)
    with torch.inference_mode():
        true = crop.model.merge(crop.model.codebook.lookup(crop.indices), crop.y_hat(USUAL[0]))
    assert likeliest.pop("codeword") == "most probable"
    assert likeliest == pytest.approx(crop.compare(true), rel=1e-4)
    assert likeliest["psnr"] != pytest.approx(expected["psnr"], rel=1e-4)


def test_equal_bytes_are_interpolated_over_the_common_range():
    def line(curve: str, rates: list[float], offset: float) -> list[dict]:
        return [{"curve": curve, "bpp": r, "lpips": offset - math.log(r), "psnr": math.log(r)} for r in rates]

    rows = at_equal_bytes(
        line("none", [0.01, 0.03, 0.04], 0.0) + line("1_4", [0.08, 0.02], -0.5) + line("full", [0.05, 0.09], 0.0)
    )
    assert {row["curve"] for row in rows} == {"1_4"}  # `full` starts above where `none` ends
    assert rows[0]["bpp"] == pytest.approx(0.02) and rows[-1]["bpp"] == pytest.approx(0.04)
    for row in rows:
        assert row["lpips"] - row["lpips_none"] == pytest.approx(-0.5)
        assert row["psnr"] == pytest.approx(row["psnr_none"])


def test_round_trips_are_intact_and_cheap(crops):
    rows = round_trips(crops, qualities=[31])
    assert [row["schedule"] for row in rows] == list(SCHEDULES)
    assert all(row["intact"] == len(crops) for row in rows)
    assert all(7 < row["overhead"] <= 17 for row in rows)
    assert all(row["estimate_right"] == len(crops) for row in rows)
    assert [row["region_bytes"] > 0 for row in rows] == [schedule == "dynamic" for schedule in SCHEDULES]


def test_a_file_that_gives_back_something_else_is_counted(codec, ablations, folder, monkeypatch):
    crop = Photo(codec, ablations, min(folder.iterdir()))
    read = codec.model.read
    monkeypatch.setattr(codec.model, "read", lambda *args, **kw: (c := read(*args, **kw))._replace(y=c.y + 1))
    assert [row["intact"] for row in round_trips([crop], qualities=[31])] == [0] * len(SCHEDULES)


def test_the_command_writes_every_table(codec, ablations, photos, tmp_path, monkeypatch, capsys):
    sizes = (144, 144), (144, 120)  # large enough for the indices of `1_9` to take bytes
    folder = save_crops(photos, tmp_path / "crops", *sizes)
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    weights, output = tmp_path / "ablation.safetensors", tmp_path / "out" / "parts.json"
    save_file(ablations.state_dict(), weights)
    command = ["--data", str(folder), "--ablations", str(weights), "--qualities", "0", "63", "-o", str(output)]
    assert main(command) == 0

    result = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert result["description"].endswith(f"model id {codec.model_id}, weights {digest(codec.model)}")
    for name, rows in result["tables"].items():
        assert f"### {name.capitalize()}" in printed
        assert markdown(rows) in printed
    decoders = {row["decoder"]: row for row in result["tables"]["decoders"]}
    assert decoders["both streams"]["bytes"] == decoders["uncorrected"]["bytes"]
    assert decoders["both streams"]["lpips"] != decoders["uncorrected"]["lpips"]
    assert all(row["in_order"] == row["images"] == 2 for row in result["tables"]["order of bytes"])


def test_baselines_of_another_model_or_without_a_part_are_refused(
    codec, ablations, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    weights, output = tmp_path / "ablation.safetensors", tmp_path / "parts.json"
    command = ["--data", str(folder), "--ablations", str(weights), "-o", str(output)]
    whole = ablations.state_dict()
    save_file(whole, weights, {"model_id": "000000"})
    assert main(command) == 2 and "is for model 000000" in capsys.readouterr().err
    save_file({key: value for key, value in whole.items() if not key.startswith("blind_predictor")}, weights)
    assert main(command) == 2 and "holds no blind_predictor" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("size", [(16, 5), (64, 16)])
def test_images_of_one_row_of_indices_are_refused(size, codec, ablations, tmp_path, monkeypatch, capsys):
    """Of them `1_9` sends nothing."""
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    Image.new("RGB", size).save(tmp_path / "small.png")
    save_file(ablations.state_dict(), tmp_path / "ablation.safetensors")
    output = tmp_path / "parts.json"
    command = ["--data", str(tmp_path), "--ablations", str(tmp_path / "ablation.safetensors"), "-o", str(output)]
    assert main(command) == 2 and "give a folder of photos" in capsys.readouterr().err
    assert not output.exists()


def test_missing_baselines_are_one_line_of_error(codec, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    checkpoint = str(tmp_path / "small.safetensors")
    assert main(["--data", str(folder), "--checkpoint", checkpoint, "-o", str(tmp_path / "parts.json")]) == 2
    assert "small-ablation.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "parts.json").exists()
