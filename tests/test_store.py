"""Records of teacher outputs: what goes in comes out, whoever wrote it and however often they were stopped."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videokd.contracts import FeatureMap, Grid, Outputs
from videokd.records import Contents, StoredType, encoded, record, spread, top_classes
from videokd.store import StoredOutputs, claim, make_header
from videokd.stored_shards import ShardWriter, fault_of, shard_clips, shard_path

CLIPS = [{"id": f"{number}.mp4", "bytes": number, "may_flip": True} for number in range(5)]
CPU = torch.device("cpu")
TAPS: dict[str, dict[str, Grid]] = {"a": {"frames": "map", "clip": "clip"}, "b": {}}


def said(batch: int, seed: int = 0) -> dict[str, Outputs]:
    """Of two teachers: one with features, one that may be silent and has other classes."""
    draw = torch.Generator().manual_seed(seed)
    features = {
        "frames": FeatureMap(torch.randn(batch, 4, 2, 2, 3, generator=draw), torch.rand(batch, 4, generator=draw)),
        "clip": FeatureMap(torch.randn(batch, 1, 1, 1, 6, generator=draw), torch.rand(batch, 1, generator=draw)),
    }
    known = torch.arange(batch) % 3 != 1
    return {
        "a": Outputs(torch.randn(batch, 7, generator=draw), features),
        "b": Outputs(torch.randn(batch, 9, generator=draw), known=known),
    }


def contents() -> dict[str, Contents]:
    return {name: Contents.of(one, TAPS[name]) for name, one in said(1).items()}


def header(layout: np.dtype[np.void], **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"views": 2, "shards": 2, "dtype": "float16", "top_k": None, "pieces": 0}
    made_from = {"view_seed": 0, "augment": {"flip": 0.5}}
    return make_header(contents=contents(), layout=layout, clips=CLIPS, **({"made_from": made_from} | facts | changes))


def write(folder: Path, *, dtype: StoredType = "float16", top_k: int | None = None) -> None:
    """Both shards: what is said of row r is `said(10)`'s row r."""
    layout = record(contents(), dtype=dtype, top_k=top_k)
    claim(folder, header(layout, dtype=dtype, top_k=top_k), CLIPS)
    everything = encoded(said(10), [f"row {row}" for row in range(10)], layout, top_k=top_k)
    for number in (2, 1):
        clips = shard_clips(5, number, 2)
        rows = everything[clips.start * 2 : clips.stop * 2]
        with ShardWriter(shard_path(folder, number, 2), layout, rows=len(rows), block=2) as writer:
            writer.append(rows)
            writer.finish({"precision": "fp32"})


def read(store: StoredOutputs, teacher: str, ids: list[str], views: list[int], taps: Mapping[str, Grid]) -> Outputs:
    return store.outputs(teacher, ids, torch.tensor(views), CPU, taps=taps)


def test_what_is_stored_is_read_from_any_shard_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "half")
    write(tmp_path / "whole", dtype="float32")
    for folder, tolerance in (("half", 1e-3), ("whole", 0.0)):
        store = StoredOutputs(tmp_path / folder)
        places = [9, 0, 4, 3, 4]
        ids, views = [f"{place // 2}.mp4" for place in places], [place % 2 for place in places]
        found, expected = read(store, "a", ids, views, TAPS["a"]), said(10)["a"].at(torch.tensor(places))
        assert found.known is None
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(found.logits, expected.logits, **close)
        for tap in TAPS["a"]:
            torch.testing.assert_close(found.features[tap].values, expected.features[tap].values, **close)
            assert torch.equal(found.features[tap].times, expected.features[tap].times)
        coarse = read(store, "a", ids, views, {"frames": "frames"}).features
        assert list(coarse) == ["frames"]
        torch.testing.assert_close(
            coarse["frames"].values, expected.features["frames"].pooled("frames").values, rtol=1e-3, atol=1e-3
        )


def test_what_is_not_known_is_stored_as_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    found = read(StoredOutputs(tmp_path), "b", ["0.mp4", "0.mp4", "1.mp4"], [0, 1, 0], {})
    assert found.known is not None
    assert found.logits is not None
    assert found.known.tolist() == [True, False, True]
    assert not found.logits[1].any()
    layout = record(contents(), dtype="float16", top_k=None)
    silent = {"b": Outputs(torch.tensor([[torch.nan] * 9]), known=torch.tensor([False]))}
    assert encoded(silent, ["x"], layout, top_k=None)["b/known"] == 0


