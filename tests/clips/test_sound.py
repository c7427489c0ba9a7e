"""Sound on the video's clock: a clap is heard when it is seen."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_videos import DrawnVideo
from noisy_videos import write

from videokd.clips import Augment, BatchOrder, ClipDataset, Manifest, Video, batches
from videokd.clips.manifest import Packed
from videokd.clips.mixing import Mix, mixed
from videokd.clips.reading import VideoError
from videokd.clips.sound import read_sound, sound_start
from videokd.contracts import Batch, Clip, Dense, InputSpec, Sound, SoundSpec

SPEC = SoundSpec(seconds=1.0, sample_rate=16000)


def claps_in(samples: torch.Tensor, start: float, rate: int = 16000) -> list[float]:
    """Seconds of the loud moments."""
    loud = torch.nonzero(samples.abs() > 0.3).flatten()
    if not len(loud):
        return []
    groups = torch.tensor_split(loud, (torch.nonzero(loud.diff() > rate // 20).flatten() + 1).tolist())
    return [start + group.float().mean().item() / rate for group in groups]


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"),
    [
        ("a.mp4", "aac", 44100, "mono"),
        ("b.mp4", "aac", 48000, "stereo"),
        ("c.mkv", "pcm_s16le", 16000, "mono"),
        ("d.mkv", "libopus", 48000, "mono"),
        ("e.mkv", "pcm_s16le", 22050, "stereo"),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.31, 1.0, 1.9])
def test_claps_are_heard_at_their_seconds(
    name: str, codec: str, rate: int, layout: str, start: float, tmp_path: Path
) -> None:
    path = write(tmp_path / name, codec=codec, rate=rate, layout=layout)
    samples = read_sound(path, SPEC, start=start)
    assert samples is not None
    assert (samples.dtype, samples.shape) == (torch.float32, (16000,))
    # The middle of a clap of 5 ms; half as loud in the mean of two channels of which one is silent.
    expected = [clap + 0.0025 for clap in (0.5, 1.25, 2.0) if start <= clap < start + 1]
    heard = claps_in(samples * (2 if layout == "stereo" else 1), start)
    assert heard == pytest.approx(expected, abs=0.002)


def test_sound_that_begins_later_is_where_it_belongs(tmp_path: Path) -> None:
    path = write(tmp_path / "late.mkv", codec="pcm_s16le", rate=16000, claps=(2.0,), seconds=2.0, from_second=1.0)
    samples = read_sound(path, SPEC, start=1.5)
    assert samples is not None
    assert claps_in(samples, 1.5) == pytest.approx([2.0025], abs=0.002)
    # Before it begins there is none, and a stretch that it reaches half-way is silent before.
    assert read_sound(path, SoundSpec(seconds=0.5), start=0.0) is None
    half = read_sound(path, SPEC, start=0.5)
    assert half is not None
    assert half[:7500].abs().max() < 1e-4


def test_beyond_the_end_there_is_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", claps=(2.0,))
    samples = read_sound(path, SoundSpec(seconds=4.0), start=0.0)
    assert samples is not None
    assert len(samples) == 64000
    assert samples[49000:].abs().max() < 1e-3
    assert read_sound(path, SPEC, start=30.0) is None


def test_sound_in_which_a_seek_lands_in_the_middle_of_a_frame_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mpg", codec="mp2", claps=[0.25 * number for number in range(1, 48)], seconds=12.0)
    for start in (3.0, 6.0, 9.0):
        samples = read_sound(path, SPEC, start=start)
        assert samples is not None
        assert len(claps_in(samples, start)) >= 3


def test_a_video_without_sound_has_none_and_a_broken_one_says_so(tmp_path: Path) -> None:
    silent = DrawnVideo(name="silent.mp4").write(tmp_path)
    assert read_sound(silent, SPEC, start=0.0) is None
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="its sound can't be decoded"):
        read_sound(tmp_path / "broken.mp4", SPEC, start=0.0)


def test_sounds_lie_inside_the_video() -> None:
    spec = SoundSpec(seconds=2.0)
    for middle, start in ((5.0, 4.0), (0.5, 0.0), (9.8, 8.0)):
        assert sound_start(spec, middle=middle, first=0.0, seconds=10.0) == start
    assert sound_start(spec, middle=0.5, first=0.25, seconds=1.0) == 0.25  # shorter than the sound


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three videos with claps and one without sound."""
    folder = tmp_path_factory.mktemp("noisy")
    paths = [write(folder / f"{number}.mp4", claps=(0.5 * (number + 1),)) for number in range(3)]
    paths.append(DrawnVideo(name="silent.mp4").write(folder))
    videos = tuple(Video(path=path, id=path.name, label="ab"[number % 2]) for number, path in enumerate(paths))
    return Manifest(source=folder / "list.csv", classes=("a", "b"), videos=videos)


