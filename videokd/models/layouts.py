"""Which axis of a foreign network's features is which: told by a dry run, or asked for, never guessed.

A layout is an einops pattern over b (clips), t (steps of time), h, w (places) and c (channels), with the number of
tokens in front that have no place: "b c t h w", "(b t) c h w", "b (t h w) c".
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import FeatureMap
from videokd.models.model import at_positions

PATTERNS = (
    "b c t h w",
    "b t c h w",
    "b t h w c",
    "(b t) c h w",
    "(b t) h w c",
    "b c h w",
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

_CLEAR, _FELT = 1 / 3, 0.2
"""How much more than its part the end of a map must have of what is changed at the end of the clip, and its beginning
of what is changed at the beginning, from 0 (its part alone) to 1 (all of it): to choose between layouts, and for a
layout to be believed at all."""

_ROOM = 1 << 28
"""Bytes of modules' outputs that a dry run keeps at a time."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a feature map is in a foreign network, and how its axes lie; what is None is told by a dry run."""

    module: str
    """Name of a module, as `named_modules()` has it; its output is the map. Of a linear layer "name:input" is what
    goes into it."""
    layout: str | None = None
    """One of `PATTERNS`."""
    steps: int | None = None
    """Steps of time, T', of tokens and folded frames."""
    prefix: int | None = None
    """Class and register tokens in front of the others."""
    height: int | None = None
    """Rows of tokens; None where the grid is square, or that of one of the network's convolutions."""
    centres: tuple[float, ...] | None = None
    """Frame of the clip, counted from 0, on which each step is centred."""

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
    height: int | None = None
    """Rows of tokens; None where there are none."""
    centres: tuple[float, ...] = ()
    """Frame of the clip on which each step is centred."""

    def map(self, values: Tensor, times: Tensor, *, clips: int) -> FeatureMap:
        """The feature map of the module's output, of clips whose frames are at `times` (B, T)."""
        grid = self.grid(values, clips=clips)
        centres = torch.tensor(self.centres, device=times.device)
        return FeatureMap(grid, at_positions(times, centres))

    def grid(self, values: Tensor, *, clips: int) -> Tensor:
        """(B, T', H', W', C)."""
        sizes = {}
        if self.height is not None:
            axis = values.ndim - 2
            values = values.narrow(axis, self.prefix, values.shape[axis] - self.prefix)
            sizes["h"] = self.height
        if "t" in self.pattern:
            sizes["t"] = self.steps
        if "b" in self.pattern:
            sizes["b"] = clips
        whole = [axis for axis in "bthwc" if axis in self.pattern]
        found = rearrange(values, f"{self.pattern} -> {' '.join(whole)}", **sizes)
        if "t" not in self.pattern:
            found = found.unsqueeze(1)
        return found if "h" in self.pattern else found[:, :, None, None, :]

    def said(self) -> str:
        """As people write it."""
        return f"{self.pattern}, {self.prefix} token{'s' * (self.prefix > 1)} apart" if self.prefix else self.pattern

    def written(self, module: str) -> str:
        """As a recipe has it."""
        tokens = f", prefix={self.prefix}, height={self.height}" if self.height is not None else ""
        steps = f", steps={self.steps}" if "t" in self.pattern else ""
        return f"Tap(module={module!r}, layout={self.pattern!r}{steps}{tokens})"


class Values(NamedTuple):
    """What one module put out, of one clip and of variants of it."""

    plain: Tensor
    late: Tensor
    """With another last quarter of its frames."""
    early: Tensor
    """With another corner, at the top left, in the first quarter."""
    both: Tensor
    """Of two clips: the plain one and the late one."""


class Told(NamedTuple):
    """Layouts that a module's output can have, and whether there is one beyond doubt."""

    layouts: list[Layout]
    sure: bool


