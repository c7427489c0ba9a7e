"""`videokd bench` and `videokd bench compare`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from videokd.bench.benchmark import PARTS, Part, Plan, Stopped, benchmark
from videokd.bench.comparing import COLUMNS as COMPARED
from videokd.bench.comparing import compare as compare_results
from videokd.bench.comparing import comparison_rows
from videokd.bench.contenders import Patience
from videokd.bench.derived import (
    NETWORK_COLUMNS,
    SPEED_COLUMNS,
    STAGE_COLUMNS,
    WALL,
    footnotes,
    network_rows,
    speed_rows,
    stage_rows,
)
from videokd.bench.results import Results, read_results, write_results
from videokd.bench.stages import chosen
from videokd.bench.subjects import subject
from videokd.bench.variants import Variant
from videokd.cli.options import CONSOLE, HowToRead, ListOptions, TrustOption
from videokd.clips.manifest import Manifest, is_url
from videokd.interruption import Interruption, deferred
from videokd.machine import Machine
from videokd.recipe import Recipe
from videokd.report.speed.page import write_speed_page
from videokd.report.tables import terminal_table
from videokd.text import to_stderr

_SLOWER = 3
"""The exit code of `bench compare` then; 1 is what errors have."""


def bench(
    models: tyro.conf.Positional[tuple[str, ...]],
    out: Path = Path("runs") / "bench",
    data: str | None = None,
    how: HowToRead = ListOptions(),  # frozen
    split: str | None = None,
    clips: int = 64,
    parts: tuple[Part, ...] = PARTS,
    variants: tuple[Variant, ...] | None = None,
    batch_size: int | None = None,
    sweep: tuple[int, ...] = (),
    tf32: bool = False,
    step_batch_size: int | None = None,
    workers: int = 0,
    views: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    patience: Annotated[Patience, tyro.conf.arg(name="")] = Patience(),  # noqa: B008  # frozen
    trust: TrustOption = (),
) -> None:
    """Times networks and all that is around them, and leaves bench.json, a page and plots.

    `videokd bench compare OLD NEW` says whether something became slower, `videokd bench page RESULT...` puts several
    results on one page.

    Args:
        models: Names of architectures (`videokd models`; torchvision/r2plus1d_18, hf/FOLDER), folders of runs or saved
            models, exported files (.onnx, .pt2), or a recipe: a recipe or run brings its teachers.
        out: Folder for the results.
        data: Folder or list of videos to decode, in any form of data/README.md; the recipe's list if not given, and
            noise where there is none.
        how: How the list is read.
        split: Which split of the list; the recipe's training split if not given.
        clips: How many of its clips are read.
        parts: What to time: inference, loading (and the way from files to logits), steps of training, and the ceilings
            of this machine.
        variants: Ways to run each network; what is worth a look here if not given.
        batch_size: Clips a call; 8 on a CPU and 32 on a GPU if not given, or what an exported file was made for.
        sweep: Further batch sizes, of the eager networks; one clip a call is always timed.
        tf32: On a GPU, compute products in fp32 as TF32, matrix products and convolutions alike.
        step_batch_size: Clips of a training step; the recipe's if not given.
        workers: Processes that decode, for a second look at loading and the whole way.
        views: Clips that a video is scored by, for the cost of a video; as many as in the run's test, or one, if not
            given.
        threads: Of torch; all cores if not given. With one thread a CPU's seconds are those that the process computed,
            which other work on the machine lengthens less than those that pass by.
        device: "auto", "cpu", "cuda", "cuda:1"...
        patience: How long to measure.
        trust: Module, package or recipe file of your own whose code a run may name, or .pt2 file; give it once for
            each.
    """
    out.mkdir(parents=True, exist_ok=True)  # before the work: it may not be writable
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads are at least 1, got {threads}")
        torch.set_num_threads(threads)
    about = subject(models, trust=trust)
    manifest = _manifest(about.recipe, data, how, split, clips)
    if manifest is None and about.recipe is not None:
        CONSOLE.print(f"No list at {about.recipe.data.path}: networks see noise, and loading and steps are left out.")
    plan = Plan(
        subject=about,
        manifest=manifest,
        parts=parts,
        variants=variants,
        batch_size=batch_size,
        sweep=sweep,
        tf32=tf32,
        step_batch_size=step_batch_size,
        workers=workers,
        views=views,
        machine=Machine(device=device),
        patience=patience,
    )
    path = out / "bench.json"
    try:
        results = benchmark(
            plan,
            say=lambda line: CONSOLE.print(line, highlight=False),
            keep=lambda so_far: write_results(path, so_far),
        )
    except Stopped as stop:
        with deferred():
            _hand_out(stop.results, out)
        raise Interruption(
            f"{stop}; what was measured is kept in {path}, marked partial; the same command measures all of it again",
            number=stop.number,
        ) from stop
    with deferred():
        _hand_out(results, out)


def _hand_out(results: Results, out: Path) -> None:
    """Writes the results and their page, and prints them."""
    write_results(out / "bench.json", results)
    write_speed_page([results], out / "page.html")
    networks, speeds = network_rows(results), speed_rows(results)
    numbered, reasons = footnotes([*networks, *speeds])
    CONSOLE.print(terminal_table(NETWORK_COLUMNS, numbered[: len(networks)], title=results.subject))
    others = (0, *(number for number in range(len(SPEED_COLUMNS)) if number not in WALL))
    titles = {WALL: "all by the wall clock", others: "by the clock that is compared; memory and answers"}
    for numbers, title in titles.items():
        rows = [[row[number] for number in numbers] for row in numbered[len(networks) :]]
        heads = [SPEED_COLUMNS[number].removesuffix(" (wall)") for number in numbers]
        CONSOLE.print(terminal_table(heads, rows, title=title))
    for reason in reasons:
        CONSOLE.print(reason, highlight=False)
    if stages := stage_rows(results):
        CONSOLE.print(terminal_table(STAGE_COLUMNS, stages, title="from files to logits, and what it is made of"))
    if results.partial:
        CONSOLE.print(f"Partial: {results.partial}.", highlight=False)
    for note in results.notes:
        CONSOLE.print(note, highlight=False)
    CONSOLE.print()
    CONSOLE.print(f"All numbers: {out / 'bench.json'}; page: {out / 'page.html'}", highlight=False)


def compare(
    old: tyro.conf.Positional[Path],
    new: tyro.conf.Positional[Path],
    max_regress: str = "5%",
    across_machines: bool = False,
) -> None:
    """Compares two results of `videokd bench`; the exit code is 3 if something became slower than allowed, and 1 if
    nothing could be told.

    Args:
        old: The earlier bench.json, or its folder.
        new: The later one.
        max_regress: What is allowed, of the time of a call: "5%" or 0.05.
        across_machines: Compare results of different machines all the same.
    """
    before, after = read_results(_file(old)), read_results(_file(new))
    found = compare_results(before, after, max_regress=_share(max_regress), across_machines=across_machines)
    CONSOLE.print(terminal_table(COMPARED, comparison_rows(found), title=f"{old} to {new}"))
    for difference in found.differs:
        CONSOLE.print(f"Not the same: {difference}", highlight=False)
    if found.regressed:
        to_stderr(f"slower than {max_regress} allows")
        raise SystemExit(_SLOWER)
    if not any(row.verdict in ("same", "faster", "mended") for row in found.rows):
        raise ValueError(f"nothing can be told of {old} and {new}: the table says why")


def page(results: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("runs") / "bench.html") -> None:
    """Puts several results of `videokd bench` on one page, with the accuracy of all runs over their clips per second.

    Args:
        results: The bench.json of each, or its folder.
        out: The page; plots and a Markdown twin lie beside it.
    """
    if not results:
        raise ValueError("name the results of videokd bench: files or folders")
    found = [read_results(_file(one)) for one in results]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_speed_page(found, out)
    CONSOLE.print(f"{out}", highlight=False)


def _file(path: Path) -> Path:
    found = path / "bench.json" if path.is_dir() else path
    if not found.is_file():
        raise ValueError(f"no result of videokd bench at {found}")
    return found


def _share(text: str) -> float:
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"--max-regress is a share such as 5% or 0.05, not {text!r}") from error
    if not 0 <= found < 10:
        raise ValueError(f"--max-regress is a share such as 5% or 0.05, not {text!r}")
    return found


def _manifest(
    recipe: Recipe | None, data: str | None, how: ListOptions, split: str | None, clips: int
) -> Manifest | None:
    """The clips that are read; None where there are none."""
    if data is not None:
        return chosen(how.read(data), split=split, clips=clips)
    if recipe is None or not (is_url(recipe.data.path) or Path(recipe.data.path).exists()):
        return None
    whole = recipe.data.manifest()
    return chosen(whole, split=split or recipe.data.train_split, clips=clips)
