"""A training step on real video files for every kind of teacher over every kind of student, and whole runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_models import CLASSES, EVERY, built
from torchvision.models import get_model

from videokd.assembly import view_specs
from videokd.clips import Augment, BatchOrder, ClipDataset, batches, read_manifest
from videokd.contracts import UNLABELLED, InputSpec, Outputs, SoundSpec
from videokd.distill import Objective, Student, Term, check_terms, wanted_taps
from videokd.evaluate import evaluate
from videokd.losses import ClipFeatures, CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity
from videokd.machine import Machine
from videokd.models import ClassNames, CompactShift, HuggingFaceImages, MelNetwork, Motion, Own, TimmVideo, VideoResNet
from videokd.optim import AdamW
from videokd.recipe import Data, PublishedTeacher, Recipe, TrainedTeacher, dump, load
from videokd.teachers import Mixture, Teacher, all_targets
from videokd.train import train

QUIET = Console(quiet=True)
SOFT = Term(loss=SoftTargets(temperature=2.0))
FRAMES = Term(loss=FrameFeatures())
CLIP = Term(loss=ClipFeatures())
AFFINITY = Term(loss=TemporalAffinity())

# Student, teachers, what they are compared by.
PAIRS: list[tuple[str, Sequence[str], dict[str, Term]]] = [
    ("CompactShift", ["Conv3d"], {"soft": SOFT, "frames": FRAMES}),
    (
        "MobileNetV3 shift",
        ["R(2+1)D-18"],
        {"soft": SOFT, "clip": CLIP, "mid": Term(loss=FrameFeatures(student_tap="stage3", teacher_tap="stage2"))},
    ),
    ("ResNet-18 shift", ["S3D"], {"soft": SOFT, "frames": FRAMES}),
    ("MobileNetV4 shift", ["MViTv2-S"], {"soft": SOFT, "frames": FRAMES, "affinity": AFFINITY}),
    ("EfficientNet shift", ["Swin3D-T"], {"soft": SOFT, "frames": FRAMES}),
    ("RepViT shift", ["VideoMAE"], {"frames": FRAMES, "mid": Term(loss=FrameFeatures(teacher_tap="block1"))}),
    ("FastViT shift", ["TimeSformer"], {"frames": FRAMES, "affinity": AFFINITY}),
    ("TinyViT shift", ["V-JEPA 2"], {"frames": FRAMES, "clip": CLIP}),
    ("X3D", ["ViViT"], {"frames": FRAMES}),
    ("MoViNet", ["X-CLIP"], {"clip": CLIP, "frames": FRAMES}),
    ("MobileNetV3 attention", ["CLIP frames"], {"soft": SOFT, "frames": FRAMES, "clip": CLIP}),
    ("MobileNetV3 gru", ["DINOv2 frames"], {"frames": FRAMES, "map": Term(loss=FrameFeatures(teacher_tap="spatial"))}),
    ("MobileNetV3 conv", ["torchvision ResNet-18 frames"], {"soft": SOFT, "frames": FRAMES}),
    ("MobileNetV3 conv_stages", ["motion"], {"soft": SOFT, "frames": FRAMES}),
    ("CompactShift", ["mel"], {"soft": SOFT, "clip": CLIP}),
    ("CompactShift", ["AST"], {"frames": FRAMES}),
    ("CompactShift", ["class names"], {"clip": CLIP}),
    ("MobileNetV3 shift", ["own R3D-18"], {"frames": FRAMES, "clip": CLIP}),
    (
        "CompactShift causal",
        ["Conv3d", "motion"],
        {"soft": SOFT, "soft motion": replace(SOFT, teacher="motion"), "frames": replace(FRAMES, teacher="motion")},
    ),
    ("mel", ["Conv3d"], {"soft": SOFT, "clip": CLIP}),
]


@pytest.mark.parametrize(
    ("student_name", "teacher_names", "compared"), PAIRS, ids=lambda value: value if isinstance(value, str) else None
)
def test_a_pair_takes_a_training_step(
    student_name: str, teacher_names: Sequence[str], compared: dict[str, Term], originals: Path, noisy_set: Path
) -> None:
    first, *others = teacher_names
    names = {"teacher": first} | {name: name for name in others}
    terms = {"hard": Term(loss=CrossEntropy()), **compared}
    teachers = {name: Teacher(built(kind, originals), wanted_taps(terms, name)) for name, kind in names.items()}
    model = built(student_name, originals)
    student = Student(model, terms, teachers)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    held = [{key: value.clone() for key, value in one.model.state_dict().items()} for one in teachers.values()]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    videos = replace(read_manifest(noisy_set), classes=CLASSES)
    videos = replace(
        videos, videos=tuple(replace(video, label=CLASSES[number % 3]) for number, video in enumerate(videos.videos))
    )
    dataset = ClipDataset(videos, view_specs(model, teachers), augment=Augment())
    order = BatchOrder([dataset.label(k) for k in range(8)], batch_size=8, seed=0, steps=range(1))
    (batch,) = batches(dataset, order)
    student.train()
    targets = all_targets(teachers, batch)
    losses = Objective(terms)(student(batch.clips["student"]), targets, batch.label)
    assert set(losses) == {*terms, "total"}
    for name, loss in losses.items():
        assert loss.isfinite(), name
        assert loss > 0, name
    losses["total"].backward()
    learned = [key for key, parameter in student.named_parameters() if parameter.grad is None]
    assert [key for key in learned if "projections" in key] == []
    optimizer.step()
    after = student.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("model."))
    for one, was in zip(teachers.values(), held):
        assert all(torch.equal(was[key], value) for key, value in one.model.state_dict().items())
        assert all(parameter.grad is None for parameter in one.model.parameters())


def test_every_kind_of_teacher_is_in_a_pair() -> None:
    in_pairs = {name for _, teachers, _ in PAIRS for name in teachers}
    students = {student for student, _, _ in PAIRS}
    kinds = {"Conv3d", "R(2+1)D-18", "S3D", "MViTv2-S", "Swin3D-T", "VideoMAE", "TimeSformer", "ViViT", "V-JEPA 2"}
    kinds |= {"X-CLIP", "CLIP frames", "DINOv2 frames", "motion", "mel", "AST", "class names", "own R3D-18"}
    assert kinds <= in_pairs
    assert len(students) >= 12
    assert in_pairs | students <= set(EVERY)


def outputs(logits: list[list[float]], known: list[bool] | None = None) -> Outputs:
    return Outputs(torch.tensor(logits), known=None if known is None else torch.tensor(known))


def test_a_mixture_averages_probabilities_by_hand() -> None:
    # Two classes: 0.9/0.1 and 0.3/0.7 make 0.6/0.4; logits would make another mean.
    one = outputs([[torch.tensor(9.0).log().item(), 0.0]])
    two = outputs([[torch.tensor(3 / 7).log().item(), 0.0]])
    mixed = Mixture(of=("one", "two"))({"one": one, "two": two}, torch.tensor([0]))
    assert mixed.logits.softmax(dim=1)[0].tolist() == pytest.approx([0.6, 0.4])  # type: ignore[union-attr]


def test_a_mixture_by_confidence_by_hand() -> None:
    one = outputs([[torch.tensor(9.0).log().item(), 0.0]] * 2)
    two = outputs([[torch.tensor(3 / 7).log().item(), 0.0]] * 2)
    label = torch.tensor([1, UNLABELLED])
    mixed = Mixture(of=("one", "two"), weights="confidence")({"one": one, "two": two}, label)
    probs = mixed.logits.softmax(dim=1)  # type: ignore[union-attr]
    # Of class 1 they are 0.1 and 0.7 sure: shares 1/8 and 7/8; 0.9 / 8 + 7 * 0.3 / 8 = 0.375.
    assert probs[0].tolist() == pytest.approx([0.375, 0.625])
    # Without a label by exp(-entropy): entropies 0.3251 and 0.6109, shares 0.5710 and 0.4290.
    assert probs[1, 0].item() == pytest.approx(0.5710 * 0.9 + 0.4290 * 0.3, abs=1e-3)
    shares = torch.tensor([[0.0, 1.0], [float(UNLABELLED)] * 2])
    by_shares = Mixture(of=("one", "two"), weights="confidence")({"one": one, "two": two}, shares)
    torch.testing.assert_close(by_shares.logits, mixed.logits)


def test_who_says_nothing_of_a_clip_has_no_part_in_the_mixture() -> None:
    one, two = outputs([[2.0, 0.0]] * 3, [True, False, False]), outputs([[0.0, 2.0]] * 3, [True, True, False])
    mixed = Mixture(of=("one", "two"))({"one": one, "two": two}, torch.tensor([0, 0, 0]))
    assert mixed.known.tolist() == [True, True, False]  # type: ignore[union-attr]
    assert mixed.logits[0].tolist() == pytest.approx([torch.tensor(0.5).log().item()] * 2)  # type: ignore[index]
    torch.testing.assert_close(mixed.logits[1], torch.tensor([0.0, 2.0]).log_softmax(dim=0))  # type: ignore[index]


def test_a_mixture_of_teachers_that_are_both_sure_of_another_class_still_trusts_one_more() -> None:
    # Of class 1 they are e^-100 and e^-90 sure, both too little for a float: e^10 to 1.
    one, two = outputs([[100.0, 0.0, 0.0]]), outputs([[90.0, 0.0, 0.0]])
    mixed = Mixture(of=("one", "two"), weights="confidence")({"one": one, "two": two}, torch.tensor([1]))
    assert mixed.logits.softmax(dim=1)[0, 0].item() == pytest.approx(1)  # type: ignore[union-attr]


def test_what_is_said_of_an_unknown_clip_has_no_part_even_if_it_is_no_number() -> None:
    one, two = outputs([[2.0, 0.0]]), outputs([[float("nan"), 0.0]], [False])
    for weights in ("uniform", "confidence"):
        mixed = Mixture(of=("one", "two"), weights=weights)({"one": one, "two": two}, torch.tensor([0]))  # type: ignore[arg-type]
        torch.testing.assert_close(mixed.logits, torch.tensor([[2.0, 0.0]]).log_softmax(dim=1))


def test_terms_count_the_clips_that_both_know() -> None:
    label = torch.tensor([0, 1, 1])
    student, teacher = outputs([[1.0, 0.0]] * 3), outputs([[0.0, 1.0]] * 3, [True, False, True])
    terms = {"hard": Term(loss=CrossEntropy()), "soft": SOFT}
    losses = Objective(terms)(student, {"teacher": teacher}, label)
    alone = Objective(terms)(student.at(torch.tensor([0, 2])), {"teacher": outputs([[0.0, 1.0]] * 2)}, label[[0, 2]])
    torch.testing.assert_close(losses["soft"], alone["soft"])
    torch.testing.assert_close(losses["hard"], CrossEntropy()(student, None, label))  # all three count
    deaf = outputs([[0.0, 1.0]] * 3, [False] * 3)
    assert Objective(terms)(student, {"teacher": deaf}, label)["soft"] == 0


def test_mixtures_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two different teachers"):
        Mixture(of=("one", "one"))
    mix = {"both": Mixture(of=("one", "tow"))}
    with pytest.raises(ValueError, match=r"mixture 'both' is of 'tow', which is no single teacher.*did you mean 'two'"):
        check_terms({"soft": replace(SOFT, teacher="both")}, ["one", "two", "both"], mix)
    mix = {"both": Mixture(of=("one", "two"))}
    with pytest.raises(ValueError, match="compares features, and 'both' is a mixture"):
        check_terms({"frames": replace(FRAMES, teacher="both")}, ["one", "two", "both"], mix)


SEES = InputSpec(frames=4, size=32)
HEARS = SoundSpec(seconds=2.0)


def recipe(data: Path, **changes: object) -> Recipe:
    base = Recipe(
        data=Data(path=str(data), batch_size=6),
        student=CompactShift(width=8, input=SEES),
        objective={"hard": Term(loss=CrossEntropy())},
        optim=AdamW(steps=2, lr=1e-3, weight_decay=0.0, warmup=0.0, clip_norm=None),
        machine=Machine(device="cpu"),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_run_learns_to_listen_and_then_teaches_those_that_look(noisy_set: Path, tmp_path: Path) -> None:
    listens = recipe(noisy_set, student=MelNetwork(backbone="mobilenetv3_small_050", input=HEARS, mels=32))
    summary = train(listens, tmp_path / "ear", console=QUIET)
    assert summary["clips_without_sound"] == {"student": 4}  # two of six, in two steps
    scored = evaluate(tmp_path / "ear", read_manifest(noisy_set).split("train"), machine=Machine(device="cpu")).numbers
    assert scored["clips"] == 4
    assert [reason for reason in scored["skipped"] if reason.endswith("the video has no sound")] == scored["skipped"]
    assert len(scored["skipped"]) == 2
    looks = recipe(
        noisy_set,
        teachers={"ear": TrainedTeacher(checkpoint=str(tmp_path / "ear"))},
        objective={"hard": Term(loss=CrossEntropy()), "soft": replace(SOFT, teacher="ear")},
    )
    summary = train(looks, tmp_path / "eye", console=QUIET)
    assert summary["clips_without_sound"] == {"ear": 4}


def test_a_run_with_published_teachers_and_their_mixture(noisy_set: Path, originals: Path, tmp_path: Path) -> None:
    train(recipe(noisy_set, student=Motion(of=CompactShift(width=4, input=SEES))), tmp_path / "motion", console=QUIET)
    clip = HuggingFaceImages(source=str(originals / "clip"), input=SEES)
    whole = recipe(
        noisy_set,
        student=TimmVideo(backbone="mobilenetv3_small_050", temporal="gru", input=SEES),
        teachers={
            "pictures": PublishedTeacher(model=clip),
            "words": PublishedTeacher(model=ClassNames(source=str(originals / "clip"))),
            "motion": TrainedTeacher(checkpoint=str(tmp_path / "motion")),
            "both": Mixture(of=("pictures", "motion"), weights="confidence"),
        },
        objective={
            "hard": Term(loss=CrossEntropy()),
            "soft": replace(SOFT, teacher="both"),
            "frames": replace(FRAMES, teacher="pictures"),
            "words": replace(CLIP, teacher="words"),
        },
    )
    (tmp_path / "recipe.json").write_text(dump(whole))
    assert load(tmp_path / "recipe.json") == whole
    train(whole, tmp_path / "run", console=QUIET)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"hard", "soft", "frames", "words", "total"} <= set(logged[-1])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Motion(of=CompactShift(width=4, input=SEES)), "teacher 'one' is not trained: name the `weights`"),
        (
            Own(target="torchvision.models.video:r3d_18", input=SEES),
            r"class lists of teacher 'one' \(400\) and .* \(2\)",
        ),
    ],
)
def test_a_published_teacher_of_other_classes_is_refused(
    model: Motion | Own, said: str, noisy_set: Path, tmp_path: Path
) -> None:
    wrong = recipe(
        noisy_set,
        teachers={"one": PublishedTeacher(model=model)},
        objective={"soft": replace(SOFT, teacher="one")},
    )
    with pytest.raises(ValueError, match=said):
        train(wrong, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_published_teacher_that_numbers_its_classes_is_taken_to_have_the_datas(
    noisy_set: Path, tmp_path: Path
) -> None:
    torch.save(get_model("r3d_18", weights=None, num_classes=2).state_dict(), tmp_path / "mine.pth")
    mine = VideoResNet(name="r3d_18", input=SEES, weights=str(tmp_path / "mine.pth"))
    taught = recipe(
        noisy_set,
        teachers={"one": PublishedTeacher(model=mine)},
        objective={"soft": replace(SOFT, teacher="one")},
    )
    classes = read_manifest(noisy_set).classes
    with pytest.warns(UserWarning, match=f"numbers its 2 classes .* data's order, '{classes[0]}' to '{classes[1]}'"):
        summary = train(taught, tmp_path / "run", console=QUIET)
    assert summary["steps"] == 2


@pytest.mark.parametrize("name", ["class names", "X-CLIP"])
def test_a_student_that_tells_no_classes_apart_is_refused(
    name: str, noisy_set: Path, originals: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a student tells classes apart by .*, and \w+Model does not"):
        train(recipe(noisy_set, student=EVERY[name](originals)), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_set_without_any_sound_teaches_nobody_to_listen(drawn_set: Path, tmp_path: Path) -> None:
    listens = recipe(drawn_set, student=MelNetwork(backbone="mobilenetv3_small_050", input=HEARS, mels=32))
    with pytest.raises(ValueError, match="none of the first 12 clips has sound, and student listens"):
        train(listens, tmp_path / "ear", console=QUIET)


def test_a_student_of_other_classes_is_refused(noisy_set: Path, tmp_path: Path) -> None:
    wrong = recipe(noisy_set, student=Own(target="torchvision.models.video:r3d_18", input=SEES))
    with pytest.raises(ValueError, match=r"class lists of the student \(400\) and .* \(2\)"):
        train(wrong, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_tap_that_is_not_there_names_the_term_and_the_party(originals: Path) -> None:
    terms = {"frames": Term(loss=FrameFeatures(student_tap="stage9"))}
    teacher = Teacher(built("Conv3d", originals), {"frames": "frames"})
    with pytest.raises(
        ValueError, match=r"term 'frames' compares 'stage9' of 'student': .*no tap 'stage9'; did you mean"
    ):
        Student(built("CompactShift", originals), terms, {"teacher": teacher})


def test_a_teacher_without_classes_has_no_probabilities(noisy_set: Path, originals: Path, tmp_path: Path) -> None:
    wrong = recipe(
        noisy_set,
        teachers={"words": PublishedTeacher(model=ClassNames(source=str(originals / "clip")))},
        objective={"soft": replace(SOFT, teacher="words")},
    )
    with pytest.raises(ValueError, match="wants the class probabilities of teacher 'words', which has no classes"):
        train(wrong, tmp_path / "run", console=QUIET)
