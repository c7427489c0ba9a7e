import inspect

import pytest

from videokd import losses, weighting
from videokd.losses import Loss
from videokd.report.catalogue import defaults, described, groups, method_recipes, rows

NO_PAPER = {"BinaryCrossEntropy", "FixedWeights", "ScaleNormalised", "WhereTeacherIsRight", "WhereTeacherIsSure"}


def test_every_public_loss_and_weighting_is_in_it_once() -> None:
    listed = [cls for classes in groups().values() for cls in classes]
    assert len(listed) == len(set(listed))
    public = [getattr(losses, name) for name in losses.__all__]
    assert {
        cls for cls in public if isinstance(cls, type) and issubclass(cls, Loss) and not inspect.isabstract(cls)
    } <= set(listed)
    assert {cls.__name__ for cls in listed if cls.__module__ == weighting.__name__} == {
        "FixedWeights",
        "ScaleNormalised",
        "Uncertainty",
        "DWA",
        "GradientRatio",
        "RandomWeights",
        "WhereStudentIsWorse",
        "WhereTeacherIsRight",
        "WhereTeacherIsSure",
    }
    assert {cls.__name__ for cls in listed if not cls.paper} == NO_PAPER


def test_a_row_tells_defaults_and_a_recipe() -> None:
    found = {row[0]: row for classes in groups().values() for row in rows(classes, method_recipes())}
    assert found["DKD"][2:] == ("target='label', alpha=1, beta=8, temperature=4", "methods/dkd.py")
    assert found["SoftTargets"][3] == "methods/kd.py"
    assert found["MGD"][1].endswith("published weight 7e-5")
    without = {name for name, row in found.items() if not row[3]}
    assert without == {"ClassBalanced", "WhereTeacherIsRight", "WhereTeacherIsSure"}


def test_defaults_are_those_of_the_class() -> None:
    assert defaults(losses.CRD) == {"temperature": "0.07", "queue": "1024", "connector": "Linear()"}


def test_one_is_described_with_its_fields() -> None:
    said = "\n".join(described("GradientRatio"))
    for part in (
        "Costs a short backward pass",
        "paper: after GradNorm",
        "recipe: methods/weighted_by_gradients.py",
        "  target=0.5",
    ):
        assert part in said
    assert "      The term that the others are measured by." in said
    assert "import: from videokd.weighting import GradientRatio" in said
    said = "\n".join(described("crd"))
    for part in ("import: from videokd.losses import CRD", "  student_tap='clip'", "      Past teacher's vectors"):
        assert part in said
    with pytest.raises(ValueError, match=r"SimKD is a model that wraps the student.*methods/simkd\.py"):
        described("SimKD")
    with pytest.raises(ValueError, match=r"no loss or weighting is called 'DKT'; did you mean '(PKT|DKD)'\?"):
        described("DKT")
