"""A list of videos in, batches of clips out: exact frames, one decode, one augmentation, a view for every party."""

from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches, collate
from videokd.clips.manifest import Manifest, Packed, Video, write_manifest
from videokd.clips.order import BatchOrder, EveryClip
from videokd.clips.pictures import Box, Cut
from videokd.clips.reading import Frames, VideoError, VideoIndex, read, read_cuts, scan
from videokd.clips.views import Augment, RandomCrop, RandomResizedCrop

__all__ = [
    "Augment",
    "BatchOrder",
    "Box",
    "ClipDataset",
    "Cut",
    "EveryClip",
    "FrameMemory",
    "Frames",
    "Manifest",
    "Packed",
    "RandomCrop",
    "RandomResizedCrop",
    "Video",
    "VideoError",
    "VideoIndex",
    "batches",
    "collate",
    "read",
    "read_cuts",
    "read_manifest",
    "scan",
    "write_manifest",
]
