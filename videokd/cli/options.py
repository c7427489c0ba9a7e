"""What several commands take from the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.machine import terminal

CONSOLE = terminal()


@dataclass(frozen=True)
class ListOptions:
    """How a list of videos is read."""

    root: Path | None = None
    """Folder that the list's paths start from; the list's own if not given."""
    fold: int = 1
    """Which official split, of a set that has several."""
    class_names: Path | None = None
    """File with a class name a line, for lists whose labels are numbers."""

    def read(self, videos: str, *, allow_leaks: bool = False) -> Manifest:
        """The list."""
        return read_manifest(
            videos, root=self.root, fold=self.fold, class_names=self.class_names, allow_leaks=allow_leaks
        )


HowToRead = Annotated[ListOptions, tyro.conf.arg(name="")]


def wants_usage(arguments: Sequence[str], usage: str) -> bool:
    """Whether help was asked for, and is shown.

    Raises:
        ValueError: with the usage, if no recipe is named.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage)
        return True
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(usage)
    return False
