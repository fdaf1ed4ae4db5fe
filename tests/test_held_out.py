"""Weights compared on held-out photos: by hand at one crop and quality, and what cannot be compared."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import SMALL
from eval.held_out import figures, held_out_crops, load, main
from hybridflow.image_io import image_to_tensor, tensor_to_image
from hybridflow.losses import pixel_errors, rate_weight
from hybridflow.metrics import lpips, psnr


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("hybridflow.model.PRESETS", {"tiny": SMALL})


@pytest.fixture(scope="module")
def crop(two_splits):
    return Image.open(two_splits / "50.png").convert("RGB")


def test_figures_are_those_of_the_stream_that_is_written(every_part, crop):
    model = load(every_part, "tiny")
    found = figures(model, image_to_tensor(crop), (7, 40))
    stream, coded = model.write(model.analyse(image_to_tensor(crop)), 40, "none")
    pixels = model.synthesise(coded, 40)
    decoded, bpp = tensor_to_image(pixels), 8 * len(stream) / 256**2
    distortion = float(pixel_errors(image_to_tensor(crop), pixels).mean()) + lpips(crop, decoded)
    expected = bpp, psnr(crop, decoded), lpips(crop, decoded), distortion + float(rate_weight(torch.tensor(40))) * bpp
    assert found.shape == (4, 2) and found[:, 1] == pytest.approx(expected, rel=1e-3)
    assert found[0, 0] < found[0, 1]  # quality 7 takes fewer bits


def test_figures_are_means_over_the_crops(every_part, crop):
    model, x = load(every_part, "tiny"), image_to_tensor(crop)
    both = figures(model, torch.cat([x, x.flip(0, 2)]), (20,))
    one, other = (figures(model, crops, (20,)) for crops in (x, x.flip(0, 2)))
    assert not np.allclose(one, other) and both == pytest.approx((one + other) / 2)


def test_photos_that_bits_were_fitted_to_are_left_out(photos, tmp_path, monkeypatch, capsys, every_part):
    monkeypatch.setattr("eval.held_out.COUNT", 2)
    with Image.open(photos[0]) as image:
        for number in (1, 50, 100, 150, 200):
            image.crop((number, 0, number + 256, 256)).save(tmp_path / f"{number:03}.png")
        others = [image_to_tensor(image.crop((n, 0, n + 256, 256)).convert("RGB"))[0] for n in (150, 200)]
    assert torch.equal(held_out_crops(tmp_path, 9), torch.stack(others))
    assert torch.equal(held_out_crops(tmp_path, 1), torch.stack(others[:1]))
    monkeypatch.setattr("eval.held_out.COUNT", 4)
    assert main([str(every_part), "--data", str(tmp_path)]) == 2
    assert "holds 4 held-out photos, of which" in capsys.readouterr().err


def test_the_command_gives_each_weights_a_row(every_part, two_splits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eval.held_out.COUNT", 0)
    weights = load_file(every_part)
    weights["pixel_decoder.head.5.bias"] = weights["pixel_decoder.head.5.bias"] + 0.2
    save_file(weights, tmp_path / "brighter.safetensors")
    paths = [str(every_part), str(tmp_path / "brighter.safetensors")]
    assert main([*paths, "--data", str(two_splits), "--qualities", "9", "50"]) == 0
    heading, *_, first, second = capsys.readouterr().out.splitlines()
    assert heading == "1 crops, qualities 9, 50:"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (first, second)]
    assert [row[0] for row in cells] == paths and cells[0][1] == cells[1][1]  # the same bits
    for row in cells:
        assert sum(map(float, row[4].split(","))) == pytest.approx(float(row[5]), abs=0.002)
    assert float(cells[0][5]) != float(cells[1][5])


def test_what_cannot_be_coded_is_one_error_that_names_the_mend(every_part, two_splits, tmp_path, capsys):
    weights = load_file(every_part)
    save_file({k: v for k, v in weights.items() if not k.startswith("predictor.")}, tmp_path / "some.safetensors")
    save_file({k: v for k, v in weights.items() if ".exact." not in k}, tmp_path / "thawed.safetensors")
    for name, words in (("some", "lacks predictor: name what"), ("thawed", "run `hybridflow freeze` on it first")):
        assert main([str(tmp_path / f"{name}.safetensors"), "--data", str(two_splits)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:") and words in line
