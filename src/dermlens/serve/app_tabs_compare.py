"""The Compare tab: the experiments part by part, then everything to take home."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.registry import SIX
from dermlens.explainers.target import RUNNER_UP
from dermlens.files import plain
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_files import (
    About,
    comparison_maps,
    comparison_numbers,
    comparison_page,
)
from dermlens.serve import app_tabs as tabs
from dermlens.serve.app_desk import Desk, Job
from dermlens.serve.app_page import canvas_of
from dermlens.serve.app_page_results import EMPTY_COMPARISON, about, comparison
from dermlens.serve.app_style import SAVE


def compare_tab(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect the Compare tab."""
    import gradio as gr

    methods = tabs.methods_choice(
        desk,
        SIX,
        "Six methods need some 1,200 passes of the network; each result comes when ready.",
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
    needed = about(desk.explaining.expected("scales"))
    scales = gr.Checkbox(False, label=f"At several scales, too (about {needed} more)")
    buttons = tabs.start_and_stop("Compare")
    with gr.Row():
        page = gr.Button("Save report (HTML)", size="sm")
        maps = gr.Button("Save maps (.npz)", size="sm")
    named = gr.Checkbox(True, label="Name the file in the report, with its checksum")
    nothing = EMPTY_COMPARISON.format(one=desk.actions.words.one)
    drawn = gr.HTML(nothing, elem_id="dl-compared")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def compare(
        image: str | None,
        methods: list[str],
        target: str,
        against: str,
        scales: bool,
        color_map: str,
        outline: str,
        anyway: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        wish = tabs.wish_of(color_map, outline, anyway)
        for job in desk.compare(
            request.session_hash, image, methods, target, against, wish, scales=scales
        ):
            numbers = comparison_numbers(job.work.comparison, tabs.name_of(job.path))
            yield comparison(job, wish), plain({"running": job.work.running, **numbers})

    tabs.LongJob("comparison", compare, comparison, nothing).connect(
        desk,
        picture,
        [methods, target, against, scales],
        buttons,
        [drawn, facts],
        api_name="compare",
        api_description=(
            "Experiments on one image: methods side by side, their agreement, one class against "
            "another, and several scales if wanted; a result after each part. Returns HTML, and "
            "the numbers, summary and warnings as data."
        ),
    )

    def report(
        named: bool, color_map: str, outline: str, anyway: bool, request: gr.Request
    ) -> dict[str, str]:
        job = _last(desk, request.session_hash)
        wish, name = tabs.wish_of(color_map, outline, anyway), tabs.name_of(job.path)
        content = report_of(desk, job, wish, name if named else "")
        return as_file(f"{name if named else 'report'}.html", "text/html", content.encode())

    def raw(request: gr.Request) -> dict[str, str]:
        job = _last(desk, request.session_hash)
        name, state = tabs.name_of(job.path), job.work.comparison
        return as_file(f"{name}.npz", "application/octet-stream", maps_file(state))

    kept = gr.JSON(visible=False)
    text = "The last comparison or explanation of this session, as far as it is ready,"
    save(page, report, [named, *picture.wishes], kept, "report", f"{text} as one HTML page")
    save(maps, raw, None, kept, "maps", f"{text} as raw maps in one .npz file")


def save(
    button: Any, action: Callable[..., Any], inputs: Any, kept: Any, kind: str, text: str
) -> None:
    """Let a button hand over a file, which the browser saves; ``kept`` carries it there."""
    button.click(
        action,
        inputs,
        kept,
        api_name=kind,
        api_description=f"{text}: name, type, and content in base64.",
        show_progress_on=button,
        concurrency_limit=1,
    ).success(None, kept, None, js=SAVE, api_visibility="private").then(
        lambda: None, None, kept, **tabs.PRIVATE
    )


def report_of(desk: Desk, job: Job, wish: tabs.Wish, name: str) -> str:
    """Return the report of a job as HTML text; ``name`` of the file may be left out."""
    found, state = job.analysis, job.work.comparison
    told = About(
        name,
        found.sha256 if name else "",
        found.reasons,
        found.remarks,
        {"colors": wish.color_map, "outline": wish.outline, "seed": "0"},
    )
    return comparison_page(desk.bundle, state, canvas_of(found, wish, state.reading.lesion), told)


def _last(desk: Desk, session: str | None) -> Job:
    for name in ("comparison", "explanation"):
        job: Job | None = desk.shown(session, name)
        if job is not None and job.work.comparison.combined:
            return job
    raise UsageError("There is nothing to save yet. Press Compare and wait for a result.")


def maps_file(state: Comparison) -> bytes:
    """Return the raw maps as the bytes of an ``.npz`` file; see ``comparison_maps``."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **comparison_maps(state))
    return stream.getvalue()


def as_file(name: str, kind: str, content: bytes) -> dict[str, str]:
    """Return a file as JSON types: ``name``, ``type`` and ``base64``."""
    return {"name": name, "type": kind, "base64": base64.b64encode(content).decode()}
