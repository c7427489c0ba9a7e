"""Near duplicates: videos that look the same although their files differ, such as a copy that was encoded again."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 12
MOMENTS = 4
"""Frames of a video that are compared, in the middle of equal parts of it."""

Fingerprint = NDArray[np.uint8]
"""Mean grey levels of cells: (MOMENTS, SIDE, SIDE)."""

_LARGEST_DIFFERENCE = 24
"""Grey levels by which a cell of two copies may differ. Of 300 clips of surveillance cameras, copies at half the size
or at a high compression differ by at most 26 (nine of ten by 21), and of 44850 different pairs none by less than 31."""
_SHARE_OF_DEVIATION = 0.6
"""The same, as a share of the standard deviation of the cells: dark and plain videos differ by little."""
_FLATTEST = 2.0
"""Standard deviation of cells below which nothing can be said: black or white clips."""


def moments(num_frames: int) -> list[int]:
    """Return the numbers of the frames to compare, ascending."""
    return [(2 * part + 1) * num_frames // (2 * MOMENTS) for part in range(MOMENTS)]


def grey_cells(picture: Tensor) -> Fingerprint:
    """Return the mean grey levels (SIDE, SIDE) of a picture (H, W) of grey levels from 0 to 255."""
    return F.adaptive_avg_pool2d(picture[None].float(), SIDE)[0].round().to(torch.uint8).numpy()


def near_duplicates(prints: Sequence[Fingerprint], parts: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Yield pairs of places in `prints` that look the same and are of different `parts`.

    Moving and static content count alike: two clips of one static camera are told apart by whatever moves in them.

    Args:
        prints: of videos.
        parts: of the same length, such as the split of each video.
    """
    if not prints:
        return
    cells = np.stack(prints).astype(np.float32)
    deviation = cells.reshape(len(cells), -1).std(axis=1)
    # Means of cells differ by no more than cells do: most pairs are told apart by sixteen of them.
    half = SIDE // 2
    coarse = cells.reshape(len(cells), MOMENTS, 2, half, 2, half).mean(axis=(3, 5)).reshape(len(cells), -1)
    part = np.unique([str(one) for one in parts], return_inverse=True)[1]
    limit = np.minimum(_LARGEST_DIFFERENCE, _SHARE_OF_DEVIATION * deviation)
    tells = deviation >= _FLATTEST
    for one in np.flatnonzero(tells):
        others = np.arange(one + 1, len(cells))
        others = others[tells[others] & (part[others] != part[one])]
        limits = np.minimum(limit[one], limit[others])
        close = (np.abs(coarse[others] - coarse[one]) <= limits[:, None]).all(axis=1)
        others, limits = others[close], limits[close]
        same = np.abs(cells[others] - cells[one]).max(axis=(1, 2, 3), initial=0) <= limits
        yield from ((int(one), int(other)) for other in others[same])
