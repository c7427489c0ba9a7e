import torch

from videokd.bank import ClassVectors, Queue
from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.losses.relations import BANK, BANK_CLIP, BANK_FILLED, BANK_LABEL, NO_CLIP


def says(*numbers: float, known: list[bool] | None = None) -> Outputs:
    """One-channel clip vectors."""
    values = torch.tensor(numbers, dtype=torch.float32)[:, None, None, None, None]
    there = None if known is None else torch.tensor(known)
    return Outputs(None, {"clip": FeatureMap(values, torch.zeros(len(numbers), 1))}, there)


def held(queue: Queue) -> list[tuple[float, int]]:
    found = queue.contents()
    rows = zip(found[BANK][:, 0].tolist(), found[BANK_LABEL].tolist(), found[BANK_FILLED].tolist(), strict=True)
    return [(vector, label) for vector, label, filled in rows if filled]


def test_a_queue_replaces_its_oldest() -> None:
    queue = Queue(4, 1, "clip")
    assert held(queue) == []
    queue.push(says(1, 2, 3), torch.tensor([7, 8, UNLABELLED]))
    assert held(queue) == [(1, 7), (2, 8), (3, UNLABELLED)]
    queue.push(says(4, 5), torch.tensor([1, 2]))
    assert held(queue) == [(5, 2), (2, 8), (3, UNLABELLED), (4, 1)]
    queue.push(says(*range(10, 16)), torch.arange(6))
    assert sorted(held(queue)) == [(12, 2), (13, 3), (14, 4), (15, 5)]


def test_a_queue_leaves_out_clips_of_which_the_teacher_says_nothing_and_classes_of_mixed_ones() -> None:
    queue = Queue(4, 1, "clip")
    shares = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 1.0]])
    queue.push(says(1, 2, 3, 4, known=[True, True, False, True]), shares)
    assert held(queue) == [(1, 1), (2, UNLABELLED), (4, UNLABELLED)]


def test_what_was_handed_out_stays_as_it_was() -> None:
    queue = Queue(2, 1, "clip")
    before = queue.contents()
    queue.push(says(1, 2), torch.tensor([0, 0]))
    assert not before[BANK_FILLED].any()
    assert before[BANK].sum() == 0


def test_a_queue_is_saved_and_loaded() -> None:
    queue, other = Queue(3, 1, "clip"), Queue(3, 1, "clip")
    queue.push(says(1, 2), torch.tensor([5, 6]))
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push(says(3, 4), torch.tensor([7, 8]))
    assert held(other) == held(queue) == [(4, 8), (2, 6), (3, 7)]


def test_a_queue_knows_which_clips_it_holds() -> None:
    queue = Queue(3, 1, "clip")
    queue.push(Outputs(None, says(1, 2).features, None, clip=torch.tensor([70, 80])), torch.tensor([0, 1]))
    assert queue.contents()[BANK_CLIP].tolist() == [70, 80, NO_CLIP]
    queue.push(says(3, 4), torch.tensor([0, 1]))
    assert queue.contents()[BANK_CLIP].tolist() == [NO_CLIP, 80, NO_CLIP]


def test_class_vectors_stay() -> None:
    bank = ClassVectors(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    bank.push(says(9), torch.tensor([0]))
    assert bank.contents()[BANK].tolist() == [[1, 0], [0, 1]]
    assert bank.contents()[BANK_LABEL].tolist() == [0, 1]
