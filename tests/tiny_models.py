"""Every kind of model, small: configurations for tests, Hugging Face's from folders that are made here."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    XCLIPConfig,
    XCLIPModel,
)

from videokd.contracts import InputSpec, SoundSpec
from videokd.models import (
    S3D,
    X3D,
    ClassNames,
    CompactShift,
    Conv3d,
    HuggingFaceImages,
    HuggingFaceSound,
    HuggingFaceVideo,
    MelNetwork,
    Model,
    ModelConfig,
    Motion,
    MoViNet,
    MViT,
    Own,
    SimKD,
    Swin3d,
    TimmVideo,
    TorchvisionImages,
    VideoResNet,
    XClipVision,
)

# What transformers says of a head that is new, it says to a log.
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()

SMALL = InputSpec(frames=8, size=32)
CLASSES = ("run", "jumping_jack", "dance")
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = NARROW | {
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PATCHES = {"image_size": 32, "patch_size": 16}

# Folder name -> the original model, with five classes where it has a head.
ORIGINALS: dict[str, Callable[[], torch.nn.Module]] = {
    "videomae": lambda: VideoMAEForVideoClassification(
        VideoMAEConfig(num_frames=8, tubelet_size=2, num_labels=5, **PATCHES, **NARROW)
    ),
    "timesformer": lambda: TimesformerForVideoClassification(
        TimesformerConfig(num_frames=8, num_labels=5, **PATCHES, **NARROW)
    ),
    "vivit": lambda: VivitForVideoClassification(
        VivitConfig(image_size=32, num_frames=8, tubelet_size=[2, 16, 16], num_labels=5, **NARROW)
    ),
    "vjepa2": lambda: VJEPA2ForVideoClassification(
        VJEPA2Config(
            crop_size=32,
            patch_size=16,
            frames_per_clip=8,
            tubelet_size=2,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2.0,
            num_labels=5,
            pred_hidden_size=16,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
    ),
    "xclip": lambda: XCLIPModel(
        XCLIPConfig(
            text_config=TEXT,
            vision_config=PATCHES
            | NARROW
            | {
                "num_frames": 8,
                "mit_hidden_size": 16,
                "mit_intermediate_size": 32,
                "mit_num_attention_heads": 2,
                "mit_num_hidden_layers": 1,
            },
            projection_dim=16,
        )
    ),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=PATCHES | NARROW, projection_dim=16)),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=PATCHES | NARROW)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(image_size=32, patch_size=16, **NARROW)),
    "ast": lambda: ASTForAudioClassification(ASTConfig(max_length=128, num_mel_bins=32, num_labels=5, **NARROW)),
}


def write_originals(folder: Path) -> Path:
    """Every original with random weights, as its authors would publish it; the folder."""
    for name, make in ORIGINALS.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        _write_tokenizer(folder / name)
        preprocessing = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"shortest_edge": 40}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    ASTFeatureExtractor(num_mel_bins=32, max_length=128, mean=-3.0, std=2.0).save_pretrained(folder / "ast")
    return folder


def _write_tokenizer(folder: Path) -> None:
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "video", "of"]
    words += ["run", "jumping", "jack", "dance", "early", "late"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    whole.save_pretrained(folder)


def timm_video(backbone: str = "mobilenetv3_small_050", **options: object) -> TimmVideo:
    return TimmVideo(**({"backbone": backbone, "input": SMALL, "dropout": 0.0} | options))  # type: ignore[arg-type]


# Name -> its configuration, given the folder of the originals.
SEES: dict[str, Callable[[Path], ModelConfig]] = {
    "Conv3d": lambda _: Conv3d(width=4, input=SMALL),
    "CompactShift": lambda _: CompactShift(width=8, input=SMALL),
    "CompactShift causal": lambda _: CompactShift(width=8, input=SMALL, causal=True),
    "R3D-18": lambda _: VideoResNet(name="r3d_18", input=SMALL),
    "MC3-18": lambda _: VideoResNet(name="mc3_18", input=SMALL),
    "R(2+1)D-18": lambda _: VideoResNet(name="r2plus1d_18", input=SMALL),
    "S3D": lambda _: S3D(input=InputSpec(frames=16, size=32), dropout=0.0),
    "MViTv1-B": lambda _: MViT(name="mvit_v1_b", input=InputSpec(frames=8, size=64), drop_path=0.0),
    "MViTv2-S": lambda _: MViT(name="mvit_v2_s", input=InputSpec(frames=8, size=64), drop_path=0.0),
    "Swin3D-T": lambda _: Swin3d(name="swin3d_t", input=SMALL),
    "X3D": lambda _: X3D(input=SMALL, width=16, depth=1.0, dropout=0.0),
    "MoViNet": lambda _: MoViNet(input=SMALL, dropout=0.0, drop_path=0.0),
    "MoViNet factorised": lambda _: MoViNet(input=SMALL, factorised=True, dropout=0.0, drop_path=0.0),
    "MoViNet base": lambda _: MoViNet(input=SMALL, causal=False, dropout=0.0, drop_path=0.0),
    "MobileNetV3 average": lambda _: timm_video(temporal="average"),
    "MobileNetV3 shift": lambda _: timm_video(temporal="shift"),
    "MobileNetV3 shift causal": lambda _: timm_video(temporal="shift", causal=True),
    "MobileNetV3 conv": lambda _: timm_video(temporal="conv"),
    "MobileNetV3 conv causal": lambda _: timm_video(temporal="conv", causal=True),
    "MobileNetV3 conv_stages": lambda _: timm_video(temporal="conv_stages"),
    "MobileNetV3 conv_stages causal": lambda _: timm_video(temporal="conv_stages", causal=True),
    "MobileNetV3 gru": lambda _: timm_video(temporal="gru"),
    "MobileNetV3 attention": lambda _: timm_video(temporal="attention"),
    "MobileNetV3 attention causal": lambda _: timm_video(temporal="attention", causal=True),
    "MobileNetV4 shift": lambda _: timm_video("mobilenetv4_conv_small"),
    "EfficientNet shift": lambda _: timm_video("efficientnet_b0"),
    "RepViT shift": lambda _: timm_video("repvit_m0_9"),
    "FastViT shift": lambda _: timm_video("fastvit_t8"),
    "TinyViT shift": lambda _: timm_video("tiny_vit_5m_224"),
    "TinyViT shift causal": lambda _: timm_video("tiny_vit_5m_224", causal=True),
    "ResNet-18 shift": lambda _: timm_video("resnet18"),
    "ViT-Ti frames": lambda _: timm_video("vit_tiny_patch16_224", temporal="average"),
    "VideoMAE": lambda folder: HuggingFaceVideo(source=str(folder / "videomae"), input=SMALL),
    "TimeSformer": lambda folder: HuggingFaceVideo(source=str(folder / "timesformer"), input=SMALL),
    "ViViT": lambda folder: HuggingFaceVideo(source=str(folder / "vivit"), input=SMALL),
    "V-JEPA 2": lambda folder: HuggingFaceVideo(source=str(folder / "vjepa2"), input=SMALL),
    "X-CLIP": lambda folder: XClipVision(source=str(folder / "xclip"), input=SMALL),
    "CLIP frames": lambda folder: HuggingFaceImages(source=str(folder / "clip"), input=SMALL),
    "SigLIP frames": lambda folder: HuggingFaceImages(source=str(folder / "siglip"), input=SMALL),
    "DINOv2 frames": lambda folder: HuggingFaceImages(source=str(folder / "dinov2"), input=SMALL),
    "torchvision ResNet-18 frames": lambda _: TorchvisionImages(name="resnet18", input=SMALL),
    "own R3D-18": lambda _: Own(target="torchvision.models.video:r3d_18", input=SMALL),
    "SimKD": lambda _: SimKD(student=CompactShift(width=8, input=SMALL), width=12),
    "SimKD MobileNetV3": lambda _: SimKD(student=timm_video(), width=12),
    "motion": lambda _: Motion(of=Conv3d(width=4, input=SMALL)),
}
"""Those that look."""

HEARS: dict[str, Callable[[Path], ModelConfig]] = {
    "mel": lambda _: MelNetwork(backbone="mobilenetv3_small_050", input=SoundSpec(seconds=1.0), dropout=0.0),
    "AST": lambda folder: HuggingFaceSound(source=str(folder / "ast"), input=SoundSpec(seconds=1.0)),
}
"""Those that listen."""

READS: dict[str, Callable[[Path], ModelConfig]] = {
    "class names": lambda folder: ClassNames(source=str(folder / "clip")),
}
"""Those that take the labels."""

EVERY = SEES | HEARS | READS


def wake(model: torch.nn.Module) -> None:
    """Branches that begin as nothing, so that all that ties frames together is at work."""
    for key, parameter in model.named_parameters():
        one_each = parameter.numel() == max(parameter.shape, default=1)
        if one_each and bool((parameter.abs() < 1e-3).all()) and ("scale" in key or "gamma" in key):
            torch.nn.init.ones_(parameter)
        if parameter.ndim == 1 and key.endswith("weight") and bool((parameter == 0).all()):
            torch.nn.init.ones_(parameter)
        if parameter.ndim > 1 and bool((parameter == 0).all()):
            torch.nn.init.normal_(parameter, std=0.3)


def built(name: str, originals: Path) -> Model[Any]:
    """One of `EVERY`, with random weights that are the same every time."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the head is new")
        return EVERY[name](originals).build(CLASSES)
