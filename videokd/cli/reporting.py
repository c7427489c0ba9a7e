"""The command that shows what happened."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import tyro

from videokd.cli.options import CONSOLE, TrustOption
from videokd.machine import Machine
from videokd.progress import bar
from videokd.report.page import write_report


def report(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    clips: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: read them)")] = True,
    videos: int = 3,
    trust: TrustOption = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Writes a report on studies and runs: one HTML page that needs no network, and beside it the same as Markdown and
    as JSON.

    Args:
        folders: Of studies, each a chapter, and of runs, together one more.
        out: The page, NAME.html; report.html in the first folder if not given.
        clips: Show videos that were won and lost; with --no-clips no video is read and no net is run.
        videos: How many of either.
        trust: Module, package or recipe file of your own whose code a run may name; give it once for each.
        machine: Where the nets look at those videos.
    """
    if videos < 1:
        raise ValueError(f"--videos counts those that were won, and lost: at least 1, not {videos}; or --no-clips")
    started = time.monotonic()
    with bar(CONSOLE) as progress:
        task = progress.add_task("report", total=None, detail="")
        written = write_report(
            folders,
            out or (folders[0] if folders else Path()) / "report.html",
            videos=videos if clips else 0,
            machine=machine,
            trust=trust,
            advance=lambda: progress.advance(task),
        )
    for fault in written.faults:
        CONSOLE.print(f"not shown: {fault}")
    for one in written.missing:
        command = f" ({one.command})" if one.command else ""
        CONSOLE.print(f"left out: {one.title}: {one.why}{command}")
    size = written.page.stat().st_size / 1e6
    CONSOLE.print(
        f"{shlex.quote(str(written.page))}: {size:.1f} MB in {time.monotonic() - started:.0f} s; "
        f"the same as {written.markdown.name} and {written.json.name} beside it"
    )
