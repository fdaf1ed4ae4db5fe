"""Random numbers for training that depend on the sample alone, not on the process, device or batch it falls into."""

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF
_FOR_SAMPLES, _FOR_STEPS = 1, 2


def _mix(x: Tensor | int) -> Tensor | int:
    """Scramble integers below 2^32, of Python or held in int64 (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _32_BITS
    x = (x ^ (x >> 15)) * 0x846CA68B & _32_BITS
    return x ^ (x >> 16)


class Draws:
    """Uniform numbers for a batch of samples from a counter-based generator (Salmon et al., SC 2011).

    Element i of the c-th call is a hash of the seed, the sample's number, c and i. So a batch may be split over
    processes, or a run stopped and resumed, and every sample still meets the same numbers; there is no state to save.

    Args:
        seed: of the run.
        step: what all samples of an optimiser step share.
        samples: their numbers (B,) int64, counted from the start of the run over all processes; its device is where
            the numbers are drawn. Numbers below zero are for what is drawn outside of steps.
    """

    def __init__(self, seed: int, step: int, samples: Tensor) -> None:
        root = _mix(seed & _32_BITS)
        self._samples = _mix(_mix(root ^ _FOR_SAMPLES) ^ (samples & _32_BITS))
        self._step = _mix(_mix(root ^ _FOR_STEPS) ^ (step & _32_BITS))
        self._calls = 0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def device(self) -> torch.device:
        return self._samples.device

    def uniform(self, *shape: int) -> Tensor:
        """(B,*shape) float32 in [0,1)."""
        return self._numbers(self._samples[:, None], shape, self.device).view(len(self), *shape)

    def shared(self, *shape: int) -> Tensor:
        """(*shape) float32 in [0,1), the same for all samples of the step; on the CPU, so that to read them is not to
        wait for the device."""
        return self._numbers(self._step, shape, "cpu").view(shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(B,*shape) int64 in 0..high-1."""
        return (self.uniform(*shape) * high).long()

    def _numbers(self, keys: Tensor | int, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        self._calls += 1
        elements = torch.arange(torch.Size(shape).numel(), device=device)
        return (_mix(_mix(keys ^ self._calls) ^ _mix(elements)) >> 8).float() * 2**-24
