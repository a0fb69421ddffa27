"""GEOM (Golan & El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", NeurIPS 2018), for table 6 (g).

A Wide-ResNet-10-4 (Zagoruyko & Komodakis, BMVC 2016) names which of 72 transformations a 32 x 32 image went through. It
is trained on images that a trained pyramid generates, for a fixed number of steps. An image's score is the mean, over
the transformations, of the softmax probability of the right one: the simple score of GEOM's section 4, not its
Dirichlet form, which needs a held-out set of real normal images.

Budget: 1.2 million weights; on one busy core with AVX512-BF16 a step took 0.7 s and an image 0.1 s to score (float32:
1.4 s and 0.2 s).
"""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.images import resize
from hta.models.pyramid import Pyramid
from hta.models.transforms import mirror_pad
from hta.runtime import Runtime, seeded_generator
from hta.training.samples import draw_samples

SIDE = 32
NUM_TRANSFORMS = 72
NUM_SAMPLES = 6_000
_BATCH = 128
_SHIFT = SIDE // 4


def transformed_pixels() -> Tensor:
    """Which pixel each pixel of each transformed image shows, `(72, 32 * 32)`.

    The transformations are flip {no, yes} x shift in x and in y {0, -8, +8} (mirrored) x rotation {0, 90, 180, 270}.
    """
    numbers = torch.arange(SIDE * SIDE).view(1, 1, SIDE, SIDE)
    sources = []
    for flip, x, y, turns in product((False, True), (0, -_SHIFT, _SHIFT), (0, -_SHIFT, _SHIFT), range(4)):
        image = mirror_pad(numbers.flip(-1) if flip else numbers, *([_SHIFT] * 4))
        image = image[..., _SHIFT - y : _SHIFT - y + SIDE, _SHIFT - x : _SHIFT - x + SIDE]
        sources.append(torch.rot90(image, turns, dims=(-2, -1)).flatten())
    return torch.stack(sources)


class _Block(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + self.shortcut(active)


class WideResNet(nn.Module):
    """Wide-ResNet of depth 10: one block in each of its three groups.

    Args:
        widen: factor of the channels; 4 for WRN-10-4.
        num_classes: of the logits.
    """

    def __init__(self, widen: int = 4, num_classes: int = NUM_TRANSFORMS):
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            _Block(16, widths[0], 1), _Block(widths[0], widths[1], 2), _Block(widths[1], widths[2], 2)
        )
        self.norm, self.head = nn.BatchNorm2d(widths[2]), nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of `(B, 3, H, W)` images."""
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean(dim=(-2, -1)))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw all weights from one generator: He's for convolutions, 0.01 for the head."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", generator=generator)
            elif isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, 0.0, 0.01, generator=generator)
                nn.init.zeros_(part.bias)


class Geom:
    """GEOM, trained on random samples of a pyramid.

    Args:
        pyramid: trained.
        steps: of the optimiser, 128 transformed images each.
        seed: of samples, weights and batches.
        runtime: device and precision.
        num_samples: images to generate.
    """

    def __init__(self, pyramid: Pyramid, steps: int, seed: int, runtime: Runtime, num_samples: int = NUM_SAMPLES):
        self.runtime = runtime
        self._pixels = transformed_pixels().to(runtime.device)
        stream = seeded_generator(seed, "geom")
        self.network = WideResNet()
        self.network.draw_weights(stream)
        self.network.to(runtime.device).to(memory_format=torch.channels_last)
        samples = torch.cat([resize(b, (SIDE, SIDE)) for b in draw_samples(pyramid, num_samples, seed)])
        self._train(samples.to(runtime.device), steps, stream)

    def _train(self, samples: Tensor, steps: int, stream: torch.Generator) -> None:
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3, fused=True)
        for _ in range(steps):
            images = torch.randint(len(samples), (_BATCH,), generator=stream).to(samples.device)
            classes = torch.randint(NUM_TRANSFORMS, (_BATCH,), generator=stream).to(samples.device)
            loss = F.cross_entropy(self._logits(samples[images], classes), classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        self.network.eval().requires_grad_(False)

    def _logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Logits `(B, 72)` of images, each transformed by its own class."""
        source = self._pixels[classes].unsqueeze(1).expand(-1, 3, -1)
        transformed = images.flatten(2).gather(2, source).view_as(images)
        with torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.runtime.dtype == torch.bfloat16):
            return self.network(transformed.contiguous(memory_format=torch.channels_last)).float()

    @torch.inference_mode()
    def shares(self, images: Tensor) -> np.ndarray:
        """Mean probability of the right transformation, `(1, B, 1)` in [0, 1]; higher = more normal.

        Args:
            images: `(B, 3, h, w)` in [-1, 1].
        """
        small = resize(images.to(self.runtime.device), (SIDE, SIDE))
        total = torch.zeros(len(small), device=small.device)
        for transformation in range(NUM_TRANSFORMS):
            classes = torch.full((len(small),), transformation, device=small.device)
            total += F.softmax(self._logits(small, classes), dim=1)[:, transformation]
        return (total / NUM_TRANSFORMS).double().cpu().numpy()[None, :, None]
