"""What each term of an objective does to the student: its value, its gradient, and what is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from videokd.assembly import Assembly
from videokd.contracts import Batch, Outputs, labelled
from videokd.distill import Term, pair_key
from videokd.preflight.report import Connection, Finding, TermScore
from videokd.teachers import Teacher, tap_shapes

SMALLEST_SHARE = 0.01
"""Under this share of the gradient what a teacher says is not noticed: batches differ by more."""
LARGEST_SHARE = 0.98
"""Over this one, about fifty times all others together, they hardly count."""

Gradient = list[Tensor | None]
"""Of every parameter of the student's model; None where it does not reach."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One term on one batch."""

    value: float
    clips: int
    """That it counts."""
    weight: float
    """After its warm-up."""
    norm: float | None
    """Of its gradient, before weights; None where it has none."""
    cosine: float | None
    broken: str
    """What is not finite, if its value is not."""


def seen(
    made: Assembly,
    batch: Batch,
    *,
    progress: float,
    targets: Mapping[str, Outputs],
    outputs: Outputs,
    losses: Mapping[str, Tensor],
) -> dict[str, Seen]:
    """Every term on one batch, from what its step has computed; the graph stays."""
    terms, weights = made.terms, made.student.objective.weights
    parameters = [one for one in made.student.model.parameters() if one.requires_grad]
    reference: Gradient | None = None
    by_labels = [losses[name] for name, term in terms.items() if not term.loss.needs_teacher]
    if by_labels and len(by_labels) < len(terms):
        reference = _gradient(torch.stack(by_labels).sum(), parameters)
    found = {}
    for name, term in terms.items():
        gradient = _gradient(losses[name], parameters)
        norm = None if gradient is None else _dot(gradient, gradient) ** 0.5
        cosine = None
        if gradient is not None and reference is not None and norm and term.loss.needs_teacher:
            cosine = _dot(gradient, reference) / max(norm * _dot(reference, reference) ** 0.5, 1e-30)
        value, scheduled = losses[name].item(), term.weight_at(progress)
        finite = torch.isfinite(losses[name]).item()
        found[name] = Seen(
            value=value,
            clips=_counted(term, batch, targets, outputs),
            weight=term.weight * (weights[name].item() / scheduled if scheduled else 1.0),
            norm=norm,
            cosine=cosine,
            broken="" if finite else _what_is_broken(made, name, targets, outputs),
        )
    return found


def scores(terms: Mapping[str, Term], batches: Sequence[Mapping[str, Seen]]) -> tuple[TermScore, ...]:
    """Every term over the batches, with its share of the gradient."""
    sizes = {}
    for name in terms:
        # Of the batches on which it says something: some may have no label.
        norms = [one[name].weight * norm for one in batches if (norm := one[name].norm)]
        sizes[name] = fmean(norms) if norms else 0.0
    total = sum(sizes.values())
    found = []
    for name in terms:
        cosines = [cosine for one in batches if (cosine := one[name].cosine) is not None]
        share = sizes[name] / total if total > 0 and total < float("inf") else None
        found.append(
            TermScore(
                term=name,
                value=fmean(one[name].value for one in batches),
                weight=fmean(one[name].weight for one in batches),
                share=share,
                cosine=fmean(cosines) if cosines else None,
            )
        )
    return tuple(found)


def findings(
    terms: Mapping[str, Term],
    batches: Sequence[Mapping[str, Seen]],
    scored: Sequence[TermScore],
    *,
    unfrozen: Mapping[str, Seen] | None = None,
) -> Iterator[Finding]:
    """What is wrong with a term, or that nothing is.

    Args:
        terms: of the objective.
        batches: every term on each batch.
        scored: every term over the batches.
        unfrozen: every term on a batch with what `freeze` freezes at these batches learning, as it does later.
    """
    for score in scored:
        name, term = score.term, terms[score.term]
        found = [one[name] for one in batches]
        who, what = f"term {name!r} ({type(term.loss).__name__})", f"term {name}"
        broken = next((one for one in found if one.broken), None)
        if broken is not None:
            yield Finding(level="error", what=what, said=f"{who} is {broken.value}: {broken.broken}")
        elif not any(one.clips for one in found):
            why = "it needs labels, or its teacher says nothing of these clips"
            yield Finding(level="warning", what=what, said=f"{who} counts no clip of these batches: {why}")
        elif all(one.value == 0 for one in found):
            yield _zero(term, who, what)
        elif not any(one.norm for one in found) and unfrozen is not None and unfrozen[name].norm:
            said = (
                f"{who} is {score.value:.3g} and has a gradient in the student only after optim.freeze_until: until "
                "then nothing of the student's model is learned from it"
            )
            yield Finding(level="warning", what=what, said=said)
        elif not any(one.norm for one in found):
            said = (
                f"{who} is {score.value:.3g} and has no gradient in the student: nothing is learned from it; a tap is "
                "detached, frozen, or hooked on a copy of the network"
            )
            yield Finding(level="error", what=what, said=said)
        elif term.weight == 0:
            yield Finding(level="ok", what=what, said=f"{who} has weight 0: it is logged, and nothing is learned")
        else:
            others = sum(one.weight > 0 for one in terms.values()) > 1
            yield _of_share(score, who, what, others=others, taught=term.loss.needs_teacher)


