"""Published models by name, as the command line writes them."""

from collections.abc import Sequence
from typing import Any

from videokd.config import nearest
from videokd.models.huggingface import transformers
from videokd.models.huggingface_images import HuggingFaceImages
from videokd.models.huggingface_video import HuggingFaceVideo, XClipVision
from videokd.models.model import Model, ModelConfig, unavailable
from videokd.models.torchvision_video import PUBLISHED_RESNET_INPUT, PUBLISHED_S3D_INPUT, S3D, MViT, Swin3d, VideoResNet

TORCHVISION: dict[str, ModelConfig] = {
    "r3d_18": VideoResNet(name="r3d_18", weights="R3D_18_Weights.KINETICS400_V1", input=PUBLISHED_RESNET_INPUT),
    "mc3_18": VideoResNet(name="mc3_18", weights="MC3_18_Weights.KINETICS400_V1", input=PUBLISHED_RESNET_INPUT),
    "r2plus1d_18": VideoResNet(
        name="r2plus1d_18", weights="R2Plus1D_18_Weights.KINETICS400_V1", input=PUBLISHED_RESNET_INPUT
    ),
    "s3d": S3D(weights="S3D_Weights.KINETICS400_V1", input=PUBLISHED_S3D_INPUT),
    "mvit_v1_b": MViT(name="mvit_v1_b", weights="MViT_V1_B_Weights.KINETICS400_V1"),
    "mvit_v2_s": MViT(name="mvit_v2_s", weights="MViT_V2_S_Weights.KINETICS400_V1"),
    "swin3d_t": Swin3d(name="swin3d_t", weights="Swin3D_T_Weights.KINETICS400_V1"),
    "swin3d_s": Swin3d(name="swin3d_s", weights="Swin3D_S_Weights.KINETICS400_V1"),
    "swin3d_b": Swin3d(name="swin3d_b", weights="Swin3D_B_Weights.KINETICS400_V1"),
}
"""All of torchvision's video models, with its Kinetics-400 weights."""

_READS_CLASS_NAMES = ("clip", "siglip")


def is_named(text: str) -> bool:
    """Whether `text` is the name of a published model, rather than a folder's."""
    return text.partition("/")[0] in ("torchvision", "hf")


def named_model(text: str, *, classes: Sequence[str]) -> Model[Any]:
    """A published model, in eval mode, on the CPU.

    Args:
        text: "torchvision/NAME", or "hf/SOURCE", where SOURCE is a model of the Hugging Face hub or a folder it was
            saved in: VideoMAE, V-JEPA 2, TimeSformer, ViViT, X-CLIP, CLIP, SigLIP.
        classes: of the list. Models that read (CLIP, SigLIP, X-CLIP) tell them apart by their names; others keep the
            classes they were trained on.

    Raises:
        ValueError: if there is no such model, or it tells no classes apart.
    """
    library, _, name = text.partition("/")
    if library == "torchvision":
        if name not in TORCHVISION:
            raise ValueError(f"torchvision has no video model {name!r}{nearest(name, list(TORCHVISION))}")
        return TORCHVISION[name].build(None).eval()
    try:
        kind = transformers().AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise unavailable(name, error) from error
    if kind in _READS_CLASS_NAMES:
        return HuggingFaceImages(source=name).build(classes).eval()
    if kind == "xclip":
        return XClipVision(source=name).build(classes).eval()
    return HuggingFaceVideo(source=name).build(None).eval()
