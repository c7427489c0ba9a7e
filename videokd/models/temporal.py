"""How frames that were seen one by one come to know of each other, by clip and frame by frame."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

State = dict[str, Tensor]
"""What a causal model remembers of the frames that it has seen: plain tensors by name."""


class OverTime(nn.Module):
    """A layer that ties frames together. A causal one can run frame by frame: it keeps what it needs in `past`."""

    causal: bool = True
    streaming: bool = False
    """Whether what comes in goes on from `past`; set by `streaming`."""

    def __init__(self) -> None:
        super().__init__()
        self.past: State = {}


@contextmanager
def streaming(model: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[State]:
    """Runs the model's layers over time as a stream that goes on from `state`; fills in the state after it."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, OverTime)}
    after: State = {}
    strange = [key for key in state or {} if key.rpartition("/")[0] not in layers]
    if strange:
        raise ValueError(f"this is the state of another model: it has {', '.join(strange[:3])}")
    for name, layer in layers.items():
        layer.streaming = True
        head = f"{name}/"
        layer.past = {key[len(head) :]: value for key, value in (state or {}).items() if key.startswith(head)}
    try:
        yield after
    finally:
        for name, layer in layers.items():
            after.update({f"{name}/{key}": value for key, value in layer.past.items()})
            layer.streaming, layer.past = False, {}


class Shift(OverTime):
    """Frames that see some channels of their neighbours, then `conv` [TSM, Lin et al. 2019].

    Args:
        conv: what looks at the shifted frames; frames are folded into its batch.
        share: of the channels that comes from a neighbour, each.
        causal: only the frame before, as TSM does online; else the next one too.
        channels: where the channels are: 1, or -1 for tokens.
    """

    clips: int = 1
    """B, how many clips the frames are of; set by whoever folds them."""

    def __init__(self, conv: nn.Module, *, share: float, causal: bool = False, channels: int = 1) -> None:
        super().__init__()
        self.conv = conv
        self.share = share
        self.causal = causal
        self.channels = channels

    def forward(self, frames: Tensor) -> Tensor:
        """(B*T, C, ...) -> what the convolution makes of it."""
        # Channels that lie last in memory stay there: the convolution would have to bring them back.
        are_last = frames.ndim == 4 and self.channels == 1 and _channels_lie_last(frames)
        dim = -1 if are_last else self.channels + 1 if self.channels > 0 else self.channels
        video = (frames.movedim(1, -1) if are_last else frames).unflatten(0, (self.clips, -1))  # (B, T, C, ...)
        moved = int(video.shape[dim] * self.share)
        if self.causal:
            from_last, rest = video.split([moved, video.shape[dim] - moved], dim=dim)
            parts = [self._last(from_last, dim), rest]
        else:
            from_next, from_last, rest = video.split([moved, moved, video.shape[dim] - 2 * moved], dim=dim)
            following = torch.cat([from_next[:, 1:], torch.zeros_like(from_next[:, :1])], dim=1)
            parts = [following, self._last(from_last, dim), rest]
        shifted = torch.cat(parts, dim=dim).flatten(0, 1)
        found: Tensor = self.conv(shifted.movedim(-1, 1) if are_last else shifted)
        return found

    def _last(self, video: Tensor, dim: int) -> Tensor:
        """Each frame's last one, of a video whose channels are in `dim`; before the first there is nothing, or what
        the stream had, whose channels are where `channels` says."""
        there = self.channels + 1 if self.channels > 0 else self.channels
        before = (
            self.past["last"].movedim(there, dim) if self.streaming and self.past else torch.zeros_like(video[:, :1])
        )
        if self.streaming:
            self.past = {"last": video[:, -1:].movedim(dim, there)}
        return torch.cat([before, video[:, :-1]], dim=1)


