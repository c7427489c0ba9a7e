"""Time and exactness of reading clips: videokd's reader beside decord, torchcodec and bare libavcodec.

    benchmarks/peers.sh && benchmarks/.peers/bin/python benchmarks/reading.py --out reading.json

Draws its own videos, reads the same random clips of them with every reader in turn on one thread, and prints how many
times as fast as the best other reader videokd's is, by CPU time. Ratios travel between machines; times do not. Every
reader opens the file anew for each clip, as a loader does; ours has the frame table that `videokd data check` writes.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import File, Interval, interleaved, setting, times_faster, write
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from videokd.clips import reading
from videokd.clips.backends import reader_of, require
from videokd.clips.dataset import video_index
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video
from videokd.clips.packing import Format, Packing, pack
from videokd.clips.pictures import Cut
from videokd.clips.table import FrameTable

FRAMES, STRIDE = 16, 4
HANG_SECONDS = 120
"""decord can hang inside native code, so exactness is checked in a process that can be killed."""

FILES = [
    File(name="gop250.mp4"),  # x264's defaults
    File(name="gop12.mp4", options={"g": "12"}),
    File(name="gop16_no_b.mp4", options={"g": "16", "bf": "0"}),
    File(name="720p.mp4", height=720, width=1280),
    File(name="h264.mkv"),
    File(name="mpeg4_b_frames.avi", codec="mpeg4", options={"b": "800k"}, max_b_frames=2),
    File(name="vp9.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "b": "600k"}),
]

Clip = list[int]
Read = Callable[[Path, Clip], NDArray[np.uint8]]  # -> (T, H, W, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--real", type=Path, help="a list of real videos, of which 12 are read too")
    parser.add_argument("--packed", type=Path, nargs="*", default=[], help="real videos to pack and read too")
    parser.add_argument("--clips", type=int, default=31, help="clips timed per file (default: %(default)s)")
    parser.add_argument("--checked", type=int, default=12, help="clips checked per file (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="names of files (default: all, and packed)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    peers = [name for name in ("decord", "torchcodec") if usable(name)]
    console.print(f"peers: {', '.join(peers) or 'none here; see benchmarks/peers.sh'}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            if args.only and file.name not in args.only:
                continue
            path = write(file, Path(folder))
            index = reading.scan(path)
            dense = [dense_clip(random.Random(seed), index.num_frames) for seed in range(args.clips)]
            row: dict[str, Any] = {"file": file.name, "size": f"{file.width}x{file.height}"}
            row["dense"] = compare(path, dense, peers, rounds=args.clips)
            if file.name in ("gop250.mp4", "gop12.mp4"):
                segments = [segment_clip(random.Random(seed), index.num_frames) for seed in range(args.clips)]
                row["segments"] = compare(path, segments, peers, rounds=args.clips)
                row["four_in_one"] = four_in_one(path, dense, rounds=args.clips // 2)
            row["wrong"] = {name: wrong_frames(name, path, dense[: args.checked]) for name in ("videokd", *peers)}
            row["checked"] = FRAMES * min(args.checked, args.clips)
            rows.append(row)
            console.print(f"{file.name} done")
        if args.real:
            rows.append(real(args.real, peers, rounds=2 * args.clips))
        if not args.only or "packed" in args.only:
            for path in (write(File(name="as_found.mp4"), Path(folder)), *args.packed):
                rows += packed(path, Path(folder), rounds=args.clips)
    console.print(table(rows, peers))
    if args.out:
        args.out.write_text(json.dumps({"setting": setting(vars(args)), "files": rows}, indent=2) + "\n")


def dense_clip(rng: random.Random, num_frames: int) -> Clip:
    stride = min(STRIDE, max(1, (num_frames - 1) // (FRAMES - 1)))
    start = rng.randrange(num_frames - (FRAMES - 1) * stride)
    return [start + stride * number for number in range(FRAMES)]


def segment_clip(rng: random.Random, num_frames: int) -> Clip:
    return [int((number + rng.random()) * num_frames / 8) for number in range(8)]


def compare(path: Path, clips: Sequence[Clip], peers: Sequence[str], *, rounds: int) -> dict[str, Any]:
    index = reading.scan(path)
    contenders: dict[str, Callable[[int], object]] = {
        "videokd": lambda n: ours(path, clips[n], index),
        "videokd with scan": lambda n: reading.read(path, clips[n]),
        "bare": lambda n: bare(path, clips[n], index),
    }
    for name in peers:
        contenders[name] = lambda n, read=READERS[name]: read(path, clips[n])  # type: ignore[misc]
    return summary(interleaved(contenders, rounds=rounds), peers)


def summary(seconds: dict[str, list[float]], peers: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: 1000 * float(np.median(times)) for name, times in seconds.items()}
    found["over_bare"] = asdict(times_faster(seconds["bare"], seconds["videokd"]))
    if peers:
        best = min(peers, key=lambda name: np.median(seconds[name]))
        found["best_peer"] = best
        found["times_faster"] = asdict(times_faster(seconds["videokd"], seconds[best]))
        found["times_faster_with_scan"] = asdict(times_faster(seconds["videokd with scan"], seconds[best]))
    return found


def four_in_one(path: Path, clips: Sequence[Clip], *, rounds: int) -> dict[str, Any]:
    """Four clips of one opened file against four opened files."""
    index = reading.scan(path)

    def fours(n: int) -> list[Clip]:
        return [clips[(4 * n + k) % len(clips)] for k in range(4)]

    seconds = interleaved(
        {
            "together": lambda n: reading.read_cuts(path, [Cut(clip) for clip in fours(n)], index=index),
            "apart": lambda n: [ours(path, clip, index) for clip in fours(n)],
        },
        rounds=rounds,
    )
    return asdict(times_faster(seconds["together"], seconds["apart"]))


def real(source: Path, peers: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Clips of twelve videos of a list, drawn evenly."""
    videos = read_manifest(source).videos
    paths = [video.path for video in videos[:: max(len(videos) // 12, 1)][:12]]
    indexes = {path: reading.scan(path) for path in paths}
    chosen = [paths[n % len(paths)] for n in range(rounds)]
    asked = [(path, dense_clip(random.Random(n), indexes[path].num_frames)) for n, path in enumerate(chosen)]
    contenders: dict[str, Callable[[int], object]] = {
        "videokd": lambda n: ours(*asked[n], indexes[asked[n][0]]),
        "videokd with scan": lambda n: reading.read(*asked[n]),
        "bare": lambda n: bare(*asked[n], indexes[asked[n][0]]),
    }
    for name in peers:
        contenders[name] = lambda n, read=READERS[name]: read(*asked[n])  # type: ignore[misc]
    return {"file": "12 real clips", "size": "mixed", "dense": summary(interleaved(contenders, rounds=rounds), peers)}


def packed(path: Path, folder: Path, *, rounds: int) -> list[dict[str, Any]]:
    """Packed forms of a file against the file as found, from the file to the clip's place in a batch."""
    index, name = reading.scan(path), "drawn" if path.parent == folder else path.name
    clips = [dense_clip(random.Random(seed), index.num_frames) for seed in range(rounds)]
    place = torch.empty((FRAMES, index.height, index.width, 3), dtype=torch.uint8)

    def put(frames: torch.Tensor) -> None:
        place.copy_(frames.permute(0, 2, 3, 1))

    listed = Manifest(folder / "list.csv", (Video(id=path.name, path=path, label="drawn", split="train"),), ("drawn",))
    readers: dict[str, Callable[[int], object]] = {
        "as found": lambda n: put(reading.read(path, clips[n], index=index).frames)
    }
    sizes: dict[str, int] = {}
    formats: tuple[Format, ...] = ("mp4", "jpeg", "raw")
    for kind in formats:
        out = folder / f"{path.stem} {kind}"
        pack(listed, out, Packing(format=kind), workers=1)
        manifest = read_manifest(out)
        (video,) = manifest.videos
        assert video.packed is not None
        known = video_index(video, FrameTable.beside(manifest.source))
        sizes[kind] = video.packed.size

        def read(n: int, video: Video = video, known: reading.VideoIndex = known) -> None:
            put(reader_of(video).read(video, [Cut(clips[n])], index=known)[0].frames)

        readers[kind] = read
    seconds = interleaved(readers, rounds=rounds)
    return [
        {
            "file": f"{name} packed as {kind}",
            "kbit_per_second": round(path.stat().st_size * 8 / 1000 / index.seconds),
            "times_faster_than_as_found": asdict(times_faster(seconds[kind], seconds["as found"])),
            "bytes_over_as_found": sizes[kind] / path.stat().st_size,
        }
        for kind in formats
    ]


def ours(path: Path, numbers: Clip, index: reading.VideoIndex) -> NDArray[np.uint8]:
    return reading.read(path, numbers, index=index).frames.permute(0, 2, 3, 1).numpy()


def bare(path: Path, numbers: Clip, index: reading.VideoIndex) -> None:
    """What libavcodec takes for the packets that our plan decodes: no picture is converted."""
    places = np.array(numbers, dtype=np.int64)
    with reading._opened(path, None) as video:
        runs = reading._plan(index, places)
        for run in runs:
            for _ in video.decode_run(run):
                pass
        if not runs:  # by counting, up to the last
            for number, _ in enumerate(video.decode_all()):
                if number == max(numbers):
                    break


def decord(path: Path, numbers: Clip) -> NDArray[np.uint8]:
    import decord

    frames: NDArray[np.uint8] = decord.VideoReader(str(path), num_threads=1).get_batch(numbers).asnumpy()
    return frames


def torchcodec(path: Path, numbers: Clip) -> NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
    frames: NDArray[np.uint8] = decoder.get_frames_at(numbers).data.permute(0, 2, 3, 1).numpy()
    return frames


READERS: dict[str, Read] = {"decord": decord, "torchcodec": torchcodec}


def usable(name: str) -> bool:
    try:
        require(name)  # type: ignore[arg-type]
    except ValueError as error:
        print(error)
        return False
    return True


def wrong_frames(name: str, path: Path, clips: Sequence[Clip]) -> int | str:
    """Frames that are not the one asked for by sequential decoding, or why they could not be counted."""
    # spawn: a fork would inherit the threads of other libraries half alive.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return int(pool.apply_async(count_wrong, (name, path, list(clips))).get(HANG_SECONDS))
        except multiprocessing.TimeoutError:
            return "hangs"
        except Exception as error:
            return type(error).__name__


def count_wrong(name: str, path: Path, clips: Sequence[Clip]) -> int:
    """Ours must equal sequential decoding bit for bit; others, with colours of their own, must be nearest to it."""
    with reading._opened(path, None) as video:
        everything = np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in video.decode_all()])
    thumbnails = everything[:, ::8, ::8].astype(np.int16)
    index, wrong = reading.scan(path), 0
    for numbers in clips:
        frames = ours(path, numbers, index) if name == "videokd" else READERS[name](path, numbers)
        for number, frame in zip(numbers, frames):
            if name == "videokd":
                wrong += not np.array_equal(frame, everything[number])
            else:
                wrong += np.abs(thumbnails - frame[::8, ::8]).mean(axis=(1, 2, 3)).argmin() != number
    return int(wrong)


def table(rows: list[dict[str, Any]], peers: Sequence[str]) -> Table:
    readers = ("videokd", *peers)
    result = Table(title="Times as fast as the best peer, CPU time of a 16-frame, stride-4 clip (segments: 8 frames)")
    for heading in ("file", "clip", "best peer"):
        result.add_column(heading)
    for heading in ("times as fast", "with scan", "over bare", *(f"wrong, {name}" for name in readers)):
        result.add_column(heading, justify="right")
    columns = ("times_faster", "times_faster_with_scan", "over_bare")
    for row in rows:
        wrong = [f"{row['wrong'][name]}/{row['checked']}" for name in readers] if "wrong" in row else []
        for kind in ("dense", "segments"):
            if kind in row:
                found = row[kind]
                speeds = [str(Interval(**found[key])) if key in found else "" for key in columns]
                said = wrong if kind == "dense" else []
                result.add_row(row["file"], kind, found.get("best_peer", ""), *speeds, *said)
        if "four_in_one" in row:
            result.add_row(row["file"], "four together", "four apart", str(Interval(**row["four_in_one"])))
        if "times_faster_than_as_found" in row:
            speed = str(Interval(**row["times_faster_than_as_found"]))
            result.add_row(row["file"], f"{row['bytes_over_as_found']:.1f} x the bytes", "as found", speed)
    return result


if __name__ == "__main__":
    main()
