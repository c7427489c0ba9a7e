"""A list of videos in, batches of clips out: exact frames, one decode, one augmentation, a view for every party."""

from videokd.clips.loader import BadVideo, BatchOrder, ClipDataset, EveryClip, FrameMemory, batches, collate
from videokd.clips.manifest import Manifest, Video, read_manifest, write_manifest
from videokd.clips.reading import Frames, VideoError, VideoIndex, read, scan
from videokd.clips.views import Augment, RandomCrop, RandomResizedCrop

__all__ = [
    "Augment",
    "BadVideo",
    "BatchOrder",
    "ClipDataset",
    "EveryClip",
    "FrameMemory",
    "Frames",
    "Manifest",
    "RandomCrop",
    "RandomResizedCrop",
    "Video",
    "VideoError",
    "VideoIndex",
    "batches",
    "collate",
    "read",
    "read_manifest",
    "scan",
    "write_manifest",
]
