"""The parts of the web page as HTML: title, banner, and where the evidence of an image lies."""

import numpy as np

from dermlens.model.bundle import Bundle
from dermlens.report.facts import of_skin, percent, words
from dermlens.report.figures import strongest
from dermlens.report.html import CLINICAL, NOTICE
from dermlens.report.layers import Canvas, checked_color_map, layers, outlined, smaller
from dermlens.report.verdict import caption
from dermlens.serve.app_actions import AS_IT_IS, Actions, Analysis, Wish

TITLE = "dermlens"
_BESIDE = 3
"""Classes shown beside the one asked for, if each is probable or cannot be excluded."""


def banner(bundle: Bundle) -> str:
    """Return what stands above everything."""
    more = f" {CLINICAL}" if of_skin(bundle.labels) else ""
    return f'<div class="dl-banner" role="note"><strong>{NOTICE}</strong>{more}</div>'


def empty(bundle: Bundle) -> str:
    """Return what stands where the verdict is going to be."""
    return (
        f'<div class="dl-empty">Upload, paste or photograph {_an(words(bundle.labels).image)}. '
        "The result appears here.</div>"
    )


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def header(bundle: Bundle) -> str:
    """Return the title, and a warning where the model has seen drawings only."""
    warning = ""
    if bundle.synthetic:
        warning = (
            '<div class="dl-flag"><strong>This model was trained on drawn images only.</strong> '
            "Use the drawn examples: what it says about a photograph means nothing.</div>"
        )
    return (
        f'<div class="dl-head"><h1>{TITLE}</h1><p>What does the network see in '
        f"{_an(words(bundle.labels).image)}, and where does it look?</p></div>{warning}"
    )


def canvas_of(analysis: Analysis, wish: Wish, lesion: np.ndarray | None = None) -> Canvas:
    """Return what maps of an analysis are drawn over."""
    return Canvas(analysis.display, checked_color_map(wish.color_map), lesion, analysis.box)


def evidence(
    actions: Actions,
    analysis: Analysis,
    target: int,
    wish: Wish = AS_IT_IS,
    lesion: np.ndarray | None = None,
) -> str:
    """Return the Grad-CAM of a class and of those it competes with, on one scale.

    The photograph alone where the model abstains, unless a class is to be named anyway; and with
    the reason where the model has no Grad-CAM.
    """
    canvas = canvas_of(analysis, wish, lesion)
    if analysis.abstains and not wish.anyway:
        return outlined(canvas)
    values = actions.map_of(analysis, target)
    if values is None:
        return outlined(canvas) + caption(
            f"There is no Grad-CAM of this model. {actions.without_maps}"
        )
    maps = {target: values}
    if len(analysis.maps):
        order = np.argsort(-analysis.probabilities, kind="stable").tolist()
        likely = [k for k in order if k in order[:2] or k in (analysis.prediction_set or ())]
        maps |= {k: analysis.maps[k] for k in likely[: 1 + _BESIDE] if k != target}
    top = max(map(strongest, maps.values()))
    small, drawn = smaller(canvas), ""
    for position, one in maps.items():
        name = actions.bundle.labels.labels[position].name
        chance, score = percent(analysis.probabilities[position]), analysis.logits[position]
        note = f"Probability {chance}, score {score:.1f}."
        if one.max() <= 0:
            note = f"Nothing in the image raises the score of {name}: the map is empty."
        drawn += layers(
            canvas if position == target else small,
            one,
            signed=False,
            text=f"Grad-CAM heat map for {name}",
            limits=(0.0, top) if top > 0 else None,
            name=f"Grad-CAM: {name}",
            note=note,
        )
    return drawn
