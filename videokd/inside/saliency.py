"""What a network looks at, over space and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from videokd.clips.dataset import ClipDataset
from videokd.models import Model

Method = Literal["grad-cam", "gradient x input"]


@dataclass(frozen=True)
class Strip:
    """One video's frames as a model sees them, and where in them it looks."""

    id: str
    frames: NDArray[np.uint8]  # (T, H, W, 3), RGB
    saliency: NDArray[np.float32]  # (T, H, W), in [0, 1]; 1 is the clip's most salient pixel
    times: NDArray[np.float32]  # (T,), seconds in the video
    explained: str  # name of the class whose logit is explained
    method: Method


def strips(
    model: Model[Any], dataset: ClipDataset, ids: Sequence[str], *, method: Method | None = None
) -> list[Strip]:
    """Frames of some videos and where the model looks in them for the class that it predicts, in the order of `ids`.

    Args:
        model: on the device where it is to run.
        dataset: made with `specs={"student": model.input}` and without augmentation.
        ids: names of videos of the data set (`Video.id`).
        method: None takes Grad-CAM where the model has maps for it, else gradient x input.

    Returns:
        A strip for each id. An empty list for a model that does not look at frames, or tells no classes apart.

    Raises:
        ValueError: for an id that the data set does not have.
        VideoError: for a video that can't be read.
    """
    raise NotImplementedError
