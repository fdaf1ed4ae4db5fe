"""A small model with random weights that all tests share; nothing here depends on trained weights."""

from pathlib import Path

import pytest
import torch

from hybridflow.checkpoint import load_release, save_release
from hybridflow.codec import Codec
from hybridflow.image_encoder import ImageEncoder
from hybridflow.model import HybridFlow, Preset

SMALL = Preset(
    encoder_widths=(16, 16, 24),
    encoder_depths=(1, 1, 1),
    decoder_widths=(16, 16, 24),
    decoder_depths=(1, 1, 1),
    half_channels=8,
    code_dim=8,
    latent_channels=8,
    z_channels=8,
    context_width=16,
    prior_width=16,
    prior_embedding=8,
    predictor_dim=16,
    predictor_depth=2,
    predictor_heads=2,
    num_codes=64,
)


def random_model(seed: int) -> HybridFlow:
    """Random weights, spread out so that y^_c, z and the indices of photos take many values."""
    torch.manual_seed(seed)
    model = HybridFlow(SMALL)
    with torch.no_grad():
        for encoder in (model.codebook_encoder, model.continuous.analysis):
            _standardise(encoder)
        model.continuous.log_gain.anchors *= 0.5
        model.continuous.log_inverse_gain.anchors *= 0.5
        model.continuous.hyper_analysis[-1].weight.mul_(10)
        model.continuous.context.out.bias[SMALL.latent_channels :] += 1
        torch.nn.init.normal_(model.continuous.context.out.weight, std=0.05)
        model.continuous.context.out.bias[-1] = -3  # the smallest scale, whose symbols are not coded
        for join in model.correction.joins:
            torch.nn.init.normal_(join.weight, std=0.1)
    model.update()
    return model.eval()


def _standardise(encoder: ImageEncoder) -> None:
    """Give every output channel mean 0 and deviation 1 over smooth noise; random weights answer all images alike."""
    noise = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32), scale_factor=8, mode="bilinear")
    deviation, mean = torch.std_mean(encoder(noise), (0, 2, 3))
    last = encoder.net[-1]
    last.weight.div_(deviation[:, None, None, None])
    last.bias.sub_(mean).div_(deviation)


def _save(folder: Path, seed: int) -> Path:
    path = folder / f"small-{seed}.safetensors"
    save_release(path, random_model(seed), {})
    return path


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory) -> Path:
    return _save(tmp_path_factory.mktemp("checkpoints"), seed=0)


@pytest.fixture(scope="session")
def other_checkpoint_path(tmp_path_factory) -> Path:
    return _save(tmp_path_factory.mktemp("checkpoints"), seed=1)


@pytest.fixture(scope="session")
def codec(checkpoint_path) -> Codec:
    return Codec(load_release(checkpoint_path)[0], "small")


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted((Path(__file__).parent / "photos").glob("*.png"))
