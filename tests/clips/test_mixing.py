from dataclasses import replace

import pytest
import torch

from videokd.clips.mixing import Mix, mixed
from videokd.contracts import UNLABELLED, Batch, Clip, labelled


def batch(labels: list[int], *, seed: int = 0) -> Batch:
    """Clips of one grey level each, 10 x (place + 1), for two parties of different sizes."""
    level = 10 * (torch.arange(len(labels)) + 1).view(-1, 1, 1, 1, 1)
    clips = {}
    for party, frames, size in (("student", 2, 16), ("teacher", 4, 32)):
        times = torch.arange(frames).float().expand(len(labels), -1)
        clips[party] = Clip(level.expand(-1, frames, 3, size, size).to(torch.uint8), times)
    return Batch(clips, torch.tensor(labels), tuple(map(str, range(len(labels)))), torch.zeros(len(labels)))


def test_mixup_blends_pictures_and_labels_by_one_share() -> None:
    labels = [0, 1, 2, 3]
    before = batch(labels)
    after = mixed(before, Mix(mixup=1.0), num_classes=4, seed=3, step=7)
    share = after.label[0, 0].item()
    assert 0 < share < 1
    for place in range(4):
        (partner,) = (k for k in range(4) if k != place and after.label[place, k] > 0)
        assert after.label[place].sum() == pytest.approx(1)
        assert after.label[place, place].item() == pytest.approx(share)
        wanted = round(share * 10 * (place + 1) + (1 - share) * 10 * (partner + 1))
        for clip in after.clips.values():
            assert (clip.frames[place].int() - wanted).abs().max() <= 1
    assert torch.equal(after.clips["teacher"].times, before.clips["teacher"].times)


def test_cutmix_pastes_one_place_for_all_parties_and_counts_its_pixels() -> None:
    before = batch([0, 1, 2])
    for step in range(20):
        after = mixed(before, Mix(cutmix=1.0), num_classes=3, seed=0, step=step)
        own = {
            party: (clip.frames == before.clips[party].frames)[:, :, 0].float() for party, clip in after.clips.items()
        }
        # (B, T, H, W): the same in all frames and clips.
        for mask in own.values():
            assert (mask == mask[:1, :1]).all()
        student, teacher = own["student"][0, 0], own["teacher"][0, 0]
        assert after.label.diagonal().tolist() == pytest.approx([student.mean().item()] * 3)
        # The teacher's box covers the student's pixels, but for rounding at its border.
        halved = torch.nn.functional.avg_pool2d(teacher[None, None], 2)[0, 0]
        assert (halved - student).abs().sum() <= 2 * 16


def test_kinds_are_not_mixed() -> None:
    labels = [0, UNLABELLED, 1, UNLABELLED, 2, UNLABELLED]
    before = batch(labels)
    partners = set()
    for step in range(30):
        after = mixed(before, Mix(mixup=1.0), num_classes=3, seed=1, step=step)
        assert labelled(after.label).tolist() == [label != UNLABELLED for label in labels]
        assert (after.label[1::2] == UNLABELLED).all()
        assert after.label[::2].sum(dim=1).tolist() == pytest.approx([1.0] * 3)
        share = after.label[0, 0].item()
        for place in range(6):
            level = after.clips["student"].frames[place, 0, 0, 0, 0].item()
            if share < 0.9:
                other = round(((level - share * 10 * (place + 1)) / (1 - share)) / 10 - 1)
                assert other % 2 == place % 2
                assert other != place
                partners.add((place, other))
    assert len(partners) == 12  # each of six with both others of its kind


def test_a_step_is_a_function_of_seed_and_step() -> None:
    mix = Mix(mixup=0.8, cutmix=1.0)
    one, two = (mixed(batch([0, 1, 2]), mix, num_classes=3, seed=5, step=9) for _ in range(2))
    assert torch.equal(one.label, two.label)
    assert torch.equal(one.clips["student"].frames, two.clips["student"].frames)
    others = [mixed(batch([0, 1, 2]), mix, num_classes=3, seed=5, step=step).label for step in range(10, 20)]
    assert all(not torch.equal(one.label, other) for other in others)


def test_one_of_both_is_drawn_and_steps_are_left_out() -> None:
    before = batch([0, 1, 2, 3])
    kinds = []
    for step in range(200):
        after = mixed(before, Mix(mixup=1.0, cutmix=1.0, probability=0.5), num_classes=4, seed=2, step=step)
        frames = after.clips["student"].frames
        if torch.equal(frames, before.clips["student"].frames):
            kinds.append("none")
        else:
            kinds.append("cutmix" if len(frames.unique()) <= 4 and len(frames[0].unique()) == 2 else "mixup")
    assert 70 < kinds.count("none") < 130
    assert 30 < kinds.count("cutmix") < 75
    assert 30 < kinds.count("mixup") < 75


def test_unmixed_steps_have_shares_too_and_one_clip_stays_itself() -> None:
    plain = mixed(batch([2, UNLABELLED]), Mix(mixup=1.0, probability=0.0), num_classes=3, seed=0, step=0)
    assert plain.label.tolist() == [[0, 0, 1], [-1, -1, -1]]
    alone = mixed(batch([1]), Mix(cutmix=1.0), num_classes=2, seed=0, step=0)
    assert alone.label.tolist() == [[0, 1]]
    assert torch.equal(alone.clips["student"].frames, batch([1]).clips["student"].frames)


def test_several_labels_a_clip_are_mixed_as_they_are() -> None:
    several = replace(batch([0, 0]), label=torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    after = mixed(several, Mix(mixup=1.0), num_classes=3, seed=0, step=0)
    share = after.label[0, 0].item()
    torch.testing.assert_close(after.label, torch.tensor([[share, share, 1 - share], [1 - share, 1 - share, share]]))


@pytest.mark.parametrize("wrong", [{}, {"mixup": -1.0}, {"mixup": 1.0, "probability": 1.5}])
def test_an_impossible_mix_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Mix(**wrong)
