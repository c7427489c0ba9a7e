"""What the training loop costs: against a loop written by hand, torchdistill's, and the networks alone.

    python benchmarks/training.py --out benchmarks/results/training.json

    a  a step against a bare loop over the same networks and losses, and against torchdistill's with the same terms
    b  a step on stored teacher outputs against one whose teacher runs, and against training the student alone
    c  a step against the teacher's forward pass and the student's step on plain cross-entropy, each timed by itself
    d  the time of checkpoints against that of the steps between them
    e  the share of a step in which the GPU waits for the loader                                     (--device cuda)
    f  the teacher compiled in bf16 against eager fp32 and bf16, and how often they say the same     (--device cuda)

Our loop is `videokd.train.train` itself, in a thread that makes its steps when it is told. Contenders take turns step
by step (on a GPU, ten by ten), in changing order; figures are ratios over rounds of them, of CPU time, or on a GPU of
wall time with its work done; d is wall time everywhere. All parts but e, and b on the CPU, see the same four batches
over and over, so that decoding has no part in them. Weights are untrained, which changes no time; f takes a trained
--teacher.

With --quick everything is small, to see that it runs; its figures mean nothing. A torchdistill that is not installed is
left out (`benchmarks/peers.sh`).
"""

import argparse
import ctypes
import io
import itertools
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args
from unittest import mock

import torch
import torch.nn.functional as F
from measuring import File, Interval, installed, setting, times_faster, write
from rich.console import Console
from torch import Tensor, nn

import videokd.train
from videokd.acceleration import Compilation, compile_in_place, to_channels_last
from videokd.assembly import Assembly
from videokd.checkpoint import State
from videokd.clips.lists import read_manifest
from videokd.clips.packing import Packing, pack
from videokd.contracts import Batch, Outputs, View
from videokd.distill import Term
from videokd.label import label
from videokd.losses import ClipFeatures, CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity, TemporalDifference
from videokd.losses.align import overlap_weights
from videokd.machine import Machine, seed_step
from videokd.models import Model, load_model, save_model
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.report.tables import markdown_table
from videokd.run_folder import RunFolder
from videokd.train import LOG_EVERY, train

