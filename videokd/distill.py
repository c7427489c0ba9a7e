"""The parties of a distillation: a student that learns, teachers that do not, and the objective between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Batch, Clip, FeatureMap, Grid, Outputs, Sound, View, labelled
from videokd.losses import Loss, Pair
from videokd.models import Model

_FINENESS: dict[Grid, int] = {"clip": 0, "frames": 1, "map": 2}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One weighted loss of an objective; its name in the objective is its column in the log."""

    loss: Loss
    weight: float = 1.0
    warmup: float = 0.0
    """Share of the run over which the weight rises from zero."""
    teacher: str = "teacher"
    """Which teacher it listens to."""

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.warmup <= 1:
            raise ValueError(
                f"weight must not be negative and warmup lies in [0, 1], got {self.weight} and {self.warmup}"
            )

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the run, in [0, 1]."""
        return self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)


class Student(nn.Module):
    """A model and what it learns only for the sake of the losses: projections to the teachers' widths.

    `model` alone is what is evaluated, saved and shipped. Terms that compare the same taps share a projection.
    """

    def __init__(
        self, model: Model[Any], terms: Mapping[str, Term], teachers: "Mapping[str, Teacher | Mixture]"
    ) -> None:
        super().__init__()
        self.model = model
        models = {name: one.model for name, one in teachers.items() if isinstance(one, Teacher)}
        check_taps(terms, {"student": model, **models})
        self.pairs: dict[str, Pair] = {
            _key(pair, term.teacher): pair for term in terms.values() for pair in term.loss.pairs()
        }
        self.projections = nn.ModuleDict()
        projected = {
            _key(pair, term.teacher): (pair, term.teacher)
            for term in terms.values()
            for pair in term.loss.pairs()
            if pair.projected
        }
        if projected:
            widths = tap_widths(model, {pair.student for pair, _ in projected.values()})
            for key, (pair, teacher) in projected.items():
                source = teachers[teacher]
                assert isinstance(source, Teacher)  # `check_terms` refuses features of a mixture
                self.projections[key] = nn.Linear(widths[pair.student], source.widths[pair.teacher])

    def forward(self, view: View) -> Outputs:
        """Logits, and under each pair's key the student's side of it."""
        outputs = self.model(view, tuple({pair.student for pair in self.pairs.values()}))
        features = {}
        for key, pair in self.pairs.items():
            pooled = outputs.features[pair.student].pooled(pair.grid)
            if key in self.projections:
                pooled = FeatureMap(self.projections[key](pooled.values), pooled.times)
            features[key] = pooled
        return Outputs(outputs.logits, features, outputs.known)


class Teacher:
    """A trained model that stays as it is: in eval mode, without gradients, outside every `nn.Module`.

    Args:
        model: the trained model.
        taps: what to hand out besides logits, and how finely.
        remember: keep the outputs of every (clip, view) in memory. True to the view, since a view is a function of
            its number alone; for runs that see the same views again.
    """

    def __init__(self, model: Model[Any], taps: Mapping[str, Grid], *, remember: bool = False) -> None:
        model.check_taps(list(taps))
        self.model = model.eval().requires_grad_(False)
        self.taps = dict(taps)
        self.widths = tap_widths(model, set(taps))
        self._memory: dict[tuple[str, int], dict[str, Tensor]] | None = {} if remember else None

    @torch.no_grad()
    def __call__(self, view: View | Tensor, ids: Sequence[str], views: Tensor) -> Outputs:
        """Targets for a batch of clips.

        Args:
            view: what the model takes: frames, sound, or the labels (of a text teacher).
            ids: names of the clips.
            views: (B,), their view numbers.
        """
        if self._memory is None:
            return self._compute(view)
        keys = list(zip(ids, views.tolist(), strict=True))
        new = [place for place, key in enumerate(keys) if key not in self._memory]
        if new:
            self._store([keys[place] for place in new], self._compute(_rows(view, new)))
        rows = [self._memory[key] for key in keys]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        features = {tap: FeatureMap(stacked[tap], stacked[f"{tap}.times"]) for tap in self.taps}
        return Outputs(stacked.get("logits"), features, stacked.get("known"))

    def _compute(self, view: View | Tensor) -> Outputs:
        outputs: Outputs = self.model(view, tuple(self.taps))
        features = {tap: outputs.features[tap].pooled(grid) for tap, grid in self.taps.items()}
        return Outputs(outputs.logits, features, outputs.known)

    def _store(self, keys: Sequence[tuple[str, int]], outputs: Outputs) -> None:
        assert self._memory is not None
        whole = {
            name: part for name, part in (("logits", outputs.logits), ("known", outputs.known)) if part is not None
        }
        for place, key in enumerate(keys):
            row = {name: part[place] for name, part in whole.items()}
            for tap, feature_map in outputs.features.items():
                row |= {tap: feature_map.values[place].clone(), f"{tap}.times": feature_map.times[place].clone()}
            self._memory[key] = row


MixtureWeights = Literal["uniform", "confidence"]
"""All teachers alike; or each by the probability that it gives the clip's class, exp(-CE) [CA-MKD, Zhang et al.
2022], and on clips without a label by how sure it is, exp(-entropy)."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several teachers as one: their probabilities averaged, never their logits, clip by clip. It has no features.

    A teacher that says nothing of a clip (no sound) has no part in it.
    """

    of: tuple[str, ...]
    """The teachers' names in the recipe."""
    weights: MixtureWeights = "uniform"

    def __post_init__(self) -> None:
        if len(set(self.of)) < 2:
            raise ValueError(f"a mixture is of at least two different teachers, got {self.of}")

    def __call__(self, targets: Mapping[str, Outputs], label: Tensor) -> Outputs:
        """The mixture's logits, log of the mean probability, from what its teachers said."""
        said = [targets[name] for name in self.of]
        log_probs = torch.stack([_logits(one).float().log_softmax(dim=1) for one in said])  # (M, B, K)
        everything = torch.ones(log_probs.shape[1], dtype=torch.bool, device=log_probs.device)
        known = torch.stack([everything if one.known is None else one.known for one in said])  # (M, B)
        trust = _log_confidence(log_probs, label) if self.weights == "confidence" else torch.zeros_like(known.float())
        shares = trust.masked_fill(~known, -torch.inf).softmax(dim=0).nan_to_num()  # nan where nobody knows
        # Whatever is said of a clip that is not known has no part, not even one that is not a number.
        mixed = torch.where(known[:, :, None], log_probs.exp() * shares[:, :, None], 0).sum(dim=0)
        return Outputs(mixed.clamp(min=1e-12).log(), known=known.any(dim=0))


