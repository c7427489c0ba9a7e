"""One configuration of every architecture that is built in."""

import json
from dataclasses import replace

from videokd.contracts import Dense, InputSpec
from videokd.models.compact_shift import CompactShift
from videokd.models.conv3d import Conv3d
from videokd.models.huggingface import transformers
from videokd.models.huggingface_images import HuggingFaceImages
from videokd.models.huggingface_sound import HuggingFaceSound
from videokd.models.huggingface_video import HuggingFaceVideo, XClipVision
from videokd.models.model import ModelConfig
from videokd.models.movinet import MoViNet
from videokd.models.own import TorchvisionImages
from videokd.models.sound_network import MelNetwork
from videokd.models.timm_video import TimmVideo
from videokd.models.torchvision_video import S3D, MViT, Swin3d, VideoResNet
from videokd.models.x3d import X3D

_FRAMES = InputSpec(frames=8, size=224, sampling=Dense(stride=4))
_X3D = X3D().input

TEACHERS: dict[str, ModelConfig] = {
    "R3D-18": VideoResNet(name="r3d_18"),
    "MC3-18": VideoResNet(name="mc3_18"),
    "R(2+1)D-18": VideoResNet(name="r2plus1d_18"),
    "S3D": S3D(),
    "MViTv1-B": MViT(name="mvit_v1_b"),
    "MViTv2-S": MViT(name="mvit_v2_s"),
    "Video Swin-T": Swin3d(name="swin3d_t"),
    "Video Swin-S": Swin3d(name="swin3d_s"),
    "Video Swin-B": Swin3d(name="swin3d_b"),
    "ResNet-50, frames": TorchvisionImages(name="resnet50"),
    "ViT-B/16, frames": TimmVideo(backbone="vit_base_patch16_224", temporal="average", input=_FRAMES),
    "Mel + MobileNetV3": MelNetwork(),
    "Conv3d (quickstart)": Conv3d(),
}
"""Those that look and listen, and are built here or by torchvision and timm."""

STUDENTS: dict[str, ModelConfig] = {
    "MobileNetV3-S + shift": TimmVideo(backbone="mobilenetv3_small_100", input=_FRAMES),
    "MobileNetV4-S + shift": TimmVideo(backbone="mobilenetv4_conv_small", input=_FRAMES),
    "EfficientNet-B0 + shift": TimmVideo(backbone="efficientnet_b0", input=_FRAMES),
    "RepViT-M0.9 + shift": TimmVideo(backbone="repvit_m0_9", input=_FRAMES),
    "FastViT-T8 + shift": TimmVideo(backbone="fastvit_t8", input=_FRAMES),
    "TinyViT-5M + shift": TimmVideo(backbone="tiny_vit_5m_224", input=_FRAMES),
    "ResNet-18 + shift": TimmVideo(backbone="resnet18", input=_FRAMES),
    "MobileNetV3-S + conv": TimmVideo(temporal="conv", input=_FRAMES),
    "MobileNetV3-S + conv in stages": TimmVideo(temporal="conv_stages", input=_FRAMES),
    "MobileNetV3-S + GRU": TimmVideo(temporal="gru", input=_FRAMES),
    "MobileNetV3-S + attention": TimmVideo(temporal="attention", input=_FRAMES),
    "X3D-XS": X3D(input=replace(_X3D, frames=4, sampling=Dense(stride=12))),
    "X3D-S": X3D(),
    "X3D-M": X3D(input=replace(_X3D, frames=16, size=224, sampling=Dense(stride=5))),
    "MoViNet-A0": MoViNet(input=InputSpec(frames=50, size=172, sampling=Dense(stride=5))),
    "CompactShift (quickstart)": CompactShift(),
}
"""Those that are small and fast."""


def huggingface() -> dict[str, ModelConfig]:
    """The base architectures of Hugging Face's models, as the library has them; needs the extra `hf`.

    Raises:
        ValueError: if transformers is not installed.
    """
    library = transformers()

    def plain(config: str) -> str:
        # SigLIP's own default has end tokens that are not in its vocabulary, and says so.
        options = {"text_config": {"bos_token_id": None, "eos_token_id": None}} if config == "SiglipConfig" else {}
        return json.dumps(getattr(library, config)(**options).to_dict())

    video = {
        "VideoMAE-B": ("VideoMAEConfig", 16, 224),
        "TimeSformer-B": ("TimesformerConfig", 8, 224),
        "ViViT-B": ("VivitConfig", 32, 224),
        "V-JEPA 2 L": ("VJEPA2Config", 64, 256),
    }
    images = {
        "CLIP B/32, frames": ("CLIPConfig", 224),
        "SigLIP B/16, frames": ("SiglipConfig", 224),
        "DINOv2-B/14, frames": ("Dinov2Config", 224),
    }
    found: dict[str, ModelConfig] = {
        name: HuggingFaceVideo(
            source=name,
            architecture=plain(config),
            input=InputSpec(frames=frames, size=size, sampling=Dense(stride=4)),
        )
        for name, (config, frames, size) in video.items()
    }
    for name, (config, size) in images.items():
        found[name] = HuggingFaceImages(source=name, architecture=plain(config), input=replace(_FRAMES, size=size))
    found["X-CLIP B/32"] = XClipVision(source="X-CLIP B/32", architecture=plain("XCLIPConfig"), input=_FRAMES)
    found["AST"] = HuggingFaceSound(source="AST", architecture=plain("ASTConfig"), mean=0.0, std=1.0)
    return found
