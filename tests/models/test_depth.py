"""Which layer each parameter is of."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import EVERY, SMALL, built, timm_video
from torch import nn

from videokd.models import ClassNames, Own, TorchvisionImages
from videokd.models.depth import layer_depths

# Name -> how many layers, and what is in some of them. Counted by hand: a stem, the blocks, the head.
LAYERS: dict[str, tuple[int, dict[int, str]]] = {
    "Conv3d": (5, {0: "stem.", 1: "stages.0.", 3: "stages.2.", 4: "head."}),
    "CompactShift": (5, {0: "stem.", 1: "stages.0.", 4: "head."}),
    "R(2+1)D-18": (10, {0: "network.stem.", 1: "network.layer1.0.", 8: "network.layer4.1.", 9: "network.fc."}),
    "S3D": (13, {0: "network.features.0.", 1: "network.features.2.", 12: "network.classifier."}),
    "MViTv2-S": (18, {0: "network.conv_proj.", 1: "network.blocks.0.", 16: "network.blocks.15.", 17: "network.norm."}),
    "Swin3D-T": (17, {0: "network.patch_embed.", 1: "network.features.0.0.", 3: "network.features.1."}),
    "X3D": (13, {0: "stem.", 1: "stages.0.0.", 11: "stages.3.2.", 12: "last."}),
    "MoViNet": (18, {0: "stem.", 1: "stages.0.0.", 15: "stages.4.3.", 17: "head."}),
    "ViT-Ti frames": (14, {0: "backbone.pos_embed", 1: "backbone.blocks.0.", 12: "backbone.norm.", 13: "head."}),
    "ResNet-18 shift": (10, {0: "backbone.conv1.", 1: "backbone.layer1.0.conv1.conv.", 9: "head."}),
    "MobileNetV3 attention": (14, {0: "backbone.conv_stem.", 13: "over_time."}),
    "VideoMAE": (4, {0: "network.videomae.embeddings.", 1: "network.videomae.encoder.layer.0.", 3: "network.fc_norm."}),
    "V-JEPA 2": (4, {0: "network.vjepa2.encoder.embeddings.", 3: "network.pooler.self_attention_layers.0."}),
    "CLIP frames": (4, {0: "vision.embeddings.", 2: "vision.encoder.layers.1.", 3: "projection."}),
    "SimKD MobileNetV3": (14, {0: "student.backbone.conv_stem.", 13: "projector."}),
    "motion": (5, {0: "network.stem.", 4: "network.head."}),
    "mel": (14, {0: "backbone.conv_stem.", 1: "backbone.blocks.0.0.", 13: "head."}),
    "AST": (4, {0: "network.audio_spectrogram_transformer.embeddings.", 3: "network.classifier."}),
}


@pytest.mark.parametrize("name", [name for name in EVERY if name != "class names"])
def test_every_parameter_is_of_one_layer_and_they_rise_from_the_stem_to_the_head(name: str, originals: Path) -> None:
    model = built(name, originals)
    depths = layer_depths(model)
    assert list(depths) == [key for key, _ in model.named_parameters()]
    count = max(depths.values()) + 1
    assert set(depths.values()) == set(range(count))
    expected, parts = LAYERS.get(name, (count, {}))
    assert count == expected
    for layer, part in parts.items():
        assert {depths[key] for key in depths if key.startswith(part)} == {layer}, part


def test_convolutions_between_stages_are_new_and_the_stages_inside_them_are_not(originals: Path) -> None:
    depths = layer_depths(built("MobileNetV3 conv_stages", originals))
    plain = layer_depths(built("MobileNetV3 average", originals))
    assert {key.replace(".stage.", "."): depths[key] for key in depths if ".over_time." not in key} == plain
    assert {depths[key] for key in depths if ".over_time." in key} == {max(plain.values())}


def test_blocks_of_timms_stages_are_layers() -> None:
    # The stem, 2 + 2 + 6 + 2 blocks, the new head and the norm before it.
    model = timm_video("convnext_atto", temporal="average").build(("run", "dance"))
    depths = layer_depths(model)
    assert max(depths.values()) == 13
    assert {depths[key] for key in depths if key.startswith("backbone.stages.2.blocks.1.")} == {6}


def test_modules_side_by_side_are_layers_where_there_is_no_list() -> None:
    # Three convolutions, nine Inceptions, the head: an Inception's branches are no layers of the network.
    depths = layer_depths(TorchvisionImages(name="googlenet", input=SMALL).build(("run", "dance")))
    assert max(depths.values()) == 12
    assert {depths[key] for key in depths if key.startswith("network.inception3b.")} == {4}


def test_a_model_without_blocks_is_refused(originals: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(ValueError, match="ClassNamesModel has no list of blocks"):
        layer_depths(ClassNames(source=str(originals / "clip")).build(("run", "dance")))
    images = "(b t) c h w"
    flat = Own(target="test_depth:pictures", input=SMALL, video=images).build(("run", "dance"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="OwnModel has no list of blocks"):
        layer_depths(flat)


def pictures() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
