"""Lists in the forms in which they are published; the rows are as the official files have them."""

import json
from pathlib import Path

import pytest

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video, write_manifest


def rows(manifest: Manifest) -> list[tuple[str, str | None, str | None]]:
    return [(video.id, video.label, video.split) for video in manifest.videos]


@pytest.mark.parametrize(
    ("text", "videos"),
    [
        ("a.mp4 0\nb.mp4 1\n", [("a.mp4", "0"), ("b.mp4", "1")]),  # VideoMAE, SlowFast
        ("jump/a b.mp4 0\nrun/c.mp4 1\n", [("jump/a b.mp4", "0"), ("run/c.mp4", "1")]),
        ("a.mp4,0\nb.mp4,1\n", [("a.mp4", "0"), ("b.mp4", "1")]),
        ("x, y.mp4;3\nz.mp4;10\n", [("x, y.mp4", "3"), ("z.mp4", "10")]),
        ("x, y.mp4,3\nz.mp4,10\n", [("x, y.mp4", "3"), ("z.mp4", "10")]),
        ('"x, y.mp4",3\nz.mp4,10\n', [("x, y.mp4", "3"), ("z.mp4", "10")]),
        ("a  b.mp4  3\nz.mp4 10\n", [("a  b.mp4", "3"), ("z.mp4", "10")]),
        ("x, y.mp4\nz.ogv\n", [("x, y.mp4", None), ("z.ogv", None)]),
        ("a.mp4\tjumping jack\nb.mp4\tclean and jerk\n", [("a.mp4", "jumping jack"), ("b.mp4", "clean and jerk")]),
        ("a.AVI -1\nb.webm 2\n", [("a.AVI", None), ("b.webm", "2")]),
        ("a.mp4\nsome where/b.mkv\n", [("a.mp4", None), ("some where/b.mkv", None)]),  # unlabelled
        ("\ufeffa.mp4 0\r\n\r\nb.mp4 1\r\n", [("a.mp4", "0"), ("b.mp4", "1")]),
    ],
)
@pytest.mark.parametrize("name", ["videos.txt", "videos.csv"])
def test_plain_lists_with_any_separator(tmp_path: Path, name: str, text: str, videos: list[tuple[str, str]]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    manifest = read_manifest(tmp_path / name, root="/somewhere/else")
    assert [(video.id, video.label) for video in manifest.videos] == videos
    assert manifest.videos[0].path == Path("/somewhere/else") / videos[0][0]
    assert not manifest.has_splits


def test_class_numbers_get_their_names(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 2\nb.mp4 0\n")
    (tmp_path / "names.txt").write_text("abseiling\nair drumming\nyoga\n")
    manifest = read_manifest(tmp_path / "train.csv", class_names=tmp_path / "names.txt")
    assert manifest.classes == ("abseiling", "air drumming", "yoga")
    assert rows(manifest) == [("a.mp4", "yoga", "train"), ("b.mp4", "abseiling", "train")]
    assert manifest.has_splits
    (tmp_path / "train.csv").write_text("a.mp4 3\n")
    with pytest.raises(ValueError, match=r"train\.csv: line 1: a\.mp4 has the label '3', .* from 0 to 2"):
        read_manifest(tmp_path / "train.csv", class_names=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("1 yoga\n2 yoga\n")
    with pytest.raises(ValueError, match="names the class 'yoga' twice"):
        read_manifest(tmp_path / "train.csv", class_names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("abseiling\nair drumming\n", (0, 1)),
        ("id,name\n0,abseiling\n1,air drumming\n", (0, 1)),
        ("name,id\nabseiling,0\nair drumming,1\n", (0, 1)),
        ("air drumming;1\nabseiling;0\n", (0, 1)),
        ("1 abseiling\r\n2 air drumming\r\n\r\n", (1, 2)),  # UCF101's classInd.txt, whose lists count from 1
    ],
)
def test_class_names_keep_the_numbers_that_their_file_gives(
    tmp_path: Path, names: str, labels: tuple[int, int]
) -> None:
    (tmp_path / "train.txt").write_text(f"a.mp4 {labels[1]}\nb.mp4 {labels[0]}\n")
    (tmp_path / "names.csv").write_text(names)
    manifest = read_manifest(tmp_path / "train.txt", class_names=tmp_path / "names.csv")
    assert manifest.classes == ("abseiling", "air drumming")
    assert [video.label for video in manifest.videos] == ["air drumming", "abseiling"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("100 metre dash\n400 metre dash\n", r"numbers that do not run from 0 or 1 without a gap; .* write 0, 1"),
        ("1\n0\n", "calls class number 0 '1', which is a number too"),
    ],
)
def test_class_names_that_may_mean_two_things_are_refused(tmp_path: Path, names: str, message: str) -> None:
    (tmp_path / "train.txt").write_text("a.mp4 0\n")
    (tmp_path / "names.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "train.txt", class_names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("name", "header"),
    [("list.csv", "path;label;split"), ("list.tsv", "path\tlabel\tsplit"), ("list.csv", "Path,LABEL,Split")],
)
def test_a_header_may_have_any_separator(tmp_path: Path, name: str, header: str) -> None:
    separator = header[4]
    (tmp_path / name).write_text(f"{header}\na b.mp4{separator}jump{separator}val\n")
    assert rows(read_manifest(tmp_path / name)) == [("a b.mp4", "jump", "val")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("kinetics400_val_list_videos.txt", "val"),
        ("hmdb51_train_split_1_rawframes.txt", "train"),
        ("testlist01.txt", "test"),
        ("constrained.txt", None),
    ],
)
def test_a_list_named_after_a_split_is_all_of_it(tmp_path: Path, name: str, split: str | None) -> None:
    (tmp_path / name).write_text("a.mp4 0\nb.mp4 0\n")
    manifest = read_manifest(tmp_path / name)
    assert manifest.has_splits == (split is not None)
    if split:
        assert {video.split for video in manifest.videos} == {split}


