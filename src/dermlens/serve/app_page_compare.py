"""The Compare tab as HTML: each experiment as soon as it is ready, the summary first."""

from collections.abc import Sequence
from html import escape

import numpy as np

from dermlens.diagnoses import by_code
from dermlens.explain.contrast import ClassContrast
from dermlens.explain.multiscale import KINDS, MultiScaleResult
from dermlens.explain.registry import method
from dermlens.report.comparison import Agreement, Comparison
from dermlens.report.comparison_figures import DISAGREEMENT_MAP, MEASURE_TITLES
from dermlens.report.facts import diagnosis_name
from dermlens.report.figures import SIGNED_MAP, UNSIGNED_MAP, colorize
from dermlens.report.trust import LOW_AGREEMENT
from dermlens.serve.app_explaining import Progress
from dermlens.serve.app_layers import layers
from dermlens.serve.app_page import percent
from dermlens.serve.app_page_cards import busy, finished, method_cards, title_of

EMPTY_COMPARISON = """
<div class="dl-empty">All methods side by side, how far they agree, this diagnosis against another,
and several scales. Press <em>Compare</em>; each part appears as soon as it is ready.</div>
"""
_KIND_TITLES = {
    "depth": "Depth of the network",
    "patch": "Size of the covered patch",
    "superpixels": "Number of pieces",
}
_MOST_DISAGREEMENT = 0.5


def comparison(
    display: np.ndarray,
    progress: Progress,
    color_map: str = UNSIGNED_MAP,
    *,
    stopped: bool = False,
) -> str:
    """Return what is ready of a comparison, and what runs now.

    Args:
        display: The image at a size for screens, uint8 RGB (h, w, 3).
        progress: State of the comparison.
        color_map: For unsigned maps.
        stopped: Nothing runs any more.
    """
    state = progress.comparison
    parts = [_status(progress, stopped)]
    if state.summary is not None:
        parts.append(_summary(state))
    if state.combined:
        cards = method_cards(
            display, state.combined, by_code(state.target).name, _means(state.agreement), color_map
        )
        parts.append(_part("1. Methods side by side", _SIDE_BY_SIDE, _grid(cards)))
    if state.agreement is not None:
        parts.append(_agreement(display, state.agreement, color_map))
    if state.scales is not None:
        parts.append(_scales(display, state.scales, color_map))
    if state.discrimination is not None:
        parts.append(_discrimination(display, state))
    return "".join(parts)


_SIDE_BY_SIDE = (
    "Each method answers its own question, so maps may differ and all be right. Two-sided scales "
    "show evidence for (orange) and against (purple); one-sided ones evidence for only."
)
_AGREE = (
    "Maps are first smoothed to a common resolution. Rank correlation compares the order of all "
    "places: 1 same, 0 unrelated, -1 opposite. Methods of one family agree by construction."
)
_CONTRAST = (
    "The score of one diagnosis minus that of another is explained. Discrimination says how much "
    "of the evidence for the two lies in different places: near 0 the maps do not show why one was "
    "preferred."
)
_AT_SCALES = (
    "Does the explanation depend on how finely one looks? Trust what is there at all scales. "
    "Shallow stages show edges and texture that may never reach the decision."
)


def _status(progress: Progress, stopped: bool) -> str:
    if stopped and progress.running is not None:
        return finished(f"Stopped after {progress.done} of {progress.total} parts.")
    if progress.running is None:
        return finished("Complete. The report and the raw maps can be downloaded below.")
    text = f"{progress.done + 1} of {progress.total}: {title_of(progress.running)}."
    return busy(text, progress.done, progress.total, progress.seconds, progress.remaining)


def _part(title: str, text: str, content: str) -> str:
    return (
        f'<section class="dl-part"><h3>{escape(title)}</h3><p>{escape(text)}</p>{content}</section>'
    )


def _grid(cards: str, small: bool = False) -> str:
    return f'<div class="dl-cards{" dl-small" if small else ""}">{cards}</div>'


def _summary(state: Comparison) -> str:
    assert state.summary is not None
    doubts = "".join(f"<li>{escape(doubt.text)}</li>" for doubt in state.summary.doubts)
    kind = "dl-doubt" if doubts else "dl-calm"
    warned = (
        f'<div class="dl-flag {kind}"><strong>{escape(state.summary.verdict)}</strong>'
        + (f"<ul>{doubts}</ul>" if doubts else "")
        + "</div>"
    )
    sentences = "".join(f"<p>{escape(text)}</p>" for text in state.summary.sentences.values())
    return (
        '<section class="dl-part dl-summary"><h3>Summary</h3>'
        f'{warned}{sentences}<p class="dl-caption">Thresholds are rules of thumb and were not '
        "validated on patients. A map shows what moved this model, not what is true of the lesion."
        "</p></section>"
    )


def _means(agreement: Agreement | None) -> dict[str, float]:
    if agreement is None or len(agreement.methods) < 2:
        return {}
    matrix = agreement.matrices["spearman"]
    means = (matrix.sum(axis=1) - 1) / (len(matrix) - 1)
    return dict(zip(agreement.methods, map(float, means), strict=True))


