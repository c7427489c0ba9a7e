"""A network of the user's own, or of any library, as it is: taps by module name, found and read by a dry run."""

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torchvision
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import list_models

from videokd.config import nearest
from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.layouts import INPUT, DryRun, Tap, dry_run, module_of, seen_at
from videokd.models.model import ModelConfig, VideoModel, clip_map
from videokd.models.published import Published, image_network, read_weights, set_drop_path, warn_of_preset

Video = Literal["b c t h w", "b t c h w", "(b t) c h w"]
"""How a network takes its video: channels first, frames first, or every frame as a picture of its own."""


@dataclass(frozen=True, kw_only=True)
class Own(ModelConfig):
    """A network that your own function makes, or any library's: `torchvision.models:resnet50`.

    The function returns an `nn.Module` that takes a float video, normalised by `input`, and returns logits (B, K), or
    something that has them as `.logits` or under "logits"; of pictures, (B*T, K), which are averaged. A network that
    returns nothing of that shape has no logits, but taps.
    """

    target: str
    """Where the function is: "package.module:function", of a package that is installed, or in the folder of the recipe
    or the one that you are in."""
    input: InputSpec
    arguments: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """What the function is called with."""
    video: Video = "b c t h w"
    taps: dict[str, Tap] = field(default_factory=dict)
    """Name -> where it is in the network. "frames" and "clip", where they are not among them, are the last map with
    steps of time, and its mean."""
    weights: str | None = None
    """A file of weights to load, where the function does not do so itself."""
    classes: tuple[str, ...] | None = None
    """What its logits are of, in order; None takes them to be of the data's classes, in the data's order, if they are
    as many."""

    @property
    def named_code(self) -> tuple[str, ...]:
        """The module of `target`; none for torchvision's own models."""
        return () if is_torchvisions(self.target) else (self.target.partition(":")[0],)

    @property
    def is_published(self) -> bool:
        """It comes as it is."""
        return True

    @property
    def fits_any_classes(self) -> bool:  # type: ignore[override]
        """Its classes are what it was made with: `build` says if their number is not that of the data's."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "OwnModel":
        """The network, as the function makes it.

        Raises:
            ValueError: if there is no such function, it returns no module, the network does not take the video, a tap
                is not in it, or a layout can't be told.
        """
        function = _function_at(self.target)
        try:
            network = function(**self.arguments)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"{self.target} can't be called with {self.arguments}: {type(error).__name__}: {error} "
                f"({line.filename}:{line.lineno})"
            ) from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.target} returned {type(network).__name__}, not an nn.Module")
        if pretrained and self.weights is not None:
            Published(self.weights, read_weights(self.weights), "", None).load(network)
        names = self.classes if self.classes is not None else classes
        model = OwnModel(self, names, network, video=self.video, taps=self.taps, input=self.input)
        if self.classes is not None and model.classes != self.classes:
            raise ValueError(
                f"{self.target} has {len(model.classes)} logits, and {len(self.classes)} classes are named"
            )
        return model


@dataclass(frozen=True, kw_only=True)
class TorchvisionImages(ModelConfig):
    """Any of torchvision's image classifiers over frames: every frame by itself, logits averaged.

    To show it every k-th frame alone, give its `input` that many frames fewer at k times the stride.
    """

    name: str = "resnet50"
    input: InputSpec = InputSpec(frames=8, size=224, sampling=Dense(stride=4))
    weights: str | None = None
    """None, a torchvision name such as "ResNet50_Weights.IMAGENET1K_V2", or a local .pth file."""
    taps: dict[str, Tap] = field(default_factory=dict)
    """Name -> where it is in the network, besides "frames" (what goes into its last layer) and "clip"."""
    drop_path: float | None = None
    """Stochastic depth of its residual blocks, rising to this at the last; None is torchvision's own."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "OwnModel":
        """The network, its head resized to `classes` where the weights have others.

        Raises:
            ValueError: for a name that torchvision does not have (with the nearest), or a size or `drop_path` that it
                does not take.
        """
        known = list_models(module=torchvision.models)
        if self.name not in known:
            raise ValueError(f"torchvision has no image model {self.name!r}{nearest(self.name, known)}")
        network, head, names = image_network(
            self.name, classes, size=self.input.size, weights=self.weights, pretrained=pretrained
        )
        if pretrained and classes is None:
            warn_of_preset(self.weights, self.input)  # their own head: a teacher as it was published
        if self.drop_path is not None:
            set_drop_path(network, self.drop_path, of=self.name)
        taps = {"frames": Tap(module=f"{head}{INPUT}", layout="(b t) c"), **self.taps}
        return OwnModel(self, names, network, video="(b t) c h w", taps=taps, input=self.input)