SEES = InputSpec(frames=8, size=32, sampling=Dense(stride=2))


def test_a_party_hears_the_seconds_that_another_sees(noisy: Manifest) -> None:
    dataset = ClipDataset(noisy, {"student": SEES, "sound": SPEC}, augment=Augment())
    for view in range(4):
        clips = dataset[1, view]["clips"]
        seen, heard = clips["student"], clips["sound"]
        times, start = seen["times"], heard["start"].item()  # type: ignore[typeddict-item]
        middle = (times[0] + times[-1]).item() / 2
        assert start == pytest.approx(min(max(middle - 0.5, 0.0), 2.0), abs=1e-3)
        expected = [1.0025] if start <= 0.99 and start + 1 > 1.01 else []
        assert claps_in(heard["samples"], start) == pytest.approx(expected, abs=0.002)  # type: ignore[typeddict-item]


def test_listening_changes_nothing_of_what_is_seen(noisy: Manifest) -> None:
    alone = ClipDataset(noisy, {"student": SEES}, augment=Augment(flip=0.5))
    both = ClipDataset(noisy, {"student": SEES, "sound": SPEC}, augment=Augment(flip=0.5))
    for view in range(3):
        one, two = alone[0, view]["clips"]["student"], both[0, view]["clips"]["student"]
        assert torch.equal(one["frames"], two["frames"])  # type: ignore[typeddict-item]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_sounds_and_say_which_clips_have_none(noisy: Manifest, workers: int) -> None:
    dataset = ClipDataset(noisy, {"student": SEES, "sound": SPEC})
    order = BatchOrder([0, 1, 0, 1], batch_size=4, seed=0, steps=range(1))
    (batch,) = batches(dataset, order, workers=workers)
    sound = batch.clips["sound"]
    assert isinstance(sound, Sound)
    for place, name in enumerate(batch.id):
        assert bool(sound.heard[place]) == (name != "silent.mp4")
        single = dataset[[video.id for video in noisy.videos].index(name)]["clips"]["sound"]
        assert torch.equal(sound.samples[place], single["samples"])  # type: ignore[typeddict-item]


def test_those_that_only_listen_hear_all_of_the_video(noisy: Manifest) -> None:
    dataset = ClipDataset(noisy, {"student": SPEC}, augment=Augment())
    starts = [dataset[0, view]["clips"]["student"]["start"].item() for view in range(40)]  # type: ignore[typeddict-item]
    assert min(starts) < 0.3
    assert max(starts) > 1.7
    assert all(0 <= start <= 2.0 for start in starts)


def test_pieces_of_a_sound_in_another_order() -> None:
    sound = Sound(torch.arange(9.0)[None], torch.zeros(1), torch.tensor([True]))
    assert sound.at(torch.tensor([[2, 0, 3, 1]])).samples.tolist() == [[4, 5, 0, 1, 6, 7, 2, 3, 8]]


def test_mixed_clips_have_mixed_sounds() -> None:
    frames = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    batch = Batch(
        clips={
            "student": Clip(frames, torch.zeros(2, 2)),
            "sound": Sound(torch.tensor([[1.0], [0.0]]), torch.zeros(2), torch.tensor([True, False])),
        },
        label=torch.tensor([0, 1]),
        id=("a", "b"),
        view=torch.tensor([0, 0]),
    )
    after = mixed(batch, Mix(mixup=1.0), num_classes=2, seed=0, step=1)
    sound = after.clips["sound"]
    assert isinstance(sound, Sound)
    share = after.label[0, 0].item()
    assert sound.samples.flatten().tolist() == pytest.approx([share, 1 - share], abs=1e-6)
    assert sound.heard.tolist() == [False, False]  # of one of the two nothing is heard


def test_a_packed_set_holds_no_sound(noisy: Manifest) -> None:
    packed = Packed(shard="a.tar", shard_bytes=1, format="mp4", offset=0, size=1, table="a.frames")
    videos = tuple(replace(video, packed=packed) for video in noisy.videos)
    with pytest.raises(ValueError, match=r"sound listens, and .* is packed: it holds no sound"):
        ClipDataset(replace(noisy, videos=videos), {"student": SEES, "sound": SPEC})
