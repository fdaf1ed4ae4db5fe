"""The evaluation of a checkpoint with random weights: its points, its ablations, real bytes."""

import copy
import csv
import json

import numpy as np
import pytest
import torch
from conftest import save_crops
from safetensors.torch import save_file

from eval.blockiness import blockiness
from eval.photo import Photo
from eval.run import Point, digest, load_ablations, load_codec, main, spread
from hybridflow.ablation import Ablations
from hybridflow.checkpoint import released
from hybridflow.codec import Codec
from hybridflow.image_io import read_image
from hybridflow.metrics import psnr


@pytest.fixture
def folder(photos, tmp_path):
    """Two small pictures; MS-SSIM has room in the second only."""
    return save_crops(photos, tmp_path / "pictures", (48, 40), (176, 168))


def test_points_are_parsed():
    assert Point.parse("31:1_4") == Point(31, "1_4") and str(Point(31, "1_4")) == "31:1_4"


@pytest.mark.parametrize("text", ["31", "64:full", "-1:full", "x:none", "3:1_5", ""])
def test_a_bad_point_is_named(text):
    with pytest.raises(Exception, match="is not QUALITY:SCHEDULE"):
        Point.parse(text)


def test_usual_points_span_the_range():
    points = [(quality, "none") for quality in range(64)]
    assert [point.quality for point in spread(points, 8)] == [0, 9, 18, 27, 36, 45, 54, 63]
    assert spread(points[:3], 8) == points[:3] and spread(points[:1], 8) == points[:1]


def test_any_weight_changes_the_digest(codec):
    before, model = digest(codec.model), copy.deepcopy(codec.model)
    for name, tensor in model.state_dict().items():
        if not released(name) or not tensor.numel():
            continue
        last = tensor.view(-1)[-1:]
        kept = last.clone()
        last += 1
        assert digest(model) != before, name
        last.copy_(kept)
    assert digest(model) == before


def test_every_curve_is_measured_on_real_files(checkpoint_path, folder, tmp_path, monkeypatch):
    checkpoint, output = tmp_path / "small.safetensors", tmp_path / "out"
    checkpoint.write_bytes(checkpoint_path.read_bytes())
    codec = load_codec(str(checkpoint), "cpu")
    torch.manual_seed(0)
    ablations = Ablations(codec.model.preset)
    save_file(ablations.state_dict(), tmp_path / "small-ablation.safetensors")
    ablations.continuous_alone.load_state_dict(codec.model.continuous.state_dict())
    save_file(ablations.state_dict(), tmp_path / "run.safetensors")
    command = ["--data", str(folder), "--checkpoint", str(checkpoint), "--points", "63:1_4", "0:none"]
    command += ["--mse", str(tmp_path / "run.safetensors")]
    assert main([*command, "-o", str(output)]) == 0

    with (output / "small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [row for row in rows if row["curve"] == "small"]
    assert len(whole) == 4
    for row in whole:
        quality, schedule = Point.parse(row["point"])
        data = codec.encode(folder / row["image"], quality=quality, schedule=schedule)
        assert int(row["bytes"]) == len(data)
        assert float(row["bpp"]) == pytest.approx(8 * len(data) / (int(row["width"]) * int(row["height"])))
        assert bool(row["ms-ssim-rgb"]) == (row["width"] == "176")
        original, decoded = read_image(folder / row["image"]), codec.decode(data)
        assert float(row["psnr-rgb"]) == pytest.approx(psnr(original, decoded))
        assert float(row["blockiness-8"]) == pytest.approx(blockiness(np.asarray(decoded), 8))
    for row in rows:
        if row["curve"] == "small-continuous-mse":
            photo, quality = Photo(codec, ablations.eval(), folder / row["image"]), Point.parse(row["point"]).quality
            assert float(row["bytes"]) == pytest.approx(photo.continuous_alone(quality)[0])
    curves = {path.stem: json.loads(path.read_text())["results"] for path in output.glob("*.json")}
    assert {name: curve["point"] for name, curve in curves.items()} == {
        "small": ["0:none", "63:1_4"],
        "small-without-correction": ["0:none", "63:1_4"],
        "small-without-predictor": ["0:full", "63:full"],
        "small-codebook-only": ["0:1_9", "0:1_4", "0:full"],
        "small-continuous-only": ["0:none", "63:none"],
        "small-continuous-mse": ["0:none", "63:none"],
    }
    assert curves["small-continuous-mse"]["bpp"] != curves["small-continuous-only"]["bpp"]

    load_ablations.cache_clear()
    monkeypatch.setattr("eval.curves.measure", None)
    assert main([*command, "-o", str(output)]) == 0  # nothing is measured again
    assert curves["small-without-correction"]["bpp"] == curves["small"]["bpp"]
    assert curves["small-without-correction"]["psnr-rgb"] != curves["small"]["psnr-rgb"]
    assert min(curves["small"]["encoding_time"]) > 0 and "encoding_time" not in curves["small-codebook-only"]


def test_without_ablation_weights_the_rest_is_measured(checkpoint_path, folder, tmp_path, capsys):
    command = ["--data", str(folder), "--checkpoint", str(checkpoint_path), "--points", "0:none", "-o", str(tmp_path)]
    assert main(command) == 0
    assert f"no {checkpoint_path.stem}-ablation.safetensors" in capsys.readouterr().err
    assert {path.stem.removeprefix(checkpoint_path.stem) for path in tmp_path.glob("*.json")} == {
        "", "-without-correction", "-without-predictor"
    }


def test_the_checkpoint_alone_is_measured(checkpoint_path, folder, tmp_path):
    command = ["--data", str(folder), "--checkpoint", str(checkpoint_path), "--points", "0:none", "-o", str(tmp_path)]
    assert main([*command, "--no-ablations"]) == 0
    assert [path.stem for path in tmp_path.glob("*.json")] == [checkpoint_path.stem]


def test_refined_files_are_measured_as_such(checkpoint_path, folder, tmp_path, monkeypatch):
    encode, asked = Codec.encode, []

    def note(self, image, **settings):
        asked.append(settings)
        return encode(self, image, **settings)

    monkeypatch.setattr(Codec, "encode", note)
    command = ["--data", str(folder), "--checkpoint", str(checkpoint_path), "--points", "9:none", "-o", str(tmp_path)]
    assert main([*command, "--effort", "1"]) == 0
    assert asked == [{"quality": 9, "schedule": "none", "effort": 1}] * 2
    assert [path.stem for path in tmp_path.glob("*.json")] == [f"{checkpoint_path.stem}-effort-1"]


def test_the_perceptual_decoder_reads_the_same_files(perceptual_checkpoint_path, folder, tmp_path):
    name = perceptual_checkpoint_path.stem
    command = ["--data", str(folder), "--checkpoint", str(perceptual_checkpoint_path), "--points", "0:none"]
    command += ["-o", str(tmp_path)]
    assert main([*command, "--decoder", "perceptual"]) == main([*command, "--no-ablations"]) == 0
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert results[f"{name}-perceptual"]["name"] == f"HybridFlow {name}, perceptual decoder"
    textured, plain = results[f"{name}-perceptual"]["results"], results[name]["results"]
    assert textured["bpp"] == plain["bpp"] and textured["psnr-rgb"] != plain["psnr-rgb"]


def test_a_missing_checkpoint_is_one_line_of_error(folder, tmp_path, capsys):
    assert main(["--data", str(folder), "--checkpoint", "no.safetensors", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
