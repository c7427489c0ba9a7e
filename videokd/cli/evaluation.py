"""`videokd evaluate`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.progress import Progress

from videokd.cli.options import CONSOLE, HowToRead, ListOptions, TrustOption
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.clips.pictures import MAX_PIXELS
from videokd.clips.views import ViewGrid
from videokd.evaluate import FRAME_ORDERS, Average, Evaluation, FrameOrder
from videokd.evaluate import evaluate as evaluate_model
from videokd.json_files import read_object
from videokd.leaks import trained_on
from videokd.machine import Machine
from videokd.models import is_named, named_model
from videokd.predictions import PREDICTIONS, Predictions, read_predictions
from videokd.protocols import protocol as protocol_called
from videokd.report.comparison import write_evaluation
from videokd.report.tables import terminal_table
from videokd.run_files import EVALUATION, read_evaluation
from videokd.run_folder import read_recipe

MANY_CLASSES = 30


def evaluate(
    model: tyro.conf.Positional[str],
    videos: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(name="list")] = None,
    how: HowToRead = ListOptions(),  # frozen
    split: str | None = "test",
    out: Path | None = None,
    protocol: str | None = None,
    temporal: int = 1,
    spatial: Literal[1, 3] = 1,
    average: Average = "probabilities",
    orders: tuple[FrameOrder, ...] = FRAME_ORDERS,
    calibrate_on: str | None = "val",
    teacher: Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    time_limit: float = 60.0,
    trust: TrustOption = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Scores a model on a list of videos and leaves evaluation.json and predictions.parquet in its folder.

    Args:
        model: Folder of a finished run, or of a model that was saved; or a published model: torchvision/r2plus1d_18,
            hf/MCG-NJU/videomae-base-finetuned-kinetics, hf/FOLDER.
        videos: Folder or list of videos, in any form of data/README.md; the run's own list if not given.
        how: How the list is read.
        split: Which split of the list; None takes every video.
        out: Folder for the results; the model's own if not given.
        protocol: Views and split as a data set's numbers are published: kinetics-10x3, kinetics-5x3, kinetics-4x3,
            ucf101, hmdb51, ssv2-1x1, ssv2-2x3... It stands for --split, --temporal and --spatial.
        temporal: Views over time, evenly spaced from the video's start to its end.
        spatial: 3 for squares at both ends and in the middle of the long side; 1 for the centred one.
        average: What is averaged over the views.
        orders: Of the frames, to see what of the accuracy comes from motion; "filmed" is always among them.
        calibrate_on: Split of the same list that a temperature is fitted on, if it has one; None fits none.
        teacher: Folder of the teacher, evaluated on the same videos; that of the run's recipe if not given.
        batch_size: Views at once.
        workers: Processes that decode.
        on_bad_video: Stop at a missing or broken video, or leave it out, named and counted.
        time_limit: Seconds that a worker may spend on a video.
        trust: Module, package or recipe file of your own whose code a run may name; give it once for each.
        machine: Device and precision.
    """
    named, folder = is_named(model), Path(model)
    if not named and not folder.is_dir():
        raise ValueError(f"no folder {model}: name that of a run, or a published model, torchvision/... or hf/...")
    if named and out is None:
        raise ValueError(f"name a folder for the results of {model} with --out")
    target = out or folder
    known = protocol_called(protocol) if protocol else None
    if known is not None:
        split, temporal, spatial = known.split, known.grid.temporal, known.grid.spatial
        if average != "probabilities":
            raise ValueError(f"--protocol {protocol} averages probabilities: leave --average {average} out")
    whole, fold = _list_of(folder, videos, how)
    manifest = whole.split(split)
    if known is not None:
        known.check(whole)
    grid = ViewGrid(temporal=temporal, spatial=spatial)
    setting = {"split": split, "protocol": {"name": protocol, "said": str(known), "fold": fold} if known else None}
    _refuse_to_replace(target, manifest, setting | {"views": [temporal, spatial, average]})
    # Before the work: what it says may be wrong with the run's own list.
    seen = None if named else trained_on(folder, manifest)
    if (folder / "recipe.json").is_file() and seen is None:
        CONSOLE.print(f"The list that {model} was trained on is gone: whether it knows these clips can't be told.")
    validation = None
    if calibrate_on is not None and calibrate_on != split and not manifest.multi_label:
        has = any(video.split == calibrate_on for video in whole.videos)
        validation = whole.split(calibrate_on) if has else None
        if validation is not None and not any(video.names for video in validation.videos):
            CONSOLE.print(f"No temperature is fitted: no clip of split {calibrate_on} has a label.")
            validation = None
    said = _teacher_of(folder, teacher, manifest)
    clips = len(manifest.videos) + (len(validation.videos) if validation else 0)
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("evaluating", total=clips)
        found = evaluate_model(
            named_model(model, classes=manifest.classes) if named else folder,
            manifest,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video=on_bad_video,
            time_limit=time_limit,
            grid=grid,
            average=average,
            orders=orders,
            calibrate_on=validation,
            teacher=said,
            trust=trust,
            advance=lambda clips: progress.advance(bar, clips),
        )
    numbers = {**found.numbers, **setting, "model": model, "trained_on": None if seen is None else len(seen)}
    path = write_evaluation(target, Evaluation(numbers, found.predictions))
    _print(numbers, path)


