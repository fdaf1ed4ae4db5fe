"""Blocks of the pixel networks: their layout in memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridflow.layers import Upsample


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_doubling_the_size_keeps_the_layout(layout, device):
    """By shapes and strides alone, so that no GPU is needed to ask what one would leave."""
    with FakeTensorMode(), torch.device(device):
        doubled = Upsample(8, 4)(torch.empty(2, 8, 6, 6).to(memory_format=layout))
        assert doubled.shape == (2, 4, 12, 12) and doubled.is_contiguous(memory_format=layout)