def test_json_lines_called_after_a_split_are_all_of_it_but_for_what_they_say(tmp_path: Path) -> None:
    lines = [{"path": f"{n}.mp4", "label": "x", "split": None if n else "val"} for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [video.split for video in read_manifest(tmp_path / "train.jsonl").videos] == ["val"] + ["train"] * 19


def test_a_folder_of_lists_is_a_set_with_splits(tmp_path: Path) -> None:
    # mmaction2's names.
    (tmp_path / "kinetics400_train_list_videos.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "kinetics400_val_list_videos.txt").write_text("c.mp4 1\n")
    manifest = read_manifest(tmp_path)
    assert rows(manifest) == [("a.mp4", "0", "train"), ("b.mp4", "1", "train"), ("c.mp4", "1", "val")]
    (tmp_path / "kinetics400_val_list_rawframes.txt").write_text("c 300 1\n")
    with pytest.raises(ValueError, match="two lists of the split 'val'"):
        read_manifest(tmp_path)


def test_a_folder_with_its_manifest_is_read_by_it(tmp_path: Path) -> None:
    for name in ("train/a.mp4", "train/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.jsonl").write_text('{"path": "train/a.mp4", "label": "jump", "split": "train"}\n')
    found = read_manifest(tmp_path)
    assert [(one.id, one.label, one.split) for one in found.videos] == [("train/a.mp4", "jump", "train")]
    assert found.source == tmp_path / "manifest.jsonl"


def test_folders_of_pictures_say_how_many_frames(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("some/directory-1 163 1\nsome/directory-2 122 1\nsome/directory-3 258 2\n")
    manifest = read_manifest(tmp_path / "list.txt")
    assert [(video.id, video.frames, video.label) for video in manifest.videos] == [
        ("some/directory-1", 163, "1"),
        ("some/directory-2", 122, "1"),
        ("some/directory-3", 258, "2"),
    ]
    (tmp_path / "list.txt").write_text("my dir  163  1\n78687 60 -1\n")  # Something-Something's folders are numbers
    assert [(video.id, video.frames, video.label) for video in read_manifest(tmp_path / "list.txt").videos] == [
        ("my dir", 163, "1"),
        ("78687", 60, None),
    ]


def test_a_name_without_suffix_and_one_number_is_refused_unless_it_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("clips/a 3\n")
    with pytest.raises(
        ValueError, match=r"list\.txt: line 1 may be a video without a suffix and its label, or a folder"
    ):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "clips" / "a").mkdir(parents=True)
    (video,) = read_manifest(tmp_path / "list.txt").videos
    assert (video.frames, video.label) == (3, None)


def test_a_split_of_single_labels_is_still_of_a_set_of_several(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.mp4 1 2\nb.mp4 -1\nc.mp4 -1 2\n")
    (tmp_path / "val.txt").write_text("d.mp4 1\n")
    manifest = read_manifest(tmp_path)
    assert manifest.split("val").multi_label
    assert [(video.label, video.labels) for video in manifest.videos] == [
        (None, ("1", "2")),
        (None, ()),
        (None, ("2",)),
        (None, ("1",)),
    ]
    assert manifest.classes == ("1", "2")


def test_several_labels_a_video(tmp_path: Path) -> None:
    (tmp_path / "multi.txt").write_text("some/path/000.mp4 1 3 5\nsome/path/001.mp4 1\nsome/path/002.mp4 2\n")
    manifest = read_manifest(tmp_path / "multi.txt")
    assert manifest.multi_label
    assert [video.names for video in manifest.videos] == [("1", "3", "5"), ("1",), ("2",)]
    assert manifest.classes == ("1", "2", "3", "5")
    write_manifest(manifest, tmp_path / "again.jsonl")
    assert read_manifest(tmp_path / "again.jsonl").videos == manifest.videos
    (tmp_path / "frames.txt").write_text("some/dir 120 1 3\nother/dir 99 2\n")
    assert [(v.frames, v.names) for v in read_manifest(tmp_path / "frames.txt").videos] == [
        (120, ("1", "3")),
        (99, ("2",)),
    ]


KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,validate
eating spaghetti,--3ouPhoy2A,20,30,validate
dribbling basketball,--4-0ihtnBU,58,68,validate
"""


def test_kinetics_files_are_found_in_the_usual_places(tmp_path: Path) -> None:
    (tmp_path / "validate.csv").write_text(KINETICS)
    places = ["---QUuC4vJs_000084_000094.mp4", "eating_spaghetti/--3ouPhoy2A_000020_000030.mkv"]
    for place in places:
        (tmp_path / "videos" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / place).touch()
    manifest = read_manifest(tmp_path / "validate.csv", root=tmp_path / "videos")
    assert rows(manifest) == [
        (places[0], "testifying", "val"),
        (places[1], "eating spaghetti", "val"),
        ("--4-0ihtnBU_000058_000068.mp4", "dribbling basketball", "val"),  # not to be had: the loader says so
    ]
    assert manifest.classes == ("dribbling basketball", "eating spaghetti", "testifying")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\n--0l35AkU68,12,22,test\n")
    assert rows(read_manifest(tmp_path / "test.csv")) == [("--0l35AkU68_000012_000022.mp4", None, "test")]
    (tmp_path / "k400.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\nyoga,abc,1,eleven,train,0\n")
    with pytest.raises(ValueError, match=r"k400\.csv: line 2 is not label,youtube_id,time_start"):
        read_manifest(tmp_path / "k400.csv")
    wrong = {
        "yoga,abc,1,11,train,0,more": "does not have the 6 columns",
        "yoga,,1,11,train,0": "has an empty youtube_id",
    }
    for row, message in wrong.items():
        (tmp_path / "k400.csv").write_text(f"label,youtube_id,time_start,time_end,split,is_cc\n{row}\n")
        with pytest.raises(ValueError, match=rf"k400\.csv: line 2 {message}"):
            read_manifest(tmp_path / "k400.csv")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    (folder / "trainlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nYoYo/v_YoYo_g25_c05.avi 2\n"
    )
    (folder / "testlist01.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nYoYo/v_YoYo_g01_c02.avi\n")
    (folder / "trainlist02.txt").write_text("YoYo/v_YoYo_g01_c02.avi 2\n")
    (folder / "testlist02.txt").write_text("YoYo/v_YoYo_g25_c05.avi\n")
    return folder


def test_ucf101_official_splits(ucf101: Path) -> None:
    videos = ucf101.parent / "UCF-101" / "ApplyEyeMakeup"
    videos.mkdir(parents=True)
    (videos / "v_ApplyEyeMakeup_g08_c01.avi").touch()
    manifest = read_manifest(ucf101)
    assert manifest.classes == ("ApplyEyeMakeup", "YoYo")
    assert rows(manifest) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup", "train"),
        ("YoYo/v_YoYo_g25_c05.avi", "YoYo", "train"),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ApplyEyeMakeup", "test"),
        ("YoYo/v_YoYo_g01_c02.avi", "YoYo", "test"),
    ]
    assert manifest.videos[0].group == "ApplyEyeMakeup/g08"
    assert manifest.videos[1].path == ucf101.parent / "UCF-101" / "YoYo" / "v_YoYo_g25_c05.avi"
    assert len(read_manifest(ucf101, fold=2).videos) == 2
    with pytest.raises(ValueError, match=r"has no trainlist03\.txt: is there a fold 3"):
        read_manifest(ucf101, fold=3)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "trainlist01.txt",
            "YoYo/v_YoYo_g25_c05.avi 1\n",
            r"trainlist01\.txt: line 1: classInd\.txt gives YoYo the .* 2",
        ),
        (
            "trainlist01.txt",
            "YoYo/v_YoYo_g25_c05.avi\n",
            r"trainlist01\.txt: line 1: classInd\.txt gives YoYo the .* 2",
        ),
        ("trainlist01.txt", "ApplyEyeMakeup/clip.avi 1\n", r"trainlist01\.txt: line 1 is not CLASS/v_CLASS_gNN_cNN"),
        ("testlist01.txt", "Yo/v_Yo_g01_c01.avi\n", r"testlist01\.txt: line 1 is not .* of a class"),
        ("classInd.txt", "1 ApplyEyeMakeup\nYoYo\n", r"classInd\.txt: line 2 is not `2 CLASS`: 'YoYo'"),
        (
            "testlist01.txt",
            "YoYo/v_YoYo_g25_c05.avi\n",
            r"testlist01\.txt: line 1 lists YoYo/v_YoYo_g25_c05.avi twice: before at .*trainlist01\.txt: line 2",
        ),
        (
            "testlist01.txt",
            "YoYo/v_YoYo_g25_c07.avi\n",
            r"testlist01\.txt: line 1: group 'YoYo/g25' lies in the splits 'train' and 'test'",
        ),
    ],
)
def test_a_wrong_ucf101_file_is_named_with_its_line(ucf101: Path, file: str, text: str, message: str) -> None:
    (ucf101 / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(ucf101)
    if "group" in message:
        assert len(read_manifest(ucf101, allow_leaks=True).videos) == 3


def test_hmdb51_official_splits(tmp_path: Path) -> None:
    (tmp_path / "brush_hair_test_split1.txt").write_text(
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n"
        "atheismtutorial_brush_hair_u_nm_np2_le_goo_0.avi 2 \n"
        "Blonde_being_brushed_brush_hair_f_nm_np2_ri_med_0.avi 0 \n"
    )
    odd = "#122_Cleaning_Up_The_Beach;_(Part_2)_pick_f_cm_np1_fr_med_1.avi"
    (tmp_path / "pick_test_split1.txt").write_text(f"{odd} 1 \n")
    (tmp_path / "pick_test_split2.txt").write_text(f"{odd} 2 \n")
    with pytest.raises(ValueError, match=r"has no brush_hair_test_split2\.txt: is there a fold 2"):
        read_manifest(tmp_path, fold=2)
    with pytest.raises(ValueError, match="one of HMDB51's lists, one a class: name their folder"):
        read_manifest(tmp_path / "pick_test_split1.txt")
    manifest = read_manifest(tmp_path)
    assert manifest.classes == ("brush_hair", "pick")
    assert rows(manifest) == [
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair", "train"),
        ("brush_hair/atheismtutorial_brush_hair_u_nm_np2_le_goo_0.avi", "brush_hair", "test"),
        (f"pick/{odd}", "pick", "train"),
    ]
    (tmp_path / "pick_test_split1.txt").write_text("\nclip.avi 3\n")
    with pytest.raises(ValueError, match=r"pick_test_split1\.txt: line 2 is not `NAME\.avi 0\|1\|2`: 'clip\.avi 3'"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="is there a fold 3"):
        read_manifest(tmp_path, fold=3)


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something(tmp_path: Path, prefix: str) -> None:
    labels = {
        "Approaching something with your camera": "0",
        "Holding something next to something": "1",
        "Moving something up": "2",
    }
    train = [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        }
    ]
    validation = [{"id": "74225", "label": "x", "template": "Moving [something] up", "placeholders": ["x"]}]
    for name, content in {"labels": labels, "train": train, "validation": validation, "test": [{"id": "1420"}]}.items():
        (tmp_path / f"{prefix}{name}.json").write_text(json.dumps(content))
    manifest = read_manifest(tmp_path, root=tmp_path / "videos")
    assert manifest.classes == tuple(labels)
    assert rows(manifest) == [
        ("78687.webm", "Holding something next to something", "train"),
        ("74225.webm", "Moving something up", "val"),
        ("1420.webm", None, "test"),
    ]
    assert manifest.videos[0].path == tmp_path / "videos" / "78687.webm"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "78687.mp4").touch()  # converted
    assert read_manifest(tmp_path, root=tmp_path / "videos").videos[1].path == tmp_path / "videos" / "74225.mp4"
    validation[0]["template"] = "Moving [something] sideways"
    (tmp_path / f"{prefix}validation.json").write_text(json.dumps(validation))
    with pytest.raises(ValueError, match=r"entry 1 of validation\.json has the template 'Moving something sideways'"):
        read_manifest(tmp_path)
    (tmp_path / f"{prefix}train.json").write_text('[\n{"id": "1",\n]')
    with pytest.raises(ValueError, match=r"train\.json is not JSON: .* line 3"):
        read_manifest(tmp_path)
    for wrong in ('["id"]', '[{"id": "1"}]'):
        (tmp_path / f"{prefix}train.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"entry 1 of train\.json has no id, or no template"):
            read_manifest(tmp_path)
    for wrong in ('["Moving something up"]', '{"Moving something up": "zero"}', '{"Moving something up": "1"}'):
        (tmp_path / f"{prefix}labels.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"labels\.json does not give every template a number from 0"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4\n", "line 2: some lines have labels, others have none"),
        ("a.mp4 0\nnothing here\n", "line 2 names no video .* and no folder with its number of frames: 'nothing here'"),
        ("just words\n", "line 1 is neither `path label` nor a path: 'just words'"),
        ("a.mp4 0 1\nb.mp4 zero one\n", "line 2: several labels are numbers"),
        ("\n", "line 1 is empty"),
        ("dir -1 3\n", "line 1 names no video"),
        ("a.mp4 0\n\na.mp4 1\n", r"list\.txt: line 3 lists a.mp4 twice: before at .*list\.txt: line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_a_list_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"path,label\na.mp4,0\ncaf\xe9.mp4,1\n")
    with pytest.raises(ValueError, match=rf"{name}: line 3 is not UTF-8 .*: convert the file"):
        read_manifest(tmp_path / name)


def test_a_manifest_keeps_what_it_says(tmp_path: Path) -> None:
    line = {
        **{
            "path": "a.mp4",
            "label": "jump",
            "split": "train",
            "group": None,
            "frames": 28,
            "fps": 29.97,
            "seconds": 0.93,
        },
        **{"hash": "00ff", "error": {"kind": "broken", "reason": "decoding fails after 28 frames"}},
    }
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
    manifest = read_manifest(tmp_path / "list.jsonl")
    (video,) = manifest.videos
    assert (video.frames, video.error) == (28, "decoding fails after 28 frames")
    write_manifest(manifest, tmp_path / "again.jsonl")
    assert json.loads((tmp_path / "again.jsonl").read_text()) == line


def test_videos_can_be_kept_in_sets() -> None:
    one = Video(id="a", path=Path("a"), facts={"fps": 3})
    assert len({one, Video(id="a", path=Path("a"), facts={"fps": 3})}) == 1
