"""The tables on what each part is worth: on random weights, and on numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_crops
from safetensors.torch import save_file

import hybridflow
from eval.parts import at_equal_bytes, main, masked_indices, round_trips, unigram_entropy
from eval.photo import CHECKS, Photo
from eval.study import markdown
from hybridflow.ablation import Ablations
from hybridflow.container import unpack
from hybridflow.masking import SCHEDULES
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


def test_a_predictor_without_an_opinion_needs_the_bits_of_an_even_choice(crops, monkeypatch):
    codes = crops[0].model.preset.num_codes
    for owner, name in ((crops[0].model, "predictor"), (crops[0].ablations, "blind_predictor")):
        monkeypatch.setattr(getattr(owner, name), "forward", lambda i, *_: torch.zeros(len(i), codes, *i.shape[1:]))
    rows = {row["schedule"]: row for row in masked_indices(crops)}
    for row in rows.values():
        assert row["bits_with_y"] == pytest.approx(math.log2(codes))
        assert row["bits_without_y"] == pytest.approx(math.log2(codes))
    assert rows["none"]["masked"] == 4 * 6 + 4 * 5
    assert rows["1_4"]["masked"] == 4 * 6 + 4 * 5 - 2 * 3 - 2 * 3


@pytest.mark.parametrize("schedule, sent", [("full", 4 * 6), ("1_4", 2 * 3), ("1_9", 1 * 2)])
def test_the_codebook_stream_alone_costs_what_its_own_predictor_says(schedule, sent, crops, monkeypatch):
    codes, seen = crops[0].model.preset.num_codes, []

    def no_opinion(indices, known, _):
        seen.append(int(known.sum()))
        return torch.zeros(1, codes, *indices.shape[1:])

    monkeypatch.setattr(crops[0].ablations.blind_predictor, "forward", no_opinion)
    size, pixels = crops[0].codebook_alone(schedule)
    header, _ = unpack(crops[0].file(0, "none")[0])
    assert size == pytest.approx(sent * math.log2(codes) / 8 + len(header.pack()) + CHECKS)
    assert pixels.shape == (1, 3, 64, 96)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == sent


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


def test_missing_baselines_are_one_line_of_error(codec, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    checkpoint = str(tmp_path / "small.safetensors")
    assert main(["--data", str(folder), "--checkpoint", checkpoint, "-o", str(tmp_path / "parts.json")]) == 2
    assert "small-ablation.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "parts.json").exists()
