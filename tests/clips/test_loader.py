from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches, leave_out_bad
from videokd.clips.manifest import Manifest
from videokd.clips.order import BatchOrder, EveryClip
from videokd.clips.reading import VideoError
from videokd.clips.views import Augment, RandomResizedCrop
from videokd.contracts import UNLABELLED, Dense, InputSpec

STUDENT = InputSpec(frames=8, size=32, sampling=Dense(stride=2), crop_fraction=32 / 36)
TEACHER = InputSpec(frames=16, size=48, sampling=Dense(stride=1), crop_fraction=48 / 54)
SPECS = {"student": STUDENT, "teacher": TEACHER}


def dataset(manifest: Path, **options: object) -> ClipDataset:
    return ClipDataset(read_manifest(manifest).split("train"), SPECS, **options)  # type: ignore[arg-type]


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return (
        torch.equal(one, other) if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) else one == other
    )


def test_each_party_gets_its_own_frames_and_size_of_one_decode(drawn_set: Path) -> None:
    sample = dataset(drawn_set, augment=Augment(), seed=3)[5, 2]
    student, teacher = sample["clips"]["student"], sample["clips"]["teacher"]
    assert (student["frames"].shape, student["frames"].dtype) == ((8, 3, 32, 32), torch.uint8)
    assert teacher["frames"].shape == (16, 3, 48, 48)
    # 8 frames a second, and the student sees every second frame of the teacher.
    torch.testing.assert_close(teacher["times"], torch.arange(16) / 8)
    assert torch.equal(student["times"], teacher["times"][::2])
    small = torch.nn.functional.interpolate(teacher["frames"][::2].float(), 32, mode="bilinear", antialias=True)
    assert (small - student["frames"].float()).abs().mean() < 3
    assert (sample["label"], sample["view"]) == (read_manifest(drawn_set).classes.index(_label(drawn_set, 5)), 2)


def test_a_view_is_a_function_of_seed_clip_and_number_alone(drawn_set: Path) -> None:
    augment = Augment(crop=RandomResizedCrop(), flip=0.5)
    one, again = dataset(drawn_set, augment=augment, seed=1), dataset(drawn_set, augment=augment, seed=1)
    assert equal(one[4, 7], again[4, 7])
    assert not equal(one[4, 7]["clips"], one[4, 8]["clips"])
    assert not equal(one[4, 7]["clips"], dataset(drawn_set, augment=augment, seed=2)[4, 7]["clips"])
    # Another place in another list changes nothing: the clip's name counts.
    manifest = read_manifest(drawn_set)
    turned = replace(manifest, videos=manifest.split("train").videos[::-1])
    assert equal(ClipDataset(turned, SPECS, augment=augment, seed=1)[24 - 1 - 4, 7], one[4, 7])


def test_memory_and_workers_give_the_same_batches(drawn_set: Path) -> None:
    order = BatchOrder(list(range(24)), batch_size=6, seed=0, steps=range(5))
    plain = list(batches(dataset(drawn_set, augment=Augment()), order))
    held = list(batches(dataset(drawn_set, augment=Augment(), memory=FrameMemory()), order))
    spread = list(batches(dataset(drawn_set, augment=Augment()), order, workers=2))
    for one, two, three in zip(plain, held, spread, strict=True):
        assert one.id == two.id == three.id
        for other in (two, three):
            assert torch.equal(one.view, other.view)
            for party in SPECS:
                assert torch.equal(one.clips[party].times, other.clips[party].times)
        for party in SPECS:
            assert torch.equal(one.clips[party].frames, three.clips[party].frames)
            # Frames in memory were resized before their crop, not with it.
            read, kept = one.clips[party].frames.float(), two.clips[party].frames.float()
            assert (read - kept).abs().mean() < 0.3 * (read - kept.roll(1, dims=0)).abs().mean()


def test_the_data_set_works_in_a_strangers_loader(drawn_set: Path) -> None:
    batch = next(iter(DataLoader(dataset(drawn_set), batch_size=4)))
    assert batch["clips"]["student"]["frames"].shape == (4, 8, 3, 32, 32)
    assert batch["label"].shape == (4,)


def test_memory_is_filled_once_and_shared(drawn_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FrameMemory()
    clips = dataset(drawn_set, memory=memory)
    assert len(list(memory.fill(clips))) == 24
    monkeypatch.setattr("videokd.clips.dataset.reader_of", lambda *_: pytest.fail("read again"))
    assert equal(dataset(drawn_set, memory=memory)[3], clips[3])


def test_every_clip_comes_once_in_order() -> None:
    assert list(EveryClip(5, 2)) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]
    assert len(EveryClip(5, 2)) == 3


def test_a_pass_holds_every_clip_once_and_counts_the_views() -> None:
    order = BatchOrder([0] * 12, batch_size=4, seed=0, steps=range(9))
    drawn = [pair for batch in order for pair in batch]
    assert Counter(drawn) == Counter((clip, view) for view in range(3) for clip in range(12))
    assert [clip for clip, _ in drawn[:12]] != [clip for clip, _ in drawn[12:24]]