def test_top_classes_match_hand_computed_values() -> None:
    probabilities = torch.tensor([[0.5, 0.04, 0.3, 0.1, 0.06]])
    kept = top_classes(probabilities.log() + 7, 2)
    torch.testing.assert_close(kept["top"].exp(), torch.tensor([[0.5, 0.3]]))
    assert kept["top classes"].tolist() == [[0, 2]]
    torch.testing.assert_close(kept["rest"].exp(), torch.tensor([0.2]))  # 0.04 + 0.1 + 0.06
    again = spread(kept["top"], kept["top classes"], kept["rest"], num_classes=5).exp()
    torch.testing.assert_close(again, torch.tensor([[0.5, 0.2 / 3, 0.3, 0.2 / 3, 0.2 / 3]]))


def test_top_classes_of_a_sure_teacher_leave_a_rest_that_is_a_number() -> None:
    kept = top_classes(torch.tensor([[200.0, 0.0, 0.0]]), 1)
    assert kept["rest"].item() == pytest.approx(-27.631)  # log of 1e-12; what is left is exp(-199)


def test_top_classes_are_read_as_log_probabilities(tmp_path: Path) -> None:
    write(tmp_path, top_k=3)
    found = read(StoredOutputs(tmp_path), "a", ["2.mp4"], [1], {}).logits
    logits = said(10)["a"].logits
    assert found is not None
    assert logits is not None
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(1), rtol=2e-3, atol=0)
    expected = logits[5:6].log_softmax(dim=1)
    top = expected.topk(3).indices
    torch.testing.assert_close(found.gather(1, top), expected.gather(1, top), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("top_k", [0, 7])
def test_a_top_k_that_leaves_no_rest_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=r"teacher 'a' has 7 classes: the top ones are 1 to 6"):
        record(contents(), dtype="float16", top_k=top_k)


def test_values_too_large_or_no_numbers_are_refused_by_name() -> None:
    layout = record(contents(), dtype="float16", top_k=None)
    large = Outputs(torch.tensor([[1.0] * 7, [1e5] * 7]), said(2)["a"].features)
    with pytest.raises(ValueError, match=r"'a' says of clip y, in logits, 100000, .*--dtype float32"):
        encoded({"a": large}, ["x", "y"], layout, top_k=None)
    encoded({"a": large}, ["x", "y"], record(contents(), dtype="float32", top_k=None), top_k=None)
    none = Outputs(torch.full((1, 7), torch.nan), said(1)["a"].features)
    with pytest.raises(ValueError, match="says of clip x, in logits, what is not a number"):
        encoded({"a": none}, ["x"], layout, top_k=None)


def test_the_header_says_where_everything_lies(tmp_path: Path) -> None:
    write(tmp_path)
    said_there = json.loads((tmp_path / "header.json").read_text())
    (field,) = [field for field in said_there["fields"] if field["name"] == "a/features/clip"]
    assert (field["dtype"], field["shape"]) == ("<f2", [1, 1, 1, 6])
    # The first record of the second shard is of clip 2, view 0: row 4. Read without this package's reader.
    raw = (tmp_path / "shard-2-of-2.bin").read_bytes()[: said_there["record_bytes"]]
    values = np.frombuffer(raw, "<f2", count=6, offset=field["offset"])
    torch.testing.assert_close(
        torch.tensor(values).float(), said(10)["a"].features["clip"].values[4].flatten(), rtol=1e-3, atol=1e-3
    )


def test_a_torn_shard_goes_on_from_its_last_whole_block(tmp_path: Path) -> None:
    layout = record(contents(), dtype="float16", top_k=None)
    rows = encoded(said(6), ["x"] * 6, layout, top_k=None)
    path = tmp_path / "shard-1-of-1.bin"
    with ShardWriter(path, layout, rows=6, block=2) as writer:
        writer.append(rows[:5])
    assert not path.exists()
    partial = path.with_name("shard-1-of-1.bin.partial")
    partial.write_bytes(partial.read_bytes() + b"half a record")
    with ShardWriter(path, layout, rows=6, block=2) as writer:
        assert writer.done == 4  # rows 4 and 5 are one block
        writer.append(rows[4:])
        writer.finish({})
    assert path.read_bytes() == rows.tobytes()
    assert not partial.exists()


