"""The look of the web page: theme, styles, and the few lines of script."""

from importlib.resources import files
from typing import Any

OPACITY = 0.55

SET_OPACITY = """
(value) => { document.documentElement.style.setProperty("--dl-opacity", value); }
"""
SET_CONTOUR = """
(shown) => { document.documentElement.style.setProperty("--dl-contour", shown ? "block" : "none"); }
"""
WITH_IMAGE = """() => { document.body.classList.remove("dl-alone"); }"""
WITHOUT_IMAGE = """() => { document.body.classList.add("dl-alone"); }"""
ON_LOAD = """
() => {
  const describe = () => document.querySelectorAll("img:not([alt]), img[alt='']").forEach((one) => {
    const drawn = /drawn_([a-z]+)[.]jpg/.exec(one.src);
    one.alt = drawn ? "Drawn example, " + drawn[1] : "Uploaded image";
  });
  new MutationObserver(describe).observe(document.body, { childList: true, subtree: true,
    attributes: true, attributeFilter: ["src"] });
  describe();
}
"""
"""Gives words to the pictures that Gradio shows without."""
SAVE = """
(id) => { setTimeout(() => {
  const link = document.querySelector("#dl-file a"); if (link) link.click(); }, 150); }
"""
HEAD = """
<meta name="robots" content="noindex"><meta name="color-scheme" content="light dark">
<style>
body.dl-alone .dl-image, body.dl-alone .dl-display { display: none !important; }
body.dl-alone .dl-main > .dl-tabs { grid-column: 1 / -1 !important; }
@media (max-width: 640px) {
  .gradio-container .app { padding: 0.7rem !important; }
  .gradio-container button[role="tab"] { padding: 0 0.4rem !important;
    font-size: 0.84rem !important; }
}
</style>
"""
"""Gradio confines ``CSS`` to what lies inside its own frame; this reaches the frame as well."""

