"""What is done with which images, cut into shards."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dermlens.data.manifest import read_manifest
from dermlens.errors import UsageError
from dermlens.files import plain
from dermlens.progress import printable
from dermlens.schema import hold_to_plan

PLAN = "plan.json"
SHARD_SIZE = 256
"""Images: of Grad-CAM a minute or two of work on one core, and 14 MB of maps."""


@dataclass(frozen=True)
class Job:
    """What is done with every image; plain values, so that it can be sent to other processes.

    Attributes:
        kind: ``"predict"`` or ``"explain"``.
        bundle: Folder of the model, the same on every machine.
        model: Its fingerprint, so that no machine uses another model under the same path.
        settings: Everything else that results depend on, JSON types.
        custom: Layers of the user's own, ``module:Name``.
    """

    kind: str
    bundle: Path
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    custom: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """A slice of the images.

    Attributes:
        number: Its position, from 0.
        images: Id and absolute path of each image.
        plan: Fingerprint of the plan it belongs to.
    """

    number: int
    images: tuple[tuple[str, str], ...]
    plan: str

    @property
    def name(self) -> str:
        """What its files are called, without ending."""
        return f"shard-{self.number:05d}"


@dataclass(frozen=True)
class ShardPlan:
    """A job on all images; ``images`` are sorted by id and path, each path once."""

    job: Job
    images: tuple[tuple[str, str], ...]
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UsageError(f"The shard size must be at least 1, not {self.shard_size}.")

    def to_json(self) -> dict[str, Any]:
        """Return everything that the files depend on."""
        listed = "\n".join(printable(part) for image in self.images for part in image)
        described: dict[str, Any] = plain(
            {
                "kind": self.job.kind,
                "model": self.job.model,
                "settings": self.job.settings,
                "shard_size": self.shard_size,
                "images": len(self.images),
                "images_sha256": hashlib.sha256(listed.encode()).hexdigest(),
            }
        )
        return described

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def shards(self) -> list[Shard]:
        """Return all shards in order."""
        size, fingerprint = self.shard_size, self.fingerprint
        starts = range(0, len(self.images), size)
        return [
            Shard(number, self.images[start : start + size], fingerprint)
            for number, start in enumerate(starts)
        ]

    def claim(self, out: Path) -> None:
        """Write ``plan.json`` into a folder, unless it is there.

        Raises:
            UsageError: If the folder holds shards of another plan, or other files.
        """
        recorded = out / PLAN
        if not recorded.is_file():
            strange = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
            # Another job of the same array may have written it meanwhile.
            if strange and not recorded.is_file():
                raise UsageError(
                    f"{out} holds {printable(strange[0])}, which belongs to no shards. Choose "
                    "another --out."
                )
        hold_to_plan(recorded, self.to_json(), "shards that differ")


def listed_images(paths: Sequence[Path]) -> tuple[tuple[str, str], ...]:
    """Return id and absolute path of every image of a data set, or of files and folders, sorted.

    Raises:
        DataError: If there is no image.
    """
    from dermlens.serve.prediction import find_images

    places = [Path(path) for path in paths]
    if len(places) == 1 and (places[0] / "manifest.csv").is_file():
        table, data = read_manifest(places[0]), places[0].absolute()
        found = {
            str(data / path): str(name)
            for name, path in zip(table.image_id, table.path, strict=True)
        }
    else:
        found = {str(path.absolute()): path.stem for path in find_images(places)}
    return tuple(sorted((name, path) for path, name in found.items()))


def parse_part(text: str) -> tuple[int, int]:
    """Turn ``"17/400"`` into ``(17, 400)``.

    Raises:
        UsageError: If it is no such text.

    Example:
        >>> parse_part("17/400")
        (17, 400)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"{text!r} is no part of the work. Write which of how many, such as 17/400 for the "
            "17th of 400 jobs."
        )
    return int(match[1]), int(match[2])


def part_of(shards: Sequence[Shard], part: tuple[int, int] | None) -> list[Shard]:
    """Return every ``count``-th shard, from the ``which``-th on; all if there is no part."""
    which, count = part or (1, 1)
    return list(shards[which - 1 :: count])