class OwnModel(VideoModel):
    """See `Own`.

    Args:
        config: what makes it again.
        classes: whose names its logits have, if they are so many.
        network: of the user.
        video: how it takes its video.
        taps: where they are.
        input: what it wants to see.
    """

    def __init__(
        self,
        config: ModelConfig,
        classes: Sequence[str] | None,
        network: nn.Module,
        *,
        video: Video,
        taps: Mapping[str, Tap],
        input: InputSpec,
    ) -> None:
        super().__init__(
            config, classes or (), taps=[tap for tap in taps if tap not in ("frames", "clip")], input=input
        )
        self.network = network
        self.layout_of_video: Video = video
        self._wanted: tuple[str, ...] = ()
        self._seen: dict[str, Tensor] = {}
        probe = self.dry_run()
        if "frames" not in taps:
            taps = {**taps, "frames": Tap(module=_last_with_time(probe))}
        self.places = {name: tap.module for name, tap in taps.items()}
        self.layouts = probe.told(taps)
        for name, place in self.places.items():
            module_of(network, place).register_forward_hook(partial(self._keep, name))
        logits = self._logits(probe.output, clips=2)
        self.has_logits = logits is not None
        if logits is not None and (classes is None or logits.shape[1] != len(self.classes)):
            self.classes = tuple(str(number) for number in range(logits.shape[1]))

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        return self.network

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        self._wanted = tuple("frames" if tap == "clip" and "clip" not in self.places else tap for tap in taps)
        try:
            output = self._call(video)
        finally:
            seen, self._seen, self._wanted = self._seen, {}, ()
        maps = {tap: self._map(tap, seen, times) for tap in taps}
        return Outputs(self._logits(output, clips=video.shape[0]) if self.has_logits else None, maps)

    def _map(self, tap: str, seen: Mapping[str, Tensor], times: Tensor) -> FeatureMap:
        if tap == "clip" and "clip" not in self.places:
            return clip_map(self._map("frames", seen, times).pooled("clip").values[:, 0, 0, 0], times)
        found = self.layouts[tap].map(seen[tap], times, clips=len(times))
        return clip_map(found.pooled("clip").values[:, 0, 0, 0], times) if tap == "clip" else found

    def _call(self, video: Tensor) -> Any:
        pattern = f"b c t h w -> {self.layout_of_video}"
        return self.network(rearrange(video, pattern).contiguous())

    def _logits(self, output: Any, *, clips: int) -> Tensor | None:
        rows = clips * (self.input.frames if self.layout_of_video == "(b t) c h w" else 1)
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        found = [one for one in _tensors(output if named is None else named) if one.ndim == 2 and len(one) == rows]
        if len(found) > 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in found)
            raise ValueError(
                f"{type(self.network).__name__} returns several tensors that could be logits: {shapes}; "
                'return a dict that has them under "logits"'
            )
        if not found:
            return None
        return found[0] if rows == clips else found[0].unflatten(0, (clips, -1)).mean(dim=1)

    def dry_run(self) -> DryRun:
        """What every module puts out."""
        spec = self.input
        try:
            return dry_run(self.network, self._call, frames=spec.frames, size=spec.size, device=self.device)
        except ValueError as error:
            raise ValueError(f"{error} (it is given its video as {self.layout_of_video!r}; see `video`)") from error

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if name in self._wanted and (tensor := seen_at(self.places[name], inputs, output)) is not None:
            self._seen[name] = tensor


def is_torchvisions(target: str) -> bool:
    """Whether a target is one of torchvision's own models, which runs nobody else's code."""
    where, _, name = target.partition(":")
    return where.split(".")[:2] == ["torchvision", "models"] and name in list_models()


def _function_at(target: str) -> Any:
    where, _, name = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` looks there, the command `videokd` does not
    try:
        return getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError, ValueError) as error:
        known = dir(sys.modules[where]) if where in sys.modules else []
        hint = nearest(name, [one for one in known if not one.startswith("_")]) if known else ""
        raise ValueError(
            f"no function at {target!r}: {error}{hint}; write package.module:function, of a package that is installed "
            "or lies beside the recipe or where you are"
        ) from error


def _tensors(output: Any) -> list[Tensor]:
    """All that a network returned."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(parts, tuple | list) else []


def _last_with_time(probe: DryRun) -> str:
    """The last module whose output surely has several steps of time, in the order in which modules run; the network's
    last layer is none."""
    modules = [module for module in probe.shapes if not module.endswith(INPUT)]
    for module, told in probe.several(modules[-2::-1]):
        if told.sure and (told.layouts[0].steps > 1 or probe.frames == 1):
            return module
    raise ValueError(
        "no module puts out a map with several steps of time whose layout can be told: name one in taps, "
        '{"frames": Tap(module=..., layout=..., steps=..., prefix=...)}'
    )
