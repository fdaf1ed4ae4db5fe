"""Every metric of a decoded image against its original: PSNR, MS-SSIM, LPIPS, DISTS, and how much of a grid it shows.

MS-SSIM is of Wang et al. (Asilomar 2003), LPIPS of Zhang et al. (CVPR 2018), v0.1, DISTS of Ding et al. (PAMI 2020):
equal images have 1, 0 and 0. LPIPS-VGG and DISTS need VGG16's features, which are not shipped (see `eval.vgg`): without
them their figures are left out.
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ms_ssim
from torch import Tensor

from eval.blockiness import PERIODS, blockiness
from eval.vgg import load_features
from hybridflow.grids import WINDOW, spectral_peaks
from hybridflow.image_io import image_to_tensor
from hybridflow.metrics import lpips, psnr

MS_SSIM_SMALLEST = 161
"""Shorter side, in pixels, of the smallest image that MS-SSIM's five scales fit in."""

VGG_SMALLEST = 16
"""Likewise for VGG16's four poolings."""

DISTORTIONS = (
    "psnr-rgb",
    "ms-ssim-rgb",
    "lpips-alex",
    "lpips-vgg",
    "dists",
    *(f"blockiness-{period}" for period in PERIODS),
    "grid-peaks",
)
"""What `distortions` measures where it can."""

Metric = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Sequence[Tensor]]


@torch.inference_mode()
def distortions(original: Image.Image, decoded: Image.Image) -> dict[str, float]:
    """Two RGB images of equal size -> the figure of every metric that can be had.

    Blockiness and grid peaks are the decoded image's: the latter is the mean of `spectral_peaks` in decibels.
    """
    x, x_hat = image_to_tensor(original), image_to_tensor(decoded)
    figures = {"psnr-rgb": psnr(original, decoded), "lpips-alex": lpips(original, decoded)}
    if min(original.size) >= MS_SSIM_SMALLEST:
        figures["ms-ssim-rgb"] = float(ms_ssim(x, x_hat, data_range=1.0))
    if min(original.size) >= VGG_SMALLEST:
        figures |= {name: float(metric(x, x_hat)) for name, metric in vgg_metrics().items()}
    for period in PERIODS:
        figures[f"blockiness-{period}"] = blockiness(np.asarray(decoded), period)
    if min(original.size) >= WINDOW:
        figures["grid-peaks"] = float(spectral_peaks(x_hat).mean()) * 10 / math.log(10)
    return figures


@functools.cache
def vgg_metrics() -> dict[str, Metric]:
    """LPIPS-VGG and DISTS, each a function of two images (1,3,H,W) in [0,1]; none where VGG16 is not to be had."""
    features = load_features()
    if features is None:
        return {}
    import lpips as lpips_package
    from DISTS_pytorch import DISTS

    with (
        warnings.catch_warnings(),
        patch("torchvision.models.vgg16", return_value=SimpleNamespace(features=features)),  # both ask torchvision
    ):
        warnings.simplefilter("ignore")  # of arguments that lpips passes to torch
        lpips_vgg, dists = lpips_package.LPIPS(net="vgg", verbose=False).eval(), DISTS().eval()
    lpips_vgg.net.forward, dists.forward_once = remembering(lpips_vgg.net.forward), remembering(dists.forward_once)
    return {"lpips-vgg": functools.partial(lpips_vgg, normalize=True), "dists": dists}


def remembering(features: Features) -> Features:
    """The same function of an image (1,3,H,W), which knows its last two answers: one original meets many decoded."""
    known: dict[bytes, Sequence[Tensor]] = {}

    def ask(x: Tensor) -> Sequence[Tensor]:
        key = hashlib.sha256(x.numpy().tobytes()).digest()
        if key in known:
            known[key] = known.pop(key)  # the youngest is the last
        else:
            for oldest in list(known)[:-1]:
                del known[oldest]
            known[key] = features(x)
        return known[key]

    return ask
