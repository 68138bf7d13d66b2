"""The web interface: analyze an image, explain and compare, many images at once.

Runs on this computer only unless told otherwise. Actions live in ``app_actions``,
``app_explaining`` and ``app_batch``, what stands behind the page in ``app_desk``, ``app_jobs`` and
``app_uploads``, what stands before it in ``app_guard``, the tabs in ``app_tabs*``, and the looks in
``app_page*``.
"""

import atexit
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermlens.errors import UsageError
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.registry import METHODS
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.scorers import choose_scorers
from dermlens.progress import say
from dermlens.report.cases_view import CasePictures
from dermlens.serve import app_examples, app_page, app_style
from dermlens.serve.app_actions import MAX_BYTES
from dermlens.serve.app_desk import SESSIONS_KEPT, Desk
from dermlens.serve.app_examples import Example
from dermlens.serve.app_guard import PASSWORDS_LEFT, Guard, Site
from dermlens.serve.app_jobs import Jobs
from dermlens.serve.app_limits import warning
from dermlens.serve.app_page_about import about
from dermlens.serve.app_uploads import RunFolder, Uploads, give_each_upload_its_own_place

if TYPE_CHECKING:
    import gradio as gr

_QUEUE = 64
VISITS = 100
"""Images that a served page is expected to explain, about."""
_FIRST = "analyze"


def build_app(
    bundle: Bundle,
    examples: Sequence[Example] = (),
    uploads: Uploads | None = None,
    jobs: Jobs | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    data: Path | None = None,
) -> "gr.Blocks":
    """Build the page; known cases are shown by pictures of a prepared data set."""
    import gradio as gr

    truths = {one.sha256: one.truth for one in examples}
    desk = Desk(bundle, uploads, jobs, scorers, truths, CasePictures(data))
    with gr.Blocks(title=app_page.TITLE, analytics_enabled=False) as page:
        gr.HTML(app_page.header(bundle), elem_classes="dl-wide")
        gr.HTML(app_page.banner(bundle), elem_classes="dl-wide dl-sticky")
        _layout(desk, [(str(one.path), one.truth) for one in examples])
        page.unload(_at_end_of_session(desk, page))
    # Every call goes through the queue, where its limits are.
    page.queue(max_size=_QUEUE, api_open=False)
    desk.jobs.attach(page)
    return page


def _layout(desk: Desk, examples: list[tuple[str, str]]) -> None:
    import gradio as gr

    from dermlens.serve import app_tabs as tabs
    from dermlens.serve.app_tabs_batch import batch_tab
    from dermlens.serve.app_tabs_compare import compare_tab
    from dermlens.serve.app_tabs_evidence import evidence_tab

    with gr.Row(elem_classes="dl-main"):
        with gr.Column(min_width=240, elem_classes="dl-image"):
            picture = tabs.picture_of(desk, examples)
        with gr.Column(min_width=240, elem_classes="dl-tabs"), gr.Tabs() as chosen:
            with gr.Tab("Analyze", id=_FIRST) as analyze:
                tabs.analyze_tab(desk, picture)
            with gr.Tab("Explain") as explain:
                tabs.explain_tab(desk, picture)
            with gr.Tab("Compare") as compare:
                compare_tab(desk, picture)
            with gr.Tab("Evidence") as evidence:
                evidence_tab(desk, picture)
            with gr.Tab("Batch") as batch:
                batch_tab(desk, picture, chosen, _FIRST)
            with gr.Tab("About") as model:
                gr.Markdown(about(desk.bundle), elem_id="dl-about")
        # On a phone this stands below the results, elsewhere below the image.
        with gr.Column(min_width=240, elem_classes="dl-look"):
            tabs.place_viewer(picture)
    for tab in (analyze, explain, compare, evidence):
        tab.select(None, js=app_style.WITH_IMAGE, api_visibility="private")
    for tab in (batch, model):
        tab.select(None, js=app_style.WITHOUT_IMAGE, api_visibility="private")


