"""torchvision's networks: their own logits, their published costs, sizes that they take."""

from pathlib import Path

import pytest
import torch
from tiny_models import CLASSES, SMALL
from torchvision.models import get_model, get_model_weights
from torchvision.models.video import MViT as TorchvisionMViT

from videokd.contracts import InputSpec
from videokd.models import S3D, ModelConfig, MViT, Swin3d, VideoResNet
from videokd.models.cost import cost
from videokd.models.torchvision_video import _mvit_blocks


@pytest.mark.parametrize(
    ("config", "name", "frames"),
    [
        (VideoResNet(name="r3d_18", input=SMALL), "r3d_18", 8),
        (VideoResNet(name="mc3_18", input=SMALL), "mc3_18", 8),
        (VideoResNet(name="r2plus1d_18", input=SMALL), "r2plus1d_18", 8),
        (Swin3d(name="swin3d_t", input=SMALL), "swin3d_t", 8),
        (Swin3d(name="swin3d_t", input=InputSpec(frames=7, size=40)), "swin3d_t", 7),
    ],
    ids=["R3D-18", "MC3-18", "R(2+1)D-18", "Swin3D-T", "Swin3D-T odd"],
)
@torch.no_grad()
def test_logits_equal_torchvisions_own(config: ModelConfig, name: str, frames: int) -> None:
    model = config.build(CLASSES).eval()
    own = get_model(name, weights=None, num_classes=3).eval()
    own.load_state_dict(model.network.state_dict())  # type: ignore[arg-type]
    size = model.input.size  # type: ignore[union-attr]
    video = torch.randn(2, 3, frames, size, size)
    logits = model.run(video, torch.zeros(2, frames), model.taps).logits  # type: ignore[operator]
    torch.testing.assert_close(logits, own(video), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (S3D(input=InputSpec(frames=16, size=224)), "s3d"),
        (MViT(name="mvit_v1_b"), "mvit_v1_b"),
        (MViT(name="mvit_v2_s"), "mvit_v2_s"),
    ],
    ids=["S3D", "MViTv1-B", "MViTv2-S"],
)
@torch.no_grad()
def test_logits_equal_torchvisions_own_at_its_only_size(config: ModelConfig, name: str) -> None:
    model = config.build(CLASSES).eval()
    own = get_model(name, weights=None, num_classes=3).eval()
    own.load_state_dict(model.network.state_dict())  # type: ignore[arg-type]
    video = torch.randn(1, 3, 16, 224, 224)
    logits = model.run(video, torch.zeros(1, 16), ()).logits  # type: ignore[operator]
    torch.testing.assert_close(logits, own(video), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        own = get_model(name, weights=None)
        second = name == "mvit_v2_s"
        ours = TorchvisionMViT(
            spatial_size=(224, 224),
            temporal_size=16,
            block_setting=_mvit_blocks(second),
            residual_pool=second,
            residual_with_cls_embed=False,
            rel_pos_embed=second,
            proj_after_attn=second,
        )
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (VideoResNet(name="r3d_18"), "r3d_18"),
        (VideoResNet(name="mc3_18"), "mc3_18"),
        (VideoResNet(name="r2plus1d_18"), "r2plus1d_18"),
        (S3D(input=InputSpec(frames=16, size=224)), "s3d"),
        (MViT(name="mvit_v1_b"), "mvit_v1_b"),
        (MViT(name="mvit_v2_s"), "mvit_v2_s"),
        (Swin3d(name="swin3d_t", input=InputSpec(frames=16, size=224)), "swin3d_t"),
        (Swin3d(name="swin3d_s", input=InputSpec(frames=16, size=224)), "swin3d_s"),
        (Swin3d(name="swin3d_b", input=InputSpec(frames=16, size=224)), "swin3d_b"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_costs_and_classes_are_those_that_torchvision_publishes(config: ModelConfig, name: str) -> None:
    meta = next(iter(get_model_weights(name))).meta
    classes = meta["categories"]
    price = cost(config.build(classes, pretrained=False))
    assert price.params == meta["num_params"]
    assert price.macs / 1e9 == pytest.approx(meta["_ops"], rel=2e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MViT(input=InputSpec(frames=16, size=100)), "a size that 32 divides, got frames=16, size=100"),
        (MViT(name="mvit_v1_b", input=InputSpec(frames=7, size=64)), "an even number of frames .* got frames=7"),
        (S3D(input=InputSpec(frames=4, size=64)), "at least 8 frames of 32 px, got frames=4, size=64"),
        (Swin3d(input=InputSpec(frames=8, size=16)), "sizes from 32 px, got size=16"),
    ],
)
def test_an_input_that_the_architecture_cannot_take_is_refused(config: ModelConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.build(CLASSES)


def test_s3d_is_centred_where_its_convolutions_are() -> None:
    model = S3D(input=InputSpec(frames=16, size=32)).build(CLASSES).eval()
    found = model(model.blank(), model.taps).features
    assert found["stage1"].times[0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert found["stage4"].times[0].tolist() == [0, 4, 8, 12]
    # A pooling of two without padding lies between its two.
    assert found["frames"].times[0].tolist() == [2, 10]


def test_mvit_weights_of_another_size_say_so(tmp_path: Path) -> None:
    model = MViT(name="mvit_v2_s", input=InputSpec(frames=4, size=32)).build(CLASSES)
    torch.save(model.network.state_dict(), tmp_path / "a.pth")  # type: ignore[operator, union-attr]
    larger = MViT(name="mvit_v2_s", input=InputSpec(frames=4, size=64), weights=str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=r"another number of frames or another size of pictures .*attn\.rel_pos_h"):
        larger.build(CLASSES)
