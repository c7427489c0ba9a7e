import io
from dataclasses import replace
from pathlib import Path

import av
import made_up
import numpy as np
import pytest
import torch
from PIL import Image

from videokd.clips.dataset import ClipDataset
from videokd.clips.lists import read_manifest
from videokd.clips.loader import collate
from videokd.models import load_model
from videokd.predictions import Predictions, read_predictions, write_predictions
from videokd.report.content import Films, Missing, Section
from videokd.report.filmstrips import chosen, encoded, films
from videokd.report.subject import Run, of_runs, of_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, drawn_set: Path) -> Path:
    """Two arms with small nets that learned nothing, and drawn answers."""
    folder = tmp_path_factory.mktemp("films") / "s"
    return made_up.study(folder, arms=("alone", "distilled"), seeds=2, videos=drawn_set, inside=False)


def said(logits: list[list[float]], label: list[int]) -> Predictions:
    ids = tuple("abcdef"[: len(label)])
    return Predictions(
        ids=ids, groups=ids, paths=ids, label=torch.tensor(label), logits=torch.tensor(logits), classes=("x", "y")
    )


def pair(folder: Path, name: str, before: Predictions, after: Predictions) -> tuple[Run, Run]:
    runs = []
    for arm, one in (("alone", before), ("distilled", after)):
        path = folder / f"{arm}-{name}"
        path.mkdir()
        write_predictions(path, one)
        runs.append(Run(path=path))
    return runs[0], runs[1]


def test_videos_are_chosen_by_how_often_they_flip_then_by_how_far(tmp_path: Path) -> None:
    # True class x. Positive logits of x are right. Clips a, b, c, d; two pairs.
    label = [0, 0, 0, 0]
    wrong, right, sure = [-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]
    first = pair(tmp_path, "0", said([wrong, wrong, wrong, right], label), said([right, sure, right, wrong], label))
    second = pair(tmp_path, "1", said([wrong, right, wrong, wrong], label), said([right, right, sure, wrong], label))
    won, lost = chosen([first, second], each=3)
    # a and c in both pairs, c with the larger change; b in one.
    assert [(flip.id, flip.times, flip.of) for flip in won] == [("c", 2, 2), ("a", 2, 2), ("b", 1, 2)]
    assert [(flip.id, flip.times) for flip in lost] == [("d", 1)]
    # p(x): sigmoid(1) - sigmoid(-1) = .4621; sigmoid(5) - sigmoid(-1) = .7244. Mean of the pairs.
    assert won[0].change == pytest.approx((0.4621 + 0.7244) / 2, abs=1e-4)
    assert won[1].change == pytest.approx(0.4621, abs=1e-4)
    assert won[0].after.path.name == "distilled-0"
    assert chosen([first, second], each=1)[0] == won[:1]


def test_of_videos_lost_as_often_the_one_that_lost_most_comes_first(tmp_path: Path) -> None:
    wrong, right, sure = [-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]
    both = pair(tmp_path, "0", said([right, sure], [0, 0]), said([wrong, wrong], [0, 0]))
    won, lost = chosen([both], each=2)
    assert won == []
    assert [flip.id for flip in lost] == ["b", "a"]
    assert lost[0].change < lost[1].change < 0


def made(section: Section | Missing) -> list[Films]:
    assert isinstance(section, Section)
    return [block for block in section.blocks if isinstance(block, Films)]


def test_a_film_has_its_clip_its_strips_and_both_answers(study: Path) -> None:
    won, lost = made(films(of_study(study), each=1))
    film = won.films[0]
    assert film.fault == ""
    assert film.label == Path(film.path).stem.partition("_")[2]
    with av.open(io.BytesIO(film.clip)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 16  # all of the two seconds
    assert (frames[0].shape[1], frames[0].shape[0]) == film.clip_size
    assert [title.split(" (")[0] for title, _ in film.strips] == [
        "Frames, 0 to 1.9 s",
        "student distilled looks",
        "student alone looks",
    ]
    for _, picture in film.strips:
        with Image.open(io.BytesIO(picture.data)) as image:
            assert image.size == (picture.width, picture.height)
    assert [answer.arm for answer in film.answers] == ["distilled", "alone"]
    distilled, alone = film.answers
    assert distilled.top[0][0] == film.label != alone.top[0][0]
    assert len(distilled.top) == 5
    assert film.plot is not None
    assert [film.label == film.answers[1].top[0][0] for film in lost.films] == [True] * len(lost.films)


def test_confidence_at_the_end_is_that_of_the_whole_video(study: Path, drawn_set: Path) -> None:
    film = made(films(of_study(study), each=1))[0].films[0]
    model = load_model(study / "distilled-seed0")
    manifest = read_manifest(drawn_set).split("test")
    place = next(k for k, video in enumerate(manifest.videos) if str(video.path) == film.path)
    dataset = ClipDataset(manifest.with_classes(model.classes, of=""), {"student": model.input})
    with torch.no_grad():
        logits = model(collate([dataset[place]]).clips["student"]).logits
    assert logits is not None
    expected = logits.softmax(dim=1)[0, model.classes.index(film.label)].item()
    answer = film.answers[0]
    assert answer.confidence[-1] == pytest.approx(expected, abs=1e-4)
    # Two frames, four, ... of 16 at 8 a second: the last one shown is the one before.
    assert answer.seconds == pytest.approx([(2 * k - 1) / 8 for k in range(1, 9)])


def test_a_video_that_is_gone_is_named_and_keeps_its_answers(study: Path, tmp_path: Path) -> None:
    subject = of_study(study)
    for run in subject.runs:
        found = read_predictions(run.path)
        gone = replace(found, paths=tuple(str(tmp_path / name) for name in found.ids))
        run.__dict__["predictions"] = gone
    film = made(films(subject, each=1))[0].films[0]
    assert f"{tmp_path / film.id} is not found from here ({Path.cwd()})" in film.fault
    assert film.clip == b""
    assert film.strips == ()
    assert len(film.answers) == 2


def test_a_broken_video_is_named(study: Path, tmp_path: Path) -> None:
    subject = of_study(study)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for run in subject.runs:
        found = read_predictions(run.path)
        run.__dict__["predictions"] = replace(found, paths=(str(broken),) * len(found.ids))
    film = made(films(subject, each=1))[0].films[0]
    assert "broken.mp4" in film.fault


def test_without_nets_there_is_still_the_video(study: Path, tmp_path: Path, drawn_set: Path) -> None:
    folder = tmp_path / "s"
    made_up.study(folder, arms=("alone", "distilled"), seeds=1, videos=drawn_set, inside=False)
    for weights in folder.glob("*/model.safetensors"):
        weights.unlink()
    film = made(films(of_study(folder), each=1))[0].films[0]
    assert film.fault.startswith("Without saliency and curves:")
    assert film.clip
    assert len(film.strips) == 1
    assert film.plot is None


def test_there_is_nothing_to_win_without_a_pair(study: Path) -> None:
    found = films(of_runs([study / "alone-seed0"]))
    assert isinstance(found, Missing)
    assert "paired" in found.why


def test_odd_sides_lose_a_pixel() -> None:
    film = np.zeros((3, 33, 47, 3), np.uint8)
    with av.open(io.BytesIO(encoded(film, fps=29.97))) as container:
        frames = list(container.decode(video=0))
    assert (frames[0].width, frames[0].height, len(frames)) == (46, 32, 3)
