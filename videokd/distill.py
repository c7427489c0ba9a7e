"""The parties of a distillation: a student that learns, teachers that do not, and the objective between them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from videokd.bank import ClassVectors, Queue
from videokd.config import nearest
from videokd.contracts import Batch, FeatureMap, Grid, Outputs, Pace, View
from videokd.losses import BinarySoftTargets, ClipwiseLoss, Head, Loss, Pair
from videokd.losses.loss import in_range
from videokd.models import Model
from videokd.models.head import class_vectors, linear_head, looks_at_order
from videokd.models.simkd import SimKDModel
from videokd.processes import is_distributed, mean_over_processes, world_size
from videokd.teachers import Mixture, Teacher, check_not_shared, tap_grids
from videokd.weighting import ClipWeights, FixedWeights, Weighting, scheduled_weight

_FINENESS: dict[Grid, int] = {"clip": 0, "frames": 1, "map": 2}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One weighted loss of an objective; its name in the objective is its column in the log."""

    loss: Loss
    weight: float = 1.0
    warmup: float = 0.0
    """Share of the run over which the weight rises from zero."""
    decay: float = 0.0
    """Share of the run, at its end, over which the weight falls to zero."""
    teacher: str = "teacher"
    """Which teacher it listens to."""
    clips: ClipWeights | None = None
    """Weights of its clips; None counts all alike."""

    def __post_init__(self) -> None:
        for part in (self.loss, self.clips):
            if isinstance(part, type):
                raise ValueError(f"write {part.__name__}(), with its parentheses and what it is given")
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")
        in_range(warmup=(self.warmup, 0, 1), decay=(self.decay, 0, 1))
        name = type(self.loss).__name__
        if self.clips is not None and not (isinstance(self.loss, ClipwiseLoss) and self.loss.needs_teacher):
            raise ValueError(
                f"{name} is not a mean over clips that follow a teacher: {type(self.clips).__name__} can't weigh them"
            )

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the run, in [0, 1]."""
        return scheduled_weight(self.weight, progress, warmup=self.warmup, decay=self.decay)

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether the teacher's classes must be the student's."""
        return self.loss.needs_teacher_logits or self.clips is not None


