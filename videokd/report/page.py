"""Reports on studies and runs: one HTML page that needs nothing else, and the same as Markdown and as JSON."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

import videokd
from videokd.disk import write_bytes, write_text
from videokd.interruption import deferred
from videokd.machine import Machine
from videokd.report import markdown
from videokd.report.content import Chapter, Film, Films, Missing, Plot, Section, order_of, plain, shown
from videokd.report.filmstrips import films
from videokd.report.looks import TEACHER
from videokd.report.sections import LAST, SECTIONS
from videokd.report.subject import Subject, subjects, views_said
from videokd.report.svg import css_name, drawn, inlined
from videokd.text import for_terminal, to_json


@dataclass(frozen=True)
class Written:
    """What was written."""

    page: Path
    markdown: Path
    missing: Sequence[Missing]
    faults: Sequence[str]
    """Of the videos that could not be shown."""


@dataclass(frozen=True)
class WrittenReport(Written):
    """What `write_report` left."""

    json: Path


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    videos: int = 3,
    machine: Machine | None = None,
    trust: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> WrittenReport:
    """Writes a report on studies and runs: `out`, and beside it the same name with .md and .json, and the folder of
    pictures that the Markdown links to.

    Args:
        folders: of studies, each a chapter, and of runs, together one more.
        out: the page; its suffix is .html.
        videos: how many videos that were won, and lost, are shown; 0 reads none.
        machine: where the nets look at them; None for the defaults.
        trust: packages and modules of your own that the nets are made by.
        advance: called after each part.

    Raises:
        ValueError: if a folder holds nothing to report, or a file of it is not what it should be.
    """
    check_name(out)
    chapters = [
        chapter(subject, videos=videos, machine=machine, trust=trust, advance=advance) for subject in subjects(folders)
    ]
    written = write_chapters(chapters, out, note="Shares are per cent of clips, differences are points.")
    report = WrittenReport(**vars(written), json=out.with_suffix(".json"))
    write_text(report.json, to_json(numbers(chapters), indent=1) + "\n")
    advance()
    return report


def check_name(out: Path) -> None:
    """Whether a page can be written under this name.

    Raises:
        ValueError: if not.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: the report is a page, its name ends with .html")


