"""The Batch tab: many files to one table, from which any of them can be opened."""

import time
from collections.abc import Iterator
from typing import Any

from dermlens.errors import UsageError
from dermlens.progress import duration
from dermlens.serve import app_batch
from dermlens.serve.app_desk import Desk
from dermlens.serve.app_page_results import busy, finished
from dermlens.serve.app_style import WITH_IMAGE
from dermlens.serve.app_tabs import PRIVATE, Picture, receives_files, start_and_stop
from dermlens.serve.app_tabs_compare import as_file, save

EMPTY_BATCH = f"""
<div class="dl-empty">Choose up to {app_batch.MAX_FILES} images, together up to
{app_batch.MAX_BATCH_BYTES // 2**20} MB, and press <em>Analyze all</em>. A file that cannot be
read gets a row that says why.</div>
"""
_WIDTHS = {"No.": "60px", "Picture": "90px", "Verdict": "90px", "Most probable": "170px"}
_WIDTHS |= {"Remarks": "280px", "File": "150px", "Alerts": "170px", "Cannot be excluded": "170px"}
_BATCH = "batch"


def batch_tab(desk: Desk, picture: Picture, tabs: Any, first: str) -> None:
    """Lay out and connect the Batch tab; a row that is clicked is opened in the tab ``first``."""
    import gradio as gr

    with gr.Row():
        files = gr.File(
            label="Images", file_count="multiple", height=150, elem_id="dl-files", scale=2
        )
        labels = gr.File(label="True labels, a table (optional)", height=150, elem_id="dl-labels")
    receives_files(files, named_files)
    receives_files(labels, named_files)
    anyway = gr.Checkbox(False, label="Show what the model would say where it abstains, too")
    start, stop = start_and_stop("Analyze all")
    with gr.Row():
        csv = gr.Button("Save table (CSV)", size="sm")
        page = gr.Button("Save summary (HTML)", size="sm")
    status = gr.HTML(EMPTY_BATCH, elem_id="dl-batch-status")
    named = app_batch.columns(desk.bundle)
    table = gr.Dataframe(
        headers=list(named),
        datatype=list(named.values()),
        column_widths=[_WIDTHS.get(name, "120px") for name in named],
        interactive=False,
        show_search="filter",
        wrap=True,
        label="Results; click a heading to sort, a row to open it",
        max_height=640,
        elem_id="dl-batch",
    )
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def batch(
        files: list[tuple[str, str]] | None,
        labels: list[tuple[str, str]] | None,
        anyway: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        given, began = files or [], time.perf_counter()
        for rows in desk.batch(request.session_hash, given, labels):
            done, total = len(rows), len(given)
            shown = app_batch.shown_table(desk.actions, rows, anyway=anyway)
            seconds = time.perf_counter() - began
            if done < total:
                pace = seconds / done
                text = f"{done} of {total} files."
                yield busy(text, done, total, pace, pace * (total - done)), shown, None
            else:
                data = app_batch.as_data(desk.actions, rows, anyway=anyway)
                yield _told(desk, rows, seconds), shown, data

    halted = finished("Stopped. The table holds the files done so far.")
    start.click(
        desk.jobs.stoppable(batch, lambda *_: (halted, gr.skip(), gr.skip())),
        [files, labels, anyway],
        [status, table, facts],
        api_name="batch",
        api_description=(
            "Analyze many images; a result after each. Returns status as HTML, the table, and per "
            "file what /analyze returns as data, or the sentence that says why it could not be "
            "read."
        ),
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_limit=1,
        concurrency_id=_BATCH,
    )

    def stopped(request: gr.Request) -> str:
        desk.jobs.stop(request.session_hash, _BATCH)
        return halted

    def again(anyway: bool, request: gr.Request) -> Any:
        rows = desk.shown(request.session_hash, "batch")
        return (
            gr.skip() if rows is None else app_batch.shown_table(desk.actions, rows, anyway=anyway)
        )

    def opened(event: gr.SelectData, request: gr.Request) -> Any:
        rows, number = _rows(desk, request.session_hash), int(event.row_value[0])
        return str(rows[number - 1].path), gr.update(selected=first)

    def as_table(anyway: bool, request: gr.Request) -> dict[str, str]:
        text = app_batch.as_csv(desk.actions, _rows(desk, request.session_hash), anyway=anyway)
        return as_file("predictions.csv", "text/csv", text.encode())

    def summary(anyway: bool, request: gr.Request) -> dict[str, str]:
        rows = _rows(desk, request.session_hash)
        text = app_batch.summary_page(desk.actions, rows, anyway=anyway)
        return as_file("summary.html", "text/html", text.encode())

    stop.click(stopped, None, status, queue=False, **PRIVATE)
    anyway.input(again, anyway, table, **PRIVATE)
    table.select(opened, None, [picture.image, tabs], **PRIVATE).success(
        None, None, None, js=WITH_IMAGE, api_visibility="private"
    )
    kept = gr.JSON(visible=False)
    save(csv, as_table, anyway, kept, "table", "The last batch of this session as a CSV file")
    save(page, summary, anyway, kept, "summary", "The last batch of this session as an HTML page")

    def noted(given: list[tuple[str, str]] | None, request: gr.Request) -> None:
        desk.note(request.session_hash, [path for _, path in given or []])

    for one in (files, labels):
        one.change(noted, one, None, **PRIVATE)


def named_files(payload: Any) -> list[tuple[str, str]] | None:
    """Return name and path of each uploaded file, from what Gradio received."""
    if payload is None:
        return None
    listed = getattr(payload, "root", payload)
    listed = listed if isinstance(listed, list) else [listed]
    return [(one.orig_name or one.path, one.path) for one in listed]


def _rows(desk: Desk, session: str | None) -> list[app_batch.Row]:
    rows: list[app_batch.Row] | None = desk.shown(session, "batch")
    if rows is None:
        raise UsageError("There is no batch yet. Choose images and press Analyze all.")
    return rows


def _told(desk: Desk, rows: list[app_batch.Row], seconds: float) -> str:
    taken = f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
    text = [app_batch.told(desk.actions, rows), *app_batch.measured(desk.actions, rows)]
    return finished(f"{' '.join(text)} Took {taken}.")
