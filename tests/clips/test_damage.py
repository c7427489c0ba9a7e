"""Frames that a decoder conceals, decoding that fails midway, and times that contradict the order of decoding."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from drawn_videos import DrawnVideo, decoded_sequentially, number_in

from videokd.clips.checking import check, problems, report
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.clips.packing import Packing, pack
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError, VideoIndex, decode, decode_whole, read, scan, walk
from videokd.contracts import InputSpec

GOPS_OF_TEN = {"g": "10", "x264-params": "scenecut=0:b-adapt=0:bframes=3:b-pyramid=none"}
QUIET_X265 = "keyint=10:log-level=none:pools=1:frame-threads=1"


def packets_of(path: Path) -> list[tuple[int, bytes, bool]]:
    """Every packet in decoding order: pts, content, whether it is a key frame."""
    with av.open(path) as container:
        return [
            (packet.pts or 0, bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size
        ]


def overwritten(path: Path, packets: dict[int, Callable[[bytes], bytes]]) -> Path:
    """The file with the content of some packets changed, by their number in decoding order; lengths stay."""
    data, place = bytearray(path.read_bytes()), 0
    for number, (_, content, _) in enumerate(packets_of(path)):
        place = data.index(content, 0 if path.suffix == ".mp4" else place)
        if number in packets:
            data[place : place + len(content)] = packets[number](content)
    path.write_bytes(data)
    return path


def tail_lost(content: bytes) -> bytes:
    return content[: len(content) // 3] + bytes(len(content) - len(content) // 3)


def lost(content: bytes) -> bytes:
    return bytes(len(content))


def flags_of(path: Path) -> list[bool]:
    """By PyAV's own loop: which of the frames that it shows are flagged."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.is_corrupt for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return DrawnVideo(name="sound.mkv", num_frames=40, options=GOPS_OF_TEN).write(folder)


@pytest.fixture
def concealed(sound: Path, tmp_path: Path) -> Path:
    """Frame 14 is a P-frame of the second of four groups, and most of it is lost; B-frames 11 to 13 refer to it."""
    path = tmp_path / "concealed.mkv"
    path.write_bytes(sound.read_bytes())
    ticks = sorted(pts for pts, _, _ in packets_of(sound))
    number = next(n for n, (pts, _, _) in enumerate(packets_of(sound)) if pts == ticks[14])
    overwritten(path, {number: tail_lost})
    flags = flags_of(path)
    assert len(flags) == 40
    assert flags[14]
    assert not any(flags[:11] + flags[20:])
    return path


def refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(VideoError, match=r"the decoder flags .* as damaged") as caught:
        attempt()
    assert caught.value.fault == "damaged"


@pytest.mark.parametrize("with_index", [True, False])
def test_a_frame_that_is_flagged_or_depends_on_one_is_refused(concealed: Path, sound: Path, with_index: bool) -> None:
    index = scan(concealed) if with_index else None
    truth = read(sound, range(40)).frames
    for numbers in ([0, 5], [9, 35], [22], [30, 39]):  # groups that are whole
        assert torch.equal(read(concealed, numbers, index=index).frames, truth[numbers])
    for number in range(11, 18):  # 11 to 13 are shown before the damage, and are predicted from it
        refused(lambda number=number: read(concealed, [number], index=index))  # type: ignore[misc]
    refused(lambda: read(concealed, [5, 35, 16], index=index))


def test_every_way_of_reading_refuses_damaged_frames(concealed: Path, tmp_path: Path) -> None:
    index = scan(concealed)
    walked: list[int] = []
    with pytest.raises(VideoError, match="as damaged"):
        walked.extend(number_in(frame) for frame in walk(concealed, Cut(range(40)), index=index))
    assert walked == list(range(len(walked)))
    assert len(walked) <= 11, "frames that are predicted from the damaged one are not handed out"
    refused(lambda: decode(concealed, [Cut([15])], index=index))
    manifest = Manifest(tmp_path / "list", (Video(id="concealed.mkv", path=concealed, label="a"),), ("a",))
    for memory in (None, FrameMemory()):
        refused(
            lambda memory=memory: ClipDataset(manifest, {"student": InputSpec(frames=20, size=16)}, memory=memory)[0]
        )  # type: ignore[misc]
    for form in ("mp4", "jpeg", "raw"):
        with pytest.raises(ValueError, match="as damaged"):
            pack(manifest, tmp_path / form, Packing(format=form), workers=1)  # type: ignore[arg-type]


def test_a_check_counts_damaged_frames_and_the_manifest_keeps_them_out(
    concealed: Path, sound: Path, tmp_path: Path
) -> None:
    videos = tuple(Video(id=path.name, path=path, label="a", split="test") for path in (concealed, sound))
    manifest = Manifest(tmp_path / "list", videos, ("a",))
    found = {one.video.id: one for one in check(manifest, depth="decode", workers=1, time_limit=60)}
    facts, num_damaged = found["concealed.mkv"].facts, sum(flags_of(concealed))
    assert facts["damaged"] == num_damaged
    assert facts["error"]["kind"] == "damaged"
    assert f"flags {num_damaged} of its 40 frames" in facts["error"]["reason"]
    assert found["concealed.mkv"].columns is None
    assert (found["sound.mkv"].facts["damaged"], found["sound.mkv"].facts["error"]) == (0, None)
    assert any("1 damaged" in line for line in problems(report(manifest, list(found.values()))))


