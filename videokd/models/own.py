"""A network of the user's own, or of any library, as it is: taps by module name, found and read by a dry run."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torchvision
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from videokd.config import nearest
from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.layouts import INPUT, DryRun, Tap, dry_run, first_tensor
from videokd.models.model import ModelConfig, VideoModel, clip_map, named
from videokd.models.published import Published, published, read_weights

Video = Literal["b c t h w", "b t c h w", "(b t) c h w"]
"""How a network takes its video: channels first, frames first, or every frame as a picture of its own."""


@dataclass(frozen=True, kw_only=True)
class Own(ModelConfig):
    """A network that your own function makes, or any library's: `torchvision.models:resnet50`.

    The function returns an `nn.Module` that takes a float video, normalised by `input`, and returns logits (B, K) or
    something that has them as `.logits`; of pictures, (B*T, K), which are averaged. A network that returns anything
    else has no logits, but taps.
    """

    target: str
    """Where the function is: "package.module:function"."""
    input: InputSpec
    arguments: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """What the function is called with."""
    video: Video = "b c t h w"
    taps: dict[str, Tap] = field(default_factory=dict)
    """Name -> where it is in the network. "frames" and "clip", where they are not among them, are the last map with
    steps of time, and its mean."""
    weights: str | None = None
    """A file of weights to load, where the function does not do so itself."""

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
        where, _, name = self.target.partition(":")
        if not pretrained and where not in sys.modules:
            # Somebody else's checkpoint must not run code of its own.
            raise ValueError(f"{self.target} is not part of videokd: import {where} first if you trust it")
        try:
            function = getattr(importlib.import_module(where), name)
        except (ImportError, AttributeError, ValueError) as error:
            known = dir(sys.modules[where]) if where in sys.modules else []
            hint = nearest(name, [one for one in known if not one.startswith("_")]) if known else ""
            raise ValueError(f"no function at {self.target!r}: {error}{hint}") from error
        try:
            network = function(**self.arguments)
        except TypeError as error:
            raise ValueError(f"{self.target} can't be called with {self.arguments}: {error}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.target} returned {type(network).__name__}, not an nn.Module")
        if pretrained and self.weights is not None:
            Published(self.weights, read_weights(self.weights), "", None).load(network)
        return OwnModel(self, classes, network, video=self.video, taps=self.taps, input=self.input)


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

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "OwnModel":
        """The network, its head resized to `classes` where the weights have others.

        Raises:
            ValueError: for a name that torchvision does not have (with the nearest), or a size that it does not take.
        """
        known = list_models(module=torchvision.models)
        if self.name not in known:
            raise ValueError(f"torchvision has no image model {self.name!r}{nearest(self.name, known)}")
        options = {} if classes is None else {"num_classes": len(classes)}
        network: nn.Module = get_model(self.name, weights=None, **options)
        head = _last_linear(network)
        found = published(self.weights if pretrained else None, head=head)
        names = named(classes, found.classes if found else None, of=self.name)
        if found:
            found.load(network)
        taps = {"frames": Tap(module=f"{head}{INPUT}"), **self.taps}
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
        self.layouts = {name: probe.told(tap.module, tap) for name, tap in taps.items()}
        self._probe = replace(probe, one={}, two={}, flash={}, output=None)  # what is left of it is small
        for name, place in self.places.items():
            self._hook(name, place)
        logits = self._logits(probe.output, clips=2)
        self.has_logits = logits is not None
        if logits is not None and (classes is None or logits.shape[1] != len(self.classes)):
            self.classes = tuple(str(number) for number in range(logits.shape[1]))

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
        layout, clips = self.layouts[tap], len(times)
        found = layout.map(seen[tap], self._probe.centres(times, layout.steps), clips=clips)
        return clip_map(found.pooled("clip").values[:, 0, 0, 0], times) if tap == "clip" else found

    def _call(self, video: Tensor) -> Any:
        pattern = f"b c t h w -> {self.layout_of_video}"
        return self.network(rearrange(video, pattern).contiguous())

    def _logits(self, output: Any, *, clips: int) -> Tensor | None:
        found = getattr(output, "logits", None)
        found = found if isinstance(found, Tensor) else first_tensor(output)
        if found is None or found.ndim != 2:
            return None
        if self.layout_of_video == "(b t) c h w":
            found = found.unflatten(0, (clips, -1)).mean(dim=1)
        return found if len(found) == clips else None

    def dry_run(self) -> DryRun:
        """What every module puts out."""
        spec = self.input
        return dry_run(self.network, self._call, frames=spec.frames, size=spec.size, device=self.device)

    def _hook(self, name: str, place: str) -> None:
        def keep(output: Any) -> None:
            if name in self._wanted and (tensor := first_tensor(output)) is not None:
                self._seen[name] = tensor

        module = self.network.get_submodule(place.removesuffix(INPUT))
        if place.endswith(INPUT):
            module.register_forward_pre_hook(lambda module, inputs: keep(inputs))
        else:
            module.register_forward_hook(lambda module, inputs, output: keep(output))


def _last_with_time(probe: DryRun) -> str:
    """The last module whose output has steps of time, in the order in which modules run: several steps, if any has,
    and not the network's last layer."""
    with_time: dict[str, int] = {}
    for module in [name for name in probe.one if not name.endswith(INPUT)][:-1]:
        found = probe.layouts(module)
        if len(found) == 1 and "t" in found[0].pattern:
            with_time[module] = found[0].steps
    several = [module for module, steps in with_time.items() if steps > 1] or list(with_time)
    if several:
        return several[-1]
    raise ValueError(
        "no module puts out a map with steps of time whose layout can be told: name one in taps, "
        '{"frames": Tap(module=..., layout=..., steps=..., prefix=...)}'
    )


def _last_linear(network: nn.Module) -> str:
    """Where an image classifier's last layer is."""
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear layer at its end")
    return layers[-1]
