"""The Compare tab: the four experiments part by part, then everything to take home."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.registry import SIX
from dermlens.explain.target import PREDICTED, RUNNER_UP
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_files import comparison_maps, comparison_numbers
from dermlens.report.comparison_page import comparison_page
from dermlens.serve.app_desk import Desk, Shown
from dermlens.serve.app_explaining import plain
from dermlens.serve.app_layers import checked_color_map
from dermlens.serve.app_page_compare import EMPTY_COMPARISON, comparison
from dermlens.serve.app_style import SAVE
from dermlens.serve.app_tabs import PRIVATE, SHARED, name_of

FILE_TEMPLATE = """
${value && value.base64
  ? '<a class="dl-download" download="' + value.name + '" href="data:' + value.type + ';base64,' +
    value.base64 + '">Save ' + value.name + '</a>'
  : ''}
"""
"""A file as a link that holds it: nothing to download ever lies on the server's disk."""


def compare_tab(desk: Desk, image: Any, color_map: Any) -> None:
    """Lay out and connect the Compare tab."""
    import gradio as gr

    methods = gr.CheckboxGroup(
        desk.explaining.method_choices(),
        value=list(SIX),
        label="Methods",
        info="Six methods need some 1,800 passes of the network; each result comes when ready.",
    )
    with gr.Row():
        target = gr.Dropdown(
            desk.actions.target_choices(), value=PREDICTED, label="Diagnosis to explain"
        )
        against = gr.Dropdown(
            desk.actions.target_choices(("The next one that cannot be excluded", RUNNER_UP)),
            value=RUNNER_UP,
            label="Contrast it with",
        )
    with gr.Row():
        start = gr.Button("Compare", variant="primary", scale=3)
        stop = gr.Button("Stop", scale=1)
    drawn = gr.HTML(EMPTY_COMPARISON, elem_id="dl-compared")
    with gr.Row():
        page = gr.Button("Download report (HTML)")
        maps = gr.Button("Download maps (.npz)")
    carrier = gr.HTML(None, html_template=FILE_TEMPLATE, elem_id="dl-file")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")
    _connect_running(
        desk, image, color_map, (methods, target, against), (start, stop), (drawn, facts)
    )
    _connect_downloads(desk, (page, maps), carrier)
    image.change(lambda: None, None, carrier, **PRIVATE)


def _connect_running(
    desk: Desk, image: Any, color_map: Any, choices: Any, buttons: Any, outputs: Any
) -> None:
    import gradio as gr

    start, stop = buttons
    drawn, facts = outputs

    def draw(shown: Shown | None, colors: str, stopped: bool = False) -> Any:
        if shown is None or shown.progress is None:
            return gr.skip()
        return comparison(
            shown.analysis.display, shown.progress, checked_color_map(colors), stopped=stopped
        )

    @desk.jobs.stoppable
    def compare(
        image: str | None,
        methods: list[str],
        target: str,
        against: str,
        color_map: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        for shown in desk.compare(request.session_hash, image, methods, target, against):
            assert shown.progress is not None
            numbers = comparison_numbers(shown.progress.comparison, name_of(shown.path))
            running = {"running": shown.progress.running}
            yield draw(shown, color_map), plain({**running, **numbers})

    def redraw(colors: str, request: gr.Request) -> Any:
        return draw(desk.shown(request.session_hash, "comparison"), colors)

    def stopped(colors: str, request: gr.Request) -> Any:
        return draw(desk.shown(request.session_hash, "comparison"), colors, stopped=True)

    running = start.click(
        compare,
        [image, *choices, color_map],
        [drawn, facts],
        api_name="compare",
        api_description=(
            "The four experiments on one image: methods side by side, their agreement, several "
            "scales, and one diagnosis against another; a result after each part. Returns HTML, "
            "and the numbers, summary and warnings as data."
        ),
        show_progress="minimal",
        show_progress_on=drawn,
        **SHARED,
    )
    stop.click(stopped, color_map, drawn, cancels=[running], queue=False, **PRIVATE)
    color_map.input(redraw, color_map, drawn, **PRIVATE)
    image.change(
        lambda: (EMPTY_COMPARISON, None), None, [drawn, facts], cancels=[running], **PRIVATE
    )


def _connect_downloads(desk: Desk, buttons: Any, carrier: Any) -> None:
    import gradio as gr

    def report(request: gr.Request) -> dict[str, str]:
        name, state = _complete(desk.shown(request.session_hash, "comparison"))
        return as_file(f"{name}.html", "text/html", comparison_page(state, name).encode())

    def maps(request: gr.Request) -> dict[str, str]:
        name, state = _complete(desk.shown(request.session_hash, "comparison"))
        return as_file(f"{name}.npz", "application/octet-stream", maps_file(state))

    for button, action, kind, text in (
        (buttons[0], report, "report", "The last comparison of this session as one HTML page"),
        (buttons[1], maps, "maps", "The raw maps of the last comparison as one .npz file"),
    ):
        button.click(
            action,
            None,
            carrier,
            api_name=kind,
            api_description=f"{text}: name, type, and content in base64.",
            show_progress_on=button,
            concurrency_limit=1,
        ).success(None, None, None, js=SAVE, api_visibility="private")


def _complete(shown: Shown | None) -> tuple[str, Comparison]:
    if shown is None or shown.progress is None or shown.progress.running is not None:
        raise UsageError("There is no complete comparison yet. Press Compare and let it finish.")
    return name_of(shown.path), shown.progress.comparison


def maps_file(state: Comparison) -> bytes:
    """Return the raw maps as the bytes of an ``.npz`` file; see ``comparison_maps``."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = dict(comparison_maps(state))
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def as_file(name: str, kind: str, content: bytes) -> dict[str, str]:
    """Return a file as JSON types: ``name``, ``type`` and ``base64``."""
    return {"name": name, "type": kind, "base64": base64.b64encode(content).decode()}
