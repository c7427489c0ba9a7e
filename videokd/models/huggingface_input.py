"""What a published Hugging Face model was trained to see, read from its preprocessor files: size, geometry, colours.

A geometry is reproduced where an `InputSpec` can say it, and refused elsewhere: nothing is replaced by another crop.

    library                                          here
    short side to n, centre square of c              resize="crop", crop_fraction=c/n
    whole picture to n x n                           resize="squash", crop_fraction=1
    whole picture to h x w, centre square of c       resize="squash", aspect=w/h, crop_fraction=c/min(h, w)
    pads, keeps a rectangle, resizes the long side,  an error
    cuts without a resize, does neither

Pictures are resized by antialiased bilinear interpolation; a library's bicubic differs little and is taken for it.
"""

import importlib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videokd.contracts import Dense, InputSpec, Resize
from videokd.json_files import read_object

_OF_KIND = {
    "videomae": "VideoMAE",
    "timesformer": "VideoMAE",
    "xclip": "VideoMAE",
    "vivit": "Vivit",
    "vjepa2": "VJEPA2",
    "clip": "CLIP",
    "siglip": "Siglip",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "vit": "ViT",
}
"""Kind of model -> the processor that it has where its files name none."""

_SQUASHING = ("Siglip", "ViT", "DeiT")
"""Processors that make a square of the whole picture unless their files say otherwise."""

_KNOWN = (*dict.fromkeys(_OF_KIND.values()), "DeiT", "Timesformer", "XCLIP")
_REFUSED = {
    "do_pad": "it pads pictures",
    "do_flip_channel_order": "it takes blue for red",
    "crop_pct": "it has a crop_pct",
    "size_divisor": "it cuts pictures to multiples of a size",
    "do_thumbnail": "it makes thumbnails",
    "do_align_long_axis": "it turns pictures",
    "do_grayscale": "it takes grey pictures",
}
"""Options that no `InputSpec` can say -> why."""
_FILTERS = {2: "bilinear", 3: "bicubic"}


def preprocessing(source: str, *, frames: int, size: int, any_size: bool = False, kind: str | None = None) -> InputSpec:
    """Return what the published model was trained to see.

    Frames and size are those of its architecture, or of the files if it takes `any_size`. No file tells the stride: it
    is 4, as VideoMAE's is on Kinetics; others were trained with more or less between frames.

    Args:
        source: hub name or folder.
        frames: of the architecture.
        size: of the architecture's pictures.
        any_size: whether it takes others.
        kind: the model's, such as "siglip", for files that do not name their processor.

    Raises:
        ValueError: for preprocessing that can't be reproduced, naming the option and its value.
    """
    written = _preprocessor(source)
    processor = _processor(source, written, kind)
    refuse = _Refusal(source)
    for name, why in _REFUSED.items():
        if written.get(name):
            raise refuse(f"{why} ({name} is {written[name]})")
    filter_number = written.get("resample")
    if filter_number is not None and filter_number not in _FILTERS:
        raise refuse(f"it resizes with filter {filter_number}; here it is bilinear, which takes the place of bicubic")
    geometry = _geometry(written, processor, refuse, size=size)
    if geometry.size != size and not any_size:
        raise refuse(f"it makes pictures of {geometry.size} px, and the architecture takes {size} px")
    mean, std = _colours_of(source, written, processor, refuse)
    return InputSpec(
        frames=frames,
        size=geometry.size,
        sampling=Dense(stride=4),
        crop_fraction=geometry.fraction,
        resize=geometry.resize,
        aspect=geometry.aspect,
        mean=mean,
        std=std,
    )


class _Refusal(NamedTuple):
    """Makes the error for preprocessing that can't be reproduced."""

    source: str

    def __call__(self, why: str) -> ValueError:
        return ValueError(
            f"the preprocessing of {self.source} can't be reproduced: {why}. Give the model an `input` to say how its "
            "pictures are to be made (InputSpec: size, resize, crop_fraction, mean, std)"
        )


class _Geometry(NamedTuple):
    size: int
    resize: Resize
    fraction: float
    aspect: float = 1.0


def _geometry(written: Mapping[str, Any], processor: str | None, refuse: _Refusal, *, size: int) -> _Geometry:
    squashes = processor in _SQUASHING
    resized = _sides(written.get("size"), "size", refuse)
    whole = "height" in resized or (squashes and "shortest_edge" not in resized)
    crops = written.get("do_center_crop", not squashes and (processor is not None or "height" not in resized))
    cut = _square(_sides(written.get("crop_size"), "crop_size", refuse), "crop_size", refuse) if crops else None
    if not written.get("do_resize", True):
        how = "cuts out a square of the pixels as they are" if crops else "neither resizes nor cuts pictures"
        raise refuse(f"it {how} (do_resize is False)")
    if unknown := set(resized) - {"height", "width", "shortest_edge", "any"}:
        raise refuse(f"its size is {written['size']}, with {', '.join(sorted(unknown))}")
    if whole:
        height = resized.get("height", resized.get("any", size))
        width = resized.get("width", height)
        if not crops and height != width:
            raise refuse(f"its pictures are {height} x {width} px, and have to be square here")
        cut = (cut or size) if crops else height
        if cut > min(height, width):
            raise refuse(f"it cuts {cut} px out of {height} x {width} px, and pads the rest")
        return _Geometry(cut, "squash", cut / min(height, width), width / height)
    short = resized.get("shortest_edge", resized.get("any"))
    if not crops and "any" in resized:  # an int of a processor that is not known: a square
        return _Geometry(resized["any"], "squash", 1.0)
    if not crops:
        raise refuse(f"it resizes the short side to {short} px and keeps the rectangle (do_center_crop is False)")
    cut = cut or size
    if short is None:
        return _Geometry(cut, "crop", InputSpec(frames=1, size=1).crop_fraction)
    if cut > short:
        raise refuse(f"it cuts {cut} px out of a short side of {short} px, and pads the rest")
    return _Geometry(cut, "crop", cut / short)


