import ctypes
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from videokd.clips import dataset as videos
from videokd.clips.backends import PlannedReader
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches, collate, leave_out_bad, on_device
from videokd.clips.manifest import Manifest
from videokd.clips.order import BatchOrder, EveryClip
from videokd.clips.reading import VideoError, scan
from videokd.clips.table import row_of, table_path, write_table
from videokd.clips.views import Augment, RandomResizedCrop, ViewGrid
from videokd.clips.workers import Workers
from videokd.contracts import UNLABELLED, Dense, InputSpec, labelled

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


@pytest.mark.gpu
def test_batches_that_are_copied_ahead_are_the_same(drawn_set: Path) -> None:
    clips = ClipDataset(read_manifest(drawn_set).split("train"), {"student": InputSpec(frames=8, size=32)})
    order = EveryClip(len(clips), 5)
    device = torch.device("cuda")
    ahead = on_device(batches(clips, order), device)
    for one, other in zip(batches(clips, order), ahead, strict=True):
        torch.cuda._sleep(10_000_000)
        mine, theirs = one.clips["student"], other.clips["student"]
        assert theirs.frames.is_cuda
        assert torch.equal(mine.frames, theirs.frames.cpu())
        assert one.id == other.id


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


def views_of(order: BatchOrder) -> list[tuple[int, int]]:
    return [pair for batch in order for pair in batch]


@pytest.mark.parametrize(("repeats", "spread"), [(2, 1), (2, 3), (3, 4)])
def test_repeated_views_come_once_each_and_within_their_block(repeats: int, spread: int) -> None:
    steps = repeats * 24
    order = BatchOrder([0] * 48, batch_size=4, seed=1, steps=range(steps), repeats=repeats, spread=spread)
    blocks = list(order.blocks())
    assert [batch for block in blocks for batch in block] == list(order)
    for block in blocks:
        assert len(block) == repeats * spread
        seen = Counter(clip for batch in block for clip, _ in batch)
        assert len(seen) == 4 * spread
        assert set(seen.values()) == {repeats}
    # A pass over the list uses up `repeats` views of every clip.
    passes = steps * 4 // (48 * repeats)
    assert Counter(views_of(order)) == Counter((c, v) for c in range(48) for v in range(passes * repeats))
    resumed = BatchOrder([0] * 48, batch_size=4, seed=1, steps=range(5, steps), repeats=repeats, spread=spread)
    assert [batch for block in resumed.blocks() for batch in block] == list(order)[5:]


@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize("repeats", [1, 2])
def test_ranks_share_each_step_without_repetition_or_loss(repeats: int, spread: int) -> None:
    labels = [0] * 20 + [UNLABELLED] * 8
    options = {"batch_size": 8, "unlabelled_per_batch": 4, "seed": 0, "steps": range(30)}
    repetition = {"repeats": repeats, "spread": spread}
    whole = BatchOrder(labels, **options, **repetition)  # type: ignore[arg-type]
    ranks = [BatchOrder(labels, **options, **repetition, rank=rank, world_size=2) for rank in range(2)]  # type: ignore[arg-type]
    shared = [sorted([*ranks[0].batch(step), *ranks[1].batch(step)]) for step in range(30)]
    if repeats == 1 or spread == 1:
        assert shared == [sorted(whole.batch(step)) for step in range(30)]
    assert sorted(pair for step in shared for pair in step) == sorted(views_of(whole))
    assert all(len(rank.batch(step)) == 4 for rank in ranks for step in range(30))


TAIL = [0] * 60 + [1] * 30 + [2] * 10


@pytest.mark.parametrize(("power", "shares"), [(1.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (0.472, 0.334, 0.193))])
def test_balanced_draws_have_the_shares_of_the_classes(power: float, shares: tuple[float, ...]) -> None:
    # Of square-root sampling: 60^0.5 : 30^0.5 : 10^0.5 = 7.746 : 5.477 : 3.162, over 16.385.
    order = BatchOrder(TAIL, batch_size=20, seed=0, steps=range(1000), class_balance=power)
    drawn = Counter(TAIL[clip] for clip, _ in views_of(order))
    # 20 000 draws: a standard deviation of 0.0035 at most.
    assert [drawn[number] / 20_000 for number in range(3)] == pytest.approx(shares, abs=0.015)


