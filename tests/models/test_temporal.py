"""Frame by frame and by clip: the same, for every causal choice; and what each operator lets a frame see."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_clip
from tiny_models import CLASSES, SEES, SMALL, built, timm_video, wake

from videokd.contracts import Clip
from videokd.models import CompactShift, VideoModel
from videokd.models.temporal import MeanOverTime, Shift, TemporalAttention, TemporalConv
from videokd.models.timm_video import SubsamplingConv, shift_residual_branches, subsample_first

CAUSAL = [
    "CompactShift causal",
    "MoViNet",
    "MoViNet factorised",
    "MobileNetV3 average",
    "MobileNetV3 shift causal",
    "MobileNetV3 conv causal",
    "MobileNetV3 conv_stages causal",
    "MobileNetV3 gru",
    "MobileNetV3 attention causal",
    "TinyViT shift causal",
    "CLIP frames",
]


def awake(name: str, originals: Path) -> VideoModel:
    model = built(name, originals).eval()
    assert isinstance(model, VideoModel)
    wake(model)
    return model


def part(clip: Clip, first: int, last: int) -> Clip:
    return Clip(clip.frames[:, first:last], clip.times[:, first:last])


def test_the_list_of_causal_models_is_whole(originals: Path) -> None:
    causal = {name for name in SEES if awake(name, originals).causal}
    assert causal - {"SigLIP frames", "DINOv2 frames", "ViT-Ti frames"} == set(CAUSAL)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("pieces", [(1,) * 8, (3, 1, 4)], ids=["frames", "pieces"])
@torch.no_grad()
def test_steps_over_a_clip_end_in_what_the_clip_gives(name: str, pieces: tuple[int, ...], originals: Path) -> None:
    model = awake(name, originals)
    clip = random_clip(frames=8, fps=5.0)
    whole = model(clip, model.taps)
    state, first, steps = None, 0, []
    for length in pieces:
        outputs, state = model.step(part(clip, first, first + length), state, model.taps)
        steps.append(outputs)
        first += length
    if whole.logits is not None:
        torch.testing.assert_close(outputs.logits, whole.logits, rtol=1e-5, atol=1e-5)
    for tap in model.taps:
        if tap != "clip":
            streamed = torch.cat([one.features[tap].values for one in steps], dim=1)
            torch.testing.assert_close(streamed, whole.features[tap].values, rtol=1e-4, atol=1e-5)
            streamed_times = torch.cat([one.features[tap].times for one in steps], dim=1)
            torch.testing.assert_close(streamed_times, whole.features[tap].times)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_no_frame_knows_of_later_ones(name: str, originals: Path) -> None:
    model = awake(name, originals)
    clip = random_clip(frames=8)
    other = Clip(clip.frames.clone(), clip.times)
    other.frames[:, 5:] = 255 - other.frames[:, 5:]
    one, two = model(clip, ("frames",)).features["frames"], model(other, ("frames",)).features["frames"]
    torch.testing.assert_close(one.values[:, :5], two.values[:, :5], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one.values[:, 5:], two.values[:, 5:], rtol=1e-3)


@pytest.mark.parametrize("name", [n for n in CAUSAL if n not in ("MobileNetV3 average", "CLIP frames")])
@torch.no_grad()
def test_a_frame_knows_of_the_one_before(name: str, originals: Path) -> None:
    model = awake(name, originals)
    clip = random_clip(frames=8)
    other = Clip(clip.frames.clone(), clip.times)
    other.frames[:, 4] = 255 - other.frames[:, 4]
    one, two = model(clip, ("frames",)).features["frames"], model(other, ("frames",)).features["frames"]
    assert not torch.equal(one.values[:, 5], two.values[:, 5])


ORDERED = [
    name
    for name in SEES
    if name.startswith(
        ("CompactShift", "MoViNet", "X3D", "Mobile", "Efficient", "RepViT", "FastViT", "TinyViT", "ResNet")
    )
    and "average" not in name
    and "conv" not in name.split()
]


@pytest.mark.parametrize("name", ORDERED)
@torch.no_grad()
def test_what_is_said_depends_on_the_order_of_frames(name: str, originals: Path) -> None:
    # Of those in the middle: at the ends even a linear operator, which a mean over time undoes, leaves a trace.
    model = awake(name, originals)
    colours = torch.randint(0, 256, (16, 3, 2, 2), generator=torch.Generator().manual_seed(1)).float()
    frames = torch.nn.functional.interpolate(colours, size=32).to(torch.uint8).view(2, 8, 3, 32, 32)
    clip = Clip(frames, random_clip(frames=8).times)
    swapped = clip.at(torch.tensor([0, 1, 2, 4, 3, 5, 6, 7]).expand(2, -1))
    one, two = (model(view, ("clip",)).features["clip"].values for view in (clip, swapped))
    difference = (one - two).abs().mean() / one.std(dim=0).mean()  # over that of two clips
    assert difference > 1e-3


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_the_mean_over_time_does_not_undo_a_convolution(causal: bool) -> None:
    torch.manual_seed(0)
    model = timm_video(temporal="conv", causal=causal).build(CLASSES).eval()
    frames = torch.randn(1, 8, model.head[1].in_features)  # type: ignore[union-attr, call-overload]
    swapped = frames[:, [0, 1, 2, 4, 3, 5, 6, 7]]
    one, two = (model.over_time(each, None).mean(dim=1) for each in (frames, swapped))
    assert (one - two).abs().mean() > 0.01 * one.std()


@torch.no_grad()
def test_a_long_stream_says_what_its_last_frames_say() -> None:
    # Attention and mean see `frames` back: of a stream of 20, as of the clip of its last 8.
    torch.manual_seed(0)
    model = timm_video(temporal="attention", causal=True).build(CLASSES).eval()
    clip = random_clip(frames=20)
    state = None
    sizes = []
    for number in range(20):
        outputs, state = model.step(part(clip, number, number + 1), state, ("frames",))
        sizes.append(sum(value.numel() for value in state.values()))
    assert sizes[-1] == sizes[8] > sizes[0]  # the state does not grow for ever
    last = model(part(clip, 12, 20), ("frames",))
    # The oldest frames of that clip knew of older ones in the stream: the last frame alone is the same.
    torch.testing.assert_close(outputs.features["frames"].values[:, 0], last.features["frames"].values[:, 7])


def test_a_model_that_sees_later_frames_does_not_step() -> None:
    model = CompactShift(width=4, input=SMALL).build(CLASSES)
    with pytest.raises(ValueError, match=r"CompactShiftNetwork sees later frames .* build it with causal=True"):
        model.step(random_clip(frames=1))


def test_frames_of_another_size_and_the_state_of_another_model_are_refused() -> None:
    model = CompactShift(width=4, input=SMALL, causal=True).build(CLASSES).eval()
    with pytest.raises(ValueError, match=r"takes frames \(B, t, 3, 32, 32\), got \(2, 1, 3, 64, 64\)"):
        model.step(random_clip(frames=1, size=64))
    _, state = timm_video(causal=True).build(CLASSES).eval().step(random_clip(frames=1))
    with pytest.raises(ValueError, match=r"the state of another model: it has backbone"):
        model.step(random_clip(frames=1), state)


def test_state_is_taken_from_the_caller_alone() -> None:
    model = CompactShift(width=4, input=SMALL, causal=True).build(CLASSES).eval()
    clip = random_clip(frames=8)
    first, state = model.step(part(clip, 0, 1))
    model.step(part(clip, 1, 2), state)
    again, _ = model.step(part(clip, 0, 1))
    assert torch.equal(first.logits, again.logits)  # type: ignore[arg-type]
    whole = model(clip)
    assert torch.equal(model(clip).logits, whole.logits)  # type: ignore[arg-type]


def test_shift_moves_channels_by_a_frame() -> None:
    # One clip of three frames with four channels; a quarter comes from the next frame, a quarter from the last.
    frames = torch.arange(12.0).view(3, 4, 1, 1)
    shift = Shift(torch.nn.Identity(), share=0.25)
    assert shift(frames).flatten(1).tolist() == [[4, 0, 2, 3], [8, 1, 6, 7], [0, 5, 10, 11]]
    causal = Shift(torch.nn.Identity(), share=0.25, causal=True)
    assert causal(frames).flatten(1).tolist() == [[0, 1, 2, 3], [0, 5, 6, 7], [4, 9, 10, 11]]
    # Two clips do not see each other; tokens have their channels last.
    shift.clips = 2
    assert shift(frames.repeat(2, 1, 1, 1)).flatten(1)[3:].tolist() == [[4, 0, 2, 3], [8, 1, 6, 7], [0, 5, 10, 11]]
    last = Shift(torch.nn.Identity(), share=0.25, causal=True, channels=-1)
    assert last(frames.view(3, 1, 4)).flatten(1).tolist() == causal(frames).flatten(1).tolist()


@pytest.mark.parametrize("causal", [False, True])
def test_shift_keeps_the_layout_of_its_frames(causal: bool) -> None:
    frames = torch.randn(6, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    shift = Shift(torch.nn.Identity(), share=0.25, causal=causal)
    shift.clips = 2
    planar, last = shift(frames), shift(frames.contiguous(memory_format=torch.channels_last))
    assert torch.equal(planar, last)
    assert planar.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_convolution_over_time_by_hand() -> None:
    conv = TemporalConv(1)
    with torch.no_grad():
        conv.conv.weight.copy_(torch.tensor([[[1.0, 0.0, 10.0]]]))
        conv.conv.bias.zero_()  # type: ignore[union-attr]
    # x + x[t-1] + 10 x[t+1]
    assert conv(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist() == [21, 33, 5]
    causal = TemporalConv(1, causal=True)
    causal.load_state_dict(conv.state_dict())
    # x + x[t-2] + 10 x[t]
    assert causal(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist() == [11, 22, 34]


def test_attention_depends_on_how_far_apart_frames_are_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    attention = TemporalAttention(16, heads=2, window=4, causal=False).eval()
    frames, times = torch.randn(2, 4, 16), torch.tensor([[0.0, 0.2, 0.4, 0.6]]).expand(2, -1)
    with torch.no_grad():
        early, late = attention(frames, times), attention(frames, times + 3600)
        slow = attention(frames, 4 * times)
    # Seconds come as single floats, an hour into a video good to a quarter of a millisecond.
    torch.testing.assert_close(early, late, rtol=0, atol=1e-3)
    assert not torch.allclose(early, slow, atol=2e-2)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads need a width that 6 divides, got 16"):
        TemporalAttention(16, heads=3, window=4, causal=False)


def test_a_clip_shorter_than_the_window_is_averaged_as_it_is() -> None:
    mean = MeanOverTime(window=4)
    assert mean(torch.tensor([[[1.0], [3.0]]])).item() == 2


@pytest.mark.parametrize(
    ("backbone", "places"),
    [("resnet18", 8), ("mobilenetv3_small_100", 6), ("mobilenetv4_conv_small", 10), ("efficientnet_b0", 9)],
)
def test_shift_is_in_every_residual_branch(backbone: str, places: int) -> None:
    model = timm_video(backbone).build(CLASSES)
    assert sum(isinstance(module, Shift) for module in model.modules()) == places


@pytest.mark.slow
def test_fastvit_learns_on_a_cpu() -> None:
    # In a process of its own: where the convolution writes beyond its memory, all ends.
    script = """
