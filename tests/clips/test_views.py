from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videokd.clips.dataset import ClipDataset
from videokd.clips.manifest import Manifest, Video
from videokd.clips.pictures import Box, Cut, cut_out
from videokd.clips.views import (
    Augment,
    ColourJitter,
    Placement,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ShortSideJitter,
    ViewGrid,
    appearance,
    centred,
    drawn,
    flip_sensitive,
    flipped_classes,
)
from videokd.contracts import Dense, InputSpec


def coordinates(height: int, width: int) -> torch.Tensor:
    """Frames whose red is the row and whose green is the column."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, :].expand(height, width)
    return torch.stack([rows, columns, torch.zeros_like(rows)])[None].expand(2, 3, height, width)


def test_the_test_view_is_the_middle_square() -> None:
    assert centred(height=128, width=170, crop_fraction=0.875) == Placement(Box(8, 29, 112, 112), flipped=False)


def test_parties_of_two_sizes_see_the_same_place() -> None:
    box = Box(10, 20, 64, 64)
    large = cut_out(coordinates(100, 120), Cut((), box, (64, 64))).float()
    small = cut_out(coordinates(100, 120), Cut((), box, (32, 32))).float()
    # Each small pixel is the mean of the four that it covers; the borders have fewer neighbours.
    expected = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(small[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1, rtol=0)


def test_random_crops_reach_every_place_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    boxes = [drawn(Augment(), height=36, width=36, crop_fraction=32 / 36, rng=rng).box for _ in range(300)]
    assert {(box.top, box.left) for box in boxes} == {(top, left) for top in range(5) for left in range(5)}
    assert {(box.height, box.width) for box in boxes} == {(32, 32)}


def test_random_resized_crops_keep_to_area_and_shape() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(crop=RandomResizedCrop(scale=(0.4, 0.6), ratio=(0.8, 1.25)), flip=0.5)
    placements = [drawn(augment, height=90, width=120, crop_fraction=1, rng=rng) for _ in range(300)]
    for box, _ in ((placement.box, placement.flipped) for placement in placements):
        assert 0 <= box.top <= 90 - box.height
        assert 0 <= box.left <= 120 - box.width
        assert 0.38 < box.height * box.width / (90 * 120) < 0.62
        assert 0.75 < box.width / box.height < 1.3
    assert 100 < sum(placement.flipped for placement in placements) < 200


def test_flip_is_off_by_default() -> None:
    rng = np.random.default_rng(0)
    assert not any(drawn(Augment(), height=8, width=8, crop_fraction=1, rng=rng).flipped for _ in range(99))


@pytest.mark.parametrize("wrong", [{"scale": (0.6, 0.4)}, {"scale": (0.0, 1.0)}, {"ratio": (-1.0, 1.0)}])
def test_an_impossible_crop_is_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="scale must rise"):
        RandomResizedCrop(**wrong)
    with pytest.raises(ValueError, match="probability"):
        Augment(flip=2.0)


def test_jittered_crops_are_as_if_the_short_side_were_resized() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(crop=ShortSideJitter(fraction=(224 / 320, 224 / 256)))
    sides = [drawn(augment, height=1000, width=1500, crop_fraction=1, rng=rng).box.height for _ in range(2000)]
    resized = 224 / (np.array(sides) / 1000)
    assert 255 < resized.min() < 260
    assert 316 < resized.max() < 321
    assert abs(resized.mean() - 288) < 2  # evenly drawn from 256 to 320
    with pytest.raises(ValueError, match="fraction must rise"):
        ShortSideJitter(fraction=(0.9, 0.7))


def test_three_crops_cover_the_long_side() -> None:
    grid = ViewGrid(temporal=10, spatial=3)
    assert len(grid) == 30
    boxes = [grid.placement(view, height=128, width=171, crop_fraction=0.5).box for view in range(3)]
    assert boxes == [Box(0, 0, 128, 128), Box(0, 21, 128, 128), Box(0, 43, 128, 128)]
    upright = [grid.placement(view, height=171, width=128, crop_fraction=0.5).box for view in range(3)]
    assert [box.top for box in upright] == [0, 21, 43]
    assert [grid.position(view) for view in (0, 2, 3, 29)] == [0, 0, 1 / 9, 1]
    assert ViewGrid().position(0) == 0.5
    assert ViewGrid().placement(0, height=128, width=170, crop_fraction=0.875).box == Box(8, 29, 112, 112)
    with pytest.raises(ValueError, match="30 test views, 10 x 3; no number 30"):
        grid.position(30)


@pytest.mark.parametrize(
    ("classes", "after"),
    [
        (["slide left", "slide right", "jump"], (1, 0, 2)),
        (["pushing it from left to right", "pushing it from right to left"], (1, 0)),
        (["TurnLeft", "turn_right", "Leftovers", "bright"], (1, 0, 2, 3)),
        (["swipe-LEFT", "copyright"], (None, 1)),
        (["spin clockwise", "spin counter-clockwise"], (1, 0)),
        (["anticlockwise", "clockwise"], (1, 0)),
        (["turn_clockwise", "turn_counter_clockwise"], (1, 0)),
        (["TurnAntiClockwise", "TurnClockwise"], (1, 0)),
        (["take the leftmost", "left-handed", "move rightwards"], (None, None, None)),
        (["waving righthand"], (None,)),
    ],
)
def test_a_flip_exchanges_classes_that_know_their_side(classes: list[str], after: tuple[int | None, ...]) -> None:
    assert flipped_classes(classes) == after
    assert flip_sensitive(classes) == tuple(name for number, name in enumerate(classes) if after[number] != number)


def test_a_clip_that_may_not_be_flipped_is_not() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(flip=1.0)
    assert drawn(augment, height=8, width=8, crop_fraction=1, rng=rng).flipped
    assert not drawn(augment, height=8, width=8, crop_fraction=1, rng=rng, may_flip=False).flipped


LOOKS = [
    Augment(colour=ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.3)),
    Augment(rand_augment=RandAugment(num_ops=2, magnitude=9)),
    Augment(erase=RandomErasing(probability=1.0)),
]


def scene(size: int, *, frames: int = 3) -> torch.Tensor:
    """Smooth waves of colour, uint8 (T, 3, size, size): the same picture at every size, and in every frame."""
    place = (torch.arange(size) + 0.5) / size
    waves = [torch.sin(6 * place[:, None] + k + 4 * place[None, :] * (k - 1)) for k in range(3)]
    return (128 + 100 * torch.stack(waves)).to(torch.uint8).expand(frames, -1, -1, -1).contiguous()


@pytest.mark.parametrize("augment", LOOKS, ids=["colour", "operations", "erasing"])
def test_all_frames_and_parties_look_changed_in_the_same_way(augment: Augment) -> None:
    changed = 0
    for seed in range(40):
        small, large = (appearance(scene(size), augment, seed=seed) for size in (56, 112))
        assert small.dtype == torch.uint8
        for frames in (small, large):
            assert (frames == frames[:1]).all()
        halved = torch.nn.functional.avg_pool2d(large.float(), 2)
        difference = (halved - small.float()).abs().mean().item()
        moved = (small.float() - scene(56).float()).abs().mean().item()
        changed += moved > 2
        # Borders of moved and erased parts fall between pixels; a draw of its own would differ as much as it moves.
        assert difference < 3 or difference < 0.4 * moved, seed
        assert torch.equal(small, appearance(scene(56), augment, seed=seed))
    assert changed > 15


def test_looks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for augment in LOOKS:
        appearance(scene(16), augment, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A video of 48 frames, 96x128, whose white dot moves on a dark ground: where it is tells place and time."""
    path = tmp_path_factory.mktemp("painted") / "dot.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "1", "g": "12"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv444p"
        rows, columns = np.mgrid[:96, :128] + 0.5
        for number in range(48):
            y, x = dot(number)
            picture = 20 + 220 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 50)
            frame = av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, axis=2).astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Manifest(Path("dots.csv"), (Video(id="dot.mp4", path=path, label="dot"),), ("dot",))


