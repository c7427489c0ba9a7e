"""The parties of a distillation: a student that learns, teachers that do not, and the objective between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Batch, Clip, FeatureMap, Grid, Outputs
from videokd.losses import Loss, Pair
from videokd.models import VideoModel

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

    def __init__(self, model: VideoModel, terms: Mapping[str, Term], teachers: "Mapping[str, Teacher]") -> None:
        super().__init__()
        self.model = model
        self.pairs: dict[str, Pair] = {}
        for term in terms.values():
            for pair in term.loss.pairs():
                model.check_taps([pair.student])
                self.pairs[_key(pair, term.teacher)] = pair
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
                self.projections[key] = nn.Linear(widths[pair.student], teachers[teacher].widths[pair.teacher])

    def forward(self, clip: Clip) -> Outputs:
        """Logits, and under each pair's key the student's side of it."""
        outputs = self.model(clip, tuple({pair.student for pair in self.pairs.values()}))
        features = {}
        for key, pair in self.pairs.items():
            pooled = outputs.features[pair.student].pooled(pair.grid)
            if key in self.projections:
                pooled = FeatureMap(self.projections[key](pooled.values), pooled.times)
            features[key] = pooled
        return Outputs(outputs.logits, features)


class Teacher:
    """A trained model that stays as it is: in eval mode, without gradients, outside every `nn.Module`.

    Args:
        model: the trained model.
        taps: what to hand out besides logits, and how finely.
        remember: keep the outputs of every (clip, view) in memory. True to the view, since a view is a function of
            its number alone; for runs that see the same views again.
    """

    def __init__(self, model: VideoModel, taps: Mapping[str, Grid], *, remember: bool = False) -> None:
        model.check_taps(list(taps))
        self.model = model.eval().requires_grad_(False)
        self.taps = dict(taps)
        self.widths = tap_widths(model, set(taps))
        self._memory: dict[tuple[str, int], dict[str, Tensor]] | None = {} if remember else None

    @torch.no_grad()
    def __call__(self, clip: Clip, ids: Sequence[str], views: Tensor) -> Outputs:
        """Targets for a batch of clips, whose names and view numbers are `ids` and `views` (B,)."""
        if self._memory is None:
            return self._compute(clip)
        keys = list(zip(ids, views.tolist(), strict=True))
        new = [place for place, key in enumerate(keys) if key not in self._memory]
        if new:
            self._store([keys[place] for place in new], self._compute(Clip(clip.frames[new], clip.times[new])))
        rows = [self._memory[key] for key in keys]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        features = {tap: FeatureMap(stacked[tap], stacked[f"{tap}.times"]) for tap in self.taps}
        return Outputs(stacked["logits"], features)

    def _compute(self, clip: Clip) -> Outputs:
        outputs = self.model(clip, tuple(self.taps))
        return Outputs(outputs.logits, {tap: outputs.features[tap].pooled(grid) for tap, grid in self.taps.items()})

    def _store(self, keys: Sequence[tuple[str, int]], outputs: Outputs) -> None:
        assert self._memory is not None
        assert outputs.logits is not None
        for place, key in enumerate(keys):
            row = {"logits": outputs.logits[place]}
            for tap, feature_map in outputs.features.items():
                row |= {tap: feature_map.values[place].clone(), f"{tap}.times": feature_map.times[place].clone()}
            self._memory[key] = row


@dataclass(frozen=True)
class Objective:
    """A dict of named, weighted losses."""

    terms: Mapping[str, Term] = field(default_factory=dict)

    def __call__(
        self, student: Outputs, targets: Mapping[str, Outputs], label: Tensor, *, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Each term's own value by name, unweighted, and their weighted sum under "total".

        Args:
            student: what `Student` returned.
            targets: teacher name -> what that teacher returned.
            label: (B,) int64.
            progress: share of the run that is over, for the weights' warm-up.
        """
        losses: dict[str, Tensor] = {}
        total = label.new_zeros((), dtype=torch.float32)
        for name, term in self.terms.items():
            features = {pair.student: student.features[_key(pair, term.teacher)] for pair in term.loss.pairs()}
            teacher = targets[term.teacher] if term.loss.needs_teacher else None
            losses[name] = term.loss(Outputs(student.logits, features), teacher, label)
            total = total + term.weight_at(progress) * losses[name]
        return {**losses, "total": total}


def all_targets(teachers: Mapping[str, Teacher], batch: Batch) -> dict[str, Outputs]:
    """What every teacher says of its own view of the batch."""
    return {name: teacher(batch.clips[name], batch.id, batch.view) for name, teacher in teachers.items()}


def wanted_taps(terms: Mapping[str, Term], teacher: str) -> dict[str, Grid]:
    """The taps of one teacher that any term compares, each as finely as the finest needs it."""
    wanted: dict[str, Grid] = {}
    for term in terms.values():
        for pair in term.loss.pairs() if term.teacher == teacher else ():
            finest = max(pair.grid, wanted.get(pair.teacher, "clip"), key=lambda grid: _FINENESS[grid])
            wanted[pair.teacher] = finest
    return wanted


def check_terms(terms: Mapping[str, Term], teachers: Sequence[str]) -> None:
    """Raises a `ValueError` for an objective that is empty, or a term whose teacher the recipe does not name."""
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


@torch.no_grad()
def tap_widths(model: VideoModel, taps: set[str]) -> dict[str, int]:
    """Channels of each tap, found by a forward pass over one black clip."""
    if not taps:
        return {}
    spec, device, training = model.config.input, model.mean.device, model.training
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8, device=device)
    times = torch.arange(spec.frames, dtype=torch.float32, device=device)[None]
    features = model.eval()(Clip(frames, times), tuple(taps)).features
    model.train(training)
    return {tap: feature_map.values.shape[-1] for tap, feature_map in features.items()}


def _key(pair: Pair, teacher: str) -> str:
    # A dot can't stand in a module's name.
    kind = "projected" if pair.projected else "plain"
    return f"{pair.student}|{teacher}|{pair.teacher}|{pair.grid}|{kind}".replace(".", "/")