class Student(nn.Module):
    """A model and what it learns only for the sake of the losses: connectors to the teachers' features.

    `model` alone is what is evaluated, saved and shipped. Terms that compare the same taps share a connector.
    `objective` is here too, with what it learns and keeps: one module to optimise, to save and to distribute.

    Args:
        model: the student.
        terms: of the objective.
        teachers: by name, all that the terms listen to.
        weighting: of the terms against each other.

    Raises:
        ValueError: if a model lacks a tap, a term would always be zero between these taps, a teacher lacks the last
            layer that a term needs, or a teacher shares a part of the student.
    """

    def __init__(
        self,
        model: Model[Any],
        terms: Mapping[str, Term],
        teachers: "Mapping[str, Teacher | Mixture]",
        weighting: Weighting = FixedWeights(),
    ) -> None:
        super().__init__()
        check_not_shared(model, teachers)
        self.model = model
        trained = {name: one for name, one in teachers.items() if isinstance(one, Teacher)}
        check_taps(terms, {"student": model, **{name: one.model for name, one in trained.items()}})
        wanted = [(name, pair, term.teacher) for name, term in terms.items() for pair in term.loss.pairs()]
        grids = tap_grids(model, {pair.student for _, pair, _ in wanted})
        self.pairs: dict[str, Pair] = {pair_key(pair, teacher): pair for _, pair, teacher in wanted}
        self.connectors = nn.ModuleDict()
        for name, pair, teacher in wanted:
            source = trained[teacher]  # `check_terms` refuses features of a mixture
            _check_grids(name, terms[name].loss, grids[pair.student].shape, source.shapes[pair.teacher])
            self._connect(pair, teacher, grids[pair.student].shape[-1], source)
        self.objective = Objective(terms, teachers, weighting)
        self.objective.paces = {"student": {tap: grid.pace for tap, grid in grids.items()}}
        self.objective.paces |= {name: teacher.paces for name, teacher in trained.items()}
        # Not the module's own: they are the model's.
        self.objective.weigher.shared = list(model.parameters())
        for name, pair, teacher in wanted if self.objective.pieces else ():
            for party, one, tap in (("student", model, pair.student), (teacher, trained[teacher].model, pair.teacher)):
                if pair.shuffled and not looks_at_order(one, tap):
                    raise ValueError(
                        f"term {name!r} compares how much the order of the frames matters, and {party}'s {tap!r} is "
                        "the same in any order: leave it out, or take a model that ties frames together"
                    )
        if isinstance(model, SimKDModel):
            if model.teacher not in trained:
                raise ValueError(
                    f"SimKD takes the last layer of teacher {model.teacher!r}, which the recipe does not have"
                    f"{nearest(model.teacher, trained)}"
                )
            taps = {pair.teacher for _, pair, teacher in wanted if teacher == model.teacher}
            model.take_head_of(trained[model.teacher].model, taps)

    def _connect(self, pair: Pair, teacher: str, width: int, source: "Teacher") -> None:
        key = pair_key(pair, teacher)
        if pair.connector is None or key in self.connectors:
            return
        if pair.connector.needs_head and pair.teacher != "clip":
            raise ValueError(
                f"a teacher's last layer takes its tap 'clip', not {pair.teacher!r}: set teacher_tap to 'clip'"
            )
        head = Head(*linear_head(source.model)) if pair.connector.needs_head else None
        self.connectors[key] = pair.connector.build(width, source.shapes[pair.teacher][-1], head)

    def forward(self, view: View, shuffled: View | None = None) -> Outputs:
        """Logits, and under each pair's key the student's side of it.

        Args:
            view: of the clips.
            shuffled: the same with pieces of time in another order, for the pairs that compare these.
        """
        before = None if shuffled is None else _random_state(self.model)
        outputs = self.model(view, tuple({pair.student for pair in self.pairs.values() if not pair.shuffled}))
        other = None
        if shuffled is not None and before is not None:
            with _again(self.model, before):
                other = self.model(shuffled, tuple({pair.student for pair in self.pairs.values() if pair.shuffled}))
        features = {}
        for key, pair in self.pairs.items():
            source = other if pair.shuffled else outputs
            if source is None:
                raise ValueError("a term compares shuffled clips, and none were given: see `clips.shuffling`")
            pooled = source.features[pair.student].pooled(pair.grid)
            if key in self.connectors:
                pooled = FeatureMap(self.connectors[key](pooled.values), pooled.times)
            features[key] = pooled
        return Outputs(outputs.logits, features, outputs.known)


