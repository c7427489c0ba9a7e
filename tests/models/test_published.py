"""Published weights: loaded, resized, kept, refused, before any training starts."""

import argparse
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import CLASSES, SMALL, timm_video
from torch import nn
from torchvision.models import VisionTransformer, WeightsEnum, get_model, get_weight
from torchvision.models.optical_flow import raft_small

from videokd.contracts import InputSpec
from videokd.models import MoViNet, TimmVideo, VideoResNet, load_model, save_model
from videokd.models.published import Published, image_network, published, read_weights


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
    with pytest.raises(ValueError, match=r"another architecture: it lacks stem\.0\.conv\.weight.*besides layer1\.0"):
        MoViNet(input=SMALL, weights=str(weights)).build(CLASSES)
    with pytest.raises(ValueError, match=r"another architecture: it lacks conv1\.weight.*it has besides stem\.0"):
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
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth' could not be had: it holds more than tensors by name: save .*$"):
        read_weights(str(tmp_path / "whole.pth"))
    (tmp_path / "b.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"b\.pth' could not be had"):
        published(str(tmp_path / "b.pth"), head="fc")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.ckpt", "a.pth.tar", "a.bin", "a", "missing/a"])
def test_whatever_is_a_file_or_looks_like_one_is_read_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not name.startswith("missing"):
        Path(name).write_bytes(b"\x80\x02broken")
    with pytest.raises(ValueError, match=f"the weights '{name}' could not be had"):
        published(name, head="fc")


def test_frames_of_frameworks_around_the_whole_network_are_taken_off(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights)
    lightning = {f"model.{key}": value for key, value in state.items()}
    torch.save({"state_dict": lightning, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.ckpt")
    found = published(str(tmp_path / "a.ckpt"), head="fc")
    assert found is not None
    assert (found.classes, found.state.keys()) == (("0", "1", "2", "3", "4"), state.keys())
    # A network may have a part of that name: where others are beside it, it stays.
    torch.save(lightning | {"head.weight": torch.zeros(1)}, tmp_path / "b.ckpt")
    kept = published(str(tmp_path / "b.ckpt"), head="fc")
    assert kept is not None
    assert "model.fc.weight" in kept.state


def give(monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    """Lets torchvision have this state instead of fetching one."""

    def fetched(weights: WeightsEnum, **options: object) -> Any:
        if isinstance(state, Exception):
            raise state
        return dict(state)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetched)


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError('invalid hash value (expected "b3b3357e")')])
def test_torchvision_weights_that_can_not_be_fetched_are_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, error)
    with pytest.raises(
        ValueError, match=r"R3D_18_Weights\.KINETICS400_V1' could not be had: .*(no network|invalid hash)"
    ):
        VideoResNet(name="r3d_18", input=SMALL, weights="R3D_18_Weights.KINETICS400_V1").build(CLASSES)


def test_torchvision_weights_go_through_torchvisions_own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_model("densenet121", weights=None).state_dict()
    # The published file is of a time when modules could have such names and normalisation did not count batches.
    old = {key.replace(".norm1.", ".norm.1."): value for key, value in own.items() if "batches" not in key}
    give(monkeypatch, old)
    found = image_network("densenet121", None, size=32, weights="DenseNet121_Weights.IMAGENET1K_V1", pretrained=True)
    assert (found.head, found.classes[1]) == ("classifier", "goldfish")
    assert all(torch.equal(value, own[key]) for key, value in found.network.state_dict().items())


@torch.no_grad()
def test_googlenet_is_torchvisions_with_and_without_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = get_model("googlenet", weights=None, init_weights=False).state_dict()
    give(monkeypatch, state)
    name = "GoogLeNet_Weights.IMAGENET1K_V1"
    found = image_network("googlenet", None, size=64, weights=name, pretrained=True)
    theirs = get_model("googlenet", weights=get_weight(name)).eval()
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.equal(found.network.eval()(pictures), theirs(pictures))
    # Another process builds it without the file, then loads what was saved.
    again = image_network("googlenet", found.classes, size=64, weights=name, pretrained=False)
    again.network.load_state_dict(found.network.state_dict())
    assert torch.equal(again.network.eval()(pictures), theirs(pictures))
    # A file of one's own has auxiliary heads, and pictures as they come.
    torch.save(state, tmp_path / "a.pth")
    local = image_network("googlenet", None, size=64, weights=str(tmp_path / "a.pth"), pretrained=True)
    own = get_model("googlenet", weights=None, init_weights=False).eval()
    own.load_state_dict(state)
    assert torch.equal(local.network.eval()(pictures), own(pictures))


def test_an_image_network_has_as_many_classes_as_its_file(tmp_path: Path) -> None:
    torch.save(get_model("resnet18", weights=None, num_classes=5).state_dict(), tmp_path / "a.pth")
    found = image_network("resnet18", None, size=32, weights=str(tmp_path / "a.pth"), pretrained=True)
    assert found.classes == ("0", "1", "2", "3", "4")
    with pytest.warns(UserWarning, match="5 other classes: the head for 3 is new"):
        image_network("resnet18", CLASSES, size=32, weights=str(tmp_path / "a.pth"), pretrained=True)
    with pytest.raises(ValueError, match="vit_b_32 does not take pictures of 40 px"):
        image_network("vit_b_32", CLASSES, size=40, weights=None, pretrained=True)


def test_optical_flow_has_weights_and_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, raft_small(weights=None).state_dict())
    found = published("Raft_Small_Weights.C_T_V2", head="")
    assert found is not None
    assert found.classes is None
    found.load(raft_small(weights=None))


