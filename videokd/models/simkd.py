"""SimKD: a student that answers through its teacher's classifier, behind a projector that stays with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.contracts import FeatureMap, InputSpec, Outputs
from videokd.models.checkpoint import check_classes
from videokd.models.head import clip_by_frames, linear_head
from videokd.models.model import Model, ModelConfig, VideoModel


@dataclass(frozen=True, kw_only=True)
class SimKD(ModelConfig):
    """A student whose last map is projected to the teacher's width and goes through the teacher's last layer [SimKD,
    Chen et al. 2022, arXiv 2203.14001]. Train it by the distance of the projected features to the teacher's alone:

        FrameFeatures(distance="mse", targets="raw", connector=None)

    The projector (1x1, 3x3 over space, 1x1 convolutions) is part of the model that is shipped, and of its parameters
    and multiply-accumulates; so is the last layer, which does not learn.
    """

    student: ModelConfig
    """The student that is wrapped; its own head is left out."""
    width: int
    """Channels of the teacher's tap "clip"."""
    teacher: str = "teacher"
    """Which teacher of the recipe the last layer is taken from."""
    factor: int = 2
    """The projector is this many times narrower than the teacher."""
    relu: bool = True
    """Whether the projector ends in a ReLU, as published: for teachers whose tap "clip" comes after one. False for
    transformers."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.factor < 1 or self.factor > self.width:
            raise ValueError(f"width and factor are at least 1, factor at most width, got {self.width}, {self.factor}")

    @property
    def input(self) -> InputSpec:
        """What the wrapped student wants to see."""
        spec = getattr(self.student, "input", None)
        if not isinstance(spec, InputSpec):
            raise ValueError(f"SimKD wraps a student that looks at frames, and {type(self.student).__name__} does not")
        return spec

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "SimKDModel":
        """The model, with a random last layer until it takes the teacher's."""
        student = self.student.build(classes, pretrained=pretrained)
        if not isinstance(student, VideoModel):
            raise ValueError(f"SimKD wraps a student that looks at frames, and {type(student).__name__} does not")
        return SimKDModel(self, student)


class SimKDModel(VideoModel):
    """See `SimKD`. Taps: the student's stages; "frames", its last map projected; "clip", the mean of that."""

    def __init__(self, config: SimKD, student: VideoModel) -> None:
        stages = [tap for tap in student.taps if tap not in ("frames", "clip")]
        super().__init__(config, student.classes, taps=stages, input=student.input)
        if not isinstance(getattr(student, "head", None), nn.Module):
            raise ValueError(
                f"SimKD leaves out the head of its student, and {type(student).__name__} has none so named"
            )
        self.width, self.teacher = config.width, config.teacher
        with torch.no_grad():
            inputs = student.eval()(student.blank(), ("frames",)).features["frames"].values.shape[-1]
        self.student = student.train()
        self.student.head = nn.Identity()  # it has no part here, and is neither counted nor saved
        between = config.width // config.factor
        self.projector = nn.Sequential(
            _conv(inputs, between, 1), _conv(between, between, 3), _conv(between, config.width, 1, relu=config.relu)
        )
        self.relu = config.relu
        self.head = nn.Linear(config.width, len(self.classes)).requires_grad_(False)

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        return self.student.trunk

    def take_head_of(self, teacher: Model[Any], taps: Collection[str]) -> None:
        """Takes the last layer of a teacher whose `taps` the student is compared with.

        Raises:
            ValueError: if it is of other classes or another width, or the student could not give what that layer takes.
        """
        who = f"teacher {self.teacher!r}"
        check_classes(teacher.classes, self.classes, model=who, data="the student")
        weight, bias = linear_head(teacher)
        clip, frames = clip_by_frames(teacher)
        if self.relu and (clip < 0).any():
            raise ValueError(
                f"SimKD's projector ends in a ReLU, and tap 'clip' of {who} has values below 0: set relu to False"
            )
        if "frames" in taps and (clip.shape != frames.shape or (clip - frames).abs().max() > 1e-3 * clip.abs().max()):
            raise ValueError(
                f"the last layer of {who} takes its tap 'clip', which is not the mean of its tap 'frames': compare "
                '"clip", ClipFeatures(distance="mse", targets="raw", connector=None)'
            )
        self.take_head(weight, bias)

    def take_head(self, weight: Tensor, bias: Tensor) -> None:
        """Takes a teacher's last layer: weight (K, C), bias (K,).

        Raises:
            ValueError: if it is of another width.
        """
        if weight.shape != self.head.weight.shape:
            raise ValueError(
                f"SimKD projects to {self.width} channels and {len(self.classes)} classes, and the last layer of "
                f"teacher {self.teacher!r} has {weight.shape[1]} and {weight.shape[0]}: set width to {weight.shape[1]}"
            )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        inner = self.student.run(video, times, tuple({*taps, "frames"} - {"clip"}))
        last = inner.features["frames"]
        folded = rearrange(last.values, "b t h w c -> (b t) c h w")
        projected = rearrange(self.projector(folded), "(b t) c h w -> b t h w c", b=len(times))
        frames = FeatureMap(projected, last.times)
        clip = frames.pooled("clip")
        maps = {**inner.features, "frames": frames, "clip": clip}
        return Outputs(self.head(clip.values[:, 0, 0, 0]), {tap: maps[tap] for tap in taps})


def _conv(inputs: int, outputs: int, kernel: int, *, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        *([nn.ReLU(inplace=True)] if relu else []),
    )
