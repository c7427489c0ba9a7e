"""Commands that show what there is: models, losses, taps, this machine."""

import platform
from collections.abc import Sequence
from typing import Any, get_args

import av
import tyro
from rich.progress import track

from videokd import recipe as recipes
from videokd.assembly import parties
from videokd.cli.options import CONSOLE, take_trust, wants_usage
from videokd.clips.backends import Backend, require
from videokd.distill import check_taps
from videokd.environment import EXTRAS, PACKAGES, environment
from videokd.models import Model, catalogue
from videokd.models.cost import cost_of
from videokd.models.own import OwnModel
from videokd.recipe import Recipe
from videokd.report import catalogue as loss_catalogue
from videokd.report.tables import terminal_table
from videokd.report.taps import MODULE_COLUMNS, TAP_COLUMNS, describe_input, module_rows, tap_rows

_TAPS_USAGE = (
    "usage: videokd taps RECIPE [--modules] [--trust NAME] [--FIELD VALUE ...]; --modules lists every module of a "
    "network of your own, to choose taps from"
)


def taps(arguments: Sequence[str]) -> None:
    """`videokd taps RECIPE [--modules] [--FIELD VALUE ...]`: what a recipe's models hand out, found by a dry run."""
    modules = "--modules" in arguments
    trust, rest = take_trust([argument for argument in arguments if argument != "--modules"])
    if wants_usage(rest, _TAPS_USAGE):
        return
    recipe = tyro.cli(
        tyro.conf.AvoidSubcommands[Recipe],
        default=recipes.load(rest[0], trust=trust),
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
            seen, price = cost_of(config, [str(number) for number in range(400)])
            giga = price.macs / 1e9
            shown = describe_input(seen)
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
    here = environment()
    rows = [("videokd", here["videokd"]), ("Python", f"{here['python']} on {here['platform']}")]
    rows += [(name, here["packages"].get(name, "missing")) for name in PACKAGES]
    for package, extra in EXTRAS.items():
        rows.append((package, here["packages"].get(package, f"not installed: pip install 'videokd[{extra}]'")))
    rows.append(("FFmpeg libraries in av", ", ".join(f"{name} {version}" for name, version in here["ffmpeg"].items())))
    decoders = ("h264", "hevc", "vp9", "av1", "mpeg4")
    rows.append(("decoders", ", ".join(name for name in decoders if name in av.codecs_available)))
    for backend in get_args(Backend):
        rows.append((f"reads videos: {backend}", _works(backend)))
    cpu, gpu = here["cpu"], here["gpu"]
    rows.append(("CPU", f"{cpu['model']}: {cpu['usable_cores']} cores, {cpu['torch_threads']} torch threads"))
    if platform.libc_ver()[0] == "glibc" and not {"GLIBC_TUNABLES", "LD_PRELOAD"} & here["variables"].keys():
        said = "goes back to the system after each call; a CPU is faster where it stays"
        rows.append(("memory", f"{said} (docs/benchmark.md, Memory on a CPU)"))
    rows.append(("GPU", ", ".join(gpu["names"]) if gpu else "none: everything runs on the CPU"))
    if gpu:
        rows.append(("CUDA", f"{gpu['cuda']}, driver {gpu['driver']}, cuDNN {gpu['cudnn']}"))
    CONSOLE.print(terminal_table(("what", "here"), rows, justify="left"))


def _works(backend: Backend) -> str:
    try:
        return str(getattr(require(backend), "__version__", "yes"))
    except ValueError as error:
        return str(error)