@dataclass(frozen=True)
class DryRun:
    """What a network does with two clips: shapes, grids and strides; and it again on variants of one clip."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of every module's output for two clips, in the order in which modules run."""
    grids: frozenset[tuple[int, int, int]]
    """(T', H', W') of every convolution's output: where tokens come from."""
    strides: Mapping[int, frozenset[tuple[float, ...]]]
    """Steps of time -> where on them the steps are centred that some layer makes of them."""
    output: Any
    """What the network returned for two clips."""
    frames: int
    size: int
    values: Callable[[Sequence[str]], Mapping[str, Values]]
    """What modules put out."""

    def centres(self, steps: int) -> tuple[float, ...] | None:
        """Frame on which each of so many steps is centred, by the strides on the way; None if these do not tell."""
        found = torch.arange(self.frames, dtype=torch.float64)[None]
        while found.shape[1] > steps and len(ways := self.strides.get(found.shape[1], frozenset())) == 1:
            (positions,) = ways
            found = at_positions(found, torch.tensor(positions, dtype=torch.float64))
        if found.shape[1] == steps:
            return tuple(found[0].tolist())
        return None

    def several(self, modules: Sequence[str]) -> Iterator[tuple[str, Told]]:
        """The layouts of many modules, a few of them run at a time."""
        readings = [(module, self._readings(self.shapes[module])) for module in modules]
        for (module, _), told in zip(readings, self._believed(readings)):
            yield module, told

    def told(self, taps: Mapping[str, Tap]) -> dict[str, Layout]:
        """The one layout of each tap: what is written is believed where it can be so, the rest must be sure.

        Raises:
            ValueError: for a module that is not there, or did not run; a layout that is not sure, or none; steps whose
                place in time can't be told: with what to write.
        """
        for tap in taps.values():
            if tap.module not in self.shapes:
                raise ValueError(
                    f"no module {tap.module!r} put out a tensor in the dry run{nearest(tap.module, self.shapes)}"
                )
        readings = {name: self._readings(self.shapes[tap.module], tap) for name, tap in taps.items()}
        open_ones = [name for name, tap in taps.items() if tap.layout is None or len(readings[name]) != 1]
        told = self._believed([(taps[name].module, readings[name]) for name in open_ones])
        found = dict(zip(open_ones, told))
        return {name: self._one(tap, readings[name], found.get(name)) for name, tap in taps.items()}

    def _one(self, tap: Tap, readings: Sequence[Layout], told: Told | None) -> Layout:
        shape = self.shapes[tap.module]
        if not readings:
            raise ValueError(
                f"{tap.module!r} puts out {shape} for two clips of {self.frames} frames, which is no layout that is "
                f"known{'' if tap == Tap(module=tap.module) else ' and agrees with what is written of it'}: "
                f"{', '.join(PATTERNS)}"
            )
        if told is not None:
            if len(told.layouts) != 1 or (tap.layout is None and not told.sure):
                listed = "; ".join(one.written(tap.module) for one in (told.layouts or readings)[:8])
                raise ValueError(
                    f"the layout of {tap.module!r}, {shape} for two clips, can't be told apart; write one of: {listed}"
                )
            readings = told.layouts
        (layout,) = readings
        return replace(layout, centres=self._centres_of(tap, layout))

    def _centres_of(self, tap: Tap, layout: Layout) -> tuple[float, ...]:
        if "t" not in layout.pattern and tap.centres is None:
            return ((self.frames - 1) / 2,)
        steps = layout.steps
        centres = tap.centres if tap.centres is not None else self.centres(steps)
        if centres is None:
            even = self.frames / steps
            example = tuple(round(even * (step + 0.5) - 0.5, 3) for step in range(steps))
            raise ValueError(
                f"{self.frames} frames became {steps} steps before {tap.module!r}, by no convolution or pooling that "
                f"tells when they are: write it, as in Tap(module={tap.module!r}, centres={example}) for steps that "
                "are equally long; numbers are frames of the clip, from 0"
            )
        if len(centres) != steps or not all(0 <= centre <= self.frames - 1 for centre in centres):
            raise ValueError(
                f"{tap.module!r} has {steps} steps, so its centres are so many frames from 0 to {self.frames - 1}, "
                f"got {centres}"
            )
        return centres

    def _believed(self, readings: Sequence[tuple[str, Sequence[Layout]]]) -> Iterator[Told]:
        """What variants of the clip leave of the readings of modules, a few of them run at a time."""
        waiting: list[tuple[str, Sequence[Layout]]] = []
        room = _ROOM
        for module, layouts in readings:
            size = 4 * 3 * torch.Size(self.shapes[module]).numel()
            if waiting and size > room:
                yield from self._run(waiting)
                waiting, room = [], _ROOM
            waiting.append((module, layouts))
            room -= size
        yield from self._run(waiting)

    def _run(self, readings: Sequence[tuple[str, Sequence[Layout]]]) -> Iterator[Told]:
        modules = [module for module, layouts in readings if layouts]
        values = self.values(modules) if modules else {}
        for module, layouts in readings:
            yield self._left(layouts, values[module]) if layouts else Told([], False)

    def _left(self, layouts: Sequence[Layout], values: Values) -> Told:
        """All that convolutions and variants of the clip tell."""
        found = [one for one in layouts if _clips_are_apart(one, values)]
        found = [one for one in found if one.height is None or _corner_is_first(one, values)]
        felt = {one: _felt_in_time(one, values) for one in found}
        # Where every step sees the whole clip, as deep in a 3D network, five axes that have one reading are enough.
        if [one.pattern.count(" ") for one in found] != [4] or "(" in found[0].pattern:
            found = [one for one in found if one.steps == 1 or felt[one] > _FELT]
        if len(found) > 1:
            found = [one for one in found if self._has_grid(one, values)] or found
        if len(found) > 1:
            *_, second, best = sorted(found, key=lambda one: felt[one])
            if felt[best] > _CLEAR and felt[best] > 2 * felt[second]:
                found = [best]
        # Pictures, and grids of the network's own, are told by their shape; of anything else time must be felt.
        sure = len(found) == 1 and (
            found[0].pattern in _SHAPED or self._has_grid(found[0], values) or felt[found[0]] > _CLEAR
        )
        return Told(found, sure)

    def _has_grid(self, layout: Layout, values: Values) -> bool:
        return "h" in layout.pattern and tuple(layout.grid(values.plain, clips=1).shape[1:4]) in self.grids

    def _readings(self, shape: tuple[int, ...], tap: Tap | None = None) -> list[Layout]:
        """Every layout that a shape for two clips can have and that agrees with what is written of it; what is written
        allows tokens and grids that are never looked for."""
        found = [layout for pattern in PATTERNS for layout in self._read_as(pattern, shape, tap)]
        return [one for one in found if tap is None or _agrees(one, tap)]

    def _read_as(self, pattern: str, shape: tuple[int, ...], tap: Tap | None) -> list[Layout]:
        axes = _axes(pattern)
        if len(axes) != len(shape):
            return []
        sizes = dict(zip(axes, shape))
        clips = sizes.get("(b t)", sizes.get("b", 0))
        if clips % 2 or ("b" in sizes and clips != 2):
            return []
        steps = sizes.get("t", clips // 2)
        if not _comes_of(steps, self.frames) or (steps == 1 and "(b t)" in sizes):
            return []
        if "h" in sizes and sizes["h"] != sizes["w"] and (tap is None or tap.layout is None):
            return []  # pictures are square here, and so are nearly all maps of them
        tokens = next((axis for axis in axes if axis.startswith("(") and "h w" in axis), None)
        if tokens is None:
            return [Layout(pattern, steps)]
        prefixes = (0, 1) if tap is None or tap.prefix is None else (tap.prefix,)
        found = []
        for prefix in prefixes:
            for inner in range(1, self.frames + 1) if "t" in tokens else [1]:
                places, rest = divmod(sizes[tokens] - prefix, inner)
                # Both orders are one where there is one step.
                if rest or places < 2 or not _comes_of(inner, self.frames) or (inner == 1 and tokens == "(h w t)"):
                    continue
                number = inner if "t" in tokens else steps
                found += [Layout(pattern, number, prefix, height) for height in self._heights(places, tap)]
        return found

    def _heights(self, places: int, tap: Tap | None) -> list[int]:
        """How many rows so many places can have."""
        if tap is not None and tap.height is not None:
            return [tap.height] if places % tap.height == 0 else []
        heights = {height for _, height, width in self.grids if height * width == places}
        side = round(places**0.5)
        return sorted(heights | ({side} if side**2 == places else set()))


_SHAPED = ("b c t h w", "b t c h w", "b t h w c", "(b t) c h w", "(b t) h w c", "b c h w", "(b t) c", "b c")


def dry_run(
    network: nn.Module, call: Callable[[Tensor], Any], *, frames: int, size: int, device: torch.device
) -> DryRun:
    """Runs `call(video)` on noise (B, 3, T, H, W), with every module of `network` watched.

    Raises:
        ValueError: if the network does not take the video, with what it said.
    """
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 3, frames, size, size, generator=generator).to(device)
    late, early = plain.clone(), plain.clone()
    quarter, corner = max(frames // 4, 1), max(size // 16, 1)
    late[:, :, -quarter:] = 3 * torch.randn(1, 3, quarter, size, size, generator=generator).to(device)
    early[:, :, :quarter, :corner, :corner] += 10
    both = torch.cat([plain, late])
    grids: set[tuple[int, int, int]] = set()
    strides: dict[int, set[tuple[float, ...]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None:
            return
        shapes.pop(name, None)
        shapes[name] = tuple(tensor.shape)
        if isinstance(module, nn.Linear):
            shapes[f"{name}{INPUT}"] = tuple(inputs[0].shape)
        if isinstance(module, nn.Conv3d) and tensor.ndim == 5:
            grids.add((tensor.shape[2], tensor.shape[3], tensor.shape[4]))
        if isinstance(module, nn.Conv2d) and tensor.ndim == 4:
            grids.add((tensor.shape[0] // 2, tensor.shape[2], tensor.shape[3]))
        if isinstance(module, _OVER_TIME) and tensor.ndim in (3, 5):
            before, after = inputs[0].shape[2], tensor.shape[2]
            if after < before <= frames:
                strides.setdefault(before, set()).add(_centres(module, before=before, after=after))

    def values(modules: Sequence[str]) -> Mapping[str, Values]:
        runs = [_outputs(network, call, video, modules) for video in (plain, late, early, both)]
        return {module: Values(*(run[module] for run in runs)) for module in modules}

    with _watched(network, note), _still(network):
        try:
            output = call(both)
        except Exception as error:
            raise ValueError(
                f"{type(network).__name__} does not take a video of {frames} frames of {size} px: "
                f"{type(error).__name__}: {error}"
            ) from error
    told = {before: frozenset(ways) for before, ways in strides.items()}
    return DryRun(shapes, frozenset(grids), told, output, frames, size, values)


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first tensor of several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return next((found for one in output if (found := first_tensor(one)) is not None), None)
    return None


def module_of(network: nn.Module, place: str) -> nn.Module:
    """The module behind a tap's name."""
    return network.get_submodule(place.removesuffix(INPUT))


def seen_at(place: str, inputs: Any, output: Any) -> Tensor | None:
    """What a tap's name stands for, of a module's inputs and output; whatever is done to that later, in place."""
    tensor = first_tensor(inputs if place.endswith(INPUT) else output)
    return None if tensor is None else tensor.clone()


def _outputs(
    network: nn.Module, call: Callable[[Tensor], Any], video: Tensor, modules: Sequence[str]
) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    wanted = {place.removesuffix(INPUT): [] for place in modules}  # type: dict[str, list[str]]
    for place in modules:
        wanted[place.removesuffix(INPUT)].append(place)

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for place in wanted.get(name, ()):
            if (tensor := seen_at(place, inputs, output)) is not None:
                kept[place] = tensor

    with _watched(network, keep), _still(network):
        call(video)
    return kept


@contextmanager
def _watched(network: nn.Module, hook: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """Calls `hook(name, module, inputs, output)` whenever a module of the network has run."""

    def named(name: str) -> Any:
        return lambda module, inputs, output: hook(name, module, inputs, output)

    handles = [module.register_forward_hook(named(name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _clips_are_apart(layout: Layout, values: Values) -> bool:
    """Whether two clips at once give, under this layout, what they give one by one."""
    if values.both.shape[0] != 2 * values.plain.shape[0]:
        return False
    together = layout.grid(values.both, clips=2).float()
    alone = torch.cat([layout.grid(one, clips=1) for one in (values.plain, values.late)]).float()
    scale = alone.abs().max().item()
    return torch.allclose(together, alone, rtol=1e-2, atol=1e-3 * scale)


def _corner_is_first(layout: Layout, values: Values) -> bool:
    """Whether tokens change most at the top left of early steps, if that is what is changed of the clip."""
    change = layout.grid((values.early - values.plain).float(), clips=1).square().sum(dim=-1)[0]  # (T', H', W')
    step, place = divmod(int(change.argmax()), change[0].numel())
    return place == 0 and step < max(1, len(change) // 4)


def _felt_in_time(layout: Layout, values: Values) -> float:
    """How much more than its part the end of a map has of what is changed at the end of the clip, and its beginning of
    what is changed at the beginning, the smaller of the two: 0 for its part, 1 for all."""
    late, early = (
        layout.grid((other - values.plain).float(), clips=1).square().sum(dim=(0, 2, 3, 4))
        for other in (values.late, values.early)
    )
    steps = len(late)
    if steps == 1:
        return 0.0
    quarter = max(1, steps // 4)
    ends = (energy[:quarter].sum() / energy.sum().clamp(min=1e-30) for energy in (late.flip(0), early))
    return min((share.item() * steps / quarter - 1) / (steps / quarter - 1) for share in ends)


_OVER_TIME = (
    nn.Conv3d,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool3d,
    nn.Conv1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
)


def _centres(module: nn.Module, *, before: int, after: int) -> tuple[float, ...]:
    """Where on its input steps the output steps of a convolution or pooling are centred."""
    if not hasattr(module, "stride"):  # adaptive: bins that may share a step
        return tuple((step * before // after + -(-(step + 1) * before // after) - 1) / 2 for step in range(after))
    padding: Any = module.padding
    reach = _in_time(getattr(module, "dilation", 1)) * (_in_time(module.kernel_size) - 1)
    first = reach / 2 - (0 if isinstance(padding, str) else _in_time(padding))
    return tuple(min(max(first + step * _in_time(module.stride), 0), before - 1) for step in range(after))


def _in_time(setting: Any) -> int:
    """The part of a layer's setting that is of time."""
    return int(setting[0] if isinstance(setting, tuple | list) else setting)


def _agrees(layout: Layout, tap: Tap) -> bool:
    return (
        tap.layout in (None, layout.pattern)
        and tap.steps in (None, layout.steps)
        and tap.prefix in (None, layout.prefix)
    )


def _axes(pattern: str) -> list[str]:
    """The axes of a pattern; those in brackets are one."""
    return re.findall(r"\([^)]*\)|\w", pattern)


def _comes_of(steps: int, frames: int) -> bool:
    """Whether so many steps can come of so many frames: strides of 1, 2, 3, 4..., rounded up or down."""
    return 0 < steps <= frames and any(steps in (frames // s, -(-frames // s)) for s in range(1, frames + 1))
