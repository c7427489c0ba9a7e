"""The geometry of published preprocessing: what of a picture a model is shown is what the library shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from torchvision.models import get_model_weights
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    SiglipImageProcessor,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    ViTImageProcessor,
    VivitImageProcessor,
    VivitVideoProcessor,
    VJEPA2VideoProcessor,
)

from videokd.clips import views
from videokd.clips.dataset import centred_box
from videokd.clips.pictures import Cut, cut_out
from videokd.clips.reading import VideoIndex
from videokd.contracts import InputSpec
from videokd.models.huggingface import preprocessing
from videokd.models.named import TORCHVISION
from videokd.models.published import warn_of_preset
from videokd.models.timm_video import TimmVideo, _check_geometry
from videokd.models.torchvision_video import RESNET_INPUT

WIDE, HIGH = (240, 320), (320, 180)
CLASSES: dict[str, Callable[..., Any]] = {
    "VideoMAE": VideoMAEImageProcessor,
    "VideoMAE of videos": VideoMAEVideoProcessor,
    "ViViT": VivitImageProcessor,
    "ViViT of videos": VivitVideoProcessor,
    "V-JEPA 2": VJEPA2VideoProcessor,
    "CLIP": CLIPImageProcessor,
    "SigLIP": SiglipImageProcessor,
    "DINOv2": BitImageProcessor,
    "ViT": ViTImageProcessor,
}
SQUASH = {"size": {"height": 224, "width": 224}, "do_center_crop": False}
SQUASH_AND_CUT = {
    "size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
RECTANGLE = {"size": {"height": 256, "width": 342}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
CUT = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
NO_MARGIN = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


def ramps(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture (H, W, 3) that says where each pixel is: red rises down, green rises to the right, blue is striped."""
    down, across = np.mgrid[0:height, 0:width]
    blue = np.where((across < width // 8) | (across >= width - width // 8), 255, 0)
    return np.stack([255 * down // height, 255 * across // width, blue], axis=-1).astype(np.uint8)


def shown(spec: InputSpec, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """What a model is shown of a picture by its centred view, normalised: (3, S, S)."""
    height, width = picture.shape[:2]
    index = VideoIndex(**{**dict.fromkeys(VideoIndex.__dataclass_fields__), "height": height, "width": width})
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None]
    cut = cut_out(frames, Cut((), centred_box(index, spec), (spec.size, spec.size)))[0] / 255
    return (cut - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]


def of_library(processor: Any, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    found = processor([picture, picture], return_tensors="pt")
    pixels = torch.as_tensor(found["pixel_values" if "pixel_values" in found else "pixel_values_videos"])
    return pixels.flatten(0, -4)[0].float()


@pytest.mark.parametrize("shape", [WIDE, HIGH], ids=["wide", "high"])
@pytest.mark.parametrize(
    "options",
    [{}, SQUASH, SQUASH_AND_CUT, RECTANGLE, CUT, NO_MARGIN],
    ids=["its own", "squash", "squash and cut", "rectangle and cut", "short side and cut", "no margin"],
)
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_is_shown_what_the_librarys_processor_shows(
    name: str, options: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    processor = CLASSES[name](**options)
    processor.save_pretrained(tmp_path)
    picture = ramps(*shape)
    own = of_library(processor, picture)
    if own.shape[1] != own.shape[2]:  # V-JEPA 2's takes no size of its own
        with pytest.raises(ValueError, match="keeps the rectangle"):
            preprocessing(str(tmp_path), frames=2, size=own.shape[-1])
        return
    spec = preprocessing(str(tmp_path), frames=2, size=own.shape[-1])
    mine = shown(spec, picture)
    assert mine.shape == own.shape
    # A pixel of the box may be rounded otherwise, which moves a ramp by less than 2 %; another geometry moves it more.
    span = own.max() - own.min()
    assert ((mine - own).abs().mean() / span).item() < 0.02
    edge = (mine - own)[:2].abs()[:, [2, -3]][..., [2, -3]]  # near the corners, where geometries differ most
    assert (edge.max() / span).item() < 0.03


def test_the_pictures_tell_a_squash_from_a_centre_square(tmp_path: Path) -> None:
    processor = VideoMAEImageProcessor(**SQUASH)
    processor.save_pretrained(tmp_path)
    cropped = InputSpec(frames=2, size=224, crop_fraction=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    own = of_library(processor, ramps(*WIDE))
    assert (own - shown(cropped, ramps(*WIDE))).abs().mean() > 0.1
    spec = preprocessing(str(tmp_path), frames=2, size=224)
    assert (spec.resize, spec.crop_fraction, spec.size) == ("squash", 1.0, 224)
    stripes = (shown(spec, ramps(*WIDE))[2, 112] > 0.5).sum().item()
    assert stripes == (own[2, 112] > 0.5).sum().item() == 56  # a quarter of the width, at both edges


NAMED = {"image_processor_type": "VideoMAEImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"do_resize": False}, "cuts out a square of the pixels as they are .do_resize is False"),
        ({"do_resize": False, "do_center_crop": False}, "neither resizes nor cuts pictures"),
        ({"do_center_crop": False, "size": {"shortest_edge": 224}}, "short side to 224 px and keeps the rectangle"),
        ({"do_center_crop": False, "size": {"height": 224, "width": 320}}, "are 224 x 320 px, and have to be square"),
        ({"size": {"longest_edge": 224}}, "its size is .*longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "with longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "with max_height, max_width"),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 200}}, "crop_size is 224 x 200 px"),
        ({"size": {"shortest_edge": 200}, "crop_size": 224}, "224 px out of a short side of 200 px, and pads"),
        ({"size": {"height": 200, "width": 300}, "crop_size": 224}, "224 px out of 200 x 300 px, and pads"),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 112},
            "makes pictures of 112 px, and the architecture takes 224",
        ),
        ({"size": "large"}, "its size is 'large', and should be pixels"),
        ({"size": {"shortest_edge": 0}}, "should be pixels"),
        ({"do_pad": True}, "it pads pictures .do_pad is True"),
        ({"do_flip_channel_order": True}, "takes blue for red"),
        ({"crop_pct": 0.9}, "crop_pct is 0.9"),
        ({"resample": 0}, "resizes with filter 0"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "it is made by ConvNextImageProcessor, and known are"),
        ({"image_mean": [0.5]}, "there must be a number a colour"),
        ({"image_mean": "half"}, "there must be a number a colour"),
        ({"image_std": [0.5, 0.0, 0.5]}, "both have to be above 0"),
        ({"rescale_factor": 0}, "there must be a number a colour"),
    ],
)
def test_what_can_not_be_reproduced_is_refused_with_the_reason(
    written: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(NAMED | written))
    with pytest.raises(ValueError, match=why) as caught:
        preprocessing(str(tmp_path), frames=8, size=224)
    assert "can't be reproduced" in str(caught.value)
    assert "Give the model an `input`" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "written", "resize", "fraction"),
    [
        ("siglip", {}, "squash", 1.0),
        ("siglip", {"size": 224}, "squash", 1.0),
        ("vit", {"size": 224}, "squash", 1.0),
        ("vit", {"size": {"height": 224, "width": 224}}, "squash", 1.0),
        ("clip", {"size": 256, "crop_size": 224}, "crop", 0.875),
        ("videomae", {"size": 224}, "crop", 1.0),
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, "squash", 1.0),
        ("clip", {"image_processor_type": "CLIPImageProcessorFast", "size": 224, "crop_size": 224}, "crop", 1.0),
        ("clip", {"size": [256, 256], "crop_size": [224, 224]}, "squash", 0.875),
    ],
)
def test_older_files_mean_what_the_processor_of_their_model_makes_of_them(
    kind: str, written: dict[str, Any], resize: str, fraction: float, tmp_path: Path
) -> None:
    normalised = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | normalised))
    spec = preprocessing(str(tmp_path), frames=8, size=224, kind=kind)
    assert (spec.resize, spec.crop_fraction, spec.size) == (resize, fraction, 224)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"preprocessor_config\.json has to hold a JSON object, and holds a list"),
        ("{", r"preprocessor_config\.json is "),
        ('{"size": NaN}', "its size is nan, and should be pixels"),
    ],
)
def test_damaged_preprocessor_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        preprocessing(str(tmp_path), frames=8, size=224)


