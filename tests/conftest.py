"""A small model with random weights that all tests share; nothing here depends on trained weights."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_release, save_perceptual, save_release
from hybridflow.codec import Codec
from hybridflow.image_encoder import ImageEncoder
from hybridflow.model import HybridFlow, Preset
from hybridflow.training.freeze import freeze
from hybridflow.weights import perceptual_file

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
    """A small model of random weights, `spread_out`, frozen on noise."""
    torch.manual_seed(seed)
    return frozen_on_noise(spread_out(HybridFlow(SMALL)))


def frozen_on_noise(model: HybridFlow) -> HybridFlow:
    freeze(model, _smooth_noise(8, 128))
    return model


def spread_out(model: HybridFlow) -> HybridFlow:
    """Change random weights so that y^_c, z and the indices of photos take many values."""
    channels = model.preset.latent_channels
    with torch.no_grad():
        for encoder in (model.codebook_encoder, model.continuous.analysis):
            _standardise(encoder)
        model.continuous.log_gain.anchors *= 0.5
        model.continuous.log_inverse_gain.anchors *= 0.5
        model.continuous.hyper_analysis[-1].weight.mul_(10)
        model.continuous.context.out.bias[channels:] += 1
        torch.nn.init.normal_(model.continuous.context.out.weight, std=0.05)
        model.continuous.context.out.bias[-1] = -3  # the smallest scale, whose symbols are not coded
        torch.nn.init.normal_(model.continuous.hyper_prior.out.weight, std=0.05)
        for join in model.correction.joins:
            torch.nn.init.normal_(join.weight, std=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith((".step", ".quality.anchors")):  # else every quality, step and place were alike
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def _smooth_noise(batch: int, side: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.rand(batch, 3, side // 8, side // 8), scale_factor=8, mode="bilinear")


def _standardise(encoder: ImageEncoder) -> None:
    """Give every output channel mean 0 and deviation 1 over smooth noise; random weights answer all images alike."""
    deviation, mean = torch.std_mean(encoder(_smooth_noise(1, 256)), (0, 2, 3))
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
def perceptual_checkpoint_path(checkpoint_path, tmp_path_factory) -> Path:
    """The same checkpoint as `checkpoint_path`, a perceptual decoder beside it."""
    model, _ = load_release(checkpoint_path)
    model.add_perceptual()
    with torch.no_grad():
        model.perceptual.pixel_decoder.head[-1].bias.add_(0.1)
    path = tmp_path_factory.mktemp("perceptual") / "small.safetensors"
    save_release(path, model, {})
    save_perceptual(perceptual_file(path), model)
    return path


@pytest.fixture(scope="session")
def codec(checkpoint_path) -> Codec:
    return Codec(load_release(checkpoint_path)[0], "small")


def save_crops(photos: list[Path], folder: Path, *sizes: tuple[int, int]) -> Path:
    """Make a folder with crops of the first photos, one of each width and height."""
    folder.mkdir()
    for photo, (width, height) in zip(photos, sizes):
        with Image.open(photo) as image:
            image.crop((300, 200, 300 + width, 200 + height)).save(folder / photo.name)
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted((Path(__file__).parent / "photos").glob("*.png"))


@pytest.fixture(scope="session")
def two_splits(photos, tmp_path_factory) -> Path:
    """A folder of two photos, one of the validation split and one to train on."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(photos[2]) as image:
        for number in (50, 51):
            image.crop((200, 100, 456, 356)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def every_part(tmp_path_factory) -> Path:
    """Random weights of every part, for a training stage to start from."""
    model = random_model(0)
    model.codebook.started.fill_(True)
    weights = model.state_dict() | Ablations(SMALL).state_dict()
    path = tmp_path_factory.mktemp("every_part") / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """Errors are told in a line, whatever the environment says, and a test leaves the number of threads alone."""
    monkeypatch.delenv("HYBRIDFLOW_DEBUG", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(as_it_was):
    """Sums are taken in an order that depends on the number of threads, and training amplifies the difference; several
    threads on a busy machine wait for each other most of the time."""
    torch.set_num_threads(1)
