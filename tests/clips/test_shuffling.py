import pytest
import torch

from videokd.clips.shuffling import check_pieces, with_shuffled
from videokd.contracts import Batch, Clip, InputSpec, Sound


def batch(*, view: int = 0) -> Batch:
    """Two clips whose pixels are the numbers of their frames: 16 of the teacher, every second of the student."""
    numbers = torch.arange(16, dtype=torch.uint8)[None, :, None, None, None].expand(2, 16, 3, 2, 2).contiguous()
    wide = Clip(numbers, torch.arange(16.0).repeat(2, 1))
    sound = Sound(torch.arange(8.0).repeat(2, 1), torch.zeros(2), torch.ones(2, dtype=torch.bool))
    clips = {"student": Clip(wide.frames[:, ::2], wide.times[:, ::2]), "teacher": wide, "ears": sound}
    return Batch(clips, torch.tensor([0, 1]), ("x", "y"), torch.full((2,), view))


def seen(view: object) -> list[list[int]]:
    assert isinstance(view, Clip)
    return view.frames[:, :, 0, 0, 0].tolist()


def test_all_parties_see_the_same_pieces_in_the_same_other_order() -> None:
    shuffled = with_shuffled(batch(), 4).shuffled
    for student, teacher in zip(seen(shuffled["student"]), seen(shuffled["teacher"]), strict=True):
        pieces = [teacher[start : start + 4] for start in range(0, 16, 4)]
        assert sorted(teacher) == list(range(16))
        assert teacher != list(range(16))
        assert all(piece == list(range(piece[0], piece[0] + 4)) for piece in pieces)
        assert student == teacher[::2]
    ears = shuffled["ears"]
    assert isinstance(ears, Sound)
    first = [int(one) for one in ears.samples[0]]
    assert [one // 2 for one in first[::2]] == [piece // 4 for piece in seen(shuffled["teacher"])[0][::4]]


def test_no_clip_stays_as_it_was_filmed() -> None:
    for view in range(12):
        shuffled = with_shuffled(batch(view=view), 2).shuffled["teacher"]
        assert seen(shuffled) == [[*range(8, 16), *range(8)]] * 2


def test_times_and_the_filmed_clip_stay() -> None:
    before, after = batch(), with_shuffled(batch(), 4)
    assert torch.equal(after.clips["teacher"].frames, before.clips["teacher"].frames)  # type: ignore[union-attr]
    assert torch.equal(after.shuffled["teacher"].times, before.clips["teacher"].times)  # type: ignore[union-attr]


def test_the_order_is_a_function_of_clip_and_view() -> None:
    orders = {tuple(seen(with_shuffled(batch(view=view), 4).shuffled["student"])[0]) for view in range(12)}
    assert len(orders) > 4
    assert seen(with_shuffled(batch(), 4).shuffled["student"]) == seen(with_shuffled(batch(), 4).shuffled["student"])
    first, second = seen(with_shuffled(batch(view=3), 8).shuffled["student"])
    assert first != second


def test_pieces_that_do_not_divide_the_frames_are_refused() -> None:
    check_pieces(4, {"student"}, {"student": InputSpec(frames=8, size=32), "other": InputSpec(frames=7, size=32)})
    with pytest.raises(ValueError, match="teacher sees 8 frames, which can't be cut into 3 equal pieces"):
        check_pieces(
            3,
            {"student", "teacher"},
            {"student": InputSpec(frames=6, size=32), "teacher": InputSpec(frames=8, size=32)},
        )


def test_a_party_without_frames_or_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="words neither looks nor listens"):
        check_pieces(2, {"student", "words"}, {"student": InputSpec(frames=8, size=32)})


def test_parties_that_nobody_asks_for_are_left_out() -> None:
    assert set(with_shuffled(batch(), 4, {"student", "teacher"}).shuffled) == {"student", "teacher"}
