import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from drawn_videos import DrawnVideo, decoded_sequentially, number_in
from PIL import Image

from videokd.clips import packing as packings
from videokd.clips import shards
from videokd.clips.backends import reader_of
from videokd.clips.dataset import ClipDataset, video_index
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.clips.packing import Format, Packing, pack
from videokd.clips.pictures import Box, Cut
from videokd.clips.reading import VideoError, scan
from videokd.clips.table import FrameTable
from videokd.contracts import Dense, InputSpec

FORMATS: list[Format] = ["mp4", "jpeg", "raw"]
TICKS = [tick for tick in range(60) if tick % 3 != 1]  # gaps of 1 and 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("source")
    DrawnVideo(name="plain.mp4", width=128).write(folder)
    DrawnVideo(name="uneven.mkv", num_frames=40, ticks=TICKS, width=128).write(folder)
    DrawnVideo(name="turned.mp4", num_frames=20, rotation=90, width=128).write(folder)
    DrawnVideo(name="odd.mp4", num_frames=5, width=97, height=65, pix_fmt="yuv444p").write(folder)
    DrawnVideo(name="late.mp4", num_frames=30, ticks=range(7, 37), width=128).write(folder)
    (folder / "list.csv").write_text(
        "path,label,split,group\nplain.mp4,jump,train,a\nuneven.mkv,run,train,b\nturned.mp4,jump,test,c\n"
        "odd.mp4,,train,d\nlate.mp4,run,test,e\n"
    )
    return read_manifest(folder / "list.csv")


