"""The cost of training: FLOPs are counted once, forward and backward; the command measures a stage as it is shipped."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import SMALL

from eval import training_speed
from eval.speed import count_macs, random_codec
from eval.training_speed import COLUMNS, main, measure, table
from hybridflow.errors import TrainingError
from hybridflow.training.config import TrainConfig


@pytest.fixture
def small_preset(monkeypatch):
    monkeypatch.setattr(training_speed, "load_config", lambda *_: TrainConfig(batch=4, crop=64, max_minutes=9.0))
    return SMALL


def test_flops_are_those_of_an_image_forward_and_backward(small_preset, photos):
    whole, part = (measure("tokenizer", small_preset, photos[0].parent, 2, share, "cpu") for share in (1, 2))
    assert (whole["batch"], part["batch"]) == (4, 2)
    assert part["gflops_per_image"] == pytest.approx(whole["gflops_per_image"], rel=0.01)
    model, x = random_codec(small_preset, "cpu").model, torch.zeros(1, 3, 64, 64)
    forward = 2 * sum(count_macs({}, lambda: model.pixel_decoder(model.codebook_encoder(x))).values()) / 1e9
    assert whole["gflops_per_image"] > 3 * forward


def test_every_figure_of_a_step_is_known(small_preset, photos):
    row = measure("perceptual", small_preset, photos[0].parent, 2, 4, "cpu")
    assert set(row) == set(COLUMNS) and row["images_per_second"] > 0 and 0 < row["data_share"] < 1
    assert row["bf16_peak_share"] is None and "bf16" not in table([row])
    with pytest.raises(TrainingError, match="batch"):
        measure("perceptual", small_preset, photos[0].parent, 1, 5, "cpu")


def test_the_command_measures_a_stage_as_it_is_shipped(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "")
    command = ["--stages", "refit", "--steps", "1", "--batch-share", "8", "--data", str(photos[0].parent)]
    assert main([*command, "-o", str(tmp_path / "speed.json")]) == 0
    (row,) = json.loads((tmp_path / "speed.json").read_text())["stages"]
    assert (row["stage"], row["batch"], row["crop"]) == ("refit", 1, 192)
    assert table([row]) in capsys.readouterr().out


def test_the_command_says_what_is_wrong_in_a_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.setattr(training_speed, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    assert main(["--stages", "refit", "--data", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
