"""Which videos a model was trained on, so that it is not judged by them."""

import os
from functools import lru_cache
from pathlib import Path

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video
from videokd.run_folder import read_recipe


def shared(trained: Manifest, scored: Manifest, *, of: Manifest | None = None) -> tuple[str, ...]:
    """Ids of those `scored` videos that are trained on: the same file, or another clip of the same source.

    Sources (groups) are compared only where the two lists have files in common: names of groups mean nothing across
    sets.

    Args:
        trained: what is trained on.
        scored: what is not to be.
        of: the whole list of which `trained` is a part.
    """
    files = {_file(video) for video in trained.videos}
    same_set = not {_file(video) for video in (of or trained).videos}.isdisjoint(map(_file, scored.videos))
    groups = {video.group for video in trained.videos if video.group} if same_set else set()
    return tuple(video.id for video in scored.videos if _file(video) in files or video.group in groups)


def trained_on(folder: str | Path, videos: Manifest) -> tuple[str, ...] | None:
    """Ids of those `videos` that the run in `folder` was trained on or selected by, or a teacher of it was, and so on.

    Its recipe is read as data alone. None where it can't be told: there is no recipe, or its list is gone.
    """
    return _trained_on(Path(folder), videos, seen=set())


def _trained_on(folder: Path, videos: Manifest, *, seen: set[Path]) -> tuple[str, ...] | None:
    if folder.resolve() in seen:
        return ()  # a run that names itself as its teacher
    seen.add(folder.resolve())
    try:
        recipe = read_recipe(folder)
        data = recipe["data"]
        whole = read_manifest(
            data["path"], root=data.get("root"), fold=data.get("fold") or 1, class_names=data.get("class_names")
        )
        selected = recipe.get("keep") == "best" or recipe.get("patience") is not None
        splits = (
            data["train_split"],
            "unlabelled" if data.get("unlabelled_per_batch") else data["train_split"],
            data.get("val_split") if selected else data["train_split"],
        )
    except (OSError, ValueError, KeyError):
        return None
    chosen = tuple(video for video in whole.videos if splits[0] is None or video.split in splits)
    found = shared(Manifest(whole.source, chosen, whole.classes), videos, of=whole)
    for teacher in recipe.get("teachers", {}).values():
        if (checkpoint := teacher.get("checkpoint")) is not None:
            found += _trained_on(Path(checkpoint), videos, seen=seen) or ()
    return tuple(dict.fromkeys(found))


def _file(video: Video) -> tuple[str, int]:
    if video.packed is not None:
        return video.packed.shard, video.packed.offset
    return f"{_folder(str(video.path.parent))}/{video.path.name}", 0


@lru_cache(maxsize=4096)
def _folder(path: str) -> str:
    # Links are followed once a folder, not once a file: lists are long.
    return os.path.realpath(path)
