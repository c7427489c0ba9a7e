"""Teachers and students on one GPU: clips a second, against what the GPU can do at best.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Teachers: VideoMAE-B and -L, R(2+1)D-18, MViTv2-S, Video Swin-T. Students: MobileNetV3-S and -L, EfficientNet-B0,
ResNet-18 and -50, with temporal shift. Each eager in fp32 and bf16, compiled in bf16, and with CUDA graphs; then one
clip a call, for its latency. Weights are random, which changes no time. What is wanted:

    VideoMAE-B, -L          half of the matrix ceiling of the same run, or more
    students                two fifths of their roofline, or more
    one clip, CUDA graphs   at most a third of the eager latency
    events and wall clock   the same rate within 2 %

`--out` gets the JSON of all networks, with a table (.md), a page (.html) and its plots beside it, after each network:
what was measured is there if it is stopped. It may take more than ten minutes, most of them for
compiling: `--only NAME...` measures some of the networks. With --quick everything is small, and runs on a CPU too, to
see that it works; its figures mean nothing. Products in fp32 are without TF32, or all as TF32 with --tf32.
"""

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import git

from videokd.bench.benchmark import Plan, benchmark
from videokd.bench.contenders import Patience
from videokd.bench.derived import share_of_limit, summaries
from videokd.bench.results import SCHEMA, Measurement, Results, write_results
from videokd.bench.subjects import Party, Subject
from videokd.bench.variants import Variant
from videokd.contracts import Dense, InputSpec
from videokd.disk import write_text
from videokd.machine import Machine
from videokd.models import CompactShift, HuggingFaceVideo, ModelConfig, TimmVideo, catalogue
from videokd.report.speed.page import write_speed_page
from videokd.report.tables import markdown_table

FRAMES = InputSpec(frames=8, size=224, sampling=Dense(stride=4))
CLASSES = [f"class {number}" for number in range(400)]
COLUMNS = ("network", "clips", "variant", "clips/s (wall)", "p50 ms (wall)", "of limit %", "events / wall", "memory GB")


def videomae(**sizes: int) -> ModelConfig:
    """As transformers builds it from these sizes."""
    from transformers import VideoMAEConfig

    config = json.dumps(VideoMAEConfig(**sizes).to_dict())
    return HuggingFaceVideo(source="VideoMAE", architecture=config, input=InputSpec(frames=16, size=224))


def teachers() -> dict[str, tuple[ModelConfig, int]]:
    """Architectures, and clips a call."""
    known = catalogue.TEACHERS
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return {
        "VideoMAE-B": (videomae(), 64),
        "VideoMAE-L": (videomae(**large), 32),
        "R(2+1)D-18": (known["R(2+1)D-18"], 64),
        "MViTv2-S": (known["MViTv2-S"], 32),
        "Video Swin-T": (known["Video Swin-T"], 32),
    }


def students() -> dict[str, tuple[ModelConfig, int]]:
    names = {
        "MobileNetV3-S + shift": "mobilenetv3_small_100",
        "MobileNetV3-L + shift": "mobilenetv3_large_100",
        "EfficientNet-B0 + shift": "efficientnet_b0",
        "ResNet-18 + shift": "resnet18",
        "ResNet-50 + shift": "resnet50",
    }
    return {name: (TimmVideo(backbone=backbone, input=FRAMES, weights=None), 128) for name, backbone in names.items()}


def measured(name: str, config: ModelConfig, clips: int, *, device: str, quick: bool, tf32: bool = False) -> Results:
    """One network: all variants at `clips` a call, and two of them at one."""
    on_gpu = device.startswith("cuda")
    many: tuple[Variant, ...] = ("eager", "bf16", "compile-bf16", "cuda-graphs-bf16") if on_gpu else ("eager", "bf16")
    one: tuple[Variant, ...] = ("eager", "bf16", "cuda-graphs-bf16") if on_gpu else ("eager",)
    party = Party(name=name, build=lambda: config.build(CLASSES, pretrained=False).eval())
    plan = Plan(
        subject=Subject(named=name, parties=[party]),
        parts=("inference", "ceilings"),
        variants=many,
        batch_size=2 if quick else clips,
        latency=False,  # below, in more variants
        tf32=tf32,
        machine=Machine(device=device),
        patience=Patience(rounds=3 if quick else 10, turn_seconds=0.01 if quick else 0.2),
    )
    whole = benchmark(plan)
    single = benchmark(replace(plan, parts=("inference",), variants=one, batch_size=1))
    found = replace(whole, measurements=[*whole.measurements, *single.measurements])
    gc.collect()
    if on_gpu:
        torch.compiler.reset()
        torch.cuda.empty_cache()
    return found


def rows(results: Results) -> list[tuple[str, ...]]:
    found = summaries(results)
    return [_row(results, found, one) for one in results.measurements]


def _row(results: Results, found: Any, one: Measurement) -> tuple[str, ...]:
    if one.name not in found:
        return (one.party, f"{one.clips}", one.variant, f"not measured: {one.error}", *["-"] * 4)
    said, share = found[one.name], share_of_limit(results, found, one)
    device = sum(timed.device or 0.0 for timed in one.rounds)
    wall = sum(timed.wall for timed in one.rounds)
    return (
        one.party,
        f"{one.clips}",
        one.variant,
        f"{said.clips_per_second:,.1f}",
        f"{1e3 * said.p50:.2f}",
        "" if share is None else f"{100 * share:.0f}",
        f"{device / wall:.3f}" if device else "",
        f"{one.peak_device_bytes / 1e9:.1f}" if one.peak_device_bytes else "",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json; a table, a page and plots are written beside it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tf32", action="store_true", help="products in fp32 as TF32")
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --device cpu --quick shows that the script works")
    networks = {"CompactShift": (CompactShift(), 2)} if args.quick else {**teachers(), **students()}
    if unknown := set(args.only or ()) - networks.keys():
        raise SystemExit(f"no network {', '.join(sorted(unknown))}; there are {', '.join(networks)}")
    found: list[Results] = []
    chosen = [name for name in networks if not args.only or name in args.only]
    for name in chosen:
        config, clips = networks[name]
        found.append(measured(name, config, clips, device=args.device, quick=args.quick, tf32=args.tf32))
        for row in rows(found[-1]):
            print(" | ".join(row), flush=True)
        if args.out:  # after each: it may be stopped, or run out of the time that it was given
            write(found, args.out, left=chosen[len(found) :])
    print(f"\n{table(found)}")
    if args.out:
        print(f"{args.out} ({SCHEMA})")


def table(found: Sequence[Results]) -> str:
    return markdown_table(COLUMNS, [row for results in found for row in rows(results)])


def write(found: Sequence[Results], out: Path, *, left: Sequence[str]) -> None:
    """The JSON of the networks so far, with table and page; `left` are those that are still to be measured."""
    together = Results(
        subject="benchmarks/gpu.py",
        setting={**found[0].setting, "commit": git("rev-parse", "HEAD")},
        networks=[network for results in found for network in results.networks],
        measurements=[one for results in found for one in results.measurements],
        ceilings=found[0].ceilings,
        noise=[ratio for results in found for ratio in results.noise],
        notes=[note for results in found for note in results.notes],
        partial=f"it did not come to its end; not measured: {', '.join(left)}" if left else "",
    )
    write_results(out, together)
    write_text(out.with_suffix(".md"), table(found) + "\n")
    write_speed_page([together], out.with_name(f"{out.stem}_page.html"))


if __name__ == "__main__":
    main()