def test_policies_hold_for_damaged_frames(concealed: Path, sound: Path, tmp_path: Path) -> None:
    videos = tuple(Video(id=path.name, path=path, label="a") for path in (concealed, sound))
    clips = ClipDataset(Manifest(tmp_path / "list", videos, ("a",)), {"student": InputSpec(frames=20, size=16)})
    (batch,) = batches(clips, EveryClip(2, 2), on_bad_video="skip")
    assert list(batch.id) == ["sound.mkv"]
    assert "as damaged" in batch.skipped[0]
    (batch,) = batches(clips, EveryClip(2, 2), on_bad_video="substitute")
    assert list(batch.id) == ["sound.mkv", "sound.mkv"]
    with pytest.raises(ValueError, match="as damaged"):
        list(batches(clips, EveryClip(2, 2), on_bad_video="error"))


@pytest.mark.parametrize("name", ["open_gop.mp4", "intra_refresh.mp4", "open_gop.ts", "hevc.mkv", "mpeg2.mkv"])
def test_sound_files_are_never_refused_for_what_a_seek_leaves_out(name: str, tmp_path: Path) -> None:
    codec, options = "libx264", {"g": "8", "x264-params": "open-gop=1:bframes=3:scenecut=0:b-adapt=0"}
    if name.startswith("intra"):
        options = {"g": "10", "x264-params": "intra-refresh=1"}
    elif name.startswith("hevc"):
        codec, options = "libx265", {"x265-params": f"open-gop=1:{QUIET_X265}"}
    elif name.startswith("mpeg2"):
        codec, options = "mpeg2video", {"g": "8", "flags": "-cgop"}
    path = DrawnVideo(name=name, codec=codec, options=options, num_frames=40).write(tmp_path)
    index = scan(path)
    assert decode_whole(path, index=index).fault is None
    for number in range(index.num_frames):
        assert number_in(read(path, [number], index=index).frames[0]) == number


DECODERS = [
    DrawnVideo(name="h264.mp4", num_frames=40, options=GOPS_OF_TEN),
    DrawnVideo(name="h264.mkv", num_frames=40, options=GOPS_OF_TEN),
    DrawnVideo(name="hevc.mp4", codec="libx265", num_frames=40, options={"x265-params": QUIET_X265}),
    DrawnVideo(
        name="vp9.webm", codec="libvpx-vp9", num_frames=40, options={"g": "10", "deadline": "realtime", "cpu-used": "8"}
    ),
    DrawnVideo(name="h264.ts", num_frames=40, options=GOPS_OF_TEN),
]


@pytest.mark.parametrize("video", DECODERS[:4], ids=lambda video: video.name)
@pytest.mark.parametrize("places", [[14], [17, 18], [20, 21, 22], [39]], ids=str)
def test_no_frame_is_served_past_the_point_where_decoding_fails(
    video: DrawnVideo, places: list[int], tmp_path: Path
) -> None:
    path = overwritten(video.write(tmp_path), dict.fromkeys(places, lost))
    shown = 0
    with contextlib.suppress(av.FFmpegError), av.open(path) as container:
        for _ in container.decode(video=0):
            shown += 1
    assert shown < 40, "decoding fails"
    for attempt in (lambda: scan(path), lambda: read(path, [39]), lambda: read(path, [3])):
        with pytest.raises(VideoError, match=r"decoding fails after \d+ frames") as caught:
            attempt()
        assert caught.value.fault == "broken"
    fault = decode_whole(path).fault
    assert fault is not None
    assert fault.fault == "broken"


