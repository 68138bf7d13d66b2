"""The look of the web page: theme, styles, the viewer, and the few lines of script."""

from importlib.resources import files
from typing import Any

WITH_IMAGE = """() => { document.body.classList.remove("dl-alone"); }"""
WITHOUT_IMAGE = """() => { document.body.classList.add("dl-alone"); }"""
TO_TOP = """() => { if (window.innerWidth < 768) window.scrollTo(0, 0); }"""
"""On a phone the verdict is to be the first that is seen, wherever an example was clicked."""
SAVE = """
(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.download = file.name;
  link.href = `data:${file.type};base64,${file.base64}`;
  link.click();
}
"""
"""Nothing to download ever lies on the server's disk: the file comes inside the answer."""
HEAD = """
<meta name="robots" content="noindex"><meta name="color-scheme" content="light dark">
<style>
body.dl-alone .dl-image, body.dl-alone .dl-look { display: none !important; }
body.dl-alone .dl-main > .dl-tabs { grid-column: 1 / -1 !important; }
body.dl-behind { overflow: hidden; }
@media (max-width: 640px) {
  .gradio-container .app { padding: 0.7rem !important; }
  .gradio-container button[role="tab"] { padding: 0 0.4rem !important;
    font-size: 0.84rem !important; }
}
</style>
"""
"""Gradio confines ``CSS`` to what lies inside its own frame; this reaches the frame as well."""

_TEMPLATES = files("dermlens.report") / "templates"
CSS = "".join((_TEMPLATES / name).read_text() for name in ("view.css", "app.css"))


def viewer() -> Any:
    """Return the viewer of maps; ``submit`` hands over the ``points`` of an outline."""
    import gradio as gr

    html, script = ((_TEMPLATES / f"viewer.{kind}").read_text() for kind in ("html", "js"))
    return gr.HTML(html, js_on_load=script, elem_id="dl-viewer", render=False)


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
