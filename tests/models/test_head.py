from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random_clip
from tiny_models import CLASSES, SMALL, built

from videokd.models import CompactShift, Conv3d, SimKD, VideoResNet
from videokd.models.head import class_vectors, linear_head, looks_at_order


@pytest.mark.parametrize("name", ["Conv3d", "CompactShift", "R3D-18", "MobileNetV3 gru", "Swin3D-T", "VideoMAE", "mel"])
def test_the_last_layer_makes_the_logits_of_the_clip_tap(name: str, originals: Path) -> None:
    model = built(name, originals).eval()
    view = model.blank(3)
    if hasattr(view, "frames"):
        view = random_clip(batch=3)
    with torch.no_grad():
        outputs = model(view, ("clip",))
    weight, bias = linear_head(model)
    made = F.linear(outputs.features["clip"].values[:, 0, 0, 0], weight, bias)
    torch.testing.assert_close(made, outputs.logits, rtol=1e-3, atol=1e-4)


def test_a_layer_of_the_same_shape_is_not_taken_for_the_last_one() -> None:
    model = Conv3d(width=4, input=SMALL).build(CLASSES)
    last = model.head
    del model.head
    model.other = torch.nn.Linear(16, 3)  # comes first among the modules
    model.head = last
    weight, _ = linear_head(model)
    assert torch.equal(weight, last.weight)


@pytest.mark.parametrize("name", ["CLIP frames", "DINOv2 frames", "class names"])
def test_logits_that_are_no_linear_layer_over_the_clip_are_told(name: str, originals: Path) -> None:
    with pytest.raises(ValueError, match="has no last layer that makes its logits"):
        linear_head(built(name, originals))


def test_classes_are_told_apart_by_words_or_by_rows_of_the_last_layer(originals: Path) -> None:
    clip, conv = built("CLIP frames", originals), built("Conv3d", originals)
    assert torch.equal(class_vectors(clip), clip.words)  # type: ignore[arg-type]
    assert torch.equal(class_vectors(conv), conv.head.weight)  # type: ignore[union-attr, arg-type]


def test_simkd_answers_through_the_teachers_head_and_counts_its_projector() -> None:
    teacher = Conv3d(width=3, input=SMALL).build(CLASSES).eval()
    plain = CompactShift(width=4, input=SMALL).build(CLASSES)
    model = SimKD(student=plain.config, width=12).build(CLASSES).eval()
    model.take_head(*linear_head(teacher))
    with torch.no_grad():
        outputs = model(random_clip(), ("frames", "clip", "stage1"))
    clip = outputs.features["clip"].values[:, 0, 0, 0]
    torch.testing.assert_close(outputs.logits, teacher.head(clip))
    torch.testing.assert_close(clip, outputs.features["frames"].values.mean(dim=(1, 2, 3)))
    assert outputs.features["stage1"].values.shape[-1] == 8
    counted = sum(parameter.numel() for parameter in model.parameters())
    projector = (12 * 6 + 2 * 6) + (6 * 6 * 9 + 2 * 6) + (6 * 12 + 2 * 12)
    own_head, last = 12 * 3 + 3, 12 * 3 + 3
    assert counted == sum(parameter.numel() for parameter in plain.parameters()) - own_head + projector + last
    assert not any(parameter.requires_grad for parameter in model.head.parameters())


def test_simkd_says_what_does_not_fit() -> None:
    model = SimKD(student=CompactShift(width=4, input=SMALL), width=12).build(CLASSES)
    with pytest.raises(ValueError, match=r"projects to 12 channels and 3 classes.* has 16 and 3: set width to 16"):
        model.take_head(torch.zeros(3, 16), torch.zeros(3))
    with pytest.raises(ValueError, match="factor at most width"):
        SimKD(student=CompactShift(), width=2, factor=4)
    with pytest.raises(ValueError, match=r"leaves out the head of its student, and VideoResNetModel has none so named"):
        SimKD(student=VideoResNet(input=SMALL, weights=None), width=12).build(CLASSES)


@pytest.mark.parametrize(
    ("name", "relu", "taps", "message"),
    [
        (
            "Swin3D-T",
            True,
            {"clip"},
            "and tap 'clip' of teacher 'teacher' has values below 0: set relu to False",
        ),
        ("VideoMAE", False, {"frames"}, "is not the mean of its tap 'frames': compare \"clip\""),
        ("VideoMAE", False, {"clip"}, None),
        ("R3D-18", True, {"frames"}, None),
    ],
)
def test_simkd_refuses_a_last_layer_whose_input_it_can_not_give(
    name: str, relu: bool, taps: set[str], message: str | None, originals: Path
) -> None:
    teacher = built(name, originals)
    weight, _ = linear_head(teacher)
    model = SimKD(student=CompactShift(width=4, input=SMALL), width=weight.shape[1], relu=relu).build(CLASSES)
    if message is None:
        model.take_head_of(teacher, taps)
        assert torch.equal(model.head.weight, weight)
        return
    with pytest.raises(ValueError, match=message):
        model.take_head_of(teacher, taps)


ORDER = {"MobileNetV3 average": False, "MobileNetV3 gru": True, "Conv3d": True, "mel": True, "class names": False}


@pytest.mark.parametrize(("name", "looks"), ORDER.items())
def test_whether_a_model_looks_at_the_order_of_frames_is_found(name: str, looks: bool, originals: Path) -> None:
    model = built(name, originals).train()
    assert looks_at_order(model, "clip") is looks
    assert model.training
