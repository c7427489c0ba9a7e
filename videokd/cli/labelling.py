"""The command that stores teacher outputs."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from videokd import recipe as recipes
from videokd.assembly import assemble
from videokd.cli.options import CONSOLE, take_trust, trust_arguments, wants_usage
from videokd.label import Stopped, audit
from videokd.label import label as label_clips
from videokd.recipe import Recipe
from videokd.records import StoredType
from videokd.store import StoredOutputs

_USAGE = (
    "usage: videokd label RECIPE [--views K] [--shard i/n] [--out DIR] [--trust NAME] [--FIELD VALUE ...], or, to "
    "check what is stored, videokd label RECIPE --audit SHARE --out DIR; videokd label RECIPE --help lists all fields"
)


@dataclass(frozen=True)
class _LabelCommand:
    out: Path
    """Folder for the outputs; other shards of the same may be there already."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    views: int | None = None
    """Views of every clip; the recipe's data.views if not given."""
    shard: str = "1/1"
    """i/n: the i-th of n parts of the clips. Shards run in any order, on any machines, at the same time."""
    batch_size: int = 32
    """Clips at once."""
    dtype: StoredType = "float16"
    """Of logits and features."""
    top_k: int | None = None
    """Keep so many of the likeliest classes and the mass of the rest; all logits if not given."""


def label(arguments: Sequence[str]) -> None:
    """`videokd label RECIPE [--views K] [--shard i/n] [--out DIR] [--audit SHARE] [--FIELD VALUE ...]`."""
    if wants_usage(arguments, _USAGE):
        return
    source, (trust, options) = arguments[0], take_trust(arguments[1:])
    command = tyro.cli(
        _LabelCommand,
        default=_LabelCommand(out=Path("stored") / Path(source).stem, recipe=recipes.load(source, trust=trust)),
        args=options,
        prog=f"videokd label {source}",
        description="Runs the recipe's teachers over its training clips and stores what they say. Every field of the "
        "recipe can be overridden; with --audit, nothing is stored, and a share of what is there is checked.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    if command.recipe.audit:
        _audit(command)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("label is not for torchrun: start one `videokd label ... --shard i/n` for each GPU instead")
    try:
        missing = label_clips(
            command.recipe,
            command.out,
            views=command.views,
            shard=_shard(command.shard),
            batch_size=command.batch_size,
            dtype=command.dtype,
            top_k=command.top_k,
            console=CONSOLE,
        )
    except Stopped as stop:
        stop.add_command(f"videokd label {shlex.join(arguments)}")
        raise
    if missing:
        shards = int(command.shard.partition("/")[2])
        named = ", ".join(f"{number}/{shards}" for number in missing[:8]) + (", ..." if len(missing) > 8 else "")
        CONSOLE.print(f"{command.out}: {len(missing)} of {shards} shards are missing: {named}")
        return
    views = StoredOutputs(command.out).views
    train = ["videokd", "train", source, *trust_arguments(trust), *_of_recipe(options)]
    CONSOLE.print(f"{command.out} is whole. Train with it:")
    CONSOLE.print(f"{shlex.join(train)} --stored {shlex.quote(str(command.out))} --data.views {views}")


def _audit(command: _LabelCommand) -> None:
    usual = {field.name: field.default for field in fields(_LabelCommand)}
    for name in ("shard", "batch_size", "dtype", "top_k"):
        if getattr(command, name) != usual[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(command, name)} says how outputs are stored; --audit checks all "
                f"that is stored in {command.out} as it was stored: leave it out"
            )
    views = command.views or StoredOutputs(command.out).views
    data = replace(command.recipe.data, views=views)
    made = assemble(replace(command.recipe, stored=str(command.out), data=data), console=CONSOLE)
    audit(made, share=command.recipe.audit, seed=command.recipe.seed, console=CONSOLE)


def _shard(text: str) -> tuple[int, int]:
    number, _, shards = text.partition("/")
    if not number.isdecimal() or not shards.isdecimal():
        raise ValueError(f"--shard is i/n, such as 1/4 for the first of four, got {text!r}")
    return int(number), int(shards)


def _of_recipe(options: Sequence[str]) -> list[str]:
    """The options that are fields of the recipe, and not this command's own; nor what training is told anyway."""
    own = {f"--{field.name.replace('_', '-')}" for field in fields(_LabelCommand)} | {"--data.views", "--stored"}
    kept, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        is_own = option.partition("=")[0].replace("_", "-") in own
        values = [option]
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if not is_own:
            kept += values
    return kept