def connections(made: Assembly) -> tuple[Connection, ...]:
    """The taps that are compared, with their shapes and what is learned between them."""
    student = made.student
    shapes = tap_shapes(student.model, {pair.student for pair in student.pairs.values()})
    found = []
    for key, pair in student.pairs.items():
        using = {
            name: term.teacher
            for name, term in made.terms.items()
            if key in {pair_key(one, term.teacher) for one in term.loss.pairs()}
        }
        name = next(iter(using.values()))
        teacher = made.teachers[name]
        assert isinstance(teacher, Teacher), "a mixture has no features"
        learned = student.connectors[key].parameters() if key in student.connectors else ()
        found.append(
            Connection(
                terms=tuple(using),
                student_tap=pair.student_name,
                student_shape=shapes[pair.student],
                teacher=name,
                teacher_tap=pair.teacher_name,
                teacher_shape=teacher.shapes[pair.teacher],
                grid=pair.grid,
                connector=None if pair.connector is None else type(pair.connector).__name__,
                params=sum(one.numel() for one in learned),
            )
        )
    return tuple(found)


def _zero(term: Term, who: str, what: str) -> Finding:
    if term.clips is not None:
        kind = type(term.clips).__name__
        said = f"{who} is 0: {kind} gives no clip of these batches any weight; see how right the teacher is"
        return Finding(level="warning", what=what, said=said)
    said = (
        f"{who} is exactly 0 on every batch: nothing is learned from it; its taps say nothing (the same everywhere, or "
        "hooks that are lost), or student and teacher already say the same"
    )
    return Finding(level="error", what=what, said=said)


def _of_share(score: TermScore, who: str, what: str, *, others: bool, taught: bool) -> Finding:
    share = score.share or 0.0
    said = f"{who} is {score.value:.3g}"
    if not others:
        return Finding(level="ok", what=what, said=f"{said}, and the only term with a weight")
    said += f" and makes {_percent(share)} of the gradient at weight {score.weight:.3g}"
    # Labels may well count for little: a student can do without them.
    if taught and share < SMALLEST_SHARE:
        return Finding(level="warning", what=what, said=f"{said}: too little to be noticed; raise its weight")
    if share > LARGEST_SHARE:
        return Finding(level="warning", what=what, said=f"{said}: the others hardly count; lower its weight")
    return Finding(level="ok", what=what, said=said)


def _percent(share: float) -> str:
    return f"{share:.0%}" if 0.01 <= share <= 0.99 else f"{share:.2%}"


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> Gradient | None:
    if not value.requires_grad:
        return None
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return None if all(one is None for one in found) else list(found)


def _dot(one: Gradient, other: Gradient) -> float:
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return float(torch.stack([(a.float() * b.float()).sum() for a, b in both]).sum()) if both else 0.0


def _counted(term: Term, batch: Batch, targets: Mapping[str, Outputs], outputs: Outputs) -> int:
    """Clips of the batch of which both parties say something, and which have the label that it may need."""
    rows = labelled(batch.label) if term.loss.needs_labels else torch.ones_like(labelled(batch.label))
    for said in (outputs, targets[term.teacher]) if term.loss.needs_teacher else (outputs,):
        rows = rows if said.known is None else rows & said.known
    return int(rows.sum())


def _what_is_broken(made: Assembly, name: str, targets: Mapping[str, Outputs], outputs: Outputs) -> str:
    """Which tap or logits of which party, and which of its weights; else the loss itself."""
    term = made.terms[name]
    keys = [(pair.student_name, pair_key(pair, term.teacher)) for pair in term.loss.pairs()]
    said: list[tuple[str, str, Tensor | None, Tensor | None]] = [
        ("student", tap, outputs.features[key].values, outputs.known) for tap, key in keys
    ]
    said.append(("student", "logits", outputs.logits, outputs.known))
    models = {"student": made.student.model}
    if term.loss.needs_teacher:
        target = targets[term.teacher]
        taps = [pair.teacher_name for pair in term.loss.pairs()]
        said += [(term.teacher, tap, target.features[tap].values, target.known) for tap in taps]
        said.append((term.teacher, "logits", target.logits, target.known))
        teacher = made.teachers[term.teacher]
        if isinstance(teacher, Teacher):
            models[term.teacher] = teacher.model
    parts = []
    for party, tap, values, known in said:
        values = values if values is None or known is None else values[known]
        if values is None or (bad := int((~values.isfinite()).flatten(1).any(dim=1).sum())) == 0:
            continue
        parts.append(f"{tap!r} of the {party if party == 'student' else f'teacher {party!r}'} on {bad} clips")
    weights = [
        f"{one} of {party!r}"
        for party, model in models.items()
        for one, values in model.named_parameters()
        if not values.isfinite().all()
    ]
    if weights:
        parts.append(f"the weights {', '.join(weights[:3])}{', ...' if len(weights) > 3 else ''}")
    if not parts:
        return "both its parties are finite, so it is the loss itself; look at its temperature and other fields"
    return f"not finite are {'; '.join(parts)}"
