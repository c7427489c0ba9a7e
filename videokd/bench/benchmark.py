"""Times all that a benchmark is asked for, and says what bounds it."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videokd.bench import stages, variants
from videokd.bench.ceilings import ceilings
from videokd.bench.contenders import Contender, Patience, measure
from videokd.bench.contenders import Stopped as OutOfTurn
from videokd.bench.derived import starved
from videokd.bench.devices import current, fp32_arithmetic
from videokd.bench.results import Ceiling, Difference, Measurement, Network, Results
from videokd.bench.statistics import CLOCK_NAMES, Clock, seconds_a_call
from videokd.bench.steps import step_contenders
from videokd.bench.subjects import Party, Subject
from videokd.bench.variants import Runner, Variant
from videokd.clips.backends import is_video_file
from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest
from videokd.contracts import Clip, Dense, InputSpec, Timed, View
from videokd.environment import environment
from videokd.interruption import Interruption
from videokd.machine import Machine
from videokd.models import Model
from videokd.models.cost import cost
from videokd.run_files import EVALUATION, read_evaluation

Part = Literal["inference", "loading", "steps", "ceilings"]
PARTS: tuple[Part, ...] = ("inference", "loading", "steps", "ceilings")
_ROTATED = 4
"""Batches that a network looks at in turn."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is timed, and how."""

    subject: Subject
    manifest: Manifest | None = None
    """Clips to decode, and to see what variants answer; None for noise, and no loading."""
    parts: Sequence[Part] = PARTS
    variants: Sequence[Variant] | None = None
    """None for what is worth a look on the device."""
    batch_size: int | None = None
    """Clips a call of all variants; None for 8 on a CPU and 32 on a GPU, or what an exported file was made for."""
    sweep: Sequence[int] = ()
    """Further batch sizes of the eager network."""
    latency: bool = True
    """Time the eager network on one clip a call too."""
    step_batch_size: int | None = None
    """Of training steps; None for the recipe's."""
    workers: int = 0
    """Processes that decode, of a second look at the loader and the whole way; 0 leaves it out."""
    views: int | None = None
    """Clips that a video is scored by; None for as many as in its run's test, or one."""
    machine: Machine = field(default_factory=Machine)
    """The device."""
    tf32: bool = False
    """On a GPU, compute products in fp32 as TF32: matrix products, convolutions and ceilings alike."""
    patience: Patience = field(default_factory=Patience)


class Stopped(Interruption):
    """Ctrl-C or SIGTERM, after something was measured.

    Args:
        results: what was; `Results.partial` says what is missing.
        number: of the signal.
    """

    def __init__(self, results: Results, *, number: int | None = None) -> None:
        super().__init__(f"stopped; {results.partial}", number=number)
        self.results = results


