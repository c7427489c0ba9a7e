"""What a term keeps of its teacher's past clips: a queue, whose state is saved with the run."""

import torch
from torch import Tensor, nn

from videokd.contracts import UNLABELLED, Outputs
from videokd.losses.features import clip_vectors
from videokd.losses.gather import gathered
from videokd.losses.relations import (
    BANK,
    BANK_CLIP,
    BANK_FILLED,
    BANK_LABEL,
    NO_CLIP,
    class_numbers,
    clip_numbers,
)


class Queue(nn.Module):
    """The last `size` clip vectors of a teacher, of all processes, with their classes; the oldest are replaced.

    Args:
        size: vectors.
        width: channels.
        tap: of the teacher.
    """

    vectors: Tensor  # (size, width)
    filled: Tensor  # bool (size,)
    label: Tensor  # int64 (size,)
    clip: Tensor  # int64 (size,), which clip it was
    next: Tensor  # int64 (), where the next vector goes

    def __init__(self, size: int, width: int, tap: str) -> None:
        super().__init__()
        self.tap = tap
        self.register_buffer("vectors", torch.zeros(size, width))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("label", torch.full((size,), UNLABELLED))
        self.register_buffer("clip", torch.full((size,), NO_CLIP))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def contents(self) -> dict[str, Tensor]:
        """What a loss finds in `teacher.extra`: as it is now, whatever comes later."""
        held = {BANK: self.vectors, BANK_FILLED: self.filled, BANK_LABEL: self.label, BANK_CLIP: self.clip}
        return {name: part.clone() for name, part in held.items()}

    @torch.no_grad()
    def push(self, teacher: Outputs, label: Tensor) -> None:
        """Puts in what the teacher says of a batch, except of clips of which it says nothing."""
        rows: tuple[Tensor, ...] = (
            clip_vectors(teacher, self.tap),
            class_numbers(label),
            clip_numbers(teacher, len(label)),
        )
        if teacher.known is not None:
            rows = tuple(part[teacher.known] for part in rows)
        size = len(self.vectors)
        vectors, classes, clips = (gathered(part)[-size:] for part in rows)
        places = (self.next + torch.arange(len(vectors), device=vectors.device)) % size
        self.vectors[places], self.label[places], self.clip[places] = vectors, classes, clips
        self.filled[places] = True
        self.next.copy_((self.next + len(vectors)) % size)


class ClassVectors(nn.Module):
    """The vectors (K, width) by which a teacher tells classes apart, as a bank that stays as it is."""

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors.detach().float().clone())

    def contents(self) -> dict[str, Tensor]:
        """See `Queue.contents`."""
        classes = torch.arange(len(self.vectors), device=self.vectors.device)
        there, no_clip = torch.ones_like(classes, dtype=torch.bool), torch.full_like(classes, NO_CLIP)
        return {BANK: self.vectors, BANK_FILLED: there, BANK_LABEL: classes, BANK_CLIP: no_clip}

    def push(self, teacher: Outputs, label: Tensor) -> None:
        """Nothing changes."""