def dot(number: float) -> tuple[float, float]:
    """Where the dot is in frame `number`: (row, column) in pixels."""
    return 40 + 0.4 * number, 40 + 1.0 * number


def seen_at(frame: torch.Tensor) -> tuple[float, float] | None:
    """Where a view (3, S, S) shows the dot, in shares of the view; None if it is not wholly inside."""
    light = (frame[0].float() - 25).clamp(min=0)
    size = frame.shape[-1]
    place = (torch.arange(size) + 0.5) / size
    row = (light.sum(dim=1) * place).sum() / light.sum()
    column = (light.sum(dim=0) * place).sum() / light.sum()
    inside = light.max() > 150 and all(0.2 < x < 0.8 for x in (row, column))
    return (row.item(), column.item()) if inside else None


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(crop=RandomResizedCrop(scale=(0.5, 1.0)), flip=0.5),
        Augment(crop=ShortSideJitter(), flip=0.5, colour=ColourJitter(brightness=0.2)),
    ],
    ids=["crop", "resized", "jitter"],
)
def test_teacher_and_student_see_a_painted_dot_at_the_same_place_and_time(painted: Manifest, augment: Augment) -> None:
    specs = {
        "student": InputSpec(frames=4, size=40, sampling=Dense(stride=4), crop_fraction=0.875),
        "teacher": InputSpec(frames=16, size=80, sampling=Dense(stride=1), crop_fraction=0.9),
    }
    clips = ClipDataset(painted, specs, augment=augment, seed=1)
    compared, flips = 0, 0
    for view in range(60):
        student, teacher = (clips[0, view]["clips"][party] for party in specs)
        assert torch.equal(student["times"], teacher["times"][::4])
        for moment in range(4):
            ours, theirs = seen_at(student["frames"][moment]), seen_at(teacher["frames"][4 * moment])
            if ours is None or theirs is None:
                continue
            compared += 1
            assert ours == pytest.approx(theirs, abs=1 / 40)  # a pixel of the smaller
        later = seen_at(teacher["frames"][-1])
        earlier = seen_at(teacher["frames"][0])
        if later and earlier:
            flips += later[1] < earlier[1]  # the dot goes to the right, unless it is flipped
            assert later[0] > earlier[0]
    assert compared > 40
    assert (flips > 3) == (augment.flip > 0)