def test_balanced_draws_are_the_seeds_alone_and_no_two_look_alike() -> None:
    options = {"batch_size": 8, "class_balance": 1.0, "seed": 3}
    whole = list(BatchOrder(TAIL, **options, steps=range(40)))  # type: ignore[arg-type]
    assert list(BatchOrder(TAIL, **options, steps=range(17, 40))) == whole[17:]  # type: ignore[arg-type]
    assert list(BatchOrder(TAIL, **(options | {"seed": 4}), steps=range(40))) != whole  # type: ignore[arg-type]
    pairs = [pair for batch in whole for pair in batch]
    assert len(set(pairs)) == len(pairs)
    assert max(Counter(clip for clip, _ in pairs).values()) > 8  # clips of the smallest class come again and again
    few = BatchOrder(TAIL, **options, steps=range(40), views=3)  # type: ignore[arg-type]
    assert {view for _, view in views_of(few)} == {0, 1, 2}


@pytest.mark.parametrize(("repeats", "spread"), [(1, 1), (2, 1), (2, 3)])
def test_balanced_draws_are_parted_over_ranks_and_repeated(repeats: int, spread: int) -> None:
    labels = TAIL + [UNLABELLED] * 20
    options = {"batch_size": 8, "unlabelled_per_batch": 4, "seed": 0, "steps": range(60), "class_balance": 1.0}
    repetition = {"repeats": repeats, "spread": spread}
    whole = BatchOrder(labels, **options, **repetition)  # type: ignore[arg-type]
    ranks = [BatchOrder(labels, **options, **repetition, rank=rank, world_size=2) for rank in range(2)]  # type: ignore[arg-type]
    shared = [pair for rank in ranks for pair in views_of(rank)]
    assert sorted(shared) == sorted(views_of(whole))
    drawn = [pair for pair in views_of(whole) if pair[0] < len(TAIL)]
    assert len(set(drawn)) == len(drawn) == 240
    # Unlabelled clips are of no class, and come as they did.
    natural = BatchOrder(labels, **(options | {"class_balance": 0.0}), **repetition)  # type: ignore[arg-type]
    assert [[p for p in batch if p[0] >= 100] for batch in whole] == [
        [p for p in batch if p[0] >= 100] for batch in natural
    ]


