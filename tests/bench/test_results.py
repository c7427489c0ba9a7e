"""Results come back as they were written; a file that holds none is refused in words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from videokd.bench.results import (
    SCHEMA,
    Ceiling,
    Difference,
    Measurement,
    Network,
    Results,
    Round,
    read_results,
    write_results,
)

MEASURED = Measurement(
    party="student",
    stage="inference",
    variant="bf16",
    clips=8,
    rounds=[Round(calls=3, wall=0.3, cpu=0.25, device=None, yardstick=0.01)],
    latencies=[0.1, 0.11],
    first_call=1.5,
    warm_up=6,
    is_stable=False,
    peak_device_bytes=1 << 30,
    resident_bytes=1 << 31,
    difference=Difference(clips=4, largest=0.01, relative=0.002, top1_agreement=1.0),
    joules=2.5,
)
FAILED = Measurement(  # JSON has no tuples, and lists are what comes back
    party="teacher", stage="inference", variant="eager", clips=64, rounds=[], latencies=[], error="out of memory"
)
RESULTS = Results(
    subject="student.py",
    setting={"clock": "wall", "environment": {"cpu": {"model": "a processor"}, "gpu": None}, "threads": 2},
    networks=[
        Network(
            party="student",
            architecture="CompactShift",
            input="8 x 32 px",
            params=41_436,
            macs=None,
            param_bytes=165_744,
        )
    ],
    measurements=[MEASURED, FAILED],
    ceilings=[Ceiling(what="bare decode", per_second=900.5, unit="frame", rounds=[900.0, 901.0])],
    noise=[1.01, 0.99],
    notes=["The teacher is bound by memory."],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "bench.json"
    write_results(written, RESULTS)
    return written


def test_results_come_back_as_they_were_written(path: Path) -> None:
    assert read_results(path) == RESULTS
    assert read_results(str(path)) == RESULTS


def test_the_file_names_its_schema(path: Path) -> None:
    assert json.loads(path.read_text())["schema"] == SCHEMA == "videokd.bench/2"


def test_a_file_of_another_version_is_refused_with_both(path: Path) -> None:
    path.write_text(path.read_text().replace(SCHEMA, "videokd.bench/99"))
    with pytest.raises(ValueError, match=r"has the schema 'videokd.bench/99'; this videokd reads 'videokd.bench/2'"):
        read_results(path)


@pytest.mark.parametrize("text", ['{"top1": 0.5}', "[1, 2]", '"videokd.bench/2"', "null"])
def test_json_of_something_else_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bench.json is no result of videokd bench"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "clips per second: 5", "\x00\x01"])
def test_what_is_not_json_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bench.json is not JSON"):
        read_results(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(path: Path, share: float) -> None:
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(ValueError, match=r"bench.json is not JSON"):
        read_results(path)


@pytest.mark.parametrize("name", ["measurements", "yardstick", "difference", "params"])
def test_a_file_without_a_field_is_refused_and_the_field_named(path: Path, name: str) -> None:
    path.write_text(path.read_text().replace(f'"{name}":', '"other":', 1))
    with pytest.raises(ValueError, match=rf"bench\.json is not whole: .*('{name}'|'other')"):
        read_results(path)


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00PK")
    with pytest.raises(ValueError, match=r"bench\.json is not JSON: .*utf-8"):
        read_results(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.json"):
        read_results(tmp_path / "nothing.json")


def test_measurements_of_a_variant_come_by_number_of_clips() -> None:
    several = [replace(MEASURED, variant="eager", clips=clips) for clips in (32, 1, 8)]
    found = replace(RESULTS, measurements=[*several, MEASURED, FAILED]).of("student", "inference")
    assert [one.clips for one in found] == [1, 8, 32]


def test_names_leave_out_a_party_that_is_none() -> None:
    assert MEASURED.name == "student · inference · bf16 · 8 clips"
    assert replace(MEASURED, party="", stage="decode").name == "decode · bf16 · 8 clips"
