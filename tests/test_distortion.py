"""Metrics against the packages that define them; those on VGG16 where it is on this machine."""

import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import DISTS_pytorch
import numpy as np
import pytest
import pytorch_msssim
import torch
from PIL import Image

from eval import vgg
from eval.distortion import distortions, remembering, vgg_metrics
from hybridflow.errors import HybridFlowError
from hybridflow.grids import spectral_peaks
from hybridflow.image_io import image_to_tensor, read_image

EXAMPLES = Path(__file__).parent / "lpips_examples"

needs_vgg = pytest.mark.skipif(vgg.load_features() is None, reason="no VGG16: python -m eval.vgg fetches it")


@pytest.fixture
def reference():
    return read_image(EXAMPLES / "ex_ref.png")


@pytest.mark.parametrize(("name", "official"), [("ex_p0", 0.722), ("ex_p1", 0.138)])
def test_lpips_alex_gives_the_official_values(reference, name, official):
    figures = distortions(reference, read_image(EXAMPLES / f"{name}.png"))
    assert figures["lpips-alex"] == pytest.approx(official, abs=5e-4)


@needs_vgg
@pytest.mark.parametrize(("name", "official"), [("ex_p0", 0.569), ("ex_p1", 0.422)])
def test_lpips_vgg_gives_the_official_values(reference, name, official):
    figures = distortions(reference, read_image(EXAMPLES / f"{name}.png"))
    assert figures["lpips-vgg"] == pytest.approx(official, abs=5e-4)


def test_ms_ssim_is_that_of_its_package(photos):
    original = read_image(photos[0]).crop((0, 0, 192, 176))
    decoded = original.resize((96, 88)).resize(original.size)
    x, x_hat = image_to_tensor(original), image_to_tensor(decoded)
    expected = pytorch_msssim.MS_SSIM(data_range=1.0)(x, x_hat)
    assert distortions(original, decoded)["ms-ssim-rgb"] == pytest.approx(float(expected), abs=1e-6)


@needs_vgg
def test_dists_is_that_of_its_package_and_zero_for_equal_images(reference):
    distorted = read_image(EXAMPLES / "ex_p0.png")
    assert distortions(reference, reference)["dists"] == pytest.approx(0, abs=1e-6)
    with patch("torchvision.models.vgg16", return_value=SimpleNamespace(features=vgg.load_features())):
        package = DISTS_pytorch.DISTS().eval()
    direct = float(package(image_to_tensor(reference), image_to_tensor(distorted)).detach())
    assert distortions(reference, distorted)["dists"] == pytest.approx(direct, abs=1e-6) and direct > 0.1


def test_features_of_the_last_two_images_are_remembered():
    seen = []
    features = remembering(lambda x: seen.append(float(x)) or [2 * x])
    for value in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        assert float(features(torch.tensor(value))[0]) == 2 * value
    assert seen == [1, 2, 3, 2]


def test_without_vgg_its_figures_are_left_out(reference, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    vgg_metrics.cache_clear()
    figures = distortions(reference, reference)
    vgg_metrics.cache_clear()
    assert not {"lpips-vgg", "dists"} & set(figures) and "lpips-alex" in figures


def test_grids_are_the_decoded_images_their_peaks_in_decibels(reference):
    rows, columns = np.indices((64, 64))
    noise = np.random.default_rng(0).integers(0, 8, (64, 64))
    chessboard = 96 + 64 * ((rows // 8 + columns // 8) % 2) + noise
    decoded = Image.fromarray(chessboard.astype(np.uint8)).convert("RGB")
    figures, others = distortions(reference, decoded), distortions(decoded, reference)
    assert others["grid-peaks"] < 1 < figures["grid-peaks"] and others["blockiness-8"] < 2 < figures["blockiness-8"]
    nats = float(spectral_peaks(image_to_tensor(decoded)).mean())
    assert figures["grid-peaks"] == pytest.approx(10 * math.log10(math.exp(nats)), rel=1e-4)


def test_a_damaged_file_of_vgg_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    vgg.fetched_path().parent.mkdir()
    vgg.fetched_path().write_bytes(b"cut")
    with pytest.raises(HybridFlowError, match="is damaged: delete it"):
        vgg.load_features()
    vgg.fetched_path().unlink()
    torch.save({}, vgg.torchvision_path())
    whole = vgg.torchvision_path().read_bytes()
    for left in (b"", b"cut", whole[: len(whole) // 2]):
        vgg.torchvision_path().write_bytes(left)
        with pytest.raises(HybridFlowError, match="is damaged: delete it"):
            vgg.load_features()


def test_another_archive_is_refused():
    with pytest.raises(ValueError, match="not the one that is known"):
        vgg.features_from_archive(b"no archive")


def test_small_images_have_fewer_figures():
    tiny = Image.new("RGB", (8, 8), "red")
    assert set(distortions(tiny, tiny)) >= {"psnr-rgb", "lpips-alex"}
    assert not {"ms-ssim-rgb", "lpips-vgg", "dists", "grid-peaks"} & set(distortions(tiny, tiny))