class Objective(nn.Module):
    """Named, weighted losses, with what they learn and keep.

    Args:
        terms: by name.
        teachers: those that terms with a bank listen to.
        weighting: of the terms against each other.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        teachers: "Mapping[str, Teacher | Mixture] | None" = None,
        weighting: Weighting = FixedWeights(),
    ) -> None:
        super().__init__()
        self.terms = dict(terms)
        self._keys = {
            name: [pair_key(pair, term.teacher) for pair in term.loss.pairs()] for name, term in terms.items()
        }
        self.weigher = weighting.build(list(terms))
        self.learned = nn.ParameterDict(
            {
                _own(name, one): torch.tensor(start)
                for name, term in terms.items()
                for one, start in term.loss.learned.items()
            }
        )
        self.banks = nn.ModuleDict()
        for name, term in terms.items():
            if term.loss.bank != "none":
                source = (teachers or {}).get(term.teacher)
                if not isinstance(source, Teacher):
                    raise ValueError(f"term {name!r} keeps features of teacher {term.teacher!r}, which is not given")
                self.banks[_own(name, "bank")] = _bank(term.loss, source)
        self.paces: Mapping[str, Mapping[str, Pace | None]] = {}
        """Party -> tap -> what is known of its steps without looking at them."""
        self.weights: dict[str, Tensor] = {}
        """Of every term at the last step, all things considered."""

    def forward(
        self,
        student: Outputs,
        targets: Mapping[str, Outputs],
        label: Tensor,
        *,
        ids: Sequence[str] | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """Each term's own value by name, unweighted, and their weighted sum under "total".

        A term counts the clips of which both its parties say something: a teacher that listens says nothing of a clip
        without sound.

        Args:
            student: what `Student` returned.
            targets: teacher name -> what that teacher returned.
            label: int64 (B,), or shares (B, K).
            ids: names of the clips, so that other views of a clip are not taken for other clips.
            progress: share of the run that is over, for the weights' schedule.
        """
        device = label.device
        # Losses are for fp32, whoever calls: Gram matrices in bf16 tell no angles.
        clip = None
        if ids is not None and any(term.loss.tells_clips_apart for term in self.terms.values()):
            clip = torch.tensor([_number(one) for one in ids]).to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=False):
            known = _KnownByBoth(student, targets)
            found = {name: self._value(name, student, targets, label, clip, progress, known) for name in self.terms}
            for name, value in found.items():
                if value.shape != ():
                    kind = type(self.terms[name].loss).__name__
                    raise ValueError(
                        f"term {name!r} ({kind}) is to give one number, and gave {tuple(value.shape)}: mean()?"
                    )
            values = torch.stack(list(found.values()))
            scheduled = torch.tensor([term.weight_at(progress) for term in self.terms.values()])
            scheduled = scheduled.to(device, non_blocking=True)
            factors, added = self.weigher(list(found.values()))
            weights = scheduled * factors
            total = weights.dot(values)
            if isinstance(added, Tensor):
                total = total + scheduled.dot(added)
        self.weights = dict(zip(self.terms, weights.detach().unbind(), strict=True))
        return {**found, "total": total}

    def _value(
        self,
        name: str,
        student: Outputs,
        targets: Mapping[str, Outputs],
        label: Tensor,
        clip: Tensor | None,
        progress: float,
        known: "_KnownByBoth",
    ) -> Tensor:
        term = self.terms[name]
        pairs = term.loss.pairs()
        features = {
            pair.student_name: self._paced(student.features[key], "student", pair.student)
            for key, pair in zip(self._keys[name], pairs, strict=True)
        }
        extra = {one: self.learned[_own(name, one)] for one in term.loss.learned}
        if extra:
            extra["progress"] = torch.full((), progress, device=label.device)
        mine = Outputs(student.logits, features, student.known, extra)
        if not term.loss.needs_teacher:
            return _over_rows(term, mine, None, label, known.rows(None))
        said = targets[term.teacher].features
        paced = {pair.teacher_name: self._paced(said[pair.teacher_name], term.teacher, pair.teacher) for pair in pairs}
        teacher = replace(targets[term.teacher], features={**said, **paced}, clip=clip)
        bank: Any = self.banks[_own(name, "bank")] if term.loss.bank != "none" else None
        seen = replace(teacher, extra=bank.contents()) if bank else teacher
        value = _over_rows(term, mine, seen, label, known.rows(term.teacher))
        if bank:
            bank.push(teacher, label)
        return value

    def _paced(self, features: FeatureMap, party: str, tap: str) -> FeatureMap:
        pace = self.paces.get(party, {}).get(tap)
        is_whole = pace is not None and len(pace.centres) == features.times.shape[1]  # and not pooled
        return replace(features, pace=pace) if is_whole else features

    @property
    def pieces(self) -> int:
        """Pieces of time that terms want shuffled; 0 if none does."""
        return max((term.loss.pieces for term in self.terms.values()), default=0)


class Step(nn.Module):
    """Student and objective as one module, from a batch to its losses: what is distributed over processes."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, batch: Batch, targets: Mapping[str, Outputs], progress: float
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """What the student said, and the losses; see `Objective.forward`.

        Args:
            batch: with the student's view.
            targets: teacher name -> what that teacher said.
            progress: share of the run that is over.
        """
        outputs = self.student(batch.clips["student"], batch.shuffled.get("student"))
        return outputs, self.student.objective(outputs, targets, batch.label, ids=batch.id, progress=progress)


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
        if isinstance(term.loss, BinarySoftTargets) and term.teacher in (mixtures or {}):
            raise ValueError(
                f"term {name!r} looks at every class by itself, and {term.teacher!r} is a mixture of probabilities "
                "that sum to 1: give each teacher a term of its own"
            )
    cut = {term.loss.pieces for term in terms.values()} - {0}
    if len(cut) > 1:
        raise ValueError(f"terms shuffle {' and '.join(map(str, sorted(cut)))} pieces of the clips: choose one number")