def _print(found: Mapping[str, Any], path: Path) -> None:
    several = "map" in found
    named = (
        {"map": "mean average precision"}
        if several
        else {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean over classes"}
    )
    rows = [
        (called, f"{100 * found[score]:.1f}", _between(found["intervals"][score]))
        for score, called in named.items()
        if found[score] is not None
    ]
    views = found["views"]
    CONSOLE.print(
        f"{found['model']} on {found['clips']} clips ({found['groups']} sources) of {found['list']}, "
        f"{found['split'] or 'all splits'}; {views['temporal']} x {views['spatial']} views, {views['average']} averaged"
    )
    if found["protocol"]:
        CONSOLE.print(f"protocol: {found['protocol']['said']}")
    CONSOLE.print(terminal_table(("score", "%", "95 % interval, over sources"), rows))
    if found["calibration"]:
        CONSOLE.print(_calibration(found["calibration"]))
    motion = {order: share for order, share in found["temporal"].items() if order != "filmed"}
    if motion:
        CONSOLE.print("frames " + ", ".join(f"{order} {share:.1%}" for order, share in motion.items()))
    if found["against"]:
        against = found["against"]
        CONSOLE.print(
            f"with its teacher, on {against['clips']} clips: agrees on {against['agreement']:.1%}, "
            + _of(against["retention"], "is right on {} of what the teacher is right on, ")
            + _of(against["agreement_where_teacher_wrong"], "says the same on {} of its errors, ")
            + f"KL {against['kl']:.3f}"
        )
    if found["curve"]:
        rows = [
            (f"{one['temporal']} x {one['spatial']}", f"{one['macs'] / 1e9:.3g}", f"{100 * one['top1']:.1f}")
            for one in found["curve"]
        ]
        CONSOLE.print(terminal_table(("views", "GMAC a video", "top-1 %"), rows))
    _print_classes(found, several=several)
    if found["trained_on"]:
        known = f"{found['trained_on']} of these {found['clips']} clips, or others of their sources"
        CONSOLE.print(f"Careful: the model was trained on {known}.")
    for reason in found["skipped"]:
        CONSOLE.print(f"skipped: {reason}")
    before = found["skipped_in_training"]
    trained = f"; {before} videos were left out of its training" if before else ""
    unlabelled = f"; {found['unlabelled']} clips have no label and are not scored" if found["unlabelled"] else ""
    CONSOLE.print(f"{len(found['skipped'])} videos skipped{unlabelled}{trained}. {path}, and {PREDICTIONS} beside it")


def _print_classes(found: Mapping[str, Any], *, several: bool) -> None:
    if several:
        rows = [(name, f"{100 * share:.1f}") for name, share in found["average_precision"].items()]
        heads: tuple[str, ...] = ("class", "average precision %")
    else:
        rows = [
            (name, str(one["clips"]), *(_percent(one[score]) for score in ("accuracy", "precision", "f1")))
            for name, one in found["per_class"].items()
        ]
        heads = ("class", "clips", "accuracy %", "precision %", "F1 %")
    if len(rows) > MANY_CLASSES:
        CONSOLE.print(f"{len(rows)} classes: theirs are in {EVALUATION}")
    else:
        CONSOLE.print(terminal_table(heads, rows))


def _calibration(found: Mapping[str, Any]) -> str:
    said = f"calibration: NLL {found['nll']:.3f}, Brier {found['brier']:.3f}, ECE {100 * found['ece']:.1f} %"
    if found["scaled"] is None:
        return said + "; no temperature fitted, for want of a validation split"
    scaled = found["scaled"]
    return said + (
        f"; at temperature {found['temperature']:.2f} (fitted on {found['fitted_on']}) "
        f"NLL {scaled['nll']:.3f}, Brier {scaled['brier']:.3f}, ECE {100 * scaled['ece']:.1f} %"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _between(interval: list[float] | None) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "one source: none"


def _of(share: float | None, sentence: str) -> str:
    return sentence.format(f"{share:.1%}") if share is not None else ""


def _list_of(folder: Path, videos: str | None, how: ListOptions) -> tuple[Manifest, int]:
    """The list to score on, and which of its official splits that is."""
    if videos is not None:
        return how.read(videos), how.fold
    if not (folder / "recipe.json").is_file():
        raise ValueError(f"{folder} has no recipe.json to take the list from: name one after it")
    own = own_list(folder)
    if how.max_pixels != MAX_PIXELS:
        own = replace(own, max_pixels=how.max_pixels)
    return own, read_recipe(folder)["data"].get("fold") or 1


def _refuse_to_replace(folder: Path, manifest: Manifest, setting: Mapping[str, Any]) -> None:
    """Scores on other videos, or by other views, are not lost without a word."""
    path = folder / EVALUATION
    if not path.is_file():
        return
    old = read_evaluation(folder)
    views = old.get("views", {})
    before = {
        "list": old.get("list"),
        "split": old.get("split"),
        "protocol": old.get("protocol"),
        "views": [views.get(name) for name in ("temporal", "spatial", "average")],
    }
    now = {"list": str(manifest.source.resolve()), **setting}
    for name, value in now.items():
        if before[name] != value:
            raise ValueError(f"{path} holds scores of another {name} ({before[name]}, now {value}): name an --out")


def _teacher_of(folder: Path, teacher: Path | None, scored: Manifest) -> Predictions | None:
    """What the teacher said of the same videos; None if its recipe names no trained one, it was not evaluated on them,
    or it tells other classes apart."""
    if teacher is not None:
        return read_predictions(teacher)
    if not (folder / "recipe.json").is_file():
        return None
    sources = [one.get("checkpoint") for one in read_recipe(folder).get("teachers", {}).values()]
    if len(sources) != 1 or sources[0] is None or not (Path(sources[0]) / PREDICTIONS).is_file():
        return None
    said = read_predictions(sources[0])
    classes = read_object(folder / "model.json").get("classes")
    if not isinstance(classes, list) or sorted(said.classes) != sorted(map(str, classes)):
        CONSOLE.print(f"Not compared with its teacher {sources[0]}, which tells other classes apart.")
        return None
    if set(said.ids).isdisjoint(video.id for video in scored.videos):
        CONSOLE.print(f"Not compared with its teacher {sources[0]}, which was evaluated on other videos.")
        return None
    return said


def own_list(run: Path) -> Manifest:
    """Return the list that a run was made with."""
    data = read_recipe(run)["data"]
    found = read_manifest(
        data["path"], root=data.get("root"), fold=data.get("fold") or 1, class_names=data.get("class_names")
    )
    return replace(found, max_pixels=data.get("max_pixels", MAX_PIXELS))
