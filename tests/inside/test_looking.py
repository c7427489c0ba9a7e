import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import collate
from videokd.clips.manifest import Manifest, Video
from videokd.contracts import Dense, InputSpec, SoundSpec
from videokd.evaluate import gap_recovered
from videokd.inside import Fold, look, read, steps, write
from videokd.inside.cka import TapSimilarity, pooled
from videokd.inside.probes import Probed
from videokd.inside.rounds import Round, summary
from videokd.machine import Machine
from videokd.models import CompactShift, Conv3d, MelNetwork, ModelConfig, load_model, save_model

CPU = Machine(device="cpu")
STUDENT = InputSpec(frames=8, size=32, sampling=Dense(stride=2), crop_fraction=0.8)
TEACHER = InputSpec(frames=16, size=40, crop_fraction=0.6)  # by itself it would be shown another part of the video


def saved(folder: Path, config: ModelConfig, classes: tuple[str, ...], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_model(config.build(classes), folder)
    return folder


@pytest.fixture(scope="module")
def videos(drawn_set: Path) -> Manifest:
    return read_manifest(drawn_set)


@pytest.fixture(scope="module")
def fold(videos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Fold:
    """Untrained models; the second arm is the first seed's student alone, and the third the teacher itself."""
    folder, classes = tmp_path_factory.mktemp("models"), videos.classes
    teacher = saved(folder / "teacher", Conv3d(width=4, input=TEACHER), classes)
    alone = [
        saved(folder / f"alone{seed}", CompactShift(width=8, input=STUDENT), classes, seed + 1) for seed in range(2)
    ]
    arms = {"alone": alone, "distilled": alone[:1], "copy": [teacher]}
    return Fold(teacher=teacher, arms=arms, videos=videos.split("test"), fit=videos.split("train"))


@pytest.fixture(scope="module")
def found(fold: Fold) -> dict[str, Any]:
    done: list[int] = []
    said = look([fold], machine=CPU, batch_size=6, memory=FrameMemory(), advance=done.append)
    assert sum(done) == steps([fold]) == 2 * (12 + 24)
    return said


def test_similarity_is_that_of_the_models_features_over_the_same_batches(fold: Fold, found: dict[str, Any]) -> None:
    dataset = ClipDataset(fold.videos, {"student": STUDENT, "teacher": TEACHER}, memory=FrameMemory())
    student, teacher = load_model(fold.arms["distilled"][0]), load_model(fold.teacher)
    similarity = TapSimilarity()
    for rows in (range(6), range(6, 12)):
        clips = collate([dataset[row] for row in rows]).clips
        with torch.no_grad():
            said, taught = student(clips["student"], student.taps), teacher(clips["teacher"], teacher.taps)
        similarity.update(pooled(said.features), pooled(taught.features))
    cka = found["cka"]
    assert cka["taps"] == {"student": list(student.taps), "teacher": list(teacher.taps)}
    for row, tap in enumerate(student.taps):
        expected = [similarity.value(tap, other) for other in teacher.taps]
        assert cka["arms"]["distilled"][row] == pytest.approx(expected, abs=1e-4)
    assert cka["clips"] == found["clips"] == 12
    assert found["seeds"] == {"alone": 2, "distilled": 1, "copy": 1}


def test_a_copy_of_the_teacher_is_like_it_in_every_way(found: dict[str, Any]) -> None:
    copied = found["cka"]["arms"]["copy"]
    assert [copied[place][place] for place in range(5)] == pytest.approx([1] * 5)
    assert copied[0][4] < 0.999
    assert found["saliency"]["agreement"]["copy"] == {"spearman": pytest.approx(1), "iou": 1}
    assert found["saliency"]["agreement"]["alone"]["spearman"] < 0.9
    assert found["saliency"]["on_object"]["copy"] == pytest.approx(found["saliency"]["on_object"]["teacher"])
    for factor in ("speed", "position"):
        assert found["probes"][factor]["copy"] == pytest.approx(found["probes"][factor]["teacher"])


def test_saliency_says_how_it_was_found_and_what_chance_gives(found: dict[str, Any]) -> None:
    saliency = found["saliency"]
    assert saliency["method"] == "grad-cam"
    assert saliency["taps"] == {"teacher": "frames", "alone": "stage3", "distilled": "stage3", "copy": "frames"}
    assert 0.05 < saliency["object_area"] < 0.4
    assert saliency["chance_iou"] == pytest.approx(1 / 9)


def test_probes_are_the_mean_over_seeds_and_name_each(found: dict[str, Any]) -> None:
    speed = found["probes"]["speed"]
    assert (speed["score"], speed["fitted"], speed["scored"]) == ("R^2", 24, 12)
    assert speed["each"]["distilled"] == speed["each"]["alone"][:1]
    assert speed["alone"] == pytest.approx(sum(speed["each"]["alone"]) / 2)
    # Four slides to score on are too few.
    assert set(found["probes"]) == {"speed", "position"}
    assert set(speed["gap_recovered"]) == {"distilled", "copy"}


def test_what_was_found_is_read_back(found: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path) is None
    path = write(tmp_path, found)
    assert path.name == "inside.json"
    assert read(tmp_path) == json.loads(json.dumps(found)) == found


def test_batches_of_another_size_and_decoding_by_workers_find_the_same(fold: Fold, found: dict[str, Any]) -> None:
    other = look([fold], machine=CPU, batch_size=12, workers=1, memory=FrameMemory())
    assert other["saliency"]["agreement"]["alone"] == pytest.approx(found["saliency"]["agreement"]["alone"], abs=1e-3)
    assert other["saliency"]["on_object"] == pytest.approx(found["saliency"]["on_object"], abs=1e-4)
    assert other["probes"]["speed"]["alone"] == pytest.approx(found["probes"]["speed"]["alone"], abs=1e-3)


def test_gap_recovered_is_of_each_factor_and_only_where_there_is_a_gap() -> None:
    def probed(score: float) -> Probed:
        return Probed(score, 0.0, 20, 20)

    def round_of(speed: tuple[float, float, float], shape: tuple[float, float, float]) -> Round:
        names = ("teacher", "alone", "distilled")
        scores = {"speed": speed, "shape": shape}
        return Round(probes={name: dict(zip(names, map(probed, each))) for name, each in scores.items()})

    rounds = [round_of((0.9, 0.5, 0.7), (0.9, 0.85, 0.9)), round_of((0.9, 0.3, 0.7), (0.9, 0.86, 0.9))]
    probes = summary(rounds)["probes"]
    # Gains .2 and .4 over gaps .4 and .6; of the shape the gap is 4 and 5 points.
    assert probes["speed"]["gap_recovered"] == {"distilled": pytest.approx(0.6)}
    assert probes["shape"]["gap_recovered"] == {"distilled": None}
    # A probe below chance has read nothing: the gap is .05 and not .25.
    misled = summary([round_of((0.05, -0.2, 0.04), (0.9, 0.5, 0.9))])["probes"]
    assert misled["speed"]["gap_recovered"] == {"distilled": None}
    assert misled["speed"]["alone"] == -0.2
    rule = gap_recovered(teacher=0.9, alone=[0.5, 0.3], distilled=[0.7, 0.7])
    assert rule is not None
    assert rule.mean == pytest.approx(0.6)
    assert (probes["speed"]["score"], probes["shape"]["score"]) == ("R^2", "accuracy")


def test_without_videos_to_fit_on_half_of_them_is_never_scored(fold: Fold, videos: Manifest) -> None:
    said = look([replace(fold, videos=videos.split("train"), fit=None)], clips=24, machine=CPU)
    speed = said["probes"]["speed"]
    assert (speed["fitted"], speed["scored"]) == (12, 12)


def test_videos_to_fit_on_are_not_to_score_on(fold: Fold, videos: Manifest) -> None:
    with pytest.raises(ValueError, match="12 source videos are both to fit probes on and to score them on"):
        replace(fold, fit=videos.split("test"))
    with pytest.raises(ValueError, match="none is 'teacher'"):
        replace(fold, arms={"teacher": [fold.teacher]})
    with pytest.raises(ValueError, match="batch_size is at least 4, got 2"):
        look([fold], batch_size=2)
    with pytest.raises(ValueError, match="folds have the same arms"):
        look([fold, replace(fold, arms={"alone": fold.arms["alone"]})])


def test_folds_are_averaged(fold: Fold, found: dict[str, Any]) -> None:
    fold = replace(fold, arms={"alone": fold.arms["alone"][:1], "distilled": fold.arms["alone"][1:]})
    once, twice = look([fold], machine=CPU, clips=8), look([fold, fold], machine=CPU, clips=8)
    assert (once["clips"], twice["clips"]) == (8, 16)
    assert twice["cka"]["arms"]["alone"] == once["cka"]["arms"]["alone"]
    assert twice["seeds"] == {"alone": 2, "distilled": 2}
    assert once["probes"] is None  # 8 clips are too few
    assert "too little is known" in once["notes"][0]


def test_a_broken_video_is_named_or_stops_it(fold: Fold, tmp_path: Path) -> None:
    broken = replace(fold.videos.videos[5], id="broken.mp4", path=tmp_path / "broken.mp4", group="broken")
    broken.path.write_bytes(b"no video")
    fold = replace(fold, videos=replace(fold.videos, videos=(*fold.videos.videos, broken)), fit=None)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        look([fold], machine=CPU)
    said = look([fold], machine=CPU, on_bad_video="skip")
    assert said["clips"] == 12
    assert len(said["skipped"]) == 1
    assert "broken.mp4" in said["skipped"][0]


def test_a_teacher_that_listens_is_compared_by_its_features_alone(noisy_set: Path, tmp_path: Path) -> None:
    videos = read_manifest(noisy_set)
    listening = MelNetwork(backbone="mobilenetv3_small_050", input=SoundSpec(seconds=3.0), dropout=0.0)
    student = CompactShift(width=8, input=STUDENT)
    teacher = saved(tmp_path / "teacher", listening, videos.classes)
    arms = {"alone": [saved(tmp_path / "alone", student, videos.classes)], "listening": [teacher]}
    said = look([Fold(teacher=teacher, arms=arms, videos=videos)], machine=CPU, batch_size=8)
    assert said["clips"] == said["cka"]["clips"] == 6  # two have no sound
    listened = said["cka"]["arms"]["listening"]
    rows = [said["cka"]["taps"]["student"].index(tap) for tap in said["cka"]["taps"]["teacher"]]
    assert [listened[row][place] for place, row in enumerate(rows)] == pytest.approx([1] * len(rows))
    # All these videos look the same: of pictures there is nothing to tell apart.
    assert said["cka"]["arms"]["alone"][0][0] is None
    assert said["saliency"]["agreement"] == {"alone": None}
    assert said["saliency"]["on_object"] is None
    assert said["probes"] is None
    assert said["notes"][0] == "teacher looks at no frames: it has no saliency"
    json.dumps(said, allow_nan=False)


def test_models_without_classes_or_views_leave_a_note(originals: Path, videos: Manifest, tmp_path: Path) -> None:
    from tiny_models import built  # transformers takes seconds to import

    folders = {}
    for name in ("X-CLIP", "class names"):
        folders[name] = tmp_path / name
        save_model(built(name, originals), folders[name])
    student = saved(tmp_path / "student", CompactShift(width=8, input=STUDENT), videos.classes)
    test = videos.split("test")
    said = look([Fold(teacher=folders["X-CLIP"], arms={"alone": [student]}, videos=test)], machine=CPU)
    assert said["notes"][0] == "teacher tells no classes apart: it has no saliency"
    assert said["saliency"]["agreement"] == {"alone": None}
    said = look([Fold(teacher=folders["class names"], arms={"alone": [student]}, videos=test)], machine=CPU)
    assert said["notes"][0] == "teacher takes labels and no clips: it is not compared"
    assert (said["cka"], said["saliency"]["agreement"]) == (None, {"alone": None})


def test_a_network_with_pooled_taps_alone_is_explained_at_its_pixels(videos: Manifest, tmp_path: Path) -> None:
    from videokd.models import TorchvisionImages

    frames = TorchvisionImages(name="resnet18", input=InputSpec(frames=4, size=32, sampling=Dense(stride=4)))
    teacher = saved(tmp_path / "teacher", Conv3d(width=4, input=TEACHER), videos.classes)
    student = saved(tmp_path / "student", frames, videos.classes)
    fold = Fold(teacher=teacher, arms={"alone": [student]}, videos=videos.split("test"))
    said = look([fold], machine=CPU)
    assert said["saliency"]["method"] == "gradient x input"
    assert said["saliency"]["taps"] == {"teacher": None, "alone": None}
    assert said["notes"][0] == "alone has no map that its logits come from: saliency is gradient x input"
    with pytest.raises(ValueError, match="alone has no map for Grad-CAM"):
        look([fold], machine=CPU, method="grad-cam")


def relabelled(videos: Manifest, labels: Sequence[str | None], *, several: bool = False) -> Manifest:
    """The same videos, with a label each in the form of single or of several labels."""

    def one(video: Video, label: str | None) -> Video:
        return replace(video, label=None if several else label, labels=(label,) if several and label else ())

    return replace(videos, videos=tuple(map(one, videos.videos, labels)))


def test_of_unlabelled_clips_what_the_teacher_says_is_explained(fold: Fold) -> None:
    fold = replace(fold, arms={"alone": fold.arms["alone"][1:]}, fit=None)
    dataset = ClipDataset(fold.videos, {"student": STUDENT, "teacher": TEACHER})
    teacher = load_model(fold.teacher)
    with torch.no_grad():
        logits = teacher(collate([dataset[row] for row in range(12)]).clips["teacher"]).logits
        own = load_model(fold.arms["alone"][0])(collate([dataset[row] for row in range(12)]).clips["student"]).logits
    assert (own.argmax(dim=1) != logits.argmax(dim=1)).any()
    said = [teacher.classes[number] for number in logits.argmax(dim=1).tolist()]
    filmed, silent, taught, several = (
        look([replace(fold, videos=videos)], machine=CPU)["saliency"]["agreement"]["alone"]
        for videos in (
            fold.videos,
            relabelled(fold.videos, [None] * 12),
            relabelled(fold.videos, said),
            relabelled(fold.videos, said, several=True),
        )
    )
    assert silent == taught == several
    assert silent != filmed


def test_a_teacher_of_other_classes_is_asked_for_its_own(fold: Fold, tmp_path: Path) -> None:
    teacher = saved(tmp_path / "teacher", Conv3d(width=4, input=TEACHER), ("x", "y"))
    said = look([replace(fold, teacher=teacher, arms={"alone": fold.arms["alone"][:1]}, fit=None)], machine=CPU)
    assert said["saliency"]["agreement"]["alone"]["spearman"] is not None
