"""A whole benchmark of tiny networks, its command, and what it says of bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videokd import recipe as recipes
from videokd.bench import variants
from videokd.bench.benchmark import Plan, benchmark, bounds
from videokd.bench.contenders import Patience
from videokd.bench.derived import stages, summaries
from videokd.bench.results import Measurement, Results, Round, read_results
from videokd.bench.subjects import subject
from videokd.bench.variants import VARIANTS
from videokd.cli import main
from videokd.clips.lists import read_manifest
from videokd.contracts import Clip
from videokd.machine import Machine
from videokd.models import load_model, save_model
from videokd.recipe import TrainedTeacher, load

QUICK = Patience(rounds=2, turn_seconds=0.001, warm_up_seconds=0.0)
FAST = ["--rounds", "2", "--turn-seconds", "0.001", "--warm-up-seconds", "0"]


@pytest.fixture(scope="module")
def run(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with that of its teacher."""
    folder = tmp_path_factory.mktemp("runs")
    classes = read_manifest(drawn_set).classes
    distilled = load("quickstart/distilled.py")
    student = replace(distilled.student, width=4)  # type: ignore[call-arg]
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    save_model(teacher.build(classes), folder / "taught")
    save_model(student.build(classes), folder / "run")
    recipe = replace(
        distilled,
        data=replace(distilled.data, path=str(drawn_set), batch_size=4),
        student=student,
        teachers={"teacher": TrainedTeacher(checkpoint=str(folder / "taught"))},
    )
    (folder / "run" / "recipe.json").write_text(recipes.dump(recipe))
    scored = {
        "classes": list(classes),
        "clips": 12,
        "skipped": [],
        "temporal": {},
        "params": 1,
        "macs": 1,
        "top1": 0.75,
        "views": {"temporal": 5, "spatial": 3, "average": "probabilities"},
    }
    (folder / "run" / "evaluation.json").write_text(json.dumps(scored))
    return folder / "run"


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves, of a run."""
    out = tmp_path_factory.mktemp("bench") / "out"
    arguments = ["--out", str(out), "--variants", "eager", "bf16", "--batch-size", "2", "--sweep", "1", "--clips", "6"]
    assert main(["bench", str(run), *arguments, *FAST]) == 0
    return out


def test_a_run_is_timed_stage_by_stage(done: Path) -> None:
    found = read_results(done / "bench.json")
    assert [one.error for one in found.measurements] == [None] * len(found.measurements)
    assert {one.name for one in found.measurements} == {
        *(f"{party} · inference · {how} · 2 clips" for party in ("student", "teacher") for how in ("eager", "bf16")),
        *(f"{party} · inference · eager · 1 clip" for party in ("student", "teacher")),
        *(f"{stage} · this process · 2 clips" for stage in ("decode", "transform", "load")),
        *(f"student · {stage} step · eager · 4 clips" for stage in ("training", "online", "stored")),
        next(one.name for one in found.measurements if one.stage == "end to end"),
    }
    assert len(found.noise) == 2
    assert {one.what for one in found.ceilings} == {"matmul fp32", "matmul bf16", "memory copy", "bare decode"}
    assert all(one.per_second > 0 for one in found.ceilings)
    by_name = {one.name: one for one in found.measurements}
    assert by_name["student · inference · eager · 2 clips"].difference is None
    difference = by_name["student · inference · bf16 · 2 clips"].difference
    assert difference is not None
    assert difference.clips == 6  # all that were chosen
    assert 0 < difference.relative < 0.1


def test_the_noise_is_said_in_words(done: Path) -> None:
    notes = read_results(done / "bench.json").notes
    assert notes[0].startswith("student against itself, eager: ")


def test_networks_are_described_with_what_their_run_scored(done: Path, run: Path) -> None:
    student, teacher = read_results(done / "bench.json").networks
    assert (student.party, student.architecture, student.accuracy) == ("student", "CompactShift", 0.75)
    assert (teacher.party, teacher.architecture, teacher.accuracy) == ("teacher", "Conv3d", None)
    assert (student.views, student.accuracy_views, teacher.views) == (15, 15, 1)
    assert student.params is not None
    assert student.param_bytes == 4 * student.params
    assert student.activation_bytes is not None
    assert teacher.macs is not None
    assert teacher.macs > student.macs  # type: ignore[operator]
    assert student.clip_seconds == pytest.approx(8 * 2 / 8)  # frames x stride over frames a second


def test_the_command_leaves_a_page_and_says_where(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (done / "page.html").read_text(encoding="utf-8")
    assert "student" in page
    assert "<svg" in page
    setting = read_results(done / "bench.json").setting
    assert (setting["device"], setting["clock"], setting["threads"]) == ("cpu", "cpu", 1)


def test_compare_takes_folders_and_its_exit_code_says_whether_it_became_slower(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rounds enough, and quiet ones, to tell.
    plain = json.loads((done / "bench.json").read_text())
    for one in plain["measurements"]:
        one["rounds"] = [
            {"calls": 1, "wall": 0.1 + place / 1e4, "cpu": 0.1 + place / 1e4, "device": None, "yardstick": 0.01}
            for place in range(12)
        ]
    for name, factor in (("old", 1.0), ("same", 1.0), ("slow", 1.1)):
        changed = json.loads(json.dumps(plain))
        changed["setting"]["list"] = f"{name}.csv"
        for timed in changed["measurements"][0]["rounds"]:
            timed["cpu"] *= factor
            timed["wall"] *= factor
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(changed))
    assert main(["bench", "compare", str(tmp_path / "old"), str(tmp_path / "same")]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "compare", str(tmp_path / "old"), str(tmp_path / "slow" / "bench.json")])
    assert stopped.value.code == 3
    said = capsys.readouterr()
    assert "slower than 5% allows" in said.err
    assert "Not the same: list: 'old.csv' before and 'slow.csv' now." in said.out
    assert main(["bench", "compare", str(tmp_path / "old"), str(tmp_path / "slow"), "--max-regress", "0.2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no such model"], "no recipe, run, exported file or model 'no such model'"),
        (["X3D-XS", "--variants", "fp16"], "fp16 is for GPUs"),
        (["X3D-XS", "--batch-size", "0"], "a call is of at least one clip"),
        (["X3D-XS", "--threads", "0"], "threads are at least 1"),
        (["X3D-XS", "--rounds", "1"], "rounds are at least 2"),
        (["X3D-XS", "--device", "cuda:7"], "no device 'cuda:7' here"),
        (["X3D-XS", "--data", "nowhere"], "nowhere"),
        (["compare", "nowhere.json", "nowhere.json"], "no result of videokd bench at nowhere.json"),
        (["Conv3d (quickstart)", "--out", "README.md"], "README.md"),
    ],
)
def test_bad_input_is_a_clear_message(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a file")
    assert (
        main(["bench", *arguments, *(FAST if "--rounds" not in arguments and arguments[0] != "compare" else [])]) == 1
    )
    assert said in capsys.readouterr().err


def test_a_comparison_that_tells_nothing_is_no_success(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(done), str(done)]) == 1  # two rounds
    said = capsys.readouterr()
    assert "2 rounds, at least" in said.out
    assert "nothing can be told" in said.err


def test_several_results_stand_on_one_page(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = json.loads((done / "bench.json").read_text())
    other["networks"][0]["accuracy"] = 0.25
    other["subject"] = "another run"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert (
        main(["bench", "page", str(done), str(tmp_path / "other.json"), "--out", str(tmp_path / "p" / "all.html")]) == 0
    )
    page = (tmp_path / "p" / "all.html").read_text(encoding="utf-8")
    assert "another run" in page
    assert main(["bench", "page"]) == 1
    assert "name the results" in capsys.readouterr().err


def test_a_share_that_is_none_is_refused(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(done), str(done), "--max-regress", "much"]) == 1
    assert "a share such as 5% or 0.05, not 'much'" in capsys.readouterr().err


def test_what_does_not_fit_is_recorded_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    about = subject(["CompactShift (quickstart)"])
    from videokd.bench import benchmark as module

    views = module._Looking.views

    def small(self: module._Looking, clips: int, count: int) -> object:
        if clips > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return views(self, clips, count)

    monkeypatch.setattr(module._Looking, "views", small)
    plan = Plan(subject=about, parts=("inference",), variants=("eager",), batch_size=2, sweep=(8,), patience=QUICK)
    fits, single, does_not = benchmark(plan).measurements
    assert (fits.error, single.error, single.clips) == (None, None, 1)
    assert does_not.name == "CompactShift (quickstart) · inference · eager · 8 clips"
    assert does_not.error == "out of memory"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The run's student, for calls of three clips."""
    model = load_model(run)
    view = model.blank(3)
    assert isinstance(view, Clip)
    path = run.parent / "student.pt2"
    torch.export.save(torch.export.export(variants._OnlyLogits(model), (view.frames, view.times)), path)
    return path


