"""The gradient of a step: a batch, in as many parts as memory asks for, through student and objective."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from videokd.contracts import Batch, Outputs, labelled
from videokd.processes import is_distributed, largest_of_all, mean_over_processes
from videokd.recipe import Recipe


def backward(
    learn: nn.Module,
    batch: Batch,
    targets: Mapping[str, Outputs],
    recipe: Recipe,
    scaler: torch.amp.GradScaler,
    *,
    progress: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of a batch, whose gradient is left in the parameters; and how many of the clips of one class it has,
    and how many of these the student was right about: (2,).

    The batch is cut into `optim.accumulate` parts, which are alike in their share of labelled clips.
    """
    total: dict[str, Tensor] = {}
    right = torch.zeros(2, device=batch.label.device)
    for part, said, share in in_parts(batch, targets, recipe):
        with recipe.machine.autocast(batch.label.device):
            outputs, losses = learn(part, said, progress)
        scaler.scale(losses["total"] * share).backward()
        for name, loss in losses.items():
            total[name] = total.get(name, 0) + loss.detach() * share if share < 1 else loss.detach()
        if part.label.ndim == 1:  # mixed clips are of no one class
            known = labelled(part.label)
            hits = (outputs.logits.detach().argmax(dim=1) == part.label) & known
            right += torch.stack([known.sum(), hits.sum()])
    return total, right


def in_parts(
    batch: Batch, targets: Mapping[str, Outputs], recipe: Recipe
) -> Iterator[tuple[Batch, Mapping[str, Outputs], float]]:
    """Yield each part of a batch with its targets and its share of the clips of all processes.

    Raises:
        ValueError: if another process has other parts, since some of its clips could not be read.
    """
    parts = _parts(len(batch.id), recipe)
    if len(parts) == 1:
        yield batch, targets, 1.0
        return
    # Of the clips of all processes, for who has more of them.
    sizes = mean_over_processes(torch.tensor([float(len(rows)) for rows in parts]))
    for rows, share in zip(parts, (sizes / sizes.sum()).tolist(), strict=True):
        there = rows.to(batch.label.device, non_blocking=True)
        yield batch.at(rows), {name: one.at(there) for name, one in targets.items()}, share


def _parts(clips: int, recipe: Recipe) -> list[Tensor]:
    """Which clips of a batch, whose labelled ones come first, make up each part: int64 (N,). With several processes,
    their parts together are those that one would have.

    Raises:
        ValueError: if another process has other parts, since some of its clips could not be read.
    """
    wanted = recipe.optim.accumulate
    if wanted == 1:
        return [torch.arange(clips)]
    labelled_clips = round(clips * (1 - recipe.data.unlabelled_per_batch / recipe.data.batch_size))
    kinds = torch.arange(labelled_clips).tensor_split(wanted), torch.arange(labelled_clips, clips).tensor_split(wanted)
    parts = [rows for rows in map(torch.cat, zip(*kinds, strict=True)) if len(rows)]
    if is_distributed() and largest_of_all(wanted - len(parts)):
        raise ValueError(
            f"a process could read too few clips of its batch for optim.accumulate={wanted} parts: take larger "
            "batches, fewer parts, or --on-bad-video substitute"
        )
    return parts
