"""Teachers: trained models that stay as they are, and mixtures of what they say."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from videokd.contracts import Batch, Clip, FeatureMap, Grid, InputSpec, Outputs, Pace, Sound, View, labelled
from videokd.models import Model


class Teacher:
    """A trained model that stays as it is: in eval mode at each call, without gradients, outside every `nn.Module`.

    Args:
        model: the trained model.
        taps: what to hand out besides logits, and how finely.
        remember: keep the outputs of every (clip, view) in memory. True to the view, since a view is a function of
            its number alone; for runs that see the same views again.
        stored: what it said of clips, by their names and view numbers, on a device; the model itself never runs then,
            and stays where it is.
    """

    def __init__(
        self,
        model: Model[Any],
        taps: Mapping[str, Grid],
        *,
        remember: bool = False,
        stored: Callable[[Sequence[str], Tensor, torch.device], Outputs] | None = None,
    ) -> None:
        if remember and stored is not None:
            raise ValueError("what is stored needs no memory: remember is False where outputs are stored")
        model.check_taps(list(taps))
        self.model = model.requires_grad_(False)
        _put_in_eval_mode(model)
        self.taps = dict(taps)
        grids = tap_grids(model, set(taps))
        self.shapes = {tap: grid.shape for tap, grid in grids.items()}
        self.paces = {tap: grid.pace for tap, grid in grids.items()}
        self.stored = stored
        self._memory: dict[tuple[str, int], dict[str, Tensor]] | None = {} if remember else None
        self._shuffles = False

    def shuffled(self) -> "Teacher":
        """The same teacher, with the same memory, which tells every clip of a batch what it thinks of another one: a
        control, whose targets are as many, as sharp and as varied, and know nothing of the clip."""
        other = copy(self)
        other._shuffles = True
        return other

    @property
    def remembers(self) -> bool:
        """Whether it keeps its outputs."""
        return self._memory is not None

    @torch.no_grad()
    def __call__(self, view: View | Tensor, ids: Sequence[str], views: Tensor) -> Outputs:
        """Targets for a batch of clips.

        Args:
            view: what the model takes: frames, sound, or the labels (of a text teacher, and where outputs are stored).
            ids: names of the clips.
            views: (B,), their view numbers.

        Raises:
            ValueError: if it is `shuffled` and more than half of the clips are of one video, or if a part of the model
                can't be put in eval mode.
        """
        said = self._said(view, ids, views)
        return _of_others(said, ids) if self._shuffles else said

    def _said(self, view: View | Tensor, ids: Sequence[str], views: Tensor) -> Outputs:
        if self.stored is not None:
            assert isinstance(view, Tensor)
            return self.stored(ids, views, view.device)
        if self._memory is None:
            return self._compute(view)
        keys = list(zip(ids, views.tolist(), strict=True))
        new = [place for place, key in enumerate(keys) if key not in self._memory]
        if new:
            # As many clips at once as ever: what is said of one must not hang on which others are new (the last digits
            # do), or a resumed run, which remembers nothing, would learn from other targets.
            filled = [*new, *[new[0]] * (len(keys) - len(new))]
            self._store([keys[place] for place in new], self._compute(_rows(view, filled)).at(torch.arange(len(new))))
        rows = [self._memory[key] for key in keys]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        features = {tap: FeatureMap(stacked[tap], stacked[f"{tap}.times"]) for tap in self.taps}
        return Outputs(stacked.get("logits"), features, stacked.get("known"))

    def _compute(self, view: View | Tensor) -> Outputs:
        _put_in_eval_mode(self.model)
        with torch.inference_mode():
            outputs: Outputs = self.model(view, tuple(self.taps))
            features = {tap: outputs.features[tap].pooled(grid) for tap, grid in self.taps.items()}
        return Outputs(
            None if outputs.logits is None else _ordinary(outputs.logits),
            {tap: FeatureMap(_ordinary(one.values), _ordinary(one.times)) for tap, one in features.items()},
            None if outputs.known is None else _ordinary(outputs.known),
        )

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


def all_targets(teachers: "Mapping[str, Teacher | Mixture]", batch: Batch) -> dict[str, Outputs]:
    """What every teacher says of its own view of the batch; one that takes no view, of the labels. Of the shuffled view
    too, where there is one. One whose outputs are stored has no view either."""
    targets = {}
    for name, teacher in teachers.items():
        if not isinstance(teacher, Teacher):
            continue
        said = teacher(batch.clips.get(name, batch.label), batch.id, batch.view)
        if name in batch.shuffled:
            # The shuffle is a function of clip and view: it is remembered as another clip.
            other = teacher(batch.shuffled[name], [f"{one} shuffled" for one in batch.id], batch.view)
            more = {f"shuffled {tap}": found for tap, found in other.features.items()}
            said = Outputs(said.logits, {**said.features, **more}, said.known)
        targets[name] = said
    for name, mixture in teachers.items():
        if isinstance(mixture, Mixture):
            targets[name] = mixture(targets, batch.label)
    return targets


def check_not_shared(student: nn.Module, teachers: "Mapping[str, Teacher | Mixture]") -> None:
    """Check that no teacher has a module, parameter or buffer of the student.

    Raises:
        ValueError: if one has: it would not stay as it is, and would put the student in eval mode.
    """
    own = {id(one) for one in (*student.modules(), *student.parameters(), *student.buffers())}
    for name, teacher in teachers.items():
        if not isinstance(teacher, Teacher):
            continue
        named = (*teacher.model.named_modules(), *teacher.model.named_parameters(), *teacher.model.named_buffers())
        shared = next((path for path, one in named if id(one) in own), None)
        if shared is not None:
            part = f"its {shared!r}" if shared else "its whole model"
            raise ValueError(
                f"teacher {name!r} shares {part} with the student: a teacher stays as it is, so give it a copy "
                "(copy.deepcopy of the model)"
            )


def tap_shapes(model: Model[Any], taps: set[str]) -> dict[str, tuple[int, int, int, int]]:
    """Steps, rows, columns and channels of each tap, found by a forward pass over one clip of nothing."""
    return {tap: shape for tap, (shape, _) in tap_grids(model, taps).items()}


class TapGrid(NamedTuple):
    """What a model's maps are at one tap, whatever the clip."""

    shape: tuple[int, int, int, int]
    """Steps, rows, columns and channels."""
    pace: Pace | None
    """None for a model that does not look at frames."""


