"""Stored teacher outputs stand in for the teachers: the same losses, refused where they would not be."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import heed_ctrl_c
from rich.console import Console

from videokd import recipe as recipes
from videokd.assembly import assemble
from videokd.cli import main
from videokd.clips import hashes, views
from videokd.clips.dataset import ClipDataset
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Video, write_manifest
from videokd.clips.mixing import Mix
from videokd.clips.order import EveryClip
from videokd.clips.views import Augment, ColourJitter, RandomResizedCrop
from videokd.contracts import Dense, InputSpec, Sampling, Segments, SoundSpec, Timed, Uniform, ViewSpec
from videokd.distill import Term
from videokd.label import Stopped, audit, label
from videokd.losses import BinarySoftTargets, ClipFeatures, CrossEntropy, FrameFeatures, ShuffleRelation, SoftTargets
from videokd.models import CompactShift, Conv3d, MelNetwork, load_model, save_model
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.run_folder import read_metrics
from videokd.store import StoredOutputs, read_header
from videokd.teachers import Mixture, Teacher
from videokd.train import train

QUIET = Console(quiet=True)
AUGMENT = Augment(crop=RandomResizedCrop(), flip=0.5, colour=ColourJitter(brightness=0.4, hue=0.1))


@pytest.fixture(scope="session")
def recipe(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two epochs of the quickstart's distilled student, small, under a teacher that has learned a little."""
    folder = tmp_path_factory.mktemp("taught")
    plain = load("quickstart/teacher.py")
    data = replace(plain.data, path=str(drawn_set), batch_size=6, val_split=None)
    taught = replace(plain, data=data, student=replace(plain.student, width=4), optim=replace(plain.optim, steps=30))  # type: ignore[call-arg]
    train(taught, folder / "teacher", console=QUIET)
    alone = load("quickstart/alone.py")
    return replace(
        alone,
        data=replace(data, views=2, augment=AUGMENT, in_memory=False),
        student=CompactShift(width=4, input=alone.student.input),
        objective=load("quickstart/distilled.py").objective,
        teachers={"teacher": TrainedTeacher(checkpoint=str(folder / "teacher"))},
        optim=replace(alone.optim, steps=8, lr=1e-3),
    )