@pytest.mark.parametrize("shape", [WIDE, HIGH], ids=["wide", "high"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_video_networks_are_shown_what_its_presets_show(name: str, shape: tuple[int, int]) -> None:
    picture = ramps(*shape)
    preset = get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    own = preset(torch.from_numpy(picture).permute(2, 0, 1)[None])[:, 0]
    config: Any = TORCHVISION[name]
    mine = shown(config.input, picture)
    span = own.max() - own.min()
    assert ((mine - own).abs().mean() / span).item() < 0.02


def test_training_crops_of_a_squashing_model_have_the_frames_shape() -> None:
    rng = np.random.default_rng(0)
    augment = views.Augment()
    box = views.drawn(augment, height=240, width=320, crop_fraction=1.0, rng=rng, resize="squash").box
    assert box == (0, 0, 240, 320)
    boxes = [
        views.drawn(augment, height=240, width=320, crop_fraction=0.875, rng=rng, resize="squash").box
        for _ in range(20)
    ]
    assert {(box.height, box.width) for box in boxes} == {(210, 280)}
    assert len({(box.top, box.left) for box in boxes}) > 1


def test_views_in_space_of_a_squashing_model_are_those_of_its_squashed_frame() -> None:
    grid = views.ViewGrid(spatial=3)
    with pytest.raises(ValueError, match="squashes whole frames to squares"):
        grid.placement(0, height=240, width=320, crop_fraction=1.0, resize="squash")
    boxes = [
        grid.placement(k, height=128, width=342, crop_fraction=0.875, resize="squash", aspect=171 / 128).box
        for k in range(3)
    ]
    assert boxes == [(0, 0, 128, 256), (0, 43, 128, 256), (0, 86, 128, 256)]


@pytest.mark.parametrize(
    ("published", "input", "warning"),
    [
        (
            {"crop_mode": "squash", "crop_pct": 1.0},
            {},
            "resize='squash' with crop_fraction=1 .*its input says 'crop'",
        ),
        ({"crop_mode": "center", "crop_pct": 0.95}, {}, "crop_fraction=0.95 .*its input says 'crop', 0.875"),
        ({"crop_mode": "border", "crop_pct": 1.0}, {}, "trained on pictures with borders"),
        ({"crop_mode": "center", "crop_pct": 0.875}, {}, None),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"resize": "squash", "crop_fraction": 1.0}, None),
    ],
)
def test_timms_own_geometry_is_named_where_the_input_has_another(
    published: dict[str, Any], input: dict[str, Any], warning: str | None
) -> None:
    config = TimmVideo(temporal="average", weights="timm", input=InputSpec(frames=8, size=224, **input))
    if warning is None:
        _check_geometry(config, published)  # warnings are errors
        return
    with pytest.warns(UserWarning, match=warning):
        _check_geometry(config, published)


def test_torchvisions_image_weights_name_their_preset() -> None:
    with pytest.warns(UserWarning, match=r"crop_fraction=0\.966 .*its input says 'crop', 0\.875"):
        warn_of_preset("ResNet50_Weights.IMAGENET1K_V2", InputSpec(frames=8, size=224))
    warn_of_preset("ResNet50_Weights.IMAGENET1K_V1", InputSpec(frames=8, size=224))
    with pytest.warns(UserWarning, match=r"resize='squash' with crop_fraction=0\.875 and aspect=1\.34"):
        warn_of_preset("R3D_18_Weights.KINETICS400_V1", RESNET_INPUT)


@pytest.mark.parametrize("wrong", [{"resize": "pad"}, {"aspect": 1.5}, {"resize": "squash", "aspect": 0.0}])
def test_a_geometry_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"resize is one of|aspect is above 0"):
        InputSpec(frames=1, size=4, **wrong)
