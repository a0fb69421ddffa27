"""Scores many images with one model, in batches and in bounded memory (paper, section 3.3)."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hta.evaluation.maps import anomaly_maps, upsample_map
from hta.evaluation.scores import vote_shares
from hta.evaluation.votes import VoteScorer
from hta.images import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.scales import ScalePlan, image_pyramid


@dataclass(frozen=True)
class BatchScores:
    """What a model says about a batch of images.

    Attributes:
        shares: `(F, B, S)` float64 vote shares in [0, 1] for every fraction and scale; higher = more normal.
        maps: `(B, h, w)` float32 anomaly maps in [0, 1] at the working size, higher = more anomalous; None if not
            asked.
    """

    shares: np.ndarray
    maps: np.ndarray | None


class ImageVotes(NamedTuple):
    """What a model says about one image, before the scales are brought together.

    Attributes:
        shares: `(S,)` float64 vote shares in [0, 1], higher = more normal.
        anomaly_map: `(h, w)` float32 in [0, 1] at the working size, higher = more anomalous; None if not asked.
        image_size: (H, W) of the image itself.
    """

    shares: np.ndarray
    anomaly_map: np.ndarray | None
    image_size: tuple[int, int]

    def full_size_map(self) -> np.ndarray:
        """The map at the image's own size, `(H, W)` float32."""
        return upsample_map(torch.from_numpy(self.anomaly_map), self.image_size).numpy()


def precision_of(pyramid: Pyramid) -> str:
    """The type that a model's networks compute in, such as "float32"."""
    return str(pyramid.dtype).removeprefix("torch.")


class Evaluator:
    """A model ready to score: its networks are folded once.

    Args:
        pyramid: trained.
        fractions: parts of the patches that vote, each 0 < fraction <= 1; shares are made for all in one pass.
        with_maps: whether to make anomaly maps.
    """

    def __init__(self, pyramid: Pyramid, fractions: Sequence[float] = (1.0,), *, with_maps: bool = True):
        self.plan: ScalePlan = pyramid.plan
        self.precision = precision_of(pyramid)
        self.fractions, self.with_maps = tuple(fractions), with_maps
        self._scorer = VoteScorer(pyramid)

    @torch.inference_mode()
    def score(self, images: Tensor) -> BatchScores:
        """Score a batch.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.

        Returns:
            Shares and maps. An image's do not depend on the others.
        """
        votes = self._scorer.votes(image_pyramid(images, self.plan.sizes))
        shares = torch.stack([vote_shares(v.probabilities, self.fractions) for v in votes], dim=-1)
        maps = anomaly_maps(votes, self.plan.working_size).float().cpu().numpy() if self.with_maps else None
        return BatchScores(shares.double().cpu().numpy(), maps)

    @torch.inference_mode()
    def recognition(self, images: Tensor) -> Tensor:
        """How often all patches find the right transformation.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.

        Returns:
            `(B,)` on the CPU, mean over the scales; 1 = as often as by chance.
        """
        votes = self._scorer.votes(image_pyramid(images, self.plan.sizes))
        shares = torch.stack([vote_shares(v.probabilities, (1.0,))[0] for v in votes]).mean(dim=0)
        return shares.cpu() * votes[0].num_transforms

    def to_working_size(self, image: np.ndarray) -> Tensor:
        """One image `(H, W, 3)`, float32 in [0, 1], as a `(3, h, w)` tensor in [-1, 1] at the working size."""
        return resize(to_tensor([image]), self.plan.working_size)[0]

    def score_stream(
        self, images: Iterable[np.ndarray], batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Score images as they come, the next ones being read and resized meanwhile.

        Args:
            images: `(H, W, 3)` float32 arrays in [0, 1], of any sizes.
            batch_size: images in a batch; memory grows with it, not with the number of images.

        Yields:
            Shares `(F, S)` and map `(h, w)` or None of every image, in order.
        """
        working = (self.to_working_size(image) for image in images)
        with ThreadPoolExecutor(max_workers=1) as reader:
            upcoming = reader.submit(_take, working, batch_size)
            while batch := upcoming.result():
                upcoming = reader.submit(_take, working, batch_size)
                scores = self.score(torch.stack(batch))
                for b in range(len(batch)):
                    yield scores.shares[:, b], None if scores.maps is None else scores.maps[b]


def _take(items: Iterator[Tensor], count: int) -> list[Tensor]:
    """The next items of an iterator, at most `count`."""
    return list(itertools.islice(items, count))