def test_an_exported_file_is_compared_with_its_run_and_read_for_alike(run: Path, exported: Path) -> None:
    manifest = read_manifest(load(run / "recipe.json").data.path)
    about = subject([str(run), str(exported)])
    found = benchmark(Plan(subject=about, manifest=manifest, parts=("inference",), variants=("eager",), patience=QUICK))
    # One clip a call is timed by itself, but not of what was exported for others.
    assert [one.clips for one in found.measurements if one.party == "student"] == [3, 1]
    by_party = {one.party: one for one in found.measurements}
    assert by_party["student.pt2"].clips == 3  # what it was made for
    difference = by_party["student.pt2"].difference
    assert difference is not None
    assert difference.relative < 1e-5
    assert difference.top1_agreement == 1
    networks = {one.party: one for one in found.networks}
    assert networks["student.pt2"].input == networks["student"].input
    assert networks["student.pt2"].clip_seconds == networks["student"].clip_seconds


@pytest.mark.parametrize("other", ["of noise", "of other classes"])
def test_an_exported_file_is_not_compared_with_what_it_is_not_of(other: str, exported: Path, tmp_path: Path) -> None:
    name = "CompactShift (quickstart)"  # as it comes: random weights, 400 classes
    if other == "of other classes":
        name = str(tmp_path / "few")
        save_model(load("quickstart/distilled.py").student.build(["a", "b"]), name)
    plan = Plan(subject=subject([name, str(exported)]), parts=("inference",), variants=("eager",), patience=QUICK)
    found = benchmark(replace(plan, latency=False)).measurements[-1]
    assert (found.party, found.error, found.difference) == ("student.pt2", None, None)


