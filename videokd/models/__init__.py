"""`Clip` in, `Outputs` out: one file per family."""

from videokd.models.checkpoint import check_classes, load_model, save_model
from videokd.models.conv3d import Conv3d
from videokd.models.frame_students import CompactShift, TimmStudent
from videokd.models.torchvision_video import MViT, VideoResNet
from videokd.models.video_model import ModelConfig, VideoModel

__all__ = [
    "CompactShift",
    "Conv3d",
    "MViT",
    "ModelConfig",
    "TimmStudent",
    "VideoModel",
    "VideoResNet",
    "check_classes",
    "load_model",
    "save_model",
]
