"""What losses cost: their share of a distillation step, and the memory of those that compare clips with each other.

    python benchmarks/losses.py --out benchmarks/results/losses.json

The share: the seconds that connectors and objective take, forward and backward, over those of the whole step (teacher,
student, objective, optimiser), in the same step, on noise of the recipe's own clip size, with its batch (four clips
where the teacher is one of torchvision's: the smaller a batch, the larger the share). Memory: how much the peak grows
from 256 clips' vectors of 2048 channels on, forward and backward, each loss in a process of its own.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import setting

from videokd.contracts import Batch, Clip, Dense, FeatureMap, InputSpec, Outputs
from videokd.distill import Student, Term, wanted_taps
from videokd.losses import CRD, DIST, PKT, SP, BankAffinity, Loss, RKDAngle, RKDDistance
from videokd.losses.relations import BANK, BANK_CLIP, BANK_FILLED, BANK_LABEL
from videokd.models import VideoResNet
from videokd.recipe import Recipe, load
from videokd.report.tables import markdown_table
from videokd.teachers import Teacher, all_targets

CLIPS, CHANNELS, CLASSES = 256, 2048, 400
RELATIONAL: dict[str, Loss] = {
    "RKDDistance": RKDDistance(),
    "RKDAngle": RKDAngle(),
    "SP": SP(),
    "PKT": PKT(),
    "CRD, queue of 4096": CRD(queue=4096),
    "BankAffinity, queue of 4096": BankAffinity(queue=4096),
    "DIST": DIST(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a .json; tables are written beside it")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    shares = {
        "quickstart/distilled.py": step_shares(load("quickstart/distilled.py"), device, rounds=args.rounds),
        "own_videos/distilled.py": step_shares(
            load("own_videos/distilled.py"), device, rounds=max(args.rounds // 4, 3)
        ),
    }
    memory = {name: peak(name, args.device) for name in RELATIONAL}
    result = {"setting": setting(vars(args)), "share_of_a_step": shares, "mebibytes": memory}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    share_rows = [
        (
            name,
            f"{one['batch']}",
            *(
                f"{100 * one[which][0]:.1f} [{100 * one[which][1]:.1f}, {100 * one[which][2]:.1f}]"
                for which in ("share", "share_remembered")
            ),
        )
        for name, one in shares.items()
    ]
    columns = ("recipe", "clips", "% of a step [quartiles]", "% of a step whose teacher is remembered [quartiles]")
    tables = [
        markdown_table(columns, share_rows),
        markdown_table((f"loss, {CLIPS} clips", "MiB"), [(name, f"{one:.0f}") for name, one in memory.items()]),
    ]
    args.out.with_suffix(".md").write_text("\n\n".join(tables) + "\n")
    print("\n\n".join(tables))


def step_shares(recipe: Recipe, device: torch.device, *, rounds: int) -> dict[str, Any]:
    """What connectors and objective take of a step of the recipe: median and quartiles."""
    names = [str(number) for number in range(12)]
    teacher_config: Any = load(f"{'own_videos' if 'clip' in recipe.objective else 'quickstart'}/teacher.py").student
    if isinstance(teacher_config, VideoResNet):
        recipe = replace(recipe, data=replace(recipe.data, batch_size=4))
    batch_size = recipe.data.batch_size
    model = teacher_config.build(names, pretrained=False)
    teachers = {"teacher": Teacher(model.to(device), wanted_taps(recipe.objective, "teacher"))}
    student = Student(recipe.student.build(names, pretrained=False), recipe.objective, teachers).to(device).train()
    optimizer = recipe.optim.build(student)
    generator = torch.Generator().manual_seed(0)

    def noise(spec: InputSpec) -> Clip:
        pixels = (batch_size, spec.frames, 3, spec.size, spec.size)
        frames = torch.randint(0, 256, pixels, generator=generator, dtype=torch.uint8)
        stride = spec.sampling.stride if isinstance(spec.sampling, Dense) else 1
        times = torch.arange(spec.frames) * stride / 30
        return Clip(frames, times.repeat(batch_size, 1)).to(device)

    clips = {"student": noise(student.model.input), "teacher": noise(model.input)}
    label = torch.arange(batch_size, device=device) % len(names)
    batch = Batch(clips, label, tuple(map(str, range(batch_size))), torch.zeros(batch_size, dtype=torch.int64))
    found: dict[str, list[float]] = {"share": [], "share_remembered": []}
    for number in range(rounds + 2):
        clock = Clock(device)
        targets = all_targets(teachers, batch)
        said = clock.since()
        taps = tuple({pair.student for pair in student.pairs.values()})
        outputs = student.model(batch.clips["student"], taps)
        ran = clock.since()
        # From here to the leaves' gradients: connectors and objective.
        leaves = {tap: one.values.detach().requires_grad_() for tap, one in outputs.features.items()}
        assert outputs.logits is not None
        logits = outputs.logits.detach().requires_grad_()
        features = {}
        for key, pair in student.pairs.items():
            pooled = FeatureMap(leaves[pair.student], outputs.features[pair.student].times).pooled(pair.grid)
            values = student.connectors[key](pooled.values) if key in student.connectors else pooled.values
            features[key] = FeatureMap(values, pooled.times)
        losses = student.objective(Outputs(logits, features), targets, batch.label)
        losses["total"].backward()
        compared = clock.since()
        tensors = [outputs.logits, *(outputs.features[tap].values for tap in leaves)]
        gradients = [logits.grad, *(leaf.grad for leaf in leaves.values())]
        torch.autograd.backward(tensors, gradients)
        optimizer.step()
        optimizer.zero_grad()
        learned = clock.since()
        if number >= 2:  # code and memory are warm
            found["share"].append(compared / (said + ran + compared + learned))
            found["share_remembered"].append(compared / (ran + compared + learned))
    summary = {which: [median(many), *np.percentile(many, [25, 75]).tolist()] for which, many in found.items()}
    return {"batch": batch_size, **summary}


class Clock:
    """Seconds between calls, the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.since()

    def since(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter() if self.device.type == "cuda" else time.process_time()
        before, self.last = getattr(self, "last", now), now
        return now - before


def peak(name: str, device: str) -> float:
    """MiB by which a loss makes the peak of its process grow."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, device, theirs))
    process.start()
    theirs.close()  # so that a child that dies is noticed
    found = float(ours.recv())
    process.join()
    return found


def measure(name: str, device: str, sender: Any) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    run = step_of(RELATIONAL[name], torch.device(device))
    run(8)  # code, and what libraries keep for themselves
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now (Linux)
    before = peak_so_far(device)
    run(CLIPS)
    sender.send((peak_so_far(device) - before) / 2**20)


def peak_so_far(device: str) -> float:
    """Bytes."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * float(line.split()[1])


def step_of(loss: Loss, device: torch.device) -> Callable[[int], None]:
    """Forward and backward over some clips; what goes in is there before."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    sides = [(draw(CLIPS, CLASSES), draw(CLIPS, 1, 1, 1, CHANNELS)) for _ in range(2)]
    queue = getattr(loss, "queue", 0)
    extra = {
        BANK: draw(queue, CHANNELS),
        BANK_FILLED: torch.ones(queue, dtype=torch.bool, device=device),
        BANK_LABEL: torch.zeros(queue, dtype=torch.int64, device=device),
        BANK_CLIP: torch.arange(queue, device=device),
    }
    label, times = torch.arange(CLIPS, device=device) % CLASSES, torch.zeros(CLIPS, 1, device=device)
    for part in sides[0]:
        part.requires_grad_().grad = torch.zeros_like(part)

    def run(clips: int) -> None:
        student, teacher = (
            Outputs(logits[:clips], {"clip": FeatureMap(values[:clips], times[:clips])}, None, extra if queue else {})
            for logits, values in sides
        )
        Term(loss=loss).loss(student, teacher, label[:clips]).backward()

    return run


if __name__ == "__main__":
    main()
