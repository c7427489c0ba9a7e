"""Ways to run the same network: precisions, layouts, compilers, other runtimes."""

import tempfile
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from videokd.acceleration import compile_in_place, to_channels_last
from videokd.bench.exported import check_external_data, load_program
from videokd.bench.results import Difference
from videokd.config import nearest
from videokd.contracts import Clip, Sound, View
from videokd.machine import Machine
from videokd.models import Model

Variant = Literal[
    "eager",
    "bf16",
    "fp16",
    "channels-last",
    "compile",
    "compile-bf16",
    "cuda-graphs",
    "cuda-graphs-bf16",
    "onnx",
    "int8",
]
"""eager is fp32 as PyTorch runs it; bf16 and fp16 are under autocast; channels-last lays out the weights of
convolutions so; compile is `torch.compile`, cuda-graphs the same replayed as CUDA graphs; onnx is ONNX Runtime on the
CPU, int8 the same with weights and activations in eight bits, calibrated on a few clips."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)
ONLY_ON_GPU = ("fp16", "cuda-graphs", "cuda-graphs-bf16")
ONLY_ON_CPU = ("onnx", "int8")
AS_IT_IS = ("eager", "bf16", "fp16")
"""They run the network itself, and the others a copy of it that they change."""

Runner = Callable[[View], Tensor]
"""From a view on the device to logits."""


def defaults(device: torch.device) -> tuple[Variant, ...]:
    """What is worth a look there."""
    if device.type == "cuda":
        return ("eager", "bf16", "compile-bf16", "cuda-graphs-bf16")
    found: list[Variant] = ["eager", "channels-last", "bf16", "compile"]
    return (*found, "onnx") if _has_onnx() else tuple(found)


def check(variants: Sequence[str], device: torch.device) -> None:
    """Raises a `ValueError` for a variant that does not exist, or not on this device."""
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"no variant {variant!r}{nearest(variant, VARIANTS)}; there are {', '.join(VARIANTS)}")
        if variant in ONLY_ON_GPU and device.type != "cuda":
            raise ValueError(f"variant {variant} is for GPUs, and this runs on {device}")
        if variant in ONLY_ON_CPU and device.type == "cuda":
            raise ValueError(f"variant {variant} is for CPUs: add --device cpu")
        if variant in ONLY_ON_CPU and not _has_onnx():
            raise ValueError(f"variant {variant} needs ONNX Runtime: pip install 'videokd[onnx]'")


def runner(model: Model[Any], variant: Variant, views: Sequence[View]) -> Runner:
    """The network, made ready to run so.

    Args:
        model: in eval mode, on its device; it is copied where it would be changed.
        variant: how.
        views: some that it will see, of one batch size: to export by, and to calibrate int8 with.

    Raises:
        ValueError: for what this network can't do.
    """
    if variant in ONLY_ON_CPU:
        return _in_onnx_runtime(model, views, int8=variant == "int8")
    device = model.device
    network = model if variant in AS_IT_IS else deepcopy(model)
    if variant in ("channels-last", "cuda-graphs-bf16", "compile-bf16"):
        to_channels_last(network)
    graphs = variant.startswith("cuda-graphs")
    if graphs or variant.startswith("compile"):
        compile_in_place(network, "cuda-graphs" if graphs else "default")
    precision: Any = "fp16" if variant == "fp16" else "bf16" if variant.endswith("bf16") else "fp32"
    machine = Machine(device=str(device), precision=precision)

    def run(view: View) -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode(), machine.autocast(device):
            logits = network(view).logits
        if logits is None:
            raise ValueError(f"{type(model).__name__} tells no classes apart")
        found: Tensor = logits
        return found

    return run


def shared_bytes(model: Model[Any] | None, variant: Variant) -> int:
    """Memory of the network itself, where a variant runs it as it is and not a copy."""
    if model is None or variant not in AS_IT_IS:
        return 0
    return sum(one.nbytes for one in (*model.parameters(), *model.buffers()))


def of_file(path: Path, *, trust: Collection[str] = ()) -> tuple[Runner, tuple[int, ...]]:
    """An exported network: what runs it, and the shape of the frames that it takes, (B, T, 3, S, S), with B 0 where any
    number of clips will do; it runs on the CPU.

    Args:
        path: of the file; nothing that comes with it is run, see `exported`.
        trust: .pt2 files that may run code.

    Raises:
        ValueError: if it is not plain data, or not what `.onnx` and `.pt2` files of videokd's students are: frames, and
            perhaps times, in; logits out.
    """
    if path.suffix == ".onnx":
        check_external_data(path)
        session = _session(path)
        return _of_session(session), _frames_shape(path, [one.shape for one in session.get_inputs()])
    program = load_program(path, trust=trust)
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    shape = _frames_shape(path, [one.shape for one in inputs])
    network: Any = program.module()

    def run(view: View) -> Tensor:
        assert isinstance(view, Clip)
        with torch.inference_mode():
            said = network(*[view.frames.cpu(), view.times.cpu()][: len(inputs)])
        logits: Tensor = said[0] if isinstance(said, tuple | list) else said
        return logits

    return run, shape


def random_views(model: Model[Any], *, clips: int, count: int, seed: int = 0) -> list[View]:
    """Noise for a model, in as many batches as it takes for no cache to hold them all: on its device."""
    generator = torch.Generator().manual_seed(seed)
    blank: View = model.blank(clips)
    found: list[View] = []
    for _ in range(count):
        if isinstance(blank, Clip):
            frames = torch.randint(0, 256, blank.frames.shape, dtype=torch.uint8, generator=generator)
            # As the loader's lie in memory.
            laid = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
            found.append(Clip(laid.to(model.device), blank.times))
        else:
            samples = torch.rand(blank.samples.shape, generator=generator) * 2 - 1
            found.append(Sound(samples.to(model.device), blank.start, torch.ones_like(blank.heard)))
    return found


def difference(said: Sequence[Tensor], eager: Sequence[Tensor]) -> Difference:
    """What a variant says beside the eager network, on the same views: logits (B, K) each."""
    one, other = (torch.cat([part.detach().float().cpu() for part in parts]) for parts in (said, eager))
    off = one - other
    return Difference(
        clips=len(one),
        largest=float(off.abs().max()),
        relative=float(off.square().mean().sqrt() / other.square().mean().sqrt().clamp(min=1e-12)),
        top1_agreement=float((one.argmax(dim=1) == other.argmax(dim=1)).float().mean()),
    )


class Rotating:
    """Calls a network with one of some views after the other."""

    def __init__(self, runner: Runner, views: Sequence[View]) -> None:
        self.runner, self._coming = runner, cycle(views)

    def __call__(self) -> Tensor:
        """The next one's logits."""
        return self.runner(next(self._coming))


