"""Two curves at equal bits per pixel: the rates that both have, and what a curve has there."""

import math
from collections.abc import Sequence

import numpy as np


def common_rates(rates: Sequence[float], others: Sequence[float], count: int) -> list[float]:
    """Rates within both ranges, evenly spaced in log bpp from end to end; none if they share no range."""
    low, high = max(min(rates), min(others)), min(max(rates), max(others))
    return np.geomspace(low, high, count).tolist() if low < high else []


def at_rate(bpp: float, rates: Sequence[float], figures: Sequence[float]) -> float:
    """A figure between a curve's points, which rise in rate, linear in log bpp."""
    return float(np.interp(math.log(bpp), np.log(rates), figures))
