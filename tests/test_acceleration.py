"""Compiled students and teachers, weights with their channels last, and steps that never ask the device."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import random_clip
from test_distill import CLASSES, EVERY_LOSS, TERMS, made, parties, run_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from videokd.acceleration import compile_in_place, to_channels_last
from videokd.contracts import Clip, InputSpec, Outputs, Segments
from videokd.distill import Student, Term, wanted_taps
from videokd.losses import MGD, SRRL, VID, FrameFeatures, Loss, ShuffleRelation
from videokd.losses.loss import on_device
from videokd.models import CompactShift, Conv3d, load_model, save_model
from videokd.teachers import Teacher, all_targets

# Of tensors that come into a graph from outside torch asks the gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many graphs were made, without a compiler behind them: that takes long and is torch's."""
    compiling = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiling(self, backend="eager", fullgraph=True))
    yield from counted()


def counted() -> Iterator[Callable[[], int]]:
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    with torch._dynamo.config.patch(allow_rnn=False, recompile_limit=8):
        yield lambda: stats["unique_graphs"]
    torch._dynamo.reset()


def losses_of(student: nn.Module, teachers: dict[str, Teacher], batch: Any, objective: nn.Module) -> Tensor:
    torch.manual_seed(0)
    targets = all_targets(teachers, batch)
    outputs = student(batch.clips["student"], batch.shuffled.get("student"))
    total: Tensor = objective(outputs, targets, batch.label, progress=0.5)["total"]
    return total


def gradients(student: nn.Module) -> dict[str, Tensor]:
    found = {name: one.grad.clone() for name, one in student.named_parameters() if one.grad is not None}
    student.zero_grad()
    return found


def test_a_compiled_student_and_teacher_learn_the_same(graphs: Callable[[], int]) -> None:
    student, teachers, batch = parties()
    plain, others = copy.deepcopy(student), copy.deepcopy(teachers)
    compile_in_place(student, "default")
    compile_in_place(teachers["teacher"].model, "default")
    for _ in range(3):
        wanted = losses_of(plain, others, batch, plain.objective)
        found = losses_of(student, teachers, batch, student.objective)
        wanted.backward()
        found.backward()
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(gradients(student), gradients(plain))
    assert graphs() == 2
    # Scores are of the model alone, which is no graph by itself: any size of batch, at no cost.
    with torch.inference_mode():
        model = student.model.eval()
        torch.testing.assert_close(model(random_clip(batch=3)).logits, plain.model.eval()(random_clip(batch=3)).logits)
    assert graphs() == 2
    student.train()
    losses_of(student, teachers, batch, student.objective)
    assert graphs() == 2


def test_a_student_is_compiled_for_training_and_for_eval_once_each(graphs: Callable[[], int]) -> None:
    student, _, batch = parties()
    compile_in_place(student, "default")
    for _ in range(3):
        for training in (True, False):
            student.train(training)(batch.clips["student"])
    assert graphs() == 2


def test_many_networks_are_compiled_beside_each_other(graphs: Callable[[], int]) -> None:
    # torch's own limit counts all modules together.
    for width in range(1, 11):
        network = nn.Linear(width, width)
        compile_in_place(network, "default")
        network(torch.zeros(2, width))
    assert graphs() == 10


def test_a_recurrent_unit_is_one_graph(graphs: Callable[[], int]) -> None:
    unit = nn.GRU(3, 3, batch_first=True)
    wanted = unit(torch.ones(2, 4, 3))[0]
    compile_in_place(unit, "default")
    torch.testing.assert_close(unit(torch.ones(2, 4, 3))[0], wanted)
    assert graphs() == 1


def test_a_compiled_student_keeps_its_names_and_its_copies_are_plain(graphs: Callable[[], int], tmp_path: Path) -> None:
    student, _, batch = parties()
    names = list(student.state_dict())
    compile_in_place(student, "default")
    student(batch.clips["student"])
    before = graphs()
    assert type(student) is Student
    assert list(student.state_dict()) == names
    save_model(student.model, tmp_path)
    for other in (copy.deepcopy(student.eval()).model, pickle.loads(pickle.dumps(student.model)), load_model(tmp_path)):
        assert torch.equal(other(random_clip()).logits, student.model(random_clip()).logits)
    copy.deepcopy(student)(random_clip())
    assert graphs() == before


