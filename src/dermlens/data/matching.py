"""Finding the file of each image that a table lists."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dermlens.data.annotation_classes import Annotations
from dermlens.data.annotation_rows import image_name
from dermlens.data.sources import Member, MemberReader, Survey, the_one
from dermlens.errors import DataError


@dataclass
class Source:
    """Image and outline files by image_id, and sentences about how they were found."""

    images: dict[str, Member] = field(default_factory=dict)
    outlines: dict[str, Member] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def match(known: Annotations, found: Survey, folder: Path) -> Source:
    """Find the files of the images of a table.

    Names are compared without regard to case where there is no exact one. Folders in the table
    tell files of one name apart.

    Raises:
        DataError: If no image is there, an image has no row in a strict format, or two different
            files could be one image.
    """
    reader, source = MemberReader(), Source()
    if not found.images:
        raise DataError(
            f"No image found in {folder}. Put the images there, in folders or in archives such as "
            "HAM10000_images_part_1.zip and _part_2.zip."
        )
    _refuse_or_note_strangers(known, found)
    images, outlines = _Files(found.images), _Files(found.outlines)
    copies = 0
    owners: dict[str, list[str]] = {}
    for where, image_id in zip(known.table.listed_as, known.table.image_id, strict=True):
        candidates = images.of(where)
        if candidates:
            source.images[image_id] = the_one(candidates, f"the image {image_id}", reader)
            copies += len(candidates) > 1
            owners.setdefault(image_name(where, ""), []).append(image_id)
    if not source.images:
        raise DataError(
            f"None of the {len(known.table):,} images of the table is in {folder}, the first is "
            f"{known.table.image_id.iloc[0]}. Check that table and images belong together."
        )
    for stem, image_ids in owners.items():
        candidates = outlines.of(stem)
        if candidates and len(image_ids) == 1:
            name = f"the outline of {image_ids[0]}"
            source.outlines[image_ids[0]] = the_one(candidates, name, reader)
    if copies:
        source.notes.append(
            f"{copies:,} images occur in several places with the same content; one is used."
        )
    return source


def _refuse_or_note_strangers(known: Annotations, found: Survey) -> None:
    strangers = sorted(name for name in found.images if name.lower() not in known.listed)
    if strangers and known.strict:
        raise DataError(
            f"{len(strangers)} image(s) have no metadata row, the first is {strangers[0]} "
            f"({found.images[strangers[0]][0].label()}). Add the rows or remove the images."
        )
    for name in strangers:
        found.leave_out("has no row in the table", found.images[name][0].label())


class _Files:
    """Looks files up by the name a table gives them."""

    def __init__(self, members: dict[str, list[Member]]) -> None:
        self._exact = members
        self._any_case: dict[str, list[Member]] = {}
        for name, several in members.items():
            self._any_case.setdefault(name.lower(), []).extend(several)

    def of(self, where: str) -> list[Member]:
        """Return the files that could be meant."""
        name = image_name(where, "")
        candidates = self._exact.get(name) or self._any_case.get(name.lower(), [])
        folders = PurePosixPath(where.replace("\\", "/")).parent.parts
        if not folders:
            return candidates
        wanted = tuple(part.lower() for part in folders)
        inside = [
            one
            for one in candidates
            if tuple(p.lower() for p in one.place.parent.parts)[-len(wanted) :] == wanted
        ]
        return inside or candidates