def test_ranks_share_a_list_without_repetition_or_loss() -> None:
    parts = [list(EveryClip(11, 3, views=2, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(pair for part in parts for batch in part for pair in batch) == [
        (c, v) for c in range(11) for v in (0, 1)
    ]
    assert [len(EveryClip(11, 3, views=2, rank=rank, world_size=3)) for rank in range(3)] == [
        len(part) for part in parts
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"world_size": 3}, "parted equally over 3"), ({"rank": 2, "world_size": 2}, "rank"), ({"repeats": 0}, "repeats")],
)
def test_an_impossible_order_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOrder([0] * 4, batch_size=4, seed=0, steps=range(2), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_views_open_their_video_once(drawn_set: Path, workers: int, tmp_path: Path) -> None:
    clips = dataset(drawn_set, augment=Augment())
    opened = tmp_path / "opened"
    open_it = clips.clips

    def counted(index: int, views: tuple[int, ...]) -> object:
        with opened.open("a") as file:
            file.write(f"{index}\n")
        return open_it(index, views)

    clips.clips = counted  # type: ignore[assignment, method-assign]
    order = BatchOrder(list(range(24)), batch_size=6, seed=0, steps=range(16), repeats=4, spread=4)
    found = list(batches(clips, order, workers=workers))
    assert [list(zip(batch.id, batch.view.tolist())) for batch in found] == [
        [(clips.videos[clip].id, view) for clip, view in batch] for batch in order
    ]
    assert Counter(opened.read_text().split()) == Counter(map(str, range(24)))
    single = dataset(drawn_set, augment=Augment())
    (clip, view) = order.batch(9)[2]
    assert torch.equal(found[9].clips["student"].frames[2], single[clip, view]["clips"]["student"]["frames"])


@pytest.fixture
def troubled(drawn_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClipDataset:
    """Clip 3 hangs its decoder with the GIL held, clip 5 kills its worker, and clip 7 kills its first worker only."""
    clips = dataset(drawn_set)
    read = clips.clips

    def dangerous(index: int, views: tuple[int, ...]) -> object:
        with (tmp_path / "tried").open("a") as file:
            file.write(f"{index} ")
        if index == 3:
            ctypes.PyDLL(None).sleep(1000)
        once = tmp_path / "killed"
        if index == 5 or (index == 7 and not once.exists()):
            (once if index == 7 else tmp_path / "again").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index, views)

    clips.clips = dangerous  # type: ignore[assignment, method-assign]
    return clips


def test_videos_that_hang_or_crash_their_decoder_are_named_and_the_rest_is_delivered_once(
    troubled: ClipDataset, tmp_path: Path
) -> None:
    order = [*EveryClip(24, 4), *EveryClip(24, 4)]  # two epochs: what hung is not tried again
    twice = GivenOrder(order)
    started = time.monotonic()
    found = list(batches(troubled, twice, workers=2, on_bad_video="skip", time_limit=1.0))
    assert time.monotonic() - started < 60
    ids = [clip.id for clip in troubled.videos]
    for epoch in (found[:6], found[6:]):
        assert [name for batch in epoch for name in batch.id] == [ids[n] for n in range(24) if n not in (3, 5)]
        reasons = [reason for batch in epoch for reason in batch.skipped]
        assert len(reasons) == 2
        assert ids[3] in reasons[0]
        assert "longer than 1 s" in reasons[0]
        assert ids[5] in reasons[1]
        assert "SIGKILL" in reasons[1]
    tried = Counter((tmp_path / "tried").read_text().split())
    assert (tried["3"], tried["5"], tried["7"]) == (1, 2, 3)  # the bad ones are not tried in the second epoch


def test_a_video_that_hangs_stops_a_run_that_wants_none(troubled: ClipDataset) -> None:
    with pytest.raises(ValueError, match=r"longer than 1 s.*--on-bad-video skip"):
        list(batches(troubled, EveryClip(24, 4), workers=2, time_limit=1.0))


class GivenOrder:
    """Batches as an order, each a block of its own."""

    def __init__(self, batches: list[list[tuple[int, int]]]) -> None:
        self._batches = batches

    def blocks(self) -> Iterator[list[list[tuple[int, int]]]]:
        return ([batch] for batch in self._batches)


def test_a_worker_killed_in_the_middle_of_an_epoch_loses_nothing(drawn_set: Path) -> None:
    clips = dataset(drawn_set, augment=Augment())
    order = BatchOrder(list(range(24)), batch_size=4, seed=0, steps=range(18))
    expected = list(batches(clips, order))
    found = []
    for number, batch in enumerate(batches(clips, order, workers=2)):
        found.append(batch)
        if number in (2, 8):
            victim = multiprocessing.active_children()[number % 2].pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
    for one, other in zip(expected, found, strict=True):
        assert one.id == other.id
        assert torch.equal(one.clips["teacher"].frames, other.clips["teacher"].frames)
        assert other.skipped == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_substitute_is_of_the_class_and_the_same_whenever_asked(
    broken: Manifest, drawn_set: Path, workers: int
) -> None:
    bad = broken.videos[2]
    others = [video for video in read_manifest(drawn_set).split("train").videos[4:] if video.label == bad.label]
    manifest = replace(broken, videos=(*broken.videos, *others))
    clips = ClipDataset(manifest, SPECS)
    order = BatchOrder([0, 0, 0, 0], batch_size=4, seed=0, steps=range(3))
    runs = [list(batches(clips, order, workers=workers, on_bad_video="substitute")) for _ in range(2)]
    for batch, again in zip(*runs, strict=True):
        assert batch.id == again.id
        assert len(batch.id) == 4
        assert bad.id not in batch.id
        (reason,) = batch.skipped
        assert "Another clip of its class stood in" in reason
        labels = {video.id: video.label for video in manifest.videos}
        wanted = Counter(labels[manifest.videos[clip].id] for clip in range(4))
        assert Counter(labels[name] for name in batch.id) == wanted


def test_a_class_without_another_clip_has_no_substitute(broken: Manifest) -> None:
    only = replace(broken, videos=broken.videos[1:3])
    assert only.videos[0].label != only.videos[1].label
    (batch,) = batches(ClipDataset(only, SPECS), EveryClip(2, 2), on_bad_video="substitute")
    assert len(batch.id) == 1
    assert "stood in" not in batch.skipped[0]


def test_a_video_found_broken_before_is_not_opened(broken: Manifest) -> None:
    marked = replace(
        broken, videos=(replace(broken.videos[0], error="decoding fails after 3 frames"), *broken.videos[1:])
    )
    with pytest.raises(ValueError, match=r"1 of 4 videos are missing or broken: .*decoding fails after 3 frames"):
        leave_out_bad(marked, on_bad_video="error")
    left, reasons = leave_out_bad(marked, on_bad_video="substitute")
    assert left.videos == broken.videos[1:]
    assert "decoding fails after 3 frames" in reasons[0]


def test_frames_lie_channels_last_and_batches_are_copies(drawn_set: Path) -> None:
    found = list(batches(dataset(drawn_set), EveryClip(24, 4), workers=1))
    frames = found[0].clips["student"].frames
    assert frames.permute(0, 1, 3, 4, 2).is_contiguous()
    single = dataset(drawn_set)[0]["clips"]["student"]["frames"]
    assert torch.equal(frames[0], single)  # later batches did not overwrite it


def test_several_labels_a_clip_come_as_shares(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("train")
    first, second, *rest = manifest.videos[:4]
    several = replace(
        manifest,
        videos=(
            replace(first, label=None, labels=manifest.classes[:2]),
            replace(second, label=None, labels=manifest.classes[2:3]),
            *(replace(video, label=None) for video in rest),
        ),
    )
    (batch,) = batches(ClipDataset(several, SPECS), EveryClip(4, 4), workers=1)
    assert batch.label.dtype == torch.float32
    assert batch.label[0].nonzero().flatten().tolist() == [0, 1]
    assert batch.label[1].nonzero().flatten().tolist() == [2]
    assert labelled(batch.label).tolist() == [True, True, False, False]
    (by_hand,) = DataLoader(ClipDataset(several, SPECS), batch_size=4, collate_fn=collate)
    assert torch.equal(by_hand.label, batch.label)


def test_an_index_from_the_manifests_table_is_not_scanned_again(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(read_manifest(drawn_set).split("train"), source=tmp_path / "list.jsonl")
    video = manifest.videos[0]
    write_table(
        table_path(manifest.source), [(video.id, row_of(scan(video.path), num_bytes=video.path.stat().st_size))]
    )
    plain = ClipDataset(read_manifest(drawn_set).split("train"), SPECS)[0]
    monkeypatch.setattr(PlannedReader, "scan", lambda *_: pytest.fail("scanned"))
    videos._scan.cache_clear()
    assert equal(ClipDataset(manifest, SPECS)[0], plain)


def test_ten_test_views_go_through_the_video(drawn_set: Path) -> None:
    spec = InputSpec(frames=4, size=32, sampling=Dense(stride=1))
    clips = ClipDataset(read_manifest(drawn_set).split("test"), {"student": spec}, grid=ViewGrid(temporal=3, spatial=3))
    found = list(batches(clips, EveryClip(2, 9, views=9)))
    assert [batch.view.tolist() for batch in found] == [list(range(9))] * 2
    starts = found[0].clips["student"].times[:, 0].tolist()
    assert starts == pytest.approx([0, 0, 0, 0.75, 0.75, 0.75, 1.5, 1.5, 1.5])  # 16 frames at 8 a second
    # The drawn frames are square: the three places are one.
    assert torch.equal(found[0].clips["student"].frames[0], found[0].clips["student"].frames[2])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_over_thousands_of_opens(drawn_set: Path) -> None:
    clips = dataset(drawn_set, augment=Augment())

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    for index in range(300):
        clips[index % 24, index]
    before = resident_mb()
    for index in range(3000):
        clips[index % 24, index]
    # A leak of one decoded frame of 12 kB an open would be 36 MB.
    assert resident_mb() - before < 15


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_too_short_for_its_sampling_is_a_bad_one(drawn_set: Path, workers: int) -> None:
    spec = InputSpec(frames=8, size=32, sampling=Dense(stride=4, short="error"))  # 16 frames are too few
    clips = ClipDataset(read_manifest(drawn_set).split("test"), {"student": spec})
    with pytest.raises(ValueError, match=r"8 frames at stride 4 need 29 frames, the video has 16.*--on-bad-video"):
        list(batches(clips, EveryClip(2, 2), workers=workers))


def test_workers_can_be_spawned_where_there_is_no_fork(drawn_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videokd.clips.loader.Workers", partial(Workers, start_method="spawn"))
    clips = dataset(drawn_set, augment=Augment())
    (plain,) = batches(clips, EveryClip(2, 2))
    (spawned,) = batches(clips, EveryClip(2, 2), workers=1)
    assert torch.equal(plain.clips["teacher"].frames, spawned.clips["teacher"].frames)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm here")
def test_too_little_shared_memory_is_said_before_anybody_is_killed(
    drawn_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    # Of 2 x 4 + 2 x 1 clips: 8 frames of 32 px and 16 of 48 px are 135 kB.
    with pytest.raises(ValueError, match=r"need 1 MB of shared memory, and /dev/shm has 1 MB: .*--shm-size"):
        list(batches(dataset(drawn_set), EveryClip(24, 4), workers=1))
    assert len(list(batches(dataset(drawn_set), EveryClip(24, 4)))) == 6
