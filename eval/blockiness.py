"""How much of a grid a picture shows: gradient energy on the grid's lines over that off them."""

import numpy as np

PERIODS = (2, 4, 8, 16)
"""Pixel-shuffle leaves grids of 2 and 4, transform blocks of 8, codebook indices of 16 pixels."""

_FLOOR = 1e-3
"""Squared 8-bit levels added to both energies, so that a flat picture scores 1."""


def blockiness(image: np.ndarray, period: int) -> float:
    """Mean squared step across the lines of a grid, over the mean squared step elsewhere.

    The grid's lines lie between pixels k * period - 1 and k * period of each axis, counted from the top left. A
    photo without a grid scores about 1; 1.1 means that steps on the lines hold 10 % more energy than others.

    Args:
        image: (H,W,3) or (H,W), 8-bit levels.
        period: of the grid, in pixels, at least 2.

    Returns:
        The ratio, over 0; 1 for a picture too small to have a line.
    """
    pixels = image.astype(np.float64)
    on_line, off_line = [], []
    for axis in (0, 1):
        steps = np.square(np.diff(pixels, axis=axis))
        is_line = np.arange(1, pixels.shape[axis]) % period == 0
        on_line.append(np.compress(is_line, steps, axis=axis).ravel())
        off_line.append(np.compress(~is_line, steps, axis=axis).ravel())
    on_line, off_line = np.concatenate(on_line), np.concatenate(off_line)
    if not on_line.size:
        return 1.0
    return float((on_line.mean() + _FLOOR) / (off_line.mean() + _FLOOR))