CLASSES, BATCHES = 12, 4
SMALL, BIG = "quickstart/distilled.py", "own_videos/distilled.py"
HARD = {"hard": Term(loss=CrossEntropy())}
TEMPERATURE = 4.0
SHARED_TERMS = {
    "hard": Term(loss=CrossEntropy(), weight=0.1),
    "soft": Term(loss=SoftTargets(temperature=TEMPERATURE), weight=0.9),
    "clip": Term(loss=ClipFeatures(distance="mse", targets="raw"), weight=0.5),
}
"""What torchdistill has too."""
_M_ARENA_MAX = -8  # of glibc's malloc.h


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A line of the result."""

    part: str
    what: str
    recipe: str
    clips: int
    """Of a batch."""
    ratio: Interval
    wanted: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all parts need."""

    folder: Path
    """For data and runs."""
    data: Path
    """Packed clips."""
    machine: Machine
    rounds: int
    quick: bool

    @property
    def device(self) -> torch.device:
        return self.machine.find()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def recipes(self) -> tuple[str, ...]:
        return (SMALL,) if self.quick else (SMALL, BIG)

    def recipe(self, name: str, *, clips: int | None = None) -> Recipe:
        """A recipe over the benchmark's clips: without validation, checkpoints and published weights."""
        recipe = load(name)
        student: Any = recipe.student
        if any(one.name == "weights" for one in fields(student)):
            student = replace(student, weights=None)
        clips = 4 if self.quick else clips or recipe.data.batch_size
        data = replace(recipe.data, path=str(self.data), val_split=None, batch_size=clips, workers=0, in_memory=False)
        return replace(
            recipe,
            data=replace(data, views=1),
            student=student,
            teachers={"teacher": TrainedTeacher(checkpoint=str(self.teacher(name)))},
            machine=self.machine,
            checkpoint_every=recipe.optim.steps,
            preflight=0,
        )

    def teacher(self, name: str) -> Path:
        """A folder with the recipe's teacher as it is before it is trained."""
        folder = self.folder / "teachers" / Path(name).parent
        if not folder.is_dir():
            config: Any = load(Path(name).with_name("teacher.py")).student
            torch.manual_seed(0)
            save_model(config.build(read_manifest(self.data).classes, pretrained=False), folder)
        return folder

    def stored(self, name: str) -> Path:
        """A folder with what the teacher says of the clips."""
        folder = self.folder / "stored" / Path(name).parent
        if not folder.is_dir():
            recipe = self.recipe(name)
            label(recipe, folder, batch_size=recipe.data.batch_size, console=silent())
        return folder

    def turns(self, name: str) -> tuple[int, int | None]:
        """Steps of a round, and clips of a batch where the recipe's would take too long: big steps on a CPU are few."""
        return (1, 2) if name == BIG and not self.on_gpu else (LOG_EVERY, None)

    def seconds(
        self, contenders: "Mapping[str, Contender]", *, steps: int, rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Of every contender for so many steps, round by round; on a CPU they take turns step by step."""
        turns, per_turn = (1, steps) if self.on_gpu else (steps, 1)
        rounds = rounds or self.rounds
        order, found = random.Random(1), {name: [0.0] * rounds for name in contenders}
        for contender in contenders.values():
            contender.advance(2)  # code and memory are warm
        for number in range(rounds):
            for _ in range(turns):
                for name in order.sample(list(contenders), k=len(contenders)):
                    before = now(self.device)
                    contenders[name].advance(per_turn)
                    found[name][number] += now(self.device) - before
        return found


class Contender(Protocol):
    """Who takes turns."""

    def advance(self, steps: int) -> None:
        """Makes so many steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json; a table is written beside it")
    parser.add_argument("--only", default="a,b,c,d,e,f", help="parts")
    parser.add_argument("--rounds", type=int, default=20, help="of turns")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="if not fp32 on a CPU and bf16 on a GPU")
    parser.add_argument("--workers", type=int, default=8, help="that decode, of e")
    parser.add_argument("--format", default="mp4", choices=("mp4", "jpeg", "raw"), help="of the packed clips")
    parser.add_argument("--short-side", type=int, default=128, help="of the packed clips, in pixels")
    parser.add_argument("--teacher", type=Path, help="a trained run, of f")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)  # threads get memory as the main one does: the same for all
    machine = Machine(device=args.device, precision=args.precision or ("fp32" if args.device == "cpu" else "bf16"))
    parts = set(args.only.split(","))
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, told():
        data = draw(Path(name), Packing(format=args.format, short_side=args.short_side), clips=12 if args.quick else 36)
        bench = Bench(folder=Path(name), data=data, machine=machine, rounds=args.rounds, quick=args.quick)
        for figure in figures(bench, parts, workers=args.workers, trained=args.teacher):
            print(f"{figure.part}: {figure.what}, {figure.recipe}: {shown(figure.ratio)}", flush=True)
            found.append(figure)
    found.sort(key=lambda one: one.part)
    columns = ("part", "what", "recipe", "clips", "ratio [95 %]", "wanted", "note")
    table = markdown_table(
        columns,
        [(one.part, one.what, one.recipe, f"{one.clips}", shown(one.ratio), one.wanted, one.note) for one in found],
    )
    print(table)
    if args.out:
        about = setting(vars(args))
        about["versions"] |= {name: installed(name) for name in ("torchdistill", "timm")}
        about["device"] = torch.cuda.get_device_name(machine.find()) if args.device != "cpu" else "cpu"
        args.out.write_text(json.dumps({"setting": about, "figures": [asdict(one) for one in found]}, indent=2) + "\n")
        args.out.with_suffix(".md").write_text(table + "\n")


def figures(bench: Bench, parts: set[str], *, workers: int, trained: Path | None) -> Iterator[Figure]:
    """Those of some parts, as they are found."""
    for name in bench.recipes:
        if parts & {"a", "c"}:
            yield from (one for one in steps(bench, name) if one.part in parts)
        if "a" in parts:
            yield from beside_torchdistill(bench, name)
        if "d" in parts:
            yield from checkpoints(bench, name)
    if "b" in parts:
        yield from stored_outputs(bench, bench.recipes[-1])
    if "e" in parts and bench.on_gpu:
        yield from idle_share(bench, bench.recipes[-1], workers=workers)
    if "f" in parts and bench.on_gpu:
        yield from compiled_teacher(bench, bench.recipes[-1], trained=trained)


