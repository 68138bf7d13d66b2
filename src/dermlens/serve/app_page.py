"""The parts of the web page as HTML: probabilities, layered maps, cards, facts of the bundle."""

import base64
import io
from html import escape
from typing import Any

import numpy as np

from dermlens import __version__
from dermlens.diagnoses import by_code
from dermlens.explain.base import Attribution
from dermlens.explain.registry import method
from dermlens.model.bundle import Bundle
from dermlens.report.figures import colorize, normalize
from dermlens.serve.app_actions import NOTE, Analysis, Step

TITLE = "dermlens"
OPACITY = 0.5

BANNER = f"""
<div class="dl-banner" role="note"><strong>{NOTE}</strong>
Never decide about a skin lesion with this page; see a doctor.</div>
"""

EMPTY = """
<div class="dl-empty">Upload, paste or photograph a dermatoscopic image, or click an example below
it. The result appears here.</div>
"""

EMPTY_EXPLANATION = """
<div class="dl-empty">Choose methods and press <em>Explain</em>. Each map appears as soon as it is
ready.</div>
"""

SET_OPACITY = """
(value) => { document.documentElement.style.setProperty("--dl-opacity", value); }
"""

CSS = """
:root { --dl-opacity: 0.5; --dl-alarm: #b42318; --dl-alarm-soft: #fef3f2; --dl-bar: #2f6f8f;
  --dl-track: #e5e7eb; --dl-ink: #1f2933; --dl-muted: #52606d; --dl-card: #ffffff;
  --dl-line: #d9dee3; --dl-note: #fff8e6; --dl-note-ink: #5c4400; }
.dark { --dl-alarm: #ff9c92; --dl-alarm-soft: #3a1a17; --dl-bar: #6fb6d6; --dl-track: #374151;
  --dl-ink: #eef2f6; --dl-muted: #b4bfca; --dl-card: #1b222c; --dl-line: #3b4654;
  --dl-note: #33290f; --dl-note-ink: #ffe2a0; }
.gradio-container { max-width: 1240px !important; margin: 0 auto !important;
  overflow: visible !important; }
.dl-head h1 { font-size: 1.5rem; margin: 0; color: var(--dl-ink); letter-spacing: -0.01em; }
.dl-head p { margin: 0.1rem 0 0; color: var(--dl-muted); }
.dl-sticky { position: sticky; top: 0; z-index: 20; }
.dl-wide, .dl-wide .html-container { padding: 0 !important; }
footer .divider { display: none; }
.dl-banner { background: var(--dl-note); color: var(--dl-note-ink); border-radius: 8px;
  padding: 0.55rem 0.9rem; font-size: 0.92rem; border: 1px solid var(--dl-line); }
.dl-banner strong { color: inherit; }
.dl-empty { color: var(--dl-muted); border: 1px dashed var(--dl-line); border-radius: 10px;
  padding: 2.2rem 1.2rem; text-align: center; }
.dl-verdict { color: var(--dl-ink); }
.dl-verdict h2 { margin: 0; font-size: 1.35rem; color: var(--dl-ink); }
.dl-verdict .dl-plain { color: var(--dl-muted); margin: 0.15rem 0 0.7rem; }
.dl-flag { border-left: 4px solid var(--dl-alarm); background: var(--dl-alarm-soft);
  color: var(--dl-ink); border-radius: 0 8px 8px 0; padding: 0.55rem 0.8rem; margin: 0.5rem 0; }
.dl-flag.dl-calm { border-color: var(--dl-muted); background: transparent; }
.dl-flag strong { color: var(--dl-alarm); } .dl-flag.dl-calm strong { color: var(--dl-ink); }
table.dl-bars { width: 100%; border-collapse: collapse; margin: 0.9rem 0;
  border: 0 !important; }
table.dl-bars tr { border: 0 !important; background: transparent !important; }
table.dl-bars td, table.dl-bars th { border: 0 !important; padding: 0.22rem 0.35rem;
  color: var(--dl-ink);
  background: transparent; text-align: left; font-weight: 400; vertical-align: middle; }
table.dl-bars tr.dl-chosen th { font-weight: 700; }
table.dl-bars td.dl-number { text-align: right; font-variant-numeric: tabular-nums; width: 4rem; }
table.dl-bars td.dl-space { width: 38%; }
.dl-track { background: var(--dl-track); border-radius: 4px; height: 0.75rem; overflow: hidden; }
.dl-fill { background: var(--dl-bar); height: 100%; border-radius: 4px; }
.dl-malignant .dl-fill { background: var(--dl-alarm); }
.dl-mark { color: var(--dl-alarm); font-size: 0.74rem; border: 1px solid currentColor;
  border-radius: 4px; padding: 0 0.3rem; margin-left: 0.4rem; white-space: nowrap; }
.dl-layers { position: relative; border-radius: 8px; overflow: hidden; line-height: 0; }
.dl-layers img { width: 100%; margin: 0; display: block; border-radius: 0; }
.dl-layers img.dl-map { position: absolute; inset: 0; height: 100%; opacity: var(--dl-opacity); }
.dl-caption { color: var(--dl-muted); font-size: 0.88rem; margin: 0.4rem 0 0; line-height: 1.4; }
.dl-scale { height: 0.6rem; border-radius: 3px; margin-top: 0.5rem; }
.dl-ends { display: flex; justify-content: space-between; color: var(--dl-muted);
  font-size: 0.78rem; }
.dl-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
  gap: 1rem; }
.dl-examples .gallery { gap: 0.4rem !important; }
.dl-examples .gallery-item, .dl-examples .gallery-item img { max-width: 4.4rem; height: auto; }
.dl-card { border: 1px solid var(--dl-line); border-radius: 10px; padding: 0.75rem;
  background: var(--dl-card); color: var(--dl-ink); }
.dl-card h3 { margin: 0 0 0.2rem; font-size: 1.02rem; color: var(--dl-ink); }
.dl-card p { margin: 0.2rem 0 0.5rem; font-size: 0.88rem; color: var(--dl-muted); }
.dl-status { color: var(--dl-ink); margin-bottom: 0.8rem; }
.dl-busy::before { content: ""; display: inline-block; width: 0.7rem; height: 0.7rem;
  background: var(--dl-bar); border-radius: 50%; margin-right: 0.5rem;
  animation: dl-pulse 1s ease-in-out infinite alternate; }
@keyframes dl-pulse { from { opacity: 1; } to { opacity: 0.2; } }
@media (prefers-reduced-motion: reduce) { .dl-busy::before { animation: none; } }
@media (max-width: 640px) { table.dl-bars td.dl-space { display: none; } }
"""


