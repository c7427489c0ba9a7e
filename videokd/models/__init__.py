"""`Clip` in, `Outputs` out: one file per family."""

from videokd.models.checkpoint import check_classes, load_model, save_model
from videokd.models.compact_shift import CompactShift
from videokd.models.conv3d import Conv3d
from videokd.models.model import Model, ModelConfig, SoundModel, VideoModel
from videokd.models.timm_video import TimmVideo
from videokd.models.torchvision_video import S3D, MViT, Swin3d, VideoResNet

__all__ = [
    "S3D",
    "CompactShift",
    "Conv3d",
    "MViT",
    "Model",
    "ModelConfig",
    "SoundModel",
    "Swin3d",
    "TimmVideo",
    "VideoModel",
    "VideoResNet",
    "check_classes",
    "load_model",
    "save_model",
]
