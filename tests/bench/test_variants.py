"""Ways to run a network: that they answer alike, and what is refused."""

from pathlib import Path

import pytest
import torch

from videokd.bench import variants
from videokd.bench.variants import Rotating, difference, of_file, random_views, runner
from videokd.contracts import Clip, InputSpec
from videokd.models import CompactShift, Model

CPU = torch.device("cpu")
SPEC = InputSpec(frames=4, size=16)


@pytest.fixture(scope="module")
def model() -> Model[Clip]:
    torch.manual_seed(0)
    return CompactShift(width=4, input=SPEC).build(["a", "b", "c"]).eval()


@pytest.fixture(scope="module")
def exported(model: Model[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as a program of torch.export."""
    view = model.blank(2)
    assert isinstance(view, Clip)
    path = tmp_path_factory.mktemp("exported") / "student.pt2"
    torch.export.save(torch.export.export(variants._OnlyLogits(model), (view.frames, view.times)), path)
    return path


@pytest.mark.parametrize("variant", ["eager", "channels-last", "onnx"])
def test_a_variant_in_fp32_says_the_same(model: Model[Clip], variant: variants.Variant) -> None:
    views = random_views(model, clips=2, count=3)
    eager = [model(view).logits for view in views]
    run = runner(model, variant, views)
    found = difference([run(view) for view in views], eager)
    assert found.clips == 6
    assert found.relative < 1e-5
    assert found.top1_agreement == 1


@pytest.mark.parametrize(("variant", "most"), [("bf16", 0.05), ("int8", 0.5)])
def test_a_variant_of_fewer_bits_says_nearly_the_same(
    model: Model[Clip], variant: variants.Variant, most: float
) -> None:
    views = random_views(model, clips=4, count=3)
    run = runner(model, variant, views)
    found = difference([run(view) for view in views], [model(view).logits for view in views])
    assert 0 < found.relative < most


@pytest.mark.slow
def test_a_compiled_network_says_the_same_and_leaves_the_other_as_it_was(model: Model[Clip]) -> None:
    views = random_views(model, clips=2, count=2)
    run = runner(model, "compile", views)
    assert difference([run(view) for view in views], [model(view).logits for view in views]).relative < 1e-4
    assert model._compiled_call_impl is None


def test_difference_by_hand() -> None:
    said = [torch.tensor([[1.0, 2.0], [3.0, 0.0]])]
    eager = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])]
    found = difference(said, eager)
    assert (found.clips, found.largest, found.top1_agreement) == (2, 3.0, 0.5)
    # sqrt((9 + 9) / 4) over sqrt((1 + 4 + 9) / 4)
    assert found.relative == pytest.approx((18 / 14) ** 0.5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_exported_file_says_what_the_network_said(
    model: Model[Clip], exported: Path, tmp_path: Path, suffix: str
) -> None:
    path = exported
    (view,) = random_views(model, clips=2, count=1)
    assert isinstance(view, Clip)
    if suffix == ".onnx":
        path = tmp_path / "student.onnx"
        program = torch.onnx.export(
            variants._OnlyLogits(model).eval(), (view.frames.contiguous(), view.times), dynamo=True, verbose=False
        )
        assert program is not None
        program.save(path)
    run, shape = of_file(path)
    assert shape == (2, 4, 3, 16, 16)
    torch.testing.assert_close(run(view), model(view).logits, rtol=1e-4, atol=1e-5)


def test_an_exported_file_of_any_number_of_clips_takes_them(model: Model[Clip], tmp_path: Path) -> None:
    view, (other,) = model.blank(2), random_views(model, clips=5, count=1)
    assert isinstance(view, Clip)
    clips = torch.export.Dim("clips", min=2)
    program = torch.export.export(
        variants._OnlyLogits(model),
        (view.frames, view.times),
        dynamic_shapes={"frames": {0: clips}, "times": {0: clips}},
    )
    torch.export.save(program, tmp_path / "any.pt2")
    run, shape = of_file(tmp_path / "any.pt2")
    assert shape == (0, 4, 3, 16, 16)
    torch.testing.assert_close(run(other), model(other).logits, rtol=1e-4, atol=1e-5)


def test_what_onnx_runtime_refuses_is_said_in_a_line(model: Model[Clip]) -> None:
    run = runner(model, "onnx", random_views(model, clips=2, count=1))
    (other,) = random_views(model, clips=3, count=1)
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot run this: .*[Gg]ot: 3 [Ee]xpected: 2"):
        run(other)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 3), (torch.zeros(1, 2),)), tmp_path / "linear.pt2")
    with pytest.raises(ValueError, match=r"takes \[\(1, 2\)\], and not frames"):
        of_file(tmp_path / "linear.pt2")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="ONNX Runtime cannot run"):
        of_file(tmp_path / "broken.onnx")


def test_what_can_not_be_done_here_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no variant 'bf61' \(did you mean bf16\?\)|no variant 'bf61'"):
        variants.check(["bf61"], CPU)
    with pytest.raises(ValueError, match="fp16 is for GPUs, and this runs on cpu"):
        variants.check(["eager", "fp16"], CPU)
    with pytest.raises(ValueError, match="onnx is for CPUs"):
        variants.check(["onnx"], torch.device("cuda"))
    variants.check(variants.defaults(CPU), CPU)


def test_inputs_are_rotated_so_that_no_cache_holds_the_answer(model: Model[Clip]) -> None:
    views = random_views(model, clips=1, count=3)
    seen: list[Clip] = []
    call = Rotating(lambda view: seen.append(view) or torch.zeros(1, 3), views)  # type: ignore[arg-type, func-returns-value]
    for _ in range(4):
        call()
    assert [id(view) for view in seen] == [id(views[place]) for place in (0, 1, 2, 0)]
    first, second = (view.frames for view in views[:2] if isinstance(view, Clip))
    assert not torch.equal(first, second)
    assert first.permute(0, 1, 3, 4, 2).is_contiguous()  # as the loader lays them