@pytest.fixture(scope="session")
def stored(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What its teacher says, in one shard."""
    folder = tmp_path_factory.mktemp("stored") / "all"
    assert label(recipe, folder, console=QUIET) == ()
    return folder


@pytest.fixture
def _every_step_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videokd.train.LOG_EVERY", 1)


def using(recipe: Recipe, folder: Path, **data: Any) -> Recipe:
    return replace(recipe, stored=str(folder), data=replace(recipe.data, **data))


def losses(recipe: Recipe, run: Path) -> list[dict[str, float]]:
    """Of every step, term by term."""
    train(recipe, run, console=QUIET)
    return [{name: row[name] for name in (*recipe.objective, "total")} for row in read_metrics(run)]


@pytest.mark.usefixtures("_every_step_logged")
@pytest.mark.parametrize("in_memory", [False, True])
def test_stored_and_online_training_give_the_same_losses(in_memory: bool, recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, data=replace(recipe.data, in_memory=in_memory))
    online = losses(recipe, tmp_path / "online")
    assert len(online) == 8  # twice all clips: both their views
    label(recipe, tmp_path / "half", console=QUIET)
    label(recipe, tmp_path / "whole", dtype="float32", console=QUIET)
    assert losses(using(recipe, tmp_path / "whole"), tmp_path / "exact") == online
    for step, expected in zip(losses(using(recipe, tmp_path / "half"), tmp_path / "near"), online, strict=True):
        for name, value in expected.items():
            assert step[name] == pytest.approx(value, rel=1e-3, abs=1e-3)
    # A view that is not the stored one is not within that.
    other = losses(replace(recipe, data=replace(recipe.data, view_seed=1)), tmp_path / "other")
    assert other[0]["soft"] != pytest.approx(online[0]["soft"], rel=1e-2, abs=1e-2)


def test_a_stored_teacher_never_runs_and_nobody_makes_its_views(
    recipe: Recipe, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = assemble(using(recipe, stored))
    teacher = made.teachers["teacher"]
    assert isinstance(teacher, Teacher)
    monkeypatch.setattr(type(teacher.model), "run", lambda *_: pytest.fail("the teacher ran"))
    assert all(set(batch.clips) == {"student"} for batch in made.batches(range(4)))
    losses = {"soft": Term(loss=SoftTargets())}  # of features, the shapes are found by a dry run
    train(replace(using(recipe, stored), objective=losses), tmp_path / "run", teachers=made.teachers, console=QUIET)


SAMPLINGS: list[tuple[Sampling, Sampling]] = [
    (Dense(stride=2), Dense()),
    (Timed(fps=4.0), Dense()),
    (Segments(), Segments()),
    (Uniform(), Timed(fps=6.0)),
]


@pytest.mark.parametrize(("mine", "theirs"), SAMPLINGS, ids=str)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_students_view_is_the_same_to_the_bit_whoever_else_is_seen(
    mine: Sampling, theirs: Sampling, workers: int, drawn_set: Path
) -> None:
    specs: dict[str, ViewSpec] = {
        "student": InputSpec(frames=4, size=24, sampling=mine, crop_fraction=0.7),
        "teacher": InputSpec(frames=8, size=40, sampling=theirs),
    }
    manifest = read_manifest(drawn_set).split("val")

    def shown(unseen: tuple[str, ...], wanted: dict[str, ViewSpec] = specs) -> list[torch.Tensor]:
        clips = ClipDataset(manifest, wanted, augment=AUGMENT, unseen=unseen)
        found = list(batches(clips, EveryClip(len(clips), 4, views=2), workers=workers))
        assert {party for batch in found for party in batch.clips} == set(wanted) - set(unseen)
        return [part for batch in found for part in (batch.clips["student"].frames, batch.clips["student"].times)]  # type: ignore[union-attr]

    both = shown(())
    assert all(torch.equal(one, other) for one, other in zip(both, shown(("teacher",)), strict=True))
    # Without the other party at all it is another view.
    alone = shown((), {"student": specs["student"]})
    assert not all(torch.equal(one, other) for one, other in zip(both, alone, strict=True))


@pytest.mark.parametrize("listening", ["student", "teacher"])
def test_sound_is_the_same_whoever_else_is_seen(listening: str, noisy_set: Path) -> None:
    looking = "teacher" if listening == "student" else "student"
    specs: dict[str, ViewSpec] = {
        party: SoundSpec(seconds=0.5) if party == listening else InputSpec(frames=8, size=32)
        for party in ("student", "teacher")
    }
    manifest = read_manifest(noisy_set).split("train")
    together = ClipDataset(manifest, specs, augment=AUGMENT)
    for unseen, seen in ((looking, listening), (listening, looking)):
        clips = ClipDataset(manifest, specs, augment=AUGMENT, unseen={unseen})
        for index in range(len(manifest.videos)):
            one, other = together[index, 1]["clips"], clips[index, 1]["clips"]
            assert set(other) == {seen}
            assert all(torch.equal(one[seen][name], other[seen][name]) for name in one[seen])  # type: ignore[literal-required]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.bin"))}


def stop_after(
    batches_done: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = KeyboardInterrupt
) -> None:
    """Ctrl-C, or worse, while the teacher looks at a batch."""
    look, calls = Teacher.__call__, []

    def counted(self: Teacher, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == batches_done + 2:  # the first is the dry run
            raise error
        return look(self, *args)

    monkeypatch.setattr(Teacher, "__call__", counted)


def test_shards_in_any_order_and_interrupted_are_those_of_one_go(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        label(recipe, tmp_path / "plain", shard=(number, 3), batch_size=5, console=QUIET)
    assert label(recipe, tmp_path / "other", shard=(3, 3), batch_size=5, console=QUIET) == (1, 2)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped, match="stopped after 8 of the shard's 16 records"):
            label(recipe, tmp_path / "other", shard=(1, 3), batch_size=5, console=QUIET)
    # It is killed, and the last record is torn.
    with monkeypatch.context() as patch:
        stop_after(1, patch, SystemExit)
        with pytest.raises(SystemExit):
            label(recipe, tmp_path / "other", shard=(2, 3), batch_size=5, console=QUIET)
    torn = tmp_path / "other" / "shard-2-of-3.bin.partial"
    torn.write_bytes(torn.read_bytes() + torn.read_bytes()[:99])
    assert label(recipe, tmp_path / "other", shard=(2, 3), batch_size=5, console=QUIET) == (1,)
    assert label(recipe, tmp_path / "other", shard=(1, 3), batch_size=5, console=QUIET) == ()
    assert shard_bytes(tmp_path / "other") == shard_bytes(tmp_path / "plain")
    assert {path.suffix for path in (tmp_path / "other").iterdir()} == {".bin", ".json", ".jsonl"}


def test_a_shard_that_is_whole_is_left_alone(recipe: Recipe, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    monkeypatch.setattr("videokd.label.batches", lambda *_, **__: pytest.fail("something was decoded"))
    said = io.StringIO()
    assert label(recipe, stored, console=Console(file=said, width=200)) == ()
    assert "is whole: nothing to do" in said.getvalue()
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before


def test_more_views_than_a_batch_holds_are_stored_in_their_rows(recipe: Recipe, stored: Path, tmp_path: Path) -> None:
    label(recipe, tmp_path, views=5, batch_size=3, console=QUIET)
    few, many = StoredOutputs(stored), StoredOutputs(tmp_path)
    ids = [row["id"] for row in few.clips]
    for view in range(2):
        one, other = (store.read("teacher/logits", store.rows(ids, [view] * len(ids))) for store in (few, many))
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=2e-3, atol=2e-3)


def moved(recipe: Recipe, folder: Path) -> Recipe:
    """The same under a teacher that has changed."""
    teacher = load_model(recipe.teachers["teacher"].checkpoint)  # type: ignore[union-attr]
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[0] += 1e-6
    save_model(teacher, folder / "moved")
    return replace(recipe, teachers={"teacher": TrainedTeacher(checkpoint=str(folder / "moved"))})


def test_a_mismatch_is_refused_by_the_name_of_what_differs(recipe: Recipe, stored: Path, tmp_path: Path) -> None:
    def refused(changed: Recipe, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            train(changed, tmp_path / "run", console=QUIET)
        assert not (tmp_path / "run").exists()

    mine = using(recipe, stored)
    student = replace(recipe.student, input=replace(recipe.student.input, sampling=Dense(stride=1)))  # type: ignore[call-arg]
    refused(using(moved(recipe, tmp_path), stored), r"teachers\.teacher\.weights was \"\w+\.\.\. and is")
    refused(using(recipe, stored, augment=replace(AUGMENT, flip=0.4)), r"augment\.flip was 0\.5 and is 0\.4")
    refused(using(recipe, stored, view_seed=3), r"view_seed was 0 and is 3")
    refused(replace(mine, student=student), r"view_of\.student\.sampling\.stride was 2 and is 1")
    refused(using(recipe, stored, in_memory=True), r"reader\.in_memory was false and is true")
    refused(using(recipe, stored, backend="decord"), r"reader\.backend was \"pyav\" and is \"decord\"")
    refused(using(recipe, stored, views=3), r"holds 2 views of a clip: set data\.views to at most that, not 3")
    two = {**recipe.teachers, "second": recipe.teachers["teacher"]}
    more = {**recipe.objective, "too": Term(loss=SoftTargets(), teacher="second")}
    refused(replace(mine, teachers=two, objective=more), "holds nothing of teacher 'second'")
    wider = {"clip": Term(loss=ClipFeatures())}
    refused(replace(mine, objective=wider), "tap 'clip' of teacher 'teacher' as 'clip', which .* holds not")
    # What a student does at its own door is its own affair, and so are its seed and one view of two.
    whiter = replace(recipe.student, input=replace(recipe.student.input, mean=(0.4, 0.4, 0.4)))  # type: ignore[call-arg]
    train(replace(using(recipe, stored, views=1), student=whiter, seed=3), tmp_path / "run", console=QUIET)


def test_another_convention_of_views_is_refused(recipe: Recipe, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videokd.store.VIEWS", 99)
    with pytest.raises(ValueError, match=r"reader\.convention was 1 and is 99"):
        assemble(using(recipe, stored))


def test_clips_are_those_that_were_stored(recipe: Recipe, stored: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(recipe.data.path).parent, tmp_path / "set")
    path = tmp_path / "set" / Path(recipe.data.path).name
    copied = using(recipe, stored, path=str(path))
    assemble(copied)  # the same set in another folder
    rows = path.read_text().splitlines(keepends=True)
    first = next(number for number, row in enumerate(rows) if '"train"' in row)
    path.write_text("".join(rows[:first] + rows[first + 1 :]))
    assemble(copied)  # a part of it
    path.write_text("".join(rows))
    clip = read_manifest(path).split("train").videos[0]
    file = clip.path
    whole = file.read_bytes()
    file.write_bytes(whole + b"more")
    with pytest.raises(
        ValueError, match=rf"{re.escape(clip.id)} has {len(whole) + 4} bytes, and had {len(whole)}\. Label"
    ):
        assemble(copied)
    file.write_bytes(whole)
    path.write_text("".join(row.replace('"val"', '"train"') for row in rows))
    with pytest.raises(ValueError, match=r"is not among them; and 7 more\. Label the set again"):
        assemble(copied)


def copied_set(recipe: Recipe, folder: Path) -> tuple[Recipe, list[Video]]:
    """The recipe on its own copy of the set, and its training videos."""
    shutil.copytree(Path(recipe.data.path).parent, folder / "set")
    path = folder / "set" / Path(recipe.data.path).name
    return replace(recipe, data=replace(recipe.data, path=str(path))), list(read_manifest(path).split("train").videos)


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_videos_whose_content_changed_at_the_same_size_are_refused_by_name(
    recipe: Recipe, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, videos = copied_set(recipe, tmp_path)
    mine = using(recipe, stored)
    assemble(mine)
    monkeypatch.setattr("videokd.clips.hashes.SETTLED_NS", -(10**18))  # remembered at once
    assemble(mine)
    first, middle, last = videos[0], videos[7], videos[-1]
    state = first.path.stat()
    flip_bit(first.path, 0)
    os.utime(first.path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as it was, to whom looks at that alone
    flip_bit(middle.path, middle.path.stat().st_size // 2)
    flip_bit(last.path, -1)
    with pytest.raises(ValueError, match="has changed, at the same size") as error:
        train(mine, tmp_path / "run", console=QUIET)
    for video in (first, middle, last):
        assert f"the content of {video.id} has changed" in str(error.value)
    assert str(error.value).count("has changed") == 3
    assert "Label the set again, into another folder" in str(error.value)
    assert not (tmp_path / "run").exists()
    for video, place in ((first, 0), (middle, middle.path.stat().st_size // 2), (last, -1)):
        flip_bit(video.path, place)
    assemble(mine)  # as they were
    flip_bit(first.path, 0)
    with pytest.raises(ValueError, match=r"clip .* has changed, at the same size.*Name another --out"):
        label(recipe, stored, console=QUIET)


def test_the_content_of_unchanged_videos_is_read_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, videos = copied_set(recipe, tmp_path)
    monkeypatch.setattr("videokd.clips.hashes.SETTLED_NS", -(10**18))
    read: list[Path] = []
    reading = hashes.content_hash
    monkeypatch.setattr(hashes, "content_hash", lambda path: read.append(path) or reading(path))  # type: ignore[func-returns-value]
    label(recipe, tmp_path / "out", console=QUIET)
    assert sorted(read) == sorted(video.path for video in videos)
    read.clear()
    assemble(using(recipe, tmp_path / "out"))
    label(recipe, tmp_path / "out", console=QUIET)
    assert read == []
    (tmp_path / "out" / "content_hashes.jsonl").unlink()  # a run makes it again
    assemble(using(recipe, tmp_path / "out"))
    assemble(using(recipe, tmp_path / "out"))
    assert len(read) == len(videos)


def test_a_store_that_cannot_be_written_to_is_trained_on(
    recipe: Recipe, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("videokd.clips.hashes.SETTLED_NS", -(10**18))
    monkeypatch.setattr("videokd.clips.hashes.write_text", refuse)
    recipe, _ = copied_set(recipe, tmp_path)
    assemble(using(recipe, stored))


def test_a_video_that_changes_while_it_is_labelled_leaves_no_shard(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, videos = copied_set(recipe, tmp_path)
    look, calls = Teacher.__call__, []

    def change(self: Teacher, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            flip_bit(videos[3].path, -1)
        return look(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "__call__", change)
        with pytest.raises(ValueError, match=rf"{re.escape(videos[3].id)} changed while they were labelled"):
            label(recipe, tmp_path / "out", console=QUIET)
    assert not list((tmp_path / "out").glob("*.bin*"))


def test_a_damaged_shard_is_made_anew_to_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        label(recipe, out, shard=(number, 2), console=QUIET)
    before = shard_bytes(out)
    shard = out / "shard-2-of-2.bin"
    flip_bit(shard, 100)
    with pytest.raises(
        ValueError, match=r"shard-2-of-2\.bin: its checksum .*--shard 2/2: it makes a damaged shard anew"
    ):
        train(using(recipe, out), tmp_path / "run", console=QUIET)
    said = io.StringIO()
    assert label(recipe, out, shard=(1, 2), console=Console(file=said, width=300)) == ()
    assert "is whole: nothing to do" in said.getvalue()
    label(recipe, out, shard=(2, 2), console=Console(file=said, width=300))
    assert "shard-2-of-2.bin: its checksum is not the one that it was written with" in said.getvalue()
    assert "it is made anew" in said.getvalue()
    assert shard_bytes(out) == before
    assemble(using(recipe, out))


def test_a_clip_that_may_be_flipped_and_could_not_be_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    objective = {"hard": Term(loss=CrossEntropy()), "frames": Term(loss=FrameFeatures())}
    recipe = replace(recipe, objective=objective)
    manifest = read_manifest(recipe.data.path).split("train")

    def listed(first: str) -> Recipe:
        """The first clip is of class `first`; "turn left" has no partner."""
        labels = [first, *(["wave", "turn left"] * 12)]
        videos = tuple(replace(video, label=one) for video, one in zip(manifest.videos, labels))
        write_manifest(replace(manifest, videos=videos), tmp_path / "list.jsonl")
        return replace(recipe, data=replace(recipe.data, path=str(tmp_path / "list.jsonl")))

    label(listed("turn left"), tmp_path / "out", console=QUIET)
    assemble(using(listed("turn left"), tmp_path / "out"))
    with pytest.raises(ValueError, match=r"mp4 may be flipped now, by its class\. Label the set again"):
        assemble(using(listed("wave"), tmp_path / "out"))


def test_what_can_not_be_stored_is_refused(recipe: Recipe, stored: Path, tmp_path: Path) -> None:
    def refused(changed: Recipe, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            label(changed, tmp_path / "out", console=QUIET, **options)
        assert not (tmp_path / "out").exists()

    endless = replace(recipe, data=replace(recipe.data, views=None))
    mixing = replace(recipe, data=replace(recipe.data, mix=Mix(mixup=0.5)))
    alone = replace(recipe, teachers={}, objective={"hard": Term(loss=CrossEntropy())})
    refused(endless, r"Give --views, or set the recipe's data\.views")
    refused(mixing, "data.mix mixes them anew")
    refused(alone, "no teacher whose outputs could be stored")
    refused(recipe, "shards are 1/n to n/n", shard=(3, 2))
    refused(recipe, "the top ones are 1 to 11", top_k=12)
    with pytest.raises(ValueError, match=r"data\.views says no number"):
        using(endless, stored)
    with pytest.raises(ValueError, match=r"data\.mix mixes them anew"):
        using(mixing, stored)
    with pytest.raises(ValueError, match="audit is a share"):
        replace(recipe, audit=2.0)
    with pytest.raises(ValueError, match="audit compares stored outputs with new ones"):
        train(replace(recipe, audit=0.5), tmp_path / "out", console=QUIET)


def test_a_disk_without_room_is_refused_first(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("videokd.label.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"the shard needs 15\.2 kB more, and the disk of .* has 1\.0 kB"):
        label(recipe, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_size_and_time_are_said_first(recipe: Recipe, tmp_path: Path) -> None:
    said = io.StringIO()
    label(recipe, tmp_path, shard=(1, 2), batch_size=4, console=Console(file=said, width=200))
    first, second, *_ = said.getvalue().splitlines()
    size = read_header(tmp_path)["record_bytes"]
    assert f"24 clips x 2 views, records of {size} bytes" in first
    assert "in shard 1 of 2" in first
    assert re.search(r"about \d+ s to go, at [\d.]+ clips/s", second)


def test_an_audit_finds_nothing_where_nothing_changed(recipe: Recipe, stored: Path, tmp_path: Path) -> None:
    made = assemble(using(recipe, stored))
    found = audit(made, share=1.0)
    assert set(found["teacher"]) == {"logits", "frames", "times of frames"}
    assert 0 < found["teacher"]["logits"] < 5e-3
    assert found["teacher"]["times of frames"] == 0
    assert audit(made, share=0.1) == audit(made, share=0.1)
    said = io.StringIO()
    train(replace(using(recipe, stored), audit=0.1), tmp_path / "run", console=Console(file=said, width=200))
    assert "5 stored records computed again; largest differences of teacher: " in said.getvalue()


def test_an_audit_finds_what_the_header_does_not(
    recipe: Recipe, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = assemble(using(recipe, stored))
    drawn = views.drawn
    with monkeypatch.context() as patch:  # no flip
        patch.setattr("videokd.clips.views.drawn", lambda *args, **more: replace(drawn(*args, **more), flipped=False))
        with pytest.raises(
            ValueError, match=r"stored of teacher 'teacher' is not what it says now: \w+ of clip .*, view [01]"
        ):
            audit(made, share=1.0)
    with monkeypatch.context() as patch:  # other colours
        patch.setattr("videokd.clips.views.appearance", lambda frames, *_, **__: frames)
        with pytest.raises(ValueError, match="is not what it says now"):
            train(replace(using(recipe, stored), audit=1.0), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
    other = made.teachers["teacher"]
    assert isinstance(other, Teacher)
    with torch.no_grad():  # another teacher, put where this one was
        for parameter in other.model.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ValueError, match="is not what it says now"):
        audit(made, share=0.1)


def broken(recipe: Recipe, folder: Path) -> tuple[Recipe, str]:
    """The same with a video that can't be read."""
    shutil.copytree(Path(recipe.data.path).parent, folder / "set")
    path = folder / "set" / Path(recipe.data.path).name
    bad = read_manifest(path).split("train").videos[5]
    bad.path.write_bytes(b"no video")
    return replace(recipe, data=replace(recipe.data, path=str(path), on_bad_video="skip")), bad.id


def test_a_video_that_can_not_be_read_is_stored_as_unknown(recipe: Recipe, tmp_path: Path) -> None:
    recipe, bad = broken(recipe, tmp_path)
    with pytest.raises(ValueError, match="--on-bad-video skip"):
        label(replace(recipe, data=replace(recipe.data, on_bad_video="error")), tmp_path / "no", console=QUIET)
    said = io.StringIO()
    substituting = replace(recipe, data=replace(recipe.data, on_bad_video="substitute"))
    label(substituting, tmp_path / "out", console=Console(file=said, width=200))
    assert f"skipped: {tmp_path}" in said.getvalue()
    store = StoredOutputs(tmp_path / "out")
    assert len(store.invalid) == 2
    found = store.outputs("teacher", [bad, store.clips[0]["id"]], torch.tensor([1, 1]), torch.device("cpu"), taps={})
    assert found.known is not None
    assert found.known.tolist() == [False, True]
    said = io.StringIO()
    console = Console(file=said, width=300)
    train(replace(using(recipe, tmp_path / "out"), audit=1.0), tmp_path / "run", console=console)
    assert f"nothing is stored of views of 1 clips, which couldn't be read: {bad}" in said.getvalue()
    assert "46 stored records computed again" in said.getvalue()


@pytest.mark.usefixtures("_every_step_logged")
def test_shuffled_clips_are_stored_too(recipe: Recipe, tmp_path: Path) -> None:
    terms = {"hard": Term(loss=CrossEntropy()), "order": Term(loss=ShuffleRelation())}
    recipe = replace(recipe, objective=terms)
    online = losses(recipe, tmp_path / "online")
    label(recipe, tmp_path / "out", dtype="float32", console=QUIET)
    assert losses(replace(using(recipe, tmp_path / "out"), audit=0.5), tmp_path / "stored") == online
    pieces = ShuffleRelation().pieces
    other = {**terms, "order": Term(loss=replace(ShuffleRelation(), number_of_pieces=pieces // 2))}
    with pytest.raises(ValueError, match=f"shuffled in {pieces} pieces, and terms want {pieces // 2}"):
        assemble(replace(using(recipe, tmp_path / "out"), objective=other))


@pytest.mark.usefixtures("_every_step_logged")
def test_a_mixture_is_of_what_is_stored_of_its_parts(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    save_model(
        Conv3d(width=4, input=InputSpec(frames=8, size=32)).build(read_manifest(recipe.data.path).classes),
        tmp_path / "second",
    )
    second = TrainedTeacher(checkpoint=str(tmp_path / "second"), remember=True)
    teachers = {**recipe.teachers, "second": second, "both": Mixture(of=("teacher", "second"), weights="confidence")}
    terms = {"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets(), teacher="both")}
    recipe = replace(recipe, teachers=teachers, objective=terms, preflight=0)
    online = losses(recipe, tmp_path / "online")
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "_store", lambda *_: pytest.fail("outputs on their way to the disk were kept"))
        label(recipe, tmp_path / "out", dtype="float32", console=QUIET)
    assert set(StoredOutputs(tmp_path / "out").header["teachers"]) == {"teacher", "second"}
    assert losses(using(recipe, tmp_path / "out"), tmp_path / "stored") == online


@pytest.mark.usefixtures("_every_step_logged")
def test_a_teacher_that_listens_is_stored_with_what_it_did_not_hear(
    recipe: Recipe, noisy_set: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    listener = MelNetwork(backbone="mobilenetv3_small_050", input=SoundSpec(seconds=1.0), dropout=0.0)
    save_model(listener.build(read_manifest(noisy_set).classes), tmp_path / "ears")
    recipe = replace(
        recipe,
        data=replace(recipe.data, path=str(noisy_set)),
        teachers={"ears": TrainedTeacher(checkpoint=str(tmp_path / "ears"))},
        objective={
            "hard": Term(loss=CrossEntropy()),
            "soft": Term(loss=SoftTargets(), teacher="ears"),
            "clip": Term(loss=ClipFeatures(), teacher="ears"),
        },
    )
    online = losses(recipe, tmp_path / "online")
    label(recipe, tmp_path / "out", dtype="float32", batch_size=6, console=QUIET)
    assert losses(replace(using(recipe, tmp_path / "out"), audit=1.0), tmp_path / "stored") == online
    store = StoredOutputs(tmp_path / "out")
    ids = [row["id"] for row in store.clips]
    assert store.read("ears/known", store.rows(ids, [0] * 6)).tolist() == [1, 1, 1, 1, 0, 0]


def test_top_classes_are_trained_on_and_refused_where_they_are_not_enough(recipe: Recipe, tmp_path: Path) -> None:
    soft = {"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets())}
    recipe = replace(recipe, objective=soft)
    label(recipe, tmp_path / "out", top_k=4, console=QUIET)
    made = assemble(using(recipe, tmp_path / "out"))
    assert audit(made, share=1.0)["teacher"]["logits"] < 1e-2
    train(using(recipe, tmp_path / "out"), tmp_path / "run", console=QUIET)
    binary = {"soft": Term(loss=BinarySoftTargets())}
    with pytest.raises(ValueError, match="label without --top-k"):
        assemble(replace(using(recipe, tmp_path / "out"), objective=binary))


def test_only_training_clips_are_labelled_those_without_a_label_too(recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(Path(recipe.data.path).parent, tmp_path / "set")
    path = tmp_path / "set" / Path(recipe.data.path).name
    path.write_text(path.read_text().replace('"val"', '"unlabelled"'))
    data = replace(recipe.data, path=str(path), unlabelled_per_batch=2)
    label(replace(recipe, data=data), tmp_path / "out", views=1, console=QUIET)
    stored_clips = {row["id"] for row in StoredOutputs(tmp_path / "out").clips}
    assert stored_clips == {video.id for video in read_manifest(path).videos if video.split != "test"}
    assert len(stored_clips) == 36


def test_what_a_teacher_said_can_not_be_both_stored_and_remembered(recipe: Recipe, stored: Path) -> None:
    teacher = load_model(recipe.teachers["teacher"].checkpoint)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="remember is False where outputs are stored"):
        Teacher(
            teacher,
            {},
            remember=True,
            stored=StoredOutputs(stored).teacher("teacher", {}, shuffled=False, needs_raw_logits=False),
        )
    source = replace(recipe.teachers["teacher"], remember=True)
    assemble(using(replace(recipe, teachers={"teacher": source}), stored))  # type: ignore[dict-item]


def command_line(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.json"
    path.write_text(recipes.dump(recipe))
    return path


@pytest.mark.parametrize(
    "option", [["--shard", "1/2"], ["--top-k", "3"], ["--dtype", "float32"], ["--batch-size", "8"]]
)
def test_an_audit_refuses_options_of_storing(
    option: list[str], recipe: Recipe, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = command_line(recipe, tmp_path)
    assert main(["label", str(path), "--audit", "1", "--out", str(stored), *option]) == 1
    assert f"{' '.join(option)} says how outputs are stored" in capsys.readouterr().err


def test_the_command_line_labels_audits_and_says_how_to_train(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = command_line(replace(recipe, data=replace(recipe.data, views=None)), tmp_path), tmp_path / "out"

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["label", str(source), "--out", str(out), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    options = ["--views", "2", "--batch-size", "8", "--data.workers", "1"]
    code, said = run("--shard", "2/2", *options)
    assert (code, "1 of 2 shards are missing: 1/2" in said) == (0, True)
    code, said = run("--shard", "1/2", *options)
    assert code == 0
    assert f"{out} is whole. Train with it:" in said
    line = f"videokd train {source} --data.workers 1 --stored {out} --data.views 2"
    assert line in said
    assert main([*line.split()[1:], "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    code, said = run("--audit", "0.2")
    assert (code, "10 stored records computed again" in said) == (0, True)
    code, said = run("--shard", "half")
    assert (code, "--shard is i/n" in said) == (1, True)
    code, said = run("--shard", "2/3", *options)
    assert (code, "shards was 2 and is 3" in said) == (1, True)
    shard = out / "shard-1-of-2.bin"
    shard.write_bytes(bytes(byte ^ 0x14 for byte in shard.read_bytes()))
    code, said = run("--audit", "1")
    assert (code, "its checksum is not the one that it was written with" in said) == (1, True)
    code, said = run("--shard", "1/2", *options)
    assert (code, "it is made anew" in said) == (0, True)
    assert run("--audit", "1")[0] == 0


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_leaves_a_shard_to_go_on_with(recipe: Recipe, tmp_path: Path) -> None:
    source, out = command_line(recipe, tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "videokd.cli", "label", str(source), "--out", str(out), "--views", "500"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_ctrl_c)
    partial = out / "shard-1-of-1.bin.partial"
    while not partial.exists() or partial.stat().st_size < 5000:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume with: videokd label {source} --out {out} --views 500" in said
    assert partial.stat().st_size > 0