class TemporalConv(OverTime):
    """Adds to every frame's features a depthwise convolution over time.

    Args:
        width: channels.
        kernel: frames that it sees; odd unless it is causal.
        causal: only this frame and those before it.
        silent: begin as if it were not there, for pretrained features.
        activation: of what it adds. One is needed before a mean over time, which a convolution alone leaves as it is.
    """

    def __init__(
        self,
        width: int,
        *,
        kernel: int = 3,
        causal: bool = False,
        silent: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation or nn.Identity()
        self.causal = causal
        self.reach = kernel - 1
        padding = 0 if causal else self.reach // 2
        self.conv = nn.Conv1d(width, width, kernel, padding=padding, groups=width)
        if silent:
            nn.init.zeros_(self.conv.weight)
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)

    def forward(self, frames: Tensor, times: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        sequence = frames.transpose(1, 2)
        if self.causal:
            before = self.past.get("frames") if self.streaming else None
            if before is None:
                before = sequence.new_zeros((*sequence.shape[:2], self.reach))
            sequence = torch.cat([before, sequence], dim=2)
            if self.streaming:
                self.past = {"frames": sequence[:, :, sequence.shape[2] - self.reach :]}
        over_time: Tensor = self.activation(self.conv(sequence)).transpose(1, 2)
        return frames + over_time


class StageConv(nn.Module):
    """A stage of a 2D backbone, and a temporal convolution of what comes out, at every place of the map."""

    clips: int = 1
    """B, how many clips the frames are of; set by whoever folds them."""

    def __init__(self, stage: nn.Module, width: int, *, causal: bool) -> None:
        super().__init__()
        self.stage = stage
        # Not ReLU, whose gradient is nothing where all begins as nothing.
        self.over_time = TemporalConv(width, causal=causal, silent=True, activation=nn.GELU())

    def forward(self, frames: Tensor) -> Tensor:
        """(B*T, ...) -> (B*T, C, H, W)."""
        values: Tensor = self.stage(frames)
        height, width = values.shape[2:]
        places = rearrange(values, "(b t) c h w -> (b h w) t c", b=self.clips)
        after: Tensor = rearrange(self.over_time(places), "(b h w) t c -> (b t) c h w", h=height, w=width)
        return after


class Recurrence(OverTime):
    """Adds to every frame's features what a gated recurrent unit [Cho et al. 2014] has made of those up to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cell = nn.GRU(width, width, batch_first=True)

    def forward(self, frames: Tensor, times: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        before = self.past.get("hidden") if self.streaming else None
        # The recurrence runs over its own states: B first between the steps, as all of a state.
        after, hidden = self.cell(self.norm(frames), None if before is None else before.transpose(0, 1).contiguous())
        if self.streaming:
            self.past = {"hidden": hidden.transpose(0, 1)}
        sum_: Tensor = frames + after
        return sum_


class TemporalAttention(OverTime):
    """A transformer block over frames [Vaswani et al. 2017] that knows of time by its seconds.

    Queries and keys are turned by angles in proportion to their seconds, at periods from a quarter of a second to a
    minute [rotary embedding, Su et al. 2021], so that attention depends on how far apart frames are, whatever the
    frame rate and wherever the clip begins.

    Args:
        width: channels; a multiple of twice the heads.
        heads: of the attention.
        window: T; in a stream, how many frames back it sees.
        causal: no frame sees later ones.
    """

    speeds: Tensor  # float64 (pairs,), radians a second

    def __init__(self, width: int, *, heads: int, window: int, causal: bool) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"{heads} heads need a width that {2 * heads} divides, got {width}")
        self.causal, self.heads, self.window = causal, heads, window
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        pairs = width // heads // 2
        periods = torch.logspace(math.log10(0.25), math.log10(64.0), pairs, dtype=torch.float64)
        self.register_buffer("speeds", 2 * math.pi / periods, persistent=False)

    def forward(self, frames: Tensor, times: Tensor) -> Tensor:
        """(B, T, C) at `times` (B, T) in seconds -> (B, T, C)."""
        query, key, value = rearrange(self.qkv(self.norm1(frames)), "b t (n h c) -> n b h t c", n=3, h=self.heads)
        # In double precision: an hour into a video, a single one is off by a good part of the fastest turn.
        turns = times.double()[:, None, :, None] * self.speeds
        cosine, sine = turns.cos().to(query.dtype), turns.sin().to(query.dtype)
        query, key = _turned(query, cosine, sine), _turned(key, cosine, sine)
        if self.streaming:
            if "key" in self.past:
                key = torch.cat([self.past["key"], key], dim=2)
                value = torch.cat([self.past["value"], value], dim=2)
            first = max(key.shape[2] - self.window + 1, 0)
            self.past = {"key": key[:, :, first:], "value": value[:, :, first:]}
        mask = None
        if self.causal:
            now = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=key.device)[:, None]
            then = torch.arange(key.shape[2], device=key.device)
            mask = (then <= now) & (then > now - self.window)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        frames = frames + self.project(rearrange(mixed, "b h t c -> b t (h c)"))
        after: Tensor = frames + self.mlp(self.norm2(frames))
        return after


class MeanOverTime(OverTime):
    """The mean over the frames of a clip; of a stream, over its last `window` frames."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C) -> (B, C)."""
        if self.streaming:
            if "frames" in self.past:
                frames = torch.cat([self.past["frames"], frames], dim=1)
            frames = frames[:, max(frames.shape[1] - self.window, 0) :]
            self.past = {"frames": frames[:, 1:] if frames.shape[1] == self.window else frames}
        return frames.mean(dim=1)


def _turned(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Pairs of channels (B, h, T, c), turned by their frame's angles (B, 1, T, c/2)."""
    one, other = vectors.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)


def _channels_lie_last(frames: Tensor) -> bool:
    return frames.is_contiguous(memory_format=torch.channels_last) and not frames.is_contiguous()