def _agreement(display: np.ndarray, agreement: Agreement, color_map: str) -> str:
    names = [method(name).title for name in agreement.methods]
    ranks = matrix_table(agreement.matrices["spearman"], names, signed=True)
    tables = f"<h4>{escape(MEASURE_TITLES['spearman'])}</h4>{ranks}"
    others = "".join(
        f'<details class="dl-second"><summary>{escape(MEASURE_TITLES[measure])}</summary><div>'
        f"{matrix_table(matrix, names, signed=False)}</div></details>"
        for measure, matrix in agreement.matrices.items()
        if measure != "spearman"
    )
    maps = _grid(
        _card(
            "Consensus",
            layers(
                display,
                agreement.consensus,
                signed=False,
                text="Consensus of the methods",
                color_map=color_map,
                ends=("ranked low by all", "ranked high by all"),
                limits=(0.0, 1.0),
            ),
            "Mean rank. Bright: places that all methods rank high.",
        )
        + _card(
            "Disagreement",
            layers(
                display,
                agreement.disagreement,
                signed=False,
                text="Disagreement of the methods",
                color_map=DISAGREEMENT_MAP,
                ends=("none", "most possible"),
                limits=(0.0, _MOST_DISAGREEMENT),
            ),
            "Spread of ranks. Bright: some methods rank it high, others low.",
        )
    )
    mean = _between_families(agreement.between_families)
    return _part("2. How far they agree", _AGREE, f"{tables}{mean}{maps}{others}")


def _between_families(value: float) -> str:
    if not np.isfinite(value):
        return ""
    doubt = f", below {LOW_AGREEMENT:g}: they disagree" if value < LOW_AGREEMENT else ""
    return f'<p class="dl-caption">Mean between families: {value:.2f}{doubt}.</p>'


def matrix_table(matrix: np.ndarray, names: Sequence[str], *, signed: bool) -> str:
    """Return a matrix of agreement as a table whose cells have the color of their value.

    Args:
        matrix: (M, M), -1..1 where signed, else 0..1.
        names: M names for people.
        signed: Chooses the colors.
    """
    colors = colorize(
        np.clip(np.nan_to_num(matrix), -1, 1),
        signed=signed,
        color_map=SIGNED_MAP if signed else "Blues",
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    # Adding zero turns a rounded -0.00 into 0.00.
    shown = np.round(matrix, 2) + 0.0
    for name, values, painted in zip(names, shown, colors, strict=True):
        cells = "".join(
            f'<td style="background:rgb({r},{g},{b});color:{_ink(r, g, b)}">{value:.2f}</td>'
            for value, (r, g, b) in zip(values, painted.tolist(), strict=True)
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


def _card(title: str, picture: str, caption: str) -> str:
    note = f'<p class="dl-caption">{escape(caption)}</p>' if caption else ""
    return f'<article class="dl-card"><h4>{escape(title)}</h4>{picture}{note}</article>'


def _scales(display: np.ndarray, scales: MultiScaleResult, color_map: str) -> str:
    fused = _card(
        "All scales fused",
        layers(display, scales.fused, signed=True, text="All scales fused"),
        "The three kinds weigh alike.",
    )
    rows = [_grid(fused)]
    for kind in KINDS:
        found = scales.of_kind(kind)
        if not found:
            continue
        cards = "".join(
            _card(
                one.label,
                layers(
                    display,
                    one.values,
                    signed=one.signed,
                    text=f"Map at the scale {one.label}",
                    color_map=color_map,
                    ends=None if one.signed else ("least", "most"),
                ),
                "",
            )
            for one in found
        )
        rows.append(f"<h4>{escape(_KIND_TITLES.get(kind, kind))}</h4>{_grid(cards, small=True)}")
    return _part("3. Several scales", _AT_SCALES, "".join(rows))


def _discrimination(display: np.ndarray, state: Comparison) -> str:
    assert state.discrimination is not None
    parts = []
    for other, contrasts in state.discrimination.contrasts.items():
        code = state.classes[other]
        title = f"{diagnosis_name(state.target)} or {diagnosis_name(code)}"
        cards = "".join(_contrast(display, one, state.target, code) for one in contrasts)
        if cards:
            parts.append(f"<h4>{escape(title[0].upper() + title[1:])}</h4>{_grid(cards)}")
    left_out = state.discrimination.left_out
    if left_out:
        names = ", ".join(method(name).title for name in left_out)
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        text = f"Without a contrast: {names} ({reasons})."
        parts.append(f'<p class="dl-caption">{escape(text)}</p>')
    return _part("4. Why this diagnosis and not another", _CONTRAST, "".join(parts))


def _contrast(display: np.ndarray, one: ClassContrast, target: str, other: str) -> str:
    name = method(one.method).title
    picture = layers(
        display,
        one.values,
        signed=True,
        text=f"{name}: where the image speaks for {target} rather than {other}",
        ends=(f"for {other}", f"for {target}"),
    )
    caption = (
        f"Discrimination {one.discrimination:.2f}; {percent(one.share_for_other)} for {other}."
    )
    return _card(name, picture, caption)
