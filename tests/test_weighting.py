"""Every weighting against a sequence computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from videokd.contracts import UNLABELLED, Outputs
from videokd.distill import Objective, Term
from videokd.losses import CrossEntropy, SoftTargets, TemporalAffinity
from videokd.weighting import (
    DWA,
    FixedWeights,
    GradientRatio,
    RandomWeights,
    ScaleNormalised,
    Uncertainty,
    Weigher,
    WhereStudentIsWorse,
    WhereTeacherIsRight,
    WhereTeacherIsSure,
    scheduled_weight,
)

NAMES = ("hard", "soft")


def factors(weigher: Weigher, *losses: float) -> list[float]:
    found, _ = weigher([torch.tensor(one) for one in losses])
    assert isinstance(found, Tensor)
    return found.tolist()


def test_a_fixed_weight_rises_and_falls_linearly() -> None:
    found = [scheduled_weight(2.0, at, warmup=0.2, decay=0.5) for at in (0.05, 0.1, 0.2, 0.5, 0.75, 0.9, 1.0)]
    assert found == pytest.approx([0.5, 1.0, 2.0, 2.0, 1.0, 0.4, 0.0])
    assert scheduled_weight(2.0, 0.0, warmup=0.0, decay=0.0) == 2.0
    assert factors(FixedWeights().build(NAMES), 3.0, 5.0) == [1.0, 1.0]


def test_a_term_follows_its_schedule() -> None:
    term = Term(loss=CrossEntropy(), weight=4.0, warmup=0.5, decay=0.25)
    assert [term.weight_at(at) for at in (0.25, 0.5, 0.75, 0.875, 1.0)] == [2.0, 4.0, 4.0, 2.0, 0.0]


def test_scale_normalised_divides_by_running_means() -> None:
    weigher = ScaleNormalised(reference="hard", momentum=0.75).build(NAMES)
    # Plain means at first: 2 and 8; 3 and 6; (2 + 4 + 6) / 3 = 4 and (8 + 4 + 3) / 3 = 5. Each times the hard one's.
    assert factors(weigher, 2.0, 8.0) == pytest.approx([1, 2 / 8])
    assert factors(weigher, 4.0, 4.0) == pytest.approx([1, 3 / 6])
    assert factors(weigher, 6.0, 3.0) == pytest.approx([1, 4 / 5])
    # From here on a quarter of what is new: 4 + (8 - 4) / 4 = 5 (the same as a mean of four), 5 + (1 - 5) / 4 = 4 ...
    assert factors(weigher, 8.0, 1.0) == pytest.approx([1, 5 / 4])
    # ... and then 5 + (9 - 5) / 4 = 6 and 4 + (8 - 4) / 4 = 5, where a plain mean would be 5.8 and 4.8.
    assert factors(weigher, 9.0, 8.0) == pytest.approx([1, 6 / 5])
    # A term that says nothing at a step keeps its mean, and is not made larger for it.
    assert factors(weigher, 6.0, 0.0) == pytest.approx([1, 6 / 5])


def test_scale_normalised_has_limits_and_waits_for_its_reference() -> None:
    weigher = ScaleNormalised(reference="hard", limit=50.0).build(NAMES)
    assert factors(weigher, 0.0, 4.0) == [1.0, 1.0]  # nothing to measure by yet
    assert factors(weigher, 2.0, 4.0) == pytest.approx([1, 2 / 4])
    tiny = ScaleNormalised(reference="hard", limit=50.0).build(NAMES)
    assert factors(tiny, 1.0, 1e-9) == [1.0, 50.0]


def test_uncertainty_is_kendalls_formula_and_is_learned() -> None:
    weigher = Uncertainty(initial=0.5).build(NAMES)
    found, added = weigher([torch.tensor(2.0), torch.tensor(0.1)])
    assert found.tolist() == pytest.approx([0.5 * math.exp(-0.5)] * 2)
    assert isinstance(added, Tensor)
    assert added.tolist() == pytest.approx([0.25, 0.25])
    total = (found * torch.tensor([2.0, 0.1]) + added).sum()
    (s,) = weigher.parameters()
    (gradient,) = torch.autograd.grad(total, s)
    # d/ds of L / 2 exp(-s) + s / 2.
    assert gradient.tolist() == pytest.approx([-math.exp(-0.5) + 0.5, -0.05 * math.exp(-0.5) + 0.5])
    with torch.no_grad():
        s.fill_(9.0)
    assert factors(weigher, 1.0, 1.0) == pytest.approx([0.5 * math.exp(-3)] * 2)


def test_dwa_weighs_by_the_ratio_of_the_last_two_intervals() -> None:
    weigher = DWA(temperature=2.0, interval=2).build(NAMES)
    given = [(4.0, 1.0), (2.0, 1.0), (1.0, 1.0), (2.0, 2.0)]
    assert [factors(weigher, *losses) for losses in given] == [[1.0, 1.0]] * 4
    # Means of the intervals: (3, 1) and (1.5, 1.5); ratios 0.5 and 1.5; by the temperature 0.25 and 0.75.
    first = 2 * math.exp(0.25) / (math.exp(0.25) + math.exp(0.75))
    for losses in ((9.0, 9.0), (3.0, 1.0)):
        assert factors(weigher, *losses) == pytest.approx([first, 2 - first])
    # Then (6, 5) over (1.5, 1.5): 4 and 3.3333, by the temperature 2 and 1.6667.
    second = 2 * math.exp(2) / (math.exp(2) + math.exp(5 / 3))
    assert factors(weigher, 1.0, 1.0) == pytest.approx([second, 2 - second])


def test_gradient_ratio_makes_the_gradients_of_the_last_common_layer_as_long_as_asked() -> None:
    early, late, own = (
        torch.tensor(values, requires_grad=True) for values in ([[1.0, 2.0]], [[3.0, 4.0]], [[1.0, 1.0]])
    )

    def losses(scale: float) -> list[Tensor]:
        # Of `late`: gradient (3, 4), norm 5, of the first; `scale` times (1, 0) of the second. `own` is the first's.
        hard = (late * torch.tensor([[3.0, 4.0]])).sum() + own.sum() + early.sum()
        return [hard, scale * late[0, 0] + early.sum()]

    weigher = GradientRatio(reference="hard", target=0.5, momentum=0.5, interval=2, limit=100.0).build(NAMES)
    weigher.shared = [early, late, own]
    assert weigher(losses(2.0))[0].tolist() == pytest.approx([1.0, 0.5 * 5 / 2])
    assert weigher(losses(8.0))[0].tolist() == pytest.approx([1.0, 0.5 * 5 / 2])  # not measured
    assert weigher(losses(4.0))[0].tolist() == pytest.approx([1.0, 0.5 * 5 / 3])  # the mean of 2 and 4
    assert weigher(losses(9.0))[0].tolist() == pytest.approx([1.0, 0.5 * 5 / 3])
    tiny = GradientRatio(limit=10.0).build(NAMES)
    tiny.shared = [early, late]
    assert tiny(losses(1e-6))[0].tolist() == pytest.approx([1.0, 10.0])
    silent = GradientRatio().build(NAMES)
    silent.shared = [late]
    assert silent([0 * late.sum(), late.sum()])[0].tolist() == [1.0, 1.0]  # nothing to measure by yet


def test_gradient_ratio_refuses_terms_that_have_no_layer_in_common() -> None:
    one, other = (torch.ones(1, 1, requires_grad=True) for _ in range(2))
    weigher = GradientRatio().build(NAMES)
    weigher.shared = [one, other]
    with pytest.raises(ValueError, match="no layer of the student has a gradient of every term"):
        weigher([one.sum(), other.sum()])


def test_random_weights_sum_to_the_number_of_terms_and_follow_seed_and_step() -> None:
    weigher, again, other = (RandomWeights(seed=seed).build(NAMES) for seed in (3, 3, 4))
    first, second = factors(weigher, 1.0, 1.0), factors(weigher, 1.0, 1.0)
    assert sum(first) == pytest.approx(2)
    assert first != second
    torch.rand(5)  # whatever else was drawn, as by dropout
    assert factors(again, 9.0, 9.0) == first
    assert factors(other, 1.0, 1.0) != first
    normal = np.exp(np.random.default_rng([3, 1]).standard_normal(2))
    assert second == pytest.approx((2 * normal / normal.sum()).tolist())
    # From a checkpoint on, the next one is drawn and not the first.
    resumed = RandomWeights(seed=3).build(NAMES)
    resumed.load_state_dict(weigher.state_dict())
    assert factors(resumed, 1.0, 1.0) == factors(weigher, 1.0, 1.0)


@pytest.mark.parametrize("weighting", [ScaleNormalised(reference="hrad"), GradientRatio(reference="hrad")])
def test_a_reference_that_is_no_term_is_refused(weighting: ScaleNormalised | GradientRatio) -> None:
    with pytest.raises(ValueError, match=r"term 'hrad', which the objective does not have; did you mean 'hard'\?"):
        weighting.build(NAMES)


def test_an_objective_applies_factors_on_top_of_the_terms_own_weights() -> None:
    terms = {"hard": Term(loss=CrossEntropy(), weight=3.0), "soft": Term(loss=SoftTargets(), weight=0.5)}
    objective = Objective(terms, weighting=ScaleNormalised(reference="hard"))
    student, teacher = Outputs(torch.randn(4, 3)), Outputs(torch.randn(4, 3))
    found = objective(student, {"teacher": teacher}, torch.tensor([0, 1, 2, 0]))
    # At the first step the means are the losses themselves: the soft term is as large as the hard one.
    assert found["total"].item() == pytest.approx(3.5 * found["hard"].item(), rel=1e-5)
    weights = [weight.item() for weight in objective.weights.values()]
    assert weights == pytest.approx([3.0, 0.5 * found["hard"].item() / found["soft"].item()], rel=1e-5)


# Two classes; probabilities of the first by logits (ln odds, 0).


def says(*odds: float) -> Outputs:
    return Outputs(torch.tensor([[math.log(one), 0.0] for one in odds]))


def test_clips_where_the_student_is_worse_weigh_more() -> None:
    # CE of class 0 at odds o is ln(1 + 1 / o): of 1, ln 2; of 3, ln 4/3.
    found = WhereStudentIsWorse()(says(1, 3, 1), says(3, 3, 3), torch.tensor([0, 0, UNLABELLED]))
    expected = [1 - math.exp(-math.log(2) / math.log(4 / 3)), 1 - math.exp(-1), 1.0]
    assert found.tolist() == pytest.approx(expected)


def test_clips_where_the_teacher_is_right_count_alone() -> None:
    teacher = says(3, 3, 0.5, 3)
    assert WhereTeacherIsRight()(says(1, 1, 1, 1), teacher, torch.tensor([0, 1, 1, UNLABELLED])).tolist() == [
        1,
        0,
        1,
        1,
    ]
    shares = torch.tensor([[0.7, 0.3], [0.0, 1.0], [0.4, 0.6], [float(UNLABELLED)] * 2])
    found = WhereTeacherIsRight()(says(1, 1, 1, 1), teacher, shares)
    assert found.tolist() == pytest.approx([0.7, 0.0, 0.6, 1.0])


def test_clips_where_the_teacher_is_sure_weigh_more() -> None:
    found = WhereTeacherIsSure()(says(1, 1), says(1, 3), torch.tensor([0, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.tolist() == pytest.approx([0.0, 1 - entropy / math.log(2)], abs=1e-6)


def test_an_objective_weighs_the_clips_of_a_term() -> None:
    student, teacher, label = says(1, 1, 2), says(3, 3, 5), torch.tensor([0, 1, UNLABELLED])
    plain = SoftTargets(temperature=1.0).each(student, teacher, label)
    term = Term(loss=SoftTargets(temperature=1.0), clips=WhereTeacherIsRight())
    found = Objective({"soft": term})(student, {"teacher": teacher}, label)["soft"]
    assert found.item() == pytest.approx(((plain[0] + plain[2]) / 3).item())


def test_clips_of_a_loss_that_is_no_mean_over_clips_are_not_weighed() -> None:
    for loss in (TemporalAffinity(), CrossEntropy()):
        with pytest.raises(
            ValueError, match="is not a mean over clips that follow a teacher: WhereTeacherIsRight can't"
        ):
            Term(loss=loss, clips=WhereTeacherIsRight())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaleNormalised(momentum=1.5),
        lambda: ScaleNormalised(limit=0.5),
        lambda: Uncertainty(initial=4.0),
        lambda: DWA(temperature=0.0),
        lambda: DWA(interval=0),
        lambda: GradientRatio(target=0.0),
        lambda: GradientRatio(limit=0.5),
        lambda: WhereTeacherIsSure(temperature=0.0),
        lambda: Term(loss=CrossEntropy(), decay=-0.1),
    ],
)
def test_a_number_out_of_range_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="got"):
        make()