def check_clips(
    terms: Mapping[str, Term], *, batch_size: int, unlabelled: int, mixes: bool, several_labels: bool
) -> None:
    """Raises a `ValueError`, which says what to do, for terms that can't learn from such clips.

    Args:
        terms: of the objective.
        batch_size: clips of a batch.
        unlabelled: how many of them have no label.
        mixes: whether clips are mixed.
        several_labels: whether clips have several labels.
    """
    for name, term in terms.items():
        loss, kind = term.loss, type(term.loss).__name__
        who = f"term {name!r} ({kind})"
        if batch_size < loss.min_clips:
            raise ValueError(
                f"{who} compares clips of a batch with each other, at least {loss.min_clips}: set data.batch_size to "
                f"more than {batch_size}"
            )
        if unlabelled == batch_size and loss.needs_labels:
            raise ValueError(f"{who} needs labels, and no clip of a batch has one: leave it out, or keep some labelled")
        if unlabelled and loss.needs_labels and loss.needs_teacher:
            raise ValueError(
                f"{who} needs labels, and {unlabelled} clips of every batch have none: {_other_target(loss)}"
                "take a loss without labels (SoftTargets, DIST), or set data.unlabelled_per_batch to 0"
            )
        if mixes and loss.needs_one_class:
            raise ValueError(
                f"{who} needs clips of one class, and data.mix mixes them: {_other_target(loss)}"
                "take a loss for mixed clips (SoftTargets, DIST), or set data.mix to None"
            )
        if several_labels and not loss.several_labels:
            fitting = "BinarySoftTargets" if loss.needs_teacher else "BinaryCrossEntropy"
            raise ValueError(f"{who} is for clips of one class, and these have several labels: take {fitting}")
        if several_labels and term.clips is not None:
            raise ValueError(f"{who} weighs clips of one class, and these have several labels: set clips to None")
        if loss.bank == "queue" and getattr(loss, "queue", 0) < batch_size:
            raise ValueError(
                f"{who} keeps {getattr(loss, 'queue', 0)} past clips, which is less than a batch ({batch_size}): set "
                "its queue to more"
            )


def _other_target(loss: Loss) -> str:
    return "set its target to 'teacher', " if hasattr(loss, "target") and loss.needs_one_class else ""


