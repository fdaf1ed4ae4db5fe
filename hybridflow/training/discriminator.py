"""What `adversarial_weight` adds to a stage: a discriminator of patches, its hinge losses, and what balances them.

It wants many more crops than the distance of textures (`hybridflow.texture`) does for the same end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hybridflow.distributed import mean_over_processes


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al., CVPR 2017, section 3.2.2): image (B,3,H,W) in [0,1] -> logits (B,1,H/8,W/8).

    A logit judges a patch of 38 pixels; it is high where the image looks like a photo. Spectral norms (Miyato et al.,
    ICLR 2018) take the place of batch norms, so that no sample depends on the batch it falls into.
    """

    def __init__(self, width: int = 64) -> None:
        def halve(channels: int, out_channels: int) -> list[nn.Module]:
            return [spectral_norm(nn.Conv2d(channels, out_channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]

        super().__init__(
            *halve(3, width),
            *halve(width, 2 * width),
            *halve(2 * width, 4 * width),
            spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(2 * image - 1)


def judging_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye, 2017) on its logits of photos and of decoded images; a scalar."""
    return 0.5 * (F.relu(1 - real.float()) + F.relu(1 + fake.float())).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """What the decoder makes small, of the logits of its images; a scalar."""
    return -fake.float().mean()


def adaptive_weight(distortion: Tensor, fooling: Tensor, last_layer: Tensor) -> Tensor:
    """The weight at which both losses, scalars whose means over the processes count, pull equally at the decoder's last
    layer (VQGAN, Esser et al., CVPR 2021, equation 7); at most 1e4, without gradient."""
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (distortion, fooling)]
    pulls = [mean_over_processes(gradient).norm() for gradient in gradients]
    return (pulls[0] / (pulls[1] + 1e-4)).clamp(max=1e4).detach()


class Adversary(nn.Module):
    """A discriminator in training beside a decoder: of every batch, first `fool`, then `judge`.

    Args:
        weight: of fooling, over the weight at which it pulls as the distortion does.
        start: share of the stage after which it joins.
    """

    def __init__(self, weight: float, start: float) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator()
        self.weight, self.start = weight, start
        self._seen: list[tuple[Tensor, Tensor]] = []

    def fool(
        self, x: Tensor, x_hat: Tensor, distortion: Tensor, last_layer: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the decoder's loss adds to its distortion, a scalar, and terms to log.

        Args:
            x, x_hat: (B,3,H,W) in [0,1], the originals and what is decoded of them.
            distortion: scalar.
            last_layer: weights of the decoder that x_hat hangs on.
        """
        self._seen.append((x, x_hat.detach()))
        if progress < self.start:
            return distortion.new_zeros(()), {"fooling": distortion.new_zeros(())}
        fooling = fooling_loss(self.discriminator(x_hat))
        weight = self.weight * adaptive_weight(distortion, fooling, last_layer)
        return weight * fooling, {"fooling": fooling.detach()}

    def judge(self, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on the batch that was fooled with first, and terms to log."""
        x, x_hat = self._seen.pop(0)
        real, fake = self.discriminator(x), self.discriminator(x_hat)
        loss = judging_loss(real, fake) * (progress >= self.start)
        return loss, {"judged_real": real.float().mean().detach(), "judged_fake": fake.float().mean().detach()}
