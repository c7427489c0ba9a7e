"""Two `Outputs` in, a scalar out: one class per published loss."""

from videokd.losses.features import ClipFeatures, FrameFeatures
from videokd.losses.logits import CrossEntropy, SoftTargets
from videokd.losses.loss import Loss, Pair
from videokd.losses.temporal import TemporalAffinity, TemporalDifference

__all__ = [
    "ClipFeatures",
    "CrossEntropy",
    "FrameFeatures",
    "Loss",
    "Pair",
    "SoftTargets",
    "TemporalAffinity",
    "TemporalDifference",
]