def header(bundle: Bundle) -> str:
    """Return the title, and a warning where the model has seen drawings only."""
    warning = ""
    if bundle.synthetic:
        warning = (
            '<div class="dl-flag"><strong>This model was trained on drawn images only.</strong> '
            "Use the drawn examples: what it says about a photograph means nothing.</div>"
        )
    return (
        f'<div class="dl-head"><h1>{TITLE}</h1><p>What does the network see in a dermatoscopic '
        f"image, and where does it look?</p></div>{warning}"
    )


def verdict(bundle: Bundle, analysis: Analysis) -> str:
    """Return decision, flags and the probabilities of all diagnoses."""
    diagnosis = by_code(bundle.classes[analysis.decision])
    chance = analysis.probabilities[analysis.decision]
    remarks = "".join(
        f'<div class="dl-flag dl-calm">{escape(text)}</div>' for text in analysis.remarks
    )
    weighed = " The decision weighs rare diagnoses up." if bundle.calibration.tau > 0 else ""
    return (
        f'<div class="dl-verdict"><h2>{escape(diagnosis.name)}</h2>'
        f'<p class="dl-plain">{escape(diagnosis.plain)} The model gives it {percent(chance)}.</p>'
        f"{_melanoma(bundle, analysis)}{remarks}{_bars(bundle, analysis)}"
        '<p class="dl-caption">Probabilities are calibrated on validation images and compare '
        "these seven diagnoses only; anything else on the skin is forced into one of them."
        f"{weighed}</p></div>"
    )


