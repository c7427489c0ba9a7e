"""Losses over several processes: what one process would compute of the whole batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from videokd.bank import Queue
from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.distill import Objective, Term
from videokd.losses import CRD, DIST, PKT, SP, CrossEntropy, FrameFeatures, Loss, RKDAngle, RKDDistance, SoftTargets
from videokd.losses.gather import gathered
from videokd.losses.relations import BANK, BANK_FILLED, BANK_LABEL
from videokd.processes import mean_over_processes

ROWS = (3, 5)
"""Clips of every process."""
LOSSES: dict[str, Loss] = {
    "distance": RKDDistance(),
    "angle": RKDAngle(),
    "sp": SP(),
    "pkt": PKT(),
    "crd": CRD(queue=0),
    "dist": DIST(),
}


def sides() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, which are the logits too, of student and teacher, and labels, of all processes' clips."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(sum(ROWS), 4, generator=generator) for _ in range(2))
    return student, teacher, torch.tensor([0, 1, 1, 2, 0, UNLABELLED, 3, 1])


def said(features: torch.Tensor, known: torch.Tensor | None = None) -> Outputs:
    maps = {"clip": FeatureMap(features[:, None, None, None], torch.zeros(len(features), 1))}
    return Outputs(features, maps, known)


def worker(rank: int, folder: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(ROWS))
    torch.set_num_threads(1)
    mine = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    found: dict[str, Any] = {}
    student, teacher, label = (one[mine].clone() for one in sides())
    for name, loss in LOSSES.items():
        leaf = student.clone().requires_grad_()
        value = loss(said(leaf), said(teacher), label)
        value.backward()
        found[name] = {"value": value.item(), "gradient": leaf.grad}
    found["mean"] = mean_over_processes(torch.tensor([float(rank)])).item()
    found["none of mine"] = gathered(student[:0] if rank == 0 else student)
    queue = Queue(16, 4, "clip")
    queue.push(said(teacher), label)
    found["queue"] = queue.contents()
    # Process 0 knows none of its clips, and must not leave process 1 waiting for it.
    known = torch.full((len(student),), rank == 1)
    leaf = student.clone().requires_grad_()
    objective = Objective({"distance": Term(loss=RKDDistance())})
    objective.forward(_keyed(said(leaf)), {"teacher": said(teacher, known)}, label)["total"].backward()
    found["one side"] = leaf.grad
    # Means over clips, of processes that have other numbers of them; the last one with no clip in process 0.
    for name, (terms, which) in MEANS.items():
        leaf = student.clone().requires_grad_()
        rows = known_rows(which)[mine]
        losses = Objective(terms).forward(_framed(said(leaf)), {"teacher": _framed(said(teacher, rows))}, label)
        losses["total"].backward()
        found[name] = {"value": losses["total"].item(), "gradient": leaf.grad}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def known_rows(which: str) -> torch.Tensor:
    """Of which clips the teacher says something."""
    known = torch.ones(sum(ROWS), dtype=torch.bool)
    known[: {"all": 0, "some": 2, "none of the first": ROWS[0]}[which]] = False
    return known


MEANS = {
    f"{name}, {which}": ({"one": Term(loss=loss)}, which)
    for name, loss in {
        "cross-entropy": CrossEntropy(),
        "soft targets": SoftTargets(),
        "frames": FrameFeatures(connector=None, student_tap="clip", teacher_tap="clip"),
    }.items()
    for which in ("all", "some", "none of the first")
}


def _framed(outputs: Outputs) -> Outputs:
    maps = {"clip|teacher|clip|frames|plain": outputs.features["clip"], "clip": outputs.features["clip"]}
    return Outputs(outputs.logits, maps, outputs.known)


def _keyed(outputs: Outputs) -> Outputs:
    return Outputs(outputs.logits, {"clip|teacher|clip|clip|plain": outputs.features["clip"]})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, args=(str(folder),), nprocs=len(ROWS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(ROWS))]


@pytest.mark.parametrize("name", LOSSES)
def test_processes_compute_the_loss_of_the_whole_batch_and_its_gradient(name: str, found: list[dict[str, Any]]) -> None:
    student, teacher, label = sides()
    student.requires_grad_()
    value = LOSSES[name](said(student), said(teacher), label)
    value.backward()
    assert student.grad is not None
    for one in found:
        assert one[name]["value"] == pytest.approx(value.item(), rel=1e-5)
    # What distributed data parallel averages: every process has its rows' gradient, as often as there are processes.
    gradient = torch.cat([one[name]["gradient"] for one in found]) / len(ROWS)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_over_processes_is_the_mean_over_all_clips(name: str, found: list[dict[str, Any]]) -> None:
    student, teacher, label = sides()
    student.requires_grad_()
    terms, which = MEANS[name]
    targets = {"teacher": _framed(said(teacher, known_rows(which)))}
    value = Objective(terms).forward(_framed(said(student)), targets, label)["total"]
    value.backward()
    assert student.grad is not None
    assert sum(one[name]["value"] for one in found) / len(ROWS) == pytest.approx(value.item(), rel=1e-5)
    gradient = torch.cat([one[name]["gradient"] for one in found]) / len(ROWS)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-4, atol=1e-6)


def test_a_queue_holds_the_clips_of_all_processes_on_each(found: list[dict[str, Any]]) -> None:
    _, teacher, label = sides()
    for one in found:
        contents = one["queue"]
        assert torch.equal(contents[BANK][: sum(ROWS)], teacher)
        assert torch.equal(contents[BANK_LABEL][: sum(ROWS)], label)
        assert int(contents[BANK_FILLED].sum()) == sum(ROWS)


def test_processes_may_have_no_clip_that_counts(found: list[dict[str, Any]]) -> None:
    student, _, _ = sides()
    for one in found:
        assert torch.equal(one["none of mine"], student[ROWS[0] :])
    assert found[0]["one side"].abs().sum() == 0
    assert found[1]["one side"].abs().sum() > 0


def test_means_are_those_of_all_processes(found: list[dict[str, Any]]) -> None:
    assert [one["mean"] for one in found] == [0.5, 0.5]


def test_without_other_processes_nothing_is_gathered() -> None:
    values = torch.randn(3, 2)
    assert gathered(values) is values
    assert torch.equal(mean_over_processes(values), values)
