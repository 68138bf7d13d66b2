"""The web interface: analyze an image, explain and compare, many images at once.

Runs on this computer only unless told otherwise. Actions live in ``app_actions``,
``app_explaining`` and ``app_batch``, what stands behind the page in ``app_desk`` and
``app_privacy``, the tabs in ``app_tabs*``, and the looks in ``app_page*``.
"""

import atexit
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermlens.errors import UsageError
from dermlens.explain.registry import METHODS
from dermlens.explain.scorers import choose_scorers
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.progress import say
from dermlens.serve import app_page, app_style
from dermlens.serve.app_desk import Desk
from dermlens.serve.app_page_about import about
from dermlens.serve.app_privacy import SESSIONS_KEPT, Guard, Uploads
from dermlens.serve.app_reading import MAX_BYTES

if TYPE_CHECKING:
    import gradio as gr

EXAMPLES: tuple[tuple[str, int], ...] = (
    ("mel", 4),
    ("nv", 1),
    ("bcc", 3),
    ("vasc", 2),
    ("bkl", 6),
    ("akiec", 5),
    ("df", 7),
)
"""Diagnosis and seed of the drawn examples."""
_QUEUE = 64
VISITS = 100
"""Images that a served page is expected to explain, about."""


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """Turn ``"name:password"`` into its parts.

    Raises:
        UsageError: If the text has another form.

    Example:
        >>> parse_auth("ann:a:b")
        ('ann', 'a:b')
    """
    if text is None:
        return None
    name, _, password = text.partition(":")
    if not name or not password:
        raise UsageError("--auth needs a name and a password: --auth NAME:PASSWORD.")
    return name, password


def build_app(
    bundle: Bundle, examples: Path | None = None, uploads: Uploads | None = None
) -> "gr.Blocks":
    """Build the page.

    Args:
        bundle: Trained model; loaded once and shared by all visitors.
        examples: Folder to draw the examples into; None for no examples.
        uploads: Where uploads lie, so that a session's can be deleted when it ends.

    Returns:
        The page. Endpoints: ``/analyze``, ``/explain``, ``/compare``, ``/report``, ``/maps`` and
        ``/batch``; see ``docs/api.md``.
    """
    import gradio as gr

    desk = Desk(bundle, uploads)
    drawn = [] if examples is None else draw_examples(examples, bundle.input_size)
    with gr.Blocks(title=app_page.TITLE, analytics_enabled=False) as page:
        gr.HTML(app_page.header(bundle), elem_classes="dl-wide")
        gr.HTML(app_page.BANNER, elem_classes="dl-wide dl-sticky")
        _layout(desk, drawn)
        page.unload(_at_end_of_session(desk, page))
    page.queue(max_size=_QUEUE)
    return page


def _layout(desk: Desk, examples: list[str]) -> None:
    import gradio as gr

    from dermlens.serve.app_tabs import (
        analyze_tab,
        color_map_choice,
        display_column,
        explain_tab,
        image_column,
    )
    from dermlens.serve.app_tabs_batch import batch_tab
    from dermlens.serve.app_tabs_compare import compare_tab

    color_map = color_map_choice()
    with gr.Row(elem_classes="dl-main"):
        with gr.Column(scale=2, min_width=240, elem_classes="dl-examples dl-image"):
            image = image_column(examples)
        with gr.Column(scale=5, min_width=240, elem_classes="dl-tabs"), gr.Tabs():
            beside = []
            for title, fill in (
                ("Analyze", analyze_tab),
                ("Explain", explain_tab),
                ("Compare", compare_tab),
            ):
                with gr.Tab(title) as tab:
                    fill(desk, image, color_map)
                beside.append(tab)
            with gr.Tab("Batch") as batch:
                batch_tab(desk)
            with gr.Tab("About") as model:
                gr.Markdown(about(desk.bundle), elem_id="dl-about")
        # On a phone this stands below the results, elsewhere below the image.
        with gr.Column(scale=2, min_width=240, elem_classes="dl-display"):
            display_column(color_map)
    for tab in beside:
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


def draw_examples(folder: Path, size: tuple[int, int]) -> list[str]:
    """Draw one example per diagnosis and return the files."""
    from PIL import Image

    from dermlens.data.synthetic import draw

    scale = max(1, round(400 / size[1]))
    files = []
    for code, seed in EXAMPLES:
        path = folder / f"drawn_{code}.jpg"
        drawn, _, _ = draw(code, seed, (size[0] * scale, size[1] * scale))
        Image.fromarray(drawn).save(path, quality=95)
        files.append(str(path))
    return files


def launch(
    bundle_path: Path,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    *,
    block: bool = True,
) -> Any:
    """Load a bundle and serve the page until interrupted.

    Uploaded files live in a folder of their own, which is removed at the end.

    Args:
        bundle_path: Folder of a bundle.
        host: Address to listen on; the default is reachable from this computer only.
        port: Port; None for the first free one from 7860.
        share: Make a public address through Gradio's service.
        auth: Name and password that visitors must give.
        block: Wait until interrupted; else return at once.

    Returns:
        The page; where not blocking, call ``close()`` on it when done.

    Raises:
        ModelError: If the bundle cannot be loaded.
        UsageError: If the port is taken.
    """
    bundle = load_bundle(bundle_path)
    # Made now if it is to be made at all, not while the first visitor waits.
    choose_scorers(bundle, list(METHODS), images=VISITS)
    uploads = _upload_folder()
    page = build_app(bundle, uploads.folder / "examples", uploads)
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, share=share, auth=auth, **_served()
        )
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be used ({error}). Use another --port.") from None
    say(f"Serving {bundle.path} at {address}" + (f" and {public}" if public else ""))
    say("Press Ctrl+C to stop.")
    if block:
        # Stopped by a supervisor, the end must come the orderly way: uploads are removed then.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        page.block_thread()
    return page


def _upload_folder() -> Uploads:
    folder = Path(tempfile.mkdtemp(prefix="dermlens-app-"))
    (folder / "examples").mkdir()
    # Read by Gradio when components are made, so they must stand before it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Seconds until the end of a session is noticed.
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")
    uploads = Uploads(folder, kept=folder / "examples")
    atexit.register(uploads.close)
    uploads.start()
    return uploads


def _served() -> dict[str, Any]:
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
        "theme": app_style.theme(),
        "css": app_style.CSS,
        "head": app_style.HEAD,
        "js": app_style.ON_LOAD,
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "prevent_thread_lock": True,
    }