def test_a_compiled_student_can_be_distributed(graphs: Callable[[], int], tmp_path: Path) -> None:
    student, teachers, batch = parties()
    plain = copy.deepcopy(student)
    losses_of(plain, teachers, batch, plain.objective).backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        compile_in_place(student, "default")
        losses_of(DistributedDataParallel(student), teachers, batch, student.objective).backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(gradients(student), {name: one.grad for name, one in plain.named_parameters()})
    assert graphs() == 1


def test_a_compiled_student_runs_under_autocast(graphs: Callable[[], int]) -> None:
    student, _, batch = parties()
    plain = copy.deepcopy(student)
    compile_in_place(student, "default")
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (one(batch.clips["student"]) for one in (student, plain))
    assert found.logits.dtype == torch.bfloat16
    torch.testing.assert_close(found.logits, wanted.logits)
    # In fp32 it is another graph, and not the same one again.
    torch.testing.assert_close(student(batch.clips["student"]).logits, plain(batch.clips["student"]).logits)
    assert graphs() == 2


def test_cuda_graphs_are_refused_where_there_is_no_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA graphs need a network on a CUDA device, and Student is on cpu"):
        compile_in_place(parties()[0], "cuda-graphs")


@pytest.mark.parametrize("cls", [MGD, SRRL, VID], ids=lambda cls: cls.__name__)
def test_a_student_with_connectors_is_one_graph(cls: type[Loss], graphs: Callable[[], int]) -> None:
    student, _, batch = run_of(Term(loss=made(cls)))
    torch.manual_seed(0)
    wanted = student(batch.clips["student"])
    compile_in_place(student, "default")
    torch.manual_seed(0)
    found = student(batch.clips["student"])
    for key, one in wanted.features.items():
        torch.testing.assert_close(found.features[key].values, one.values)
    assert graphs() == 1


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch asks for it
def test_the_objective_is_one_graph_whatever_the_share_of_the_run(graphs: Callable[[], int]) -> None:
    student, teachers, batch = parties()

    def totals() -> list[Tensor]:
        found = []
        for progress in (0.1, 0.2, 0.3, 0.4):
            # Every step has clips, and so times, of its own.
            clips = {party: Clip(view.frames, view.times.clone()) for party, view in batch.clips.items()}  # type: ignore[union-attr]
            outputs = student(clips["student"])
            targets = all_targets(teachers, dataclasses.replace(batch, clips=clips))
            found.append(student.objective(outputs, targets, batch.label, progress=progress)["total"])
        return found

    wanted = totals()
    compile_in_place(student.objective, "default")
    torch.testing.assert_close(totals(), wanted)
    assert graphs() == 2  # at first the share is taken for one that does not change


@pytest.mark.slow
def test_what_the_compiler_makes_learns_the_same_and_draws_the_same_again() -> None:
    student, teachers, batch = run_of(Term(loss=ShuffleRelation()))
    student.model.head = nn.Sequential(nn.Dropout(0.5), student.model.head)
    terms = {"order": Term(loss=ShuffleRelation()), **TERMS}
    teachers = {"teacher": Teacher(teachers["teacher"].model, wanted_taps(terms, "teacher"))}
    student = Student(student.model, terms, teachers)
    plain = copy.deepcopy(student.eval())
    for _ in counted():
        compile_in_place(student, "default")
        compile_in_place(teachers["teacher"].model, "default")
        found = losses_of(student, teachers, batch, student.objective)
        wanted = losses_of(plain, teachers, batch, plain.objective)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        student.train()
        first, again = (losses_of(student, teachers, batch, student.objective) for _ in range(2))
        assert torch.equal(first, again)


