"""Published weights: loaded, resized, kept, refused, before any training starts."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import CLASSES, SMALL, timm_video
from torchvision.models import get_model

from videokd.models import MoViNet, TimmVideo, VideoResNet
from videokd.models.published import published, read_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D ResNet for five classes."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "r3d.pth"
    torch.save(get_model("r3d_18", weights=None, num_classes=5).state_dict(), path)
    return path


def test_a_head_for_other_classes_is_said_to_be_new(weights: Path) -> None:
    config = VideoResNet(name="r3d_18", input=SMALL, weights=str(weights))
    with pytest.warns(UserWarning, match="trained for 5 other classes: the head for 3 is new and has to be trained"):
        model = config.build(CLASSES)
    source = torch.load(weights)
    assert torch.equal(model.network.stem[0].weight, source["stem.0.weight"])  # type: ignore[union-attr, index]
    assert model.network.fc.out_features == 3  # type: ignore[union-attr]


def test_a_head_is_kept_for_as_many_classes_and_when_none_are_named(weights: Path) -> None:
    config = VideoResNet(name="r3d_18", input=SMALL, weights=str(weights))
    source = torch.load(weights)
    for classes in ([str(k) for k in range(5)], None):
        model = config.build(classes)
        assert model.classes == ("0", "1", "2", "3", "4")
        assert torch.equal(model.network.fc.weight, source["fc.weight"])  # type: ignore[union-attr]


def test_a_model_without_published_classes_has_none_to_keep() -> None:
    for config in (VideoResNet(input=SMALL), timm_video(), MoViNet(input=SMALL)):
        with pytest.raises(ValueError, match="has no classes of its own to keep: name some, or weights"):
            config.build(None)


def test_weights_of_another_architecture_name_the_keys_that_differ(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"another architecture: of another shape are layer2\.0\.conv1\.0\.weight"):
        VideoResNet(name="mc3_18", input=SMALL, weights=str(weights)).build([str(k) for k in range(5)])
    with pytest.raises(ValueError, match=r"another architecture: it lacks stem\.0\.conv\.weight.*besides stem\.0"):
        MoViNet(input=SMALL, weights=str(weights)).build(CLASSES)
    with pytest.raises(ValueError, match="does not fit resnet18: "):
        timm_video("resnet18", weights=str(weights)).build(CLASSES)


def test_an_unknown_name_of_weights_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no weights 'R3D_18_Weights.KINETICS'; did you mean 'R3D_18_Weights.KINETICS"
    ):
        VideoResNet(weights="R3D_18_Weights.KINETICS").build(CLASSES)


def test_weights_that_are_not_there_are_named_with_a_way_on(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pth")
    for config in (VideoResNet(input=SMALL, weights=gone), TimmVideo(input=SMALL, weights=gone)):
        with pytest.raises(ValueError, match=r"gone\.pth' could not be had: .*--student\.weights None"):
            config.build(CLASSES)


def test_files_in_every_usual_form_are_read(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights)
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    for file in ("a.pt", "b.safetensors"):
        found = read_weights(str(tmp_path / file))
        assert found.keys() == state.keys()
        assert torch.equal(found["fc.bias"], state["fc.bias"])


def test_a_file_without_weights_says_so(tmp_path: Path) -> None:
    torch.save({"lr": 0.1}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds no weights"):
        published(str(tmp_path / "a.pth"), head="fc")
    (tmp_path / "b.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"b\.pth' could not be had"):
        published(str(tmp_path / "b.pth"), head="fc")


def test_local_weights_of_a_timm_backbone_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet18", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = timm_video("resnet18", temporal="conv", weights=str(tmp_path / "weights.pth")).build(CLASSES)
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)


def test_a_timm_classifier_is_kept_with_its_names_when_none_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet18").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = timm_video("resnet18", temporal="average", weights=str(tmp_path / "weights.pth")).build(None).eval()
    assert len(model.classes) == 1000
    assert "goldfish" in model.classes[1]
    # Averaging pooled frames and averaging their logits is one: the head is linear.
    video = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        own = source(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 8)).mean(dim=1)
        torch.testing.assert_close(model.run(video, torch.zeros(2, 8), ()).logits, own, rtol=1e-5, atol=1e-5)


def test_another_normalisation_than_the_weights_were_trained_with_is_said(tmp_path: Path) -> None:
    torch.save(timm.create_model("fastvit_t8", num_classes=0).state_dict(), tmp_path / "a.pth")
    config = timm_video("fastvit_t8", weights=str(tmp_path / "a.pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.build(CLASSES)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict(), tmp_path / "b.pth")
    other = timm_video("vit_tiny_patch16_224", temporal="average", weights=str(tmp_path / "b.pth"))
    with pytest.warns(UserWarning, match=r"trained with mean=\(0\.5, 0\.5, 0\.5\).*set input\.mean and input\.std"):
        other.build(CLASSES)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'resnet81'; did you mean 'resnet"):
        timm_video("resnet81").build(CLASSES)
