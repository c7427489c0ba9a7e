"""A report as Markdown, its pictures in a folder beside it."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from videokd.report.content import Chapter, Code, Figures, Film, Films, Plot, Prose, Table, shown
from videokd.text import for_html, for_terminal
from videokd.text import for_markdown as text

Pictures = dict[str, bytes]


def rendered(
    chapters: Sequence[Chapter], svgs: Mapping[tuple[int, str, int], str], *, folder: str
) -> tuple[str, Pictures]:
    """The text, and the content of each picture that it links to, by file name."""
    files: Pictures = {}
    lines: list[str] = []
    for number, chapter in enumerate(chapters):
        lines += [f"# {text(chapter.title)}", "", f"**{text(chapter.verdict)}**", ""]
        lines += [f"- {text(name)}: {text(value)}" for name, value in chapter.facts] + [""]
        for section in chapter.sections:
            lines += [f"## {text(section.title)}", ""]
            lines += [text(section.lead), ""] if section.lead else []
            for block in section.blocks:
                lines += _block(block, chapter, svgs, number=number, folder=folder, files=files)
        if chapter.missing:
            lines += ["## Not in this report", ""]
            for one in chapter.missing:
                command = f" (<code>{text(one.command)}</code>)" if one.command else ""
                lines.append(f"- {text(one.title)}: {text(one.why)}{command}")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n", files


def _block(
    block: object,
    chapter: Chapter,
    svgs: Mapping[tuple[int, str, int], str],
    *,
    number: int,
    folder: str,
    files: Pictures,
) -> list[str]:
    if isinstance(block, Table):
        return _table(block, chapter)
    if isinstance(block, Figures):
        return [
            *(f"- **{text(value)}** {text(name)} ({text(more)})" for value, name, more in block.items),
            "",
        ]
    if isinstance(block, Prose):
        said = [f"**{text(block.text)}**" if block.warns else text(block.text), ""] if block.text else []
        return [*said, *(f"- {text(item)}" for item in block.items), ""]
    if isinstance(block, Code):
        # A fence longer than any in the text.
        code = for_terminal(block.text, keep="\n")
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code) or [""]))
        return [
            f"<details><summary>{for_html(block.title)}</summary>",
            "",
            f"{fence}json",
            *code.split("\n"),
            fence,
            "",
            "</details>",
            "",
        ]
    if isinstance(block, Plot):
        return _plot(block, chapter, svgs, number=number, folder=folder, files=files)
    assert isinstance(block, Films)
    lines = [f"### {text(block.title)}", "", text(block.note), ""]
    for place, film in enumerate(block.films):
        name = f"{number}-{block.title.lower()}-{place}"
        lines += _film(film, chapter, svgs, name=name, number=number, folder=folder, files=files)
    return lines


def _table(table: Table, chapter: Chapter) -> list[str]:
    lines = [f"**{text(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(text(column.title) for column in table.columns) + " |")
    lines.append(
        "| "
        + " | ".join("---" if column.kind in ("text", "name", "arm") else "---:" for column in table.columns)
        + " |"
    )
    for row in table.rows:
        cells = [
            text(
                chapter.looks[str(cell)].title
                if column.kind == "arm" and cell in chapter.looks
                else shown(cell, column.kind)
            )
            for cell, column in zip(row, table.columns, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *([text(table.note), ""] if table.note else [])]


def _plot(
    plot: Plot,
    chapter: Chapter,
    svgs: Mapping[tuple[int, str, int], str],
    *,
    number: int,
    folder: str,
    files: Pictures,
) -> list[str]:
    lines = []
    for place, panel in enumerate(plot.panels):
        name = f"{number}-{plot.name}-{place}.svg"
        files[name] = svgs[number, plot.name, place].encode()
        lines.append(f"![{text(panel.said)}]({quote(folder)}/{name})")
    colours = ", ".join(f"{text(chapter.looks[arm].title)} {chapter.looks[arm].light}" for arm in plot.arms)
    lines += (
        ["", f"*{text(plot.caption)}*" + (f" Colours: {colours}." if colours else ""), ""] if plot.caption else [""]
    )
    return lines + (_table(plot.numbers, chapter) if plot.numbers else [])


def _film(
    film: Film,
    chapter: Chapter,
    svgs: Mapping[tuple[int, str, int], str],
    *,
    name: str,
    number: int,
    folder: str,
    files: Pictures,
) -> list[str]:
    lines = [
        f"#### {text(film.id)}",
        "",
        f"True class **{text(film.label)}**; {text(film.said)}.",
        "",
    ]
    if film.fault:
        lines += [f"*{text(film.fault)}*", ""]
    if film.clip:
        files[f"{name}.mp4"] = film.clip
        lines += [f"[clip]({quote(folder)}/{name}.mp4)", ""]
    for place, (title, picture) in enumerate(film.strips):
        file = f"{name}-{place}.webp"
        files[file] = picture.data
        lines += [f"{text(title)}:", "", f"![{text(picture.said)}]({quote(folder)}/{file})", ""]
    for answer in film.answers:
        best = ", ".join(f"{text(label)} {shown(share, 'ratio')}" for label, share in answer.top)
        lines.append(f"- {text(chapter.looks[answer.arm].title)}: {best}")
    lines.append("")
    if film.plot:
        lines += _plot(film.plot, chapter, svgs, number=number, folder=folder, files=files)
    return lines
