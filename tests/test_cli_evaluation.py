"""`videokd evaluate`, as a user types it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videokd.cli import main
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest
from videokd.contracts import Dense, InputSpec
from videokd.models import CompactShift, Conv3d, save_model
from videokd.predictions import read_predictions

SPEC = InputSpec(frames=8, size=32, sampling=Dense(stride=2))


def run(*arguments: object) -> int:
    return main([str(one) for one in arguments])


@pytest.fixture
def models(drawn_set: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two saved models, of teacher and student."""
    torch.manual_seed(0)
    classes = read_manifest(drawn_set).classes
    save_model(Conv3d(width=4, input=replace(SPEC, frames=16, sampling=Dense())).build(classes), tmp_path / "teacher")
    save_model(CompactShift(width=4, input=SPEC).build(classes), tmp_path / "student")
    return tmp_path / "teacher", tmp_path / "student"


def test_a_student_is_scored_beside_its_teacher(
    models: tuple[Path, Path], drawn_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = models
    assert run("evaluate", teacher, drawn_set) == 0
    assert "with its teacher" not in capsys.readouterr().out
    assert run("evaluate", student, drawn_set, "--teacher", teacher, "--temporal", "3", "--spatial", "3") == 0
    said = capsys.readouterr().out
    found = json.loads((student / "evaluation.json").read_text())
    assert 0 <= found["against"]["agreement"] <= 1
    for part in (
        "with its teacher, on 12 clips: agrees on",
        "3 x 3 views",
        "GMAC a video",
        "precision %",
        "calibration: NLL",
    ):
        assert part in said
    assert "fitted on 12 validation clips" in said.replace("\n", " ")
    assert set(found["temporal"]) == {"filmed", "shuffled", "reversed", "frozen", "half"}
    assert len(read_predictions(student)) == 12


def test_published_models_are_scored_by_name(
    originals: Path, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # CLIP reads the list's class names; VideoMAE keeps its own, which are others.
    manifest = read_manifest(drawn_set)
    words = [f"{first} {then}" for first in ("run", "dance", "jack") for then in ("early", "late", "jumping", "run")]
    renamed = dict(zip(manifest.classes, words, strict=True))
    videos = tuple(replace(video, label=renamed[video.label or ""]) for video in manifest.videos)
    write_manifest(replace(manifest, videos=videos, classes=tuple(sorted(words))), tmp_path / "words.jsonl")
    clip = f"hf/{originals / 'clip'}"
    assert run("evaluate", clip, tmp_path / "words.jsonl", "--out", tmp_path / "clip", "--orders", "shuffled") == 0
    found = json.loads((tmp_path / "clip" / "evaluation.json").read_text())
    assert found["model"] == clip
    assert found["classes"] == sorted(words)
    # Every frame by itself: their order says nothing.
    assert found["temporal"]["shuffled"] == found["top1"]
    assert run("evaluate", f"hf/{originals / 'videomae'}", drawn_set, "--out", tmp_path / "videomae") == 1
    assert "was not trained for: appear" in capsys.readouterr().err
    assert run("evaluate", f"hf/{tmp_path}", drawn_set, "--out", tmp_path / "none") == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_broken_video_is_refused_or_counted(
    models: tuple[Path, Path], drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, student = models
    manifest = read_manifest(drawn_set)
    bad, gone = tmp_path / "bad.mp4", tmp_path / "gone.mp4"
    bad.write_bytes(b"no video")
    test = [video for video in manifest.videos if video.split == "test"]
    videos = (replace(test[0], path=bad), replace(test[1], path=gone), *test[2:])
    write_manifest(replace(manifest, videos=videos), tmp_path / "list.jsonl")
    assert run("evaluate", student, tmp_path / "list.jsonl") == 1
    assert "gone.mp4 (the file is missing)" in capsys.readouterr().err.replace("\n", "")
    assert not (student / "evaluation.json").exists()
    assert run("evaluate", student, tmp_path / "list.jsonl", "--on-bad-video", "skip") == 0
    assert "2 videos skipped" in capsys.readouterr().out
    found = json.loads((student / "evaluation.json").read_text())
    assert (found["clips"], len(found["skipped"])) == (10, 2)
    assert sum(one["clips"] for one in found["per_class"].values()) == 10


def test_a_protocol_sets_views_and_split(drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(drawn_set)
    classes = tuple(manifest.classes) + tuple(f"class {k}" for k in range(162))
    val = [video for video in manifest.videos if video.split == "val"]
    # A class without a video still counts: the list has the data set's 174.
    more = []
    for name in classes[12:]:
        (tmp_path / f"{name}.mp4").symlink_to(val[0].path)
        more.append(replace(val[0], path=tmp_path / f"{name}.mp4", id=name, label=name))
    write_manifest(replace(manifest, videos=(*val, *more), classes=classes), tmp_path / "ssv2.jsonl")
    torch.manual_seed(0)
    save_model(CompactShift(width=4, input=SPEC).build(classes), tmp_path / "model")
    command = ("evaluate", tmp_path / "model", tmp_path / "ssv2.jsonl", "--protocol", "ssv2-2x3")
    assert run(*command, "--orders", "shuffled") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "protocol: Something-Something V2, val split, 2 x 3 views" in said
    assert "174 classes: theirs are in evaluation.json" in said
    found = json.loads((tmp_path / "model" / "evaluation.json").read_text())
    assert (found["views"]["temporal"], found["views"]["spatial"], found["split"]) == (2, 3, "val")
    assert found["top5"] is not None