@dataclass(frozen=True)
class Objective:
    """A dict of named, weighted losses."""

    terms: Mapping[str, Term] = field(default_factory=dict)

    def __call__(
        self, student: Outputs, targets: Mapping[str, Outputs], label: Tensor, *, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Each term's own value by name, unweighted, and their weighted sum under "total".

        A term counts the clips of which both its parties say something: a teacher that listens says nothing of a clip
        without sound.

        Args:
            student: what `Student` returned.
            targets: teacher name -> what that teacher returned.
            label: int64 (B,), or shares (B, K).
            progress: share of the run that is over, for the weights' warm-up.
        """
        losses: dict[str, Tensor] = {}
        total = label.new_zeros((), dtype=torch.float32)
        for name, term in self.terms.items():
            features = {pair.student: student.features[_key(pair, term.teacher)] for pair in term.loss.pairs()}
            teacher = targets[term.teacher] if term.loss.needs_teacher else None
            losses[name] = _over_known(term.loss, Outputs(student.logits, features, student.known), teacher, label)
            total = total + term.weight_at(progress) * losses[name]
        return {**losses, "total": total}


def all_targets(teachers: "Mapping[str, Teacher | Mixture]", batch: Batch) -> dict[str, Outputs]:
    """What every teacher says of its own view of the batch; one that takes no view, of the labels."""
    targets = {
        name: teacher(batch.clips.get(name, batch.label), batch.id, batch.view)
        for name, teacher in teachers.items()
        if isinstance(teacher, Teacher)
    }
    for name, mixture in teachers.items():
        if isinstance(mixture, Mixture):
            targets[name] = mixture(targets, batch.label)
    return targets


def wanted_taps(terms: Mapping[str, Term], teacher: str) -> dict[str, Grid]:
    """The taps of one teacher that any term compares, each as finely as the finest needs it."""
    wanted: dict[str, Grid] = {}
    for term in terms.values():
        for pair in term.loss.pairs() if term.teacher == teacher else ():
            finest = max(pair.grid, wanted.get(pair.teacher, "clip"), key=lambda grid: _FINENESS[grid])
            wanted[pair.teacher] = finest
    return wanted


def check_terms(
    terms: Mapping[str, Term], teachers: Sequence[str], mixtures: Mapping[str, Mixture] | None = None
) -> None:
    """Raises a `ValueError` for an objective that is empty, a term whose teacher the recipe does not name, or one that
    wants features of a mixture."""
    for name, mixture in (mixtures or {}).items():
        for part in mixture.of:
            if part not in teachers or part in (mixtures or {}):
                hint = nearest(part, [other for other in teachers if other not in (mixtures or {})])
                raise ValueError(f"mixture {name!r} is of {part!r}, which is no single teacher of the recipe{hint}")
    if not terms:
        raise ValueError("the objective has no term; add at least Term(loss=CrossEntropy())")
    for name, term in terms.items():
        if name in ("total", "lr", "step"):
            raise ValueError(f"a term can't be called {name!r}: the log has a column of that name")
        if term.loss.needs_teacher and term.teacher not in teachers:
            raise ValueError(
                f"term {name!r} listens to teacher {term.teacher!r}, which the recipe does not have"
                f"{nearest(term.teacher, teachers)}"
            )
        if term.loss.pairs() and term.teacher in (mixtures or {}):
            raise ValueError(f"term {name!r} compares features, and {term.teacher!r} is a mixture, which has none")


def check_taps(terms: Mapping[str, Term], models: Mapping[str, Model[Any]]) -> None:
    """Raises a `ValueError` that names the term, the party and the nearest tap, for one that a model does not have.

    Args:
        terms: of the objective.
        models: "student" and teachers by name; what is compared of others is not checked.
    """
    for name, term in terms.items():
        for pair in term.loss.pairs():
            for party, tap in (("student", pair.student), (term.teacher, pair.teacher)):
                try:
                    if party in models:
                        models[party].check_taps([tap])
                except ValueError as error:
                    raise ValueError(f"term {name!r} compares {tap!r} of {party!r}: {error}") from error


@torch.no_grad()
def tap_widths(model: Model[Any], taps: set[str]) -> dict[str, int]:
    """Channels of each tap, found by a forward pass over one clip of nothing."""
    if not taps:
        return {}
    training = model.training
    features = model.eval()(model.blank(), tuple(taps)).features
    model.train(training)
    return {tap: feature_map.values.shape[-1] for tap, feature_map in features.items()}


def _rows(view: View | Tensor, rows: Sequence[int]) -> View | Tensor:
    """Some of the clips."""
    if isinstance(view, Clip):
        return Clip(view.frames[rows], view.times[rows])
    if isinstance(view, Sound):
        return Sound(view.samples[rows], view.start[rows], view.heard[rows])
    return view[rows]


def _logits(outputs: Outputs) -> Tensor:
    if outputs.logits is None:
        raise ValueError("a mixture averages probabilities, and one of its teachers has no classes")
    return outputs.logits


def _log_confidence(log_probs: Tensor, label: Tensor) -> Tensor:
    """Log of how far to trust each teacher on each clip: (M, B) from log-probabilities (M, B, K)."""
    known = labelled(label)
    if label.ndim == 1:
        right = log_probs.gather(2, label.clamp(min=0)[None, :, None].expand(len(log_probs), -1, 1)).squeeze(2)
    else:
        right = (log_probs * label.clamp(min=0)).sum(dim=2)
    minus_entropy = (log_probs.exp() * log_probs).sum(dim=2)
    return torch.where(known, right, minus_entropy)


def _over_known(loss: Loss, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
    """The loss over the clips of which both say something; 0, with a gradient of 0, if there are none."""
    said = [one.known for one in (student, teacher) if one is not None and one.known is not None]
    if not said:
        return loss(student, teacher, label)
    rows = torch.stack(said).all(dim=0)
    if not rows.any():
        parts = [part for part in (student.logits, *(f.values for f in student.features.values())) if part is not None]
        return torch.stack([0 * part.sum() for part in parts]).sum()
    return loss(student.at(rows), None if teacher is None else teacher.at(rows), label[rows])


def _key(pair: Pair, teacher: str) -> str:
    # A dot can't stand in a module's name.
    kind = "projected" if pair.projected else "plain"
    return f"{pair.student}|{teacher}|{pair.teacher}|{pair.grid}|{kind}".replace(".", "/")
