"""The Compare tab: the four experiments part by part, then everything to take home."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.registry import SIX
from dermlens.explainers.target import RUNNER_UP
from dermlens.files import plain
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_files import comparison_maps, comparison_numbers, comparison_page
from dermlens.serve import app_tabs as tabs
from dermlens.serve.app_desk import Desk, Job
from dermlens.serve.app_page_results import EMPTY_COMPARISON, comparison
from dermlens.serve.app_style import SAVE

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

    methods = tabs.methods_choice(
        desk,
        SIX,
        "Six methods need some 1,800 passes of the network; each result comes when ready.",
    )
    with gr.Row():
        target = tabs.target_choice(desk)
        runner_up = "The next one that cannot be excluded"
        if desk.bundle.calibration.prediction_sets is None:
            runner_up = "The next most probable one"
        against = gr.Dropdown(
            desk.actions.target_choices(runner_up, RUNNER_UP),
            value=RUNNER_UP,
            label="Contrast it with",
        )
    start, stop = tabs.start_and_stop("Compare")
    nothing = EMPTY_COMPARISON.format(one=desk.actions.words.one)
    drawn = gr.HTML(nothing, elem_id="dl-compared")
    with gr.Row():
        page = gr.Button("Download report (HTML)")
        maps = gr.Button("Download maps (.npz)")
    carrier = gr.HTML(None, html_template=FILE_TEMPLATE, elem_id="dl-file")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    @desk.jobs.stoppable
    def compare(
        image: str | None,
        methods: list[str],
        target: str,
        against: str,
        color_map: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        for job in desk.compare(request.session_hash, image, methods, target, against):
            numbers = comparison_numbers(job.work.comparison, tabs.name_of(job.path))
            yield comparison(job, color_map), plain({"running": job.work.running, **numbers})

    tabs.connect_long_job(
        desk,
        "comparison",
        compare,
        comparison,
        inputs=(image, methods, target, against, color_map),
        buttons=(start, stop),
        outputs=(drawn, facts),
        nothing=nothing,
        api_name="compare",
        api_description=(
            "The four experiments on one image: methods side by side, their agreement, several "
            "scales, and one class against another; a result after each part. Returns HTML, and "
            "the numbers, summary and warnings as data."
        ),
    )
    _connect_downloads(desk, (page, maps), carrier)
    image.change(lambda: None, None, carrier, **tabs.PRIVATE)


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


def _complete(job: Job | None) -> tuple[str, Comparison]:
    if job is None or job.work.running is not None:
        raise UsageError("There is no complete comparison yet. Press Compare and let it finish.")
    return tabs.name_of(job.path), job.work.comparison


def maps_file(state: Comparison) -> bytes:
    """Return the raw maps as the bytes of an ``.npz`` file; see ``comparison_maps``."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **comparison_maps(state))
    return stream.getvalue()


def as_file(name: str, kind: str, content: bytes) -> dict[str, str]:
    """Return a file as JSON types: ``name``, ``type`` and ``base64``."""
    return {"name": name, "type": kind, "base64": base64.b64encode(content).decode()}
