"""Hugging Face's models: their own logits, their own preprocessing, errors before any training starts."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import CLASSES, ORIGINALS, SMALL
from transformers import (
    ASTFeatureExtractor,
    AutoTokenizer,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
)

from videokd.contracts import UNLABELLED, InputSpec, SoundSpec
from videokd.models import ClassNames, HuggingFaceImages, HuggingFaceSound, HuggingFaceVideo, XClipVision


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


@torch.no_grad()
def test_class_names_are_the_text_towers_embeddings(originals: Path) -> None:
    model = ClassNames(source=str(originals / "clip")).build(CLASSES)
    tokens = AutoTokenizer.from_pretrained(originals / "clip")(["a video of dance"], return_tensors="pt")
    tower = original("clip", originals)
    found = tower.get_text_features(**{key: tokens[key] for key in ("input_ids", "attention_mask")})  # type: ignore[operator]
    own = torch.nn.functional.normalize(found.pooler_output, dim=-1)
    outputs = model(torch.tensor([2, UNLABELLED, 0]), ("clip", "frames"))
    torch.testing.assert_close(outputs.features["clip"].values[0, 0, 0], own, rtol=1e-5, atol=1e-5)
    assert outputs.known.tolist() == [True, False, True]
    # A clip mixed of two classes lies between them; both taps are one.
    mixed = model(torch.tensor([[0.5, 0.5, 0.0]]), ("clip",)).features["clip"].values[0, 0, 0, 0]
    halves = torch.nn.functional.normalize(model.words[0] + model.words[1], dim=-1)  # type: ignore[index]
    torch.testing.assert_close(mixed, halves)


def test_input_none_takes_the_published_preprocessing(originals: Path) -> None:
    spec = HuggingFaceVideo(source=str(originals / "videomae")).build(None).input
    assert (spec.frames, spec.size, spec.mean, spec.std) == (8, 32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert spec.crop_fraction == 0.8  # 32 px of a short side of 40


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


def test_pretraining_weights_make_a_teacher_of_features(tmp_path: Path) -> None:
    config = VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
    )
    VideoMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no head for these classes"):
        model = HuggingFaceVideo(source=str(tmp_path), input=SMALL).build(CLASSES)
    assert model.has_logits


def test_other_weights_under_a_configuration_name_what_they_lack(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        ValueError, match=r"another architecture than VideoMAEFor.*it lacks.*videomae\.encoder\.layer\.2"
    ):
        HuggingFaceVideo(source=str(tmp_path / "wrong"), input=SMALL).build(CLASSES)


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


def test_vjepa2_takes_other_frames_and_sizes(originals: Path) -> None:
    model = HuggingFaceVideo(source=str(originals / "vjepa2"), input=InputSpec(frames=4, size=64)).build(None).eval()
    assert model(model.blank(), ("frames",)).features["frames"].values.shape == (1, 2, 4, 4, 32)


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
        ValueError, match=r"is a model of the kind 'clip', which has no adapter here; there are: videomae"
    ):
        HuggingFaceVideo(source=str(originals / "clip")).build(None)
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
