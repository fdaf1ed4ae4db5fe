"""Two kinds of measure of the grids that up-sampling leaves in a decoded image, each blind to what the other sees.

A decoder without noise of its own can make fine texture only at fixed places of its up-sampling. Where that texture
differs from place to place, gradient energy is uneven over the phases of the grid; where it repeats, the spectrum has
peaks at the grid's frequencies.

What a decoder is trained by is measured window by window and averaged as logarithms. Powers that were averaged over a
whole image left a way around: strong chequered colour at one place, the same corner of every image, that drowned the
weak grid of all others.
"""

import torch
from torch import Tensor

GRID_PERIOD = 16
"""Pixels of an index: grids of 2, 4 and 8, which up-sampling leaves, repeat in it too."""

WINDOW = 4 * GRID_PERIOD
"""Pixels, each way, of the pieces whose spectra are taken: a grid's peaks are four frequencies apart, twice the
reach of a Hann window's main lobe, so that nothing of them falls midway."""

_ONE_LEVEL = 1 / 255
_MIDWAY = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def uneven_gradients(x: Tensor, x_hat: Tensor) -> Tensor:
    """How unevenly x_hat's gradient energy, against x's, is spread over the phases of GRID_PERIOD: (B,), 0 if evenly.

    Args:
        x, x_hat: (B,3,H,W) in [0,1], the original and the decoded image, with sides of at least WINDOW.
    """
    log_ratio = _log_phase_energies(x_hat) - _log_phase_energies(x)
    return log_ratio.var(-1, correction=0).mean(0)


def _log_phase_energies(image: Tensor) -> Tensor:
    """(B,3,H,W) -> (2,B,GRID_PERIOD): logarithm of the mean squared step between neighbours, of columns and of rows, at
    each phase, averaged over stripes of a period by WINDOW pixels.

    A step of one 8-bit level is added, so that a grid too faint to see counts little.
    """
    energies = []
    for side in (image, image.mT):
        steps = side.float().diff().square().mean(1)
        stripes = steps.unfold(1, WINDOW, WINDOW).mean(-1).unfold(2, GRID_PERIOD, GRID_PERIOD)
        energies.append((stripes + _ONE_LEVEL**2).log().mean((1, 2)))
    return torch.stack(energies)


def spectral_peaks(image: Tensor) -> Tensor:
    """How far the power spectrum of a whole image stands out of its surroundings at the frequencies of grids.

    The spectrum is Welch's (1967): of Hann windows of WINDOW pixels that overlap by half, averaged over windows and
    channels; its surroundings are the geometric mean of the eight frequencies midway to the next ones of the grid.
    Rounding noise of 8 bits is added, so that a grid too faint to see counts little.

    Args:
        image: (B,3,H,W) in [0,1], with sides of at least WINDOW.

    Returns:
        (B,GRID_PERIOD^2-1) in nats: the logarithm of the ratio at each pair of frequencies k/GRID_PERIOD but (0,0).
        Near 0 for a photo.
    """
    return _peaks(_powers(image).mean((1, 2)))


def typical_peaks(image: Tensor) -> Tensor:
    """As `spectral_peaks`, of the geometric mean of the windows' spectra: how far they stand out in the typical one."""
    return _peaks(_powers(image)).mean((1, 2))


def _powers(image: Tensor) -> Tensor:
    """(B,3,H,W) -> (B,rows,columns,WINDOW/2,WINDOW/2): every other frequency of the power spectrum of each window."""
    window = torch.hann_window(WINDOW, device=image.device)
    window = window[:, None] * window
    pieces = image.float().unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2) * window
    # Halves that are added up have every other frequency of the whole.
    folded = pieces.unflatten(-1, (2, -1)).sum(-2).unflatten(-2, (2, -1)).sum(-3)
    spectra = torch.view_as_real(torch.fft.fft2(folded)).square().sum(-1)
    return spectra.mean(1) / window.square().sum()


def _peaks(powers: Tensor) -> Tensor:
    """(...,WINDOW/2,WINDOW/2) -> (...,GRID_PERIOD^2-1) in nats."""
    log_power = (powers + _ONE_LEVEL**2 / 12).log()
    surroundings = torch.stack([log_power.roll(shift, (-2, -1)) for shift in _MIDWAY]).mean(0)
    return (log_power - surroundings)[..., ::2, ::2].flatten(-2)[..., 1:]
