"""The web interface: analyze an image, explain the answer, read what the model is.

Runs on this computer only unless told otherwise. The actions live in ``app_actions``, the looks in
``app_page``.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermlens.errors import DermlensError, UsageError
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.progress import say
from dermlens.serve import app_page
from dermlens.serve.app_actions import DECISION, MAX_BYTES, Actions, Analysis

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
_SECONDS_KEPT = 900
_QUEUE = 64


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


def build_app(bundle: Bundle, examples: Path | None = None) -> "gr.Blocks":
    """Build the page.

    Args:
        bundle: Trained model; loaded once and shared by all visitors.
        examples: Folder to draw the examples into; None for no examples.

    Returns:
        The page. Endpoints: ``/analyze`` (image) and ``/explain`` (image, methods, target).
    """
    import gradio as gr

    actions = Actions(bundle)
    actions.warm_up()
    with gr.Blocks(
        title=app_page.TITLE, analytics_enabled=False, delete_cache=(60, _SECONDS_KEPT)
    ) as page:
        gr.HTML(app_page.header(bundle), elem_classes="dl-wide")
        gr.HTML(app_page.BANNER, elem_classes="dl-wide dl-sticky")
        analysis = gr.State(None, time_to_live=_SECONDS_KEPT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_classes="dl-examples"):
                image = _upload()
                if examples is not None:
                    gr.Examples(
                        draw_examples(examples, bundle.input_size),
                        image,
                        label="Drawn examples (synthetic, no patients)",
                        examples_per_page=len(EXAMPLES),
                        cache_examples=False,
                    )
                opacity = gr.Slider(
                    0.0, 1.0, app_page.OPACITY, step=0.05, label="Opacity of the maps"
                )
            with gr.Column(scale=5, min_width=320), gr.Tabs():
                with gr.Tab("Analyze"):
                    _analyze_tab(actions, image, analysis)
                with gr.Tab("Explain"):
                    _explain_tab(actions, image)
                with gr.Tab("About"):
                    gr.Markdown(app_page.about(bundle))
        opacity.input(None, opacity, None, js=app_page.SET_OPACITY, api_visibility="private")
    page.queue(max_size=_QUEUE)
    return page


def _upload() -> Any:
    import gradio as gr

    image = gr.Image(
        label="Dermatoscopic image",
        sources=["upload", "clipboard", "webcam"],
        type="filepath",
        image_mode=None,
        height=260,
    )
    # The file itself is handed over: decoding, with its limits, belongs to the package. (A
    # subclass would make Gradio write an interface file into the package's folder.)
    receive: Any = lambda payload: None if payload is None else payload.path  # noqa: E731
    image.preprocess = receive
    return image


def _analyze_tab(actions: Actions, image: Any, analysis: Any) -> None:
    import gradio as gr

    bundle = actions.bundle
    with gr.Row():
        with gr.Column(min_width=280):
            answer = gr.HTML(app_page.EMPTY)
        with gr.Column(min_width=280):
            target = gr.Dropdown(
                actions.target_choices(), value=DECISION, label="Show the evidence for"
            )
            overlay = gr.HTML("")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    nothing = (None, app_page.EMPTY, "", None, DECISION)

    @sentences
    def analyze(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return nothing
        found = actions.analyze(Path(path))
        return (
            found,
            app_page.verdict(bundle, found),
            app_page.grad_cam(bundle, found, found.decision),
            actions.facts(found),
            DECISION,
        )

    @sentences
    def show(found: Analysis | None, wanted: str) -> str:
        if found is None:
            return ""
        return app_page.grad_cam(bundle, found, actions.target(found, wanted))

    shown = [analysis, answer, overlay, facts, target]
    analyzing = image.change(
        analyze,
        image,
        shown,
        api_name="analyze",
        api_description="Probabilities, decision, flags and Grad-CAM of one image.",
        show_progress="minimal",
        show_progress_on=answer,
        concurrency_limit=2,
    )
    # An older answer must not stand beside an image that could not be read.
    analyzing.failure(
        lambda: nothing, None, shown, api_visibility="private", show_progress="hidden"
    )
    target.input(
        show, [analysis, target], overlay, api_visibility="private", show_progress="hidden"
    )


def _explain_tab(actions: Actions, image: Any) -> None:
    import gradio as gr

    methods = gr.CheckboxGroup(
        actions.method_choices(),
        value=["grad_cam", "grad_cam_plus_plus", "integrated_gradients"],
        label="Methods",
        info="Methods that cover or cut the image need hundreds of passes: up to a minute each.",
    )
    target = gr.Dropdown(actions.target_choices(), value=DECISION, label="Diagnosis to explain")
    with gr.Row():
        start = gr.Button("Explain", variant="primary", scale=3)
        stop = gr.Button("Stop", scale=1)
    drawn = gr.HTML(app_page.EMPTY_EXPLANATION)
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    @sentences_while_running
    def explain(path: str | None, chosen: list[str], wanted: str) -> Iterator[tuple[Any, ...]]:
        if path is None:
            raise UsageError("There is no image yet. Upload one or click an example.")
        for found, step in actions.explain(Path(path), chosen, wanted):
            yield app_page.cards(actions.bundle, found, step), actions.explained_facts(step)

    running = start.click(
        explain,
        [image, methods, target],
        [drawn, facts],
        api_name="explain",
        api_description="Attribution maps of one image by several methods, as each is ready.",
        show_progress="hidden",
        concurrency_limit=1,
    )
    stop.click(None, cancels=[running], api_visibility="private")
    image.change(
        lambda: (app_page.EMPTY_EXPLANATION, None),
        None,
        [drawn, facts],
        cancels=[running],
        api_visibility="private",
        show_progress="hidden",
    )


def sentences(action: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors of an action into one sentence on the page, never a traceback."""

    @wraps(action)
    def guarded(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except Exception as error:
            raise _shown(error) from None

    return guarded


def sentences_while_running(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """As ``sentences``, for actions that yield."""

    @wraps(action)
    def guarded(*arguments: Any) -> Iterator[Any]:
        try:
            yield from action(*arguments)
        except Exception as error:
            raise _shown(error) from None

    return guarded


def _shown(error: Exception) -> Exception:
    import gradio as gr

    if isinstance(error, DermlensError):
        return gr.Error(str(error), print_exception=False)
    say(f"Unexpected {type(error).__name__} in the web interface: {error}")
    return gr.Error(
        "This did not work, and the reason is on the server's terminal. Try another image.",
        print_exception=False,
    )


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


def theme() -> Any:
    """Return the look: calm colors and the fonts of the visitor's system."""
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(
        primary_hue="cyan",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )


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
    uploads = Path(tempfile.mkdtemp(prefix="dermlens-app-"))
    # Read by Gradio when components are made, so it must stand before it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    examples = uploads / "examples"
    examples.mkdir()
    page = build_app(bundle, examples)
    try:
        _, address, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            quiet=True,
            show_error=True,
            max_file_size=MAX_BYTES,
            footer_links=["api"],
            theme=theme(),
            css=app_page.CSS,
            prevent_thread_lock=True,
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
