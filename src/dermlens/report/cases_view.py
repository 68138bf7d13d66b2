"""The nearest cases in words and as HTML: the same on the web page and in reports.

Every statement carries the number that it rests on. Pictures of cases are shown only from a data
set that the user has.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np

from dermlens.data.images import load_image
from dermlens.data.manifest import read_manifest
from dermlens.errors import DataError
from dermlens.explainers.nearest_cases import CasesOf, NearestCases
from dermlens.labels import LabelSet
from dermlens.model.case_index import FAR_SHARE, Case, Tally
from dermlens.report.facts import class_name, percent, title, words
from dermlens.report.layers import photograph
from dermlens.report.verdict import caption

_GROUNDS = {
    "histo": "histopathology",
    "follow_up": "follow-up",
    "consensus": "expert consensus",
    "confocal": "confocal microscopy",
}
"""How HAM10000 says that a diagnosis was established."""
TITLE = "Known cases like this one"
_WIDTH = 240
"""Pixels of a case's picture."""
Pictures = Mapping[str, np.ndarray]
"""uint8 RGB (h, w, 3) by image id."""


class CasePictures:
    """Pictures of cases from a prepared data set, as far as it holds them.

    Raises DataError if a data set that is given cannot be read.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = None if data is None else Path(data)
        if self._data is not None:
            assert self._paths is not None

    @cached_property
    def _paths(self) -> dict[str, Path]:
        if self._data is None:
            return {}
        table = read_manifest(self._data)
        return {i: self._data / p for i, p in zip(table.image_id, table.path, strict=True)}

    def of(self, found: NearestCases) -> dict[str, np.ndarray]:
        """Return the pictures of the cases that are shown; those that cannot be read are left out.

        Returns:
            uint8 RGB (h, w, 3) by image id.
        """
        pictures = {}
        for case in (case for one in found.leading for case in one.nearest[: one.close]):
            if case.image_id not in self._paths:
                continue
            try:
                pictures[case.image_id] = _smaller(load_image(self._paths[case.image_id]))
            except DataError:
                continue
        return pictures


def _smaller(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((_WIDTH, _WIDTH))
    return np.asarray(picture)


def ground(case: Case) -> str:
    """Return how the diagnosis of a case was established, in words."""
    return _GROUNDS.get(case.dx_type, case.dx_type) or "not told"


def sentences(found: NearestCases, labels: LabelSet) -> list[str]:
    """Return what the nearest cases say of the answer, each with the number it rests on."""
    name, measured = class_name(labels, found.answer), found.measured
    said = [
        f"{found.agreeing} of the {len(found.nearest)} most similar known "
        f"{words(labels).lesion}s have the {words(labels).one} that is answered, {name}."
    ]
    others = Counter(case.dx for case in found.nearest if case.dx != found.answer)
    if others:
        listed = (f"{class_name(labels, code)} ({count})" for code, count in others.most_common())
        said[0] += f" The others: {', '.join(listed)}."
    answers, tallies = measured.answers, measured.agreeing
    if found.region:
        said[0] += " Agreement was measured on whole images, so it is not known what it means here."
    elif not found.known and len(found.nearest) < len(tallies) and tallies[found.agreeing].images:
        same = tallies[found.agreeing]
        said[0] += (
            f" Of {same.images:,} {measured.split} images with as many, {_right(same)} were "
            f"answered rightly; of all {answers.images:,}, {_right(answers)}."
        )
    return said + [text for one in found.leading if (text := _far(found, one, labels))]


def _far(found: NearestCases, one: CasesOf, labels: LabelSet) -> str:
    """Return that a diagnosis has no close case, and what that was worth; nothing if it has one."""
    if one.close:
        return ""
    name, measured = class_name(labels, one.code), found.measured
    if not one.nearest:
        return f"No case of {name} is known."
    share, split = 1 - FAR_SHARE, "validation"
    if measured.answers.images:
        share = 1 - measured.own_without_close / measured.answers.images
        split = measured.split
    where = " seen as a whole; of a part, similarities are lower" if found.region else ""
    text = (
        f"No close case of {name}: the most similar one reaches {one.nearest[0].similarity:.2f}, "
        f"less than {found.threshold:.2f}, which a case of their own {words(labels).one} reaches "
        f"for {percent(share)} of {split} images{where}."
    )
    far = measured.without_close
    if one.code == found.answer and far.images and not (found.region or found.known):
        text += (
            f" Of {far.images:,} {measured.split} images whose answer had none, {_right(far)} were "
            "answered rightly."
        )
    return text


def _right(tally: Tally) -> str:
    return percent(tally.right / tally.images)


def known_note(found: NearestCases, labels: LabelSet) -> str:
    """Return that the model learned from this very photograph; nothing if it did not."""
    if not found.known:
        return ""
    return (
        f"The model learned from this very photograph ({found.known}), so its answer proves "
        f"nothing. Its own {words(labels).lesion} is left out here."
    )


def about(found: NearestCases, labels: LabelSet) -> str:
    """Return what similarity means, and what it does not."""
    where = f"in the part that {found.region} marks" if found.region else "in the whole image"
    return (
        f"Known {words(labels).lesion}s that the model learned from, one image of each, most "
        f"similar first: alike {where} for the network, by the cosine of its whitened features (1 "
        "the same, 0 unrelated), not for a reader. Close is what reaches "
        f"{found.threshold:.2f}. Likeness is no proof of a {words(labels).one}."
    )


def cases_html(found: NearestCases, labels: LabelSet, pictures: Pictures | None = None) -> str:
    """Return the cases of both leading diagnoses, and what they say, as HTML."""
    note = known_note(found, labels)
    warned = f'<div class="dl-flag dl-doubt">{escape(note)}</div>' if note else ""
    said = "".join(f"<p>{escape(text)}</p>" for text in sentences(found, labels))
    groups = "".join(_group(one, labels, pictures or {}) for one in found.leading)
    return f'{warned}<div class="dl-summary">{said}</div>{groups}'


def _group(one: CasesOf, labels: LabelSet, pictures: Pictures) -> str:
    name = title(class_name(labels, one.code))
    heading = f"<h4>{escape(name)}, {percent(one.probability)}</h4>"
    if not one.close:
        return f"{heading}{caption('No close case.')}"
    cards = "".join(_card(case, name, pictures) for case in one.nearest[: one.close])
    return f'{heading}<div class="dl-cards dl-small dl-cases">{cards}</div>'


def _card(case: Case, name: str, pictures: Pictures) -> str:
    picture = pictures.get(case.image_id)
    shown = ""
    if picture is not None:
        alt = escape(f"{name}, case {case.image_id}", quote=True)
        shown = f'<img class="dl-case" src="{photograph(picture)}" alt="{alt}">'
    return (
        f'<article class="dl-card">{shown}<h4>Similarity {case.similarity:.2f}</h4>'
        f"<p>{escape(case.image_id)}</p><p>lesion {escape(case.lesion_id)}</p>"
        f"<p>by {escape(ground(case))}</p></article>"
    )