def steps(bench: Bench, name: str) -> list[Figure]:
    """a and c: our step, the bare loop's, and what a step is made of."""
    per_round, clips = bench.turns(name)
    recipe = bench.recipe(name, clips=clips)
    with running(bench, recipe) as ours:
        bare = Bare(ours, recipe.objective)
        note = f"losses of the first steps differ by {difference(ours, bare):.0e} at most"
        teacher: Any = ours.made.teachers["teacher"]
        views = [batch.clips["teacher"] for batch in ours.batches]
        forward = Forward(teacher.model, views, tuple(teacher.taps), bench.machine)
        contenders = {"ours": ours, "bare": bare, "teacher": forward, "student": Bare(ours, HARD)}
        seconds = bench.seconds(contenders, steps=per_round)
    parts = [one + other for one, other in zip(seconds["teacher"], seconds["student"])]
    figure = partial(Figure, recipe=name, clips=recipe.data.batch_size)
    made_of = "our step / teacher's forward pass + student alone"
    return [
        figure(
            part="a", what="our step / bare", ratio=over(seconds["ours"], seconds["bare"]), wanted="1.02", note=note
        ),
        figure(part="c", what=made_of, ratio=over(seconds["ours"], parts), wanted="1.05"),
    ]


def beside_torchdistill(bench: Bench, name: str) -> list[Figure]:
    """a: our step and torchdistill's, on the terms that both have."""
    if installed("torchdistill") is None:
        print("torchdistill is not installed: left out")
        return []
    per_round, clips = bench.turns(name)
    recipe = replace(bench.recipe(name, clips=clips), objective=SHARED_TERMS)
    # Its weights decay otherwise: with small steps both see the same losses.
    recipe = replace(recipe, optim=replace(recipe.optim, warmup=0.0, lr=1e-6))
    with running(bench, recipe) as ours:
        theirs = Torchdistill(ours)
        note = f"losses of the first steps differ by {difference(ours, theirs):.0e} at most"
        seconds = bench.seconds({"ours": ours, "theirs": theirs}, steps=per_round)
    ratio = over(seconds["ours"], seconds["theirs"])
    what = "our step / torchdistill's"
    return [
        Figure(part="a", what=what, recipe=name, clips=recipe.data.batch_size, ratio=ratio, wanted="1.00", note=note)
    ]