def _melanoma(bundle: Bundle, analysis: Analysis) -> str:
    point = bundle.calibration.operating_points.get("melanoma")
    if point is None:
        return ""
    chance = analysis.probabilities[bundle.classes.index("mel")]
    basis = (
        f"On validation images this threshold ({percent(point.threshold)}) flagged "
        f"{percent(point.sensitivity)} of {point.positives} melanomas, and did not flag "
        f"{percent(point.specificity)} of {point.negatives} other lesions."
    )
    if bundle.classes[analysis.decision] == "mel":
        return f'<div class="dl-flag"><strong>Melanoma suspected.</strong> {basis}</div>'
    if analysis.flags["melanoma"]:
        return (
            f'<div class="dl-flag"><strong>Melanoma not excluded</strong> ({percent(chance)}). '
            f"{basis}</div>"
        )
    return (
        '<div class="dl-flag dl-calm"><strong>Below the melanoma threshold</strong> '
        f"({percent(chance)}). That excludes nothing. {basis}</div>"
    )


def _bars(bundle: Bundle, analysis: Analysis) -> str:
    rows = []
    for position in np.argsort(-analysis.probabilities, kind="stable"):
        diagnosis = by_code(bundle.classes[position])
        value = float(analysis.probabilities[position])
        kinds = ["dl-malignant"] if diagnosis.malignant else []
        kinds += ["dl-chosen"] if position == analysis.decision else []
        mark = '<span class="dl-mark">malignant</span>' if diagnosis.malignant else ""
        rows.append(
            f'<tr class="{" ".join(kinds)}"><th scope="row">{escape(diagnosis.name)}{mark}</th>'
            f'<td class="dl-space"><div class="dl-track"><div class="dl-fill" style="width:'
            f'{100 * value:.1f}%"></div></div></td><td class="dl-number">{percent(value)}</td></tr>'
        )
    return f'<table class="dl-bars" aria-label="Probabilities">{"".join(rows)}</table>'


def percent(value: float) -> str:
    """Write a share for people; never a bare 0 % or 100 % for what is neither.

    Example:
        >>> [percent(v).replace(chr(160), " ") for v in (0.834, 0.0001, 0.9999, float("nan"))]
        ['83 %', '< 1 %', '> 99 %', 'unknown']
    """
    if not np.isfinite(value):
        return "unknown"
    if 0 < value < 0.01:
        return "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    if 0.99 < value < 1:
        return ">\N{NO-BREAK SPACE}99\N{NO-BREAK SPACE}%"
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def layers(display: np.ndarray, values: np.ndarray, *, signed: bool, text: str) -> str:
    """Return an image with an attribution map over it; the page's slider sets its opacity.

    Args:
        display: uint8 RGB (h, w, 3).
        values: Raw map (H, W) of the same part of the image.
        signed: Whether negative values speak against the target.
        text: Alternative text of the map.
    """
    colors = colorize(normalize(values, signed=signed), signed=signed)
    ends = ("against", "for") if signed else ("no evidence", "most evidence")
    width = 64
    ramp = np.linspace(-1 if signed else 0, 1, width, dtype=np.float32)[None]
    scale = data_address(colorize(ramp, signed=signed))
    return (
        f'<div class="dl-layers"><img src="{data_address(display)}" alt="The analyzed image">'
        f'<img class="dl-map" src="{data_address(colors)}" alt="{escape(text, quote=True)}"></div>'
        f'<img class="dl-scale" style="width:100%" src="{scale}" alt="Color scale">'
        f'<div class="dl-ends"><span>{ends[0]}</span><span>{ends[1]}</span></div>'
    )


