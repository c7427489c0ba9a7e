import contextlib
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from drawn_videos import DrawnVideo, decoded_sequentially, number_in, written_with_preroll

from videokd.clips import pictures, reading, video_file
from videokd.clips.pictures import Box, Cut
from videokd.clips.reading import VideoError, VideoIndex, read, read_cuts, scan

# Every third tick is doubled and every tenth is long: a variable frame rate.
UNEVEN_TICKS = np.cumsum([0, *(1 + n % 3 // 2 + n % 10 // 9 * 7 for n in range(89))]).tolist()
FIXED = "scenecut=0:b-adapt=0"  # key frames and B-frames where the options say, whatever the picture
QUIET_X265 = "log-level=none:pools=1:frame-threads=1"

VIDEOS = [
    DrawnVideo(name="long_gop.mp4", options={"g": "250", "x264-params": f"bframes=3:b-pyramid=normal:{FIXED}"}),
    DrawnVideo(name="short_gop.mp4", options={"g": "12", "x264-params": FIXED}),
    DrawnVideo(name="open_gop.mp4", options={"g": "12", "x264-params": f"open-gop=1:bframes=3:{FIXED}"}),
    DrawnVideo(name="tiny_open_gop.mkv", options={"g": "2", "x264-params": "open-gop=1:bframes=2"}),
    DrawnVideo(name="no_b_frames.mp4", options={"g": "16", "bf": "0", "x264-params": FIXED}),
    DrawnVideo(name="intra_refresh.mp4", options={"g": "30", "x264-params": "intra-refresh=1"}),
    DrawnVideo(name="all_key_frames.mp4", options={"g": "1"}),
    DrawnVideo(name="fragmented.mp4", options={"g": "12"}, container_options={"movflags": "frag_keyframe+empty_moov"}),
    DrawnVideo(name="variable_rate.mp4", options={"g": "12"}, ticks=UNEVEN_TICKS),
    DrawnVideo(name="late_start.mp4", options={"g": "12"}, ticks=range(7, 97)),
    DrawnVideo(name="odd_size.mp4", width=97, height=65, pix_fmt="yuv444p"),
    DrawnVideo(name="one_frame.mp4", num_frames=1),
    DrawnVideo(name="turned.mp4", rotation=90),
    DrawnVideo(name="upside_down.mp4", rotation=180),
    DrawnVideo(name="mpeg4.mp4", codec="mpeg4", max_b_frames=2),
    DrawnVideo(name="h264.mkv", options={"g": "20"}),
    DrawnVideo(name="mpeg2.mkv", codec="mpeg2video", max_b_frames=2),
    DrawnVideo(name="vp9.webm", codec="libvpx-vp9", options={"g": "30", "deadline": "realtime", "cpu-used": "8"}),
    DrawnVideo(
        name="hidden_frames.webm", codec="libvpx-vp9", options={"g": "30", "lag-in-frames": "16", "auto-alt-ref": "1"}
    ),
    DrawnVideo(name="av1.mkv", codec="libsvtav1", options={"preset": "12", "g": "30"}),
    DrawnVideo(name="vp8.webm", codec="libvpx", options={"g": "30", "deadline": "realtime", "cpu-used": "8"}),
    DrawnVideo(name="hevc.mp4", codec="libx265", options={"x265-params": f"keyint=30:{QUIET_X265}"}),
    DrawnVideo(
        name="hevc_open_gop.mkv", codec="libx265", options={"x265-params": f"keyint=12:open-gop=1:{QUIET_X265}"}
    ),
    DrawnVideo(
        name="hevc_10_bits.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": f"keyint=30:bframes=4:b-pyramid=1:{QUIET_X265}"},
    ),
    DrawnVideo(name="b_pyramid.mp4", options={"g": "60", "x264-params": "b-pyramid=normal:bframes=7:b-adapt=0"}),
    DrawnVideo(name="mpeg4.avi", codec="mpeg4", max_b_frames=2),  # the container of UCF101
    DrawnVideo(name="h264.avi", options={"g": "12"}),  # its pts tell nothing
    DrawnVideo(name="mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p"),
    DrawnVideo(name="h264.ts", options={"g": "20"}),
    DrawnVideo(name="h264.flv", options={"g": "20"}),
    DrawnVideo(name="mpeg2.mpg", codec="mpeg2video", max_b_frames=2),
]

REAL_DATA = Path(os.environ.get("VIDEOKD_REAL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def has_encoder(codec: str) -> bool:
    try:
        return av.Codec(codec, "w").is_encoder
    except av.codec.codec.UnknownCodecError:
        return False


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the video of that name, once."""
    folder = tmp_path_factory.mktemp("videos")
    by_name = {video.name: video for video in VIDEOS}

    def write(name: str) -> Path:
        if not has_encoder(by_name[name].codec):
            pytest.skip(f"this FFmpeg cannot write {by_name[name].codec}")
        return folder / name if (folder / name).exists() else by_name[name].write(folder)

    return write


def requests(num_frames: int, *, count: int) -> Iterator[list[int]]:
    """Frame numbers as samplers ask for them, and as they should not."""
    rng = random.Random(num_frames)
    for turn in range(count):
        start, stride = rng.randrange(num_frames), rng.choice([1, 2, 4, 11])
        dense = list(range(start, num_frames, stride))[:8]
        anywhere = rng.choices(range(num_frames), k=rng.randint(1, 6))  # repeats
        yield (dense, sorted(anywhere), anywhere, [number for number in dense for _ in "ab"])[turn % 4]


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_frames_equal_sequential_decoding_and_show_their_number(
    video: DrawnVideo, written: Callable[[str], Path]
) -> None:
    path = written(video.name)
    everything = decoded_sequentially(path)
    index = scan(path)
    assert index.num_frames == len(everything) == video.num_frames
    turned = torch.rot90(everything, video.rotation // 90, dims=(2, 3))
    assert (index.height, index.width) == turned.shape[2:]
    assert index.rotation == video.rotation
    for turn, numbers in enumerate(requests(video.num_frames, count=100)):
        clip = read(path, numbers, index=index if turn % 8 else None)
        assert clip.frames.dtype == torch.uint8
        assert torch.equal(clip.frames, turned[numbers]), f"wrong frames for {numbers}"
        upright = torch.rot90(clip.frames, -video.rotation // 90, dims=(2, 3))
        assert [number_in(frame) for frame in upright] == numbers
        assert torch.equal(clip.times, torch.from_numpy(index.times[numbers]))


@pytest.mark.parametrize(
    ("name", "first_seconds", "access"),
    [
        ("short_gop.mp4", 0.0, "seek"),
        ("late_start.mp4", 7 / 30, "seek"),
        ("h264.avi", 0.0, "count"),
        ("h264.ts", None, "start"),  # the muxer chooses
    ],
)
def test_times_are_those_of_the_container(
    name: str, first_seconds: float | None, access: str, written: Callable[[str], Path]
) -> None:
    index = scan(written(name))
    assert index.access == access
    first = index.times[0] if first_seconds is None else first_seconds
    np.testing.assert_allclose(index.times, first + np.arange(90) / 30, atol=1e-3)  # MP4's edit list counts ms
    assert index.fps == pytest.approx(30, rel=1e-3)
    assert index.seconds == pytest.approx(3, rel=1e-3)


def test_times_follow_a_variable_frame_rate(written: Callable[[str], Path]) -> None:
    index = scan(written("variable_rate.mp4"))
    np.testing.assert_allclose(index.times, np.array(UNEVEN_TICKS) / 30, atol=1e-9)
    # All gaps and the last frame's own time, which the muxer makes up: one or two ticks of 1/30 s.
    assert UNEVEN_TICKS[-1] + 1 <= index.seconds * 30 <= UNEVEN_TICKS[-1] + 2.001
    assert index.fps == pytest.approx(90 / index.seconds)


def test_one_frame_has_a_duration(written: Callable[[str], Path]) -> None:
    index = scan(written("one_frame.mp4"))
    assert (index.num_frames, index.seconds) == (1, pytest.approx(1 / 30))


@pytest.mark.parametrize(
    ("name", "short_side", "size"),
    [
        ("short_gop.mp4", 32, (32, 48)),
        ("short_gop.mp4", 40, (40, 60)),
        ("short_gop.mp4", 128, (128, 192)),
        ("odd_size.mp4", 32, (32, 48)),  # 97 * 32 / 65 = 47.75
        ("odd_size.mp4", 65, (65, 97)),
        ("turned.mp4", 33, (50, 33)),  # 96 * 33 / 64 = 49.5, half up
    ],
)
def test_short_side_keeps_the_aspect_ratio(
    name: str, short_side: int, size: tuple[int, int], written: Callable[[str], Path]
) -> None:
    for index in (None, scan(written(name))):
        assert read(written(name), [3], index=index, short_side=short_side).frames.shape == (1, 3, *size)


def test_shrinking_averages_the_pixels_it_merges(tmp_path: Path) -> None:
    # Grey bars one pixel wide of 40 and 200: merged by four, their mean 120; a resize that skips pixels keeps bars.
    path = tmp_path / "bars.mp4"
    bars = np.full((64, 96, 3), 40, dtype=np.uint8)
    bars[:, ::2] = 200
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(bars, "rgb24")))
        container.mux(stream.encode())
    small = read(path, [0], short_side=16).frames[0, :, :, 2:-2].float()
    assert (small - 120).abs().max() < 5


def test_resized_frame_is_close_to_torch_antialiased_bilinear(written: Callable[[str], Path]) -> None:
    native = read(written("h264.mkv"), [5]).frames.float()
    theirs = torch.nn.functional.interpolate(native, (40, 60), mode="bilinear", antialias=True)
    ours = read(written("h264.mkv"), [5], short_side=40).frames.float()
    nearest = torch.nn.functional.interpolate(native, (40, 60), mode="nearest")
    assert (ours - theirs).abs().mean() < 0.5 * (nearest - theirs).abs().mean()


def test_no_frames_are_a_clip_of_no_frames(written: Callable[[str], Path]) -> None:
    for index in (None, scan(written("turned.mp4"))):
        clip = read(written("turned.mp4"), [], index=index, short_side=32)
        assert clip.frames.shape == (0, 3, 48, 32)
        assert clip.times.shape == (0,)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the frames that come out of the decoder and those converted; decoding from the start is not allowed."""
    counts = {"decoded": 0, "converted": 0}
    decode_run, converted = video_file.VideoFile.decode_run, pictures.Canvas._converted

    def counted_run(self: video_file.VideoFile, run: video_file.Run) -> Iterator[av.VideoFrame]:
        for frame in decode_run(self, run):
            counts["decoded"] += 1
            yield frame

    def counted(self: pictures.Canvas, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        counts["converted"] += 1
        return converted(self, frame, size)

    def refused(self: video_file.VideoFile) -> Iterator[av.VideoFrame]:
        raise AssertionError("the plan missed a frame and decoding began anew")
        yield

    monkeypatch.setattr(video_file.VideoFile, "decode_run", counted_run)
    monkeypatch.setattr(pictures.Canvas, "_converted", counted)
    monkeypatch.setattr(video_file.VideoFile, "decode_all", refused)
    return counts


@pytest.mark.parametrize(
    ("name", "numbers", "most_decoded"),
    [
        ("short_gop.mp4", [60, 60], 3),  # frame 60 = 5 x 12 is a key frame
        ("short_gop.mp4", [5, 66], 14),  # two groups of 12, unwanted B-frames skipped
        ("long_gop.mp4", [40], 24),  # about half of 40 frames are B-frames that no other refers to
        ("open_gop.mp4", [30], 9),
        ("no_b_frames.mp4", [70], 7),  # 64 = 4 x 16 is a key frame: 64 to 70 inclusive
        ("all_key_frames.mp4", [10, 50], 2),
        ("vp9.webm", [60], 1),
        ("hevc.mp4", [60], 1),
    ],
)
def test_only_needed_frames_are_decoded_and_converted(
    name: str, numbers: list[int], most_decoded: int, written: Callable[[str], Path], spied: dict[str, int]
) -> None:
    clip = read(written(name), numbers)
    assert [number_in(frame) for frame in clip.frames] == numbers
    assert spied["converted"] == len(set(numbers))
    assert spied["decoded"] <= most_decoded


@pytest.mark.parametrize(
    "name", ["open_gop.mp4", "tiny_open_gop.mkv", "hevc_open_gop.mkv", "variable_rate.mp4", "av1.mkv"]
)
def test_every_single_frame_is_found_by_its_plan(
    name: str, written: Callable[[str], Path], spied: dict[str, int]
) -> None:
    for number in range(90):
        assert number_in(read(written(name), [number]).frames[0]) == number


def test_decode_error_of_the_plan_falls_back_to_decoding_from_the_start(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: video_file.VideoFile, run: video_file.Run) -> Iterator[av.VideoFrame]:
        raise av.error.InvalidDataError(-1, "Invalid data")
        yield

    monkeypatch.setattr(video_file.VideoFile, "decode_run", failing)
    assert [number_in(frame) for frame in read(written("short_gop.mp4"), [50, 2]).frames] == [50, 2]


def test_frame_before_a_key_frame_is_planned_from_the_key_frame_before(written: Callable[[str], Path]) -> None:
    index = scan(written("open_gop.mp4"))
    # In decoding order an open group's key frame comes before frames that are shown before it.
    leading = int(np.flatnonzero(np.diff(index.packets) < -1)[0])
    key_before = index.key_pts[index.key_pts <= index.pts[leading]].max()
    assert reading._plan(index, np.array([leading])) == [video_file.Run(int(key_before), [int(index.pts[leading])])]


def test_plan_seeks_only_over_packets() -> None:
    # Key frames 0, 4, 8, 12 without B-frames: 3 to 4 reads on, 4 to 12 saves packets 5 to 11.
    number = np.arange(16)
    index = VideoIndex(
        pts=number * 10,
        packets=number,
        key_pts=number[::4] * 10,
        key_packets=number[::4],
        last_ticks=10,
        time_base=Fraction(1, 300),
        height=64,
        width=96,
        rotation=0,
        access="seek",
    )
    assert reading._plan(index, np.array([12, 3, 4, 3])) == [video_file.Run(0, [30, 40]), video_file.Run(120, [120])]


def test_seek_that_misses_falls_back_to_decoding_from_the_start(written: Callable[[str], Path]) -> None:
    index = scan(written("short_gop.mp4"))
    # An index whose only key frame lies behind the frames asked for.
    wrong = replace(index, key_pts=index.pts[60:61], key_packets=index.packets[60:61])
    clip = read(written("short_gop.mp4"), [2, 50], index=wrong)
    assert [number_in(frame) for frame in clip.frames] == [2, 50]


@pytest.mark.parametrize("number", [-1, 90, 10**12])
def test_number_out_of_range_is_refused(number: int, written: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 90\).*got {number}"):
        read(written("short_gop.mp4"), [0, number])


def test_short_side_below_one_is_refused(written: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="at least 1 pixel a side, got size=0"):
        read(written("short_gop.mp4"), [0], short_side=0)


def test_frames_hidden_by_an_edit_list_are_not_counted(written: Callable[[str], Path], tmp_path: Path) -> None:
    # Frames 0 to 16 are hidden; key frames are 0, 12, 24, ...: frame 17 needs the hidden key frame 12.
    path = written_with_preroll(written("short_gop.mp4"), tmp_path / "trimmed.mp4", hidden=17)
    index = scan(path)
    assert (index.num_frames, index.times[0], index.access) == (90 - 17, 0, "seek")
    everything = decoded_sequentially(path)
    for numbers in requests(index.num_frames, count=100):
        clip = read(path, numbers, index=index)
        assert torch.equal(clip.frames, everything[numbers])
        assert [number_in(frame) - 17 for frame in clip.frames] == numbers


@pytest.mark.parametrize(
    ("written_as", "renamed"),
    [
        ("h264.ts", "transport_stream.mp4"),
        ("mpeg4.avi", "avi.mkv"),
        ("h264.mkv", "matroska.avi"),
        ("h264.mkv", "12:30 %d.mkv"),  # no protocol "12", no pattern of pictures
    ],
)
def test_a_misleading_name_does_not_matter(
    written_as: str, renamed: str, written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(written(written_as), tmp_path / renamed)
    monkeypatch.chdir(tmp_path)
    assert [number_in(frame) for frame in read(renamed, [50, 7]).frames] == [50, 7]


def nothing(path: Path, source: Path) -> None:
    pass


def directory(path: Path, source: Path) -> None:
    path.mkdir()


def empty(path: Path, source: Path) -> None:
    path.touch()


def text(path: Path, source: Path) -> None:
    path.write_text("not a video\n" * 100)


def no_video_stream(path: Path, source: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])


def song_with_cover(path: Path, source: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux([*stream.encode(sound), *stream.encode(), *cover.encode(picture), *cover.encode()])
    with av.open(path) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic, "the cover must be stored as one"


def header_without_frames(path: Path, source: Path) -> None:
    """A fragmented file cut off before its first fragment."""
    whole = source.read_bytes()
    path.write_bytes(whole[: whole.index(b"moof") - 4])


def no_frame_decodes(path: Path, source: Path) -> None:
    whole = source.read_bytes()
    start = whole.index(b"mdat") + 4
    path.write_bytes(whole[:start] + bytes(len(whole) - start))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (nothing, "no such file"),
        (directory, "directory"),
        (empty, "empty"),
        (text, "FFmpeg cannot read it"),
        (no_video_stream, "no video stream"),
        (song_with_cover, "no video stream"),
        (header_without_frames, "no frames"),
        (no_frame_decodes, "after 0 frames"),
    ],
)
def test_unreadable_file_is_one_video_error(
    break_it: Callable[[Path, Path], None],
    reason: str,
    written: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "broken.mp4"
    break_it(path, written("fragmented.mp4"))
    capfd.readouterr()
    for attempt in (lambda: scan(path), lambda: read(path, [0])):
        with pytest.raises(VideoError, match=reason) as caught:
            attempt()
        assert caught.value.path == path
        assert caught.value.reason in str(caught.value)
        assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", ""), "FFmpeg's own messages must not reach the terminal"


def test_damaged_end_spares_the_frames_before_it(written: Callable[[str], Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    whole = written("h264.mkv").read_bytes()
    # Garbage over the last third: the packets are still listed, their frames do not decode.
    cut.write_bytes(whole[: len(whole) * 2 // 3] + bytes(len(whole) - len(whole) * 2 // 3))
    index = scan(written("h264.mkv"))
    assert number_in(read(cut, [30], index=index).frames[0]) == 30
    with pytest.raises(VideoError, match=r"flags a frame|of its 90 frames decode|fails after \d+ frames"):
        read(cut, [30, 89], index=index)


def test_index_of_a_longer_video_is_told_how_many_frames_decode(written: Callable[[str], Path], tmp_path: Path) -> None:
    short = DrawnVideo(name="short.mp4", num_frames=20).write(tmp_path)
    with pytest.raises(VideoError, match="20 of its 90 frames decode"):
        read(short, [3, 80], index=scan(written("short_gop.mp4")))


def test_video_error_survives_pickling() -> None:
    # Workers send their errors through a pipe.
    error = pickle.loads(pickle.dumps(VideoError(Path("a.mp4"), "it is broken", "no frames")))
    assert (error.path, error.reason, error.fault) == (Path("a.mp4"), "it is broken", "no frames")


def test_frames_are_found_by_the_second(written: Callable[[str], Path]) -> None:
    index = scan(written("variable_rate.mp4"))
    # UNEVEN_TICKS[n] / 30 s is when frame n appears; halfway to the next one it is still shown.
    assert index.numbers_at(index.times).tolist() == list(range(90))
    halfway = (index.times[:-1] + index.times[1:]) / 2
    assert index.numbers_at(halfway).tolist() == list(range(89))
    late = scan(written("late_start.mp4"))
    assert late.numbers_at([7 / 30, 8.5 / 30, 96.5 / 30]).tolist() == [0, 1, 89]
    for seconds in (0.1, 97.5 / 30):
        with pytest.raises(ValueError, match=rf"no frame is shown at {seconds:g} s: .* from 0\.23\d+ to 3\.23"):
            late.numbers_at([1.0, seconds])


def test_several_clips_share_one_walk_through_the_file(written: Callable[[str], Path], spied: dict[str, int]) -> None:
    path = written("no_b_frames.mp4")
    cuts = [Cut([3, 7]), Cut([7, 5], size=32), Cut([64], box=Box(0, 0, 32, 48))]
    clips = read_cuts(path, cuts)
    assert spied["decoded"] == 9  # 0 to 7, and the key frame 64 after a seek
    assert spied["converted"] == 5
    for cut, clip in zip(cuts, clips):
        (alone,) = read_cuts(path, [cut])
        assert torch.equal(clip.frames, alone.frames)
        assert clip.times.tolist() == pytest.approx([number / 30 for number in cut.numbers])


@pytest.mark.parametrize("name", ["short_gop.mp4", "h264.mkv", "mpeg4.avi", "h264.ts"])
def test_a_video_can_be_read_from_memory(name: str, written: Callable[[str], Path]) -> None:
    path = written(name)
    data, nowhere = path.read_bytes(), Path("shard.tar") / name
    index = scan(nowhere, data=data)
    assert index.times.tolist() == scan(path).times.tolist()
    (clip,) = read_cuts(nowhere, [Cut([50, 2])], index=index, data=data)
    assert [number_in(frame) for frame in clip.frames] == [50, 2]
    with pytest.raises(VideoError, match=r"shard\.tar.*FFmpeg cannot read it"):
        scan(nowhere, data=b"no video" * 100)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted through /proc")
def test_files_are_closed_again(written: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    paths = [written("short_gop.mp4"), written("h264.avi"), tmp_path / "text.mp4"]
    before = os.listdir("/proc/self/fd")
    for path in paths:
        try:
            read(path, [3])
            read(path, [3, 200])
        except ValueError as error:
            kept = error  # the traceback keeps the reader's frames alive: closing must not wait for them
    assert len(os.listdir("/proc/self/fd")) == len(before), kept


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "robust").is_dir(), reason="set VIDEOKD_REAL_DATA to a folder with robust/")
def test_every_real_file_ends_in_exact_frames_or_one_error() -> None:
    paths = sorted(path for path in (REAL_DATA / "robust").glob("*/*") if path.is_file())
    assert len(paths) > 50
    for path in paths:
        try:
            index = scan(path)
        except VideoError:
            continue
        asked = list(requests(index.num_frames, count=4))
        theirs, num_frames, ended = decoded_up_to_damage(path, keep={number for numbers in asked for number in numbers})
        assert index.num_frames == num_frames or not ended, path
        for numbers in asked:
            if theirs.keys() >= set(numbers):  # past a damaged frame others may decode or not
                clip = read(path, numbers, index=index)
                upright = torch.rot90(clip.frames, -index.rotation // 90, dims=(2, 3))
                assert all(torch.equal(theirs[number], ours) for number, ours in zip(numbers, upright)), path


def decoded_up_to_damage(path: Path, *, keep: set[int]) -> tuple[dict[int, torch.Tensor], int, bool]:
    """Frames of plain sequential decoding by number, how many there are, and whether that came to the end."""
    kept, decoded, ended = {}, 0, False
    with contextlib.suppress(av.FFmpegError), av.open(path, metadata_errors="ignore") as container:
        for frame in container.decode(video=0):
            if decoded in keep:
                kept[decoded] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            decoded += 1
        ended = True
    return kept, decoded, ended