def benchmark(
    plan: Plan,
    *,
    say: Callable[[str], None] = lambda line: None,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Times what a plan names.

    Args:
        plan: what.
        say: told what is being done, a line each.
        keep: given what is measured so far after each part of the plan, but the last.

    Raises:
        ValueError: for a variant that does not exist or not here, or a network that can't be made.
        Stopped: after Ctrl-C or SIGTERM, if anything was measured.
        KeyboardInterrupt: if nothing was.
    """
    device = plan.machine.find()
    with current(device), fp32_arithmetic(device, tf32=plan.tf32):
        job = _Job(plan, device, say)
        parts = job.parts()
        names = [name for name, _ in parts]
        for place, (name, part) in enumerate(parts):
            try:
                part()
            except KeyboardInterrupt as stop:
                if not any(one.rounds for one in job.measured):
                    raise
                rounds = f" after {stop.rounds} of {plan.patience.rounds} rounds" if isinstance(stop, OutOfTurn) else ""
                missing = _missing(names[place + 1 :])
                results = job.results(f"the benchmark was stopped in {name}{rounds}{missing}")
                raise Stopped(results, number=getattr(stop.__cause__ or stop, "number", None)) from stop
            if names[place + 1 :]:
                keep(job.results(f"the benchmark did not come to its end{_missing(names[place + 1 :])}"))
        return job.results()


def _missing(names: Sequence[str]) -> str:
    return f"; not measured: {', '.join(names)}" if names else ""


class _Job:
    """A benchmark under way: its parts, and what they have measured so far."""

    def __init__(self, plan: Plan, device: torch.device, say: Callable[[str], None]) -> None:
        self._device, self._say, self._clock = device, say, _clock(device)
        self._chosen = tuple(plan.variants or variants.defaults(device))
        variants.check(self._chosen, device)
        asked = (*plan.sweep, *([] if plan.batch_size is None else [plan.batch_size]))
        if min(asked, default=1) < 1:
            raise ValueError(f"a call is of at least one clip, got {', '.join(map(str, asked))}")
        self._looking = _all_looking(plan.subject.parties, plan.manifest, device)
        usual = next(
            (one.shape[0] for one in self._looking if one.shape and one.shape[0]), 32 if device.type == "cuda" else 8
        )
        self._clips = usual if plan.batch_size is None else plan.batch_size
        self.measured: list[Measurement] = []
        self._noise: list[float] = []
        self._limits: list[Ceiling] = []
        self._notes: list[str] = []
        self._student, self._dataset = self._looking[0], None
        if plan.manifest is not None and isinstance(self._student.spec, InputSpec):
            kept, unread = stages.readable(plan.manifest, self._student.spec)
            if unread:
                of = len(plan.manifest.videos)
                self._notes.append(
                    f"{len(unread)} of {of} clips can't be read and are left out; the first: {unread[0]}"
                )
            plan = replace(plan, manifest=kept)
            self._dataset = ClipDataset(kept, {"student": self._student.spec})
        if self._student.model is None and self._student.like is None and plan.manifest is not None:
            self._notes.append(
                f"{self._student.party.name} is an exported file, which does not say which frames it wants; read were "
                f"{_said(self._student.spec)}. Name its run or model too, and it is read for like that."
            )
        self._plan = plan
        self._environment = environment()

    @cached_property
    def _networks(self) -> list[Network]:
        return [one.described(self._plan, self._dataset) for one in self._looking]

    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """What is to be done, by names."""
        plan, found = self._plan, list[tuple[str, Callable[[], None]]]()
        if "inference" in plan.parts:
            found.append((f"inference of {self._clips} clips a call", self._inference))
            if plan.latency and 1 not in plan.sweep and self._clips != 1:
                # Not those that were exported for other calls: nobody asked for what can't be done.
                single = [one for one in self._looking if not one.shape or one.shape[0] in (0, 1)]
                if single:
                    found.append(("inference of 1 clip a call", partial(self._sweep, 1, single)))
            for size in plan.sweep:
                if size != self._clips:
                    found.append((f"inference of {size} clip{'s' * (size > 1)} a call", partial(self._sweep, size)))
        if "loading" in plan.parts and self._dataset is not None:
            found.append(("loading", self._loading))
        if "steps" in plan.parts and plan.subject.recipe is not None and plan.manifest is not None:
            if any(one.names for one in plan.manifest.videos):
                found.append(("steps of training", self._steps))
            else:
                self._notes.append(
                    f"No clip of {plan.manifest.source} that was read has a label: steps of training are left out."
                )
        if "ceilings" in plan.parts:
            found.append(("ceilings of this machine", self._ceilings))
        return found

    def results(self, partial_because: str = "") -> Results:
        """What is measured so far."""
        plan, dataset = self._plan, self._dataset
        results = Results(
            subject=plan.subject.named,
            setting={
                "environment": self._environment,
                "device": str(self._device),
                "clock": self._clock,
                "clocks": {
                    "clips/s, single calls, first call, stages, ceilings": CLOCK_NAMES["wall"],
                    "seconds a call, ratios, comparisons, yardstick": CLOCK_NAMES[self._clock],
                    "all that has workers": CLOCK_NAMES["wall"],
                },
                "tf32": plan.tf32 if self._device.type == "cuda" else None,
                "threads": torch.get_num_threads(),
                "rounds": plan.patience.rounds,
                "workers": plan.workers,
                "list": None if plan.manifest is None else str(plan.manifest.source),
                "clips": None if plan.manifest is None else len(plan.manifest.videos),
                "backend": None if dataset is None else dataset.backend,
            },
            networks=self._networks,
            measurements=list(self.measured),
            ceilings=list(self._limits),
            noise=list(self._noise),
            partial=partial_because,
        )
        return replace(results, notes=[*self._notes, *starved(results), *bounds(results)])

    def _measure(self, contenders: Sequence[Contender], patience: Patience | None = None) -> list[Measurement]:
        """Times contenders; where a signal comes, what it did until then is kept."""
        try:
            found = measure(contenders, device=self._device, patience=patience or self._plan.patience)
        except OutOfTurn as stop:
            self._keep(stop.measurements)
            raise
        self._keep(found)
        return found

    def _keep(self, found: Sequence[Measurement]) -> None:
        """Of measurements of one name the first: the other is there for the noise."""
        names = {one.name for one in self.measured}
        for one in found:
            if one.name not in names:
                self.measured.append(one)
                names.add(one.name)

    def _inference(self) -> None:
        """All variants of all networks against each other, and the first of them twice, for the noise."""
        each = [(one, variant) for one in self._looking for variant in one.ways(self._chosen)]
        how = dict.fromkeys(variant for _, variant in each)
        named = ", ".join(one.party.name for one in self._looking)
        self._say(f"inference of {named}: {self._clips} clips, {', '.join(how)}")
        found = self._measure([_contender(one, variant, self._clips) for one, variant in [*each, each[0]]])
        first, again = found[0], found[-1]
        if not first.rounds or not again.rounds:
            return
        mine, other = (seconds_a_call(one.rounds, self._clock) for one in (first, again))
        noise = self._noise = [float(ratio) for ratio in other / mine]
        self._notes.append(
            f"{self._student.party.name} against itself, {first.variant}: {100 * (median(noise) - 1):+.1f} %, "
            f"in single rounds {100 * (min(noise) - 1):+.1f} to {100 * (max(noise) - 1):+.1f} % "
            f"({CLOCK_NAMES[self._clock]})."
        )

    def _sweep(self, size: int, looking: "Sequence[_Looking] | None" = None) -> None:
        self._say(f"inference: {size} clip{'s' * (size > 1)}")
        self._measure([_contender(one, one.plain, size) for one in looking or self._looking])

    def _loading(self) -> None:
        """Loading, and the whole way from files to logits."""
        plan, dataset, student, clips = self._plan, self._dataset, self._student, self._clips
        assert dataset is not None
        assert plan.manifest is not None
        self._say(f"loading, and the way from files to logits: {len(dataset)} clips of {plan.manifest.source}")
        best = _fastest([one for one in self.measured if one.party == student.party.name], self._clock)
        variant: Any = best.variant if best is not None and best.clips == clips else student.plain
        ready = partial(_runner, student, variant, clips)
        contenders = stages.loading(dataset, clips=clips, device=self._device)
        contenders.append(
            stages.end_to_end(
                dataset, ready, party=student.party.name, variant=variant, clips=clips, device=self._device
            )
        )
        found = self._measure(contenders)
        if plan.workers:
            timed = partial(
                stages.with_workers,
                dataset,
                party=student.party.name,
                variant=variant,
                workers=plan.workers,
                clips=clips,
                seconds=max(plan.patience.rounds * plan.patience.turn_seconds, 1.0),
                device=self._device,
            )
            self._keep([timed(None)])
            # Who can't do it in this process can't do it beside others.
            if found[-1].error is None:
                self._keep([timed(ready())])

    def _steps(self) -> None:
        plan, recipe = self._plan, self._plan.subject.recipe
        assert recipe is not None
        assert plan.manifest is not None
        self._say("steps of training")
        recipe = replace(recipe, machine=replace(recipe.machine, device=str(self._device)))
        clips = plan.step_batch_size or recipe.data.batch_size
        with tempfile.TemporaryDirectory() as folder:
            contenders = step_contenders(recipe, plan.manifest, folder=Path(folder), clips=clips)
            # A step with its teacher may take long on a CPU; but fewer rounds than a dozen carry no comparison.
            rounds = min(max(plan.patience.rounds // 2, 12), plan.patience.rounds)
            self._measure(contenders, replace(plan.patience, rounds=rounds))

    def _ceilings(self) -> None:
        self._say("what this machine can do")
        precisions = ["fp32", "bf16", *(["fp16"] if self._device.type == "cuda" else [])]
        first = [] if self._dataset is None else self._dataset.videos[:4]
        files = [video.path for video in first if is_video_file(video) and video.path.is_file()]
        self._limits = ceilings(self._device, precisions=precisions, files=files)


def bounds(results: Results) -> list[str]:
    """What bounds the way from files to logits, and what would lift it, in sentences."""
    ends = [one for one in results.measurements if one.stage == "end to end" and one.rounds]
    if not ends:
        return []
    party = ends[0].party
    loads = [one for one in results.measurements if one.stage == "load" and one.rounds]
    inference = _fastest([one for one in results.measurements if one.party == party], "wall")
    if not loads or inference is None:
        return []
    looks, reads = _rate(inference), _rate(loads[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = [
        f"One process loads {reads:.1f} clips/s, and {party} ({inference.variant}) runs {looks:.1f} clips/s (wall): "
        + ("loading is the limit" if reads < looks else "the network is the limit, if it is alone on the machine")
        + "."
    ]
    if reads < looks:
        workers = math.ceil(looks / reads)
        if results.setting["device"] == "cpu":
            said.append(
                "They share the cores here: packed clips (`videokd data pack`, --format jpeg or raw) leave more of "
                "them to the network."
            )
        elif workers <= cores:
            said.append(f"It takes {workers} workers to keep it busy.")
        else:
            said.append(
                f"It would take {workers} workers, and there are {cores} cores: pack the clips (`videokd data pack`, "
                "--format jpeg or raw)."
            )
    return said


def _clock(device: torch.device) -> Clock:
    """One thread's work is counted in the time that it computes: what else runs on the machine does not count."""
    if device.type == "cuda":
        return "device"
    return "cpu" if torch.get_num_threads() == 1 else "wall"


@dataclass(frozen=True)
class _Looking:
    """A network that is to be timed."""

    party: Party
    spec: Any
    model: Model[Any] | None
    run: Runner | None
    shape: tuple[int, ...]
    """Of an exported network's frames; () of others."""
    manifest: Manifest | None
    like: "_Looking | None" = None
    """The network that an exported one has its frames from: the first one of the same shape. It is compared with that,
    if it was trained, for the same number of classes."""
    known: dict[int, tuple[list[View], list[Tensor]]] = field(default_factory=dict)
    """Clips a call -> what variants are compared on, and what the eager network says of it."""

    @staticmethod
    def of_file(party: Party, manifest: Manifest | None, known: Sequence["_Looking"]) -> "_Looking":
        """An exported one, beside networks that are `known`."""
        assert party.exported is not None
        run, shape = variants.of_file(party.exported, trust=party.trust)
        same = (one for one in known if isinstance(one.spec, InputSpec) and _shape(one.spec) == shape[1:])
        like = next(same, None)
        spec = InputSpec(frames=shape[1], size=shape[-1]) if like is None else like.spec
        return _Looking(party, spec, None, run, shape, manifest, like)

    @staticmethod
    def of(party: Party, manifest: Manifest | None, device: torch.device) -> "_Looking":
        assert party.build is not None
        model = party.build().to(device).eval().requires_grad_(False)
        if model.input is None or not model.has_logits:
            raise ValueError(f"{party.name} tells no classes apart by what it sees or hears: it can't be timed so")
        return _Looking(party, model.input, model, None, (), manifest)

    @property
    def plain(self) -> Variant:
        """How it runs if nothing else is asked for."""
        return "onnx" if self.party.exported is not None and self.party.exported.suffix == ".onnx" else "eager"

    def ways(self, chosen: Sequence[Variant]) -> Sequence[Variant]:
        """Of the chosen ones, its own: an exported network runs as it is."""
        return chosen if self.model is not None else (self.plain,)

    def views(self, clips: int, count: int) -> list[View]:
        """Noise."""
        if self.model is not None:
            return variants.random_views(self.model, clips=clips, count=count)
        generator = torch.Generator().manual_seed(0)
        shape = (clips, *self.shape[1:])
        return [
            Clip(
                torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
                torch.arange(float(shape[1])).repeat(clips, 1),
            )
            for _ in range(count)
        ]

    def eager(self, clips: int) -> tuple[list[View], list[Tensor]]:
        """What variants are compared on, and the eager network's logits; found once."""
        if clips not in self.known:
            assert self.model is not None
            views = self.compared(clips)
            run = variants.runner(self.model, "eager", views)
            self.known[clips] = views, [run(view).float().cpu() for view in views]
        return self.known[clips]

    def compared(self, clips: int) -> list[View]:
        """All clips of the list, or noise where there is none."""
        if self.manifest is None or not isinstance(self.spec, InputSpec) or self.model is None:
            return self.views(clips, _ROTATED)
        count = math.ceil(len(self.manifest.videos) / clips)
        dataset = ClipDataset(self.manifest, {"student": self.spec})
        source = batches(dataset, stages.Endless(len(dataset), clips, count), on_bad_video="skip")
        return [
            batch.clips["student"].to(self.model.device) for batch in source if len(batch.id) == clips
        ] or self.views(clips, 1)

    def described(self, plan: Plan, dataset: ClipDataset | None) -> Network:
        model = self.model
        if model is None:
            assert self.party.exported is not None
            size = self.party.exported.stat().st_size
            return Network(
                party=self.party.name,
                architecture=self.party.exported.suffix,
                input=_said(self.spec),
                params=None,
                macs=None,
                param_bytes=size,
                views=plan.views or 1,
                clip_seconds=_clip_seconds(self.spec, dataset),
            )
        price = cost(model)
        accuracy, views = _accuracy(self.party.folder)
        return Network(
            party=self.party.name,
            architecture=type(model.config).__name__,
            input=_said(self.spec),
            params=price.params,
            macs=price.macs,
            param_bytes=sum(one.nbytes for one in model.parameters()),
            activation_bytes=_activation_bytes(model),
            views=plan.views or views or 1,
            clip_seconds=_clip_seconds(self.spec, dataset),
            accuracy=accuracy,
            accuracy_views=views,
        )


def _all_looking(parties: Sequence[Party], manifest: Manifest | None, device: torch.device) -> list[_Looking]:
    """In the order of `parties`."""
    models = {one.name: _Looking.of(one, manifest, device) for one in parties if one.exported is None}
    known = list(models.values())
    return [models.get(one.name) or _Looking.of_file(one, manifest, known) for one in parties]


def _contender(one: _Looking, variant: Variant, clips: int) -> Contender:
    return Contender(
        party=one.party.name,
        stage="inference",
        variant=variant,
        clips=clips,
        make=lambda: variants.Rotating(_runner(one, variant, clips), one.views(clips, _ROTATED)),
        difference=lambda call: _difference(one, variant, clips, call),
        shared_bytes=variants.shared_bytes(one.model, variant),
    )


def _runner(one: _Looking, variant: Variant, clips: int) -> Runner:
    if one.model is None:
        assert one.run is not None
        if one.shape[0] not in (0, clips):
            raise ValueError(f"{one.party.name} was exported for calls of {one.shape[0]}, not {clips}")
        return one.run
    return variants.runner(one.model, variant, one.eager(clips)[0] if variant == "int8" else one.views(clips, 1))


def _difference(one: _Looking, variant: Variant, clips: int, call: Callable[[], object]) -> Difference | None:
    known = one.like if one.model is None else one
    if known is None or (known is one and variant == "eager"):
        return None
    if known is not one and known.party.folder is None:
        return None  # nobody trained it: what it answers is noise
    views, eager = known.eager(clips)
    assert isinstance(call, variants.Rotating)
    said = [call.runner(view).float().cpu() for view in views]  # a graph's answer is overwritten by the next
    same_classes = said[0].shape == eager[0].shape
    return variants.difference(said, eager) if same_classes else None


def _fastest(measured: Sequence[Measurement], clock: Clock) -> Measurement | None:
    of = [one for one in measured if one.stage == "inference" and one.rounds]
    return min(of, key=lambda one: float(seconds_a_call(one.rounds, clock).mean()) / one.clips, default=None)


def _rate(measured: Measurement) -> float:
    """Clips a second, over the whole time."""
    return measured.clips * sum(one.calls for one in measured.rounds) / sum(one.wall for one in measured.rounds)


def _said(spec: Any) -> str:
    if not isinstance(spec, InputSpec):
        return f"{spec.seconds:g} s of sound"
    how = type(spec.sampling).__name__.lower()
    every = f" every {spec.sampling.stride}" if isinstance(spec.sampling, Dense) else ""
    return f"{spec.frames} frames, {how}{every}, {spec.size} px"


def _shape(spec: InputSpec) -> tuple[int, ...]:
    return spec.frames, 3, spec.size, spec.size


def _clip_seconds(spec: Any, dataset: ClipDataset | None) -> float | None:
    """Of video, that a clip spans; on average over the data's first videos where that hangs on them."""
    if not isinstance(spec, InputSpec):
        return float(spec.seconds)
    if isinstance(spec.sampling, Timed):
        return spec.frames / spec.sampling.fps
    if dataset is None:
        return None
    indices = [dataset.read_of(number).index for number in range(min(4, len(dataset)))]
    if isinstance(spec.sampling, Dense):
        return fmean(min(spec.frames * spec.sampling.stride / one.fps, one.seconds) for one in indices)
    return fmean(one.seconds for one in indices)


def _accuracy(folder: Path | None) -> tuple[float | None, int | None]:
    """Top-1 of a run's test, and by how many clips of a video; None for what is not known."""
    if folder is None or not (folder / EVALUATION).is_file():
        return None, None
    scores = read_evaluation(folder)
    views = scores.get("views")
    return scores.get("top1"), None if views is None else views["temporal"] * views["spatial"]


@torch.no_grad()
def _activation_bytes(model: nn.Module) -> int | None:
    """What leaf layers read and write of one clip, in bytes."""
    total = 0

    def add(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        nonlocal total
        total += sum(one.nbytes for one in (*given, made) if isinstance(one, Tensor))

    leaves = [one for one in model.modules() if not any(True for _ in one.children())]
    hooks = [one.register_forward_hook(add) for one in leaves]
    try:
        model(model.blank())  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    return total or None
