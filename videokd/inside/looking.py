"""Students beside their teacher, from within: one walk through the videos for all of them."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.loader import batches, leave_out_bad
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.contracts import UNLABELLED, Clip, FeatureMap, Outputs, View, ViewSpec, labelled
from videokd.disk import write_text
from videokd.evaluate import OnBadVideo
from videokd.inside.cka import LEAST_CLIPS, TapSimilarity, pooled
from videokd.inside.objects import on_object
from videokd.inside.probes import FACTORS, Probed, probe
from videokd.inside.rounds import TEACHER, Round, summary
from videokd.inside.saliency import Method, agreement, cam_tap, explain, on_clip
from videokd.json_files import read_object
from videokd.machine import Machine
from videokd.models import Model, VideoModel, load_model

INSIDE = "inside.json"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A teacher and its students, with the videos on which they are compared."""

    teacher: str | Path
    """Its folder."""
    arms: Mapping[str, Sequence[str | Path]]
    """Arm -> the students' folders, one for each seed and paired by place; "alone" is what others are measured by."""
    videos: Manifest
    """Those that none of them was trained on."""
    fit: Manifest | None = None
    """Others that none was trained on either, to fit probes on; None takes half of the groups of `videos` for it."""

    def __post_init__(self) -> None:
        if not self.arms or TEACHER in self.arms or not all(self.arms.values()):
            raise ValueError(f"arms are students by name, each with a folder, and none is {TEACHER!r}: got {self.arms}")
        if self.fit is not None and (both := _groups(self.fit) & _groups(self.videos)):
            raise ValueError(
                f"{len(both)} source videos are both to fit probes on and to score them on, such as {min(both)}"
            )


def look(
    folds: Sequence[Fold],
    *,
    clips: int = 256,
    method: Method | None = None,
    machine: Machine | None = None,
    batch_size: int = 16,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
    memory: FrameMemory | None = None,
    trust: Collection[str] = (),
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, Any]:
    """Features, saliency and probes of students beside their teacher: plain numbers, ready for JSON.

    Each is the mean over folds and seeds; all models of a seed see the same pixels, by the centred view of the student.
    They run in full precision.

    Args:
        folds: one, or those of a study; with the same arms.
        clips: how many are looked at in each fold (and as many to fit probes on), drawn from the lists; the walk's
            memory does not grow with them, but for one vector a clip and model.
        method: how saliency is found; None takes Grad-CAM where all models have maps for it, else gradient x input.
        machine: where the models run; None for the defaults.
        batch_size: clips at once, 4 or more.
        workers: processes that decode.
        on_bad_video: "skip" leaves out what can't be read, and names it in "skipped".
        time_limit: seconds that a worker may spend on a video.
        memory: where decoded videos are kept from one seed to the next.
        trust: see `load_model`.
        advance: called with the number of clips done; there are `steps(folds, clips=clips)` in all.

    Returns:
        "clips", "seeds" (arm -> how many), "skipped" and "notes" (sentences: what could not be found and why), and

        - "cka": {"taps": {"student", "teacher"}, "arms": {arm: matrix}, "clips"}, see `TapSimilarity`; an entry is
          None where a tap is the same for all clips, or the arm does not have it. None without features to compare.
        - "saliency": {"method", "taps" (name -> its tap), "agreement": {arm: {"spearman", "iou"} or None},
          "chance_iou", "on_object": {arm or "teacher": share} or None, "object_area"}, of the clip's class (of an
          unlabelled one, of what the teacher says). None where no student has any.
        - "probes": {factor: {"score": "R^2" or "accuracy", "chance", "teacher", arm: score, "each": {name: [scores]},
          "gap_recovered": {arm: G or None}, "fitted", "scored" (clips)}}. None for videos without known factors.

    Raises:
        ValueError: for folds whose arms differ, models that are not there, or videos with classes that a student
            does not know.
        VideoError: for a broken video, unless `on_bad_video` is "skip".
    """
    if batch_size < LEAST_CLIPS:
        raise ValueError(f"batch_size is at least {LEAST_CLIPS}, got {batch_size}: CKA compares clips of one batch")
    if len({frozenset(fold.arms) for fold in folds}) != 1:
        raise ValueError(f"folds have the same arms, got {[sorted(fold.arms) for fold in folds]}")
    machine = machine or Machine()
    device = machine.find()
    notes: list[str] = []
    skipped: list[str] = []
    rounds: list[Round] = []
    num_clips = 0
    walk = partial(
        _walk,
        device=device,
        batch_size=batch_size,
        workers=workers,
        on_bad_video=on_bad_video,
        time_limit=time_limit,
        memory=memory,
        advance=advance,
        skipped=skipped,
    )

    for fold in folds:
        lists = _lists(fold, clips=clips)
        teacher = load_model(fold.teacher, trust=trust).to(device).requires_grad_(False)
        for seed in range(max(map(len, fold.arms.values()))):
            models: dict[str, Model[Any]] = {TEACHER: teacher}
            for arm, folders in fold.arms.items():
                if seed < len(folders):
                    models[arm] = load_model(folders[seed], trust=trust).to(device).requires_grad_(False)
            found = _look_once(models, lists, walk=walk, method=method, notes=notes)
            num_clips += found.clips if seed == 0 else 0
            rounds.append(found)
    return {
        "clips": num_clips,
        "seeds": {arm: sum(len(fold.arms[arm]) for fold in folds) for arm in folds[0].arms},
        "skipped": list(dict.fromkeys(skipped)),
        **summary(rounds),
        "notes": list(dict.fromkeys(notes)),
    }


