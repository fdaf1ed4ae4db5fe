"""DISTS (Ding et al., PAMI 2020), where the package `dists-pytorch` and its VGG16 backbone are on this machine."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def vgg16_path() -> Path:
    """Where torchvision keeps, and looks for, the VGG16 that DISTS is built on."""
    return Path(torch.hub.get_dir(), "checkpoints", "vgg16-397923af.pth")


@functools.cache
def load_dists() -> Callable[[Tensor, Tensor], Tensor] | None:
    """A function of two images (1,3,H,W) in [0,1] to their DISTS, 0 for equal images; None if anything is missing."""
    try:
        from DISTS_pytorch import DISTS
    except ImportError:
        return None
    if not vgg16_path().exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, on the way dists-pytorch asks for its backbone
        return DISTS().requires_grad_(False)