def test_an_exported_file_alone_goes_from_files_to_logits_and_says_what_it_guessed(run: Path, exported: Path) -> None:
    manifest = read_manifest(load(run / "recipe.json").data.path)
    plan = Plan(subject=subject([str(exported)]), manifest=manifest, parts=("inference", "loading"), patience=QUICK)
    found = benchmark(plan)
    assert {one.stage for one in found.measurements} == {"inference", "decode", "transform", "load", "end to end"}
    assert [one.error for one in found.measurements] == [None] * 5
    assert any("does not say which frames it wants; read were 8 frames, dense every 1" in note for note in found.notes)


def test_clips_that_can_not_be_read_are_left_out_and_counted(run: Path, tmp_path: Path) -> None:
    whole = read_manifest(load(run / "recipe.json").data.path)
    (tmp_path / "bad.mp4").write_text("nothing")
    bad = replace(whole.videos[0], id="bad", path=tmp_path / "bad.mp4")
    plan = Plan(
        subject=subject(["CompactShift (quickstart)"]),
        manifest=replace(whole, videos=(bad, *whole.videos[:5])),
        variants=("eager",),
        batch_size=2,
        patience=QUICK,
    )
    found = benchmark(plan)
    assert [one.error for one in found.measurements] == [None] * 6
    assert found.setting["clips"] == 5
    assert any("1 of 6 clips can't be read and are left out; the first: " in note for note in found.notes)
    with pytest.raises(ValueError, match=r"no clip of .* can be read; the first: .*bad\.mp4"):
        benchmark(replace(plan, manifest=replace(whole, videos=(bad,))))


def test_without_a_label_steps_are_left_out_and_the_rest_goes_on(run: Path) -> None:
    whole = read_manifest(load(run / "recipe.json").data.path)
    manifest = replace(whole, videos=tuple(replace(one, label=None, labels=()) for one in whole.videos))
    plan = Plan(subject=subject([str(run)]), manifest=manifest, parts=("steps", "ceilings"), patience=QUICK)
    found = benchmark(plan)
    assert found.measurements == []
    assert any("has a label: steps of training are left out" in note for note in found.notes)
    assert found.ceilings


