"""How far a decoded image is from its original: PSNR, and LPIPS v0.1 with AlexNet (Zhang et al., CVPR 2018)."""

import functools
import math
import warnings

import numpy as np
from PIL import Image

from hybridflow.errors import ImageError
from hybridflow.image_io import image_to_tensor
from hybridflow.weights import weight_file

_LPIPS_SIDE = 31  # AlexNet's strides leave nothing of less


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit RGB images of equal size, over all samples; inf if they are equal.

    Raises:
        ImageError: the sizes differ.
    """
    _require_equal_sizes(a, b)
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def lpips(a: Image.Image, b: Image.Image) -> float:
    """LPIPS-Alex of two RGB images of equal size, at full size on the CPU: 0 for equal images, about 1 for unlike ones.

    A side under 31 pixels, which AlexNet's strides would use up, is enlarged to at least that by repeating pixels.

    Raises:
        ImageError: the sizes differ.
    """
    import torch

    _require_equal_sizes(a, b)
    repeat = [-(-_LPIPS_SIDE // side) for side in (a.height, a.width)]
    with torch.inference_mode():
        inputs = [2 * image_to_tensor(image) - 1 for image in (a, b)]
        for axis, times in zip((2, 3), repeat):
            inputs = [x.repeat_interleave(times, axis) for x in inputs]
        return float(_shared_lpips()(*inputs))


def load_lpips():
    """LPIPS-Alex as a module in eval mode: two (B,3,H,W) in [-1,1] -> (B,1,1,1); sides of at least 31 pixels.

    AlexNet's features come from the shipped weights and the linear heads from the ``lpips`` package: nothing is
    downloaded. The heads' dropout is switched off for good, so train() changes nothing.

    Raises:
        CheckpointError: the features are not where they should be.
    """
    import lpips as package
    from safetensors.torch import load_file
    from torch import nn

    features = load_file(weight_file("alexnet_features.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision and torch warn of arguments that lpips passes
        model = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    model.net.load_state_dict(features)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


@functools.cache
def _shared_lpips():
    return load_lpips()


def _require_equal_sizes(a: Image.Image, b: Image.Image) -> None:
    if a.size != b.size:
        sizes = f"{a.width}x{a.height} and {b.width}x{b.height}"
        raise ImageError(f"the images differ in size, {sizes}: compare an image with its own copy")
