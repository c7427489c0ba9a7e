"""Lists as people write them: names of columns, separators, encodings, splits and labels."""

from pathlib import Path

import pytest

from videokd.clips.lists import read_manifest

Rows = list[tuple[str, str | None]]


def read(folder: Path, name: str, text: str | bytes) -> Rows:
    """Return (id, label) of every video of a list with this text."""
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return [(video.id, video.label) for video in read_manifest(folder / name).videos]


RUN_WALK: Rows = [("a.mp4", "run"), ("b.mp4", "walk")]


@pytest.mark.parametrize(
    "header",
    [
        *("PATH,Label", " path , label ", "video_path,class_name", "Video Path,Class-Name", "filename,class"),
        *("file,label", "video,target", "clip,action", "filepath,category", "image,class", "path,class", "name,labels"),
    ],
)
def test_columns_go_by_their_usual_names_in_any_case(header: str, tmp_path: Path) -> None:
    assert read(tmp_path, "list.csv", f"{header}\na.mp4,run\nb.mp4, walk \n") == RUN_WALK


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("id,label,path", ("0,run,a.mp4", "1,walk,b.mp4")),
        (",path,label", ("0,a.mp4,run", "1,b.mp4,walk")),
        ("path,label,class", ("a.mp4,0,run", "b.mp4,1,walk")),
        ("class,path,fps", ("run,a.mp4,25", "walk,b.mp4,30")),
        ("path;label", ("a.mp4;run", "b.mp4;walk")),
        ("path|label", ("a.mp4|run", "b.mp4|walk")),
        ('"path","label"', ('"a.mp4","run"', '"b.mp4","walk"')),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_may_stand_in_any_order(header: str, lines: tuple[str, ...], end: str, tmp_path: Path) -> None:
    assert read(tmp_path, "list.csv", end.join([header, *lines, ""])) == RUN_WALK


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_can_be_told_are_read(encoding: str, tmp_path: Path) -> None:
    text = "path,label\na.mp4,café\nb.mp4,run\n".encode(encoding)
    assert read(tmp_path, "list.csv", text) == [("a.mp4", "café"), ("b.mp4", "run")]


def test_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.csv: line 3 is not UTF-8 .*iconv"):
        read(tmp_path, "list.csv", "path,label\na.mp4,run\nb.mp4,café\n".encode("cp1252"))


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "", "N/A", "<NA>", "NULL", "-1"])
@pytest.mark.parametrize("column", ["label", "class", "target"])
def test_words_for_a_missing_value_mean_no_label(word: str, column: str, tmp_path: Path) -> None:
    assert read(tmp_path, "list.csv", f"path,{column}\na.mp4,run\nb.mp4,{word}\n") == [
        ("a.mp4", "run"),
        ("b.mp4", None),
    ]


def test_missing_labels_are_said_in_one_line_with_how_the_list_was_read(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="was read like this") as warned:
        read(tmp_path, "list.csv", "Video_Path,Class Name,Set\na.mp4,run,Train\nb.mp4,nan,Validation\n")
    (note,) = [str(one.message) for one in warned]
    for part in ("path is column 'Video_Path'", "no label where it says 'nan' (1)", "split 'Validation' is 'val'"):
        assert part in note
    assert "\n" not in note


def test_numbers_that_pandas_made_floats_are_whole(tmp_path: Path) -> None:
    text = "path,label\na.mp4,0.0\nb.mp4,1.0\nc.mp4,\n"
    assert read(tmp_path, "list.csv", text) == [("a.mp4", "0"), ("b.mp4", "1"), ("c.mp4", None)]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("01", "1", "'01' .*line 1.* and '1' .*line 2.* are one number"),
        ("Run", "run", "'Run' .* and 'run' .* differ only in case"),
        ("long jump", "long  jump", "differ only in case, in spaces"),
        ("caf\u00e9", "cafe\u0301", "how letters are encoded"),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_two_names_of_one_class_are_refused(one: str, other: str, message: str, name: str, tmp_path: Path) -> None:
    text = f"a.mp4,{one}\nb.mp4,{other}\n"
    if name == "list.jsonl":
        text = f'{{"path": "a.mp4", "label": "{one}"}}\n{{"path": "b.mp4", "label": "{other}"}}\n'
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, text)


