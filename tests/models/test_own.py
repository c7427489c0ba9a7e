"""A user's own network: taps by module name, layouts told by a dry run or asked for."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, ORIGINALS, SMALL
from torch import Tensor, nn

from videokd.contracts import Clip, InputSpec
from videokd.models import Own, OwnModel, Tap, TorchvisionImages, load_model, save_model
from videokd.models.layouts import PATTERNS, Layout, _readings


class Folded(nn.Module):
    """Pictures; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.conv(pictures).mean(dim=(2, 3)))}


class Square(nn.Module):
    """Eight channels over eight frames: which axis is time can't be told from shapes."""

    def __init__(self, *, mixes: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, (8 if mixes else 1, 4, 4), stride=(1, 4, 4), padding=(0, 0, 0))
        self.mixes = mixes
        self.last = nn.Identity()

    def forward(self, video: Tensor) -> Tensor:
        values = self.conv(video)
        if self.mixes:  # every "step" knows of every frame alike
            values = values.expand(-1, -1, 8, -1, -1)
        found: Tensor = self.last(values)
        return found.mean(dim=(2, 3, 4))


class Tokens(nn.Module):
    """Tokens of time and space, whose grid no convolution of it has."""

    def forward(self, video: Tensor) -> Tensor:
        found: Tensor = self.tokens(video)
        return found.mean(dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Flattened()


class Flattened(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool3d(video, (1, 4, 4))  # (B, 3, 8, 8, 8)
        return pooled.flatten(2).transpose(1, 2).mean(dim=1, keepdim=True).expand(-1, 128, -1)


@pytest.fixture(autouse=True)
def nets() -> Iterator[None]:
    """The user's module."""
    module = types.ModuleType("users_nets")
    for name in ("videomae", "timesformer", "vivit"):
        setattr(module, name, ORIGINALS[name])
    module.folded = Folded  # type: ignore[attr-defined]
    module.square = Square  # type: ignore[attr-defined]
    module.tokens = Tokens  # type: ignore[attr-defined]
    module.nothing = lambda: 3  # type: ignore[attr-defined]
    sys.modules["users_nets"] = module
    yield
    del sys.modules["users_nets"]


def own(target: str, **options: Any) -> OwnModel:
    torch.manual_seed(0)
    return Own(**({"target": target, "input": SMALL} | options)).build(CLASSES).eval()


@pytest.mark.parametrize(
    ("target", "video", "module", "layout"),
    [
        ("torchvision.models.video:r3d_18", "b c t h w", "layer1", Layout("b c t h w", 8)),
        ("torchvision.models.video:r3d_18", "b c t h w", "layer3", Layout("b c t h w", 2)),
        ("torchvision.models.video:r3d_18", "b c t h w", "fc", Layout("b c", 1)),
        ("torchvision.models.video:swin3d_t", "b c t h w", "features.0", Layout("b t h w c", 4)),
        ("torchvision.models:resnet18", "(b t) c h w", "layer2", Layout("(b t) c h w", 8)),
        ("torchvision.models:resnet18", "(b t) c h w", "fc:input", Layout("(b t) c", 8)),
        ("users_nets:videomae", "b t c h w", "videomae.encoder.layer.0", Layout("b (t h w) c", 4)),
        ("users_nets:vivit", "b t c h w", "vivit.layers.1", Layout("b (t h w) c", 4, 1)),
        # Ordered by place, then time: shapes are the same, a flash tells.
        ("users_nets:timesformer", "b t c h w", "timesformer.encoder.layer.1", Layout("b (h w t) c", 8, 1)),
    ],
)
def test_layouts_are_told_by_a_dry_run(target: str, video: str, module: str, layout: Layout) -> None:
    model = own(target, video=video, taps={"mine": Tap(module=module)})
    assert model.layouts["mine"] == layout


@torch.no_grad()
def test_taps_hold_what_the_modules_put_out() -> None:
    model = own("torchvision.models.video:r3d_18", taps={"mid": Tap(module="layer2"), "clip": Tap(module="avgpool")})
    video, times = torch.randn(2, 3, 8, 32, 32), torch.arange(8.0).expand(2, -1)
    network: Any = model.network
    layer2 = network.layer2(network.layer1(network.stem(video)))
    found = model.run(video, times, ("mid", "clip", "frames"))
    torch.testing.assert_close(found.features["mid"].values, layer2.permute(0, 2, 3, 4, 1))
    torch.testing.assert_close(found.logits, network(video))
    # Strided convolutions are centred as our own adapter has them, by their kernels.
    assert found.features["mid"].times[0].tolist() == [0, 2, 4, 6]
    assert found.features["clip"].times[0].tolist() == [3.5]
    assert model.places["frames"] == "layer3"  # the last with several steps of time
    assert model._seen == {}


@torch.no_grad()
def test_pictures_are_averaged_over_frames() -> None:
    model = own("torchvision.models:resnet18", video="(b t) c h w")
    video = torch.randn(2, 3, 8, 32, 32)
    network: Any = model.network
    each = network(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 8))
    torch.testing.assert_close(model.run(video, torch.zeros(2, 8), ()).logits, each.mean(dim=1))
    assert len(model.classes) == 1000  # its own, since they are not as many as the data's


def test_a_dictionary_of_outputs_is_looked_into() -> None:
    model = own("users_nets:folded", video="(b t) c h w")
    assert model.has_logits
    assert model.classes == CLASSES  # as many as the data's
    assert model.places["frames"] == "conv"


def test_a_layout_that_cannot_be_told_is_asked_for() -> None:
    said = r"the layout of 'last', \(2, 8, 8, 8, 8\) for two clips, can't be told apart; write one of: .*'b c t h w'"
    with pytest.raises(ValueError, match=said):
        own("users_nets:square", arguments={"mixes": True}, taps={"frames": Tap(module="last")})
    written = Tap(module="last", layout="b t c h w", steps=8, prefix=0)
    model = own("users_nets:square", arguments={"mixes": True}, taps={"frames": written})
    assert model.layouts["frames"].pattern == "b t c h w"


def test_a_flash_tells_time_from_channels() -> None:
    model = own("users_nets:square", arguments={"mixes": False}, taps={"frames": Tap(module="last")})
    assert model.layouts["frames"] == Layout("b c t h w", 8)


def test_tokens_of_an_unknown_grid_are_asked_for() -> None:
    # 128 tokens are 8 x 4 x 4 or 2 x 8 x 8, and what they hold tells nothing of time.
    with pytest.raises(ValueError, match=r"can't be told apart; write one of: .*steps=2.*steps=8"):
        own("users_nets:tokens", taps={"frames": Tap(module="tokens")})
    model = own("users_nets:tokens", taps={"frames": Tap(module="tokens", layout="b (t h w) c", steps=8, prefix=0)})
    assert model(model.blank(), ("frames",)).features["frames"].values.shape == (1, 8, 4, 4, 3)


def test_a_written_layout_that_the_output_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'layer2' puts out \(2, 128, 4, 8, 8\) .*no layout that is known"):
        own("torchvision.models.video:r3d_18", taps={"mid": Tap(module="layer2", layout="b t h w c")})
    with pytest.raises(ValueError, match=r"no layout 'b c h w'; did you mean 'b t c h w'"):
        Tap(module="layer2", layout="b c h w")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "torchvision.models.video:r3d_81"}, "no function at 'torchvision.models.video:r3d_81'.*r3d_18"),
        ({"target": "no_such_package:net"}, "no function at 'no_such_package:net'"),
        ({"target": "users_nets:nothing"}, "returned int, not an nn.Module"),
        ({"target": "users_nets:folded", "arguments": {"depth": 3}}, "can't be called with .*depth"),
        ({"target": "torchvision.models:resnet18"}, "ResNet does not take a video of 8 frames of 32 px"),
        (
            {"target": "torchvision.models.video:r3d_18", "taps": {"mid": Tap(module="layer22")}},
            "no module 'layer22' put out a tensor in the dry run; did you mean 'layer2'",
        ),
    ],
)
def test_what_cannot_work_is_said_before_any_training(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        own(**options)


def test_weights_of_the_users_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = Folded()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = own("users_nets:folded", video="(b t) c h w", weights=str(tmp_path / "net.pth"))
    assert torch.equal(model.network.head.weight, net.head.weight)  # type: ignore[union-attr]


def test_a_saved_network_of_others_runs_no_code_of_theirs(tmp_path: Path) -> None:
    save_model(own("users_nets:folded", video="(b t) c h w"), tmp_path)
    assert load_model(tmp_path).classes == CLASSES  # its module is imported already
    held = sys.modules.pop("users_nets")
    try:
        with pytest.raises(ValueError, match="users_nets:folded is not part of videokd: import users_nets first"):
            load_model(tmp_path)
    finally:
        sys.modules["users_nets"] = held


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "regnet_y_400mf"])
@torch.no_grad()
def test_image_models_of_torchvision_are_their_own_averaged(name: str) -> None:
    torch.manual_seed(0)
    model = TorchvisionImages(name=name, input=InputSpec(frames=2, size=64)).build(CLASSES).eval()
    video = torch.randn(2, 3, 2, 64, 64)
    network: Any = model.network
    own_logits = (network(video[:, :, 0]) + network(video[:, :, 1])) / 2
    torch.testing.assert_close(model.run(video, torch.zeros(2, 2), ()).logits, own_logits, rtol=1e-5, atol=1e-5)
    assert model.has_logits
    # What goes into the last layer is the tap "frames".
    frames = model.run(video, torch.zeros(2, 2), ("frames",)).features["frames"].values[:, :, 0, 0]
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(frames).mean(dim=1), own_logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_image_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no image model 'resnet51'; did you mean 'resnet50'"):
        TorchvisionImages(name="resnet51").build(CLASSES)
    with pytest.raises(ValueError, match="no linear layer at its end"):
        TorchvisionImages(name="squeezenet1_1").build(CLASSES)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_read_back_into_the_map_that_it_was_made_of(pattern: str) -> None:
    from einops import rearrange

    whole = torch.randn(2, 4, 3, 3, 5)  # (B, T', H', W', C)
    axes = {"b": 2, "t": 4, "h": 3, "w": 3, "c": 5}
    kept = [axis for axis in "bthwc" if axis in pattern]
    source = whole
    for place, axis in reversed(list(enumerate("bthwc"))):
        if axis not in kept:
            source = source.select(place, 0)
    written = rearrange(source, f"{' '.join(kept)} -> {pattern}", **{axis: axes[axis] for axis in kept})
    found = Layout(pattern, 4 if "t" in kept else 1).grid(written, clips=2)
    expected = source
    for place, axis in enumerate("bthwc"):
        if axis not in kept:
            expected = expected.unsqueeze(place)
    assert torch.equal(found, expected)


def test_class_tokens_are_looked_for() -> None:
    # 4 x 3 x 3 tokens behind one without a place; 37 has no other reading of so many.
    found = _readings("b (t h w) c", (1, 37, 5), frames=8)
    assert Layout("b (t h w) c", 4, 1) in found


def test_frames_that_are_asked_of_it_every_kth_alone() -> None:
    # Every fourth frame: as many frames fewer, at four times the stride.
    model = TorchvisionImages(name="resnet18", input=InputSpec(frames=2, size=32)).build(CLASSES).eval()
    clip = Clip(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), torch.tensor([[0.0, 0.5]]))
    assert model(clip, ("frames",)).features["frames"].times.tolist() == [[0.0, 0.5]]