def test_a_head_for_other_names_is_new_even_if_they_are_as_many() -> None:
    source, network = nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))
    state = {"0.weight": source.weight.detach(), "0.bias": source.bias.detach()}
    Published("weights", state, "0", CLASSES).load(network, CLASSES)
    assert torch.equal(network[0].weight, source.weight)
    network = nn.Sequential(nn.Linear(2, 3))
    before = network[0].weight.clone()
    with pytest.warns(UserWarning, match="trained for 3 other classes: the head for 3 is new"):
        Published("weights", state, "0", ("run", "swim", "dance")).load(network, CLASSES)
    assert torch.equal(network[0].weight, before)


def vit(size: int) -> VisionTransformer:
    return VisionTransformer(
        image_size=size, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
    )


def test_old_keys_that_a_network_converts_are_no_difference() -> None:
    source, network = vit(32).state_dict(), vit(32)
    old = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in source.items()}
    assert old.keys() != source.keys()
    Published("old.pth", old, "heads.head", None).load(network)
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items())


def test_position_tables_of_another_size_are_told_from_another_architecture() -> None:
    with pytest.raises(
        ValueError, match=r"another size of pictures than the input's: .*pos_embedding \(\[1, 17, 32\], not"
    ):
        Published("a.pth", dict(vit(64).state_dict()), "heads.head", None).load(vit(32))


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


def test_a_timm_file_of_any_number_of_classes_keeps_its_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet18", num_classes=5)
    torch.save({"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.ckpt")
    config = timm_video("resnet18", temporal="average", weights=str(tmp_path / "a.ckpt"))
    model = config.build(None)
    assert model.classes == ("0", "1", "2", "3", "4")
    assert torch.equal(model.head[1].weight, source.fc.weight)  # type: ignore[union-attr]
    other = config.build(CLASSES)
    assert torch.equal(other.backbone.layer1[0].conv2.weight, source.layer1[0].conv2.weight)
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth has no classes of its own to keep \(fc\.weight\)"):
        timm_video("resnet18", temporal="average", weights=str(tmp_path / "b.pth")).build(None)


def test_timm_converts_local_files_as_its_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    file = str(tmp_path / "a.pth")
    state = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    torch.save(state, file)
    spec = InputSpec(frames=2, size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = timm_video("vit_tiny_patch16_224", temporal="average", input=spec, weights=file).build(CLASSES)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=32
    )
    assert model.backbone.pos_embed.shape == (1, 5, 192)
    assert torch.equal(model.backbone.pos_embed, theirs.pos_embed)
    # The authors' ConvNeXt has other names for everything.
    state = timm.create_model("convnext_atto").state_dict()
    original = {
        key.replace("stem.", "downsample_layers.0.").replace("head.fc.", "head.").replace("head.norm.", "norm."): value
        for key, value in state.items()
        if "downsample" not in key and "blocks" not in key
    } | {
        key.replace(".blocks", "").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv"): value
        for key, value in state.items()
        if "blocks" in key
    }
    for key, value in state.items():
        if ".downsample." in key:
            stage, layer = key.split(".")[1], key.partition("downsample.")[2]
            original[f"downsample_layers.{stage}.{layer}"] = value
    torch.save({"model": original}, file)
    convnext = timm_video("convnext_atto", temporal="average", weights=file).build(None)
    assert len(convnext.classes) == 1000
    assert torch.equal(convnext.backbone.stages[1].downsample[1].weight, state["stages.1.downsample.1.weight"])


@pytest.mark.parametrize("backbone", ["repvit_m0_9", "levit_128s", "efficientformerv2_s0", "dla46_c"])
@torch.no_grad()
def test_timm_classifiers_that_come_to_a_linear_layer_are_kept(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(backbone).eval()
    for key, value in source.state_dict().items():
        if value.is_floating_point() and ("running" in key or "head" in key):
            value.uniform_(0.5, 1.5)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    spec = InputSpec(frames=1, size=224)
    config = timm_video(backbone, temporal="average", input=spec, weights=str(tmp_path / "a.pth"))
    model = config.build(None).eval()
    video = torch.randn(2, 3, 1, 224, 224)
    logits = model.run(video, torch.zeros(2, 1), ()).logits
    torch.testing.assert_close(logits, source(video[:, :, 0]), rtol=1e-3, atol=1e-3)
    save_model(model, tmp_path)
    assert torch.equal(load_model(tmp_path).run(video, torch.zeros(2, 1), ()).logits, logits)  # type: ignore[attr-defined]


@pytest.mark.parametrize("backbone", ["deit_tiny_distilled_patch16_224", "shvit_s1", "volo_d1_224"])
def test_timm_classifiers_that_are_more_than_a_linear_layer_are_refused(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(backbone)
    for key, value in source.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    spec = InputSpec(frames=1, size=224)
    config = timm_video(backbone, temporal="average", input=spec, weights=str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=f"the classifier of {backbone} is more than a linear layer"):
        config.build(None)
    assert config.build(CLASSES).classes == CLASSES


@pytest.mark.parametrize("backbone", ["coat_tiny", "volo_d1_224", "pit_ti_224"])
@torch.no_grad()
def test_a_backbone_without_one_last_map_does_not_offer_it(backbone: str) -> None:
    model = timm_video(backbone, temporal="average", input=InputSpec(frames=2, size=64)).build(CLASSES).eval()
    assert "spatial" not in model.taps
    assert set(model(model.blank(), model.taps).features) == set(model.taps)


def test_a_backbone_behind_an_operator_is_no_published_video_model() -> None:
    for temporal in ("shift", "conv", "conv_stages", "gru", "attention"):
        assert not timm_video(temporal=temporal, weights="timm").is_published
    assert timm_video(temporal="average", weights="timm").is_published
    assert not timm_video(temporal="average").is_published


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
