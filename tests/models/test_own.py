"""A user's own network: taps by module name, layouts told by a dry run or asked for."""

import copy
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, ORIGINALS, SMALL
from torch import Tensor, nn

from videokd.config import import_file
from videokd.contracts import Clip, InputSpec
from videokd.models import Motion, Own, OwnModel, Tap, TorchvisionImages, load_model, save_model
from videokd.models.layouts import PATTERNS, Layout, dry_run


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


class TwoOutputs(nn.Module):
    """Features and logits, which of them is which told by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, (1, 4, 4), stride=(1, 4, 4))
        self.head = nn.Linear(6, 3)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(video).mean(dim=(2, 3, 4))
        return features, self.head(features)


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
    module.two_outputs = TwoOutputs  # type: ignore[attr-defined]
    module.nothing = lambda: 3  # type: ignore[attr-defined]
    sys.modules["users_nets"] = module
    yield
    del sys.modules["users_nets"]


EACH, PAIRS = (0, 1, 2, 3, 4, 5, 6, 7), (0.5, 2.5, 4.5, 6.5)


def own(target: str, **options: Any) -> OwnModel:
    torch.manual_seed(0)
    return Own(**({"target": target, "input": SMALL} | options)).build(CLASSES).eval()


@pytest.mark.parametrize(
    ("target", "video", "module", "layout"),
    [
        ("torchvision.models.video:r3d_18", "b c t h w", "layer1", Layout("b c t h w", 8, centres=EACH)),
        ("torchvision.models.video:r3d_18", "b c t h w", "layer3", Layout("b c t h w", 2, centres=(0, 4))),
        ("torchvision.models.video:r3d_18", "b c t h w", "fc", Layout("b c", 1, centres=(3.5,))),
        ("torchvision.models.video:swin3d_t", "b c t h w", "features.0", Layout("b t h w c", 4, centres=PAIRS)),
        ("torchvision.models:resnet18", "(b t) c h w", "layer2", Layout("(b t) c h w", 8, centres=EACH)),
        ("torchvision.models:resnet18", "(b t) c h w", "fc:input", Layout("(b t) c", 8, centres=EACH)),
        ("users_nets:videomae", "b t c h w", "videomae.encoder.layer.0", Layout("b (t h w) c", 4, 0, 2, PAIRS)),
        ("users_nets:vivit", "b t c h w", "vivit.layers.1", Layout("b (t h w) c", 4, 1, 2, PAIRS)),
        # Ordered by place, then time: shapes are the same, another end of the clip tells.
        ("users_nets:timesformer", "b t c h w", "timesformer.encoder.layer.1", Layout("b (h w t) c", 8, 1, 2, EACH)),
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


def test_five_axes_with_one_reading_are_told_where_every_step_sees_the_whole_clip() -> None:
    # Two steps of sixteen frames, deep in S3D.
    model = own("torchvision.models.video:s3d", input=InputSpec(frames=16, size=224))
    assert (model.places["frames"], model.layouts["frames"].pattern, model.layouts["frames"].steps) == (
        "features",
        "b c t h w",
        2,
    )


def test_a_flash_tells_time_from_channels() -> None:
    model = own("users_nets:square", arguments={"mixes": False}, taps={"frames": Tap(module="last")})
    assert model.layouts["frames"] == Layout("b c t h w", 8, centres=EACH)


def test_tokens_of_an_unknown_grid_are_asked_for() -> None:
    # 128 tokens are 8 x 4 x 4 or 2 x 8 x 8, and what they hold tells nothing of time.
    with pytest.raises(ValueError, match=r"can't be told apart; write one of: .*steps=2.*steps=8"):
        own("users_nets:tokens", taps={"frames": Tap(module="tokens")})
    model = own("users_nets:tokens", taps={"frames": Tap(module="tokens", layout="b (t h w) c", steps=8, prefix=0)})
    assert model(model.blank(), ("frames",)).features["frames"].values.shape == (1, 8, 4, 4, 3)


def test_a_written_layout_that_the_output_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'layer2' puts out \(2, 128, 4, 8, 8\) .*no layout that is known"):
        own("torchvision.models.video:r3d_18", taps={"mid": Tap(module="layer2", layout="b t h w c")})
    with pytest.raises(ValueError, match=r"no layout 'b c w h'; did you mean 'b c t h w'"):
        Tap(module="layer2", layout="b c w h")


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


@pytest.mark.parametrize(
    "target", ["users_nets:folded", "os:system", "torchvision.models._api:load_state_dict_from_url"]
)
def test_a_saved_network_of_others_runs_no_code_that_is_not_trusted(target: str, tmp_path: Path) -> None:
    model = own("users_nets:folded", video="(b t) c h w")
    save_model(model, tmp_path / "folded")
    assert load_model(tmp_path / "folded", trust=["users_nets"]).classes == CLASSES
    model.config = Motion(of=Own(target=target, arguments={"command": f"touch {tmp_path / 'ran'}"}, input=SMALL))
    save_model(model, tmp_path / "evil")
    with pytest.raises(ValueError, match=f"Own uses .* is not part of videokd.*--trust {target.split(':')[0]} "):
        load_model(tmp_path / "evil", trust=["users", "users_nets.deeper"])
    assert not (tmp_path / "ran").exists()


def test_torchvisions_networks_are_loaded_as_they_are(tmp_path: Path) -> None:
    save_model(own("torchvision.models.video:r3d_18"), tmp_path)
    assert len(load_model(tmp_path).classes) == 400


def test_a_module_beside_the_recipe_or_where_one_is_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    net = "from torch import nn\ndef net(): return nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Identity())\n"
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "net_beside.py").write_text(net)
    (tmp_path / "beside" / "recipe.py").write_text("recipe = 3\n")
    (tmp_path / "net_here.py").write_text(net)
    monkeypatch.chdir(tmp_path)
    import_file(tmp_path / "beside" / "recipe.py")
    for target in ("net_beside:net", "net_here:net"):
        assert own(target).places["frames"] == "0"


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
    found = Layout(pattern, 4 if "t" in kept else 1, height=3 if "h w" in pattern and "(" in pattern else None)
    found = found.grid(written, clips=2)
    expected = source
    for place, axis in enumerate("bthwc"):
        if axis not in kept:
            expected = expected.unsqueeze(place)
    assert torch.equal(found, expected)


def fooled(network: nn.Module, module: str, *, frames: int = 8, size: int = 32, **written: Any) -> Layout:
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.Conv1d):
            layer.reset_parameters()
    found = dry_run(network, network, frames=frames, size=size, device=torch.device("cpu"))
    return found.told({"mine": Tap(module=module, **written)})["mine"]


class Made(nn.Module):
    """A network that is a function of its video; its last map is "last"."""

    def __init__(self, make: Callable[[nn.Module, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.make, self.layers, self.last = make, nn.ModuleList(layers), nn.Identity()

    def forward(self, video: Tensor) -> Tensor:
        found: Tensor = self.last(self.make(self, video))
        return found.flatten(1).mean(dim=1, keepdim=True)


def patches(self: Any, video: Tensor) -> Tensor:  # (B, 8, T, 4, 4)
    found: Tensor = self.layers[0](video)
    return found


PATCHES = nn.Conv3d(3, 8, (1, 8, 8), stride=(1, 8, 8))


@pytest.mark.parametrize(
    "make",
    [
        # Frames in front of clips: (t b) c h w.
        lambda self, video: patches(self, video).permute(2, 0, 1, 3, 4).flatten(0, 1),
        # Places folded into the batch: (b h w) t c.
        lambda self, video: patches(self, video).permute(0, 3, 4, 2, 1).flatten(0, 2),
        # A class token behind the others, and one in front of every frame's.
        lambda self, video: nn.functional.pad(patches(self, video).flatten(2).transpose(1, 2), (0, 0, 0, 1)),
        lambda self, video: nn.functional.pad(
            patches(self, video).permute(0, 2, 3, 4, 1).flatten(2, 3), (0, 0, 1, 0)
        ).flatten(1, 2),
        # Five tokens without a place.
        lambda self, video: nn.functional.pad(patches(self, video).flatten(2).transpose(1, 2), (0, 0, 5, 0)),
        # Learned queries that know nothing of time.
        lambda self, video: patches(self, video).mean(dim=(2, 3, 4))[:, None].expand(-1, 4, -1),
    ],
    ids=["(t b)", "(b h w) t c", "class token last", "one a frame", "registers", "queries"],
)
def test_a_layout_that_is_none_of_those_known_is_not_taken_for_one(make: Any) -> None:
    with pytest.raises(ValueError, match=r"can't be told apart; write one of|is no layout that is known"):
        fooled(Made(make, PATCHES), "last", frames=16)


def test_a_map_whose_time_is_pooled_away_is_a_picture() -> None:
    twelve = nn.Conv3d(3, 12, (1, 8, 8), stride=(1, 8, 8))
    layout = fooled(Made(lambda self, video: patches(self, video).mean(dim=2), twelve), "last")
    assert layout == Layout("b c h w", 1, centres=(3.5,))


def test_a_rectangle_of_tokens_is_that_of_a_convolution_or_written() -> None:
    tall = nn.Conv3d(3, 8, (1, 4, 8), stride=(1, 4, 8))  # 8 x 4 places
    tokens = Made(lambda self, video: patches(self, video).flatten(2).transpose(1, 2), tall)
    assert fooled(tokens, "last") == Layout("b (t h w) c", 8, 0, 8, EACH)
    hidden = Made(lambda self, video: nn.functional.avg_pool3d(video, (1, 4, 8)).flatten(2).transpose(1, 2))
    assert fooled(hidden, "last", layout="b (t h w) c", steps=8, prefix=0, height=8).height == 8


def test_what_is_written_is_believed_where_it_can_be_so() -> None:
    # A vector a frame beside a convolution of another grid, and tokens behind five without a place.
    vectors = Made(lambda self, video: patches(self, video).mean(dim=(3, 4)).transpose(1, 2), PATCHES)
    assert fooled(vectors, "last", layout="b t c", steps=8).pattern == "b t c"
    registers = Made(
        lambda self, video: nn.functional.pad(patches(self, video).flatten(2).transpose(1, 2), (0, 0, 5, 0)), PATCHES
    )
    assert fooled(registers, "last", prefix=5) == Layout("b (t h w) c", 8, 5, 4, EACH)
    with pytest.raises(ValueError, match="no layout that is known and agrees with what is written"):
        fooled(registers, "last", prefix=5, steps=3)


@pytest.mark.parametrize(
    ("layer", "centres"),
    [
        (nn.Conv3d(3, 5, (3, 4, 4), stride=[2, 4, 4], padding=(1, 0, 0)), (0, 2, 4, 6)),
        (nn.Conv3d(3, 5, (3, 4, 4), stride=(2, 4, 4), dilation=(2, 1, 1), padding=(2, 0, 0)), (0, 2, 4, 6)),
        (nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4)), (0.5, 2.5, 4.5, 6.5)),
        (nn.Conv3d(3, 5, 3, padding="same"), tuple(range(8))),
        (nn.MaxPool3d((3, 4, 4), stride=(2, 4, 4), ceil_mode=True), (1, 3, 5, 7)),
        (nn.AdaptiveAvgPool3d((3, 4, 4)), (1, 3.5, 6)),
    ],
)
def test_steps_are_centred_where_the_layer_is(layer: nn.Module, centres: tuple[float, ...]) -> None:
    assert fooled(Made(lambda self, video: self.layers[0](video), layer), "last").centres == centres


def test_convolutions_over_vectors_are_followed_too() -> None:
    over_time = nn.Conv1d(8, 8, 3, stride=2, padding=1)
    network = Made(lambda self, video: self.layers[1](patches(self, video).mean(dim=(3, 4))), PATCHES, over_time)
    assert fooled(network, "last") == Layout("b c t", 4, centres=(0, 2, 4, 6))


def test_steps_that_no_layer_made_are_asked_for() -> None:
    taken = Made(lambda self, video: patches(self, video[:, :, ::2]), PATCHES)
    with pytest.raises(ValueError, match=r"8 frames became 4 steps before 'last'.*centres=\(0\.5, 2\.5, 4\.5, 6\.5\)"):
        fooled(taken, "last")
    assert fooled(taken, "last", centres=(0, 2, 4, 6)).centres == (0, 2, 4, 6)
    with pytest.raises(ValueError, match=r"has 4 steps, so its centres are so many frames from 0 to 7, got \(0, 9\)"):
        fooled(taken, "last", centres=(0, 9))


@torch.no_grad()
def test_a_tap_is_what_the_module_put_out_before_others_changed_it_in_place() -> None:
    model = own("torchvision.models.video:r3d_18", taps={"norm": Tap(module="layer1.0.conv1.1")})
    video = torch.randn(1, 3, 8, 32, 32)
    found = model.run(video, torch.arange(8.0)[None], ("norm",)).features["norm"].values
    network: Any = model.network
    conv = network.layer1[0].conv1
    before = conv[1](conv[0](network.stem(video)))
    torch.testing.assert_close(found, before.permute(0, 2, 3, 4, 1))
    assert found.min() < 0  # a ReLU comes next, in place


@torch.no_grad()
def test_a_copy_and_a_pickled_one_hand_out_their_own_taps() -> None:
    model = own("torchvision.models.video:r3d_18", taps={"mid": Tap(module="layer2")})
    clip = Clip(torch.randint(0, 255, (1, 8, 3, 32, 32), dtype=torch.uint8), torch.arange(8.0)[None])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(
            other(clip, ("mid",)).features["mid"].values, model(clip, ("mid",)).features["mid"].values
        )
        assert model._seen == other._seen == {}


def test_classes_may_be_named() -> None:
    named = own("users_nets:folded", video="(b t) c h w", classes=("dance", "run", "jumping_jack"))
    assert named.classes == ("dance", "run", "jumping_jack")  # in another order than the data's
    with pytest.raises(ValueError, match="users_nets:folded has 3 logits, and 2 classes are named"):
        own("users_nets:folded", video="(b t) c h w", classes=("dance", "run"))


def test_several_outputs_that_could_be_logits_are_asked_about() -> None:
    with pytest.raises(ValueError, match=r'several tensors that could be logits: \(2, 6\), \(2, 3\).*under "logits"'):
        own("users_nets:two_outputs")


def test_frames_that_are_asked_of_it_every_kth_alone() -> None:
    # Every fourth frame: as many frames fewer, at four times the stride.
    model = TorchvisionImages(name="resnet18", input=InputSpec(frames=2, size=32)).build(CLASSES).eval()
    clip = Clip(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), torch.tensor([[0.0, 0.5]]))
    assert model(clip, ("frames",)).features["frames"].times.tolist() == [[0.0, 0.5]]
