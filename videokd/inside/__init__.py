"""What a trained network is like inside, beside its teacher: features, what it looks at, what can be read from it."""

from videokd.inside.looking import INSIDE, Fold, look, read, steps, write
from videokd.inside.saliency import Strip, strips

__all__ = ["INSIDE", "Fold", "Strip", "look", "read", "steps", "strips", "write"]
