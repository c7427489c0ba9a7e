"""`videokd inside`."""

import os
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.progress import Progress

from videokd import inside as insides
from videokd.arms import TEACHER
from videokd.cli.evaluation import own_list
from videokd.cli.options import CONSOLE, TrustOption
from videokd.clips.manifest import Manifest
from videokd.machine import Machine
from videokd.report.subject import Subject, subjects
from videokd.report.tables import terminal_table
from videokd.run_files import read_evaluation
from videokd.run_folder import read_recipe


def inside(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    clips: int = 256,
    batch_size: int = 16,
    workers: int = 0,
    trust: TrustOption = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Looks into students and their teacher: similarity of features, saliency over space and time, what can be read
    from the features of a synthetic set. Leaves inside.json, which `videokd report` shows.

    Args:
        folders: A study, or runs with their teacher's: a distilled one, and perhaps the same student alone.
        clips: How many of the scored clips are looked at on each list.
        batch_size: Clips at once, 4 or more.
        workers: Processes that decode.
        trust: Module, package or recipe file of your own whose code a run may name; give it once for each.
        machine: Device.
    """
    found = subjects(folders)
    if len(found) != 1:
        raise ValueError(f"{len(found)} things at once: name one study, or runs of one student")
    (subject,) = found
    folds = _folds(subject)
    target = folders[0] if subject.is_study else Path(folds[0].arms[list(folds[0].arms)[-1]][0])
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("looking", total=insides.steps(folds, clips=clips))
        seen = insides.look(
            folds,
            clips=clips,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video="skip",
            trust=trust,
            advance=lambda done: progress.advance(bar, done),
        )
    looked = [
        *(run for fold in folds for runs in fold.arms.values() for run in runs),
        *(fold.teacher for fold in folds),
    ]
    # Relative to the file, so that it is found when the runs are moved together.
    runs = sorted({os.path.relpath(Path(run).resolve(), target.resolve()) for run in looked})
    path = insides.write(target, {**seen, "runs": runs})
    saliency = seen["saliency"]
    if saliency:
        rows = [
            (arm, *(f"{one[name]:.2f}" if one else "-" for name in ("spearman", "iou")))
            for arm, one in saliency["agreement"].items()
        ]
        CONSOLE.print(terminal_table(("saliency against the teacher's", "Spearman", "IoU of the top 20 %"), rows))
    for sentence in (*seen["notes"], *seen["skipped"]):
        CONSOLE.print(sentence)
    CONSOLE.print(f"{path}; videokd report {' '.join(map(str, folders))} shows it")


def _folds(subject: Subject) -> list[insides.Fold]:
    """The subject's students beside their teachers, by list."""
    students = {name: arm for name, arm in subject.arms.items() if name != TEACHER}
    teachers = list(subject.arms[TEACHER].runs) if TEACHER in subject.arms else []
    numbers = sorted({run.pair[0] for arm in students.values() for run in arm.runs if run.pair is not None})
    folds = []
    for place, number in enumerate(numbers):
        arms: dict[str, Sequence[Path]] = {
            name: [run.path for run in arm.runs if run.pair is not None and run.pair[0] == number]
            for name, arm in students.items()
        }
        first = next(iter(arms.values()))[0]
        teacher = teachers[place if len(teachers) > 1 else 0].path if teachers else _teacher_of(arms)
        videos, fit = _videos(first)
        folds.append(insides.Fold(teacher=teacher, arms=arms, videos=videos, fit=fit))
    if not folds:
        raise ValueError(f"{subject.command} holds no student beside its teacher: name a distilled run, or a study")
    return folds


def _teacher_of(arms: dict[str, Sequence[Path]]) -> Path:
    """The one trained teacher that a recipe names."""
    named = {
        str(source["checkpoint"])
        for runs in arms.values()
        for run in runs
        for source in read_recipe(run).get("teachers", {}).values()
        if source.get("checkpoint") is not None
    }
    if len(named) != 1:
        raise ValueError(f"features are compared with one trained teacher's, and the runs have {len(named)}")
    return Path(named.pop())


def _videos(run: Path) -> tuple[Manifest, Manifest | None]:
    """What a run is scored on, and other videos that it was not trained on either."""
    whole = own_list(run)
    split = read_evaluation(run).get("split")
    validation = read_recipe(run)["data"].get("val_split")
    return whole.split(split), None if validation is None else whole.split(validation)