_PAGE = """
.gradio-container { max-width: min(1280px, 100vw) !important; min-width: 0 !important;
  margin: 0 auto !important;
  overflow: visible !important; }
.dl-head { padding: 0.4rem 0 0.1rem; }
.dl-head h1 { font-size: 1.55rem; margin: 0; color: var(--dl-ink); letter-spacing: -0.015em; }
.dl-head p { margin: 0.1rem 0 0; color: var(--dl-muted); }
.dl-sticky { position: sticky; top: 0; z-index: 60; }
.dl-wide, .dl-wide .html-container { padding: 0 !important; }
footer .divider { display: none; }
.dl-banner { background: var(--dl-note); color: var(--dl-note-ink); border-radius: 8px;
  padding: 0.5rem 0.9rem; font-size: 0.92rem; border: 1px solid var(--dl-line); }
.dl-banner strong { color: inherit; }
@media (min-width: 768px) {
  .dl-main { display: grid !important; grid-template-columns: minmax(270px, 2fr) 5fr;
    grid-template-rows: auto 1fr; }
  .dl-main > .dl-tabs { grid-column: 2; grid-row: 1 / span 2; min-width: 0 !important; }
}
@media (max-width: 640px) {
  .app .wrap, .app .contain, .app .column, .app .row > * { min-width: 0 !important;
    max-width: 100% !important; }
}
.dark .dl-main button[role="tab"].selected { color: #7cc4de; }
footer, footer button, footer a { color: var(--dl-muted) !important; }
#dl-about { max-width: 86ch; }
#dl-about table { border: 0 !important; border-collapse: collapse; width: 100%;
  margin: 0.3rem 0 0.9rem; }
#dl-about thead, #dl-about tbody, #dl-about tr { border: 0 !important; }
#dl-about th, #dl-about td { border: 0 !important; padding: 0.4rem 0.7rem 0.4rem 0;
  text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--dl-line) !important; }
#dl-about th { color: var(--dl-muted); font-weight: 600; font-size: 0.88rem; }
.dl-examples .gallery { gap: 0.4rem !important; }
.dl-examples .gallery-item, .dl-examples .gallery-item img { max-width: 4.4rem; height: auto; }
.tabitem:has(#dl-batch-status .dl-empty) #dl-batch { display: none; }
.wrap.minimal { overflow: visible !important; }
.wrap.minimal .progress-text { color: var(--dl-muted); font-variant-numeric: tabular-nums; }
#dl-file { padding: 0; min-height: 0; }
:focus-visible { outline: 2px solid var(--dl-bar) !important; outline-offset: 2px; }
.dl-empty { color: var(--dl-muted); border: 1px dashed var(--dl-line); border-radius: 10px;
  padding: 2.2rem 1.2rem; text-align: center; }
.dl-verdict { color: var(--dl-ink); }
.dl-verdict h2 { margin: 0; font-size: 1.35rem; color: var(--dl-ink); }
.dl-verdict .dl-plain { color: var(--dl-muted); margin: 0.15rem 0 0.7rem; }
table.dl-bars { width: 100%; border-collapse: collapse; margin: 0.9rem 0; border: 0 !important; }
table.dl-bars tr { border: 0 !important; background: transparent !important; }
table.dl-bars td, table.dl-bars th { border: 0 !important; padding: 0.22rem 0.35rem;
  color: var(--dl-ink); background: transparent; text-align: left; font-weight: 400;
  vertical-align: middle; }
table.dl-bars tr.dl-chosen th { font-weight: 700; }
table.dl-bars td.dl-number { text-align: right; font-variant-numeric: tabular-nums; width: 4rem; }
table.dl-bars td.dl-space { width: 36%; }
.dl-track { background: var(--dl-track); border-radius: 4px; height: 0.75rem; overflow: hidden; }
.dl-fill { background: var(--dl-bar); height: 100%; border-radius: 4px; }
.dl-malignant .dl-fill { background: var(--dl-alarm); }
.dl-mark { color: var(--dl-alarm); font-size: 0.74rem; border: 1px solid currentColor;
  border-radius: 4px; padding: 0 0.3rem; margin-left: 0.4rem; white-space: nowrap; }
a.dl-download { display: inline-block; color: var(--dl-ink); text-decoration: none;
  border: 1px solid var(--dl-line); border-radius: 8px; padding: 0.4rem 0.9rem; font-weight: 600; }
a.dl-download:hover { border-color: var(--dl-bar); color: var(--dl-bar); }
#dl-batch table, #dl-batch td, #dl-batch th, #dl-batch button, #dl-batch span
  { font-family: var(--font) !important; }
#dl-batch td { font-size: 0.9rem; }
@media (max-width: 640px) { table.dl-bars td.dl-space { display: none; } }
"""

CSS = (files("dermlens.report") / "templates/view.css").read_text() + _PAGE


def theme() -> Any:
    """Return the look: calm colors and the fonts of the visitor's system."""
    import gradio as gr

    # Gradio's own colors are too pale for text: these reach a contrast of 4.5 on both grounds.
    petrol = gr.themes.Color(
        *("#eef6f9", "#d6e9f0", "#b0d4e1", "#83bad0", "#5fb0cf", "#28708c"),
        *("#1f6a86", "#185669", "#134555", "#0f3745", "#0a2530"),
    )
    colors = {
        "button_primary_background_fill": ("#1f6a86", "#1f6a86"),
        "button_primary_background_fill_hover": ("#185669", "#2a7f9f"),
        "button_primary_text_color": ("#ffffff", "#ffffff"),
        "block_title_text_color": ("#3b4754", "#d5dde5"),
        "slider_color": ("#28708c", "#5fb0cf"),
        "input_placeholder_color": ("#52606d", "#b4bfca"),
        **dict.fromkeys(
            ("body_text_color_subdued", "block_info_text_color", "block_label_text_color"),
            ("#52606d", "#b4bfca"),
        ),
    }
    return gr.themes.Default(
        primary_hue=petrol,
        secondary_hue=petrol,
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        **{name: light for name, (light, _) in colors.items()},
        **{f"{name}_dark": dark for name, (_, dark) in colors.items()},
    )