@pytest.mark.parametrize("video", DECODERS, ids=lambda video: video.name)
def test_a_file_that_is_cut_off_serves_no_frame_beyond_its_end(video: DrawnVideo, tmp_path: Path) -> None:
    path = video.write(tmp_path)
    whole = path.read_bytes()
    options = {"movflags": "faststart"} if video.name.endswith(".mp4") else {}
    if options:
        with av.open(path) as source, av.open(tmp_path / "fast.mp4", "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        whole = (tmp_path / "fast.mp4").read_bytes()
    for share in (0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        try:
            index = scan(path)
        except VideoError as error:
            assert error.fault == "broken"  # noqa: PT017
            continue
        assert index.num_frames < 40
        with contextlib.suppress(VideoError):  # the last packet may be damaged
            clip = read(path, range(index.num_frames - 4), index=index)
            assert [number_in(frame) for frame in clip.frames] == list(range(index.num_frames - 4))


# Times of 40 frames in 1/30 s, as damaged or odd files have them.
def jump_ahead(ticks: list[int]) -> None:
    ticks[18] = 5000


def jump_ahead_near_the_end(ticks: list[int]) -> None:
    ticks[37] = 5000


def jump_back(ticks: list[int]) -> None:
    ticks[25] = 3


def jump_back_at_the_end(ticks: list[int]) -> None:
    ticks[39] = 2


def before_the_start(ticks: list[int]) -> None:
    ticks[12] = -300


def restart(ticks: list[int]) -> None:
    ticks[20:] = [tick - 20 for tick in ticks[20:]]


def wrap_around(ticks: list[int]) -> None:
    ticks[20:] = [tick - 2000 for tick in ticks[20:]]


def all_alike(ticks: list[int]) -> None:
    ticks[:] = [7] * 40


def far_ahead_and_on(ticks: list[int]) -> None:
    ticks[15:20] = [tick + 3000 for tick in ticks[15:20]]


DAMAGED_TIMES = [
    jump_ahead,
    jump_ahead_near_the_end,
    jump_back,
    jump_back_at_the_end,
    before_the_start,
    restart,
    wrap_around,
    all_alike,
    far_ahead_and_on,
]


def retimed(source: Path, target: Path, change: Callable[[list[int]], None], *, shift: int = 0) -> Path:
    """A copy in which frame n is shown at the nth of the changed times; the order of packets stays."""
    ticks = list(range(40))
    change(ticks)
    with av.open(source) as whole, av.open(target, "w", options={"avoid_negative_ts": "disabled"}) as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        number = 0
        for packet in whole.demux(video=0):
            if packet.pts is None:
                continue
            place = round(packet.pts * packet.time_base * 30) - shift
            tick = round(1 / 30 / packet.time_base)
            packet.pts, packet.dts, packet.stream = ticks[place] * tick, (number - 100_000) * tick, stream
            number += 1
            copy.mux(packet)
    return target


SOURCES = [
    DrawnVideo(
        name="vp9.webm", codec="libvpx-vp9", num_frames=40, options={"g": "10", "deadline": "realtime", "cpu-used": "8"}
    ),
    DrawnVideo(name="b_frames.mkv", num_frames=40, options={"g": "10", "x264-params": "scenecut=0"}),
    DrawnVideo(name="no_b_frames.mkv", num_frames=40, options={"g": "10", "bf": "0"}),
    DrawnVideo(name="hevc.mkv", codec="libx265", num_frames=40, options={"x265-params": QUIET_X265}),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {video.name: video.write(folder) for video in SOURCES}


def is_sequential(path: Path, index: VideoIndex) -> None:
    """Frame n is the nth that decoding shows, in any order of asking; times rise."""
    everything = decoded_sequentially(path)
    assert index.num_frames == len(everything)
    assert (np.diff(index.times) > 0).all()
    assert index.seconds > 0
    for numbers in (list(range(index.num_frames)), [39, 18, 17, 25, 0], [38]):
        assert torch.equal(read(path, numbers, index=index).frames, everything[numbers])


@pytest.mark.parametrize("change", DAMAGED_TIMES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", [video.name for video in SOURCES])
def test_frame_n_is_the_nth_that_decoding_shows_whatever_the_times(
    name: str, change: Callable[[list[int]], None], sources: dict[str, Path], tmp_path: Path
) -> None:
    path = retimed(sources[name], tmp_path / name, change)
    index = scan(path)
    is_sequential(path, index)
    if index.access == "seek":  # WebM has no times before 0: the muxer wrote another
        assert change is before_the_start
    decoded = decode_whole(path, index=index)
    assert (decoded.num_frames, decoded.fault) == (40, None)


@pytest.mark.parametrize("name", [video.name for video in SOURCES])
def test_a_long_gap_is_kept_where_the_order_agrees(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    def pause(ticks: list[int]) -> None:
        ticks[23:] = [tick + 9000 for tick in ticks[23:]]

    path = retimed(sources[name], tmp_path / name, pause)
    index = scan(path)
    assert index.access == "seek"
    assert index.times[23] - index.times[22] == pytest.approx(9001 / 30, rel=0.02)  # in whole milliseconds
    is_sequential(path, index)


def test_a_check_finds_two_frames_whose_times_are_swapped(sources: dict[str, Path], tmp_path: Path) -> None:
    def swap(ticks: list[int]) -> None:
        ticks[21], ticks[22] = ticks[22], ticks[21]

    path = retimed(sources["b_frames.mkv"], tmp_path / "swapped.mkv", swap)
    index = decode_whole(path, index=scan(path)).index
    assert index is not None
    assert index.access == "count"
    is_sequential(path, index)


def test_the_list_of_a_check_reads_by_counting(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = retimed(sources["vp9.webm"], tmp_path / "a" / "jump.webm", jump_ahead)
    (found,) = check(read_manifest(tmp_path), depth="decode", workers=1, time_limit=60)
    assert found.facts["error"] is None
    assert found.facts["frames"] == 40
    assert found.facts["seconds"] < 2
    assert path.is_file()
