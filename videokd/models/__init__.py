"""A view of a clip in, `Outputs` out: one file per family."""

from videokd.models.checkpoint import check_classes, load_model, save_model
from videokd.models.compact_shift import CompactShift
from videokd.models.conv3d import Conv3d
from videokd.models.huggingface_images import ClassNames, HuggingFaceImages
from videokd.models.huggingface_sound import HuggingFaceSound
from videokd.models.huggingface_video import HuggingFaceVideo, XClipVision
from videokd.models.layouts import Tap
from videokd.models.model import Model, ModelConfig, SoundModel, VideoModel
from videokd.models.motion import Motion
from videokd.models.movinet import MoViNet
from videokd.models.named import is_named, named_model
from videokd.models.own import Own, OwnModel, TorchvisionImages
from videokd.models.simkd import SimKD
from videokd.models.sound_network import MelNetwork
from videokd.models.timm_video import TimmVideo
from videokd.models.torchvision_video import S3D, MViT, Swin3d, VideoResNet
from videokd.models.x3d import X3D

__all__ = [
    "S3D",
    "X3D",
    "ClassNames",
    "CompactShift",
    "Conv3d",
    "HuggingFaceImages",
    "HuggingFaceSound",
    "HuggingFaceVideo",
    "MViT",
    "MelNetwork",
    "MoViNet",
    "Model",
    "ModelConfig",
    "Motion",
    "Own",
    "OwnModel",
    "SimKD",
    "SoundModel",
    "Swin3d",
    "Tap",
    "TimmVideo",
    "TorchvisionImages",
    "VideoModel",
    "VideoResNet",
    "XClipVision",
    "check_classes",
    "is_named",
    "load_model",
    "named_model",
    "save_model",
]
