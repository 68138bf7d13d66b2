"""Predicting and explaining a data set in shards, from beginning to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dermlens.locks import folder_lock
from dermlens.progress import say
from dermlens.scale.engines import Engine, Task
from dermlens.scale.files import Manifest, is_done, write_manifest
from dermlens.scale.plan import Shard, ShardPlan, part_of
from dermlens.scale.work import passes_of, shard_maker


@dataclass(frozen=True)
class Outcome:
    """What a run has left.

    Attributes:
        manifest: Of all shards; None as long as some are missing.
        given_up: Shards that ended their worker every time.
    """

    manifest: Manifest | None
    given_up: tuple[Shard, ...]


def run_shards(
    plan: ShardPlan, out: Path, engine: Engine, part: tuple[int, int] | None = None
) -> Outcome:
    """Make the shards that are missing, and the manifest when all are there.

    Args:
        plan: What is done with which images.
        out: Folder to write.
        engine: Where it is done.
        part: Which of how many jobs this one is, where several share the work; None for all of it.

    Raises:
        UsageError: If ``out`` holds shards of another plan, or another run writes into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Jobs of one array write into the folder side by side.
    with folder_lock(out, shared=part is not None):
        plan.claim(out)
        shards = plan.shards()
        mine = part_of(shards, part)
        missing = [shard for shard in mine if not is_done(out, shard)]
        if len(missing) < len(mine):
            say(f"{len(mine) - len(missing)} of {len(mine)} shards are there.")
        passes = passes_of(plan.job)
        tasks = [
            Task(shard.name, shard, passes * len(shard.images), len(shard.images))
            for shard in missing
        ]
        title = {"predict": "Predicting", "explain": "Explaining"}[plan.job.kind]
        lost = engine.run(partial(shard_maker, plan.job, out.absolute()), tasks, title)
        given_up = tuple(task.what for task in lost)
        return Outcome(None if given_up else write_manifest(out, plan, shards), given_up)


def outcome_lines(outcome: Outcome, plan: ShardPlan, out: Path) -> Sequence[str]:
    """Return what is to be said at the end, a sentence a line."""
    lines = [
        f"{shard.name} was given up: it ended its worker each time. One of its images does that, "
        f"{shard.images[0][0]} to {shard.images[-1][0]}."
        for shard in outcome.given_up
    ]
    manifest = outcome.manifest
    if manifest is None:
        return [*lines, f"Some shards are missing in {out}. The same command goes on."]
    if manifest.errors:
        lines.append(
            f"{manifest.errors} of {manifest.rows} images could not be used; the column 'error' "
            "says why."
        )
    return [*lines, f"Wrote {out / 'manifest.json'}"]
