"""Stochastic depth: what it is by default, what it is set to, and where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from tiny_models import CLASSES, SMALL, timm_video
from torchvision.models import get_model
from torchvision.ops import StochasticDepth

from videokd.models import X3D, HuggingFaceVideo, MelNetwork, ModelConfig, Swin3d, TorchvisionImages


def rates(network: torch.nn.Module) -> list[float]:
    """Of every block, in order."""
    found: list[Any] = [module for module in network.modules() if isinstance(module, StochasticDepth | DropPath)]
    return [one.p if isinstance(one, StochasticDepth) else one.drop_prob for one in found]


def test_it_rises_evenly_to_the_last_block() -> None:
    model = X3D(input=SMALL, width=16, depth=1.0, drop_path=0.5).build(CLASSES)
    assert rates(model) == pytest.approx([0.05 * number for number in range(11)])
    assert rates(X3D(input=SMALL, width=16, depth=1.0).build(CLASSES)) == [0.0] * 11
    swin = rates(Swin3d(input=SMALL, drop_path=0.3).build(CLASSES))
    assert swin == pytest.approx([0.3 * number / 11 for number in range(12)])


def test_by_default_networks_are_as_their_library_makes_them() -> None:
    assert rates(Swin3d(input=SMALL).build(CLASSES)) == rates(get_model("swin3d_t"))
    images = TorchvisionImages(name="efficientnet_b0", input=SMALL)
    assert rates(images.build(CLASSES)) == rates(get_model("efficientnet_b0"))
    assert max(rates(timm_video("tiny_vit_21m_224").build(CLASSES))) == pytest.approx(0.2)


def test_it_is_set_in_backbones_of_every_library(originals: Path) -> None:
    assert max(rates(timm_video("resnet18", drop_path=0.3).build(CLASSES))) == pytest.approx(0.3)
    assert rates(timm_video("tiny_vit_21m_224", drop_path=0.0).build(CLASSES)) == []
    images = TorchvisionImages(name="convnext_tiny", input=SMALL, drop_path=0.25)
    assert max(rates(images.build(CLASSES))) == pytest.approx(0.25)
    assert max(rates(MelNetwork(backbone="resnet18", drop_path=0.3).build(CLASSES))) == pytest.approx(0.3)
    with pytest.warns(UserWarning, match="the head is new"):
        model: Any = HuggingFaceVideo(source=str(originals / "vjepa2"), input=SMALL, drop_path=0.3).build(CLASSES)
    assert model.network.vjepa2.encoder.layer[-1].drop_path.drop_prob == pytest.approx(0.3)
    assert '"drop_path_rate": 0.3' in model.config.architecture


def test_blocks_are_dropped_in_training_and_never_after() -> None:
    model = X3D(input=SMALL, width=16, depth=1.0, dropout=0.0, drop_path=0.9).build(CLASSES)
    view = model.blank(4)
    view.frames.random_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.eval()
        assert not torch.equal(model(view).logits, model(view).logits)
        model.eval()
        assert torch.equal(model(view).logits, model(view).logits)


def test_a_backbone_without_it_is_refused(originals: Path) -> None:
    wrong: list[tuple[ModelConfig, str]] = [
        (timm_video("repvit_m0_9", drop_path=0.1), r"repvit_m0_9 can't be made with .*drop_path_rate"),
        (MelNetwork(backbone="vgg11", drop_path=0.1), "vgg11 has no stages, takes no drop_path"),
        (TorchvisionImages(name="resnet18", input=SMALL, drop_path=0.1), "resnet18 has no stochastic depth"),
        (HuggingFaceVideo(source=str(originals / "videomae"), drop_path=0.1), "videomae has no stochastic depth"),
    ]
    for config, message in wrong:
        with pytest.raises(ValueError, match=message):
            config.build(CLASSES)
    with pytest.raises(ValueError, match=r"drop_path lies in \[0, 1\), got 1.0"):
        X3D(drop_path=1.0)