def _sides(written: Any, name: str, refuse: _Refusal) -> dict[str, int]:
    """The sides that a size names; a single number is "any"."""
    found = written if isinstance(written, Mapping) else {} if written is None else {"any": written}
    if isinstance(written, list | tuple):
        found = dict(zip(("height", "width"), written)) if len(written) == 2 else {"any": None}
    found = {key: side for key, side in found.items() if side is not None or key == "any"}
    if any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in found.values()):
        raise refuse(f"its {name} is {written!r}, and should be pixels")
    return dict(found)


def _square(sides: Mapping[str, int], name: str, refuse: _Refusal) -> int | None:
    """The side of what must be a square; None where nothing is written."""
    if not sides:
        return None
    if "shortest_edge" in sides or "any" in sides:
        return sides.get("any", sides.get("shortest_edge"))
    height, width = sides.get("height"), sides.get("width")
    if height != width:
        raise refuse(f"its {name} is {height} x {width} px, and pictures have to be square here")
    return height


def _colours_of(
    source: str, written: Mapping[str, Any], processor: str | None, refuse: _Refusal
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of RGB in [0, 1]."""
    spec = InputSpec(frames=1, size=1)
    mean: Any = spec.mean
    std: Any = spec.std
    if not written.get("do_normalize", True):
        mean, std = 0.0, 1.0
    elif "image_mean" not in written or "image_std" not in written:
        warnings.warn(
            f"{source} does not say how its input is normalised: ImageNet's mean and deviation are taken; "
            "give the model an `input` to say otherwise",
            stacklevel=6,
        )
    else:
        mean, std = written["image_mean"], written["image_std"]
    # The library takes (x * factor - offset - mean) / std of x in [0, 1].
    factor, offset = 255.0, 0.0
    if written.get("do_rescale", True):
        factor *= written.get("rescale_factor", 1 / 255)
        offset = float(written.get("offset", processor == "Vivit"))
    means, deviations = _colours(mean, offset, factor, refuse), _colours(std, 0.0, factor, refuse)
    if min(deviations) <= 0:
        raise refuse(f"its image_std is {std} and its rescale_factor {factor / 255:g}: both have to be above 0")
    return means, deviations


def _colours(values: Any, offset: float, factor: float, refuse: _Refusal) -> tuple[float, float, float]:
    three: Sequence[Any] = [values] * 3 if isinstance(values, int | float) else values
    numbers = isinstance(three, list | tuple) and all(isinstance(one, int | float) for one in three)
    if not numbers or len(three) != 3 or not factor or not all(map(math.isfinite, (*three, factor))):
        raise refuse(f"it normalises with {values!r} and rescales by {factor / 255:g}: there must be a number a colour")
    red, green, blue = three
    return (red + offset) / factor, (green + offset) / factor, (blue + offset) / factor


def _processor(source: str, written: Mapping[str, Any], kind: str | None) -> str | None:
    """The library's processor without what it ends with: "VideoMAE"; None where it is not known.

    Raises:
        ValueError: for one whose steps are not known here.
    """
    names = ("video_processor_type", "image_processor_type", "feature_extractor_type")
    name = next((str(written[one]) for one in names if written.get(one)), None)
    if name is None:
        return _OF_KIND.get(kind or "")
    found = re.fullmatch(r"(\w+?)(ImageProcessor|VideoProcessor|FeatureExtractor)(Fast|Pil)?", name)
    if found is None or found[1] not in _KNOWN:
        raise _Refusal(source)(f"it is made by {name}, and known are the processors of {', '.join(_KNOWN)}")
    return found[1]


def _preprocessor(source: str) -> Mapping[str, Any]:
    """What is written of a model's preprocessing; nothing where nothing is."""
    for name, part in (
        ("processor_config.json", "video_processor"),
        ("processor_config.json", "image_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
    ):
        path = _file(source, name)
        found: Any = read_object(path) if path else {}
        if part is not None:
            found = found.get(part, {})
        if found:
            if not isinstance(found, Mapping):
                raise ValueError(f"{path}: {part} is {found!r}, and should be an object")
            return found
    return {}


def _file(source: str, name: str) -> Path | None:
    library = importlib.import_module("transformers.utils")
    try:
        found = library.cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return Path(found) if found else None