def test_views_wrap_around() -> None:
    order = BatchOrder([0] * 4, batch_size=4, seed=0, steps=range(5), views=2)
    assert [{view for _, view in batch} for batch in order] == [{0}, {1}, {0}, {1}, {0}]


def test_a_later_start_goes_on_with_the_same_batches() -> None:
    labels = [0, UNLABELLED, 1] * 7
    whole = list(BatchOrder(labels, batch_size=5, unlabelled_per_batch=2, seed=4, steps=range(20)))
    assert list(BatchOrder(labels, batch_size=5, unlabelled_per_batch=2, seed=4, steps=range(11, 20))) == whole[11:]


def test_labelled_and_unlabelled_clips_are_mixed_as_asked() -> None:
    labels = [0] * 6 + [UNLABELLED] * 10
    for batch in BatchOrder(labels, batch_size=8, unlabelled_per_batch=5, seed=0, steps=range(10)):
        assert [clip < 6 for clip, _ in batch] == [True] * 3 + [False] * 5


def test_the_labelled_clips_of_a_mixed_batch_are_the_first_of_the_batch_without_unlabelled_ones() -> None:
    alone = BatchOrder([0] * 6, batch_size=5, seed=0, steps=range(4))
    mixed = BatchOrder([0] * 6 + [UNLABELLED] * 9, batch_size=5, unlabelled_per_batch=2, seed=0, steps=range(4))
    assert [batch[:3] for batch in mixed] == [batch[:3] for batch in alone]


@pytest.mark.parametrize(
    ("labels", "unlabelled", "message"),
    [([0] * 4, 2, "needs 2 unlabelled clips"), ([UNLABELLED] * 4, 0, "needs 4 labelled"), ([0] * 4, 5, "can't hold 5")],
)
def test_a_list_without_the_clips_that_a_batch_needs_is_refused(
    labels: list[int], unlabelled: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOrder(labels, batch_size=4, unlabelled_per_batch=unlabelled, seed=0, steps=range(2))


@pytest.fixture
def broken(drawn_set: Path, tmp_path: Path) -> Manifest:
    """Four training clips, the third of which is no video."""
    manifest = read_manifest(drawn_set).split("train")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    videos = list(manifest.videos[:4])
    videos[2] = replace(videos[2], path=bad)
    return replace(manifest, videos=tuple(videos))


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_broken_video_stops_the_run_or_is_named(broken: Manifest, in_memory: bool) -> None:
    memory = FrameMemory() if in_memory else None
    clips = ClipDataset(broken, SPECS, memory=memory)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        clips[2]
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"bad\.mp4: .*--on-bad-video skip"):
            list(batches(clips, EveryClip(4, 4), workers=workers))
    (batch,) = batches(clips, EveryClip(4, 4), on_bad_video="skip")
    assert len(batch.id) == 3
    assert len(batch.skipped) == 1
    assert "bad.mp4" in batch.skipped[0]


def test_a_batch_of_broken_videos_alone_is_empty_and_named(broken: Manifest) -> None:
    only = replace(broken, videos=broken.videos[2:3])
    (batch,) = batches(ClipDataset(only, SPECS), EveryClip(1, 4), on_bad_video="skip")
    assert (batch.id, len(batch.skipped)) == ((), 1)


def test_missing_files_are_named_at_once(broken: Manifest, tmp_path: Path) -> None:
    gone = replace(broken.videos[0], id="gone", path=tmp_path / "gone.mp4")
    manifest = replace(broken, videos=(*broken.videos, gone))
    with pytest.raises(ValueError, match=r"1 of 5 videos are missing or broken: .*gone\.mp4"):
        leave_out_bad(manifest, on_bad_video="error")
    left, reasons = leave_out_bad(manifest, on_bad_video="skip")
    assert left.videos == broken.videos
    assert reasons == (f"{tmp_path / 'gone.mp4'}: the file is missing",)
    with pytest.raises(ValueError, match="1 of 1 videos are missing or broken"):
        leave_out_bad(replace(broken, videos=(gone,)), on_bad_video="skip")


def test_small_videos_are_not_enlarged_before_the_crop(drawn_set: Path) -> None:
    # The drawn videos are 64 px: a party of 96 px reads them as they are, and enlarges its crop.
    spec = InputSpec(frames=2, size=96, crop_fraction=1.0)
    clips = ClipDataset(read_manifest(drawn_set), {"student": spec})
    sample = clips[0]
    assert sample["clips"]["student"]["frames"].shape == (2, 3, 96, 96)  # type: ignore[index]
    small = ClipDataset(read_manifest(drawn_set), {"student": replace(spec, size=64)})[0]
    enlarged = torch.nn.functional.interpolate(small["clips"]["student"]["frames"].float(), 96, mode="bilinear")  # type: ignore[index]
    assert (enlarged - sample["clips"]["student"]["frames"].float()).abs().mean() < 2.5  # type: ignore[index]


def _label(manifest: Path, index: int) -> str:
    label = read_manifest(manifest).split("train").videos[index].label
    assert label is not None
    return label
