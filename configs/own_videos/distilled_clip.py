"""The same student, taught by CLIP without any training: what it sees in the frames, and the names of your classes.

videokd train own_videos/distilled_clip.py --out runs/distilled_clip --data.path VIDEOS

The extra `hf` is needed. CLIP's soft labels are the similarity of the clip to each class name, so name the classes in
words; `videokd evaluate` tells what they are worth only for models that were trained here.
"""

from dataclasses import replace
from pathlib import Path

from videokd.contracts import Dense, InputSpec
from videokd.distill import Term
from videokd.losses import ClipFeatures, CrossEntropy, FrameFeatures, SoftTargets
from videokd.models import ClassNames, HuggingFaceImages
from videokd.recipe import PublishedTeacher, load

alone = load(Path(__file__).with_name("alone.py"))
CLIP = "openai/clip-vit-base-patch32"

recipe = replace(
    alone,
    teachers={
        "pictures": PublishedTeacher(
            model=HuggingFaceImages(
                source=CLIP,
                # Every second frame of the student's eight.
                input=InputSpec(
                    frames=4,
                    size=224,
                    sampling=Dense(stride=8),
                    mean=(0.48145466, 0.4578275, 0.40821073),
                    std=(0.26862954, 0.26130258, 0.27577711),
                ),
            )
        ),
        "words": PublishedTeacher(model=ClassNames(source=CLIP)),
    },
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.5),
        "soft": Term(loss=SoftTargets(temperature=1.0), weight=0.5, teacher="pictures"),
        "frames": Term(loss=FrameFeatures(), weight=1.0, warmup=0.1, teacher="pictures"),
        "words": Term(loss=ClipFeatures(), weight=0.5, warmup=0.1, teacher="words"),
    },
)