def test_an_onnx_file_runs_in_onnx_runtime_beside_the_same_of_its_run(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    view = model.blank(2)
    assert isinstance(view, Clip)
    program = torch.onnx.export(
        variants._OnlyLogits(model).eval(), (view.frames, view.times), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "student.onnx")
    said: list[str] = []
    plan = Plan(
        subject=subject([str(run), str(tmp_path / "student.onnx")]),
        parts=("inference",),
        variants=("eager",),
        patience=QUICK,
        latency=False,
    )
    found = benchmark(plan, say=said.append)
    assert said == ["inference of student, teacher, student.onnx: 2 clips, eager, onnx"]
    assert found.measurements[-1].name == "student.onnx · inference · onnx · 2 clips"
    assert found.measurements[-1].difference is not None


def test_an_exported_file_in_calls_of_other_sizes_is_recorded(exported: Path, run: Path) -> None:
    manifest = read_manifest(load(run / "recipe.json").data.path)
    plan = Plan(
        subject=subject([str(exported)]), manifest=manifest, parts=("inference", "loading"), batch_size=2, workers=1,
        patience=QUICK,
    )  # fmt: skip
    found = {one.stage: one for one in benchmark(plan).measurements}
    assert found["inference"].error == "student.pt2 was exported for calls of 3, not 2"
    assert found["end to end"].error == "student.pt2 was exported for calls of 3, not 2"
    assert found["load"].error is None


def test_without_a_list_networks_see_noise_and_nothing_is_decoded() -> None:
    about = subject(["CompactShift (quickstart)"])
    found = benchmark(
        Plan(subject=about, variants=("eager",), batch_size=2, patience=QUICK, machine=Machine(device="cpu"))
    )
    assert {one.stage for one in found.measurements} == {"inference"}
    assert "against itself" in found.notes[0]
    assert found.setting["list"] is None
    assert {one.what for one in found.ceilings} == {"matmul fp32", "matmul bf16", "memory copy"}


def measured(stage: str, seconds: float, *, party: str = "", variant: str = "this process") -> Measurement:
    rounds = [Round(calls=2, wall=2 * seconds, cpu=2 * seconds, device=None, yardstick=1.0)] * 3
    return Measurement(party=party, stage=stage, variant=variant, clips=4, rounds=rounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("load", "looks", "device", "said"),
    [
        (
            0.4,
            0.1,
            "cpu",
            ["One process loads 10.0 clips/s, and student (eager) runs 40.0 clips/s (wall): loading is"],
        ),
        (0.1, 0.4, "cpu", ["the network is the limit"]),
        (0.4, 0.2, "cuda", ["loading is the limit", "It takes 2 workers to keep it busy"]),
        (0.4, 0.0001, "cuda", ["It would take 4000 workers", "pack the clips"]),
    ],
)
def test_what_bounds_it_is_named_with_what_would_lift_it(
    load: float, looks: float, device: str, said: list[str]
) -> None:
    results = Results(
        subject="s",
        setting={"device": device, "clock": "wall"},
        measurements=[
            measured("load", load),
            measured("inference", looks, party="student", variant="eager"),
            measured("end to end", load + looks, party="student", variant="eager"),
        ],
    )
    notes = " ".join(bounds(results))
    for words in said:
        assert words in notes
    if load < looks:
        assert "workers" not in notes
    (whole,) = [stages(results, summaries(results), one) for one in results.measurements if one.stage == "end to end"]
    assert whole is not None
    assert whole.explained == pytest.approx(1)


def test_variants_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = capsys.readouterr().out
    assert all(variant in said for variant in VARIANTS)


@pytest.mark.gpu
def test_a_gpu_has_its_own_variants_clock_and_stages(run: Path, tmp_path: Path) -> None:
    variants = ["eager", "bf16", "fp16", "channels-last", "compile-bf16", "cuda-graphs-bf16"]
    arguments = [
        "--out",
        str(tmp_path),
        "--variants",
        *variants,
        "--batch-size",
        "2",
        "--clips",
        "6",
        "--device",
        "cuda",
    ]
    assert main(["bench", str(run), *arguments, *FAST]) == 0
    found = read_results(tmp_path / "bench.json")
    assert [one.error for one in found.measurements] == [None] * len(found.measurements)
    assert found.setting["clock"] == "device"
    assert "copy" in {one.stage for one in found.measurements}
    for one in found.measurements:
        assert all(timed.device is not None and timed.device > 0 for timed in one.rounds)
        assert one.peak_device_bytes
    agreement = {one.variant: one.difference.top1_agreement for one in found.measurements if one.difference}
    assert set(agreement) == set(variants) - {"eager"}
    assert {one.what for one in found.ceilings} >= {"matmul fp16", "copy to device"}
