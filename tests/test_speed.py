"""The cost of parts: MACs counted by hand agree, and none is counted twice."""

import torch
from torch import nn

from eval.speed import count_macs, stored_numbers


def test_macs_go_to_the_part_that_spends_them():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    linear, unused = nn.Linear(16, 5), nn.Linear(2, 2)
    image, vector = torch.zeros(1, 3, 10, 12), torch.zeros(7, 16)

    @torch.inference_mode()
    def call():
        conv[2](conv[0](image))  # the part itself is not called, only what is in it
        conv(image)
        linear(vector)
        vector @ vector.T

    macs = count_macs({"conv": conv, "linear": linear, "unused": unused}, call)
    per_pass = 120 * (3 * 8 * 9 + 8 * 4)
    assert macs == {"conv": 2 * per_pass, "linear": 7 * 16 * 5, "unused": 0, "other": 7 * 16 * 7}


def test_no_hook_stays_behind():
    part = nn.Linear(2, 2)
    count_macs({"part": part}, lambda: part(torch.zeros(1, 2)))
    assert not part._forward_hooks and not part._forward_pre_hooks


def test_stored_numbers_are_parameters_and_buffers():
    assert stored_numbers(nn.BatchNorm1d(4)) == 4 * 4 + 1
