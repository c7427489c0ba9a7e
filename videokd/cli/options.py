"""What several commands take from the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.clips.pictures import MAX_PIXELS
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
    max_pixels: int = MAX_PIXELS
    """Pixels of a frame above which a video or picture is not read."""

    def read(self, videos: str, *, allow_leaks: bool = False) -> Manifest:
        """The list."""
        found = read_manifest(
            videos, root=self.root, fold=self.fold, class_names=self.class_names, allow_leaks=allow_leaks
        )
        return replace(found, max_pixels=self.max_pixels)


TrustOption = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""`--trust NAME`, which may be given several times: modules, packages, and paths of recipe or .pt2 files."""

HowToRead = Annotated[ListOptions, tyro.conf.arg(name="")]


def spelled_out(arguments: Sequence[str], recipes: Sequence[str] = ("",)) -> list[str]:
    """The arguments with `--on-bad-video HOW` as the field `data.on_bad_video` that it is short for, of each recipe:
    prefixes of their fields."""
    found: list[str] = []
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if place and arguments[place - 1] in _ON_BAD_VIDEO:
            continue  # its value
        if name not in _ON_BAD_VIDEO:
            found.append(argument)
            continue
        values = [value] if value else list(arguments[place + 1 : place + 2])
        for recipe in recipes:
            found += [f"--{recipe}data.on-bad-video", *values]
    return found


_ON_BAD_VIDEO = ("--on-bad-video", "--on_bad_video")


def take_trust(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the values of all `--trust NAME`, and the other arguments: recipes are read before their fields are.

    Raises:
        ValueError: for a `--trust` without its name.
    """
    trust: list[str] = []
    others: list[str] = []
    coming = iter(arguments)
    for argument in coming:
        option, equals, value = argument.partition("=")
        if option != "--trust":
            others.append(argument)
            continue
        name = value if equals else next(coming, "")
        if not name or name.startswith("--"):
            raise ValueError("--trust takes a module, a package or the path of a recipe file")
        trust.append(name)
    return tuple(trust), others


def trust_arguments(trust: Sequence[str]) -> list[str]:
    """Return the arguments that `take_trust` makes `trust` of."""
    return [word for name in trust for word in ("--trust", name)]


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
