"""The four experiments on one image as HTML: the same on the web page and in the report."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from dermlens.explainers.base import Attribution
from dermlens.explainers.contrast import ClassContrast
from dermlens.explainers.multiscale import KINDS, MultiScaleResult
from dermlens.explainers.registry import method
from dermlens.quality.localization import relevance_mass
from dermlens.report import cases_view
from dermlens.report.comparison import Agreement, Comparison, Discrimination, agreement_with_others
from dermlens.report.facts import class_name, counted, percent, title, words
from dermlens.report.figures import colorize, strongest
from dermlens.report.layers import Canvas, layers
from dermlens.report.trust import LARGE_COMPLETENESS_GAP, LOW_AGREEMENT, LOW_R2
from dermlens.report.verdict import caption

_MEASURES = {
    "spearman": "Rank correlation",
    "ssim": "Structural similarity",
    "top_20_iou": "Overlap of strongest 20 %",
}
_KIND_TITLES = {
    "depth": "Depth of the network (Layer-CAM)",
    "patch": "Size of the covered patch (occlusion)",
    "superpixels": "Number of pieces (Shapley values)",
}
_SIDE_BY_SIDE = (
    "Each method answers its own question, so maps may differ and all be right. Two-sided scales "
    "show evidence for and against, one-sided ones evidence for only. Each map is scaled to its "
    "own strongest values, which stand at the ends of its scale; where there is no evidence the "
    "photograph is untouched."
)
_AGREE = (
    "Maps are first smoothed to a common resolution. Rank correlation compares the order of all "
    "places (1 same, 0 unrelated, -1 opposite), structural similarity the look of the evidence, "
    "overlap the strongest fifth (0.11 is chance). Methods of one family agree by construction."
)
_AT_SCALES = (
    "Does the explanation depend on how finely one looks? Trust what is there at all scales. "
    "Shallow stages show edges and texture that may never reach the decision."
)


class Part(NamedTuple):
    """One part of a comparison: its heading, a paragraph of plain text, and HTML."""

    title: str
    text: str
    content: str


def parts(canvas: Canvas, state: Comparison) -> list[Part]:
    """Return what is ready of a comparison, the summary first."""
    found = [_summary(state)] if state.summary is not None else []
    if state.combined:
        name = state.labels.of(state.target).name
        known = state.agreement
        agreed = (
            {}
            if known is None
            else agreement_with_others(known.methods, known.matrices["spearman"])
        )
        drawn = method_cards(canvas, state.combined, name, agreed)
        found.append(Part("1. Methods side by side", _SIDE_BY_SIDE, grid(drawn)))
    if state.agreement is not None:
        content = _agreement(canvas, state.agreement)
        found.append(Part("2. How far they agree", _AGREE, content))
    if state.scales is not None:
        found.append(Part("3. Several scales", _AT_SCALES, _scales(canvas, state.scales)))
    elif "scales" in state.missing and state.agreement is not None:
        found.append(Part("3. Several scales", f"Left out. {state.missing['scales']}", ""))
    if state.discrimination is not None:
        scaled = state.scales is not None or "scales" in state.missing
        found.append(_discrimination(canvas, state, state.discrimination, 4 if scaled else 3))
        if state.cases is not None:
            text = cases_view.about(state.cases, state.labels)
            drawn = cases_view.cases_html(state.cases, state.labels, state.pictures)
            found.append(Part(f"{5 if scaled else 4}. {cases_view.TITLE}", text, drawn))
    return found


def method_cards(
    canvas: Canvas, results: Mapping[str, Attribution], name: str, agreement: Mapping[str, float]
) -> str:
    """Return one card per method, for the class ``name``."""
    drawn = []
    for key, result in results.items():
        entry = method(key)
        text = f"{entry.title} map for {name}"
        picture = layers(canvas, result.maps[0], signed=result.signed, text=text, name=entry.title)
        drawn.append(
            f'<article class="dl-card"><h3>{escape(entry.title)}</h3>'
            f'<p class="dl-question">{escape(entry.question)}</p>{picture}'
            f"{_checks(result, agreement.get(key), canvas.lesion)}"
            f"{caption(_cost(result, results))}</article>"
        )
    return "".join(drawn)


def grid(cards: str, kind: str = "") -> str:
    """Return cards side by side; ``dl-small`` makes them small."""
    return f'<div class="dl-cards {kind}">{cards}</div>'


def _card(heading: str, picture: str, note: str = "") -> str:
    return f'<article class="dl-card"><h4>{escape(heading)}</h4>{picture}{caption(note)}</article>'


def _cost(result: Attribution, others: Mapping[str, Attribution]) -> str:
    """Return what a map cost; ``others`` are those that may have shared their passes with it."""
    forward, backward = result.cost.forward, result.cost.backward
    seconds = f"{result.cost.seconds:.1f} s"
    if forward + backward == 0:
        # LIME and Shapley values share their masks; so does an image that is explained again.
        shared = [
            method(name).title
            for name, one in others.items()
            if method(name).superpixels and one.cost.forward
        ]
        return f"Reused {shared[0] if shared else 'an earlier run'}'s results, {seconds}."
    passes = counted(forward, "forward pass", "forward passes")
    if backward:
        passes += f" and {counted(backward, 'backward pass', 'backward passes')}"
    copied = " of the int8 copy" if result.facts().get("scorer") == "int8" else ""
    return f"{passes}{copied}, {seconds}."


_MEANINGS = {
    "convergence delta": "The share of the change of score that the map does not account for. "
    "Small is good.",
    "R²": "How much of the score's variation LIME's linear model explains. 1 is all of it.",
    "agreement": "Mean rank correlation with the other maps here: 1 same order, 0 unrelated, "
    "-1 opposite.",
    "inside": "The share of the evidence that lies inside the outline, and the share of the "
    "picture that the outline covers.",
}
"""What the numbers beside a map mean."""


def glossary() -> dict[str, str]:
    """Return what the numbers beside a map mean, by their names."""
    return {title(name): text for name, text in _MEANINGS.items()}


def _checks(result: Attribution, agreement: float | None, lesion: np.ndarray | None) -> str:
    """Return the numbers that say how far a map can be trusted, marked where they are bad."""
    gap, fit = (result.facts().get(key) for key in ("convergence_delta", "r2"))
    found = []
    if gap is not None:
        found.append(("convergence delta", f"{gap:.2f}", not gap <= LARGE_COMPLETENESS_GAP))
    if fit is not None:
        found.append(("R²", f"{fit:.2f}", not fit >= LOW_R2))
    if agreement is not None:
        found.append(("agreement", f"{agreement:.2f}", not agreement >= LOW_AGREEMENT))
    if lesion is not None and lesion.any():
        inside = float(relevance_mass(result.maps, lesion[None])[0])
        area = float(lesion.mean())
        text = f"{percent(inside)} on {percent(area)} of the picture"
        found.append(("inside", text, inside <= area))
    items = "".join(
        f'<li{" class=dl-bad" * bad} title="{escape(_MEANINGS[name], quote=True)}">'
        f"{name} {text}{': doubtful' * bad}</li>"
        for name, text, bad in found
    )
    return f'<ul class="dl-checks" aria-label="Checks">{items}</ul>' if items else ""


def _summary(state: Comparison) -> Part:
    assert state.summary is not None
    doubts = "".join(f"<li>{escape(doubt.text)}</li>" for doubt in state.summary.doubts)
    kind, verdict = "dl-doubt" if doubts else "dl-calm", escape(state.summary.verdict)
    listed = f"<ul>{doubts}</ul>" if doubts else ""
    sentences = "".join(f"<p>{escape(text)}</p>" for text in state.summary.sentences.values())
    lesion = words(state.labels).lesion
    tested = ", and were not validated on patients" if state.labels.flags else ""
    return Part(
        "Summary",
        "",
        f'<div class="dl-flag {kind}"><strong>{verdict}</strong>{listed}</div>'
        f'<div class="dl-summary">{sentences}</div>'
        + caption(
            f"Thresholds are rules of thumb, explained in the documentation{tested}. A map shows "
            f"what moved this model, not what is true of the {lesion}."
        ),
    )


def _agreement(canvas: Canvas, agreement: Agreement) -> str:
    names = [method(name).title for name in agreement.methods]
    tables = ""
    for measure, matrix in agreement.matrices.items():
        first, heading = measure == "spearman", escape(_MEASURES[measure])
        table = matrix_table(matrix, names, signed=first)
        shown = f"<h4>{heading}</h4>{table}"
        folded = f"<summary>{heading}</summary><div>{table}</div>"
        tables += shown if first else f'<details class="dl-second">{folded}</details>'
    mean = agreement.between_families
    if np.isfinite(mean):
        doubt = f", below {LOW_AGREEMENT:g}: they disagree" if mean < LOW_AGREEMENT else ""
        tables += caption(f"Mean between families: {mean:.2f}{doubt}.")
    consensus = layers(
        canvas,
        agreement.consensus,
        signed=False,
        text="Consensus of the methods",
        ends=("ranked low by all", "ranked high by all"),
        limits=(0.0, 1.0),
    )
    disagreement = layers(
        canvas,
        agreement.disagreement,
        signed=False,
        text="Disagreement of the methods",
        ends=("none", "most possible"),
        # The largest spread that ranks can have.
        limits=(0.0, 0.5),
    )
    return tables + grid(
        _card("Consensus", consensus, "Mean rank. Bright: places that all methods rank high.")
        + _card(
            "Disagreement",
            disagreement,
            "Spread of ranks. Bright: places that some rank high and others low; do not rely on a "
            "single map there.",
        )
    )


def matrix_table(matrix: np.ndarray, names: Sequence[str], *, signed: bool) -> str:
    """Return a matrix of agreement as a table whose cells have the color of their value."""
    values = np.clip(np.nan_to_num(matrix), -1, 1)
    colors = colorize(values, signed=signed, color_map=None if signed else "Blues")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    # Adding zero turns a rounded -0.00 into 0.00.
    shown = np.round(matrix, 2) + 0.0
    for name, row, painted in zip(names, shown, colors, strict=True):
        cells = "".join(
            f'<td style="background:rgb({r},{g},{b});color:{_ink(r, g, b)}">{value:.2f}</td>'
            for value, (r, g, b) in zip(row, painted.tolist(), strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="dl-scroll"><table class="dl-matrix"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _ink(red: int, green: int, blue: int) -> str:
    """Return the text color with the larger contrast (WCAG relative luminance)."""
    share = np.array([red, green, blue]) / 255
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return "#fff" if linear @ (0.2126, 0.7152, 0.0722) < 0.179 else "#000"


def _scales(canvas: Canvas, scales: MultiScaleResult) -> str:
    fused = layers(canvas, scales.fused, signed=True, text="All scales fused")
    rows = [grid(_card("All scales fused", fused, "Kinds of scale weigh alike."))]
    for kind in KINDS:
        drawn = ""
        for one in scales.of_kind(kind):
            text = f"Map at the scale {one.label}"
            ends = None if one.signed else ("least", "most")
            picture = layers(canvas, one.values, signed=one.signed, text=text, ends=ends)
            drawn += _card(one.label, picture)
        if drawn:
            rows.append(f"<h4>{escape(_KIND_TITLES[kind])}</h4>{grid(drawn, 'dl-small')}")
    return "".join(rows)


def _discrimination(canvas: Canvas, state: Comparison, found: Discrimination, number: int) -> Part:
    one, drawn, tops = words(state.labels).one, "", dict[str, float]()
    for contrasts in found.contrasts.values():
        for each in contrasts:
            tops[each.method] = max(tops.get(each.method, 0.0), strongest(each.values))
    for position, contrasts in found.contrasts.items():
        other = state.classes[position]
        names = [class_name(state.labels, code) for code in (state.target, other)]
        cards = "".join(_contrast(canvas, each, names, tops[each.method]) for each in contrasts)
        if cards:
            drawn += f"<h4>{escape(title(' or '.join(names)))}</h4>{grid(cards)}"
    if found.left_out:
        listed = ", ".join(method(name).title for name in found.left_out)
        reasons = "; ".join(dict.fromkeys(found.left_out.values()))
        drawn += caption(f"Without a contrast: {listed} ({reasons}).")
    return Part(
        f"{number}. Why this {one} and not another",
        f"The logit of one {one} minus that of another is explained. Discrimination says how much "
        "of the evidence for the two lies in different places: 0 the same places, 1 no place in "
        "common. Near 0 the maps do not show why one was preferred. A method's maps against "
        "several classes have one scale.",
        drawn,
    )


def _contrast(canvas: Canvas, one: ClassContrast, names: list[str], top: float) -> str:
    target, other = names
    name = method(one.method).title
    picture = layers(
        canvas,
        one.values,
        signed=True,
        text=f"{name}: where the image speaks for {target} rather than {other}",
        ends=(f"for {other}", f"for {target}"),
        limits=(-top, top) if top > 0 else None,
        name=f"{name}: {target} or {other}",
    )
    share = percent(one.share_for_other)
    return _card(name, picture, f"Discrimination {one.discrimination:.2f}; {share} for {other}.")
