"""The token transformer: any size, what it may see, and what it must not."""

import pytest
import torch

from hybridflow import predictor as module
from hybridflow.predictor import Predictor

CODES, CHANNELS = 20, 6


def random_predictor(guided=True):
    torch.manual_seed(0)
    predictor = Predictor(CHANNELS, CODES, dim=16, depth=2, heads=2, guided=guided).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return predictor


@pytest.fixture(scope="module")
def predictor():
    return random_predictor()


def inputs(h, w, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(CODES, (batch, h, w), generator=generator)
    sent = torch.rand(batch, h, w, generator=generator) < 0.4
    return indices, sent, torch.randn(batch, CHANNELS, h, w, generator=generator)


@pytest.mark.parametrize("h, w", [(1, 1), (5, 7), (8, 8), (17, 23)])
@torch.inference_mode()
def test_any_size(predictor, h, w):
    logits = predictor(*inputs(h, w, batch=2))
    assert logits.shape == (2, CODES, h, w) and logits.isfinite().all()


@pytest.mark.parametrize("h, w", [(1, 1), (5, 7), (8, 8), (17, 23)])
@torch.inference_mode()
def test_padding_has_no_influence(predictor, h, w, monkeypatch):
    clean = predictor(*inputs(h, w))
    pad = module.F.pad
    monkeypatch.setattr(module.F, "pad", lambda x, widths: pad(x, widths, value=31.0))
    torch.testing.assert_close(predictor(*inputs(h, w)), clean)


@torch.inference_mode()
def test_each_sample_stands_alone(predictor):
    indices, sent, y_hat = inputs(9, 12, batch=3)
    together = predictor(indices, sent, y_hat)
    for i in range(3):
        alone = predictor(indices[i : i + 1], sent[i : i + 1], y_hat[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_a_wider_width_of_zeros_changes_no_attention():
    query, key, value = torch.randn(3, 2, 4, 64, 36, generator=torch.Generator().manual_seed(0)).unbind()
    bias = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    plain, wider = (module._attend(query, key, value, bias, multiple) for multiple in (1, 8))
    assert plain.shape == value.shape
    torch.testing.assert_close(wider, plain)
    assert torch.equal(plain, torch.nn.functional.scaled_dot_product_attention(query, key, value, bias))


@torch.inference_mode()
def test_indices_that_were_not_sent_are_not_read(predictor):
    indices, sent, y_hat = inputs(17, 23)
    other = torch.where(sent, indices, (indices + 1) % CODES)
    assert torch.equal(predictor(other, sent, y_hat), predictor(indices, sent, y_hat))


@torch.inference_mode()
def test_sent_indices_and_which_are_sent_matter(predictor):
    indices, sent, y_hat = inputs(8, 8)
    logits = predictor(indices, sent, y_hat)
    assert not torch.allclose(predictor((indices + 1) % CODES, sent, y_hat), logits)
    assert not torch.allclose(predictor(indices, ~sent, y_hat), logits)


@torch.inference_mode()
def test_a_token_informs_its_neighbours_but_nobody_far_away(predictor):
    """Two blocks see at most two windows; the shift must not wrap around the map's border."""
    indices, sent, y_hat = inputs(32, 32)
    sent[0, 0, 0] = True
    logits = predictor(indices, sent, y_hat)
    indices[0, 0, 0] = (indices[0, 0, 0] + 1) % CODES
    change = (predictor(indices, sent, y_hat) - logits).abs().amax((0, 1))
    assert change[:4, :4].min() > 0
    assert change[16:].max() == 0 and change[:, 16:].max() == 0


@torch.inference_mode()
def test_y_hat_guides_through_attention(predictor):
    indices, sent, y_hat = inputs(8, 8)
    logits = predictor(indices, sent, y_hat)
    assert not torch.allclose(predictor(indices, sent, -y_hat), logits)

    y_hat[..., 7, 7] += 10  # five rows and columns away: only attention reaches so far
    change = (predictor(indices, sent, y_hat) - logits).abs().amax((0, 1))
    assert change[0, 0] > 1e-5


@torch.inference_mode()
def test_cross_attention_reads_y_hat(predictor):
    block = predictor.blocks[0]
    x, guide = torch.randn(2, 1, 8, 8, 16)
    visible = module._visibility(8, 8, 0, x.device)
    assert not torch.allclose(block(x, guide, visible, 0), block(x, guide.flip(1), visible, 0))


@torch.inference_mode()
def test_the_blind_ablation_neither_needs_nor_looks_at_y_hat():
    indices, sent, y_hat = inputs(8, 7)
    blind = random_predictor(guided=False)
    assert torch.equal(blind(indices, sent), blind(indices, sent, y_hat))


def test_every_parameter_learns(predictor):
    predictor(*inputs(9, 9)).square().sum().backward()
    without = [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()]
    predictor.zero_grad(set_to_none=True)
    assert without == []
