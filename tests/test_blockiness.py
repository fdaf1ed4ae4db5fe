"""The blockiness figure: 1 without a grid, large where there is one, and only at its period."""

import numpy as np
import pytest

from eval.blockiness import PERIODS, blockiness


@pytest.fixture
def noise() -> np.ndarray:
    """A picture (192,256,3) without any grid, whose steps are alike everywhere."""
    return np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)


@pytest.fixture
def blocks() -> np.ndarray:
    """Flat blocks of 8x8 pixels of random grey."""
    return np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("period", PERIODS)
def test_noise_has_no_grid(noise, period):
    assert blockiness(noise, period) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("period", PERIODS)
def test_a_flat_picture_scores_one(period):
    assert blockiness(np.full((64, 64, 3), 128, np.uint8), period) == 1


def test_flat_blocks_have_no_energy_off_their_lines(blocks):
    assert blockiness(blocks, 8) > 1e6


def test_a_faint_grid_is_seen_at_its_period_and_phase():
    """Noise of variance 21, whose steps have energy 42, under a chessboard that adds steps of 8 levels: energy 64."""
    noise = np.random.default_rng(0).integers(0, 16, (192, 256))
    rows, columns = np.arange(192)[:, None] // 8, np.arange(256)[None, :] // 8
    image = noise + 100 + 8 * ((rows + columns) % 2)
    assert blockiness(image, 8) == pytest.approx((42 + 64) / 42, rel=0.05)
    assert blockiness(image, 8) > blockiness(image, 4) > 1.1
    assert blockiness(image[4:, 4:], 8) < 0.95


def test_the_ratio_is_what_the_formula_says():
    """Steps 1, 3, 1 along a line of four pixels; a grid of 2 has the 3 on its line."""
    line = np.array([[0, 1, 4, 5]], np.uint8)
    assert blockiness(line, 2) == pytest.approx(9, rel=0.01)


def test_dark_steps_do_not_wrap_around():
    """8-bit differences are signed: a step down weighs what a step up does."""
    up, down = np.array([[0, 0, 9, 9]], np.uint8), np.array([[9, 9, 0, 0]], np.uint8)
    assert blockiness(up, 2) == blockiness(down, 2)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 16, 3), (16, 16, 3)])
def test_a_picture_without_a_line_scores_one(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert blockiness(image, 16) == 1
