import json
from pathlib import Path

import pytest

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_per_class_is_read(tmp_path: Path) -> None:
    for name in ("jump/b.mp4", "jump/a.AVI", "run/c.webm", "run/notes.txt", "jump/._a.AVI", "run/.cache/d.mp4"):
        touch(tmp_path / name)
    manifest = read_manifest(tmp_path)
    assert [(video.id, video.label) for video in manifest.videos] == [
        ("jump/a.AVI", "jump"),
        ("jump/b.mp4", "jump"),
        ("run/c.webm", "run"),
    ]
    assert manifest.classes == ("jump", "run")


def test_a_list_without_splits_keeps_a_fifth_for_testing_whatever_else_is_in_it(tmp_path: Path) -> None:
    for number in range(100):
        touch(tmp_path / f"class{number % 2}" / f"{number}.mp4")
    manifest = read_manifest(tmp_path)
    assert not manifest.has_splits
    held_out = {video.id for video in manifest.split("test").videos}
    assert 10 <= len(held_out) <= 32
    assert len(manifest.split("train").videos) == 100 - len(held_out)
    touch(tmp_path / "class0" / "more.mp4")
    assert held_out <= {video.id for video in read_manifest(tmp_path).split("test").videos} | {"class0/more.mp4"}


def test_a_hashed_split_keeps_groups_together(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,label,group\n" + "".join(f"{n}.mp4,x,g{n % 20}\n" for n in range(200)))
    splits = {(video.group, video.split) for video in read_manifest(path).videos}
    assert len(splits) == 20
    assert len({split for _, split in splits}) == 2


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,label,split,group\na.mp4,x,train,g\nb.mp4,x,test,g\n")
    with pytest.raises(ValueError, match="group 'g' lies in the splits 'train' and 'test'"):
        read_manifest(path)


def test_a_folder_of_splits_and_others_is_refused_and_unlabelled_videos_are_found(tmp_path: Path) -> None:
    for name in ("train/jump/a.mp4", "unlabelled/b.mp4", ".cache/x/y.mp4"):
        touch(tmp_path / name)
    assert [(v.id, v.label) for v in read_manifest(tmp_path).videos] == [
        ("train/jump/a.mp4", "jump"),
        ("unlabelled/b.mp4", None),
    ]
    touch(tmp_path / "annotations" / "c.mp4")
    with pytest.raises(ValueError, match=r"mixes folders of splits \(train, unlabelled\) with others \(annotations\)"):
        read_manifest(tmp_path)


def test_minus_one_and_nothing_mean_unlabelled_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,class,label\na.mp4,fight,-1\nb.mp4,,\nc.mp4,fight,1\n")
    rows = [{"path": "a.mp4", "label": -1}, {"path": "b.mp4", "label": ""}, {"path": "c.mp4", "label": "fight"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("list.csv", "list.jsonl"):
        assert [video.label for video in read_manifest(tmp_path / name).videos] == [None, None, "fight"]


def test_folders_of_splits_are_read_as_splits(tmp_path: Path) -> None:
    for name in ("train/jump/a.mp4", "val/run/b.mp4"):
        touch(tmp_path / name)
    manifest = read_manifest(tmp_path)
    assert [(video.label, video.split) for video in manifest.videos] == [("jump", "train"), ("run", "val")]
    assert manifest.split("val").classes == ("jump", "run")


def test_a_csv_is_read_with_its_optional_columns(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,class,label,split,group\na.mp4,no,0,train,g1\nsub/b.mp4,yes,1,val,g2\nc.mp4,,-1,train,\n")
    manifest = read_manifest(path)
    assert [video.path for video in manifest.videos] == [tmp_path / name for name in ("a.mp4", "sub/b.mp4", "c.mp4")]
    assert [(v.label, v.split, v.group) for v in manifest.videos] == [
        ("no", "train", "g1"),
        ("yes", "val", "g2"),
        (None, "train", None),
    ]


def test_numbered_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,label\na.mp4,10\nb.mp4,2\nc.mp4,0\n")
    assert read_manifest(path).classes == ("0", "2", "10")


def test_json_lines_come_back_equal(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "label": "x", "split": "train", "group": "g", "factors": {"speed": 0.5}},
        {"path": "b.mp4", "label": None, "split": "train", "group": None},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = read_manifest(path)
    (tmp_path / "sub").mkdir()
    write_manifest(first, tmp_path / "sub" / "copy.jsonl")
    second = read_manifest(tmp_path / "sub" / "copy.jsonl")
    assert second.videos[0].id == "../a.mp4"
    assert [video.path.resolve() for video in second.videos] == [video.path.resolve() for video in first.videos]
    assert [(v.label, v.group, v.factors) for v in second.videos] == [("x", "g", {"speed": 0.5}), (None, None, None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "path,verb\na.mp4,x\n", r"list.csv: line 1 has no column 'label' \(it has path, verb\)"),
        ("list.csv", "path,label\na.mp4,x\nb.mp4\n", r"list.csv: line 3 does not have the 2 columns"),
        ("list.csv", "path,label\na.mp4,x,more\n", r"list.csv: line 2 does not have the 2 columns"),
        ("list.csv", "path,label\n", "holds no video"),
        ("list.csv", "path,label\na.mp4,x\na.mp4,y\n", "lists a.mp4 twice"),
        ("list.jsonl", '{"path": "a.mp4", "label": "x"}\nnot json\n', "list.jsonl: line 2: it is not JSON"),
        ("list.jsonl", "[" * 100000, "list.jsonl: line 1: it is nested too deeply"),
        ("list.jsonl", '{"path": "a.mp4"}\n', "list.jsonl: line 1 is not an object with path and label"),
        ("list.yaml", "a.mp4 0\n", "is not a folder or a list"),
        ("train.json", "[]", "is not a folder or a list .*: name its folder"),
    ],
)
def test_a_wrong_list_is_refused_by_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / name)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CLASS/VIDEO"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="no list or folder"):
        read_manifest(tmp_path / "nowhere")


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "jump" / "a.mp4")
    with pytest.raises(ValueError, match=r"no video in split 'trian'; did you mean 'train'\?"):
        read_manifest(tmp_path).split("trian")


def test_classes_of_a_model_number_the_labels_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "run" / "a.mp4")
    manifest = read_manifest(tmp_path)
    assert manifest.with_classes(["jump", "run"], of="m").classes == ("jump", "run")
    with pytest.raises(ValueError, match=r"not trained for: run; did you mean 'runs'\?"):
        manifest.with_classes(["jump", "runs"], of="m")
