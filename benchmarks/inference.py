"""Inference against the libraries that the networks come from, and against itself compiled and in ONNX Runtime.

    python benchmarks/inference.py --out benchmarks/results/inference.json

    a  ours / timm's own: MobileNetV3-S and ResNet-18 over the frames of a clip, averaged, from bytes to logits
    b  ours / torchvision's own: R(2+1)D-18, from bytes to logits
    c  a student compiled, and in ONNX Runtime, against itself eager, with how often they say the same

All take the same bytes; theirs are normalised as their documentation says. Weights are random and the same on both
sides (a, b), and so are the answers. With --run, c takes a trained run and the test clips of its list. Contenders take
turns in rounds; figures are ratios of seconds that the process computed, medians with 95 % bootstrap intervals.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import installed, setting
from torch import Tensor, nn
from torchvision.models import video as torchvision_video

from videokd import recipe as recipes
from videokd.bench import variants
from videokd.bench.contenders import Contender, Patience, measure
from videokd.bench.results import Difference, Measurement
from videokd.bench.stages import Endless, chosen
from videokd.bench.statistics import Interval, ratio, seconds_a_call
from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import batches
from videokd.contracts import Clip, InputSpec, View
from videokd.models import Model, TimmVideo, VideoResNet, load_model
from videokd.report.tables import markdown_table

CPU = torch.device("cpu")
CLASSES = [f"class {number}" for number in range(12)]
COLUMNS = ("part", "what", "clips", "speed [95 %]", "wanted", "note")


@dataclass(frozen=True, kw_only=True)
class Figure:
    part: str
    what: str
    clips: int
    speed: Interval
    """How many times as fast the first is as the second."""
    wanted: str
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json; a table is written beside it")
    parser.add_argument("--run", type=Path, help="a trained run, of c")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="a,b,c")
    parser.add_argument("--quick", action="store_true", help="small; its figures mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    patience = Patience(rounds=3 if args.quick else args.rounds, turn_seconds=0.02 if args.quick else 0.3)
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "a": lambda: beside_timm(patience, quick=args.quick),
        "b": lambda: beside_torchvision(patience, quick=args.quick),
        "c": lambda: beside_itself(patience, args.run, quick=args.quick),
    }
    found = []
    for part in args.only.split(","):
        for figure in parts[part]():
            found.append(figure)
            print(" | ".join(row(figure)), flush=True)
    table = markdown_table(COLUMNS, [row(one) for one in found])
    print(f"\n{table}")
    if args.out:
        about = setting(vars(args))
        about["versions"] |= {name: installed(name) for name in ("timm", "onnxruntime")}
        args.out.write_text(json.dumps({"setting": about, "figures": [asdict(one) for one in found]}, indent=2) + "\n")
        args.out.with_suffix(".md").write_text(table + "\n")


def row(one: Figure) -> tuple[str, ...]:
    speed = f"{one.speed.value:.3f} [{one.speed.low:.3f}, {one.speed.high:.3f}]"
    return (one.part, one.what, f"{one.clips}", speed, one.wanted, one.note)


def beside_timm(patience: Patience, *, quick: bool) -> Iterator[Figure]:
    clips, size = (1, 32) if quick else (4, 112)
    for backbone in ("mobilenetv3_small_100", "resnet18"):
        torch.manual_seed(0)
        spec = InputSpec(frames=8, size=size)
        ours = TimmVideo(backbone=backbone, temporal="average", input=spec, weights=None).build(CLASSES).eval()
        theirs = timm.create_model(backbone, num_classes=len(CLASSES)).eval()
        theirs.load_state_dict(weights_of(ours, theirs))

        def own(view: View, network: nn.Module = theirs, spec: InputSpec = spec) -> Tensor:
            assert isinstance(view, Clip)
            video = normalised(view.frames, spec)
            logits: Tensor = network(video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(dim=1)
            return logits

        yield beside("a", f"{backbone}: ours / timm's own", ours, own, clips, patience)


def beside_torchvision(patience: Patience, *, quick: bool) -> Iterator[Figure]:
    clips, spec = (1, InputSpec(frames=4, size=32)) if quick else (1, InputSpec(frames=16, size=112))
    ours = VideoResNet(name="r2plus1d_18", input=spec).build(CLASSES, pretrained=False).eval()
    theirs = torchvision_video.r2plus1d_18(num_classes=len(CLASSES)).eval()
    theirs.load_state_dict(weights_of(ours, theirs))

    def own(view: View) -> Tensor:
        assert isinstance(view, Clip)
        logits: Tensor = theirs(normalised(view.frames, ours.input).transpose(1, 2).contiguous())
        return logits

    yield beside("b", "r2plus1d_18: ours / torchvision's own", ours, own, clips, patience)


def beside_itself(patience: Patience, run: Path | None, *, quick: bool) -> Iterator[Figure]:
    clips = 2 if quick else 8
    if run is None:
        spec = InputSpec(frames=8, size=32 if quick else 112)
        model: Model[Any] = TimmVideo(input=spec, weights=None).build(CLASSES).eval()
        compared, trained = variants.random_views(model, clips=clips, count=4), "untrained"
    else:
        model, trained = load_model(run), "trained"
        manifest = recipes.load(run / "recipe.json").data.manifest()
        test = chosen(manifest, split="test", clips=len(manifest.videos))
        dataset = ClipDataset(test, {"student": model.input})
        order = Endless(len(dataset), clips, len(dataset) // clips)
        compared = [batch.clips["student"] for batch in batches(dataset, order)]
    views = variants.random_views(model, clips=clips, count=4)
    eager = variants.runner(model, "eager", views)
    said = [eager(view) for view in compared]
    ways: list[variants.Variant] = ["eager", "channels-last", "bf16", "onnx", "int8"]
    ways = ways if quick else [*ways, "compile"]
    differences: dict[str, Difference] = {}

    def make(way: variants.Variant) -> Callable[[], object]:
        run_it = variants.runner(model, way, compared[:8] if way == "int8" else views)
        differences[way] = variants.difference([run_it(view) for view in compared], said)
        return variants.Rotating(run_it, views)

    found = timed({way: lambda way=way: make(way) for way in ways}, clips, patience)  # type: ignore[misc]
    for way in ways[1:]:
        difference = differences[way]
        note = f"same top-1 for {difference.top1_agreement:.2%} of {difference.clips} clips, {trained}"
        name = type(model.config).__name__
        yield Figure(
            part="c",
            what=f"{name}: {way} / eager fp32",
            clips=clips,
            speed=speed(found[way], found["eager"]),
            wanted="1.5, same top-1 99.5 %",
            note=note,
        )


def beside(
    part: str, what: str, ours: Model[Any], own: Callable[[View], Tensor], clips: int, patience: Patience
) -> Figure:
    """Ours and theirs, which say the same."""
    views = variants.random_views(ours, clips=clips, count=4)
    mine = variants.runner(ours, "eager", views)

    def theirs(view: View) -> Tensor:
        with torch.inference_mode():
            return own(view)

    difference = variants.difference([theirs(view) for view in views], [mine(view) for view in views])
    makers = {"ours": lambda: variants.Rotating(mine, views), "theirs": lambda: variants.Rotating(theirs, views)}
    found = timed(makers, clips, patience)
    note = f"logits differ by {difference.relative:.0e}, relatively"
    return Figure(part=part, what=what, clips=clips, speed=speed(found["ours"], found["theirs"]), wanted="1", note=note)


def timed(
    makers: dict[str, Callable[[], Callable[[], object]]], clips: int, patience: Patience
) -> dict[str, Measurement]:
    contenders = [
        Contender(party="student", stage="inference", variant=name, clips=clips, make=make)
        for name, make in makers.items()
    ]
    found = measure(contenders, device=CPU, patience=patience)
    for one in found:
        if one.error:
            raise SystemExit(f"{one.variant}: {one.error}")
    return dict(zip(makers, found, strict=True))


def speed(one: Measurement, other: Measurement) -> Interval:
    return ratio(list(seconds_a_call(other.rounds, "cpu")), list(seconds_a_call(one.rounds, "cpu")))


def normalised(frames: Tensor, spec: InputSpec) -> Tensor:
    """Bytes (B, T, 3, H, W) as the libraries' documentation has it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (frames.float() / 255 - mean) / std


def weights_of(ours: nn.Module, theirs: nn.Module) -> dict[str, Tensor]:
    """Ours, by the names that they have there: in the same order, of the same shapes."""
    own = theirs.state_dict()
    mine = [one for one in ours.state_dict().values()]
    if [one.shape for one in mine] != [one.shape for one in own.values()]:
        raise SystemExit(f"{type(theirs).__name__} is laid out in another way than ours")
    return dict(zip(own, mine, strict=True))


if __name__ == "__main__":
    main()
