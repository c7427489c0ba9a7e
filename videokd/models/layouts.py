"""Which axis of a foreign network's features is which: told by a dry run, or asked for, never guessed.

A layout is an einops pattern over b (clips), t (steps of time), h, w (places) and c (channels), with the number of
tokens in front that have no place: "b c t h w", "(b t) c h w", "b (t h w) c".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import FeatureMap
from videokd.models.model import step_times

PATTERNS = (
    "b c t h w",
    "b t c h w",
    "b t h w c",
    "(b t) c h w",
    "(b t) h w c",
    "b (t h w) c",
    "b (h w t) c",
    "b t (h w) c",
    "(b t) (h w) c",
    "b t c",
    "b c t",
    "(b t) c",
    "b c",
)
"""Every layout that is known; those of five axes first."""

INPUT = ":input"
"""Behind a linear layer's name: what goes into it, instead of what comes out."""

MAX_PREFIX = 16
"""More tokens than this without a place are not looked for."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a feature map is in a foreign network, and how its axes lie."""

    module: str
    """Name of a module, as `named_modules()` has it; its output is the map. Of a linear layer "name:input" is what
    goes into it."""
    layout: str | None = None
    """One of `PATTERNS`; None has it told by a dry run."""
    steps: int | None = None
    """Steps of time, T', of tokens and folded frames; None has it told by a dry run."""
    prefix: int | None = None
    """Class and register tokens in front of the others; None has it told by a dry run."""

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in PATTERNS:
            raise ValueError(
                f"no layout {self.layout!r}{nearest(self.layout, PATTERNS)} (there are {', '.join(PATTERNS)})"
            )


@dataclass(frozen=True)
class Layout:
    """How the axes of one module's output lie."""

    pattern: str
    steps: int
    """T'; 1 where time is pooled away."""
    prefix: int = 0

    def map(self, values: Tensor, times: Tensor, *, clips: int) -> FeatureMap:
        """The feature map of the module's output; `times` (B, T') or, for pooled ones, anything (B, ...)."""
        grid = self.grid(values, clips=clips)
        if "t" not in self.pattern:
            times = times.mean(dim=1, keepdim=True)
        return FeatureMap(grid, times)

    def grid(self, values: Tensor, *, clips: int) -> Tensor:
        """(B, T', H', W', C)."""
        pattern = self.pattern
        if "h w)" in pattern or "w t)" in pattern:
            axis = values.ndim - 2
            values = values.narrow(axis, self.prefix, values.shape[axis] - self.prefix)
            places = values.shape[axis] // (1 if pattern in ("b t (h w) c", "(b t) (h w) c") else self.steps)
            side = round(places**0.5)
            sizes = {"h": side, "w": side}
        else:
            sizes = {}
        whole = [axis for axis in "bthwc" if axis in pattern]
        if "t" in pattern:
            sizes["t"] = self.steps
        if "b" in pattern:
            sizes["b"] = clips
        found = rearrange(values, f"{pattern} -> {' '.join(whole)}", **sizes)
        if "t" not in pattern:
            found = found.unsqueeze(1)
        return found if "h" in pattern else found[:, :, None, None, :]

    def said(self) -> str:
        """As people write it."""
        extra = f", {self.prefix} token{'s' * (self.prefix > 1)} apart" if self.prefix else ""
        return f"{self.pattern}{extra}"


