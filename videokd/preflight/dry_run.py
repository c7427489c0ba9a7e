"""Runs a recipe's first batches without learning from them, and says what they show."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from videokd.acceleration import to_channels_last
from videokd.assembly import Assembly
from videokd.contracts import Batch, Outputs, labelled
from videokd.gradients import in_parts
from videokd.machine import seed_step
from videokd.preflight import class_lists, held_out, terms
from videokd.preflight import forecast as forecasts
from videokd.preflight.forecast import Timed
from videokd.preflight.report import Finding, Report, TeacherScore
from videokd.teachers import Mixture, Teacher, all_targets

ENOUGH_LABELLED = 64
"""Clips from which an untrained teacher of a dozen classes is told from a weak one."""


def preflight(made: Assembly, *, batches: int = 4, most: int | None = None, out: Path | None = None) -> Report:
    """What the first batches of a run show; the run is left as it was, to the bit.

    A step is computed as the run would, without the optimiser: in parts, with `optim.freeze` as it is at that step, and
    with weights channels last if the run has them so; then each term's gradient by itself, of the last part. Where
    `optim.freeze_until` ends in the run, the last batch is computed once more without `freeze`, for the time, the
    memory and the gradients of what follows.

    Args:
        made: the run, before its first step.
        batches: how many to look at.
        most: batches up to which teachers alone go on, until `ENOUGH_LABELLED` clips with a label were seen.
        out: folder that the run is to be written to, for the disk it needs; None for the current one.

    Raises:
        ValueError: for a video that can't be read, unless `data.on_bad_video` says otherwise; for a name in
            `optim.freeze` that the student does not have.
    """
    out, optim = out or Path(), made.recipe.optim
    batches = min(batches, made.recipe.optim.steps)
    if batches < 1:
        raise ValueError(f"a preflight looks at one batch at least, not {batches}")
    answers = {name: _Answers() for name in _judged(made)}
    seen: list[dict[str, terms.Seen]] = []
    timed: list[Timed] = []
    skipped: list[str] = []
    remembered = peak = learned = 0
    last: Batch | None = None
    unfrozen: _Computed | None = None
    if made.recipe.machine.channels_last:
        for network in made.networks:
            to_channels_last(network)
    with _untouched(made):
        loaded, loader = _loaded(made, batches)
        for step in range(1, batches + 1):
            # Taken out, so that at the last step memory is what it is in the run.
            batch = loaded.pop(0)
            skipped += batch.skipped
            if not batch.id:
                continue
            _reset_peak(made.device)
            done = _step(made, batch, step, frozen=optim.frozen_at(step - 1))
            peak = forecasts.peak_memory(made.device)
            timed.append(done.seconds)
            seen.append(_seen(made, done, step))
            made.student.zero_grad()
            remembered = sum(_bytes(done.targets[name]) for name in _remembering(made)) // len(batch.id)
            _listen(answers, done.targets, batch, len(made.clips.classes))
            last = batch
            del done  # its graph
        if last is not None and optim.frozen_at(batches - 1) and not optim.frozen_at(optim.steps - 1):
            for _ in range(2):  # the first of a new kind of step is slower
                unfrozen = None  # its graph
                made.student.zero_grad()
                _reset_peak(made.device)
                unfrozen = _step(made, last, batches, frozen=False)
                peak = max(peak, forecasts.peak_memory(made.device))
        later = None if unfrozen is None else _seen(made, unfrozen, batches)
        optim.set_frozen(made.student.model, optim.frozen_at(optim.steps - 1))
        learned = sum(one.nbytes for one in made.student.parameters() if one.requires_grad)
        more = range(batches, min(most or batches, made.recipe.optim.steps))
        for batch in made.batches(more) if more and _too_few(answers) else ():
            if batch.id:
                with torch.no_grad(), made.recipe.machine.autocast(made.device):
                    _listen(answers, all_targets(made.teachers, batch), batch, len(made.clips.classes))
            if not _too_few(answers):
                break
        connections = terms.connections(made)
        # Broken outputs are an error already, and a split need not be read for them.
        whole = [name for name, heard in answers.items() if not heard.broken]
        held_out_of = held_out.held_out_scores(made, whole) if seen else {}

    findings: list[Finding] = []
    if skipped:
        said = f"{len(skipped)} clips of these batches could not be read; the first: {skipped[0]}"
        findings.append(Finding(level="warning" if seen else "error", what="videos", said=said))
    if not seen:
        return Report(batches=batches, findings=tuple(findings))
    scored, stop = [], made.recipe.weak_teacher == "stop"
    for name, heard in answers.items():
        score, found = _of_teacher(name, heard, made.clips.classes, stop=stop)
        scored.append(score)
        findings += found
    findings += [held_out.finding_of(name, score, stop=stop) for name, score in held_out_of.items()]
    term_scores = terms.scores(made.terms, seen)
    findings += terms.findings(made.terms, seen, term_scores, unfrozen=later)
    need = forecasts.forecast(
        made,
        timed,
        unfrozen=None if unfrozen is None else unfrozen.seconds,
        learned=learned,
        loader=loader,
        peak=peak,
        remembered=remembered,
        out=out,
    )
    findings += forecasts.findings(need, device=made.device, out=out)
    return Report(
        batches=batches,
        findings=tuple(findings),
        teachers=tuple(scored),
        terms=term_scores,
        connections=connections,
        forecast=need,
    )


def check(made: Assembly, *, batches: int, out: Path | None = None, console: Console) -> Report:
    """A preflight at the start of a run: prints warnings and how long it will take.

    Raises:
        ValueError: with what is wrong, if the verdict is "don't".
    """
    report = preflight(made, batches=batches, out=out)
    for finding in report.findings:
        if finding.level == "warning" or finding.what == "time":
            console.print(f"preflight: {finding.said}")
    if report.verdict == "don't":
        wrong = "; ".join(finding.said for finding in report.at("error"))
        raise ValueError(f"preflight: {wrong}; to run it all the same: --preflight 0")
    return report


@contextmanager
def _untouched(made: Assembly) -> Iterator[None]:
    """Leaves the student (weights, statistics, queues, gradients, modes, what is frozen), its weigher and the random
    state as they were, whatever is done in between; there, the student is in train mode."""
    student, objective = made.student, made.student.objective
    tensors = [*student.parameters(), *student.buffers()]
    before = [one.detach().clone() for one in tensors]
    modes = [(module, module.training, vars(module).get("train")) for module in student.modules()]
    learning = [(one, one.requires_grad) for one in student.parameters()]
    weigher, weights = objective.weigher, objective.weights
    # A copy, for a weigher counts in plain numbers too; what it shares with the model stays shared.
    objective.weigher = copy.deepcopy(weigher, {id(one): one for one in weigher.shared})
    on_gpu = made.device.type == "cuda"
    random_state = torch.get_rng_state(), torch.cuda.get_rng_state(made.device) if on_gpu else None
    student.train()
    try:
        yield
    finally:
        objective.weigher, objective.weights = weigher, weights
        student.zero_grad()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for parameter, requires_grad in learning:
            parameter.requires_grad_(requires_grad)
        for module, training, train in modes:
            module.training = training
            vars(module).pop("train", None)
            if train is not None:  # of a batch norm that is frozen
                vars(module)["train"] = train
        torch.set_rng_state(random_state[0])
        if random_state[1] is not None:
            torch.cuda.set_rng_state(random_state[1], made.device)


def _loaded(made: Assembly, count: int) -> tuple[list[Batch], float]:
    """The first batches, and in how many seconds one is made.

    They come before anything is computed: what workers make meanwhile would not be seen, nor what they make ahead.
    """
    if made.clips.memory is not None:
        for _ in made.batches(range(count)):
            pass  # decoded once in a run: that is not the pace of its steps
    started = time.perf_counter()
    loaded, arrived = [], []
    for batch in made.batches(range(count)):
        loaded.append(batch)
        arrived.append(_now(made.device))
    # Workers start before the first one.
    return loaded, (arrived[-1] - arrived[0]) / (count - 1) if count > 1 else arrived[0] - started


@dataclass(frozen=True)
class _Computed:
    """What a step has computed: the teachers' outputs, and of the batch's last part the rest, with its graph."""

    targets: dict[str, Outputs]
    part: Batch
    part_targets: Mapping[str, Outputs]
    outputs: Outputs
    losses: dict[str, Tensor]
    seconds: Timed


def _step(made: Assembly, batch: Batch, step: int, *, frozen: bool) -> _Computed:
    """What the loop computes at a step, up to the gradient; the graph of the last part stays."""
    recipe, student = made.recipe, made.student
    seed_step(recipe.seed, step)
    recipe.optim.set_frozen(student.model, frozen)
    start = _now(made.device)
    with recipe.machine.autocast(made.device):
        targets = all_targets(made.teachers, batch)
    teacher = _now(made.device) - start
    forward = rest = 0.0
    parts = in_parts(batch, targets, recipe)
    following = next(parts, None)
    while following is not None:
        part, part_targets, share = following
        times = [_now(made.device)]
        with recipe.machine.autocast(made.device):
            outputs = student(part.clips["student"], part.shuffled.get("student"))
            times.append(_now(made.device))
        losses = student.objective(outputs, part_targets, part.label, ids=part.id, progress=step / recipe.optim.steps)
        following = next(parts, None)
        if losses["total"].requires_grad:
            (losses["total"] * share).backward(retain_graph=following is None)
        forward, rest = forward + times[1] - times[0], rest + _now(made.device) - times[1]
    seconds = Timed(teacher=teacher, student=forward + rest, forward=forward)
    return _Computed(targets, part, part_targets, outputs, losses, seconds)


def _seen(made: Assembly, done: _Computed, step: int) -> dict[str, terms.Seen]:
    return terms.seen(
        made,
        done.part,
        progress=step / made.recipe.optim.steps,
        targets=done.part_targets,
        outputs=done.outputs,
        losses=done.losses,
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class _Answers:
    """What one teacher said of labelled clips."""

    said: list[NDArray[np.int64]] = field(default_factory=list)
    classes: list[NDArray[np.bool_]] = field(default_factory=list)
    one_class: bool = True
    """Whether every clip is of one class: neither mixed nor of several."""
    broken: int = 0
    """Clips of which its logits are not finite."""

    @property
    def labelled(self) -> int:
        return sum(map(len, self.said))


def _too_few(answers: Mapping[str, _Answers]) -> bool:
    return any(one.labelled < ENOUGH_LABELLED for one in answers.values())


def _judged(made: Assembly) -> list[str]:
    """The teachers whose classes a term follows, and the parts of mixtures; not those that are told the labels."""
    followed = {term.teacher for term in made.terms.values() if term.needs_teacher_logits}
    for name in list(followed):
        mixture = made.teachers[name]
        followed.update(mixture.of if isinstance(mixture, Mixture) else ())
    return [
        name
        for name, one in made.teachers.items()
        if name in followed and (isinstance(one, Mixture) or one.model.input is not None)
    ]


def _listen(answers: Mapping[str, _Answers], targets: Mapping[str, Outputs], batch: Batch, num_classes: int) -> None:
    """Notes what each teacher says of the labelled clips of a batch; of mixed ones, both classes are right."""
    label = batch.label
    several = label.ndim == 2 and bool(((label > 0).sum(dim=1) > 1).any())
    classes = label > 0 if label.ndim == 2 else F.one_hot(label.clamp(min=0), num_classes).bool()
    for name, heard in answers.items():
        logits, known = targets[name].logits, targets[name].known
        assert logits is not None, "a term follows its classes"
        rows = labelled(label) if known is None else labelled(label) & known
        finite = logits.isfinite().all(dim=1)
        heard.broken += int((rows & ~finite).sum())
        heard.said.append(logits[rows & finite].argmax(dim=1).cpu().numpy())
        heard.classes.append(classes[rows & finite].cpu().numpy())
        heard.one_class &= not several


def _of_teacher(
    name: str, heard: _Answers, classes: Sequence[str], *, stop: bool
) -> tuple[TeacherScore, list[Finding]]:
    said, right = np.concatenate(heard.said), np.concatenate(heard.classes)
    score = class_lists.score(name, said, right)
    if heard.broken:
        broken = f"what teacher {name!r} says of {heard.broken} clips is not finite: look at its weights"
        return score, [Finding(level="error", what=f"teacher {name}", said=broken)]
    finding = class_lists.accuracy_finding(score)
    findings = [finding if stop or finding.level != "error" else replace(finding, level="warning")]
    # Of several classes, none is the one that a wrong answer stands for.
    if heard.one_class and (renamed := class_lists.renamed(right.argmax(axis=1), said)):
        findings.append(class_lists.renaming_finding(name, renamed, classes))
    return score, findings


def _remembering(made: Assembly) -> list[str]:
    return [name for name, one in made.teachers.items() if isinstance(one, Teacher) and one.remembers]


def _bytes(outputs: Outputs) -> int:
    parts = [part for one in outputs.features.values() for part in (one.values, one.times)]
    return sum(part.nbytes for part in (*parts, outputs.logits, outputs.known) if part is not None)