def test_two_processes_do_not_write_one_shard(tmp_path: Path) -> None:
    layout = record(contents(), dtype="float16", top_k=None)
    path = tmp_path / "shard-1-of-1.bin"
    with (
        ShardWriter(path, layout, rows=6, block=2),
        pytest.raises(ValueError, match=r"another process is writing .*partial"),
    ):
        ShardWriter(path, layout, rows=6, block=2)


def test_shards_part_the_clips() -> None:
    for clips, shards in ((10, 3), (2, 5), (7, 1)):
        parts = [shard_clips(clips, number, shards) for number in range(1, shards + 1)]
        assert [clip for part in parts for clip in part] == list(range(clips))


def test_missing_shards_and_damaged_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    shard = tmp_path / "shard-2-of-2.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"shard-2-of-2\.bin has \d+ bytes, and 6 records have \d+"):
        StoredOutputs(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 shards: 2/2\. Run `videokd label`"):
        StoredOutputs(tmp_path)
    shard.write_bytes(whole)
    (tmp_path / "clips.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"clips\.jsonl is not the one that was written"):
        StoredOutputs(tmp_path)
    with pytest.raises(ValueError, match="holds no stored outputs"):
        StoredOutputs(tmp_path / "nowhere")


def facts_of(shard: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shard.with_suffix(".json").read_text())
    return found


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 77, -1])
def test_one_bit_that_flips_in_a_shard_is_seen(place: int, tmp_path: Path) -> None:
    write(tmp_path)
    StoredOutputs(tmp_path)
    shard = tmp_path / "shard-2-of-2.bin"
    flip(shard, place)
    with pytest.raises(ValueError, match=r"shard-2-of-2\.bin: its checksum is not the one .*--shard 2/2"):
        StoredOutputs(tmp_path)
    assert fault_of(tmp_path / "shard-1-of-2.bin") is None
    flip(shard, place)
    StoredOutputs(tmp_path)


def test_shards_of_another_store_and_shards_that_changed_places_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "other", dtype="float32")
    layout = record(contents(), dtype="float16", top_k=None)
    moved = header(layout, made_from={"view_seed": 1, "augment": {"flip": 0.5}})
    claim(tmp_path / "seed", moved, CLIPS)
    for suffix in (".bin", ".json"):
        for number in (1, 2):
            name = f"shard-{number}-of-2{suffix}"
            shutil.copy(tmp_path / "one" / name, tmp_path / "seed" / name)
    with pytest.raises(ValueError, match=r"shard-1-of-2\.bin: it was written for another header\.json.*shard-2-of-2"):
        StoredOutputs(tmp_path / "seed")
    # Clips 0 to 1 and 2 to 4: of another length.
    write(tmp_path / "swapped")
    for suffix in (".bin", ".json"):
        one, two = (tmp_path / "swapped" / f"shard-{number}-of-2{suffix}" for number in (1, 2))
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
    with pytest.raises(ValueError, match=r"label it again"):
        StoredOutputs(tmp_path / "swapped")
    assert fault_of(tmp_path / "swapped" / "shard-1-of-2.bin") == "it is shard-2-of-2 under another name"


