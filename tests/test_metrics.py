"""PSNR by hand, LPIPS against its authors' own example pairs."""

import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridflow.errors import CheckpointError, ImageError
from hybridflow.image_io import read_image
from hybridflow.metrics import load_lpips, lpips, psnr
from hybridflow.weights import weight_file

EXAMPLES = Path(__file__).parent / "lpips_examples"  # of github.com/richzhang/PerceptualSimilarity, BSD-2


@pytest.fixture
def pair():
    """An image of 40 x 50 and the same with noise."""
    rng = np.random.default_rng(0)
    clean = np.kron(rng.integers(30, 220, (5, 4, 3)), np.ones((10, 10, 1)))
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255)
    return Image.fromarray(clean.astype(np.uint8)), Image.fromarray(noisy.astype(np.uint8))


def test_psnr():
    black, off = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (0, 3, 0))
    assert psnr(black, off) == pytest.approx(10 * math.log10(255**2 / 3))
    assert psnr(black, Image.new("RGB", (4, 4), "white")) == 0
    assert psnr(off, off) == math.inf


@pytest.mark.parametrize("name, official", [("ex_p0", 0.722), ("ex_p1", 0.138)])
def test_lpips_gives_the_official_values(name, official):
    reference, distorted = (read_image(EXAMPLES / f"{image}.png") for image in ("ex_ref", name))
    assert lpips(reference, distorted) == pytest.approx(official, abs=5e-4)


def test_lpips_needs_no_network_and_tells_images_apart(pair, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("LPIPS reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_lpips()  # anew: the one that is shared is loaded already
    clean, noisy = pair
    assert lpips(clean, clean) == 0
    assert 0.01 < lpips(clean, noisy) < 0.2
    assert lpips(clean, noisy) == pytest.approx(lpips(noisy, clean), abs=1e-5)


def test_lpips_does_not_change_in_training_mode():
    model, t = load_lpips(), [torch.rand(1, 3, 64, 64, generator=torch.manual_seed(i)) for i in (0, 1)]
    with torch.no_grad():
        assert torch.equal(model(*t), model.train()(*t))


@pytest.mark.parametrize("size", [(1, 1), (15, 17), (31, 5), (3, 200)])
def test_lpips_takes_any_size(size):
    black, white = Image.new("RGB", size), Image.new("RGB", size, "white")
    assert lpips(black, white) > 0.01 and lpips(white, white) == 0


def test_unequal_sizes_are_refused(pair):
    for metric in (psnr, lpips):
        with pytest.raises(ImageError, match="40x50"):
            metric(pair[0], pair[1].resize((20, 20)))


def test_missing_weights_are_named():
    assert weight_file("alexnet_features.safetensors").is_file()
    with pytest.raises(CheckpointError, match="alexnet_features.safetensors") as error:
        weight_file("huge.safetensors")
    assert "huge.safetensors" in str(error.value) and "\n" not in str(error.value)