@torch.no_grad()
def tap_grids(model: Model[Any], taps: set[str]) -> dict[str, TapGrid]:
    """The grid of each tap, found by a forward pass over one clip of nothing."""
    if not taps:
        return {}
    modes = [(module, module.training) for module in model.modules()]
    features = model.eval()(model.blank(), tuple(taps)).features
    for module, training in modes:
        module.training = training
    found = {}
    for tap, feature_map in features.items():
        _, steps, rows, columns, channels = feature_map.values.shape
        pace = None
        if isinstance(model.input, InputSpec):  # its frames of nothing are a second apart
            centres = tuple(round(centre, 4) for centre in feature_map.times[0].tolist())
            pace = Pace(model.input.sampling, model.input.frames, centres)
        found[tap] = TapGrid((steps, rows, columns, channels), pace)
    return found


def _of_others(said: Outputs, ids: Sequence[str]) -> Outputs:
    """Every clip with the outputs, whole, of the next video of the batch; the order of a batch is random as it is, so
    nothing more is drawn. Times stay the clip's own."""
    most = Counter(ids).most_common(1)[0][1]
    if 2 * most > len(ids):
        raise ValueError(
            f"a shuffled teacher says of each clip what it thinks of another video, and {most} of the {len(ids)} clips "
            f"of a batch are of {ids[0]!r}: take larger batches, or fewer data.repeats"
        )
    first = {name: place for place, name in reversed(list(enumerate(ids)))}
    # Views of a video side by side: as far on as the most of them reaches, there is another video.
    order = sorted(range(len(ids)), key=lambda place: first[ids[place]])
    source = torch.empty(len(ids), dtype=torch.int64)
    source[order] = torch.tensor(order).roll(-most)
    others = said.at(source)
    features = {tap: replace(one, times=said.features[tap].times) for tap, one in others.features.items()}
    return replace(others, features=features)


def _put_in_eval_mode(model: nn.Module) -> None:
    """Put a model in eval mode, all its parts.

    Raises:
        ValueError: if a part stays in train mode.
    """
    if not any(module.training for module in model.modules()):
        return
    model.eval()
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f"a teacher is in eval mode, and its {name or 'model'!r} ({type(module).__name__}) stays in train mode "
                "after eval(): its outputs would change from call to call"
            )


def _rows(view: View | Tensor, rows: Sequence[int]) -> View | Tensor:
    """Some of the clips."""
    if isinstance(view, Clip):
        return Clip(view.frames[rows], view.times[rows])
    if isinstance(view, Sound):
        return Sound(view.samples[rows], view.start[rows], view.heard[rows])
    return view[rows]


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor that losses may keep for their backward pass, which none of inference mode is."""
    return tensor.clone() if tensor.is_inference() else tensor


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
