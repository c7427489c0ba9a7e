import csv
import io
import itertools
import json
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from noisy_videos import write as write_noisy
from torch import Tensor

from videokd.cli import main
from videokd.clips.dataset import ClipDataset, centred_box
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError, read, read_cuts, scan
from videokd.clips.views import ViewGrid
from videokd.contracts import Clip, Dense, InputSpec, Outputs, Sampling, Segments, Timed
from videokd.evaluate import predict
from videokd.models import CompactShift, MelNetwork, ModelConfig, VideoModel, save_model
from videokd.predict import (
    Caption,
    Timeline,
    TimelineOptions,
    clock,
    draw,
    find_videos,
    plot,
    predict_videos,
    timeline,
)
from videokd.predict.timelines import place_windows, segments, smoothed

SPEC = InputSpec(frames=8, size=32, sampling=Dense(stride=2), crop_fraction=32 / 36)
LEVELS = {"dark": 20, "grey": 120, "bright": 230}


@dataclass(frozen=True, kw_only=True)
class Brightness(ModelConfig):
    """Tells how bright a clip is, without any training."""

    input: InputSpec = SPEC

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "BrightnessReader":
        return BrightnessReader(self, tuple(classes or LEVELS), taps=(), input=self.input)


class BrightnessReader(VideoModel):
    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        pixels = (video * self.std + self.mean).mean(dim=(1, 2, 3, 4))
        levels = torch.tensor([LEVELS[name] for name in self.classes])
        return Outputs(-((pixels[:, None] - levels) / 40).square())


def film(
    path: Path,
    levels: Sequence[int | tuple[int, int, int]],
    *,
    fps: int = 10,
    ticks: Sequence[int] | None = None,  # of 1 / fps seconds
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    codec: str = "libx264",
) -> Path:
    """Frames of one grey, or colour, each; a white corner, top left, tells how they are turned."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number, level in enumerate(levels):
            picture = np.full((*size, 3), level, dtype=np.uint8)
            picture[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number if ticks is None else ticks[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def listed(*paths: Path) -> Manifest:
    return find_videos(paths)


def one(path: Path) -> Video:
    return Video(id=str(path), path=path)


def run(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark for 8 s, bright for 6, dark for 6."""
    folder = tmp_path_factory.mktemp("long")
    return film(folder / "long.mp4", [20] * 80 + [230] * 60 + [20] * 60)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    save_model(Brightness().build(tuple(LEVELS)), folder)
    return folder


TRUST = ("--trust", "test_predict")


# What is said of whole videos.


