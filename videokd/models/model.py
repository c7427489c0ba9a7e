"""What every model is to the rest of the project: a view of a clip in, logits and named feature maps out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Clip, FeatureMap, InputSpec, Outputs, Sound, SoundSpec, ViewSpec
from videokd.models.temporal import State, streaming


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The full description of a model, apart from its classes and its weights."""

    fits_any_classes: ClassVar[bool] = False
    """Whether `build` makes a model that needs no training for the classes that it is given."""

    def __post_init__(self) -> None:
        drop_path = getattr(self, "drop_path", None)
        if drop_path is not None and not 0 <= drop_path < 1:
            raise ValueError(f"drop_path lies in [0, 1), got {drop_path}")

    @property
    def is_published(self) -> bool:
        """Whether it names weights that somebody trained."""
        return getattr(self, "weights", None) is not None

    @abstractmethod
    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "Model[Any]":
        """The model.

        Args:
            classes: what its head tells apart; a head for other classes is resized, with a warning. None keeps the
                head and the classes of the published weights.
            pretrained: whether its published weights are loaded.

        Raises:
            ValueError: for an input that the architecture can't take, weights that can't be had or belong to another
                architecture, or `classes` None where nothing published names them.
        """


Seen = TypeVar("Seen")


class Model(nn.Module, ABC, Generic[Seen]):
    """A network with its own door: it takes a view as the loader makes it, and normalises by its own input spec.

    Every model offers the taps "frames" (the last map before time is pooled away) and "clip" (pooled, before the
    head), and the stages that `taps` names.

    Args:
        config: what makes the model again.
        classes: what its head tells apart.
        taps: its stages.
        input: what the loader is to make for it; None for a model that takes the labels.
    """

    has_logits: bool = True
    """Whether it tells classes apart."""

    def __init__(
        self, config: ModelConfig, classes: Sequence[str], *, taps: Sequence[str], input: ViewSpec | None
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(classes)
        self.taps = (*taps, "frames", "clip")
        self.input = input
        # Where the model is, whether or not its first parameter is a real one.
        self.register_buffer("_here", torch.zeros(()), persistent=False)

    @property
    def trunk(self) -> nn.Module:
        """The part that has its layers: published weights are for it, and all else is new, or its head."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        here = self._here
        assert isinstance(here, Tensor)
        return here.device

    @abstractmethod
    def forward(self, view: Seen, taps: Sequence[str] = ()) -> Outputs:
        """Logits (B, K) and the feature maps named in `taps`.

        Raises:
            ValueError: for a view of another shape than the input spec's, or a tap that the model does not have.
        """

    @abstractmethod
    def blank(self, batch: int = 1) -> Seen:
        """A view of nothing, for dry runs: black frames, or silence."""

    def check_taps(self, taps: Sequence[str]) -> None:
        """Raises a `ValueError` with the nearest name for a tap that the model does not have."""
        for tap in taps:
            if tap not in self.taps:
                raise ValueError(f"{type(self).__name__} has no tap {tap!r}{nearest(tap, self.taps)}")


class VideoModel(Model[Clip]):
    """A model that looks at frames: bytes until its door, where it makes them float and normalises them."""

    mean: Tensor
    std: Tensor
    input: InputSpec
    causal: bool = False
    """Whether no frame knows of later ones, so that `step` gives what the whole clip gives."""

    def __init__(self, config: ModelConfig, classes: Sequence[str], *, taps: Sequence[str], input: InputSpec) -> None:
        super().__init__(config, classes, taps=taps, input=input)
        self.register_buffer("mean", torch.tensor(input.mean).view(1, 3, 1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(input.std).view(1, 3, 1, 1, 1) * 255, persistent=False)

    def forward(self, view: Clip, taps: Sequence[str] = ()) -> Outputs:
        """See `Model.forward`."""
        self.check_taps(taps)
        spec = self.input
        if view.frames.shape[1:] != (spec.frames, 3, spec.size, spec.size):
            raise ValueError(
                f"{type(self).__name__} takes clips (B, {spec.frames}, 3, {spec.size}, {spec.size}), "
                f"got {tuple(view.frames.shape)}"
            )
        return self.run(self.entered(view.frames), view.times, taps)

    def step(self, view: Clip, state: State | None = None, taps: Sequence[str] = ()) -> tuple[Outputs, State]:
        """What the model says when the next frames have come: of a causal model, frame by frame.

        Args:
            view: the next frames, (B, t, 3, H, W) with t of 1 or more; times go on rising.
            state: what the last step returned; None at the beginning of a stream.
            taps: as in `forward`; maps hold the new frames alone.

        Returns:
            Outputs after these frames: at the end of a clip, what `forward` says of the whole clip. And the state for
            the next step, plain tensors by name (detached only under `torch.no_grad`). Time is averaged over the last
            `input.frames` frames, of MoViNet over all.

        Raises:
            ValueError: if the model is not causal, for frames of another size, or the state of another model.
        """
        self.check_taps(taps)
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} sees later frames and can't run frame by frame: build it with causal=True, "
                "if its config has that"
            )
        spec = self.input
        if view.frames.shape[2:] != (3, spec.size, spec.size):
            raise ValueError(
                f"{type(self).__name__} takes frames (B, t, 3, {spec.size}, {spec.size}), "
                f"got {tuple(view.frames.shape)}"
            )
        with streaming(self, state) as after:
            outputs = self.run(self.entered(view.frames), view.times, taps)
        return outputs, after

    @abstractmethod
    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """The network on a normalised video (B, 3, T, H, W) with frame times (B, T)."""

    def blank(self, batch: int = 1) -> Clip:
        """Black frames, one a second."""
        spec = self.input
        frames = torch.zeros(batch, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8, device=self.device)
        return Clip(frames, torch.arange(spec.frames, dtype=torch.float32, device=self.device).repeat(batch, 1))

    def entered(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 255], as floats that are normalised: (B, 3, T, H, W)."""
        # Convolutions are faster with the channels last; what comes after keeps the layout. Whole rows of pixels are
        # normalised at once: three numbers at a time are slow.
        width = frames.shape[-1]
        pixels = rearrange(frames, "b t c h w -> b t h w c")
        rows = pixels.to(self.mean.dtype, memory_format=torch.contiguous_format).flatten(3)
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rearrange(rows, "b t h (w c) -> b c t h w", w=width)


class SoundModel(Model[Sound]):
    """A model that listens. Of a clip without sound it says nothing: `Outputs.known` is False there."""

    input: SoundSpec

    def forward(self, view: Sound, taps: Sequence[str] = ()) -> Outputs:
        """See `Model.forward`."""
        self.check_taps(taps)
        if view.samples.shape[1] != self.input.samples:
            raise ValueError(
                f"{type(self).__name__} takes sounds (B, {self.input.samples}), got {tuple(view.samples.shape)}"
            )
        outputs = self.run(view.samples, view.start, taps)
        return Outputs(outputs.logits, outputs.features, view.heard)

    @abstractmethod
    def run(self, samples: Tensor, start: Tensor, taps: Sequence[str]) -> Outputs:
        """The network on mono sound (B, S) in [-1, 1] whose first sample is at `start` (B,) seconds."""

    def blank(self, batch: int = 1) -> Sound:
        """Silence."""
        heard = torch.ones(batch, dtype=torch.bool, device=self.device)
        samples = torch.zeros(batch, self.input.samples, device=self.device)
        return Sound(samples, torch.zeros(batch, device=self.device), heard)


def unavailable(weights: str, error: Exception) -> ValueError:
    """What to say of published weights that could not be fetched or read."""
    # torch says ten lines, in colours, of a file that holds more than tensors.
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
    if "weights_only" in str(error):
        said = "it holds more than tensors by name: save the network's state_dict() and nothing else"
    return ValueError(
        f"the weights {weights!r} could not be had: {said}. Name a local file, or, of a student, train from scratch "
        "(--student.weights None)"
    )


def named(classes: Sequence[str] | None, published: Sequence[str] | None, *, of: str) -> tuple[str, ...]:
    """The classes to build for: those asked for, or the published ones.

    Raises:
        ValueError: if none are asked for and none are published.
    """
    if classes is None and published is None:
        raise ValueError(f"{of} has no classes of its own to keep: name some, or weights that have them")
    return tuple(classes if classes is not None else published or ())


def nameless(classes: Sequence[str]) -> bool:
    """Whether they are numbers alone, as weights that tell nothing of their classes have them ("3", "LABEL_3")."""
    return bool(classes) and all(name.removeprefix("LABEL_") == str(number) for number, name in enumerate(classes))


def conv_map(values: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of a 3D convolution's output (B, C, T', H', W') and the times of its steps (B, T')."""
    return FeatureMap(rearrange(values, "b c t h w -> b t h w c"), times)


def folded_map(values: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of frames folded into the batch (B*T, C, H', W') and their times (B, T)."""
    return FeatureMap(rearrange(values, "(b t) c h w -> b t h w c", t=times.shape[1]), times)


def token_map(tokens: Tensor, times: Tensor, *, prefix: int, height: int | None = None) -> FeatureMap:
    """A feature map of tokens (B, prefix + T'*H'*W', C) ordered by time, row, column; the first `prefix` are apart.

    The grid is square unless its height is given.
    """
    steps = times.shape[1]
    places = (tokens.shape[1] - prefix) // steps
    height = height or round(places**0.5)
    grid = rearrange(tokens[:, prefix:], "b (t h w) c -> b t h w c", t=steps, h=height)
    return FeatureMap(grid, times)


def clip_map(vector: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of one vector per clip (B, C), at the middle of the frame times (B, T)."""
    return FeatureMap(vector[:, None, None, None, :], times.mean(dim=1, keepdim=True))


def frame_map(frames: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of one vector per frame (B, T, C) and the frame times (B, T)."""
    return FeatureMap(frames[:, :, None, None, :], times)


def step_times(times: Tensor, *, stride: int, kernel: int = 3, padding: int = 1) -> Tensor:
    """Centre times (B, T') of a convolution's output steps, from those of its input steps (B, T).

    Step j of the output is centred on the input position j x stride - padding + (kernel - 1) / 2.
    """
    num_outputs = (times.shape[1] + 2 * padding - kernel) // stride + 1
    return at_positions(times, torch.arange(num_outputs, device=times.device) * stride - padding + (kernel - 1) / 2)


def at_positions(times: Tensor, positions: Tensor) -> Tensor:
    """Times (B, N) at positions (N,) between steps at `times` (B, T): 0.5 is half-way between the first two."""
    positions = positions.clamp(0, times.shape[1] - 1)
    low, high = positions.floor().long(), positions.ceil().long()
    return torch.lerp(times[:, low], times[:, high], (positions - low).to(times.dtype))
