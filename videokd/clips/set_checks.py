"""Whether a list of videos can be trained and evaluated on: its splits, its labels and its classes."""

from collections.abc import Collection, Sequence

from videokd.clips.manifest import Manifest, Video, is_test
from videokd.clips.splits import same_split


def set_problems(manifest: Manifest, readable: Collection[str]) -> list[str]:
    """Return why training or evaluation would fail or mean little, a sentence each with what to do.

    Args:
        manifest: the list.
        readable: ids of the videos that can be read; others do not count.
    """
    videos = [video for video in manifest.videos if video.id in readable]
    train = [video for video in videos if same_split(video.split, "train")]
    held_out = {
        split: [video for video in videos if video.split == split]
        for split in dict.fromkeys(video.split for video in videos)
        if split is not None and (is_test(split) or same_split(split, "val"))
    }
    known = _classes(train)
    return [*_of_training(train, known, videos), *_of_evaluation(held_out, known, videos)]


def _of_training(train: Sequence[Video], known: Collection[str], videos: Sequence[Video]) -> list[str]:
    if not train:
        return [f"no readable video is in a split 'train' ({_splits(videos)}): training needs one"]
    if not known:
        return ["no training video has a label: no teacher can be trained, and a student by distillation alone"]
    if len(known) == 1:
        return [f"all training videos are of one class, {next(iter(known))!r}: there is nothing to learn"]
    return []


def _of_evaluation(held_out: dict[str, list[Video]], known: Collection[str], videos: Sequence[Video]) -> list[str]:
    if not held_out:
        return [f"no readable video is in a split 'test' or 'val' ({_splits(videos)}): there is nothing to evaluate on"]
    problems = []
    for split, members in held_out.items():
        without = sum(not video.names for video in members)
        if without == len(members):
            problems.append(f"no video of split {split!r} has a label: it can't be scored. Give it labels or remove it")
            continue
        if without:
            problems.append(f"{without} of {len(members)} videos of split {split!r} have no label, and are not scored")
        unknown = sorted(_classes(members) - set(known))
        if unknown and known:
            problems.append(
                f"split {split!r} has videos of {len(unknown)} class{'es' * (len(unknown) > 1)} that no training video "
                f"has, such as {unknown[0]!r}: no model can name {'them' if len(unknown) > 1 else 'it'}"
            )
    return problems


def _classes(videos: Sequence[Video]) -> set[str]:
    return {name for video in videos for name in video.names}


def _splits(videos: Sequence[Video]) -> str:
    names = sorted({video.split or "none" for video in videos})
    return f"splits: {', '.join(names[:5]) or 'none'}{', ...' if len(names) > 5 else ''}"