@pytest.fixture(scope="module")
def packed(source: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[Format, Path]:
    found = {}
    for kind in FORMATS:
        found[kind] = tmp_path_factory.mktemp(kind) / "set"
        assert pack(source, found[kind], Packing(format=kind), workers=1) == []
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_a_packed_set_is_the_list_with_its_frames_and_times(
    kind: Format, source: Manifest, packed: dict[Format, Path]
) -> None:
    manifest = read_manifest(packed[kind])
    table = FrameTable.beside(manifest.source)
    assert (manifest.classes, manifest.has_splits) == (source.classes, True)
    for ours, theirs in zip(manifest.videos, source.videos, strict=True):
        assert (ours.id, ours.label, ours.split, ours.group) == (theirs.id, theirs.label, theirs.split, theirs.group)
        index, original = video_index(ours, table), scan(theirs.path)
        np.testing.assert_allclose(index.times, original.times, atol=1e-4)
        assert (index.height, index.width, index.rotation) == (original.height, original.width, 0)
        (clip,) = reader_of(ours).read(ours, [Cut(range(index.num_frames))], index=index)
        upright = torch.rot90(decoded_sequentially(theirs.path), original.rotation // 90, dims=(2, 3))
        noise = (clip.frames.float() - upright.float()).square().mean()
        psnr = 10 * torch.log10(255**2 / noise.clamp(min=1e-9)).item()
        assert psnr > {"mp4": 33, "jpeg": 25, "raw": 90}[kind], ours.id  # drawn noise in colour: 4:2:0 costs most
        assert clip.times.tolist() == pytest.approx(index.times.tolist())


@pytest.mark.parametrize("kind", FORMATS)
def test_cuts_of_a_packed_video_are_those_of_its_file(
    kind: Format, source: Manifest, packed: dict[Format, Path]
) -> None:
    video, original = read_manifest(packed[kind]).videos[0], source.videos[0]
    cuts = [
        Cut([60, 3, 3]),
        Cut([7], box=Box(8, 10, 40, 60)),
        Cut([5, 6], size=(20, 30)),
        Cut([9], Box(0, 0, 64, 64), 16),
    ]
    index = video_index(video, FrameTable.beside(read_manifest(packed[kind]).source))
    ours = reader_of(video).read(video, cuts, index=index)
    theirs = reader_of(original).read(original, cuts, index=scan(original.path))
    for one, other in zip(ours, theirs, strict=True):
        assert one.frames.shape == other.frames.shape
        assert (one.frames.float() - other.frames.float()).abs().mean() < 12
    assert [number_in(frame) for frame in ours[0].frames] == [60, 3, 3]
    with pytest.raises(ValueError, match="does not lie in a picture"):
        reader_of(video).read(video, [Cut([0], Box(0, 0, 65, 10))], index=index)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_loader_reads_packed_sets(kind: Format, packed: dict[Format, Path]) -> None:
    clips = ClipDataset(
        read_manifest(packed[kind]), {"student": InputSpec(frames=4, size=32, sampling=Dense(stride=1))}
    )
    found = list(batches(clips, EveryClip(5, 2), workers=2))
    assert [name for batch in found for name in batch.id] == [video.id for video in clips.videos]
    assert found[0].label.tolist() == [0, 1]


def test_nothing_is_enlarged_and_qualities_matter(source: Manifest, tmp_path: Path) -> None:
    small = replace(source, videos=source.videos[:1])
    sizes = {}
    for quality in (50, 95):
        pack(small, tmp_path / str(quality), Packing(format="jpeg", short_side=32, quality=quality), workers=1)
        (video,) = read_manifest(tmp_path / str(quality)).videos
        assert video.facts is not None
        assert (video.facts["height"], video.facts["width"]) == (32, 64)
        sizes[quality] = video.packed.size  # type: ignore[union-attr]
    assert sizes[50] < 0.85 * sizes[95]
    pack(small, tmp_path / "large", Packing(format="raw", short_side=4000), workers=1)
    assert read_manifest(tmp_path / "large").videos[0].facts["height"] == 64  # type: ignore[index]


def test_shards_are_tar_files_as_webdataset_reads_them(packed: dict[Format, Path]) -> None:
    """Samples are runs of files with one name up to the first dot."""
    samples: dict[str, dict[str, bytes]] = {}
    for kind in FORMATS:
        keys: list[str] = []
        with tarfile.open(packed[kind] / "000000.tar") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                assert key not in keys or keys[-1] == key
                keys.append(key)
                samples.setdefault(f"{key}", {})[f"{kind}.{suffix}"] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert len(samples) == 5
    first = samples["000000000000"]
    assert json.loads(first["mp4.json"])["label"] == "jump"
    assert json.loads(first["mp4.json"])["id"] == "plain.mp4"
    assert np.load(io.BytesIO(first["raw.npy"])).shape == (90, 64, 128, 3)
    assert Image.open(io.BytesIO(first["jpeg.00089.jpg"])).size == (128, 64)
    assert scan("first.mp4", data=first["mp4.mp4"]).num_frames == 90


def test_many_shards_hold_every_video_once(source: Manifest, tmp_path: Path) -> None:
    pack(source, tmp_path / "set", Packing(format="raw"), shard_mb=1, workers=2)
    videos = read_manifest(tmp_path / "set").videos
    held = [Path(video.packed.shard).name for video in videos if video.packed]
    assert held == sorted(held)
    assert len(set(held)) == 3  # 2.2, 1.0 and 0.5 + 0.1 + 0.7 MB
    keys = []
    for shard in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(shard) as tar:
            keys += [name.partition(".")[0] for name in tar.getnames() if name.endswith("json")]
    assert len(set(keys)) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_a_set_can_lie_at_a_url(
    kind: Format, packed: dict[Format, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = fsspec.filesystem("memory")
    for path in packed[kind].iterdir():
        files.pipe_file(f"/bucket/{kind}/{path.name}", path.read_bytes())
    remote = read_manifest(f"memory://bucket/{kind}")
    assert remote.videos[0].packed.shard == f"memory://bucket/{kind}/000000.tar"  # type: ignore[union-attr]
    spec = {"student": InputSpec(frames=4, size=32, sampling=Dense(stride=5))}
    here, there = ClipDataset(read_manifest(packed[kind]), spec), ClipDataset(remote, spec)
    for number in range(5):
        assert torch.equal(here[number]["clips"]["student"]["frames"], there[number]["clips"]["student"]["frames"])
    files.rm(f"/bucket/{kind}/000000.tar")
    with pytest.raises(VideoError, match="its shard can't be read"):
        there[0]


def test_urls_that_lead_nowhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"memory://nowhere/index\.jsonl is no index of a packed set"):
        read_manifest("memory://nowhere")
    with pytest.raises(ValueError, match=r"xyz://set/index\.jsonl can't be read: .*xyz"):
        read_manifest("xyz://set")


def test_a_shard_that_is_not_whole_is_never_taken_for_one(packed: dict[Format, Path], tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(packed["jpeg"], torn)
    whole = (torn / "000000.tar").read_bytes()
    (torn / "000000.tar").write_bytes(whole[: len(whole) // 2])
    clips = ClipDataset(read_manifest(torn), {"student": InputSpec(frames=2, size=32)})
    with pytest.raises(VideoError, match=r"has \d+ bytes and was packed with \d+: it is not whole"):
        clips[0]
    (torn / "000000.tar").unlink()
    with pytest.raises(VideoError, match="its shard can't be read"):
        clips[0]
    shutil.copytree(packed["jpeg"], tmp_path / "no table")
    (tmp_path / "no table" / "index.frames").unlink()
    with pytest.raises(ValueError, match=r"index\.frames is no frame table"):
        ClipDataset(read_manifest(tmp_path / "no table"), {"student": InputSpec(frames=2, size=32)})[1]


def test_a_broken_video_stops_packing_or_is_left_out(source: Manifest, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    videos = (source.videos[0], Video(id="bad.mp4", path=bad, label="jump", split="train"), source.videos[1])
    listed = replace(source, videos=videos)
    with pytest.raises(ValueError, match=r"bad\.mp4: FFmpeg cannot read it .*--on-bad-video skip"):
        pack(listed, tmp_path / "set", Packing(format="jpeg"), workers=2)
    assert not list((tmp_path / "set").glob("*.tar*"))
    (said,) = pack(listed, tmp_path / "set", Packing(format="jpeg"), workers=2, on_bad_video="skip")
    assert "bad.mp4: FFmpeg cannot read it" in said
    assert [video.id for video in read_manifest(tmp_path / "set").videos] == ["plain.mp4", "uneven.mkv"]
    with pytest.raises(ValueError, match="holds a packed set already"):
        pack(listed, tmp_path / "set", Packing(format="jpeg"), workers=2)
    with pytest.raises(ValueError, match=r"none of the 1 videos .*bad\.mp4"):
        pack(
            replace(source, videos=videos[1:2]), tmp_path / "no", Packing(format="mp4"), workers=1, on_bad_video="skip"
        )


def test_packing_goes_on_after_the_last_whole_shard(
    source: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done = tmp_path / "set", []

    def stop() -> None:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, Packing(format="raw"), shard_mb=1, workers=1, advance=stop)
    assert [path.name for path in sorted(out.iterdir())] == ["000000.rows", "000000.tar", "000001.rows", "000001.tar"]
    before = (out / "000000.tar").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"packed as .*raw"):
        pack(source, out, Packing(format="jpeg"), workers=1)
    (out / "000001.tar").write_bytes(b"torn")
    encoded = []
    encode = packings._Shard.add
    monkeypatch.setattr(
        packings._Shard, "add", lambda self, video, what: encoded.append(video.id) or encode(self, video, what)
    )
    pack(source, out, Packing(format="raw"), shard_mb=1, workers=1)
    assert encoded == ["uneven.mkv", "turned.mp4", "odd.mp4", "late.mp4"]
    assert (out / "000000.tar").stat().st_mtime_ns == before
    assert [video.id for video in read_manifest(out).videos] == [video.id for video in source.videos]
    assert not list(out.glob("*.rows"))


@pytest.mark.parametrize("wrong", [{"quality": 96}, {"quality": 0}, {"short_side": 0}, {"format": "raw", "quality": 1}])
def test_impossible_packings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"quality of|short_side must"):
        Packing(**{"format": "jpeg", **wrong})  # type: ignore[arg-type]


def test_only_wanted_pictures_are_decoded(packed: dict[Format, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    take = shards._bytes
    monkeypatch.setattr(shards, "_bytes", lambda video, start, size: read.append(size) or take(video, start, size))
    clips = ClipDataset(
        read_manifest(packed["jpeg"]), {"student": InputSpec(frames=4, size=32, sampling=Dense(stride=4))}
    )
    clips[0]
    assert len(read) == 4