def test_a_view_shows_the_part_of_the_file_that_its_box_names(painted: Manifest) -> None:
    # The centred crop of 0.875: 84 of 96 rows from 6 on, and of 128 columns from 22 on, seen at half the size.
    spec = InputSpec(frames=1, size=42, crop_fraction=0.875)
    place = seen_at(ClipDataset(painted, {"student": spec})[0]["clips"]["student"]["frames"][0])
    row, column = dot(23)  # 48 starts; the middle one is 23
    assert place == pytest.approx(((row - 6) / 84, (column - 22) / 84), abs=1 / 84)


def test_a_flip_changes_the_label_with_the_picture(painted: Manifest) -> None:
    sided = replace(painted, videos=(replace(painted.videos[0], label="go right"),), classes=("go left", "go right"))
    spec = {"student": InputSpec(frames=16, size=84, crop_fraction=0.875)}
    one_way = replace(sided, classes=("go right", "stay"))
    mapped, kept = set(), set()
    for view in range(30):
        sample = ClipDataset(sided, spec, augment=Augment(flip=0.5))[0, view]
        first, last = (seen_at(sample["clips"]["student"]["frames"][moment]) for moment in (0, -1))
        if first and last:
            mapped.add((sample["label"], last[1] > first[1]))
        kept.add(ClipDataset(one_way, spec, augment=Augment(flip=1.0))[0, view]["label"])
    assert mapped == {(0, False), (1, True)}
    assert kept == {0}