@pytest.mark.parametrize("damage", ["gone", "torn", "no checksum", "invalid", "precision", "null"])
def test_what_is_said_of_a_shard_is_part_of_its_checksum(damage: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "shard-1-of-2.json"
    facts = json.loads(path.read_text())
    if damage == "gone":
        path.unlink()
    elif damage == "torn":
        path.write_text(path.read_text()[:20])
    elif damage == "null":
        path.write_text("null")
    else:
        changed = {"no checksum": {"checksum": None}, "invalid": {"invalid": [1]}, "precision": {"precision": "bf16"}}
        path.write_text(json.dumps(facts | changed[damage]))
    with pytest.raises(ValueError, match=r"shard-1-of-2\.bin: (shard-1-of-2\.json is missing or damaged|its checksum)"):
        StoredOutputs(tmp_path)


def test_a_header_that_changed_after_its_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    text = (tmp_path / "header.json").read_text()
    (tmp_path / "header.json").write_text(text.replace('"view_seed": 0', '"view_seed": 1'))
    with pytest.raises(ValueError, match=r"or header\.json was changed"):
        StoredOutputs(tmp_path)


def test_shards_that_were_resumed_have_the_checksum_of_those_written_in_one_go(tmp_path: Path) -> None:
    layout = record(contents(), dtype="float16", top_k=None)
    rows = encoded(said(6), ["x"] * 6, layout, top_k=None)
    for name, stops in (("whole", [6]), ("resumed", [2, 5, 6])):
        (tmp_path / name).mkdir()
        shard = tmp_path / name / "shard-1-of-1.bin"
        for stop in stops:
            with ShardWriter(shard, layout, rows=6, block=2) as writer:
                writer.append(rows[writer.done : stop])
                if stop == 6:
                    writer.finish({"precision": "fp32"})
    assert facts_of(tmp_path / "whole" / "shard-1-of-1.bin") == facts_of(tmp_path / "resumed" / "shard-1-of-1.bin")


def test_a_shard_is_read_for_its_checksum_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("videokd.clips.hashes.SETTLED_NS", -(10**18))
    StoredOutputs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("videokd.stored_shards._checksum", lambda *_: pytest.fail("it was read again"))
        StoredOutputs(tmp_path)
    flip(tmp_path / "shard-1-of-2.bin", 3)
    with pytest.raises(ValueError, match="its checksum"):
        StoredOutputs(tmp_path)


def test_outputs_of_the_format_without_checksums_are_to_be_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "header.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ValueError, match="has format 1, this version reads 2: label again"):
        StoredOutputs(tmp_path)


def test_a_folder_of_other_outputs_is_refused_by_the_fields_that_differ(tmp_path: Path) -> None:
    layout = record(contents(), dtype="float16", top_k=None)
    claim(tmp_path / "one", header(layout), CLIPS)
    claim(tmp_path / "one", header(layout), CLIPS)
    before = (tmp_path / "one" / "clips.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"views was 2 and is 3; shards was 2 and is 4"):
        claim(tmp_path / "one", header(layout, views=3, shards=4), CLIPS)
    other = {"view_seed": 0, "augment": {"flip": 0.0}}
    with pytest.raises(ValueError, match=r"made_from\.augment\.flip was 0\.5 and is 0\.0\. Name another --out"):
        claim(tmp_path / "one", header(layout, made_from=other), CLIPS)
    changed = [*CLIPS[:-1], {**CLIPS[-1], "bytes": 99}]
    facts = header(layout)
    facts["clips"] = {"count": 5, "sha256": "another"}
    with pytest.raises(ValueError, match=r"clips\.sha256 was .*; clip 4\.mp4 has 99 bytes, and had 4"):
        claim(tmp_path / "one", facts, changed)
    assert (tmp_path / "one" / "clips.jsonl").read_bytes() == before
    (tmp_path / "note.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"already holds something else \("):
        claim(tmp_path, header(layout), CLIPS)


def test_what_was_not_stored_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "all")
    write(tmp_path / "top", top_k=2)
    store = StoredOutputs(tmp_path / "all")

    def wanted(taps: Mapping[str, Grid], name: str = "a", *, shuffled: bool = False) -> None:
        store.teacher(name, taps, shuffled=shuffled, needs_raw_logits=True)

    wanted({"frames": "map", "clip": "clip"})
    wanted({"frames": "clip"})
    with pytest.raises(ValueError, match=r"tap 'clip' of teacher 'a' as 'frames', which .* holds only as 'clip'"):
        wanted({"clip": "frames"})
    with pytest.raises(ValueError, match=r"tap 'clips' of .* holds not; did you mean 'clip'"):
        wanted({"clips": "clip"})
    with pytest.raises(ValueError, match="tap 'shuffled clip'"):
        wanted({"clip": "clip"}, shuffled=True)
    with pytest.raises(ValueError, match="holds nothing of teacher 'c'"):
        wanted({}, "c")
    with pytest.raises(ValueError, match="holds the likeliest 2 classes: label without --top-k"):
        StoredOutputs(tmp_path / "top").teacher("a", {}, shuffled=False, needs_raw_logits=True)
    with pytest.raises(ValueError, match=r"nothing of view 2 of clip 0\.mp4 \(views are 0 to 1\)"):
        store.rows(["0.mp4"], [2])