@pytest.mark.gpu
def test_cuda_graphs_say_the_same_step_after_step() -> None:
    student, teachers, batch = parties()
    device = torch.device("cuda")
    student, batch = student.to(device), batch.to(device)
    teachers["teacher"].model.to(device)
    plain = copy.deepcopy(student)
    for _ in counted():
        compile_in_place(student, "cuda-graphs")
        compile_in_place(teachers["teacher"].model, "cuda-graphs")
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            found = losses_of(student, teachers, batch, student.objective)
            found.backward()
            wanted = losses_of(plain, teachers, batch, plain.objective)
            wanted.backward()
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(gradients(student), gradients(plain), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("config", [Conv3d(width=4), CompactShift(width=4)], ids=["3D", "2D"])
def test_channels_last_weights_are_the_same_weights(config: Any) -> None:
    model = config.build(CLASSES).eval()
    model.positions = nn.Parameter(torch.randn(1, 2, 3, 4))
    parameters = dict(model.named_parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    view = model.blank(2)
    wanted = model(view, ("frames",))
    to_channels_last(model)
    after = model.state_dict()
    assert all(one is parameters[name] for name, one in model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    convolutions = [one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Conv3d) and one.in_channels > 1]
    for convolution in convolutions:
        layout = torch.channels_last if convolution.weight.ndim == 4 else torch.channels_last_3d
        assert convolution.weight.is_contiguous(memory_format=layout)
    assert convolutions
    assert model.positions.is_contiguous()
    found = model(view, ("frames",))
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.features["frames"].values, wanted.features["frames"].values)


def test_what_a_teacher_says_can_be_kept_for_a_backward_pass() -> None:
    class Watched(Conv3d().build(CLASSES).__class__):  # type: ignore[misc]
        def run(self, *arguments: Any) -> Outputs:
            inference.append(torch.is_inference_mode_enabled())
            found: Outputs = super().run(*arguments)
            return found

    inference: list[bool] = []
    model = Conv3d(width=4).build(CLASSES)
    model.__class__ = Watched
    teacher = Teacher(model, {"frames": "map", "clip": "clip"})
    view = random_clip(frames=16)
    said = teacher(view, ("x", "y"), torch.arange(2))
    assert inference == [False, True]  # in the dry run, and then
    tensors = [said.logits, *(part for one in said.features.values() for part in (one.values, one.times))]
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors if tensor is not None)
    assert said.features["frames"].times is not None
    leaf = torch.ones((), requires_grad=True)
    torch.stack([(leaf * tensor).square().sum() for tensor in tensors if tensor is not None]).sum().backward()
    assert leaf.grad is not None


def without_values(mode: FakeTensorMode, thing: Any) -> Any:
    """A batch whose tensors have shapes alone: whoever reads a number of one fails."""
    if isinstance(thing, Tensor):
        return mode.from_tensor(thing)
    if isinstance(thing, dict):
        return {name: without_values(mode, one) for name, one in thing.items()}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {field.name: without_values(mode, getattr(thing, field.name)) for field in dataclasses.fields(thing)}
        return dataclasses.replace(thing, **fields)
    return thing


def step_without_values(student: Student, teachers: dict[str, Teacher], batch: Any) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    unreadable = without_values(mode, batch)
    with mode:
        targets = all_targets(teachers, unreadable)
        outputs = student(unreadable.clips["student"], unreadable.shuffled.get("student"))
        losses = student.objective(outputs, targets, unreadable.label, ids=unreadable.id, progress=0.5)
        losses["total"].backward()
    on_device.cache_clear()  # the tests that follow need real numbers


@pytest.mark.parametrize("cls", EVERY_LOSS, ids=lambda cls: cls.__name__)
def test_no_loss_reads_a_number_of_the_device(cls: type[Loss]) -> None:
    step_without_values(*run_of(Term(loss=made(cls))))


def test_a_step_of_several_terms_reads_no_number_of_the_device() -> None:
    step_without_values(*parties())


def test_a_number_that_is_read_is_noticed() -> None:
    # Whether a second of a clip is longer than a hundredth of its video depends on the video.
    student = CompactShift(width=4, input=InputSpec(frames=8, size=32, sampling=Segments())).build(CLASSES)
    _, teachers, batch = run_of(Term(loss=FrameFeatures()))
    with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
        step_without_values(Student(student, {"it": Term(loss=FrameFeatures())}, teachers), teachers, batch)


def test_which_clips_a_silent_teacher_knows_is_asked_once_a_step() -> None:
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(function).split(".")[1] in ("nonzero", "_local_scalar_dense", "is_nonzero", "equal", "index"):
                asked.append(str(function))
            return function(*args, **(kwargs or {}))

    asked: list[str] = []
    student, teachers, batch = parties()
    targets = all_targets(teachers, batch)
    targets["teacher"] = dataclasses.replace(targets["teacher"], known=torch.tensor([True, False]))
    with Asked():
        losses = student.objective(student(batch.clips["student"]), targets, batch.label)
    # Rows are picked by their numbers after that; a mask would ask each time.
    assert asked.count("aten.nonzero.default") == 1
    assert set(asked) == {"aten.nonzero.default", "aten.index.Tensor"}
    one = {name: Outputs(said.logits, said.features).at(torch.tensor([0])) for name, said in targets.items()}
    alone = student.objective(student(batch.clips["student"]).at(torch.tensor([0])), one, batch.label[:1])
    torch.testing.assert_close(losses["frames"], alone["frames"])
