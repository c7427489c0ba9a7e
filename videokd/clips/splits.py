"""Names of splits: the usual words for training, validation and test data, however a list or folder writes them."""

import re
from functools import cache
from pathlib import Path

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_LISTED = "|".join(word for word, split in _SPLITS.items() if split != "unlabelled")
_IN_NAME = re.compile(rf"(?:^|[^a-z])({_LISTED})(?:list|set)?(?=[^a-z]|$)")


@cache
def usual_split(name: str) -> str | None:
    """Return "train", "val", "test" or "unlabelled" for the usual words, in any case, and None for any other name.

    A word for the whole may follow ("Train_set", "test-data"). Numbered and custom names ("train1", "split1", "eval")
    are none of them: what they mean is not certain.
    """
    word = re.sub(r"[\W_]+", "", name.lower())
    return _SPLITS.get(word) or _SPLITS.get(re.sub(r"(set|split|data|videos?)$", "", word))


def same_split(name: str | None, other: str | None) -> bool:
    """Whether two names mean one split: they are equal, or usual words for the same."""
    if name is None or other is None or name == other:
        return name == other
    return usual_split(name) is not None and usual_split(name) == usual_split(other)


def split_in_name(name: str) -> str | None:
    """Return the split that a list's file name says ("train.csv", "my_val_list.txt"); None for none or several."""
    found = {_SPLITS[word] for word in _IN_NAME.findall(Path(name).stem.lower())}
    return found.pop() if len(found) == 1 else None