def steps(folds: Sequence[Fold], *, clips: int = 256) -> int:
    """How many clips `look` goes through."""
    parts = [(_lists(fold, clips=clips), max(map(len, fold.arms.values()))) for fold in folds]
    return sum(
        seeds * (len(lists.videos.videos) + len(lists.fit.videos if lists.fit else ())) for lists, seeds in parts
    )


def write(folder: str | Path, found: Mapping[str, Any]) -> Path:
    """Leaves what `look` found in a study's or a run's folder."""
    path = Path(folder) / INSIDE
    write_text(path, json.dumps(found, allow_nan=False) + "\n")
    return path


def read(folder: str | Path) -> dict[str, Any] | None:
    """What `look` found; None where it never looked."""
    path = Path(folder) / INSIDE
    if not path.is_file():
        return None
    return read_object(path, remedy=f"make it again with: videokd inside {folder}")


@dataclass(frozen=True)
class _Lists:
    """The clips that are looked at, and which of them probes are fitted on."""

    videos: Manifest
    fit: Manifest | None  # None: some of `videos`
    held: frozenset[str]  # groups of `videos` that probes are fitted on


def _lists(fold: Fold, *, clips: int) -> _Lists:
    videos = _drawn(fold.videos, clips)
    if not any(factor.of(video) is not None for factor in FACTORS for video in videos.videos):
        return _Lists(videos, None, frozenset())
    if fold.fit is not None:
        return _Lists(videos, _drawn(fold.fit, clips), frozenset())
    groups = np.random.default_rng(0).permutation(sorted(_groups(videos)))
    return _Lists(videos, None, frozenset(groups[: len(groups) // 2].tolist()))


def _drawn(videos: Manifest, clips: int) -> Manifest:
    """So many of the videos, in the list's order: the same ones every time."""
    if len(videos.videos) <= clips:
        return videos
    places = np.sort(np.random.default_rng(0).choice(len(videos.videos), clips, replace=False))
    return replace(videos, videos=tuple(videos.videos[place] for place in places))


def _group(video: Video) -> str:
    return video.group or video.id


def _groups(videos: Manifest) -> set[str]:
    return {_group(video) for video in videos.videos}


_Walk = Callable[[Manifest, Mapping[str, Model[Any]]], "Iterator[_Step]"]


@dataclass(frozen=True)
class _Step:
    """A batch, as each model sees or hears it."""

    views: Mapping[str, View]  # by the model's name
    label: Tensor  # int64 (B,)
    videos: list[Video]
    dataset: ClipDataset


def _walk(
    videos: Manifest,
    models: Mapping[str, Model[Any]],
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    on_bad_video: OnBadVideo,
    time_limit: float,
    memory: FrameMemory | None,
    advance: Callable[[int], None],
    skipped: list[str],
) -> Iterator[_Step]:
    """Batch after batch; models that want the same of a clip share a view. Reasons of missing clips go to `skipped`."""
    videos, left_out = leave_out_bad(videos, on_bad_video=on_bad_video)
    skipped += left_out
    # Students first: the first party's crop places the view for all.
    parties: dict[ViewSpec, str] = {}
    for name in sorted(models, key=lambda name: name == TEACHER):
        if (spec := models[name].input) is not None:
            parties.setdefault(spec, name)
    judge = _judge(models)
    if judge is not None:
        videos = videos.with_classes(models[judge].classes, of=judge)
    dataset = ClipDataset(videos, {party: spec for spec, party in parties.items()}, memory=memory)
    rows = {video.id: video for video in videos.videos}
    order = EveryClip(len(dataset), batch_size)
    for batch in batches(dataset, order, workers=workers, on_bad_video=on_bad_video, time_limit=time_limit):
        skipped += batch.skipped
        advance(len(batch.id) + len(batch.skipped))
        if not batch.id:
            continue
        views = {party: view.to(device) for party, view in batch.clips.items()}
        label = batch.label
        if label.ndim == 2:  # of several classes, the first
            label = torch.where(labelled(label), label.argmax(dim=1), UNLABELLED)
        yield _Step(
            {name: views[parties[model.input]] for name, model in models.items() if model.input is not None},
            label.to(device),
            [rows[name] for name in batch.id],
            dataset,
        )


def _judge(models: Mapping[str, Model[Any]]) -> str | None:
    """The first student with classes: labels are numbers of its."""
    return next((name for name, model in models.items() if name != TEACHER and model.has_logits), None)


def _look_once(
    models: Mapping[str, Model[Any]],
    lists: _Lists,
    *,
    walk: _Walk,
    method: Method | None,
    notes: list[str],
) -> Round:
    models = _comparable(models, notes)
    found = Round(taps={name: model.taps for name, model in models.items()})
    found.cam_taps = _explained(models, method, notes)
    if not all(found.cam_taps.values()):
        found.method, found.cam_taps = "gradient x input", dict.fromkeys(found.cam_taps)
    if TEACHER in models:
        found.cka = {arm: TapSimilarity() for arm in models if arm != TEACHER}
    vectors: dict[str, list[Tensor]] = {name: [] for name in models}
    videos: list[Video] = []
    for step in walk(lists.videos, models):
        said, heat = _said(models, step, found.cam_taps)
        known = _known(said, len(step.videos))
        for name, outputs in said.items():
            vectors[name].append(pooled({"clip": outputs.features["clip"]})["clip"][known].cpu())
        videos += [video for video, kept in zip(step.videos, known.tolist()) if kept]
        features = {
            name: {tap: one[known] for tap, one in pooled(outputs.features).items()} for name, outputs in said.items()
        }
        for arm, similarity in found.cka.items():
            similarity.update(features[arm], features[TEACHER])
        _compare_heat(found, heat, step)
    found.clips = len(videos)
    found.probes = _probed(vectors, videos, models, lists, walk)
    if not found.probes:
        notes.append("too little is known of how the videos were made: nothing to probe for")
    return found


def _comparable(models: Mapping[str, Model[Any]], notes: list[str]) -> dict[str, Model[Any]]:
    """Without those that take no view of a clip."""
    blind = [name for name, model in models.items() if model.input is None]
    notes += [f"{name} takes labels and no clips: it is not compared" for name in blind]
    return {name: model for name, model in models.items() if name not in blind}


def _explained(models: Mapping[str, Model[Any]], method: Method | None, notes: list[str]) -> dict[str, str | None]:
    """Models that have saliency, and the tap of each one's Grad-CAM; None for gradient x input."""
    taps: dict[str, str | None] = {}
    for name, model in models.items():
        if not isinstance(model, VideoModel):
            notes.append(f"{name} looks at no frames: it has no saliency")
        elif not model.has_logits:
            notes.append(f"{name} tells no classes apart: it has no saliency")
        else:
            taps[name] = None if method == "gradient x input" else cam_tap(model)
            if taps[name] is None and method is None:
                notes.append(f"{name} has no map that its logits come from: saliency is gradient x input")
            if taps[name] is None and method == "grad-cam":
                raise ValueError(f"{name} has no map for Grad-CAM: take gradient x input")
    return taps


def _said(
    models: Mapping[str, Model[Any]], step: _Step, cam_taps: Mapping[str, str | None]
) -> tuple[dict[str, Outputs], dict[str, FeatureMap]]:
    """Outputs of every model, and the maps of those that have saliency."""
    judge = _judge(models)
    classes = models[judge].classes if judge is not None else ()
    target, said, heat = step.label, {}, {}
    for name, model in models.items():  # the teacher first
        view = step.views[name]
        if name not in cam_taps:
            with torch.no_grad():
                said[name] = model(view, model.taps)
            continue
        assert isinstance(model, VideoModel)
        assert isinstance(view, Clip)
        same = model.classes == classes
        # A model of other classes is asked for its own.
        own = target if same else torch.full_like(target, UNLABELLED)
        said[name], heat[name] = explain(model, view, own, tap=cam_taps[name], taps=model.taps)
        logits = said[name].logits
        if same and logits is not None:
            target = torch.where(target == UNLABELLED, logits.argmax(dim=1), target)
    return said, heat


def _known(said: Mapping[str, Outputs], clips: int) -> Tensor:  # bool (B,)
    """The clips of which every model says something."""
    everything = torch.ones(clips, dtype=torch.bool, device=next(iter(said.values())).features["clip"].values.device)
    for outputs in said.values():
        everything = everything if outputs.known is None else everything & outputs.known
    return everything


def _compare_heat(found: Round, heat: Mapping[str, FeatureMap], step: _Step) -> None:
    """Adds a batch's saliency to what was found."""
    for name, one in heat.items():
        if name != TEACHER and TEACHER in heat:
            found.agreement.setdefault(name, []).append(agreement(one, heat[TEACHER]))
        clip = step.views[name]
        assert isinstance(clip, Clip)
        share, area = on_object(on_clip(one, clip).abs(), clip, step.videos, step.dataset)
        found.on_object.setdefault(name, []).append(share.cpu().numpy())
        if name != TEACHER:
            found.area.append(area.cpu().numpy())


def _probed(
    vectors: Mapping[str, Sequence[Tensor]],
    videos: Sequence[Video],
    models: Mapping[str, Model[Any]],
    lists: _Lists,
    walk: _Walk,
) -> dict[str, dict[str, Probed]]:
    """Factor -> how well it can be read from each model's "clip" features; empty where nothing is known."""
    if not videos or (lists.fit is None and not lists.held):
        return {}
    features = {name: torch.cat(list(parts)).double().numpy() for name, parts in vectors.items()}
    if lists.fit is None:
        held = np.array([_group(video) in lists.held for video in videos])
        fit = {name: one[held] for name, one in features.items()}, [v for v, here in zip(videos, held) if here]
        score = {name: one[~held] for name, one in features.items()}, [v for v, here in zip(videos, held) if not here]
    else:
        fit, score = _vectors(models, walk(lists.fit, models)), (features, list(videos))
    probes: dict[str, dict[str, Probed]] = {}
    for factor in FACTORS:
        for name in models:
            read_off = probe(factor, (fit[0][name], fit[1]), (score[0][name], score[1]))
            if read_off is not None:
                probes.setdefault(factor.name, {})[name] = read_off
    return probes


@torch.no_grad()
def _vectors(
    models: Mapping[str, Model[Any]], walked: Iterator[_Step]
) -> tuple[dict[str, NDArray[np.float64]], list[Video]]:
    """The "clip" features (N, C) of every model, of the clips of which all say something."""
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    videos: list[Video] = []
    for step in walked:
        said = {name: model(step.views[name], ("clip",)) for name, model in models.items()}
        known = _known(said, len(step.videos))
        for name, outputs in said.items():
            parts[name].append(pooled(outputs.features)["clip"][known].cpu())
        videos += [video for video, kept in zip(step.videos, known.tolist()) if kept]
    return {name: torch.cat(found).double().numpy() for name, found in parts.items()}, videos