def _check_grids(name: str, loss: Loss, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Raises a `ValueError` if the term would be zero whatever the student does: shapes (T, H, W, C)."""
    steps = min(student[0], teacher[0])
    places = min(student[1], teacher[1]) * min(student[2], teacher[2])
    for what, there, least in (("steps of time", steps, loss.min_steps), ("places in space", places, loss.min_places)):
        if there < least:
            raise ValueError(
                f"term {name!r} ({type(loss).__name__}) compares what differs between at least {least} {what}, and "
                f"its taps have {there} in common (steps, rows, columns: {student[:3]} and {teacher[:3]}): "
                "name other taps (`videokd taps RECIPE` lists them), or leave it out"
            )


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


def _bank(loss: Loss, source: "Teacher") -> Queue | ClassVectors:
    (pair,) = loss.pairs()
    if loss.bank == "queue":
        size = int(getattr(loss, "queue"))  # noqa: B009  # a field of losses with such a bank
        return Queue(size, source.shapes[pair.teacher][-1], pair.teacher)
    vectors = class_vectors(source.model)
    if vectors.shape[1] != source.shapes[pair.teacher][-1]:
        raise ValueError(
            f"the vectors of the classes have {vectors.shape[1]} channels, and tap {pair.teacher!r} has "
            f"{source.shapes[pair.teacher][-1]}: compare the tap 'clip'"
        )
    return ClassVectors(vectors)


class _KnownByBoth:
    """The clips of which the student and a teacher say something, found once a step: the host waits for the device."""

    def __init__(self, student: Outputs, targets: Mapping[str, Outputs]) -> None:
        self._student, self._targets = student, targets
        self._found: dict[str | None, Tensor | None] = {}

    def rows(self, teacher: str | None) -> Tensor | None:
        """Their numbers, int64 (N,); None for all."""
        if teacher not in self._found:
            parties = [self._student, *([] if teacher is None else [self._targets[teacher]])]
            said = [one.known for one in parties if one.known is not None]
            self._found[teacher] = torch.stack(said).all(dim=0).nonzero()[:, 0] if said else None
        return self._found[teacher]


def _over_rows(term: Term, student: Outputs, teacher: Outputs | None, label: Tensor, rows: Tensor | None) -> Tensor:
    """The term's loss over some of the clips; 0, with a gradient of 0, if there are none."""
    share = _share_of_clips(term.loss, len(label) if rows is None else len(rows), label.device)
    if rows is not None:
        # A loss that counts the clips of all processes must be called on all of them.
        together = (term.loss.relational or isinstance(term.loss, ClipwiseLoss)) and is_distributed()
        if not len(rows) and not together:
            features = [feature_map.values for feature_map in student.features.values()]
            # Of what the term would look at, and no more: a head that it does not reach is to stay without a gradient.
            reached = features or [part for part in (student.logits,) if part is not None]
            return torch.stack([0 * part.float().sum() for part in (*reached, *student.extra.values())]).sum()
        student, label = student.at(rows), label[rows]
        teacher = None if teacher is None else teacher.at(rows)
    if term.clips is None or teacher is None:
        value = term.loss(student, teacher, label)
        return value if share is None else value * share
    assert isinstance(term.loss, ClipwiseLoss)
    return term.loss(student, teacher, label, term.clips(student, teacher, label).detach())


def _share_of_clips(loss: Loss, clips: int, device: torch.device) -> Tensor | None:
    """How many of the clips that count are this process's, over the mean of all processes: by it a mean over its own
    clips becomes its part in the mean over all. None where there is nothing to do."""
    if not is_distributed() or loss.relational or isinstance(loss, ClipwiseLoss):
        return None
    mine = torch.tensor(float(clips)).to(device, non_blocking=True)
    return mine / mean_over_processes(mine).clamp(min=1 / world_size())


def _random_state(model: Model[Any]) -> tuple[Tensor, Tensor | None]:
    """Of the generators that masks are drawn from."""
    on_gpu = model.device.type == "cuda"
    return torch.get_rng_state(), torch.cuda.get_rng_state(model.device) if on_gpu else None


@contextmanager
def _again(model: Model[Any], before: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """A second pass with the masks (dropout) of the first, which batch normalisation's statistics do not notice."""
    after = _random_state(model)
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [one.momentum for one in norms]
    _set_random_state(model, before)
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.training and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
        _set_random_state(model, after)


def _set_random_state(model: Model[Any], state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], model.device)


def _own(term: str, what: str) -> str:
    """What a term keeps, as a module's name: without dots, and not one that modules have already."""
    return f"{what} of {term}".replace(".", "/")


def _number(clip: str) -> int:
    """Tells clips apart by their names, in every process alike."""
    return int.from_bytes(hashlib.blake2b(clip.encode(), digest_size=7).digest(), "big")


def pair_key(pair: Pair, teacher: str) -> str:
    """What the student's side of a pair is called in what `Student` returns, and the connector between them."""
    # A dot can't stand in a module's name.
    kind = "plain" if pair.connector is None else repr(pair.connector)
    kind = kind if pair.connector is None else f"{kind} to {pair.target}"
    when = "|shuffled" if pair.shuffled else ""
    return f"{pair.student}|{teacher}|{pair.teacher}|{pair.grid}|{kind}{when}".replace(".", "/")
