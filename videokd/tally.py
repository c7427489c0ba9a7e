"""What a run did without."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from videokd.contracts import Batch, Sound
from videokd.processes import is_first, of_all


class Tally:
    """What a run did without; a resumed run counts on.

    Args:
        notes: what was counted before, as `notes` returned it.
        missing: why videos of the list are left out.
        console: where each is named, once.
    """

    def __init__(self, notes: Mapping[str, Any], missing: Sequence[str], console: Console) -> None:
        # What all processes counted before is the first one's.
        before = notes if is_first() else {}
        self._console = console
        self._skipped: dict[str, None] = dict.fromkeys(before.get("skipped", ()))
        self._silent: Counter[str] = Counter(before.get("silent", {}))
        self._clips: int = before.get("clips", 0)
        self._seconds_before = before.get("seconds", 0.0)
        for reason in missing:
            self._name(reason)

    def add(self, batch: Batch, step: int) -> None:
        """Counts a step's clips.

        Raises:
            ValueError: if none of them could be read.
        """
        for reason in batch.skipped:
            self._name(reason)
        if not batch.id:
            raise ValueError(f"no clip of step {step}'s batch could be read; the first: {batch.skipped[0]}")
        self._clips += len(batch.id)
        self._silent.update({name: int((~s.heard).sum()) for name, s in batch.clips.items() if isinstance(s, Sound)})

    def check_sound(self) -> None:
        """Raises a `ValueError` if a party that listens has heard nothing so far."""
        if not self._silent:
            return
        said = of_all((self._silent, self._clips))
        seen = sum(clips for _, clips in said)
        for party in self._silent:
            clips = sum(silent[party] for silent, _ in said)
            if clips == seen:
                raise ValueError(
                    f"none of the first {clips} clips has sound, and {party} listens: leave it out, or train on videos "
                    "with sound"
                )

    def notes(self, seconds: float) -> dict[str, Any]:
        """Of all processes, since the run began: plain data.

        Args:
            seconds: that this part of the run has trained.
        """
        skipped: dict[str, None] = {}
        silent: Counter[str] = Counter()
        clips = 0
        for their_skipped, their_silent, their_clips in of_all((self._skipped, self._silent, self._clips)):
            skipped |= their_skipped
            silent.update(their_silent)
            clips += their_clips
        return {
            "skipped": list(skipped),
            "silent": dict(silent),
            "clips": clips,
            "seconds": self._seconds_before + seconds,
        }

    def _name(self, reason: str) -> None:
        if reason not in self._skipped:
            self._skipped[reason] = None
            self._console.print(f"skipped: {reason}")
