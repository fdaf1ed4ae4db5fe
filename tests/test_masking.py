"""Schedules: how many indices each sends and where, regions that agree with them, and the order of coding."""

import pytest
import torch

from hybridflow.draws import Draws
from hybridflow.masking import (
    REGION,
    SCHEDULES,
    UNIFORM_SCHEDULES,
    coding_steps,
    random_mask,
    region_grid,
    region_mask,
    schedule_mask,
    spread_regions,
)

SIZES = [(1, 1), (1, 5), (2, 2), (7, 5), (6, 6), (13, 18), (32, 48)]


@pytest.mark.parametrize("h, w", SIZES)
def test_each_schedule_sends_what_its_name_says(h, w):
    assert schedule_mask("full", h, w).sum() == h * w
    assert schedule_mask("1_4", h, w).sum() == -(-h // 2) * -(-w // 2)
    assert schedule_mask("1_9", h, w).sum() == (h + 1) // 3 * ((w + 1) // 3)
    assert schedule_mask("none", h, w).sum() == 0
    for schedule in UNIFORM_SCHEDULES:
        mask = schedule_mask(schedule, h, w)
        assert mask.shape == (h, w) and mask.dtype == torch.bool


def test_the_lattices_are_corners_and_centres_of_their_cells():
    assert schedule_mask("1_4", 4, 5).nonzero().tolist() == [[i, j] for i in (0, 2) for j in (0, 2, 4)]
    assert schedule_mask("1_9", 6, 9).nonzero().tolist() == [[i, j] for i in (1, 4) for j in (1, 4, 7)]
    for schedule, cell in (("1_4", 2), ("1_9", 3)):
        cells = schedule_mask(schedule, 12, 18).view(12 // cell, cell, 18 // cell, cell)
        assert (cells.sum((1, 3)) == 1).all()


def test_dynamic_is_no_uniform_schedule():
    assert set(SCHEDULES) - set(UNIFORM_SCHEDULES) == {"dynamic"}
    for name in ("dynamic", "1_16"):
        with pytest.raises(ValueError, match=name):
            schedule_mask(name, 4, 4)


@pytest.mark.parametrize("h, w", SIZES)
def test_regions_cover_the_map(h, w):
    rows, columns = region_grid(h, w)
    assert (rows - 1) * REGION < h <= rows * REGION and (columns - 1) * REGION < w <= columns * REGION
    numbers = torch.arange(rows * columns).view(rows, columns)
    spread = spread_regions(numbers, h, w)
    expected = [[int(numbers[i // REGION, j // REGION]) for j in range(w)] for i in range(h)]
    assert spread.tolist() == expected


@pytest.mark.parametrize("h, w", SIZES)
def test_a_mix_of_regions_agrees_with_the_uniform_masks(h, w):
    generator = torch.Generator().manual_seed(0)
    for choice, schedule in enumerate(UNIFORM_SCHEDULES):
        same = torch.full(region_grid(h, w), choice)
        assert (region_mask(same, h, w) == schedule_mask(schedule, h, w)).all()
    regions = torch.randint(len(UNIFORM_SCHEDULES), region_grid(h, w), generator=generator)
    mixed = region_mask(regions, h, w)
    for i in range(h):
        for j in range(w):
            schedule = UNIFORM_SCHEDULES[regions[i // REGION, j // REGION]]
            assert mixed[i, j] == schedule_mask(schedule, h, w)[i, j]


@pytest.mark.parametrize("h, w", SIZES)
def test_coding_steps_cover_every_position_and_1_4_takes_the_first_two(h, w):
    steps = coding_steps(h, w)
    assert steps.shape == (h, w) and steps.min() >= 0 and steps.max() <= 3
    assert ((steps <= 1) == schedule_mask("1_4", h, w)).all()
    if h >= 4 and w >= 4:
        assert set(steps.unique().tolist()) == {0, 1, 2, 3}


def test_coding_steps_of_a_patch():
    assert coding_steps(4, 4).tolist() == [[0, 3, 1, 3], [3, 2, 3, 2], [1, 3, 0, 3], [3, 2, 3, 2]]


def test_random_masks_are_lattices_and_ratios():
    h, w = 12, 18
    masks = random_mask(Draws(0, 0, torch.arange(256)), h, w)
    assert masks.shape == (256, h, w) and masks.dtype == torch.bool
    lattices = {
        mask[i : i + h, j : j + w].numpy().tobytes()
        for schedule in UNIFORM_SCHEDULES[1:]
        for mask in [schedule_mask(schedule, h + REGION, w + REGION)]
        for i in range(REGION)
        for j in range(REGION)
    }
    on_lattice = torch.tensor([mask.numpy().tobytes() in lattices for mask in masks])
    assert 0.4 < on_lattice.float().mean() < 0.6
    assert {mask.numpy().tobytes() for mask in masks[on_lattice]} == lattices
    ratios = masks[~on_lattice].float().mean((1, 2))
    assert ratios.min() < 0.1 and ratios.max() > 0.7 and ratios.std() > 0.2


def test_random_masks_of_one_position():
    assert set(random_mask(Draws(1, 0, torch.arange(64)), 1, 1).flatten().tolist()) == {False, True}


def test_random_ratios_are_squares_of_even_ones():
    masks = random_mask(Draws(0, 0, torch.arange(4096)), 16, 16)
    full = masks.float().mean((1, 2))
    lattices = torch.tensor([0, 1 / 4, 1 / 9])
    ratios = full[((full[:, None] - lattices).abs() > 0.04).all(1)]
    assert (ratios > 0.5).float().sum() / 2048 == pytest.approx(1 - 0.5**0.5, abs=0.04)
