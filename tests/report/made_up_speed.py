"""Benchmarks that nobody ran: results with every kind of measurement, drawn from a seed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from videokd.bench.results import Ceiling, Difference, Measurement, Network, Results, Round, Stage

TEACHER = "vit_large"
MS = {"student": 2.0, TEACHER: 11.0}
"""Of inference of a clip, eager, where the batch is large."""
VARIANTS = {"eager": 1.0, "bf16": 0.55, "compile": 0.7}
CLIPS = (1, 4, 16)
ROUNDS = 12


def measurement(
    party: str, stage: Stage, variant: str, clips: int, *, ms: float, on_gpu: bool = True, **more: Any
) -> Measurement:
    """One whose calls take `ms` milliseconds, with noise of a few per cent and a tail."""
    rng = np.random.default_rng([len(party), len(stage), len(variant), clips, sum(map(ord, party + stage + variant))])
    rounds = []
    for number in range(ROUNDS):
        # The machine's pace drifts, for all alike.
        wall = 5 * ms / 1000 * (1 + 0.03 * np.sin(number)) * rng.normal(1, 0.01)
        rounds.append(
            Round(calls=5, wall=wall, cpu=1.4 * wall, device=0.95 * wall if on_gpu else None, yardstick=0.01 * wall)
        )
    latencies = ms / 1000 * rng.lognormal(0.02, 0.06, 120) + (rng.random(120) < 0.03) * 0.6 * ms / 1000
    known: dict[str, Any] = {
        "rounds": rounds,
        "latencies": latencies.tolist(),
        "first_call": 12.0 if "compile" in variant else 0.3,
        "warm_up": 8,
        "resident_bytes": 900_000_000 + 1_000_000 * clips,
        "joules": 0.25 * ms if on_gpu else None,
    }
    return Measurement(party=party, stage=stage, variant=variant, clips=clips, **(known | more))


def results(
    subject: str = "configs/ucf101.py",
    *,
    teacher: str = TEACHER,
    on_gpu: bool = True,
    slower: float = 1.0,
    variants: Sequence[str] = tuple(VARIANTS),
) -> Results:
    """A student and its teacher on a GPU, or a student on a CPU (without `teacher`)."""
    networks = [
        Network(
            party="student",
            architecture="Compact3D",
            input="8 frames of 112 × 112, every 4th",
            params=2_300_000,
            macs=4_100_000_000,
            param_bytes=9_200_000,
            activation_bytes=180_000_000,
            views=3,
            clip_seconds=1.28,
            accuracy=0.71 + 0.02 * slower,
        )
    ]
    if teacher:
        networks.append(
            Network(
                party=teacher,
                architecture="VideoMAE",
                input="16 frames of 224 × 224, every 4th",
                params=304_000_000,
                macs=180_000_000_000,
                param_bytes=1_216_000_000,
                activation_bytes=1_900_000_000,
                views=10,
                clip_seconds=2.56,
                accuracy=0.89,
            )
        )
    found = [
        measurement("", "decode", "av", 8, ms=8 * 1.3, on_gpu=False),
        measurement("", "transform", "crop", 8, ms=8 * 0.4, on_gpu=False),
        measurement("", "load", "av", 8, ms=8 * 1.8, on_gpu=False),
        measurement("", "load", "shards", 8, ms=8 * 0.7, on_gpu=False),
    ]
    for party in [one.party for one in networks]:
        base = slower * MS.get(party, 11.0)
        found.append(measurement(party, "copy", "pinned", 16, ms=16 * 0.2))
        for variant in variants:
            for clips in CLIPS:
                ms = VARIANTS[variant] * base * (clips + 1.5)
                found.append(
                    measurement(
                        party,
                        "inference",
                        variant,
                        clips,
                        ms=ms,
                        on_gpu=on_gpu,
                        peak_device_bytes=int(4e8 * (1 + 0.4 * clips)) if on_gpu else None,
                        difference=None
                        if variant == "eager"
                        else Difference(clips=64, largest=0.03, relative=0.004, top1_agreement=63 / 64),
                    )
                )
                if variant != "compile":
                    whole = clips * (1.8 + 0.2) + ms
                    found.append(measurement(party, "end to end", variant, clips, ms=whole, on_gpu=on_gpu, joules=None))
        found.append(
            Measurement(party=party, stage="inference", variant="onnx", clips=1, error="onnxruntime is not installed")
        )
    found.append(measurement("student", "training step", "eager", 16, ms=16 * 7.0, on_gpu=on_gpu))
    if teacher:
        found.append(measurement("student", "online step", "eager", 16, ms=16 * 19.0, on_gpu=on_gpu))
        found.append(measurement("student", "stored step", "eager", 16, ms=16 * 7.4, on_gpu=on_gpu, is_stable=False))
        # The teacher's largest batch does not fit.
        failed = (teacher, "inference", "eager", 16)
        found = [
            Measurement(party=one.party, stage=one.stage, variant=one.variant, clips=one.clips, error="out of memory")
            if (one.party, one.stage, one.variant, one.clips) == failed
            else one
            for one in found
        ]
    environment = {
        "date": "2026-11-24T10:00:00+00:00",
        "command": ["videokd", "bench", subject],
        "videokd": "0.1.0",
        "git": {"folder": None, "package": {"revision": "0123456789abcdef", "changed": False}},
        "python": "3.12.3",
        "platform": "Linux-6.8-x86_64",
        "packages": {"torch": "2.11.0+cu128", "av": "17.0.0"},
        "ffmpeg": {"libavcodec": "61.19.100"},
        "cpu": {"model": "Some processor", "cores": 16, "usable_cores": 16, "torch_threads": 8},
        "gpu": {"names": ["Some GPU"], "driver": "570.1"} if on_gpu else None,
        "processes": 1,
        "variables": {},
    }
    setting = {
        "environment": environment,
        "device": "cuda" if on_gpu else "cpu",
        "clock": "device" if on_gpu else "cpu",
        "threads": 8,
        "rounds": ROUNDS,
        "workers": 0,
        "list": "data/ucf101/list.jsonl",
        "format": "av",
    }
    ceilings = [
        Ceiling(what="matmul fp32", per_second=24e12, unit="MAC", rounds=[24e12, 23.8e12, 24.1e12]),
        Ceiling(what="matmul bf16", per_second=300e12, unit="MAC", rounds=[300e12, 298e12, 302e12]),
        Ceiling(what="memory copy", per_second=1.2e12, unit="byte", rounds=[1.2e12, 1.19e12, 1.21e12]),
        Ceiling(what="bare decode", per_second=9000.0, unit="frame", rounds=[9000.0, 8900.0, 9050.0]),
    ]
    noise = (1 + np.random.default_rng(3).normal(0, 0.008, ROUNDS)).tolist()
    return Results(
        subject=subject,
        setting=setting,
        networks=networks,
        measurements=found,
        ceilings=ceilings,
        noise=noise,
        notes=[
            "End to end is bound by loading: videokd data pack would lift it to about 700 clips/s.",
            "Left out: torchcodec, which is not installed.",
        ],
    )


def renamed(found: Results, party: str, name: str) -> Results:
    """The same with another name for a party."""
    return replace(
        found,
        networks=[replace(one, party=name) if one.party == party else one for one in found.networks],
        measurements=[replace(one, party=name) if one.party == party else one for one in found.measurements],
    )