def stored_outputs(bench: Bench, name: str) -> list[Figure]:
    """b: with stored outputs, with the teacher, and without any."""
    recipe, folder, rounds = bench.recipe(name), bench.stored(name), max(bench.rounds // 4, 1)
    with ExitStack() as stack:
        # Whoever waits would decode ahead on a GPU machine: there all see the same batches.
        start = lambda one: stack.enter_context(running(bench, one, same_batches=bench.on_gpu))  # noqa: E731
        stored = start(replace(recipe, stored=str(folder)))
        alone = start(replace(recipe, teachers={}, objective=HARD))
        seconds = bench.seconds({"stored": stored, "alone": alone}, steps=bench.turns(name)[0])
        over_alone = over(seconds["stored"], seconds["alone"])
        online = start(recipe)
        seconds = bench.seconds({"stored": stored, "online": online}, steps=bench.turns(name)[0], rounds=rounds)
    figure = partial(Figure, part="b", recipe=name, clips=recipe.data.batch_size)
    return [
        figure(what="step online / stored", ratio=over(seconds["online"], seconds["stored"]), wanted="15 or more"),
        figure(what="step stored / student alone", ratio=over_alone, wanted="1.05"),
    ]


def checkpoints(bench: Bench, name: str) -> list[Figure]:
    """d: between steps on stored outputs, the fastest that there are."""
    recipe, apart = bench.recipe(name), 5
    every = load(name).checkpoint_every
    saving, steps = [], []
    with running(bench, replace(recipe, stored=str(bench.stored(name)), checkpoint_every=apart)) as run:
        run.advance(apart)
        for _ in range(max(bench.rounds // 2, 3)):
            before, run.saving = now(bench.device, wall=True), 0.0
            run.advance(apart)
            took = now(bench.device, wall=True) - before - run.saving
            saving.append(run.saving)
            steps.append(took / apart * every)
    figure = partial(Figure, part="d", recipe=name, clips=recipe.data.batch_size, note=f"every {every} steps")
    return [figure(what="checkpoint / stored steps between two", ratio=over(saving, steps), wanted="0.02")]


def idle_share(bench: Bench, name: str, *, workers: int) -> list[Figure]:
    """e: what the loop's own stopwatch says of steps whose clips are decoded by other processes."""
    recipe = bench.recipe(name)
    recipe = replace(
        recipe, data=replace(recipe.data, workers=workers), optim=replace(recipe.optim, steps=60), checkpoint_every=60
    )
    shares = []
    for _ in range(max(bench.rounds // 10, 3)):
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        spent = train(recipe, folder, console=silent())["seconds_per_step"]
        shares.append(spent["loader"] / sum(spent.values()))
    ratio = over(shares, [1.0] * len(shares))
    note = f"{workers} workers"
    return [Figure(part="e", what="GPU waits", recipe=name, clips=recipe.data.batch_size, ratio=ratio, note=note)]


def compiled_teacher(bench: Bench, name: str, *, trained: Path | None) -> list[Figure]:
    """f: one teacher, in several ways."""
    with running(bench, bench.recipe(name)) as run:
        views = [batch.clips["teacher"] for batch in run.batches]
    fp32, bf16 = (replace(bench.machine, precision=precision) for precision in ("fp32", "bf16"))
    network: Any = load_model(trained or bench.teacher(name)).to(bench.device).eval().requires_grad_(False)
    ways = {"fp32": Forward(network, views, (), fp32), "bf16": Forward(network, views, (), bf16)}
    for compilation in get_args(Compilation):
        compiled = deepcopy(network)
        to_channels_last(compiled)
        compile_in_place(compiled, compilation)
        ways[compilation] = Forward(compiled, views, (), bf16)
    said = {way: torch.cat([one.logits(view).argmax(dim=1) for view in views]) for way, one in ways.items()}
    seconds = bench.seconds(ways, steps=LOG_EVERY)
    figure = partial(Figure, part="f", recipe=name, clips=len(said["fp32"]) // len(views))
    weights, found = "untrained" if trained is None else "trained", []
    for compilation in get_args(Compilation):
        agree = (said[compilation] == said["fp32"]).double().mean()
        note = f"same top-1 as fp32 for {agree:.1%} of {len(said['fp32'])} clips, {weights}"
        for way, wanted in (("fp32", "4 or more"), ("bf16", "1.3 or more")):
            ratio, what = over(seconds[way], seconds[compilation]), f"teacher {way} / bf16 compiled ({compilation})"
            found.append(figure(what=what, ratio=ratio, wanted=wanted, note=note))
    return found


class Enough(Exception):
    """A run has made all the steps that were wanted."""


class Run(threading.Thread):
    """A training run that makes steps when it is told; see `told`.

    Args:
        recipe: what to train.
        folder: for the run.
        same_batches: see the first few batches again and again.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, same_batches: bool) -> None:
        super().__init__(daemon=True)
        self.recipe, self.folder, self.same_batches = recipe, folder, same_batches
        self.made: Assembly
        self.batches: list[Batch] = []
        self.losses: dict[str, Tensor] = {}
        self.saving = 0.0
        """Seconds."""
        self._threads = torch.get_num_threads()
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping, self._error = False, None

    def run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            train(self.recipe, self.folder, console=silent())
            self._error = ValueError(f"{self.folder} came to its end")
        except Enough:
            pass
        except BaseException as error:
            self._error = error
        self._arrived.release()

    def begin(self) -> None:
        """Returns when all is made and the first step is due."""
        self.start()
        self._wait()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._go.release()
            self._wait()

    def end(self) -> None:
        self._stopping = True
        self._go.release()
        self.join()

    def assembled(self, made: Assembly) -> Assembly:
        """In the run's own thread: what it is made of."""
        self.made = made
        if self.same_batches:
            self.batches = list(itertools.islice(made.batches(range(BATCHES)), BATCHES))
            # Instead of the method.
            vars(made)["batches"] = lambda steps: (self.batches[step % BATCHES] for step in steps)
        return made

    def pause(self) -> None:
        """In the run's own thread: waits to be told."""
        self._arrived.release()
        self._go.acquire()
        if self._stopping:
            raise Enough

    def _wait(self) -> None:
        self._arrived.acquire()
        if self._error is not None:
            raise self._error


@contextmanager
def running(bench: Bench, recipe: Recipe, *, same_batches: bool = True) -> Iterator[Run]:
    """A run whose first step is due."""
    run = Run(recipe, Path(tempfile.mkdtemp(dir=bench.folder)), same_batches=same_batches)
    run.begin()
    try:
        yield run
    finally:
        run.end()


@contextmanager
def told() -> Iterator[None]:
    """The training loop waits at the beginning of every step of a `Run`, shows what it is made of, and times its
    checkpoints; other runs go on as ever."""

    def assemble(*args: Any, **kwargs: Any) -> Assembly:
        made = assembled(*args, **kwargs)
        run = threading.current_thread()
        return run.assembled(made) if isinstance(run, Run) else made

    def seed(seed: int, step: int) -> None:
        run = threading.current_thread()
        if isinstance(run, Run):
            run.pause()
        seed_step(seed, step)

    def save(folder: RunFolder, state: State) -> None:
        run, device = threading.current_thread(), next(state.student.parameters()).device
        before = now(device, wall=True)
        saved(folder, state)
        if isinstance(run, Run):
            run.saving += now(device, wall=True) - before

    assembled, saved = videokd.train.assemble, RunFolder.save
    with (
        mock.patch.object(videokd.train, "assemble", assemble),
        mock.patch.object(videokd.train, "seed_step", seed),
        mock.patch.object(RunFolder, "save", save),
    ):
        yield


class Bare:
    """The loop that one would write by hand for these losses, over the networks of a run as they were at its start.

    Args:
        run: that has made no step.
        terms: those of its losses that are wanted.
    """

    def __init__(self, run: Run, terms: Mapping[str, Term]) -> None:
        made = run.made
        self.batches, self.terms, self.optim, self.machine = run.batches, terms, made.recipe.optim, made.recipe.machine
        self.device = made.device
        self.student = deepcopy(made.student.model).train()
        self.teacher: Any = (
            made.teachers["teacher"] if any(term.loss.needs_teacher for term in terms.values()) else None
        )
        self.taps = tuple({pair.student for term in terms.values() for pair in term.loss.pairs()})
        self.connectors = nn.ModuleDict()
        for key, pair in made.student.pairs.items():
            if key in made.student.connectors and pair.student in self.taps:
                self.connectors[pair.student] = deepcopy(made.student.connectors[key])
        self.parameters = [*self.student.parameters(), *self.connectors.parameters()]
        groups = [
            {"params": [one for one in self.parameters if one.ndim > 1], "weight_decay": self.optim.weight_decay},
            {"params": [one for one in self.parameters if one.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.optim.lr, fused=True)
        self.done = 0
        self.losses: dict[str, Tensor] = {}
        self.log: list[dict[str, float]] = []
        if "frames" in self.taps:
            self.students, self.average = self._grids()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.batches[self.done % len(self.batches)])

    def step(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr_at(self.done)
        self.done += 1
        said = None
        if self.teacher is not None:
            with torch.no_grad(), self.machine.autocast(self.device):
                said = self.teacher.model(batch.clips["teacher"], self.taps)
        with self.machine.autocast(self.device):
            outputs = self.student(batch.clips["student"], self.taps)
            projected = {tap: one(self._pooled(outputs, tap)) for tap, one in self.connectors.items()}
        self.losses = self._losses(outputs, projected, said, batch.label)
        progress = self.done / self.optim.steps
        total = sum(term.weight_at(progress) * self.losses[name] for name, term in self.terms.items())
        self.losses["total"] = total
        total.backward()
        if self.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.done % LOG_EVERY == 0:
            self.log.append({name: loss.item() for name, loss in self.losses.items()})

    def _losses(
        self, outputs: Outputs, projected: Mapping[str, Tensor], said: Outputs | None, label: Tensor
    ) -> dict[str, Tensor]:
        logits = outputs.logits.float()
        targets = {}
        if said is not None:
            targets = {tap: self._pooled(said, tap, of_student=False).float() for tap in self.taps}
        normed = {tap: F.layer_norm(one, one.shape[-1:]) for tap, one in targets.items()}
        found = {}
        for name, term in self.terms.items():
            match term.loss:
                case CrossEntropy():
                    found[name] = F.cross_entropy(logits, label)
                case SoftTargets(temperature=t):
                    of_student, of_teacher = (logits / t).log_softmax(1), (said.logits.float() / t).log_softmax(1)
                    found[name] = F.kl_div(of_student, of_teacher, log_target=True, reduction="batchmean") * t**2
                case FrameFeatures():
                    found[name] = F.smooth_l1_loss(projected["frames"].float(), normed["frames"])
                case TemporalDifference():
                    changes = projected["frames"].float().diff(dim=1), normed["frames"].diff(dim=1)
                    found[name] = F.smooth_l1_loss(*changes)
                case TemporalAffinity():
                    of_student = affinity(self._pooled(outputs, "frames").float())
                    found[name] = F.mse_loss(of_student, affinity(targets["frames"]))
                case ClipFeatures(distance="cosine"):
                    cosine = F.cosine_similarity(projected["clip"].float(), normed["clip"], dim=1)
                    found[name] = (2 - 2 * cosine).mean()
                case loss:
                    raise ValueError(f"the bare loop has no {type(loss).__name__}")
        return found

    def _pooled(self, outputs: Outputs, tap: str, *, of_student: bool = True) -> Tensor:
        values = outputs.features[tap].values.mean(dim=(2, 3))  # (B, T, C)
        if tap == "clip":
            return values[:, 0]
        return self.average @ values if of_student != self.students else values

    def _grids(self) -> tuple[bool, Tensor]:
        """Whether the student's steps of time are kept, and how those of the other are averaged, the same for all
        clips: (T, T')."""
        batch = self.batches[0]
        with torch.no_grad():
            ours = deepcopy(self.student)(batch.clips["student"], ("frames",)).features["frames"].times[:1]
            theirs = self.teacher.model(batch.clips["teacher"], ("frames",)).features["frames"].times[:1]
        keeps_student = ours.shape[1] <= theirs.shape[1]
        weights, _ = overlap_weights(theirs, ours) if keeps_student else overlap_weights(ours, theirs)
        return keeps_student, weights[0]


def affinity(frames: Tensor) -> Tensor:
    """Cosines between the frames of a clip, its mean taken off: (B, T, C) -> (B, T, T)."""
    unit = F.normalize(frames - frames.mean(dim=1, keepdim=True), dim=2)
    return unit @ unit.mT


class Torchdistill:
    """torchdistill's box and the loop of its examples, over the networks of a run as they were at its start."""

    def __init__(self, run: Run) -> None:
        from torchdistill.core.distillation import get_distillation_box
        from torchdistill.misc.log import MetricLogger

        made = run.made
        self.batches, self.machine, self.device, self.done = run.batches, made.recipe.machine, made.device, 0
        (connector,) = made.student.connectors.values()
        student = Tapped(deepcopy(made.student.model), "student", deepcopy(connector))
        teacher: Any = made.teachers["teacher"]
        side = {"forward_proc": "forward_batch_only", "forward_hook": {"output": ["clip"]}}
        place = {"module_path": "clip", "io": "output"}
        terms = {
            "kd": {
                "criterion": {
                    "key": "KDLoss",
                    "kwargs": {
                        "student_module_path": ".",
                        "student_module_io": "output",
                        "teacher_module_path": ".",
                        "teacher_module_io": "output",
                        "temperature": TEMPERATURE,
                        "alpha": SHARED_TERMS["hard"].weight,
                    },
                },
                "weight": 1.0,
            },
            "clip": {
                "criterion": {"key": "MSELoss", "kwargs": {}},
                "criterion_wrapper": {
                    "key": "SimpleLossWrapper",
                    "kwargs": {
                        "input": {"is_from_teacher": False, **place},
                        "target": {"is_from_teacher": True, **place},
                    },
                },
                "weight": SHARED_TERMS["clip"].weight,
            },
        }
        optim = made.recipe.optim
        config = {
            "num_epochs": 1,
            "teacher": {**side, "requires_grad": False},
            "student": side,
            "optimizer": {
                "key": "AdamW",
                "kwargs": {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True},
                "max_grad_norm": optim.clip_norm,
            },
            "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": optim.steps}, "scheduling_step": 1},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        }
        heard = Tapped(teacher.model, "teacher", nn.Identity())
        self.box: Any = get_distillation_box(heard, student, {}, config, self.device, None, False, 1)
        self.box.pre_epoch_process(epoch=0)
        self.logger = MetricLogger(delimiter="  ")
        self.losses: dict[str, Tensor] = {}

    def advance(self, steps: int) -> None:
        batches = [self.batches[(self.done + number) % len(self.batches)] for number in range(steps)]
        self.done += steps
        for batch in self.logger.log_every(batches, LOG_EVERY):
            with self.machine.autocast(self.device):
                loss = self.box.forward_process(batch, batch.label, {})
            self.box.post_forward_process(loss=loss)
            self.losses = {"total": loss.detach()}
            self.logger.update(loss=loss.item(), lr=self.box.optimizer.param_groups[0]["lr"])
            if not loss.isfinite():
                raise ValueError(f"torchdistill's loss is {loss}")


class Tapped(nn.Module):
    """One of our networks as torchdistill wants it: a batch in, logits out, and a module to look at."""

    def __init__(self, network: nn.Module, party: str, clip: nn.Module) -> None:
        super().__init__()
        self.network, self.party, self.clip = network, party, clip

    def forward(self, batch: Batch) -> Tensor:
        outputs = self.network(batch.clips[self.party], ("clip",))
        self.clip(outputs.features["clip"].values[:, 0, 0, 0])
        logits: Tensor = outputs.logits
        return logits


class Forward:
    """A network's forward pass over some clips, again and again."""

    def __init__(self, network: Model[Any], views: Sequence[View], taps: Sequence[str], machine: Machine) -> None:
        self.network, self.views, self.taps, self.machine, self.done = network, views, tuple(taps), machine, 0

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.logits(self.views[self.done % len(self.views)])
            self.done += 1

    @torch.no_grad()
    def logits(self, view: View) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with self.machine.autocast(self.network.device):
            logits: Tensor = self.network(view, self.taps).logits
        return logits.float()


def difference(ours: Run, other: "Bare | Torchdistill", *, steps: int = 3) -> float:
    """Makes the first steps of both, and says how far any loss differs, relative to it.

    Raises:
        ValueError: if it is another loss.
    """

    def note(objective: nn.Module, inputs: Any, losses: dict[str, Tensor]) -> None:
        ours.losses = {name: one.detach() for name, one in losses.items()}

    handle = ours.made.student.objective.register_forward_hook(note)
    largest, allowed = 0.0, 1e-4 if ours.recipe.machine.precision == "fp32" else 0.05
    for step in range(1, steps + 1):
        ours.advance(1)
        seed_step(ours.recipe.seed, step)  # the same dropout
        other.advance(1)
        for name, loss in other.losses.items():
            found = abs(loss.item() - ours.losses[name].item()) / max(abs(ours.losses[name].item()), 1e-2)
            if found > allowed:
                raise ValueError(f"step {step}: {name} is {ours.losses[name]} here and {loss} there")
            largest = max(largest, found)
    handle.remove()
    return largest


def draw(folder: Path, packing: Packing, *, clips: int) -> Path:
    """A packed set: a drawn scene of 3 s, under as many names."""
    one = write(File(name="scene.mp4", frames=90), folder)
    (folder / "videos").mkdir()
    rows = ["path,label,split"]
    for number in range(clips):
        shutil.copy(one, folder / "videos" / f"{number}.mp4")
        rows.append(f"videos/{number}.mp4,class{number % CLASSES},train")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    pack(read_manifest(folder / "list.csv"), folder / "packed", packing, workers=1)
    return folder / "packed"


def over(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Our seconds over theirs, round by round."""
    return times_faster(list(theirs), list(ours))


def shown(ratio: Interval) -> str:
    digits = 1 if ratio.median >= 5 else 3 if ratio.median >= 0.1 else 5
    return f"{ratio.median:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


def now(device: torch.device, *, wall: bool = False) -> float:
    """Seconds: of this process on a CPU, unless those of the wall are wanted; when its work is done on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() if wall or device.type == "cuda" else time.process_time()


def silent() -> Console:
    return Console(file=io.StringIO())


if __name__ == "__main__":
    main()
