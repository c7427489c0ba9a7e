"""What the numbers rest on: videos left out, recipes, versions, machines, and how runs differ."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from videokd.report.comparison import score_of
from videokd.report.content import Block, Cell, Code, Column, Missing, Prose, Section, Table
from videokd.report.differences import difference_rows
from videokd.report.paired import not_compared
from videokd.report.subject import Run, Subject, at, read_json, views_said

REASONS = 20
"""Sentences on videos before the rest is counted."""


def debt(subject: Subject) -> Section | Missing:
    """Videos that were left out, and clips that were trained on."""
    evaluations = {name: arm.evaluations for name, arm in subject.arms.items() if arm.evaluations}
    if not evaluations:
        return Missing(title="Data debt", why="no run is evaluated", command="videokd evaluate RUN")
    columns = [
        Column(title="arm", kind="arm"),
        Column(title="runs", kind="count"),
        Column(title="clips scored", kind="count"),
        Column(title="source videos", kind="count", note="intervals are over these, not over clips"),
        Column(title="without a label", kind="count"),
        Column(title="skipped", kind="count", note="could not be read when scored"),
        Column(title="skipped in training", kind="count"),
        Column(title="trained on", kind="count", note="scored clips that the run had seen in training"),
    ]
    rows: list[list[Cell]] = []
    leaked = 0
    for name, each in evaluations.items():
        trained = [one["trained_on"] for one in each if one.get("trained_on") is not None]
        missed = [one["skipped_in_training"] for one in each if one.get("skipped_in_training") is not None]
        leaked += sum(trained)
        rows.append(
            [
                name,
                len(each),
                sum(one.get("clips") or 0 for one in each),
                sum(one.get("groups") or 0 for one in each),
                sum(one.get("unlabelled") or 0 for one in each),
                sum(len(one.get("skipped") or ()) for one in each),
                sum(missed) if missed else None,
                sum(trained) if trained else None,
            ]
        )
    skipped = Counter(reason for each in evaluations.values() for one in each for reason in one.get("skipped") or ())
    blocks: list[Block] = []
    if leaked:
        said = (
            f"{leaked} scored clips were trained on, summed over the runs: the scores are not those of held-out videos."
        )
        blocks.append(Prose(text=said, warns=True))
    if subject.is_study and (sentence := not_compared(subject.compared)):
        blocks.append(Prose(text=sentence, warns=True))
    blocks.append(Table(columns=columns, rows=rows, note="Summed over the runs of each arm; a dash is not known."))
    if skipped:
        items = [
            f"{reason} (in {count} runs)" if count > 1 else reason for reason, count in skipped.most_common(REASONS)
        ]
        more = [f"and {len(skipped) - REASONS} more"] if len(skipped) > REASONS else []
        blocks.append(Prose(text="Left out of the scores:", items=[*items, *more]))
    looked = [*(subject.inside.get("notes") or ()), *(subject.inside.get("skipped") or ())]
    if looked:
        blocks.append(Prose(text="Where the nets were looked into:", items=looked[:REASONS]))
    return Section(
        name="debt",
        title="Data debt",
        lead="What is missing from the numbers above. Nothing was replaced by another video.",
        blocks=blocks,
    )


def card(subject: Subject) -> Section | Missing:
    """Recipes, versions, fingerprints, machines."""
    known = [(name, run) for name, arm in subject.arms.items() for run in arm.runs if run.record]
    if not known:
        return Missing(title="Run card", why="no run's folder is there", command="videokd train RECIPE")
    columns = [
        Column(title="arm", kind="arm"),
        Column(title="run", kind="name"),
        Column(title="fold", kind="count"),
        Column(title="seed", kind="count"),
        Column(title="score %", kind="share"),
        Column(title="steps", kind="count"),
        Column(title="training", kind="seconds"),
        Column(title="revision", kind="name", note="of the code; + has changes that were not committed"),
        Column(title="recipe", kind="name", note="fingerprint: SHA-256 of recipe.json"),
        Column(title="weights", kind="name", note="fingerprint: SHA-256 of model.safetensors"),
    ]
    rows: list[list[Cell]] = [[name, *_run_row(subject, run)] for name, run in known]
    blocks: list[Block] = [
        Table(columns=[Column(title="", kind="text"), Column(title="", kind="text")], rows=_facts(subject, known)),
        Table(title=f"{len(known)} runs", columns=columns, rows=rows, folded=len(known) > 3),
    ]
    first = {name: run for name, run in reversed(known) if run.record and run.record.recipe}
    for name in [name for name in subject.arms if name in first]:
        record = first[name].record
        assert record is not None
        more = ", first run" if len(subject.arms[name].runs) > 1 else ""
        blocks.append(
            Code(
                title=f"Recipe: {subject.looks[name].title}{more}",
                text=json.dumps(record.recipe, indent=2, ensure_ascii=False),
            )
        )
    return Section(name="card", title="Run card", lead="All that it takes to make these numbers again.", blocks=blocks)


def difference(subject: Subject) -> Section | None:
    """In which fields the arms differ, by a run of each."""
    first = {name: next((run for run in arm.runs if run.record), None) for name, arm in subject.arms.items()}
    records = {name: run.record for name, run in first.items() if run is not None and run.record}
    if len(records) < 2:
        return None
    blocks: list[Block] = []
    for title, found in difference_rows([record for record in records.values() if record]).items():
        columns = [Column(title=title, kind="name")]
        columns += [Column(title=subject.looks[name].title, kind="name") for name in records]
        if found:
            blocks.append(Table(columns=columns, rows=found))
        elif title in ("recipe", "environment"):
            blocks.append(Prose(text=f"No difference in {title}."))
    return Section(
        name="differences",
        title="Differs from",
        lead="Every field in which the first runs of the arms differ. What is not here is the same.",
        blocks=blocks,
    )


def _run_row(subject: Subject, run: Run) -> list[Cell]:
    record = run.record
    assert record is not None
    fold, seed = run.pair or (None, None)
    summary = read_json(run.path / "summary.json")
    revision = at(record.environment, "git", "package") or at(record.environment, "git", "folder") or {}
    changed = "+" if revision.get("changed") else ""
    several = any(other.pair and other.pair[0] for other in subject.runs)
    return [
        run.path.name,
        fold if several else None,
        record.recipe.get("seed", seed),
        score_of(run.evaluation) if run.evaluation else None,
        summary.get("steps"),
        summary.get("seconds"),
        f"{revision['revision'][:10]}{changed}" if revision.get("revision") else None,
        _fingerprint(run.path / "recipe.json"),
        _fingerprint(run.path / "model.safetensors"),
    ]


def _facts(subject: Subject, known: list[tuple[str, Run]]) -> list[list[Cell]]:
    """What the runs have in common, or all that they have."""
    environments = [run.record.environment for _, run in known if run.record and run.record.environment]

    def every(*path: str) -> str:
        return ", ".join(dict.fromkeys(_text(value) for one in environments if (value := at(one, *path)) is not None))

    lists = dict.fromkeys(one["list"] for _, run in known if (one := run.evaluation) and one.get("list"))
    facts = {
        "list": "; ".join(f"{path} ({_list_hash(Path(path))})" for path in lists),
        "split": ", ".join(
            dict.fromkeys(str(run.evaluation["split"]) for _, run in known if run.evaluation.get("split"))
        ),
        "views": ", ".join(dict.fromkeys(text for _, run in known if (text := views_said(run.evaluation)))),
        "seeds": ", ".join(
            map(str, sorted({run.record.recipe.get("seed", 0) for _, run in known if run.record and run.record.recipe}))
        ),
        "videokd": every("videokd"),
        "Python": every("python"),
        "packages": "; ".join(
            dict.fromkeys(
                ", ".join(f"{name} {version}" for name, version in (at(one, "packages") or {}).items())
                for one in environments
            )
        ),
        "processor": every("cpu", "model"),
        "GPU": every("gpu", "names") or ("none" if environments else ""),
        "system": every("platform"),
        "dates": " to ".join(_ends([str(one["date"]) for one in environments if one.get("date")])),
    }
    return [[name, text] for name, text in facts.items() if text]


def _ends(dates: list[str]) -> list[str]:
    return list(dict.fromkeys((min(dates), max(dates)))) if dates else []


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _fingerprint(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _list_hash(path: Path) -> str:
    found = _fingerprint(path)
    return f"SHA-256 {found}" if found else "a folder" if path.is_dir() else "not found from here"
