"""The Batch tab: many files to one table."""

from collections.abc import Iterator
from typing import Any

from dermlens.progress import duration
from dermlens.serve import app_batch
from dermlens.serve.app_desk import Desk
from dermlens.serve.app_page_results import busy, finished
from dermlens.serve.app_tabs import PRIVATE, receives_files, start_and_stop
from dermlens.serve.app_tabs_compare import FILE_TEMPLATE, as_file

EMPTY_BATCH = f"""
<div class="dl-empty">Choose up to {app_batch.MAX_FILES} images, together up to
{app_batch.MAX_BATCH_BYTES // 2**20} MB, and press <em>Analyze all</em>. A file that cannot be
read gets a row that says why.</div>
"""
_WIDTHS = {"File": "150px", "Verdict": "90px", "Most probable": "190px", "Reason": "310px"}


def batch_tab(desk: Desk) -> None:
    """Lay out and connect the Batch tab."""
    import gradio as gr

    files = gr.File(
        label="Images", file_count="multiple", height=190, elem_id="dl-files", file_types=None
    )
    receives_files(files, named_files)
    start, stop = start_and_stop("Analyze all")
    status = gr.HTML(EMPTY_BATCH, elem_id="dl-batch-status")
    table = gr.Dataframe(
        headers=list(app_batch.columns(desk.bundle)),
        datatype=list(app_batch.columns(desk.bundle).values()),
        column_widths=[_WIDTHS.get(name, "120px") for name in app_batch.columns(desk.bundle)],
        interactive=False,
        show_search="filter",
        wrap=True,
        label="Results; click a heading to sort",
        max_height=640,
        elem_id="dl-batch",
    )
    link = gr.HTML(None, html_template=FILE_TEMPLATE, elem_id="dl-csv")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    @desk.jobs.stoppable
    def batch(
        files: list[tuple[str, str]] | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        import time

        given, began = files or [], time.perf_counter()
        for rows in desk.batch(request.session_hash, given):
            done, total = len(rows), len(given)
            shown = app_batch.shown_table(desk.actions, rows)
            if done < total:
                pace = (time.perf_counter() - began) / done
                text = f"{done} of {total} files."
                yield busy(text, done, total, pace, pace * (total - done)), shown, None, None
            else:
                csv = as_file(
                    "predictions.csv", "text/csv", app_batch.as_csv(desk.actions, rows).encode()
                )
                told = _told(desk, rows, time.perf_counter() - began)
                yield told, shown, csv, app_batch.as_data(desk.actions, rows)

    running = start.click(
        batch,
        files,
        [status, table, link, facts],
        api_name="batch",
        api_description=(
            "Analyze many images; a result after each. Returns status as HTML, the table, at the "
            "end the CSV file (name, type, base64), and per file what /analyze returns as data, or "
            "the sentence that says why it could not be read."
        ),
        show_progress="minimal",
        show_progress_on=status,
        concurrency_limit=1,
    )
    stop.click(
        lambda: finished("Stopped. The table holds the files done so far."),
        None,
        status,
        cancels=[running],
        queue=False,
        **PRIVATE,
    )

    def noted(given: list[tuple[str, str]] | None, request: gr.Request) -> None:
        desk.note(request.session_hash, [path for _, path in given or []])

    files.change(noted, files, None, **PRIVATE)


def named_files(payload: Any) -> list[tuple[str, str]] | None:
    """Return name and path of each uploaded file, from what Gradio received."""
    if payload is None:
        return None
    listed = getattr(payload, "root", payload)
    listed = listed if isinstance(listed, list) else [listed]
    return [(one.orig_name or one.path, one.path) for one in listed]


def _told(desk: Desk, rows: list[app_batch.Row], seconds: float) -> str:
    read = [row.analysis for row in rows if row.analysis is not None]
    taken = f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
    parts = [f"the model abstains on {sum(found.abstains for found in read)}"]
    for point in app_batch.alerts(desk.bundle):
        count = sum(found.flags[point.name] for found in read)
        parts.append(f"{point.name} is not excluded on {count}")
    parts.append(f"{len(rows) - len(read)} could not be read")
    text = f"{len(rows)} files in {taken}: {', '.join(parts)}."
    return finished(text)