@dataclass(frozen=True)
class DryRun:
    """What every module of a network put out, for one clip and for two, and with a flash at the end."""

    one: Mapping[str, Tensor]
    two: Mapping[str, tuple[int, ...]]
    """Shapes, of two clips."""
    flash: Mapping[str, Tensor]
    """Of the one clip, with another last frame."""
    grids: frozenset[tuple[int, int, int]]
    """(T', H', W') of every convolution's output: where tokens come from."""
    strides: Mapping[int, "Stride"]
    """Steps of time -> what makes fewer of them."""
    output: Any
    """What the network returned for two clips."""
    frames: int
    size: int

    def centres(self, times: Tensor, steps: int) -> Tensor:
        """Centre times (B, T') of a map's steps from those of the frames (B, T): by the strides on the way, or else of
        equally long tubelets."""
        found = times
        while found.shape[1] > steps and found.shape[1] in self.strides:
            stride = self.strides[found.shape[1]]
            found = step_times(found, stride=stride.stride, kernel=stride.kernel, padding=stride.padding)
        if found.shape[1] == steps:
            return found
        length = times.shape[1] // steps
        return step_times(times, stride=length, kernel=length, padding=0)[:, :steps]

    def layouts(self, module: str) -> list[Layout]:
        """Every layout that the module's output can have, after all that shapes and the flash tell; one if it is told.

        Raises:
            ValueError: for a module that is not there, or did not run.
        """
        if module not in self.one:
            raise ValueError(f"no module {module!r} put out a tensor in the dry run{nearest(module, self.one)}")
        found = self._by_shape(tuple(self.one[module].shape), self.two[module])
        if len(found) > 1:
            found = self._by_grid(found, self.one[module]) or found
        if len(found) > 1:
            found = self._by_flash(found, module)
        return found

    def told(self, module: str, tap: Tap | None = None) -> Layout:
        """The one layout of the module's output.

        Raises:
            ValueError: if there are several, naming them and what to write, or none.
        """
        candidates = self.layouts(module)
        if tap is not None:
            candidates = [one for one in candidates if _agrees(one, tap)]
        if len(candidates) == 1:
            return candidates[0]
        listed = "; ".join(
            f"Tap(module={module!r}, layout={one.pattern!r}, steps={one.steps}, prefix={one.prefix})"
            for one in candidates
        )
        shape = self.two[module]
        if candidates:
            raise ValueError(
                f"the layout of {module!r}, {shape} for two clips, can't be told apart; write one of: {listed}"
            )
        raise ValueError(
            f"{module!r} puts out {shape} for two clips of {self.frames} frames, which is no layout that is known: "
            f"{', '.join(PATTERNS)}"
        )

    def _by_shape(self, one: tuple[int, ...], two: tuple[int, ...]) -> list[Layout]:
        if not one or (2 * one[0], *one[1:]) != two:
            return []  # its first axis is not that of the clips
        return [layout for pattern in PATTERNS for layout in _readings(pattern, one, frames=self.frames)]

    def _by_grid(self, candidates: Sequence[Layout], values: Tensor) -> list[Layout]:
        """Those whose grid of steps and places some convolution of the same network has."""
        return [one for one in candidates if tuple(one.grid(values, clips=1).shape[1:4]) in self.grids]

    def _by_flash(self, candidates: Sequence[Layout], module: str) -> list[Layout]:
        """The one in which another last frame is felt in the last steps, if it is one."""
        change = (self.flash[module] - self.one[module]).float()
        shares = []
        for one in candidates:
            energy = one.grid(change, clips=1).square().sum(dim=(0, 2, 3, 4))
            late = max(1, len(energy) // 4)
            share = (energy[-late:].sum() / energy.sum().clamp(min=1e-30)).item()
            # How much more than its part the end has: 1 if the flash is felt everywhere alike.
            shares.append(share * len(energy) / late if len(energy) > 1 else 1.0)
        order = sorted(range(len(candidates)), key=lambda place: shares[place])
        best, second = order[-1], order[-2]
        clear = shares[best] > 2 and shares[best] > 2 * shares[second]
        return [candidates[best]] if clear else list(candidates)


class Stride(NamedTuple):
    """What a layer does to time."""

    stride: int
    kernel: int
    padding: int


def dry_run(network: nn.Module, call: Any, *, frames: int, size: int, device: torch.device) -> DryRun:
    """Runs `call(video)` on noise (B, 3, T, H, W), with every module of `network` watched.

    Raises:
        ValueError: if the network does not take the video, with what it said.
    """
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(1, 3, frames, size, size, generator=generator).to(device)
    flash = video.clone()
    flash[:, :, -1] = 3 * torch.randn(1, 3, size, size, generator=generator).to(device)
    grids: set[tuple[int, int, int]] = set()
    strides: dict[int, Stride] = {}
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                return
            seen[name] = tensor.detach().clone()
            if isinstance(module, nn.Linear):
                seen[f"{name}{INPUT}"] = inputs[0].detach().clone()
            if isinstance(module, nn.Conv3d) and tensor.ndim == 5:
                grids.add((tensor.shape[2], tensor.shape[3], tensor.shape[4]))
            if isinstance(module, nn.Conv2d) and tensor.ndim == 4:
                grids.add((tensor.shape[0], tensor.shape[2], tensor.shape[3]))
            if isinstance(module, nn.Conv3d | nn.MaxPool3d | nn.AvgPool3d) and tensor.ndim == 5:
                strided = Stride(*(_in_time(part) for part in (module.stride, module.kernel_size, module.padding)))
                before = inputs[0].shape[2]
                if strided.stride > 1 and tensor.shape[2] < before:
                    strides.setdefault(before, strided)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = call(video.repeat(2, 1, 1, 1, 1))
            two = {name: tuple(tensor.shape) for name, tensor in seen.items()}
            seen.clear()
            call(flash)
            flashed = dict(seen)
            seen.clear()
            grids.clear()
            call(video)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"{type(network).__name__} does not take a video of {frames} frames of {size} px: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return DryRun(seen, two, flashed, frozenset(grids), strides, output, frames, size)


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first tensor of several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return next((found for one in output if (found := first_tensor(one)) is not None), None)
    return None


def _agrees(layout: Layout, tap: Tap) -> bool:
    return (
        tap.layout in (None, layout.pattern)
        and tap.steps in (None, layout.steps)
        and tap.prefix in (None, layout.prefix)
    )


def _readings(pattern: str, shape: tuple[int, ...], *, frames: int) -> list[Layout]:
    """What a pattern can mean for a shape whose first axis was divided by the number of clips."""
    axes = _axes(pattern)
    if len(axes) != len(shape):
        return []
    sizes = dict(zip(axes, shape))
    folded = "(b t)" in sizes
    if not folded and sizes["b"] != 1:
        return []
    if "h" in sizes and sizes["h"] != sizes["w"]:
        return []
    steps = sizes.get("(b t)", sizes.get("t", 1))
    if not _divides(steps, frames) or (folded and steps == 1):
        return []
    tokens = next((axis for axis in axes if "h w" in axis and axis.startswith("(")), None)
    if tokens is None:
        return [Layout(pattern, steps)]
    found = []
    count = sizes[tokens]
    for taken in range(min(MAX_PREFIX, count - 1) + 1):
        for inner in range(1, frames + 1) if "t" in tokens else [1]:
            places, rest = divmod(count - taken, inner)
            side = round(places**0.5)
            if rest or not _divides(inner, frames) or side**2 != places or side < 2:
                continue
            # Both orders are one where there is one step.
            if inner == 1 and tokens == "(h w t)":
                continue
            found.append(Layout(pattern, inner if "t" in tokens else steps, taken))
    return found


def _in_time(setting: Any) -> int:
    """The part of a layer's setting that is of time."""
    return int(setting[0] if isinstance(setting, tuple) else setting)


def _axes(pattern: str) -> list[str]:
    axes: list[str] = []
    for word in pattern.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            axes.append("(")
        elif word == ")":
            axes[-1] += ")"
        elif axes and axes[-1].startswith("(") and not axes[-1].endswith(")"):
            axes[-1] += word if axes[-1] == "(" else f" {word}"
        else:
            axes.append(word)
    return axes


def _divides(steps: int, frames: int) -> bool:
    """Whether so many steps can come of so many frames: strides of 1, 2, 3, 4..., rounded up or down."""
    return steps <= frames and any(steps in (frames // s, -(-frames // s)) for s in range(1, frames + 1))