def write_chapters(chapters: Sequence[Chapter], out: Path, *, note: str = "") -> Written:
    """Writes the page, the same as Markdown, and the folder of pictures.

    Args:
        chapters: in the order of the page.
        out: the page.
        note: what its last line says of the numbers.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = out.with_name(f"{out.stem}_pictures")
    svgs = {
        (number, plot.name, place): drawn(panel.figure)
        for number, one in enumerate(chapters)
        for plot in plots_of(one)
        for place, panel in enumerate(plot.panels)
    }
    written = Written(
        page=out,
        markdown=out.with_suffix(".md"),
        missing=[missing for one in chapters for missing in one.missing],
        faults=[f"{film.id}: {film.fault}" for one in chapters for film in films_of(one) if film.fault],
    )
    page = html(chapters, svgs, note=note)
    text, files = markdown.rendered(chapters, svgs, folder=pictures.name)
    with deferred():
        write_text(out, page)
        pictures.mkdir(exist_ok=True)
        for name, data in files.items():
            write_bytes(pictures / name, data)
        write_text(written.markdown, text)
    return written


def chapter(
    subject: Subject,
    *,
    videos: int = 3,
    machine: Machine | None = None,
    trust: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Chapter:
    """All that there is to say of a subject."""
    parts: list[Section | Missing | None] = []
    for make in SECTIONS:
        parts.append(make(subject))
        advance()
    if videos > 0:
        parts.append(films(subject, each=videos, machine=machine, trust=trust, advance=advance))
    else:
        parts.append(Missing(title="Videos won and lost", why="--no-clips was given", command="videokd report"))
    parts += [make(subject) for make in LAST]
    return Chapter(
        title=subject.title,
        verdict=str(subject.compared.get("verdict") or ""),
        facts=_facts(subject),
        looks=subject.looks,
        sections=[part for part in parts if isinstance(part, Section)],
        missing=[part for part in parts if isinstance(part, Missing)],
    )


def html(chapters: Sequence[Chapter], svgs: dict[tuple[int, str, int], str], *, note: str = "") -> str:
    """The page. Whatever comes from outside (class names, paths) is escaped, and what nobody can see is shown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("videokd.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )

    def picture(number: int, plot: Plot, place: int) -> Markup:
        panel = plot.panels[place]
        # Drawn here, its texts escaped: the one thing besides style and script that is no user's text.
        return Markup(
            inlined(
                svgs[number, plot.name, place],
                name=f"c{number}-{plot.name}-{place}",
                said=panel.said,
                looks=chapters[number].looks,
            )
        )

    environment.filters |= {
        "shown": shown,
        "order": order_of,
        "css": css_name,
        "data": _data,
        "lines": _lines,
        "kind": _kind,
        "headline": _headline,
        "unbroken": _unbroken,
    }
    environment.globals |= {"picture": picture}
    script = (Path(__file__).parent / "template" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    looks = {name: look for one in chapters for name, look in one.looks.items()}
    return environment.get_template("page.html.jinja").render(
        chapters=chapters,
        looks=looks,
        made=_made(),
        note=note,
        title=" · ".join(one.title for one in chapters),
        script=Markup(script),  # ours
        script_hash=f"sha256-{digest}",
    )


def numbers(chapters: Sequence[Chapter]) -> dict[str, Any]:
    """All that is shown, as plain values: shares in [0, 1], never per cent."""
    return {
        "made": _made(),
        "chapters": [
            {
                "title": one.title,
                "verdict": one.verdict,
                "facts": dict(one.facts),
                "arms": {name: look.title for name, look in one.looks.items()},
                "sections": {section.name: _section(section) for section in one.sections},
                "missing": [vars(missing) for missing in one.missing],
            }
            for one in chapters
        ],
    }


def plots_of(chapter: Chapter) -> list[Plot]:
    """All plots of a chapter."""
    blocks = [block for section in chapter.sections for block in section.blocks]
    return [block for block in blocks if isinstance(block, Plot)] + [
        film.plot for film in films_of(chapter) if film.plot is not None
    ]


def films_of(chapter: Chapter) -> list[Film]:
    """All videos of a chapter."""
    blocks = [block for section in chapter.sections for block in section.blocks]
    return [film for block in blocks if isinstance(block, Films) for film in block.films]


def _section(section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {"title": section.title, "tables": [], "videos": []}
    for block in section.blocks:
        kind = type(block).__name__
        if kind == "Table":
            found["tables"].append(_table(block))
        elif isinstance(block, Plot) and block.numbers is not None:
            found["tables"].append(_table(block.numbers))
        elif isinstance(block, Films):
            found["videos"] += [_film(film, how=block.title) for film in block.films]
        elif kind == "Prose":
            found.setdefault("notes", []).extend(part for part in (block.text, *block.items) if part)  # type: ignore[union-attr]
        elif kind == "Code":
            found.setdefault("recipes", {})[block.title] = json.loads(block.text)  # type: ignore[union-attr]
    return {key: value for key, value in found.items() if value}


def _table(table: Any) -> dict[str, Any]:
    titles = [column.title for column in table.columns]
    named = len(set(titles)) == len(titles) and all(titles)
    rows = [[plain(cell) for cell in row] for row in table.rows]
    found = {"rows": [dict(zip(titles, row, strict=True)) for row in rows] if named else rows}
    return {key: value for key, value in {"title": table.title, "note": table.note, **found}.items() if value}


def _film(film: Film, *, how: str) -> dict[str, Any]:
    return {
        "id": film.id,
        "path": film.path,
        "how": how,
        "label": film.label,
        "said": film.said,
        "fault": film.fault or None,
        "answers": {
            one.arm: {"top": dict(one.top), "seconds": list(one.seconds), "confidence": list(one.confidence)}
            for one in film.answers
        },
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    evaluation = subject.evaluation
    facts = [("list", Path(str(subject.compared.get("list") or evaluation.get("list") or "")).name)]
    facts.append(("split", str(subject.compared.get("split") or evaluation.get("split") or "")))
    each = subject.scored_once
    if clips := sum(one.get("clips") or 0 for one in each):
        groups = sum(one.get("groups") or 0 for one in each)
        sources = f" of {groups:,} source videos" if groups else ""
        facts.append(("clips", f"{clips:,}{sources}{f', in {len(each)} folds' if len(each) > 1 else ''}"))
    if evaluation.get("classes"):
        facts.append(("classes", str(len(evaluation["classes"]))))
    students = [arm for name, arm in subject.arms.items() if name != TEACHER] or list(subject.arms.values())
    seeds = {run.pair[1] for arm in students for run in arm.runs if run.pair is not None}
    facts.append(("runs", f"{len(subject.runs)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"))
    facts.append(("views", views_said(evaluation)))
    facts.append(("data debt", _debt(subject)))
    return [(name, value) for name, value in facts if value]


def _debt(subject: Subject) -> str:
    """Of the run with the most: a number that stands beside a score must say it."""
    each = [one for arm in subject.arms.values() for one in arm.evaluations]
    scored = max((len(one.get("skipped") or ()) for one in each), default=0)
    trained = max((one.get("skipped_in_training") or 0 for one in each), default=0)
    leaked = max((one.get("trained_on") or 0 for one in each), default=0)
    said = {"not scored": scored, "not trained on": trained, "scored though trained on": leaked}
    said["not compared, since not all could read them"] = max(subject.compared.get("not_compared") or [0])
    found = [f"{number} {how}" for how, number in said.items() if number]
    return f"{', '.join(found)} (videos, at most of a run)" if found else "none" if each else ""


def _made() -> str:
    return f"videokd {videokd.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _headline(verdict: str) -> tuple[str, str]:
    """The first sentence, and the others."""
    first, _, rest = re.sub(r"\. (?=[A-Z])", ".\n", verdict).partition("\n")
    return first, rest.replace("\n", " ")


def _unbroken(text: str) -> str:
    """No line ends between a number and its %."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _data(content: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def _finalized(value: Any) -> Any:
    """What the template puts out: text on one line. `Markup` is the template's own."""
    return for_terminal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Text whose line ends stay."""
    return escape(for_terminal(text, keep="\n"))


def _kind(block: Any) -> str:
    return type(block).__name__