def _at_end_of_session(desk: Desk, page: Any) -> Any:
    import gradio as gr

    def forget(request: gr.Request) -> None:
        session = request.session_hash
        desk.forget(session)
        # Gradio keeps what a session was shown for an hour more, unless it is told to drop it.
        holder = getattr(page, "state_holder", None)
        if holder is not None and session is not None:
            holder.session_data.pop(session, None)

    return forget


def launch(
    bundle_path: Path,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    allow_hosts: Sequence[str] = (),
    *,
    examples: Path | None = None,
    block: bool = True,
) -> Any:
    """Load a bundle and serve the page until interrupted.

    Uploaded files live in a folder of their own, which is removed at the end. ``examples`` is a
    prepared data set whose test images are offered, and whose training images are shown as known
    cases; left out, the last one that was given.

    Returns:
        The page; where not blocking, call ``close()`` on it when done.

    Raises:
        ModelError: If the bundle cannot be loaded.
        UsageError: If the port is taken.
        DataError: If the data set of the examples cannot be read.
    """
    said = warning(host, share, auth is not None)
    if said is not None:
        say(said)
    bundle = load_bundle(bundle_path)
    # Made now if it is to be made at all, not while the first visitor waits.
    scorers = choose_scorers(bundle, list(METHODS), images=VISITS)
    if block:
        _end_orderly_when_told_to()
    uploads = _upload_folder()
    jobs, site = Jobs(), Site(host, allow_hosts)
    offered = app_examples.offered(bundle, examples, uploads.folder / "examples")
    page = build_app(bundle, offered, uploads, jobs, scorers, app_examples.data_set(examples))
    uploads.held = jobs.awaited_files
    uploads.start(also=jobs.drop_unread)
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, share=share, auth=auth, **_served(site, jobs)
        )
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be used ({error}). Use another --port.") from None
    if public:
        site.allow(public)
    say(f"Serving {bundle.path} at {address}" + (f" and {public}" if public else ""))
    say("Press Ctrl+C to stop.")
    if block:
        try:
            page.block_thread()
        finally:
            # The uploads first, since more patience may not be had, then what runs.
            uploads.close()
            jobs.stop_all()
            page.close(verbose=False)
            # What arrived in the meantime.
            uploads.close()
    return page


def _end_orderly_when_told_to() -> None:
    """Let the closing of the terminal, and a supervisor, end the program as Ctrl+C does."""

    def end(*_: Any) -> None:
        # Told so twice, the first end must not be cut short: it deletes the uploads.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    # What is ignored stays so: under nohup the page outlives its terminal.
    numbers = [one for one in known if one and signal.getsignal(one) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, end)


def _upload_folder() -> Uploads:
    run = RunFolder()
    atexit.register(run.close)
    folder = run.path / "files"
    (folder / "examples").mkdir(parents=True)
    # Read by Gradio when components are made, so they must stand before it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Seconds until the end of a session is noticed.
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")
    give_each_upload_its_own_place()
    return Uploads(folder, kept=folder / "examples")


def _served(site: Site, jobs: Jobs) -> dict[str, Any]:
    """Return how the page is served, whatever the address."""
    from starlette.middleware import Middleware

    return {
        "quiet": True,
        "show_error": True,
        "max_file_size": MAX_BYTES,
        "max_threads": 8,
        "state_session_capacity": SESSIONS_KEPT,
        "ssr_mode": False,
        "footer_links": ["api"],
        # Neither the address book of who asked what, nor a copy of every image in the browser.
        "enable_monitoring": False,
        "run_history": False,
        "auth_message": PASSWORDS_LEFT,
        "theme": app_style.theme(),
        "css": app_style.CSS,
        "head": app_style.HEAD,
        "app_kwargs": {"middleware": [Middleware(Guard, site=site, readers=jobs.readers)]},
        "prevent_thread_lock": True,
    }
