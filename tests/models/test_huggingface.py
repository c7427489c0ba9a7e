"""Hugging Face's models: their own logits, their own preprocessing, errors before any training starts."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, EVERY, NARROW, ORIGINALS, PATCHES, SMALL, built
from transformers import (
    ASTFeatureExtractor,
    AutoTokenizer,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipImageProcessor,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitImageProcessor,
    VivitVideoProcessor,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

from videokd.contracts import UNLABELLED, InputSpec, SoundSpec
from videokd.models import (
    ClassNames,
    HuggingFaceImages,
    HuggingFaceSound,
    HuggingFaceVideo,
    Model,
    XClipVision,
    load_model,
    save_model,
)
from videokd.models.huggingface import preprocessing


def original(name: str, folder: Path) -> torch.nn.Module:
    return type(ORIGINALS[name]()).from_pretrained(folder / name).eval()  # type: ignore[attr-defined, no-any-return]


VIDEO = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
TIMES = torch.arange(8.0).expand(2, -1)


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vivit", "vjepa2"])
@torch.no_grad()
def test_video_logits_equal_the_librarys_own(name: str, originals: Path) -> None:
    model = HuggingFaceVideo(source=str(originals / name), input=SMALL).build(None).eval()
    key = "pixel_values_videos" if name == "vjepa2" else "pixel_values"
    own = original(name, originals)(**{key: VIDEO.transpose(1, 2)})
    torch.testing.assert_close(model.run(VIDEO, TIMES, model.taps).logits, own.logits, rtol=1e-5, atol=1e-5)
    assert model.classes == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")


@torch.no_grad()
def test_xclip_embeds_clips_as_the_library_does(originals: Path) -> None:
    model = XClipVision(source=str(originals / "xclip"), input=SMALL).build(CLASSES).eval()
    own = original("xclip", originals).get_video_features(VIDEO.transpose(1, 2)).pooler_output  # type: ignore[operator]
    found = model.run(VIDEO, TIMES, ("clip",))
    assert found.logits is None
    torch.testing.assert_close(found.features["clip"].values[:, 0, 0, 0], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_similarity_to_class_names_equals_the_librarys_own(name: str, originals: Path) -> None:
    folder = originals / name
    model = HuggingFaceImages(source=str(folder), input=SMALL).build(CLASSES).eval()
    texts = ["a video of run", "a video of jumping jack", "a video of dance"]
    padding = "max_length" if name == "siglip" else True
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=padding, truncation=True, max_length=16, return_tensors="pt"
    )
    words = {"input_ids": tokens["input_ids"]}
    if name == "clip":
        words["attention_mask"] = tokens["attention_mask"]
    own = original(name, originals)(pixel_values=VIDEO[:, :, 0], **words).logits_per_image
    one_frame = model.run(VIDEO[:, :, :1], TIMES[:, :1], ()).logits
    torch.testing.assert_close(one_frame, own, rtol=1e-5, atol=1e-5)
    # Of several frames, the mean of unit embeddings.
    frames = model.run(VIDEO, TIMES, ("frames", "clip")).features
    unit = torch.nn.functional.normalize(frames["frames"].values[:, :, 0, 0], dim=-1)
    torch.testing.assert_close(frames["clip"].values[:, 0, 0, 0], unit.mean(dim=1))


@torch.no_grad()
def test_dinov2_frames_equal_the_librarys_own(originals: Path) -> None:
    model = HuggingFaceImages(source=str(originals / "dinov2"), input=SMALL).build(CLASSES).eval()
    own = original("dinov2", originals)(VIDEO[:, :, 3])
    found = model.run(VIDEO, TIMES, ("frames", "spatial"))
    assert found.logits is None
    torch.testing.assert_close(found.features["frames"].values[:, 3, 0, 0], own.pooler_output, rtol=1e-5, atol=1e-5)
    patches = found.features["spatial"].values[:, 3].flatten(1, 2)
    torch.testing.assert_close(patches, own.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)


def vit(folder: Path, *, of: type[Any], **options: Any) -> Any:
    torch.manual_seed(0)
    network = of(ViTConfig(num_labels=5, **PATCHES, **NARROW), **options).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize(
    ("of", "options"),
    [(ViTModel, {}), (ViTModel, {"add_pooling_layer": False}), (ViTForImageClassification, {})],
)
@torch.no_grad()
def test_vit_frames_are_the_librarys_class_tokens_with_and_without_a_pooler(
    of: type[Any], options: dict[str, Any], tmp_path: Path
) -> None:
    network = vit(tmp_path / "vit", of=of, **options)
    own = getattr(network, "vit", network)(VIDEO[:, :, 3]).last_hidden_state
    model = HuggingFaceImages(source=str(tmp_path / "vit"), input=SMALL).build(CLASSES)
    found = model.run(VIDEO, TIMES, ("frames", "spatial")).features
    torch.testing.assert_close(found["frames"].values[:, 3, 0, 0], own[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["spatial"].values[:, 3].flatten(1, 2), own[:, 1:], rtol=1e-5, atol=1e-5)
    assert not [key for key in model.state_dict() if "pooler" in key]
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved").run(VIDEO, TIMES, ("frames",)).features  # type: ignore[operator]
    assert torch.equal(again["frames"].values, found["frames"].values)


@torch.no_grad()
def test_dinov2_with_registers_has_frames_equal_to_the_librarys_own(tmp_path: Path) -> None:
    network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **PATCHES, **NARROW)).eval()
    network.save_pretrained(tmp_path)
    own = network(VIDEO[:, :, 3])
    model = HuggingFaceImages(source=str(tmp_path), input=SMALL).build(CLASSES)
    found = model.run(VIDEO, TIMES, ("frames", "spatial")).features
    torch.testing.assert_close(found["frames"].values[:, 3, 0, 0], own.pooler_output, rtol=1e-5, atol=1e-5)
    patches = found["spatial"].values[:, 3].flatten(1, 2)
    torch.testing.assert_close(patches, own.last_hidden_state[:, 5:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["V-JEPA 2", "DINOv2 frames"])
def test_parts_that_no_pass_uses_are_left_out(name: str, originals: Path) -> None:
    keys = built(name, originals).state_dict()
    assert not [key for key in keys if "predictor" in key or "mask_token" in key]


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_similarity_to_class_names_is_float32_under_autocast(name: str, originals: Path) -> None:
    model = HuggingFaceImages(source=str(originals / name), input=SMALL).build(CLASSES)
    model.scale.fill_(100.0)  # type: ignore[operator, union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        found = model.run(VIDEO, TIMES, ("frames",))
    frames = torch.nn.functional.normalize(found.features["frames"].values[:, :, 0, 0].float(), dim=-1)
    cosines = torch.nn.functional.normalize(frames.mean(dim=1), dim=-1) @ model.words.T  # type: ignore[operator, union-attr]
    bias = model.bias if name == "siglip" else 0.0
    torch.testing.assert_close(found.logits, 100 * cosines + bias, rtol=1e-5, atol=1e-4)  # type: ignore[operator]


@torch.no_grad()
def test_spectrograms_that_the_library_does_not_normalise_stay_as_they_are(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "ast", tmp_path / "ast")
    written = json.loads((tmp_path / "ast" / "preprocessor_config.json").read_text())
    (tmp_path / "ast" / "preprocessor_config.json").write_text(json.dumps(written | {"do_normalize": False}))
    model = HuggingFaceSound(source=str(tmp_path / "ast"), input=SoundSpec(seconds=1.0)).build(None).eval()
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "ast")
    sound = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    own = extractor(sound[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(model._spectra(sound), own)


@torch.no_grad()
def test_sound_logits_equal_the_librarys_own(originals: Path) -> None:
    model = HuggingFaceSound(source=str(originals / "ast"), input=SoundSpec(seconds=1.0)).build(None).eval()
    samples = 0.1 * torch.randn(2, 16000)
    extractor = ASTFeatureExtractor.from_pretrained(originals / "ast")
    assert (extractor.mean, extractor.std) == (-3.0, 2.0)
    values = extractor([one.numpy() for one in samples], sampling_rate=16000, return_tensors="pt")["input_values"]
    own = original("ast", originals)(values).logits
    torch.testing.assert_close(model.run(samples, torch.zeros(2), ()).logits, own, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_click_is_heard_by_the_patches_of_its_second(originals: Path) -> None:
    model = HuggingFaceSound(source=str(originals / "ast"), input=SoundSpec(seconds=1.0)).build(None).eval()
    silence = torch.zeros(1, 16000)
    click = silence.clone()
    click[0, 9600:9700] = 1  # at 0.6 s
    start = torch.tensor([5.0])
    one, two = (model.run(sound, start, ("block1",)).features["block1"] for sound in (silence, click))
    energy = (two.values - one.values).square().sum(dim=(2, 3, 4))[0]
    assert two.times[0, energy.argmax()].item() == pytest.approx(5.6, abs=0.06)


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_class_names_are_the_text_towers_embeddings(name: str, originals: Path) -> None:
    model = ClassNames(source=str(originals / name)).build(CLASSES)
    # SigLIP was trained on texts that are filled up, and sees the filling.
    filled: dict[str, Any] = {"padding": "max_length", "max_length": 16} if name == "siglip" else {}
    tokens = AutoTokenizer.from_pretrained(originals / name)(["a video of dance"], return_tensors="pt", **filled)
    keys = ("input_ids",) if name == "siglip" else ("input_ids", "attention_mask")
    tower = original(name, originals)
    found = tower.get_text_features(**{key: tokens[key] for key in keys})  # type: ignore[operator]
    own = torch.nn.functional.normalize(found.pooler_output, dim=-1)
    outputs = model(torch.tensor([2, UNLABELLED, 0]), ("clip", "frames"))
    torch.testing.assert_close(outputs.features["clip"].values[0, 0, 0], own, rtol=1e-5, atol=1e-5)
    assert outputs.known.tolist() == [True, False, True]
    # A clip mixed of two classes lies between them; both taps are one.
    mixed = model(torch.tensor([[0.5, 0.5, 0.0]]), ("clip",)).features["clip"].values[0, 0, 0, 0]
    halves = torch.nn.functional.normalize(model.words[0] + model.words[1], dim=-1)  # type: ignore[index]
    torch.testing.assert_close(mixed, halves)


def test_class_names_that_the_tokenizer_does_not_know_are_refused(originals: Path) -> None:
    with pytest.raises(
        ValueError, match="gives every class name the same embedding: its tokenizer knows none of walk, sit"
    ):
        ClassNames(source=str(originals / "clip")).build(["walk", "sit"])
    with (
        pytest.warns(UserWarning, match="the classes are numbers"),
        pytest.raises(ValueError, match="every class name"),
    ):
        ClassNames(source=str(originals / "clip")).build(["0", "1"])


def test_input_none_takes_the_published_preprocessing(originals: Path) -> None:
    spec = HuggingFaceVideo(source=str(originals / "videomae")).build(None).input
    assert (spec.frames, spec.size, spec.mean, spec.std) == (8, 32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert spec.crop_fraction == 0.8  # 32 px of a short side of 40


PROCESSORS: dict[str, Callable[[], Any]] = {
    "VideoMAE": VideoMAEImageProcessor,
    "VideoMAE of videos": VideoMAEVideoProcessor,
    "ViViT": VivitImageProcessor,
    "ViViT of videos": VivitVideoProcessor,
    "ViViT without offset": lambda: VivitImageProcessor(offset=False, rescale_factor=1 / 255),
    "V-JEPA 2": lambda: VJEPA2VideoProcessor(crop_size={"height": 256, "width": 256}),
    "CLIP": CLIPImageProcessor,
    "SigLIP": SiglipImageProcessor,
    "ViT": ViTImageProcessor,
    "DINOv2": lambda: BitImageProcessor(size={"shortest_edge": 256}),
    "bytes": lambda: BitImageProcessor(do_rescale=False),
    "not normalised": lambda: BitImageProcessor(do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_what_the_librarys_own_processor_does(name: str, tmp_path: Path) -> None:
    processor = PROCESSORS[name]()
    processor.save_pretrained(tmp_path)
    spec = preprocessing(str(tmp_path), frames=2, size=518, any_size=True)
    side = spec.short_side
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = processor([picture, picture], return_tensors="pt")
    own = torch.as_tensor(found["pixel_values" if "pixel_values" in found else "pixel_values_videos"])
    edge = (side - spec.size) // 2
    cut = torch.from_numpy(picture[edge : edge + spec.size, edge : edge + spec.size]).permute(2, 0, 1) / 255
    mine = (cut - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    torch.testing.assert_close(mine, own.flatten(0, -4)[0].float(), rtol=1e-5, atol=1e-5 * own.abs().max().item())


@pytest.mark.parametrize(
    ("written", "size", "fraction"),
    [
        ({"size": 224, "crop_size": 224}, 224, 1.0),  # CLIP's, of 2021
        ({"size": {"height": 224, "width": 224}}, 224, 1.0),  # SigLIP: no crop
        ({"size": {"height": 224, "width": 224}, "crop_size": 112, "do_center_crop": False}, 224, 1.0),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224, 0.875),
        ({"size": {"shortest_edge": 256}}, 224, 0.875),  # the size of the architecture, of 256
        ({}, 224, 0.875),
    ],
)
def test_the_crop_is_the_published_one(written: dict[str, Any], size: int, fraction: float, tmp_path: Path) -> None:
    normalised = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | normalised))
    spec = preprocessing(str(tmp_path), frames=8, size=224)
    assert (spec.size, spec.crop_fraction, spec.mean, spec.std) == (size, fraction, (0.5,) * 3, (0.5,) * 3)


def test_a_model_of_any_size_takes_the_published_preprocessing_s(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "dinov2", tmp_path / "dinov2")
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}).save_pretrained(
        tmp_path / "dinov2"
    )
    spec = HuggingFaceImages(source=str(tmp_path / "dinov2")).build(CLASSES).input
    assert (spec.size, spec.crop_fraction) == (48, 0.75)


def test_preprocessing_inside_of_a_processors_file_is_read(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    inner = CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3], size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(inner, AutoTokenizer.from_pretrained(originals / "clip")).save_pretrained(tmp_path / "clip")
    assert not (tmp_path / "clip" / "preprocessor_config.json").exists()
    spec = HuggingFaceImages(source=str(tmp_path / "clip")).build(CLASSES).input
    assert (spec.mean, spec.crop_fraction) == ((0.1, 0.2, 0.3), 1.0)


def test_a_model_that_does_not_say_how_it_is_normalised_says_so(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="does not say how its input is normalised: ImageNet's"):
        HuggingFaceVideo(source=str(tmp_path / "bare")).build(None)


def test_a_head_for_other_classes_is_said_to_be_new_and_the_rest_is_kept(originals: Path) -> None:
    with pytest.warns(UserWarning, match="videomae has no head for these classes: the head is new"):
        model = HuggingFaceVideo(source=str(originals / "videomae"), input=SMALL).build(CLASSES)
    own = original("videomae", originals).state_dict()
    for key, value in model.network.state_dict().items():
        assert key.startswith("classifier") or torch.equal(value, own[key])
    assert model.classes == CLASSES


def pretrained_videomae(folder: Path, **options: Any) -> VideoMAEForPreTraining:
    decoder: dict[str, Any] = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
    torch.manual_seed(0)
    network = VideoMAEForPreTraining(VideoMAEConfig(num_frames=8, **PATCHES, **NARROW, **decoder, **options)).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("mean_pooling", [True, False])
@torch.no_grad()
def test_pretraining_weights_make_a_teacher_of_features(mean_pooling: bool, tmp_path: Path) -> None:
    own = pretrained_videomae(tmp_path / "own", use_mean_pooling=mean_pooling)
    model = HuggingFaceVideo(source=str(tmp_path / "own"), input=SMALL).build(None)
    found = model.run(VIDEO, TIMES, model.taps)
    assert (model.classes, model.has_logits, found.logits) == ((), False, None)
    # The published ones are pooled by no head: their last norm is in the network. A new one's begins as identity.
    mean = own.videomae(VIDEO.transpose(1, 2)).last_hidden_state.mean(dim=1)
    mean = torch.nn.functional.layer_norm(mean, (32,)) if mean_pooling else mean
    torch.testing.assert_close(found.features["clip"].values[:, 0, 0, 0], mean, rtol=1e-5, atol=1e-5)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert (again.classes, again.has_logits) == ((), False)
    assert torch.equal(again.run(VIDEO, TIMES, ("clip",)).features["clip"].values, found.features["clip"].values)  # type: ignore[operator]


def test_pretraining_weights_make_a_student_whose_head_is_new(tmp_path: Path) -> None:
    pretrained_videomae(tmp_path)
    with pytest.warns(UserWarning, match="no head for these classes"):
        model = HuggingFaceVideo(source=str(tmp_path), input=SMALL).build(CLASSES)
    assert model.has_logits
    assert model(model.blank()).logits.shape == (1, 3)


@torch.no_grad()
def test_vjepa2_without_a_head_has_no_random_clips_and_no_logits(tmp_path: Path) -> None:
    own = VJEPA2Model(ORIGINALS["vjepa2"]().config).eval()  # type: ignore[arg-type]
    own.save_pretrained(tmp_path / "own")
    mean = own.encoder(VIDEO.transpose(1, 2)).last_hidden_state.mean(dim=1)
    config = HuggingFaceVideo(source=str(tmp_path / "own"), input=SMALL)
    teacher = config.build(None)
    with pytest.warns(UserWarning, match="no head for these classes: the head is new"):
        student = config.build(CLASSES).eval()
    assert (teacher.has_logits, student.has_logits) == (False, True)
    for model in (teacher, student):
        clip = model.run(VIDEO, TIMES, ("clip",)).features["clip"].values[:, 0, 0, 0]
        torch.testing.assert_close(clip, mean, rtol=1e-5, atol=1e-5)
    assert not [key for key in teacher.state_dict() if "pooler" in key or "classifier" in key]
    save_model(teacher, tmp_path / "saved")
    assert not load_model(tmp_path / "saved").has_logits


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vivit"])
@torch.no_grad()
def test_clips_are_what_the_classifier_takes(name: str, originals: Path) -> None:
    model = HuggingFaceVideo(source=str(originals / name), input=SMALL).build(None)
    found = model.run(VIDEO, TIMES, ("clip",))
    logits = model.network.classifier(found.features["clip"].values[:, 0, 0, 0])  # type: ignore[operator]
    torch.testing.assert_close(logits, found.logits)


def test_other_weights_under_a_configuration_name_what_they_lack(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        ValueError, match=r"another architecture than VideoMAEFor.*it lacks.*videomae\.encoder\.layer\.2"
    ):
        HuggingFaceVideo(source=str(tmp_path / "wrong"), input=SMALL).build(CLASSES)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("videomae", {"num_hidden_layers": 1}),
        ("videomae", {"qv_bias": False}),
        ("vivit", {"num_hidden_layers": 1}),
        ("clip", {"vision_config": {"num_hidden_layers": 1}}),
    ],
)
def test_weights_that_the_configuration_has_no_place_for_are_refused(
    name: str, changed: dict[str, Any], originals: Path, tmp_path: Path
) -> None:
    shutil.copytree(originals / name, tmp_path / "less")
    config = json.loads((tmp_path / "less" / "config.json").read_text())
    changed = {key: config[key] | value if isinstance(value, dict) else value for key, value in changed.items()}
    (tmp_path / "less" / "config.json").write_text(json.dumps(config | changed))
    kind = HuggingFaceImages if name == "clip" else HuggingFaceVideo
    with pytest.raises(ValueError, match=r"has weights that its configuration has no place for, .*layer"):
        kind(source=str(tmp_path / "less"), input=SMALL).build(CLASSES)


def test_more_layers_of_a_vit_are_refused_under_both_their_names(tmp_path: Path) -> None:
    for of in (ViTModel, ViTForImageClassification):
        vit(tmp_path, of=of)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
        with pytest.raises(ValueError, match=r"no place for, .*layers\.1"):
            HuggingFaceImages(source=str(tmp_path), input=SMALL).build(CLASSES)


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("videomae", InputSpec(frames=16, size=32), "takes 8 frames of 32 px and no others.*got frames=16, size=32"),
        ("timesformer", InputSpec(frames=8, size=64), "takes 8 frames of 32 px and no others.*size=64"),
        ("vjepa2", InputSpec(frames=7, size=32), "frames that 2 divides and a size that 16 divides, got frames=7"),
    ],
)
def test_an_input_that_the_architecture_cannot_take_is_refused(
    name: str, spec: InputSpec, said: str, originals: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        HuggingFaceVideo(source=str(originals / name), input=spec).build(None)


@torch.no_grad()
def test_vjepa2_has_the_positions_of_other_frames_and_sizes(originals: Path, tmp_path: Path) -> None:
    spec = InputSpec(frames=4, size=64)
    model = HuggingFaceVideo(source=str(originals / "vjepa2"), input=spec).build(None).eval()
    attention = model.network.vjepa2.encoder.layer[0].attention  # type: ignore[union-attr, index]
    steps, rows, columns = attention.get_position_ids(torch.zeros(1, 2 * 4 * 4, 32))  # type: ignore[operator, union-attr]
    assert steps.tolist() == [step for step in range(2) for _ in range(16)]
    assert rows.tolist() == [row for _ in range(2) for row in range(4) for _ in range(4)]
    assert columns.tolist() == [0, 1, 2, 3] * 8
    # The library's own, made for that size.
    shutil.copytree(originals / "vjepa2", tmp_path / "large")
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    (tmp_path / "large" / "config.json").write_text(json.dumps(config | {"crop_size": 64}))
    own = type(ORIGINALS["vjepa2"]()).from_pretrained(tmp_path / "large").eval()  # type: ignore[attr-defined]
    video = torch.randn(2, 3, 4, 64, 64)
    logits = model.run(video, TIMES[:, :4], ()).logits
    torch.testing.assert_close(logits, own(video.transpose(1, 2)).logits, rtol=1e-5, atol=1e-5)
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").run(video, TIMES[:, :4], ()).logits, logits)  # type: ignore[operator]


def test_what_is_not_square_is_refused_and_a_square_of_two_numbers_is_not(tmp_path: Path) -> None:
    vivit: dict[str, Any] = {"num_frames": 8, "num_labels": 5, **NARROW}
    VivitForVideoClassification(VivitConfig(image_size=32, tubelet_size=[2, 16, 8], **vivit)).save_pretrained(
        tmp_path / "patch"
    )
    with pytest.raises(ValueError, match="has tubelets of 16 x 8 px: patches have to be square"):
        HuggingFaceVideo(source=str(tmp_path / "patch"), input=SMALL).build(None)
    VivitForVideoClassification(VivitConfig(image_size=[32, 64], **vivit)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"has image_size \[32, 64\]: pictures and patches have to be square"):
        HuggingFaceVideo(source=str(tmp_path / "wide"), input=SMALL).build(None)
    two: dict[str, Any] = {"image_size": [32, 32], "patch_size": [16, 16]}
    VideoMAEForVideoClassification(VideoMAEConfig(num_frames=8, **two, **NARROW)).save_pretrained(tmp_path / "two")
    model = HuggingFaceVideo(source=str(tmp_path / "two"), input=SMALL).build(None)
    assert model(model.blank(), ("frames",)).features["frames"].values.shape == (1, 4, 2, 2, 32)


@torch.no_grad()
def test_timesformer_attends_in_space_and_time_at_once_but_not_in_space_alone(tmp_path: Path) -> None:
    for kind in ("joint_space_time", "space_only"):
        config = TimesformerConfig(num_frames=8, attention_type=kind, **PATCHES, **NARROW)
        own = TimesformerForVideoClassification(config).eval()
        own.save_pretrained(tmp_path / kind)
        if kind == "joint_space_time":
            model = HuggingFaceVideo(source=str(tmp_path / kind), input=SMALL).build(None)
            logits = model.run(VIDEO, TIMES, model.taps).logits
            torch.testing.assert_close(logits, own(VIDEO.transpose(1, 2)).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="space_only attends in space only, which has no adapter here"):
        HuggingFaceVideo(source=str(tmp_path / "space_only"), input=SMALL).build(None)


def test_other_inputs_of_the_others_are_refused_too(originals: Path) -> None:
    with pytest.raises(ValueError, match="takes pictures of 32 px, got size=64"):
        HuggingFaceImages(source=str(originals / "clip"), input=InputSpec(frames=8, size=64)).build(CLASSES)
    with pytest.raises(ValueError, match="takes sizes that 16 divides, got size=40"):
        HuggingFaceImages(source=str(originals / "dinov2"), input=InputSpec(frames=8, size=40)).build(CLASSES)
    with pytest.raises(ValueError, match="takes 16000 samples a second, got 8000"):
        HuggingFaceSound(source=str(originals / "ast"), input=SoundSpec(seconds=1, sample_rate=8000)).build(None)
    with pytest.raises(ValueError, match=r"sounds of up to 1\.28 s, got 3 s"):
        HuggingFaceSound(source=str(originals / "ast"), input=SoundSpec(seconds=3)).build(None)


def test_a_model_of_another_kind_and_one_that_is_not_there_say_so(originals: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is a model of the kind 'clip', which has no adapter here; take HuggingFaceImages"
    ):
        HuggingFaceVideo(source=str(originals / "clip")).build(None)
    (tmp_path / "registers").mkdir()
    (tmp_path / "registers" / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    with pytest.raises(ValueError, match="kind 'dinov3_vit', which has no adapter here; there are: clip, siglip, dino"):
        HuggingFaceImages(source=str(tmp_path / "registers")).build(CLASSES)
    with pytest.raises(ValueError, match="gone' could not be had"):
        HuggingFaceVideo(source=str(tmp_path / "gone")).build(None)
    with pytest.raises(ValueError, match=r"no \{\} for the class name: 'a video'"):
        ClassNames(source=str(originals / "clip"), prompt="a video").build(CLASSES)
    with pytest.raises(ValueError, match="class names needs classes"):
        ClassNames(source=str(originals / "clip")).build(None)


def test_without_the_library_the_extra_is_named(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'videokd\[hf\]'"):
        HuggingFaceVideo(source=str(originals / "videomae")).build(None)


def test_code_that_comes_with_a_model_is_not_run(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "code.Evil", "AutoModel": "code.Evil"}}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="could not be had"):
        HuggingFaceVideo(source=str(tmp_path / "evil")).build(None)
    assert not (tmp_path / "ran").exists()


def test_a_classifier_of_the_same_size_is_kept(originals: Path) -> None:
    five = [f"class {number}" for number in range(5)]
    model = HuggingFaceVideo(source=str(originals / "videomae"), input=SMALL).build(five)
    own = original("videomae", originals)
    assert isinstance(own, VideoMAEForVideoClassification)
    assert torch.equal(model.network.classifier.weight, own.classifier.weight)  # type: ignore[union-attr]


def test_a_classifier_for_as_many_other_classes_is_new(originals: Path, tmp_path: Path) -> None:
    five = ("jump", "sit", "stand", "walk", "wave")
    for name, kind in (("videomae", HuggingFaceVideo), ("ast", HuggingFaceSound)):
        shutil.copytree(originals / name, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["id2label"] = dict(enumerate(five))
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        spec: Any = SMALL if name == "videomae" else SoundSpec(seconds=1.0)
        source = kind(source=str(tmp_path / name), input=spec)
        own = original(name, originals).state_dict()
        head = "classifier.weight" if name == "videomae" else "classifier.dense.weight"
        for kept in (source.build(None), source.build(five)):
            assert kept.classes == five
            assert torch.equal(kept.network.state_dict()[head], own[head])
        for others in (five[::-1], ("a", "b", "c", "d", "e")):
            with pytest.warns(UserWarning, match="no head for these classes: the head is new"):
                model = source.build(others)
            assert model.classes == others
            assert not torch.isclose(model.network.state_dict()[head], own[head]).any()


HALF = ["VideoMAE", "V-JEPA 2", "X-CLIP", "CLIP frames", "SigLIP frames", "DINOv2 frames", "AST", "class names"]


@pytest.mark.parametrize("name", HALF)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*the head is new")
def test_weights_kept_in_half_are_taken_in_float32(name: str, originals: Path, tmp_path: Path) -> None:
    config = EVERY[name](originals)
    source = Path(config.source)  # type: ignore[attr-defined]
    shutil.copytree(source, tmp_path / "half")
    type(ORIGINALS[source.name]()).from_pretrained(source).half().save_pretrained(tmp_path / "half")  # type: ignore[attr-defined]
    model = replace(config, source=str(tmp_path / "half")).build(CLASSES).eval()  # type: ignore[call-arg]
    save_model(model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "half")
    for one in (model, load_model(tmp_path / "saved")):
        assert {value.dtype for value in one.state_dict().values()} == {torch.float32}
        assert one(one.blank(), ("clip",)).features["clip"].values.dtype == torch.float32


def test_no_configuration_chooses_the_code_that_attends(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text()) | {"attn_implementation": "somebody/kernel"}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    HuggingFaceVideo(source=str(tmp_path / "evil"), input=SMALL).build(None)
    written = HuggingFaceVideo(source="nowhere", input=SMALL, architecture=json.dumps(config))
    assert written.build(CLASSES, pretrained=False).classes == CLASSES


@pytest.mark.parametrize("kind", ["videomae", "class names"])
def test_a_saved_model_that_lacks_what_it_is_made_of_does_not_go_to_the_hub(
    kind: str, originals: Path, tmp_path: Path
) -> None:
    if kind == "videomae":
        model: Model[Any] = HuggingFaceVideo(source=str(originals / kind), input=SMALL).build(None)
    else:
        model = ClassNames(source=str(originals / "clip")).build(CLASSES)
    save_model(model, tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    description["model"] |= {"architecture": None} if kind == "videomae" else {"width": None}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"model\.json lacks what its \w+ is made of"):
        load_model(tmp_path)
