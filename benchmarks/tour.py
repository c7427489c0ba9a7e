"""A training step of teachers of every kind over students of every kind, at the sizes that they are published with.

    python benchmarks/tour.py --out tour.json

Random weights and random clips: shown is that shapes, times and memory fit together, not that it helps. A step is one
of AdamW on one clip, twice in the batch. The table is that of docs/models.md.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import setting
from rich.console import Console

from videokd.contracts import Clip, InputSpec, Sound
from videokd.distill import Objective, Student, Term, wanted_taps
from videokd.losses import ClipFeatures, CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity
from videokd.models import ClassNames, Model, ModelConfig, Motion, Own, VideoResNet, catalogue
from videokd.models.cost import cost
from videokd.models.huggingface_images import ClassNamesModel
from videokd.report.tables import markdown_table
from videokd.teachers import Teacher

CLASSES = [f"class {number}" for number in range(400)]
SOFT, CLIP = Term(loss=SoftTargets(temperature=2.0)), Term(loss=ClipFeatures())
FRAMES, AFFINITY = Term(loss=FrameFeatures()), Term(loss=TemporalAffinity())


def mid(student: str, teacher: str) -> Term:
    return Term(loss=FrameFeatures(student_tap=student, teacher_tap=teacher))


# Student, its teachers by name, what they are compared by.
PAIRS: list[tuple[str, Mapping[str, str], dict[str, Term]]] = [
    (
        "MobileNetV3-S + shift",
        {"teacher": "R(2+1)D-18"},
        {"soft": SOFT, "frames": FRAMES, "mid": mid("stage4", "stage3")},
    ),
    ("X3D-XS", {"teacher": "S3D"}, {"soft": SOFT, "clip": CLIP}),
    ("MobileNetV4-S + shift", {"teacher": "MViTv2-S"}, {"soft": SOFT, "frames": FRAMES}),
    ("EfficientNet-B0 + shift", {"teacher": "Video Swin-T"}, {"soft": SOFT, "frames": FRAMES}),
    ("RepViT-M0.9 + shift", {"teacher": "VideoMAE-B"}, {"frames": FRAMES, "mid": mid("stage3", "block6")}),
    ("FastViT-T8 + shift", {"teacher": "TimeSformer-B"}, {"soft": SOFT, "frames": FRAMES, "affinity": AFFINITY}),
    ("TinyViT-5M + shift", {"teacher": "ViViT-B"}, {"frames": FRAMES}),
    ("ResNet-18 + shift", {"teacher": "V-JEPA 2 L, 16 frames"}, {"frames": FRAMES, "clip": CLIP}),
    ("MobileNetV3-S + attention", {"teacher": "CLIP B/32, frames"}, {"frames": FRAMES, "clip": CLIP}),
    ("MobileNetV3-S + GRU", {"teacher": "DINOv2-B/14, frames"}, {"frames": FRAMES, "clip": CLIP}),
    ("MobileNetV3-S + conv", {"teacher": "ResNet-50, frames"}, {"soft": SOFT, "frames": FRAMES}),
    ("MoViNet-A0", {"teacher": "motion of R3D-18"}, {"soft": SOFT, "frames": FRAMES}),
    ("CompactShift (quickstart)", {"teacher": "AST"}, {"frames": FRAMES, "clip": CLIP}),
    ("MobileNetV3-S + shift", {"teacher": "class names"}, {"clip": CLIP}),
    (
        "MobileNetV3-S + conv in stages",
        {"teacher": "R3D-18", "ear": "Mel + MobileNetV3"},
        {"soft": SOFT, "frames": FRAMES, "soft ear": replace(SOFT, teacher="ear")},
    ),
    ("MobileNetV4-S + shift", {"teacher": "your own: torchvision's R(2+1)D-18"}, {"soft": SOFT, "frames": FRAMES}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    console = Console(width=150)
    configs = known()
    rows, plain = [], []
    for student_name, teacher_names, compared in PAIRS:
        started = time.monotonic()
        torch.manual_seed(0)
        terms = {"hard": Term(loss=CrossEntropy()), **compared}
        models = {name: built(kind, configs) for name, kind in teacher_names.items()}
        teachers = {name: Teacher(model, wanted_taps(terms, name)) for name, model in models.items()}
        model = built(student_name, configs)
        student = Student(model, terms, teachers).train()
        label = torch.tensor([3])
        targets = {name: one(noise(one.model, label), ["clip"], torch.tensor([0])) for name, one in teachers.items()}
        view = noise(model, label, batch=2)  # batch normalisation wants two
        targets = {name: one.at(torch.tensor([0, 0])) for name, one in targets.items()}
        losses = Objective(terms)(student(view), targets, label.repeat(2))
        losses["total"].backward()
        torch.optim.AdamW(student.parameters()).step()
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
        aligned = "; ".join(what_is_aligned(name, term, student, targets) for name, term in compared.items())
        prices = {student_name: cost(model)} | {teacher_names[name]: cost(one) for name, one in models.items()}
        costs = [f"{price.params / 1e6:.1f} / {price.macs / 1e9:.1f}" for price in prices.values()]
        rows.append((student_name, costs[0], " and ".join(teacher_names.values()), " and ".join(costs[1:]), aligned))
        plain.append(
            {
                "student": student_name,
                "teachers": dict(teacher_names),
                "losses": {name: loss.item() for name, loss in losses.items()},
                "costs": {name: {"params": price.params, "macs": price.macs} for name, price in prices.items()},
                "aligned": aligned,
                "seconds": time.monotonic() - started,
            }
        )
        console.print(f"{rows[-1]} {plain[-1]['seconds']:.0f} s")
    columns = ("student", "M params / GMAC", "teacher", "M params / GMAC", "what was aligned")
    console.print(markdown_table(columns, rows), soft_wrap=True)
    if args.out:
        args.out.write_text(json.dumps({"setting": setting(vars(args)), "pairs": plain}, indent=2) + "\n")


def known() -> dict[str, ModelConfig]:
    huggingface = catalogue.huggingface()
    jepa = huggingface["V-JEPA 2 L"]
    resnet = VideoResNet(name="r2plus1d_18")
    return {
        **catalogue.TEACHERS,
        **catalogue.STUDENTS,
        **huggingface,
        "V-JEPA 2 L, 16 frames": replace(jepa, input=InputSpec(frames=16, size=256)),  # type: ignore[call-arg]
        "motion of R3D-18": Motion(of=VideoResNet(name="r3d_18")),
        "class names": ClassNames(source="CLIP B/32"),
        "your own: torchvision's R(2+1)D-18": Own(
            target="torchvision.models.video:r2plus1d_18", input=resnet.input, video="b c t h w"
        ),
    }


def built(name: str, configs: Mapping[str, ModelConfig]) -> Model[Any]:
    config = configs[name]
    if isinstance(config, ClassNames):  # its words as a text tower of that width would give them
        return ClassNamesModel(config, CLASSES, torch.nn.functional.normalize(torch.randn(400, 512), dim=1))
    return config.build(CLASSES, pretrained=isinstance(config, Own))


def noise(model: Model[Any], label: torch.Tensor, *, batch: int = 1) -> Any:
    view = model.blank(batch)
    if isinstance(view, Clip):
        # Two seconds, however many frames they are.
        return Clip(torch.randint(0, 256, view.frames.shape, dtype=torch.uint8), 2 * view.times / view.times.shape[1])
    if isinstance(view, Sound):
        return Sound(0.1 * torch.randn(view.samples.shape), view.start, view.heard)
    return label


def what_is_aligned(name: str, term: Term, student: Student, targets: Mapping[str, Any]) -> str:
    pairs = term.loss.pairs()
    if not pairs:
        return "class probabilities"
    (pair,) = pairs
    found = targets[term.teacher].features[pair.teacher].values
    kind = "clip" if pair.grid == "clip" else f"{found.shape[1]} steps"
    how = ", affinity over time" if isinstance(term.loss, TemporalAffinity) else ""
    return f"{pair.student} with {pair.teacher} ({kind} of {found.shape[-1]}{how})"


if __name__ == "__main__":
    main()
