"""`videokd COMMAND`: thin, one function per command."""

import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import av
import torch
import tyro
from rich.progress import Progress, track

import videokd
from videokd import quickstart as quickstarts
from videokd import recipe as recipes
from videokd.assembly import parties
from videokd.clips import checking, synthetic
from videokd.clips.backends import Backend, require
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.clips.packing import Packing
from videokd.clips.packing import pack as pack_videos
from videokd.config import nearest
from videokd.distill import check_taps
from videokd.evaluate import evaluate as evaluate_model
from videokd.machine import Machine, terminal
from videokd.models import Model, catalogue
from videokd.models.cost import cost
from videokd.models.own import OwnModel
from videokd.recipe import Recipe
from videokd.report import catalogue as loss_catalogue
from videokd.report.comparison import arms, differing_recipes, read_evaluation, trios, write_evaluation
from videokd.report.data_check import check_lines
from videokd.report.tables import COLUMNS, arm_rows, gain_lines, terminal_table
from videokd.report.taps import MODULE_COLUMNS, TAP_COLUMNS, describe_input, module_rows, tap_rows
from videokd.run_folder import write_text
from videokd.train import Interrupted
from videokd.train import train as train_recipe

CONSOLE = terminal()


def quickstart(
    out: Path = Path("runs/quickstart"),
    seeds: int = 3,
    fast: bool = False,
    regime: quickstarts.Regime = "transfer-set",
    resume: bool = False,
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Draws videos, trains a teacher, a student alone and a student distilled, and compares them.

    Args:
        out: Folder for everything that it makes.
        seeds: Pairs of students.
        fast: Half the clips and two thirds of the steps.
        regime: "same-data" also runs the students with all the labels that the teacher has.
        resume: Go on with an interrupted quickstart in the same folder.
        machine: Device and precision.
    """
    scale = quickstarts.FAST if fast else quickstarts.Scale()
    quickstarts.quickstart(
        out, seeds=seeds, regime=regime, scale=scale, resume=resume, machine=machine, console=CONSOLE
    )


@dataclass(frozen=True)
class _ListOptions:
    root: Path | None = None
    """Folder that the list's paths start from; the list's own if not given."""
    fold: int = 1
    """Which official split, of a set that has several."""
    class_names: Path | None = None
    """File with a class name a line, for lists whose labels are numbers."""

    def read(self, videos: str, *, allow_leaks: bool = False) -> Manifest:
        """The list."""
        return read_manifest(
            videos, root=self.root, fold=self.fold, class_names=self.class_names, allow_leaks=allow_leaks
        )


_HowToRead = Annotated[_ListOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class _TrainCommand:
    out: Path
    """Folder of the run; must hold none yet."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


_TRAIN_USAGE = (
    "usage: videokd train RECIPE [--out DIR] [--FIELD VALUE ...], or videokd train --resume RUN; "
    "videokd train RECIPE --help lists the recipe's fields"
)
_TAPS_USAGE = (
    "usage: videokd taps RECIPE [--modules] [--FIELD VALUE ...]; --modules lists every module of a network of your "
    "own, to choose taps from"
)


def _wants_usage(arguments: Sequence[str], usage: str) -> bool:
    """Whether help was asked for, and is shown.

    Raises:
        ValueError: with the usage, if no recipe is named.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage)
        return True
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(usage)
    return False


def train(arguments: Sequence[str]) -> None:
    """`videokd train RECIPE [--out DIR] [--FIELD VALUE ...]`, or `videokd train --resume RUN [--FIELD VALUE ...]`."""
    resume = arguments[:1] == ["--resume"]
    source, fields = (arguments[1:2], arguments[2:]) if resume else (arguments[:1], arguments[1:])
    if _wants_usage(source, _TRAIN_USAGE):
        return
    path = Path(source[0])
    if resume and not (path / "recipe.json").is_file():
        raise ValueError(f"{path} holds no run to resume (no recipe.json)")
    command = tyro.cli(
        _TrainCommand,
        default=_TrainCommand(
            out=path if resume else Path("runs") / path.stem,
            recipe=recipes.load(path / "recipe.json" if resume else path),
        ),
        args=list(fields),
        prog=f"videokd train {'--resume ' if resume else ''}{path}",
        description="Trains the recipe's student. Every field of the recipe can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    run = path if resume else command.out
    summary = train_recipe(command.recipe, run, resume=resume, console=CONSOLE)
    score = "" if summary["val_top1"] is None else f", validation top-1 {summary['val_top1']:.1%}"
    skipped = f", {len(summary['skipped'])} videos skipped" if summary["skipped"] else ""
    for party, clips in summary.get("clips_without_sound", {}).items():
        skipped += f", {clips} clips without sound for {party}"
    CONSOLE.print(
        f"{run}: {summary['steps']} steps in {summary['seconds']:.0f} s, "
        f"{summary['clips_per_second']:.0f} clips/s{score}{skipped}",
    )


def evaluate(
    run: tyro.conf.Positional[Path],
    videos: Annotated[str | None, tyro.conf.arg(name="list")] = None,
    how: _HowToRead = _ListOptions(),  # frozen
    split: str | None = "test",
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    time_limit: float = 60.0,
    trust: tuple[str, ...] = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Scores a trained model on a list of videos and leaves evaluation.json in its folder.

    Args:
        run: Folder of a finished run, or of a model that was saved.
        videos: Folder or list of videos, in any form of data/README.md; the run's own list if not given.
        how: How the list is read.
        split: Which split of the list; None takes every video.
        batch_size: Clips at once.
        workers: Processes that decode.
        on_bad_video: Stop at a missing or broken video, or leave it out, named and counted.
        time_limit: Seconds that a worker may spend on a video.
        trust: Packages and modules of your own that the network is made by.
        machine: Device and precision.
    """
    if not run.is_dir():
        raise ValueError(f"no folder {run}: name that of a run")
    if videos is None:
        if not (run / "recipe.json").is_file():
            raise ValueError(f"{run} has no recipe.json to take the list from: name one with --list")
        videos = _plain_recipe(run)["data"]["path"]
        manifest = _own_list(run).split(split)
    else:
        manifest = how.read(videos).split(split)
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("evaluating", total=2 * len(manifest.videos))
        found = evaluate_model(
            run,
            manifest,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video=on_bad_video,
            time_limit=time_limit,
            trust=trust,
            advance=lambda clips: progress.advance(bar, clips),
        )
    found |= {"split": split, "trained_on": _trained_on(run, manifest)}
    path = write_evaluation(run, found)
    CONSOLE.print(
        f"top-1 {found['top1']:.1%} on {found['clips']} clips of {videos} ({split or 'all splits'}); "
        f"mean over classes {found['mean_class_accuracy']:.1%}; frames shuffled {found['shuffled_top1']:.1%}",
    )
    rows = [(name, f"{100 * value:.1f}") for name, value in found["per_class"].items()]
    CONSOLE.print(terminal_table(("class", "top-1 %"), rows))
    if found["trained_on"]:
        CONSOLE.print(f"Careful: the run was trained on {found['trained_on']} of these {len(manifest.videos)} clips.")
    for reason in found["skipped"]:
        CONSOLE.print(f"skipped: {reason}")
    before = found["skipped_in_training"]
    trained = f"; {before} videos were left out of its training" if before else ""
    CONSOLE.print(f"{len(found['skipped'])} videos skipped{trained}. Confusion and predictions: {path}")


def compare(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Prints evaluated runs beside each other, what distillation gained, and the recipe fields that differ.

    Args:
        runs: Folders of runs; run `videokd evaluate` on each of them first.
    """
    if not runs:
        raise ValueError("name at least one run folder")
    found = {str(run): read_evaluation(run) for run in runs}
    if len({(one["list"], one["split"], *sorted(one["predicted"])) for one in found.values()}) > 1:
        raise ValueError("the runs were scored on different clips: evaluate them on one list and split")
    rows = [
        (
            name,
            f"{100 * one['top1']:.1f}",
            f"{100 * one['shuffled_top1']:.1f}",
            f"{one['params']:,}",
            f"{one['macs'] / 1e6:.2f}",
        )
        for name, one in found.items()
    ]
    CONSOLE.print(terminal_table(("run", "top-1 %", "shuffled %", "params", "MMAC/clip"), rows))
    for name, one in found.items():
        debt = {"scored": len(one["skipped"]), "trained on": one.get("skipped_in_training") or 0}
        if any(debt.values()):
            CONSOLE.print(f"{name}: not {' and not '.join(f'{how}: {n} videos' for how, n in debt.items() if n)}")
    for teacher, alone, distilled in trios(runs):
        report = arms(teacher, alone, distilled)
        CONSOLE.print(terminal_table(COLUMNS, arm_rows(report), title=f"{len(alone)} paired seeds"))
        for line in gain_lines(report):
            CONSOLE.print(line)
    fields = differing_recipes(runs)
    if fields:
        CONSOLE.print("\nRecipe fields that differ:")
    for name, values in fields.items():
        holders: dict[str, list[str]] = {}
        for run, value in zip(runs, values, strict=True):
            holders.setdefault(_short(value), []).append(run.name)
        CONSOLE.print(f"  {name}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in holders.items()))


def taps(arguments: Sequence[str]) -> None:
    """`videokd taps RECIPE [--modules] [--FIELD VALUE ...]`: what a recipe's models hand out, found by a dry run."""
    modules = "--modules" in arguments
    rest = [argument for argument in arguments if argument != "--modules"]
    if _wants_usage(rest, _TAPS_USAGE):
        return
    recipe = tyro.cli(
        tyro.conf.AvoidSubcommands[Recipe],
        default=recipes.load(rest[0]),
        args=rest[1:],
        prog=f"videokd taps {rest[0]}",
        description="What the recipe's student and teachers hand out.",
    )
    missing = []
    found: dict[str, Model[Any]] = {}
    for party, build in parties(recipe).items():
        try:
            model = found[party] = build()
        except ValueError as error:
            missing.append(f"{party}: {error}")
            continue
        title = f"{party}: {type(model.config).__name__}, {describe_input(model.input)}"
        rows = tap_rows(model)
        CONSOLE.print(terminal_table(TAP_COLUMNS[: len(rows[0])], rows, title=title, justify="left"))
        if modules and isinstance(model, OwnModel):
            title = f"{party}: modules"
            CONSOLE.print(terminal_table(MODULE_COLUMNS, module_rows(model), title=title, justify="left"))
    if modules and not any(isinstance(model, OwnModel) for model in found.values()):
        CONSOLE.print("--modules lists those of a network of your own (`Own`), and there is none in this recipe")
    if missing:
        raise ValueError("; ".join(missing))
    check_taps(recipe.objective, found)


def models(
    clips: int = 10,
    crops: int = 3,
) -> None:
    """Prints what the built-in architectures cost at the inputs that they have by default.

    Args:
        clips: Views in time of a video when it is tested.
        crops: Views in space.
    """
    if clips < 1 or crops < 1:
        raise ValueError(f"clips and crops are at least 1, got {clips} and {crops}")
    groups = {"students": catalogue.STUDENTS, "teachers": catalogue.TEACHERS}
    try:
        groups["teachers from Hugging Face"] = catalogue.huggingface()
    except ValueError as error:
        CONSOLE.print(str(error))
    columns = ("model", "input", "params, M", "GMAC/clip", f"GMAC x {clips * crops} views")
    for title, configs in groups.items():
        rows = []
        for name, config in track(configs.items(), title, console=CONSOLE, transient=True):
            model = config.build([str(number) for number in range(400)], pretrained=False)
            price = cost(model)
            giga = price.macs / 1e9
            shown = describe_input(model.input)
            rows.append((name, shown, f"{price.params / 1e6:.2f}", f"{giga:.2f}", f"{giga * clips * crops:.1f}"))
        CONSOLE.print(terminal_table(columns, rows, title=title))
    CONSOLE.print(
        "Parameters with a head of 400 classes. Multiply-accumulates of convolutions and matrix products; what is "
        "printed as FLOPs is the same number in some papers and twice it in others."
    )


def losses(name: tyro.conf.Positional[str | None] = None) -> None:
    """Prints the losses and weightings with their papers and defaults; of one (such as DKD), all there is to say."""
    if name is not None:
        for line in loss_catalogue.described(name):
            CONSOLE.print(line)
        return
    shown = loss_catalogue.method_recipes()
    for title, classes in loss_catalogue.groups().items():
        rows = loss_catalogue.rows(classes, shown)
        CONSOLE.print(terminal_table(loss_catalogue.COLUMNS, rows, title=title, justify="left"))
    CONSOLE.print(
        "videokd losses NAME says what one does; videokd train RECIPE trains with it on the quickstart's data."
    )


def doctor() -> None:
    """Says what works on this machine."""
    rows = [("videokd", videokd.__version__), ("Python", f"{platform.python_version()} on {platform.platform()}")]
    for package in ("torch", "torchvision", "timm", "av", "numpy", "einops", "safetensors", "tyro"):
        rows.append((package, importlib.metadata.version(package)))
    for extra, package in (("hf", "transformers"), ("flow", "opencv-python-headless")):
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, f"not installed: pip install 'videokd[{extra}]'"))
    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    rows.append(("FFmpeg libraries in av", libraries))
    decoders = ("h264", "hevc", "vp9", "av1", "mpeg4")
    rows.append(("decoders", ", ".join(name for name in decoders if name in av.codecs_available)))
    for backend in get_args(Backend):
        rows.append((f"reads videos: {backend}", _works(backend)))
    rows.append(("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"))
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    rows.append(("GPU", ", ".join(names) or "none: everything runs on the CPU"))
    CONSOLE.print(terminal_table(("what", "here"), rows, justify="left"))


