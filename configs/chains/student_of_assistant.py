"""The second link of the chain that `assistant.py` begins: the same student as ever, taught by the assistant."""

from dataclasses import replace

from videokd.recipe import TrainedTeacher, load

kd = load("methods/kd.py")

recipe = replace(kd, teachers={"teacher": TrainedTeacher(checkpoint="runs/chain/assistant", remember=True)})
