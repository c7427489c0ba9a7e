"""The same student, taught by a published VideoMAE: its features, since its classes are Kinetics' and not yours.

videokd train own_videos/distilled_videomae.py --out runs/distilled_videomae --data.path VIDEOS
videokd taps own_videos/distilled_videomae.py          # what there is to compare

The extra `hf` is needed. `source` may be a folder, too; fine-tuned on your classes, its logits can teach as well.
"""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import ClipFeatures, CrossEntropy, FrameFeatures, TemporalAffinity
from videokd.models import HuggingFaceVideo
from videokd.recipe import PublishedTeacher, load

alone = load(Path(__file__).with_name("alone.py"))

recipe = replace(
    alone,
    teachers={
        "videomae": PublishedTeacher(model=HuggingFaceVideo(source="MCG-NJU/videomae-base-finetuned-kinetics")),
    },
    objective={
        "hard": Term(loss=CrossEntropy()),
        "frames": Term(loss=FrameFeatures(), weight=1.0, warmup=0.1, teacher="videomae"),
        "middle": Term(
            loss=FrameFeatures(student_tap="stage4", teacher_tap="block6"), weight=0.5, warmup=0.1, teacher="videomae"
        ),
        "affinity": Term(loss=TemporalAffinity(), weight=0.5, warmup=0.1, teacher="videomae"),
        "clip": Term(loss=ClipFeatures(), weight=0.5, warmup=0.1, teacher="videomae"),
    },
)