def data_address(image: np.ndarray) -> str:
    """Return an image as a ``data:`` address, so that it is never a file on the server."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def grad_cam(bundle: Bundle, analysis: Analysis, target: int) -> str:
    """Return the Grad-CAM of one class over the image."""
    name = by_code(bundle.classes[target]).name
    values = analysis.maps[target]
    drawn = layers(analysis.display, values, signed=False, text=f"Grad-CAM heat map for {name}")
    empty = values.max() <= 0
    caption = (
        f"Nothing in the image raises the score of {name}: the map is empty."
        if empty
        else f"Grad-CAM: {method('grad_cam').question} Here: {name}. It says where the network "
        "found evidence, not what it is, nor whether it is right."
    )
    return f'{drawn}<p class="dl-caption">{escape(caption)}</p>'


def cards(bundle: Bundle, analysis: Analysis, step: Step) -> str:
    """Return the finished methods side by side, and what runs now."""
    name = by_code(bundle.classes[step.target]).name
    if step.running is None:
        status = f'<div class="dl-status">Explained: {escape(name)}, by {step.total} of '
        status += f"{step.total} methods.</div>"
    else:
        entry = method(step.running)
        status = (
            f'<div class="dl-status dl-busy" role="status">{len(step.results) + 1} of '
            f"{step.total}: {escape(entry.title)} for {escape(name)}; passes per image: "
            f"{escape(entry.cost)}</div>"
        )
    drawn = "".join(_card(analysis, result, name) for result in step.results.values())
    return f'{status}<div class="dl-cards">{drawn}</div>'


def _card(analysis: Analysis, result: Attribution, name: str) -> str:
    entry = method(result.method)
    forward, backward = result.cost.forward, result.cost.backward
    passes = f"{forward} forward" + (f" and {backward} backward" if backward else "")
    unit = "pass" if forward + backward == 1 else "passes"
    found = [f"{passes} {unit}, {result.cost.seconds:.1f} s"]
    for key, title in (("completeness_gap", "completeness gap"), ("r2", "R²")):
        value = result.details.get(key)
        if isinstance(value, np.ndarray) and value.ndim == 1:
            found.append(f"{title} {value[0]:.3g}")
    text = f"{entry.title} map for {name}"
    drawn = layers(analysis.display, result.maps[0], signed=result.signed, text=text)
    return (
        f'<article class="dl-card"><h3>{escape(entry.title)}</h3><p>{escape(entry.question)}</p>'
        f'{drawn}<p class="dl-caption">{escape("; ".join(found))}.</p></article>'
    )


def about(bundle: Bundle) -> str:
    """Return the facts of the bundle as Markdown."""
    facts, data = bundle.facts, bundle.facts["data"]
    height, width = bundle.input_size
    lines = [
        "### What this is",
        f"A {bundle.architecture.backbone} that tells seven diagnoses apart on dermatoscopic "
        "images, with the methods that show where its evidence lies. " + f"**{NOTE}**",
        "### The model",
        "| Fact | Value |\n|---|---|",
        f"| Network | {bundle.architecture.backbone}, {width} x {height} pixels |",
        f"| Trained on | {_data_line(bundle)} |",
        f"| Calibration | temperature {bundle.calibration.temperature:.3g} |",
        f"| Decision | `{bundle.calibration.rule}` |",
        f"| License | {facts.get('license', 'MIT')} |",
        f"| Data license | {data.get('license', 'unknown')} |",
        f"| Version | dermlens {facts.get('dermlens_version', __version__)} |",
        "",
        "### Operating points, measured on validation images",
        "| Flag | Diagnoses | Threshold | Sensitivity | Specificity | Positives |",
        "|---|---|---|---|---|---|",
    ]
    for name, point in bundle.calibration.operating_points.items():
        lines.append(
            f"| {name} | {', '.join(point.codes)} | {point.threshold:.3g} | "
            f"{percent(point.sensitivity)} | {percent(point.specificity)} | {point.positives} |"
        )
    return "\n".join([*lines, "", _LIMITS])


_LIMITS = """### Limits
* Seven diagnoses only. A rash, a wart or a healthy arm still gets one of them.
* Skin tones, cameras and ages that were rare in training are judged worse; dark skin is rare in
  the public collections.
* A heat map shows where evidence was found. It is no proof that the evidence is medical: hair,
  rulers and ink can matter to a network.
* Images go to the computer that runs this page and nowhere else; they are deleted from it about 15
  minutes later, or when it stops."""


def _data_line(bundle: Bundle) -> str:
    data: dict[str, Any] = bundle.facts["data"]
    drawn = ", drawn by a program; no patient was involved" if bundle.synthetic else ""
    counted = ""
    if "n_images" in data and "n_lesions" in data:
        counted = f", {data['n_images']:,} images of {data['n_lesions']:,} lesions"
    return f"{data.get('name', 'unknown data')}{counted}{drawn}"