def _frames_shape(path: Path, shapes: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """Of an exported network's inputs, that of frames; a size that is no number is free."""
    for shape in shapes:
        sizes = tuple(size if isinstance(size, int) else 0 for size in shape)
        if len(sizes) == 5 and min(sizes[1:]) > 0 and sizes[2] == 3 and sizes[3] == sizes[4]:
            return sizes
    raise ValueError(f"{path} takes {[tuple(one) for one in shapes]}, and not frames (B, T, 3, S, S) of a known size S")


def _has_onnx() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))


class _OnlyLogits(nn.Module):
    """A model as plain tensors in and one out."""

    def __init__(self, model: Model[Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, times: Tensor) -> Tensor:
        logits = self.model(Clip(frames, times)).logits
        if logits is None:
            raise ValueError(f"{type(self.model).__name__} tells no classes apart")
        found: Tensor = logits
        return found


def _in_onnx_runtime(model: Model[Any], views: Sequence[View], *, int8: bool) -> Runner:
    first = views[0]
    if not isinstance(first, Clip):
        raise ValueError("ONNX Runtime is for networks that look at frames")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "network.onnx"
        with torch.no_grad():
            program = torch.onnx.export(
                _OnlyLogits(model).eval(),
                (first.frames.contiguous(), first.times),
                dynamo=True,
                verbose=False,
                input_names=["frames", "times"],
                output_names=["logits"],
            )
        assert program is not None
        program.save(path)
        if int8:
            path = _in_int8(path, [view for view in views if isinstance(view, Clip)])
        return _of_session(_session(path))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path} needs ONNX Runtime: pip install 'videokd[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes are not public
        raise ValueError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error


def _of_session(session: Any) -> Runner:
    names = {one.name: len(one.shape) for one in session.get_inputs()}

    def run(view: View) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, _fed(view, names))[0])
        except Exception as error:  # its own classes are not public
            raise ValueError(f"ONNX Runtime cannot run this: {' '.join(str(error).split())}") from error

    return run


def _fed(view: View, names: dict[str, int]) -> dict[str, Any]:
    """Frames have five axes, times two; what does not change the logits is no input."""
    assert isinstance(view, Clip)
    return {name: (view.frames if axes == 5 else view.times).contiguous().cpu().numpy() for name, axes in names.items()}


def _in_int8(path: Path, views: Sequence[Clip]) -> Path:
    from onnxruntime import quantization as int8

    class Reader(int8.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            names = {one.name: len(one.shape) for one in _session(path).get_inputs()}
            self.coming = iter([_fed(view, names) for view in views])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.coming, None)

    prepared, quantised = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    int8.shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    int8.quantize_static(str(prepared), str(quantised), Reader(), quant_format=int8.QuantFormat.QDQ, per_channel=True)
    return quantised