def synth(
    out: tyro.conf.Positional[Path],
    train: int = 1200,
    val: int = 240,
    test: int = 1200,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Draws the synthetic set of twelve motions as H.264 files, with a manifest that knows what is in them.

    Args:
        out: Folder to make.
        train: Training clips.
        val: Validation clips.
        test: Test clips.
        seed: Of the drawings.
        workers: Processes.
    """
    path = synthetic.write_set(out, counts={"train": train, "val": val, "test": test}, seed=seed, workers=workers)
    CONSOLE.print(f"{train + val + test} videos, listed in {path}")


def check(
    videos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    out: Path | None = None,
    how: _HowToRead = _ListOptions(),  # frozen
    depth: checking.Depth = "decode",
    workers: int = os.cpu_count() or 1,
    time_limit: float = 60.0,
) -> None:
    """Reads every video of a list, says what is wrong, and writes a manifest that training can rely on.

    Stopped and started again, it goes on with the files that it has not seen yet.

    Args:
        videos: Folder or list of videos, in any form of data/README.md.
        out: Manifest to write, a .jsonl; NAME.checked.jsonl in this folder if not given.
        how: How the list is read.
        depth: Decode every frame, or list the packets and decode the first frame.
        workers: Processes.
        time_limit: Seconds for a video; one that takes longer counts as broken.
    """
    out = out or Path(f"{Path(videos).stem}.checked.jsonl")
    if out.suffix != ".jsonl":
        raise ValueError(f"the manifest is a .jsonl file, not {out}")
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another --out")
    manifest = how.read(videos, allow_leaks=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, found = out.with_name(out.name + ".partial-check"), []
    with Progress(*Progress.get_default_columns(), console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("checking", total=len(manifest.videos))
        try:
            for one in checking.check(manifest, depth=depth, workers=workers, time_limit=time_limit, partial=partial):
                found.append(one)
                progress.advance(bar)
        except KeyboardInterrupt:
            CONSOLE.print(f"{len(found)} of {len(manifest.videos)} videos checked; the same command goes on from there")
            raise
    checking.write_checked(manifest, found, out)
    result = checking.report(manifest, found)
    write_text(out.with_suffix(".report.json"), json.dumps(result, indent=2) + "\n")
    partial.unlink(missing_ok=True)
    for line in check_lines(result, checking.problems(result)):
        CONSOLE.print(line)
    CONSOLE.print(f"{out}: the manifest, with its frame table and report beside it. Train on it: --data.path {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "evaluate": evaluate,
    "compare": compare,
    "models": models,
    "losses": losses,
    "doctor": doctor,
}


def pack(
    videos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    out: Path,
    packing: Annotated[Packing, tyro.conf.arg(name="")],
    how: _HowToRead = _ListOptions(),  # frozen
    shard_mb: int = 512,
    workers: int = os.cpu_count() or 1,
    time_limit: float = 600.0,
    on_bad_video: Literal["error", "skip"] = "error",
) -> None:
    """Packs the videos of a list into tar shards that are smaller and faster to read.

    Stopped and started again, it goes on after the last whole shard.

    Args:
        videos: Folder or list of videos, in any form of data/README.md.
        out: Folder of the packed set; train on it with --data.path OUT.
        packing: How videos are packed.
        how: How the list is read.
        shard_mb: Megabytes at which a shard is closed.
        workers: Processes.
        time_limit: Seconds for a video.
        on_bad_video: Stop at a video that can't be read, or leave it out, named and counted.
    """
    manifest = how.read(videos)
    with Progress(*Progress.get_default_columns(), console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("packing", total=len(manifest.videos))
        left_out = pack_videos(
            manifest,
            out,
            packing,
            shard_mb=shard_mb,
            workers=workers,
            time_limit=time_limit,
            on_bad_video=on_bad_video,
            advance=lambda: progress.advance(bar),
        )
    for reason in left_out:
        CONSOLE.print(f"left out: {reason}")
    shards = sorted(out.glob("*.tar"))
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    CONSOLE.print(
        f"{len(manifest.videos) - len(left_out)} videos in {len(shards)} shards of {megabytes:.1f} MB together, "
        f"{len(left_out)} left out. Train on them: --data.path {out}"
    )


DATA_COMMANDS: dict[str, Callable[..., None]] = {"check": check, "pack": pack, "synth": synth}

USAGE = """\
usage: videokd COMMAND

  quickstart            draw videos, train teacher, student alone and student distilled, compare them
  train RECIPE          run a recipe (train --resume RUN goes on with an interrupted one)
  evaluate RUN          score a trained model on held-out videos
  compare RUN...        evaluated runs beside each other
  taps RECIPE           what a recipe's student and teachers hand out, for losses to compare
  losses [NAME]         the losses and weightings, with papers and defaults
  models                the built-in architectures: parameters and cost
  data check LIST       read every video of a list, say what is wrong, write a manifest
  data pack LIST        pack a list's videos into tar shards that are faster to read
  data synth OUT        draw the synthetic set
  doctor                what works on this machine

videokd COMMAND --help says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _run(arguments)
    except BrokenPipeError:
        # Whoever read has read enough (`| head`); Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Interrupted as stop:
        print(f"videokd: {stop}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"videokd: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("videokd: stopped", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("train", "taps"):
        (train if command == "train" else taps)(rest)
    elif command in COMMANDS:
        tyro.cli(COMMANDS[command], args=rest, prog=f"videokd {command}")
    elif command == "data" and rest and rest[0] in DATA_COMMANDS:
        tyro.cli(DATA_COMMANDS[rest[0]], args=rest[1:], prog=f"videokd data {rest[0]}")
    elif command in ("-h", "--help"):
        print(USAGE, end="")
    else:
        known = [*COMMANDS, "train", "taps", *(f"data {name}" for name in DATA_COMMANDS)]
        wrong = " ".join(arguments[:2] if command == "data" else arguments[:1])
        said = f"videokd: no command {wrong!r}{nearest(wrong, known)}\n" if command else ""
        print(f"{said}{USAGE}", end="", file=sys.stderr)
        return 2
    return 0


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as a user reads it, without the line of code that it came from."""
    print(f"videokd: note: {message}", file=sys.stderr)


def _plain_recipe(run: Path) -> Any:
    # As data alone: looking at somebody's run must not import their code.
    path = run / "recipe.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _own_list(run: Path) -> Manifest:
    """The list that a run was made with."""
    data = _plain_recipe(run)["data"]
    return read_manifest(
        data["path"], root=data.get("root"), fold=data.get("fold", 1), class_names=data.get("class_names")
    )


def _trained_on(run: Path, scored: Manifest) -> int:
    """How many of the scored clips the run was trained on."""
    if not (run / "recipe.json").is_file():
        return 0
    data = _plain_recipe(run)["data"]
    if not Path(data["path"]).exists():
        return 0
    trained = {video.path.resolve() for video in _own_list(run).split(data["train_split"]).videos}
    return sum(video.path.resolve() in trained for video in scored.videos)


def _works(backend: Backend) -> str:
    try:
        return str(getattr(require(backend), "__version__", "yes"))
    except ValueError as error:
        return str(error)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "loss" in value:
        value = value["loss"]
    text = str(value["type"]).rpartition(":")[2] if isinstance(value, dict) and "type" in value else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    sys.exit(main())