def test_a_video_alone_is_what_evaluation_says_of_a_list_of_it(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    model = CompactShift(width=4, input=SPEC).build(manifest.classes).eval()
    for video in manifest.videos[:3]:
        expected = predict(model, ClipDataset(replace(manifest, videos=(video,)), {"student": SPEC}))
        found = predict_videos(model, listed(video.path))
        assert torch.equal(found.videos[0].probabilities, expected.logits.double().softmax(dim=1)[0])
        name, value = found.videos[0].top(found.classes, 1)[0]
        assert (name, value) == (manifest.classes[int(expected.predicted)], float(found.videos[0].probabilities.max()))
        # 16 frames are one window of a model that sees 8 at stride 2.
        over_time = timeline(model, one(video.path), scan(video.path))
        assert np.array_equal(over_time.raw, found.videos[0].probabilities[None].numpy())


def test_views_are_averaged_as_probabilities(noisy_set: Path) -> None:
    manifest = read_manifest(noisy_set)
    model = CompactShift(width=4, input=SPEC).build(manifest.classes).eval()
    grid = ViewGrid(temporal=2, spatial=3)
    clips = ClipDataset(manifest, {"student": SPEC}, grid=grid)
    by_hand = []
    for sample in clips.clips(5, range(6)):
        view: Any = sample["clips"]["student"]
        with torch.no_grad():
            said = model(Clip(view["frames"][None], view["times"][None])).logits
        assert said is not None
        by_hand.append(said.double().softmax(dim=1)[0])
    assert not any(torch.equal(by_hand[0], other) for other in by_hand[1:])
    done: list[int] = []
    found = predict_videos(model, manifest, grid=grid, advance=done.append)
    torch.testing.assert_close(found.videos[5].probabilities, torch.stack(by_hand).mean(dim=0), rtol=1e-5, atol=1e-7)
    assert sum(done) == 8
    assert float(found.videos[5].probabilities.sum()) == pytest.approx(1)


def test_several_labels_have_a_probability_each(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    model = CompactShift(width=4, input=SPEC).build(manifest.classes).eval()
    videos = replace(manifest, videos=manifest.videos[:1])
    logits = predict(model, ClipDataset(videos, {"student": SPEC})).logits
    found = predict_videos(model, videos, several_labels=True)
    assert torch.equal(found.videos[0].probabilities, logits.double().sigmoid()[0])
    path = manifest.videos[0].path
    over_time = timeline(model, one(path), scan(path), several_labels=True)
    assert np.array_equal(over_time.raw, found.videos[0].probabilities[None].numpy())


def test_a_model_that_listens_says_what_it_hears(noisy_set: Path) -> None:
    model = MelNetwork().build(("early", "late")).eval()
    folder = noisy_set.parent
    found = predict_videos(model, listed(folder / "0.mp4", folder / "7.mp4"))
    assert [prediction.video.path.name for prediction in found.videos] == ["0.mp4"]
    assert found.skipped == (f"{folder / '7.mp4'}: the video has no sound",)
    with pytest.raises(ValueError, match="needs a model that tells classes apart by what it sees: MelNetwork"):
        timeline(model, one(folder / "0.mp4"), scan(folder / "0.mp4"))


def test_videos_are_found_in_folders_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MKV", "a/.hidden/d.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = listed(tmp_path, tmp_path / "b.mp4", tmp_path / "odd.name")
    assert [video.path for video in found.videos] == [tmp_path / name for name in ("a/c.MKV", "b.mp4", "odd.name")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no video"):
        listed(tmp_path / "empty")


def test_videos_that_can_not_be_read_are_named_and_the_others_done(drawn_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    good = manifest.videos[0]
    broken, cut_off = tmp_path / "broken.mp4", tmp_path / "cut.mkv"
    broken.write_bytes(b"nothing")
    write_noisy(tmp_path / "whole.mkv")
    cut_off.write_bytes((tmp_path / "whole.mkv").read_bytes()[:200])
    videos = listed(broken, good.path, tmp_path / "gone.mp4", cut_off)
    model = CompactShift(width=4, input=SPEC).build(manifest.classes).eval()
    found = predict_videos(model, videos, on_bad_video="skip")
    assert [prediction.video.path for prediction in found.videos] == [good.path]
    assert [reason.partition(": ")[0] for reason in found.skipped] == [
        str(path) for path in (broken, tmp_path / "gone.mp4", cut_off)
    ]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        predict_videos(model, videos)
    none = predict_videos(model, listed(broken), on_bad_video="skip")
    assert (none.videos, len(none.skipped)) == ((), 1)
    # Nor is one that its list says can't be read.
    named = replace(manifest, videos=(replace(good, error="it was too long to be packed"), *manifest.videos[1:3]))
    found = predict_videos(model, named, on_bad_video="skip")
    assert [prediction.video for prediction in found.videos] == list(named.videos[1:])
    assert found.skipped == (str(VideoError(good.path, "it was too long to be packed")),)


# Windows, curve, segments.


def test_a_long_video_is_parted_where_its_classes_change(long_video: Path) -> None:
    model = Brightness().build(("bright", "dark"))
    done: list[float] = []
    found = timeline(model, one(long_video), scan(long_video), batch_size=7, advance=done.append)
    # 8 frames at stride 2 and 10 a second are 1.6 s; a window begins every 0.8 s.
    assert found.window == pytest.approx(1.6)
    assert np.diff(found.centres)[:-1] == pytest.approx(0.8)
    assert [segment.name for segment in found.segments] == ["dark", "bright", "dark"]
    assert [segment.start for segment in found.segments] == pytest.approx([0, 8, 14], abs=0.8)
    assert [segment.end for segment in found.segments] == pytest.approx([8, 14, 20], abs=0.8)
    assert all(segment.confidence > 0.9 for segment in found.segments)
    assert sum(done) == pytest.approx(20)
    finer = timeline(model, one(long_video), scan(long_video), TimelineOptions(stride=0.1))
    assert [segment.start for segment in finer.segments] == pytest.approx([0, 8, 14], abs=0.15)


def test_each_window_is_seen_as_evaluation_sees_a_video(long_video: Path) -> None:
    seen: list[Clip] = []

    class Watched(BrightnessReader):
        def forward(self, view: Clip, taps: Sequence[str] = ()) -> Outputs:
            seen.append(view)
            return super().forward(view, taps)

    model = Watched(Brightness(), tuple(LEVELS), taps=(), input=SPEC)
    index = scan(long_video)
    found = timeline(model, one(long_video), index, TimelineOptions(stride=1.0), batch_size=4)
    frames, times = torch.cat([clip.frames for clip in seen]), torch.cat([clip.times for clip in seen])
    starts = [*range(0, 184, 10), 184]
    assert len(frames) == len(starts) == len(found.centres)
    box = centred_box(index, SPEC)
    for window, start in enumerate(starts):
        wanted = read_cuts(long_video, [Cut(range(start, start + 16, 2), box, (32, 32))], index=index)[0]
        assert torch.equal(frames[window], wanted.frames)
        assert torch.equal(times[window], wanted.times.float())


@pytest.mark.parametrize(
    ("sampling", "options", "expected"),
    [
        # 20 s at 10 frames a second: 16 frames, the last window at the end.
        (Dense(stride=2), TimelineOptions(stride=6.0), [(0, 16), (60, 76), (120, 136), (180, 196), (184, 200)]),
        (Timed(fps=2), TimelineOptions(stride=8.0), [(0, 40), (80, 120), (160, 200)]),
        (Segments(), TimelineOptions(window=10.0), [(0, 100), (50, 150), (100, 200)]),
        (Dense(stride=2), TimelineOptions(window=19.95, stride=9.0), [(0, 200)]),
        (Dense(stride=2), TimelineOptions(window=30.0), [(0, 200)]),
        (Dense(stride=30), TimelineOptions(), [(0, 200)]),
    ],
)
def test_windows_lie_from_start_to_end(
    sampling: Sampling, options: TimelineOptions, expected: list[tuple[int, int]], long_video: Path
) -> None:
    spec = replace(SPEC, sampling=sampling)
    found = place_windows(scan(long_video), spec, options, model="a model")
    if options.window == 19.95:  # the second begins half a frame later, and the first frame is shown then too
        assert [window.start for window in found] == pytest.approx([0, 0.05])
        found = found[:1]
    assert [(window.frames.start, window.frames.stop) for window in found] == expected
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(20) or len(found) == 1


def test_windows_of_a_model_that_counts_frames_hold_so_many_at_any_rate(tmp_path: Path) -> None:
    ticks = np.cumsum([1, 3, 1, 1, 5, 1, 2] * 12).tolist()
    path = film(tmp_path / "vfr.mp4", [20] * 84, ticks=ticks)
    windows = place_windows(scan(path), SPEC, TimelineOptions(), model="a model")
    assert all(len(window.frames) == 16 for window in windows)
    assert (windows[0].frames.start, windows[-1].frames.stop) == (0, 84)
    assert all(before.start < after.start for before, after in itertools.pairwise(windows))
    # Of one that asks for a length, what is shown in it.
    wide = place_windows(scan(path), SPEC, TimelineOptions(window=3.0), model="a model")
    times = scan(path).times - scan(path).times[0]
    for window in wide:
        inside = np.flatnonzero((times > window.start - 1e-6) & (times < window.end - 1e-6))
        assert window.frames.stop == inside[-1] + 1
        assert window.frames.start in (inside[0], inside[0] - 1)


def test_a_model_of_whole_videos_needs_a_window(long_video: Path) -> None:
    model = Brightness(input=replace(SPEC, sampling=Segments())).build(tuple(LEVELS))
    with pytest.raises(ValueError, match=r"say how many seconds of it a window takes \(--window\)"):
        timeline(model, one(long_video), scan(long_video))
    found = timeline(model, one(long_video), scan(long_video), TimelineOptions(window=2.0))
    assert [segment.name for segment in found.segments if segment.name != "grey"] == ["dark", "bright", "dark"]


def test_a_short_video_is_one_window_unless_the_model_does_not_bear_it(tmp_path: Path) -> None:
    path = film(tmp_path / "short.mp4", [230] * 5)
    found = timeline(Brightness().build(tuple(LEVELS)), one(path), scan(path))
    assert [(segment.start, segment.end, segment.name) for segment in found.segments] == [(0.0, 0.5, "bright")]
    strict = Brightness(input=replace(SPEC, sampling=Dense(stride=2, short="error"))).build(tuple(LEVELS))
    with pytest.raises(VideoError, match=r"short\.mp4: 8 frames at stride 2 need 15 frames, the video has 5"):
        timeline(strict, one(path), scan(path))


def test_no_more_frames_are_held_than_a_window_and_a_batch(
    long_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import videokd.predict.timelines as module

    walk, held, peak = module.walk, 0, 0

    def released() -> None:
        nonlocal held
        held -= 1

    def counted(*arguments: Any, **more: Any) -> Iterator[Tensor]:
        nonlocal held, peak
        for picture in walk(*arguments, **more):
            weakref.finalize(picture, released)
            held += 1
            peak = max(peak, held)
            yield picture
            del picture

    monkeypatch.setattr(module, "walk", counted)
    model = Brightness().build(tuple(LEVELS))
    peaks = []
    for path in (film(tmp_path / "short.mp4", [20] * 60), long_video):
        peak = 0
        found = timeline(model, one(path), scan(path), TimelineOptions(stride=0.4), batch_size=5)
        assert len(found.centres) > 10
        peaks.append(peak)
    assert peaks[0] == peaks[1] <= 10  # every second frame of 16, and the next


def test_smoothing_is_an_average_over_seconds() -> None:
    centres, edges = np.array([1.0, 3.0, 5.0]), np.array([0.0, 2.0, 4.0, 6.0])
    raw = np.array([[0.0, 1.0], [0.6, 0.4], [0.9, 0.1]])
    # 3 s around 1 are 0 to 2.5: 2 s of the first, half a second of the second; around 3 half a second, 2, half.
    first, second = 0.5 * 0.6 / 2.5, (0.5 * 0.0 + 2 * 0.6 + 0.5 * 0.9) / 3
    third = (0.5 * 0.6 + 2 * 0.9) / 2.5
    found = smoothed(raw, centres, edges, seconds=3.0)
    assert found[:, 0] == pytest.approx([first, second, third])
    assert found.sum(axis=1) == pytest.approx(1)
    assert np.array_equal(smoothed(raw, centres, edges, seconds=0), raw)
    # Far wider than the video: the mean of all of it.
    assert smoothed(raw, centres, edges, seconds=100)[:, 0] == pytest.approx(0.5)
    # Within its own cell a window is all there is.
    assert smoothed(raw, centres, edges, seconds=1.5) == pytest.approx(raw)


def test_segments_by_hand() -> None:
    edges = np.array([0.0, 2.0, 3.0, 4.0, 8.0])
    curve = np.array([[0.9, 0.06, 0.04], [0.3, 0.5, 0.2], [0.25, 0.15, 0.6], [0.1, 0.1, 0.8]])
    found = segments(curve, edges, ["a", "b", "c"])
    assert [(one.start, one.end, one.name) for one in found] == [(0, 2, "a"), (2, 3, "b"), (3, 8, "c")]
    assert found[2].confidence == pytest.approx((0.6 + 4 * 0.8) / 5)
    # The second of b is likelier a than c.
    merged = segments(curve, edges, ["a", "b", "c"], min_seconds=1.5)
    assert [(one.start, one.end, one.name) for one in merged] == [(0, 3, "a"), (3, 8, "c")]
    assert merged[0].confidence == pytest.approx((2 * 0.9 + 0.3) / 3)
    unsure = segments(curve, edges, ["a", "b", "c"], threshold=0.55)
    assert [(one.name, one.likeliest) for one in unsure] == [("a", "a"), ("unsure", "b"), ("c", "c")]
    # One that lay between two of a class makes one of them.
    swallowed = segments(curve[[0, 1, 0]], edges[:4], ["a", "b", "c"], min_seconds=1.5)
    assert [(one.start, one.end, one.name) for one in swallowed] == [(0, 4, "a")]
    assert [one.name for one in segments(curve, edges, ["a", "b", "c"], min_seconds=100)] == ["c"]


def test_a_timeline_has_the_segments_of_its_smoothed_curve_by_its_options(long_video: Path) -> None:
    model = Brightness().build(tuple(LEVELS))
    found = timeline(
        model, one(long_video), scan(long_video), TimelineOptions(smooth=3.0, threshold=0.85, min_seconds=1.5)
    )
    curve = smoothed(found.raw, found.centres, found.edges, seconds=3.0)
    assert np.array_equal(found.probabilities, curve)
    assert found.segments == segments(curve, found.edges, found.classes, threshold=0.85, min_seconds=1.5)
    assert {segment.is_sure for segment in found.segments} == {True, False}
    plain = timeline(model, one(long_video), scan(long_video))
    assert np.array_equal(plain.probabilities, plain.raw)
    assert len(plain.segments) > len(found.segments)


def test_a_caption_is_of_the_segment_that_is_on_and_as_likely_as_just_then(long_video: Path) -> None:
    edges, curve = np.array([0.0, 2.0, 3.0, 5.0]), np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    found = Timeline(
        video=one(long_video),
        index=scan(long_video),
        classes=("a", "b"),
        window=2.0,
        centres=np.array([1.0, 2.5, 4.0]),
        edges=edges,
        raw=curve,
        probabilities=curve,
        segments=segments(curve, edges, ["a", "b"], threshold=0.75),
    )
    first, second, third = Caption("a", 0.9), Caption("a", 0.6), Caption("unsure", 0.7, is_sure=False)
    moments = {0.0: first, 1.9: first, 2.0: second, 2.9: second, 3.0: third, 4.9: third, 5.0: third, 9.0: third}
    assert {seconds: found.caption_at(seconds) for seconds in moments} == moments


def test_segments_cover_the_video_whatever_it_shows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        curve = rng.dirichlet(np.ones(4), size=rng.integers(1, 40))
        edges = np.concatenate([[0.0], np.cumsum(rng.uniform(0.1, 2, len(curve)))])
        shortest = float(rng.choice([0.0, 0.5, 3.0]))
        found = segments(curve, edges, "abcd", min_seconds=shortest)
        assert (found[0].start, found[-1].end) == (0, edges[-1])
        assert all(before.end == after.start for before, after in itertools.pairwise(found))
        assert all(before.name != after.name for before, after in itertools.pairwise(found))
        assert len(found) == 1 or min(one.end - one.start for one in found) > shortest - 1e-6


def test_a_wrong_option_of_a_timeline_is_named() -> None:
    with pytest.raises(ValueError, match="stride is a number of seconds above 0, got 0"):
        TimelineOptions(stride=0)
    with pytest.raises(ValueError, match="window is a number of seconds above 0, got nan"):
        TimelineOptions(window=math.nan)
    with pytest.raises(ValueError, match=r"threshold is a probability, got 0, 0 and 1\.5"):
        TimelineOptions(threshold=1.5)


def test_a_plot_of_a_timeline_is_a_picture(long_video: Path, tmp_path: Path) -> None:
    from PIL import Image

    options = TimelineOptions(smooth=2.0, threshold=0.9)
    found = timeline(Brightness().build(tuple(LEVELS)), one(long_video), scan(long_video), options)
    plot(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100
    with pytest.raises(ValueError, match="is there already"):
        plot(found, tmp_path / "plot.png")


# Copies with it written on.


def said(seconds: float) -> Caption:
    return Caption("a class" if seconds < 1 else "another class", min(seconds / 4, 1.0), seconds < 2)


def sound_of(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(path) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def test_a_copy_keeps_frames_times_and_sound(tmp_path: Path) -> None:
    source = write_noisy(tmp_path / "noisy.mp4")
    before = scan(source)
    done: list[int] = []
    assert draw(source, tmp_path / "copy.mp4", said, index=before, advance=done.append) is None
    after = scan(tmp_path / "copy.mp4")
    assert sum(done) == after.num_frames == before.num_frames
    assert np.array_equal(after.times, before.times)
    assert after.seconds == before.seconds
    assert sound_of(tmp_path / "copy.mp4") == sound_of(source)


def test_a_copy_keeps_frame_times_that_vary(tmp_path: Path) -> None:
    ticks = np.cumsum([0, 1, 3, 1, 1, 5, 1, 2, 7, 1]).tolist()
    for name in ("vfr.mp4", "vfr.mkv"):
        source = film(tmp_path / name, [100] * 10, ticks=ticks)
        draw(source, tmp_path / f"copy of {name}.mp4", said, index=scan(source))
        assert scan(tmp_path / f"copy of {name}.mp4").times == pytest.approx(scan(source).times, abs=1e-9)


def test_a_copy_of_a_broadcast_begins_at_its_beginning(tmp_path: Path) -> None:
    source = film(tmp_path / "late.ts", [100] * 10)
    assert scan(source).times[0] > 0
    asked: list[float] = []

    def caption(seconds: float) -> Caption:
        asked.append(seconds)
        return said(seconds)

    draw(source, tmp_path / "copy.mp4", caption, index=scan(source))
    found = scan(tmp_path / "copy.mp4").times
    assert found == pytest.approx(scan(source).times - scan(source).times[0], abs=1e-9)
    assert asked == pytest.approx(found.tolist())


def test_sound_of_a_broadcast_stays_with_its_pictures(tmp_path: Path) -> None:
    source = tmp_path / "late.ts"
    with (
        av.open(write_noisy(tmp_path / "noisy.ts")) as early,
        av.open(source, "w", options={"output_ts_offset": "5"}) as late,
    ):
        streams = {one.index: late.add_stream_from_template(one) for one in (early.streams[0], early.streams[1])}
        for packet in early.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                late.mux(packet)
    draw(source, tmp_path / "copy.mp4", said, index=scan(source))
    delays = []
    for path in (source, tmp_path / "copy.mp4"):
        with av.open(path) as container:
            first = sound_of(path)[0][0]
            assert first is not None
            delays.append(float(first * container.streams.audio[0].time_base) - float(scan(path).times[0]))
    assert scan(source).times[0] > 4
    assert delays[1] == pytest.approx(delays[0], abs=0.001)


def test_a_copy_shows_the_video_with_what_is_said_of_it(tmp_path: Path) -> None:
    source = film(tmp_path / "video.mp4", [100] * 40, size=(240, 320))
    draw(source, tmp_path / "copy.mp4", said, index=scan(source))
    copy = read(tmp_path / "copy.mp4", [0, 19, 39]).frames.float()
    # Above the strip all is as it was; in the strip it is darker, and the bar grows.
    assert copy[:, :, 20:180, 20:].sub(100).abs().max() < 6
    assert copy[:, :, 205:].mean() < 60
    blue = (copy[:, 2] - copy[:, 0] > 60).sum(dim=(1, 2)).tolist()
    assert blue[0] == 0
    assert blue[1] > 100
    assert blue[2] == 0  # unsure: grey
    assert (copy[2, :, 205:].amin(dim=0) > 140).sum() > 100
    # At the source's colours, be they those of a large picture.
    large = film(tmp_path / "large.mp4", [(200, 60, 30)] * 3, size=(720, 960))
    draw(large, tmp_path / "large copy.mp4", said, index=scan(large))
    pictures = read(tmp_path / "large copy.mp4", [1]).frames[0].float(), read(large, [1]).frames[0].float()
    assert (pictures[0] - pictures[1])[:, 50:500, 50:].abs().max() < 6


def test_a_label_that_has_no_room_is_cut_short(tmp_path: Path) -> None:
    source = film(tmp_path / "video.mp4", [100] * 5, size=(240, 320))
    strips = []
    for label in ("a", "W" * 200):
        copy = tmp_path / f"{len(label)}.mp4"
        draw(source, copy, lambda _, label=label: Caption(label, 0.5), index=scan(source))  # type: ignore[misc]
        strips.append(read(copy, [2]).frames[0, :, 200:].float())
    differs = (strips[0] - strips[1]).abs().amax(dim=(0, 1))
    assert differs[60:240].amax() > 100
    assert differs[-40:].amax() < 50  # the probability is not written over


@pytest.mark.parametrize(
    ("size", "rotation", "expected"),
    [((240, 320), 90, (320, 240)), ((48, 64), 0, (240, 320)), ((242, 322), 0, (242, 322)), ((60, 40), 270, (240, 360))],
)
def test_a_copy_is_upright_and_large_enough_to_read(
    size: tuple[int, int], rotation: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    source = film(tmp_path / "video.mp4", [100] * 5, size=size, rotation=rotation)
    draw(source, tmp_path / "copy.mp4", said, index=scan(source))
    index = scan(tmp_path / "copy.mp4")
    assert (index.rotation, (index.height, index.width)) == (0, expected)
    corner = {0: (0, 0), 90: (-1, 0), 270: (0, -1)}[rotation]
    if rotation != 90:  # there it lies under the strip
        assert read(tmp_path / "copy.mp4", [2]).frames[0, :, corner[0], corner[1]].min() > 200


def test_sound_that_an_mp4_can_not_hold_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = write_noisy(tmp_path / "noisy.mkv", codec="wavpack")
    lost = draw(source, tmp_path / "copy.mp4", said, index=scan(source))
    assert lost == "the copy has no sound: an mp4 can't hold the video's (wavpack)"
    with av.open(tmp_path / "copy.mp4") as copy:
        assert not copy.streams.audio


def test_a_copy_that_can_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    source = film(tmp_path / "video.mp4", [100] * 120)
    index = scan(source)
    with pytest.raises(ValueError, match=r"video\.mp4 is the video itself"):
        draw(source, tmp_path / "sub" / ".." / "video.mp4" if (tmp_path / "sub").mkdir() else source, said, index=index)
    (tmp_path / "there.mp4").touch()
    with pytest.raises(ValueError, match=r"there\.mp4 is there already"):
        draw(source, tmp_path / "there.mp4", said, index=index)
    short = film(tmp_path / "short.mp4", [100] * 80)  # long enough for something to be written
    with pytest.raises(VideoError, match="80 of the 120 frames that are wanted"):
        draw(short, tmp_path / "copy.mp4", said, index=index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.mp4", "sub", "there.mp4", "video.mp4"]


def test_times_are_read_as_people_read_them() -> None:
    assert [clock(seconds) for seconds in (0, 9.96, 75.3, 3723.05)] == ["0:00.0", "0:09.9", "1:15.3", "1:02:03.0"]


# On the command line.


def test_predict_writes_json_and_csv(
    long_video: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(planted, long_video, *TRUST, "--top-k", 2, "--out", tmp_path / "found.json") == 0
    shown = capsys.readouterr().out
    assert "long.mp4" in shown
    assert "bright" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["model"], found["classes"], found["skipped"]) == (str(planted), list(LEVELS), [])
    assert found["views"] == {"temporal": 1, "spatial": 1, "average": "probabilities"}
    (video,) = found["videos"]
    assert (video["path"], video["seconds"], video["fps"]) == (str(long_video), 20.0, 10.0)
    expected = predict_videos(Brightness().build(tuple(LEVELS)), listed(long_video)).videos[0].top(tuple(LEVELS), 2)
    assert [(one["class"], one["probability"]) for one in video["top"]] == expected
    # Three classes, though five are asked for.
    assert run(planted, long_video, *TRUST, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [(row["class"], float(row["probability"])) for row in rows[:2]] == expected
    assert {row["path"] for row in rows} == {str(long_video)}


def test_predict_makes_timelines_plots_and_copies(
    long_video: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = film(tmp_path / "short.avi", [230] * 10, codec="mpeg4")
    options = ("--timeline", "--smooth", "0.5", "--min-seconds", "1")
    output = ("--out", tmp_path / "a.json", "--plot", tmp_path / "plots", "--draw", tmp_path / "copies")
    assert run(planted, long_video, short, *TRUST, *options, *output) == 0
    shown = capsys.readouterr().out
    assert "0:20.0 in windows of 1.6 s" in shown
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["timeline"] == {"window": None, "stride": None, "smooth": 0.5, "threshold": 0, "min_seconds": 1}
    long, other = found["videos"]
    assert [(one["class"], one["likeliest"]) for one in long["segments"]] == [
        ("dark", "dark"),
        ("bright", "bright"),
        ("dark", "dark"),
    ]
    assert long["segments"][-1]["end"] == long["seconds"] == 20
    curve = long["curve"]
    assert len(curve["times"]) == len(curve["probabilities"]) == len(curve["smoothed"])
    assert curve["probabilities"] != curve["smoothed"]
    assert [one["class"] for one in other["segments"]] == ["bright"]
    # Under the folder that the two have in common.
    folder = long_video.parent.name
    plots = sorted(path.relative_to(tmp_path / "plots").name for path in (tmp_path / "plots").rglob("*.png"))
    assert plots == ["long.png", "short.png"]
    (copy,) = (tmp_path / "copies").rglob("long.mp4")
    assert copy.parent.name == folder
    assert scan(copy).num_frames == 200
    assert run(planted, long_video, *TRUST, "--timeline", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["class"] for row in rows if row["class"] != "grey"] == ["dark", "bright", "dark"]
    assert [row["start"] for row in rows[1:]] == [row["end"] for row in rows[:-1]]
    assert set(rows[0]) == {"path", "start", "end", "class", "confidence"}


def test_what_is_unsure_is_called_so_in_every_form(
    long_video: Path, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (planted, long_video, *TRUST, "--timeline", "--threshold", "1")
    assert run(*command, "--format", "json") == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert {one["class"] for one in video["segments"]} == {"unsure"}
    assert {one["likeliest"] for one in video["segments"]} >= {"dark", "bright"}
    assert video["curve"]["smoothed"] is None
    assert run(*command, "--format", "csv") == 0
    assert {row["class"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == {"unsure"}
    assert run(*command) == 0
    assert "unsure (bright)" in capsys.readouterr().out


def test_views_and_several_labels_are_those_of_the_command(
    long_video: Path, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, classes = Brightness().build(tuple(LEVELS)), tuple(LEVELS)
    command = (planted, long_video, *TRUST, "--several-labels", "--format", "json")
    assert run(*command, "--temporal", "2", "--spatial", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["views"] == {"temporal": 2, "spatial": 3, "average": "probabilities"}
    grid = ViewGrid(temporal=2, spatial=3)
    expected = predict_videos(model, listed(long_video), grid=grid, several_labels=True).videos[0].top(classes, 3)
    assert [(one["class"], one["probability"]) for one in found["videos"][0]["top"]] == expected
    assert run(*command, "--timeline") == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    over_time = timeline(model, one(long_video), scan(long_video), several_labels=True)
    assert video["curve"]["probabilities"] == over_time.raw.tolist()


def test_copies_of_videos_that_differ_in_their_suffix_alone_have_names_of_their_own(
    planted: Path, tmp_path: Path
) -> None:
    videos = [film(tmp_path / "same.mp4", [230] * 10), film(tmp_path / "same.avi", [20] * 10, codec="mpeg4")]
    assert run(planted, *videos, *TRUST, "--format", "json", "--draw", tmp_path / "copies") == 0
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["same.avi.mp4", "same.mp4.mp4"]


def test_a_copy_says_the_likeliest_class_and_one_that_can_not_be_made_is_named(
    long_video: Path,
    planted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Caption] = []

    def broken(path: Path, out: Path, caption: Callable[[float], Caption], **more: Any) -> None:
        asked.append(caption(0.0))
        raise VideoError(path, "it breaks off")

    monkeypatch.setattr("videokd.cli.predicting.draw_copy", broken)
    command = (planted, long_video, *TRUST, "--format", "json", "--draw", tmp_path / "copy.mp4")
    assert run(*command) == 1
    found = json.loads(capsys.readouterr().out)
    best = found["videos"][0]["top"][0]
    assert asked == [Caption(best["class"], best["probability"])]
    assert found["skipped"] == [str(VideoError(long_video, "it breaks off"))]
    assert run(*command, "--timeline") == 1
    found = json.loads(capsys.readouterr().out)
    assert asked[1] == Caption("dark", max(found["videos"][0]["curve"]["probabilities"][0]))
    assert len(found["skipped"]) == 1


def test_predict_reads_a_list_and_counts_what_it_skips(
    drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = read_manifest(drawn_set).classes
    save_model(CompactShift(width=4, input=SPEC).build(classes), tmp_path / "model")
    assert run(tmp_path / "model", "--list", drawn_set, "--split", "val", "--format", "json") == 0
    assert len(json.loads(capsys.readouterr().out)["videos"]) == 12
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    good = read_manifest(drawn_set).videos[0].path
    assert run(tmp_path / "model", bad, good, "--format", "json", "--draw", tmp_path / "copies") == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [video["path"] for video in found["videos"]] == [str(good)]
    assert len(found["skipped"]) == 1
    assert f"skipped: {bad}: FFmpeg cannot read it" in shown.err
    assert "1 of 2 videos were skipped" in shown.err
    (copy,) = (tmp_path / "copies").rglob("*.mp4")
    assert scan(copy).num_frames == 16
    assert run(tmp_path / "model", bad, good, "--on-bad-video", "error") == 1
    shown = capsys.readouterr()
    assert "bad.mp4" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "{video}"], "no folder nowhere: name that of a run"),
        (["{tmp}", "{video}"], "holds no trained model"),
        (["{model}"], "name a video, a folder of videos, or a list"),
        (["{model}", "{tmp}/empty"], "empty holds no video"),
        (["{model}", "{video}", "--list", "{tmp}"], "name videos or a --list, not both"),
        (["{model}", "{video}", "--timeline", "--stride", "0"], "stride is a number of seconds above 0, got 0"),
        (["{model}", "{video}", "--stride", "2"], "are for --timeline"),
        (["{model}", "{video}", "--plot", "{tmp}/x.png"], "are for --timeline"),
        (["{model}", "{video}", "--timeline", "--temporal", "2"], "a timeline has its windows"),
        (["{model}", "{video}", "--draw", "{video}"], "is the video itself"),
        (["{model}", "{video}", "--draw", "{tmp}/x.avi"], "is no .mp4 file and no folder"),
        (["{model}", "{video}", "{video}/../long.mp4", "--draw", "{tmp}/x.mp4"], "there are 2 videos: name a folder"),
        (["{model}", "{video}", "--out", "{tmp}/x.txt"], "--out is a .json or .csv file"),
        (["{model}", "{video}", "--out", "{tmp}/there.json"], "is there already"),
        (["{model}", "{video}", "--timeline", "--plot", "{tmp}/there.png"], "there.png is there already: remove it"),
        (["{model}", "{video}", "--top-k", "0"], "at least 1, got 0 and 32"),
        (["{model}", "{video}", "--temporal", "0"], "views are at least 1 in time"),
    ],
)
def test_a_wrong_command_is_one_clear_line(
    arguments: list[str],
    message: str,
    planted: Path,
    long_video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("there.json", "there.png"):
        (tmp_path / name).touch()
    names = {"tmp": tmp_path, "model": planted, "video": long_video}
    assert run(*[argument.format(**names) for argument in arguments], *TRUST) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("videokd: error: ")
    assert message in shown.err
    assert shown.out == ""
