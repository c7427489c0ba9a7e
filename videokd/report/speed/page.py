"""The page of a benchmark: how many clips a second, by whom, what bounds it, and how far that can be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

from videokd.bench import derived
from videokd.bench.results import Results, Stage
from videokd.bench.statistics import CLOCK_NAMES
from videokd.disk import whole_file
from videokd.report.content import (
    Block,
    Cell,
    Chapter,
    Column,
    Look,
    Missing,
    Panel,
    Plot,
    Prose,
    Section,
    Table,
    shown,
)
from videokd.report.looks import DISTILLED, TEACHER, looks_of
from videokd.report.page import Written, check_name, plots_of, write_chapters
from videokd.report.speed import figures as speed_figures
from videokd.report.speed import grounds, sections
from videokd.report.speed.sections import SAID, Bench, begun, under
from videokd.report.subject import at
from videokd.report.svg import STYLE

_DPI = 140


def write_speed_page(each: Sequence[Results], out: Path) -> Written:
    """Writes a page on benchmarks: `out`, beside it the same name with .md, and a folder of its pictures, as SVG and as
    PNG. There is no .json of the page: the results have all numbers, and may lie there under that name.

    Args:
        each: a chapter for each of them, and one that compares their networks where there are several.
        out: the page; its suffix is .html.

    Raises:
        ValueError: if there are no results, or the page has another suffix.
    """
    check_name(out)
    if not each:
        raise ValueError("name at least one result of videokd bench")
    looks = speed_looks([party for one in each for party in derived.parties(one)])
    chapters = [speed_chapter(one, looks=looks) for one in each]
    if len(each) > 1:
        chapters.insert(0, together(each))
    written = write_chapters(chapters, out, note="Rates are clips over wall seconds, all work done.")
    pictures = out.with_name(f"{out.stem}_pictures")
    with matplotlib.rc_context(STYLE):
        for number, chapter in enumerate(chapters):
            for plot in plots_of(chapter):
                for place, panel in enumerate(plot.panels):
                    with whole_file(pictures / f"{number}-{plot.name}-{place}.png") as file:
                        panel.figure.savefig(file, dpi=_DPI, format="png")
    return written


def speed_chapter(results: Results, *, looks: Mapping[str, Look] | None = None) -> Chapter:
    """All that is said of a benchmark.

    Args:
        results: what it left.
        looks: of the parties, where other chapters have them too.
    """
    bench = Bench(results=results, looks=looks or speed_looks(derived.parties(results)))
    parts = [
        sections.answer(bench),
        sections.throughput(bench),
        sections.stages(bench),
        sections.latency(bench),
        grounds.limits(bench),
        accuracy([results], bench.looks),
        sections.everything(bench),
        grounds.noise(bench),
        grounds.caveats(bench),
        grounds.card(bench),
    ]
    return Chapter(
        title=results.subject,
        verdict=_verdict(bench),
        facts=_facts(results),
        looks=bench.looks,
        sections=[part for part in parts if isinstance(part, Section)],
        missing=[part for part in parts if isinstance(part, Missing)],
    )


def together(each: Sequence[Results]) -> Chapter:
    """The networks of several benchmarks beside each other."""
    looks = _looks_of_networks(each)
    part = accuracy(each, looks)
    blocks: list[Block] = []
    if len({_machine(one) for one in each}) > 1:
        said = "These were not all measured on the same machine with as many threads: their rates can't be compared."
        blocks.append(Prose(text=said, warns=True))
    columns = [
        Column(title="network", kind="arm"),
        Column(title="fastest", kind="name"),
        Column(title="clips/s (wall)"),
        Column(title="accuracy %", kind="share"),
        Column(title="parameters", kind="size"),
        Column(title="MAC/clip", kind="size"),
        Column(title="machine", kind="name"),
    ]
    rows: list[list[Cell]] = []
    for number, one in enumerate(each):
        found = derived.summaries(one)
        for network in one.networks:
            best = derived.fastest(one, found, network.party, "end to end")
            best = best or derived.fastest(one, found, network.party, "inference")
            known = [None, None] if best is None else [under(best), found[best.name].clips_per_second]
            rows.append(
                [
                    _key(number, network.party),
                    *known,
                    network.accuracy,
                    network.params,
                    network.macs,
                    _machine(one),
                ]
            )
    blocks.append(Table(columns=columns, rows=rows, note="A dash is not known, or could not be measured."))
    overview = Section(name="networks", title="Networks", lead="Each at its fastest setting.", blocks=blocks)
    return Chapter(
        title="all results",
        verdict=f"{len(rows)} networks of {len(each)} results.",
        facts=[],
        looks=looks,
        sections=[overview, *([part] if isinstance(part, Section) else [])],
        missing=[part] if isinstance(part, Missing) else [],
    )


def speed_looks(parties: Sequence[str]) -> dict[str, Look]:
    """A look for each party: the student's is that of a distilled one, the first teacher's that of a teacher."""
    parties = list(dict.fromkeys(parties))
    if derived.STUDENT not in parties:
        spare = looks_of(f"network {number}" for number in range(len(parties)))
        return {party: replace(look, title=party) for party, look in zip(parties, spare.values(), strict=True)}
    teachers = [party for party in parties if party != derived.STUDENT]
    # By numbers: a party may have the name of an arm.
    others = [f"teacher {number}" for number in range(2, len(teachers) + 1)]
    looks = looks_of([DISTILLED, TEACHER, *others])
    keys = {party: key for party, key in zip(teachers, (TEACHER, *others), strict=False)} | {derived.STUDENT: DISTILLED}
    return {party: replace(looks[keys[party]], title=party) for party in parties}


def accuracy(each: Sequence[Results], looks: Mapping[str, Look]) -> Section | Missing | None:
    """Accuracy over videos a second, of all networks whose accuracy is known."""
    stage = _common_stage(each)
    points: dict[str, tuple[float, float]] = {}
    rows: list[list[Cell]] = []
    for number, one in enumerate(each):
        found = derived.summaries(one)
        for network in one.networks:
            best = derived.fastest(one, found, network.party, stage)
            if network.accuracy is None or best is None:
                continue
            key = _key(number, network.party) if len(each) > 1 else network.party
            rate = found[best.name].clips_per_second
            views = network.accuracy_views or network.views
            points[key] = (rate / views, network.accuracy)
            rows.append([key, network.accuracy, rate / views, views, rate, under(best)])
    if not points:
        why = "the accuracy of no network that was timed is known"
        return Missing(title="Accuracy over rate", why=why, command="videokd evaluate RUN")
    if len(points) < 2:
        return None
    best_ones = derived.front(points)
    columns = [
        Column(title="network", kind="arm"),
        Column(title="top-1 %", kind="share"),
        Column(title="videos/s (wall)", note="clips/s over the views that the accuracy took"),
        Column(title="views", kind="count"),
        Column(title="clips/s (wall)"),
        Column(title="fastest", kind="name"),
    ]
    said = "; ".join(
        f"{looks[name].title}: {shown(share, 'share')} % at {shown(pace, 'number')} videos/s"
        for name, (pace, share) in points.items()
    )
    figure = speed_figures.accuracy(points, looks, front=best_ones, axis=f"videos/s, {SAID[stage]}")
    return Section(
        name="accuracy",
        title="Accuracy over rate",
        lead="What a point of accuracy costs in videos a second.",
        blocks=[
            Plot(
                name="accuracy",
                caption="Up and to the right is better. Of the networks below and to the left of the dashed line, "
                "another one is both as accurate and as fast. A video takes as many clips as its accuracy was "
                "measured with; each network is at its fastest setting. The rate has a logarithmic scale.",
                panels=[Panel(figure=figure, said=said, wide=True)],
                numbers=Table(title="Numbers", folded=True, columns=columns, rows=rows),
            )
        ],
    )


def _verdict(bench: Bench) -> str:
    best = bench.lead()
    if best is None:
        return "Nothing could be measured." if bench.results.measurements else "Nothing was measured."
    what = SAID.get(best.stage, best.stage)
    said = f"{begun(best.party)} does {shown(bench.rate(best), 'number')} clips/s (wall) {what} ({under(best)})"
    factors = []
    for party, (other, factor) in bench.ahead_of(best).items():
        how = "" if under(other) == under(best) else f" ({under(other)})"
        factors.append(f"{shown(factor.value, 'number')} times as many as {party}{how}")
    end = derived.fastest(bench.results, bench.found, best.party, "end to end")
    way = f"From files to logits it is {shown(bench.rate(end), 'number')} clips/s ({under(end)})." if end else ""
    return f"{', '.join([said, *factors])}. {way if best.stage == 'inference' else ''}".strip()


def _facts(results: Results) -> list[tuple[str, str]]:
    """What stands below the headline."""
    gpu = ", ".join(at(results.setting, "environment", "gpu", "names") or ())
    facts = {
        "device": results.setting.get("device"),
        "processor": at(results.setting, "environment", "cpu", "model"),
        "GPU": gpu if results.setting.get("device") != "cpu" else None,
        "threads": results.setting.get("threads"),
        "workers": results.setting.get("workers"),
        "rounds": results.setting.get("rounds"),
        "result": "partial" if results.partial else None,
        "ratios by": CLOCK_NAMES.get(results.setting.get("clock", "wall")),
        "fp32 products": _ARITHMETIC.get(bool(results.setting["tf32"]))
        if results.setting.get("tf32") is not None
        else None,
        "list": Path(str(results.setting.get("list") or "")).name,
        "format": results.setting.get("format"),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


_ARITHMETIC = {True: "as TF32, matrix products and convolutions", False: "without TF32"}


def _machine(results: Results) -> str:
    """Where a benchmark ran, as far as its rates hang on it."""
    on_cpu = results.setting.get("device") == "cpu"
    gpus = at(results.setting, "environment", "gpu", "names")
    where = at(results.setting, "environment", "cpu", "model") if on_cpu or not gpus else ", ".join(gpus)
    threads = results.setting.get("threads")
    return f"{where or 'unknown'}{f', {threads} threads' if on_cpu and threads else ''}"


def _key(number: int, party: str) -> str:
    return f"{number} {party}"


def _looks_of_networks(each: Sequence[Results]) -> dict[str, Look]:
    """Of the parties of several results, each with its result's name where that tells them apart."""
    titles = {
        _key(number, network.party): (one.subject, network.party)
        for number, one in enumerate(each)
        for network in one.networks
    }
    return looks_of(titles, {key: f"{Path(s).stem} {p}" for key, (s, p) in titles.items()})


def _common_stage(each: Sequence[Results]) -> Stage:
    """From files to logits if that is known of all networks, else inference."""
    for one in each:
        found = derived.summaries(one)
        for network in one.networks:
            known = network.accuracy is not None
            if known and derived.fastest(one, found, network.party, "end to end") is None:
                return "inference"
    return "end to end"