@pytest.mark.parametrize("zeros", ["01 02", "1 2"])
def test_leading_zeros_are_kept_where_all_numbers_have_them(zeros: str, tmp_path: Path) -> None:
    one, other = zeros.split()
    assert read(tmp_path, "list.txt", f"a.mp4 {one}\nb.mp4 {other}\n") == [("a.mp4", one), ("b.mp4", other)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 a.mp4\n1 0 b.mp4\n", "line 1: '0' stands before the path '1 a.mp4'"),
        ("run a.mp4\nwalk b.mp4\n", "line 1: 'run' may be part of the path or the label"),
        ("x1,run,a.mp4\nx2,walk,b.mp4\n", "line 1: 'x1'"),
    ],
)
def test_fields_before_the_path_are_refused_where_they_may_be_labels(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "list.txt", text)


def test_number_of_the_line_before_path_and_label_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, "list.txt", "0 a.mp4 run\n1 b.mp4 walk\n") == RUN_WALK


@pytest.mark.parametrize("line", ["run/my clip.mp4", "my clip.mp4"])
def test_paths_with_spaces_that_are_there_need_no_label(line: str, tmp_path: Path) -> None:
    (tmp_path / line).parent.mkdir(exist_ok=True)
    (tmp_path / line).touch()
    assert read(tmp_path, "list.txt", f"{line}\n") == [(line, None)]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_backslashes_are_slashes(name: str, tmp_path: Path) -> None:
    text = {"list.txt": "a\\b c.mp4 run\n", "list.csv": "path,label\na\\b c.mp4,run\n"}.get(
        name, '{"path": "a\\\\b c.mp4", "label": "run"}\n'
    )
    assert read(tmp_path, name, text) == [("a/b c.mp4", "run")]


@pytest.mark.parametrize("path", ["C:\\data\\a.mp4", "\\\\server\\data\\a.mp4"])
def test_absolute_windows_paths_are_refused_with_what_to_do(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: .* absolute path of a Windows machine: .*--root"):
        read(tmp_path, "list.txt", f"{path} run\n")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,class_name,action", "columns 'class_name' and 'action', and it is not certain which one"),
        ("path,path,label", "column 'path' 2 times"),
    ],
)
def test_two_columns_for_one_thing_are_refused(header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "list.csv", f"{header}\na.mp4,b.mp4,run\n")


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (("Train", "VALIDATION", "Testing"), ("train", "val", "test")),
        (("training", "dev", "test"), ("train", "val", "test")),
        (("train", "valid", "TEST"), ("train", "val", "test")),
        (("a", "b", "c"), ("a", "b", "c")),
    ],
)
@pytest.mark.parametrize("form", ["csv", "txt", "jsonl"])
def test_usual_words_for_splits_mean_the_same(
    words: tuple[str, ...], splits: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    if form == "txt" and words[0] == "a":
        pytest.skip("a plain list has no other splits")
    lines = {
        "csv": ["path,label,split", *(f"{word}.mp4,run,{word}" for word in words)],
        "txt": [f"{word}.mp4 run {word}" for word in words],
        "jsonl": [f'{{"path": "{word}.mp4", "label": "run", "split": "{word}"}}' for word in words],
    }[form]
    (tmp_path / f"list.{form}").write_text("\n".join(lines))
    assert [video.split for video in read_manifest(tmp_path / f"list.{form}").videos] == list(splits)


@pytest.mark.parametrize(
    "line",
    [
        '{"Path": "a.mp4", "Label": "run"}',
        '{"video": "a.mp4", "class_name": "run", "fps": 25}',
        '{"filename": "a.mp4", "label": "run"}',
        '{"path": "a.mp4", "label": "run", "class": 4}',
    ],
)
def test_keys_of_json_lines_go_by_their_usual_names(line: str, tmp_path: Path) -> None:
    assert read(tmp_path, "list.jsonl", f"{line}\n") == [("a.mp4", "run")]


def test_keys_that_may_both_be_the_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: the keys 'class' and 'action' may both be the label"):
        read(tmp_path, "list.jsonl", '{"path": "a.mp4", "class": "x", "action": "y"}\n')


def test_null_and_nan_of_json_mean_no_label_and_a_text_is_a_class(tmp_path: Path) -> None:
    lines = [
        '{"path": "a.mp4", "label": null}',
        '{"path": "b.mp4", "label": NaN}',
        '{"path": "c.mp4", "label": "None"}',
    ]
    with pytest.warns(UserWarning, match="'None' is a class"):
        found = read(tmp_path, "list.jsonl", "\n".join(lines))
    assert found == [("a.mp4", None), ("b.mp4", None), ("c.mp4", "None")]
