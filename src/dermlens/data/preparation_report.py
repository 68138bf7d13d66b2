"""What people are told about a data set that was prepared."""

from collections.abc import Sequence
from typing import Any

from dermlens.data.masks import UNUSABLE
from dermlens.data.sources import Survey

_NAMED = 5


def described(facts: dict[str, Any], added: int, reused: int, left_out: Sequence[str]) -> list[str]:
    """Say for people what was brought in, what was left out, and what looks wrong.

    Args:
        facts: The content of ``dataset.json``.
        added: Images that were new this time.
        reused: Images that were there.
        left_out: Sentences about files that are not used.
    """
    whose = f"{facts['n_lesions']:,} lesions"
    if "n_patients" in facts:
        whose += f" of {facts['n_patients']:,} patients"
    lines = [
        f"{facts['n_images']:,} images of {whose}, {facts['n_masks']:,} with an outline "
        f"({added:,} new, {reused:,} kept).",
        "Images per diagnosis: " + ", ".join(f"{k} {v}" for k, v in facts["per_class"].items()),
        *facts.get("notes", []),
    ]
    if facts["n_missing_images"]:
        lines.append(
            f"{facts['n_missing_images']:,} of {facts['n_metadata_rows']:,} metadata rows have "
            "no image here; their ids are in dataset.json. Images found are complete."
        )
    for name, words in (("unmapped_labels", "without a class"), ("left_out_labels", "not wanted")):
        labels = facts.get(name) or {}
        if labels:
            listed = ", ".join(f"{label!r} {count:,}" for label, count in labels.items())
            rows = sum(labels.values())
            lines.append(f"Left out: {_counted(rows, 'image')} with labels {words}: {listed}.")
    lines += left_out
    for flaw, images in sorted((facts.get("outline_flaws") or {}).items()):
        what = "left out" if flaw in UNUSABLE else "kept; check that they are not inverted"
        lines.append(f"Outlines, {flaw}: {_some(list(images))} ({what}).")
    if lesions := facts.get("conflicting_lesions"):
        verb = "has" if len(lesions) == 1 else "have"
        lines.append(
            f"{_counted(len(lesions), 'lesion')} {verb} images with different diagnoses: "
            f"{_some(lesions)}."
        )
    for same in (facts.get("conflicting_images") or [])[:_NAMED]:
        lines.append(f"{_some(same)} are the same picture with different diagnoses.")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def left_out_lines(found: Survey) -> list[str]:
    """Say which files of a source are not used, and why."""
    return [
        f"Left out: {_counted(len(names), 'file')} that "
        f"{_plural(why) if len(names) > 1 else why} ({_some(names)})."
        for why, names in sorted(found.left_out.items())
    ]


def _plural(why: str) -> str:
    verb, _, rest = why.partition(" ")
    verbs = {"is": "are", "has": "have", "lies": "lie", "shows": "show", "belongs": "belong"}
    return f"{verbs.get(verb, verb)} {rest}"