import torch
from videokd.contracts import InputSpec
from videokd.models import TimmVideo
model = TimmVideo(backbone="fastvit_t8", input=InputSpec(frames=8, size=112)).build(["a", "b"]).train()
for _ in range(2):
    model(model.blank(2)).logits.sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_convolution_that_subsamples_first_is_the_same() -> None:
    torch.manual_seed(0)
    strided = torch.nn.Conv2d(3, 5, 1, stride=2)
    pictures = torch.randn(2, 3, 9, 9)
    expected = strided(pictures)
    subsample_first(torch.nn.Sequential(strided))
    assert type(strided) is SubsamplingConv
    torch.testing.assert_close(strided(pictures), expected)


def test_shift_without_a_known_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r'no known place in this backbone .* use temporal="conv"'):
        shift_residual_branches(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), share=0.1)


def test_convolutions_in_the_backbone_begin_as_nothing() -> None:
    torch.manual_seed(0)
    tied = timm_video(temporal="conv_stages").build(CLASSES).eval()
    torch.manual_seed(0)
    apart = timm_video(temporal="average").build(CLASSES).eval()
    apart.backbone.load_state_dict(
        {
            key.replace(".stage.", "."): value
            for key, value in tied.backbone.state_dict().items()
            if "over_time" not in key
        }
    )
    clip = random_clip()
    one, two = tied(clip, ("frames",)).features["frames"], apart(clip, ("frames",)).features["frames"]
    assert torch.equal(one.values, two.values)
    assert sum(isinstance(module, TemporalConv) for module in tied.modules()) == 3
