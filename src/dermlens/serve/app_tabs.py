"""The Analyze and Explain tabs and the image beside them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dermlens.explainers.registry import METHODS
from dermlens.explainers.target import PREDICTED
from dermlens.report.comparison_view import caption
from dermlens.report.layers import COLOR_MAPS
from dermlens.serve.app_desk import Desk
from dermlens.serve.app_page import empty, grad_cam, verdict
from dermlens.serve.app_page_results import EMPTY_EXPLANATION, cards
from dermlens.serve.app_style import OPACITY, SET_CONTOUR, SET_OPACITY

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events that only the page itself needs."""
SHARED: dict[str, Any] = {"concurrency_id": "explaining", "concurrency_limit": 1}
"""Of events that use the explainers, which work for one visitor at a time."""
_FIRST_METHODS = ["grad_cam", "grad_cam_plus_plus", "integrated_gradients"]


def image_column(label: str, examples: list[str]) -> Any:
    """Lay out the image and the examples, and return the image."""
    import gradio as gr

    image = gr.Image(
        label=label,
        sources=["upload", "clipboard", "webcam"],
        type="filepath",
        image_mode=None,
        height=260,
        elem_id="dl-upload",
    )
    receives_files(image, lambda payload: None if payload is None else payload.path)
    if examples:
        gr.Examples(
            examples,
            image,
            label="Drawn examples (synthetic, no patients)",
            examples_per_page=len(examples),
            cache_examples=False,
        )
    return image


def color_map_choice() -> Any:
    """Return the choice of color map; it is placed by ``display_column``."""
    import gradio as gr

    return gr.Dropdown(
        [(name.capitalize(), name) for name in COLOR_MAPS],
        value=COLOR_MAPS[0],
        label="Color map",
        info="All are perceptually uniform. Two-sided maps stay orange and purple.",
        render=False,
    )


def display_column(color_map: Any) -> None:
    """Lay out how maps are shown; opacity and contour change in the browser alone."""
    import gradio as gr

    opacity = gr.Slider(0.0, 1.0, OPACITY, step=0.05, label="Opacity of the maps")
    contour = gr.Checkbox(False, label="Contour of the strongest 20 %")
    color_map.render()
    opacity.input(None, opacity, None, js=SET_OPACITY, api_visibility="private")
    contour.input(None, contour, None, js=SET_CONTOUR, api_visibility="private")


def receives_files(component: Any, receive: Any) -> None:
    """Let a component hand over the uploaded file itself, and fetch no addresses.

    Decoding, with its limits, belongs to the package. (A subclass would make Gradio write an
    interface file into the package's folder.)
    """
    import gradio as gr
    from gradio.utils import get_upload_folder

    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if "://" in str(path)[:16]:
            raise gr.Error(
                "Addresses are not fetched. Upload the file itself.", print_exception=False
            )
        return await move(path)

    def receive_uploads(payload: Any) -> Any:
        # Gradio checks paths only where a request marks them as files, which it need not do.
        listed = getattr(payload, "root", payload)
        for one in listed if isinstance(listed, list) else [listed]:
            if one is not None and not _lies_in(one.path, get_upload_folder()):
                raise gr.Error("Only uploaded files are read.", print_exception=False)
        return receive(payload)

    component.preprocess = receive_uploads
    component.async_move_resource_to_block_cache = move_upload


def _lies_in(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def analyze_tab(desk: Desk, image: Any, color_map: Any) -> None:
    """Lay out and connect the Analyze tab."""
    import gradio as gr

    with gr.Row():
        with gr.Column(min_width=230):
            answer = gr.HTML(empty(desk.bundle), elem_id="dl-answer")
        with gr.Column(min_width=230):
            target = gr.Dropdown(
                desk.actions.target_choices(), value=PREDICTED, label="Show the evidence for"
            )
            overlay = gr.HTML("", elem_id="dl-overlay")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")
    nothing = (empty(desk.bundle), "", None, PREDICTED)

    def analyze(image: str | None, color_map: str, request: gr.Request) -> tuple[Any, ...]:
        if image is None:
            return nothing
        found = desk.analyze(request.session_hash, image)
        drawn = grad_cam(desk.actions, found, found.predicted, color_map)
        return verdict(desk.bundle, found), drawn, desk.actions.facts(found), PREDICTED

    def show(wanted: str, colors: str, request: gr.Request) -> Any:
        held = desk.shown(request.session_hash, "analysis")
        if held is None:
            return gr.skip()
        goal = desk.actions.target(held.analysis, wanted)
        return grad_cam(desk.actions, held.analysis, goal, colors)

    shown = [answer, overlay, facts, target]
    analyzing = image.change(
        analyze,
        [image, color_map],
        shown,
        api_name="analyze",
        api_description=(
            "Analyze one image in one forward pass. Returns the verdict and the Grad-CAM as HTML, "
            "and as data: abstain and reasons, most probable class, prediction set, "
            "probabilities, calibrated or not, logits, flags, out-of-distribution score, usability."
        ),
        show_progress="minimal",
        show_progress_on=answer,
        concurrency_limit=2,
    )
    # An older answer must not stand beside an image that could not be read, nor a broken image.
    analyzing.failure(lambda: (*nothing, None), None, [*shown, image], **PRIVATE)
    for changed in (target, color_map):
        changed.input(show, [target, color_map], overlay, **PRIVATE)


def explain_tab(desk: Desk, image: Any, color_map: Any) -> None:
    """Lay out and connect the Explain tab."""
    import gradio as gr

    methods = methods_choice(
        desk, _FIRST_METHODS, "Methods that cover or cut the image need hundreds of passes."
    )
    target = target_choice(desk)
    start, stop = start_and_stop("Explain")
    drawn = gr.HTML(EMPTY_EXPLANATION, elem_id="dl-explained")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    @desk.jobs.stoppable
    def explain(
        image: str | None, methods: list[str], target: str, color_map: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        for job in desk.explain(request.session_hash, image, methods, target):
            yield cards(job, color_map), desk.explaining.facts(job.work)

    connect_long_job(
        desk,
        "explanation",
        explain,
        cards,
        inputs=(image, methods, target, color_map),
        buttons=(start, stop),
        outputs=(drawn, facts),
        nothing=EMPTY_EXPLANATION,
        api_name="explain",
        api_description=(
            "Attribution maps of one image by several methods; a result after each. Returns the "
            "maps as HTML, and as data: question, score, cost, convergence delta or R2, and "
            "agreement of each method."
        ),
    )


def methods_choice(desk: Desk, first: Sequence[str], note: str) -> Any:
    """Lay out the choice of methods, and say why some are missing."""
    import gradio as gr

    names = desk.explaining.methods
    chosen = [name for name in first if name in names] or names[:1]
    choices = [(METHODS[name].title, name) for name in names]
    found = gr.CheckboxGroup(choices, value=chosen, label="Methods", info=note)
    if desk.explaining.without:
        gr.HTML(caption(f"Without class activation maps. {desk.explaining.without}"))
    return found


def target_choice(desk: Desk) -> Any:
    """Lay out the choice of the class to explain."""
    import gradio as gr

    label = f"{desk.actions.words.one.capitalize()} to explain"
    return gr.Dropdown(desk.actions.target_choices(), value=PREDICTED, label=label)


def start_and_stop(start: str) -> tuple[Any, Any]:
    """Lay out the buttons of a long job."""
    import gradio as gr

    with gr.Row():
        return gr.Button(start, variant="primary", scale=3), gr.Button("Stop", scale=1)


def connect_long_job(
    desk: Desk,
    name: str,
    work: Callable[..., Any],
    draw: Callable[..., str],
    *,
    inputs: Sequence[Any],
    buttons: tuple[Any, Any],
    outputs: tuple[Any, Any],
    nothing: str,
    **api: str,
) -> None:
    """Connect a job that shows each result when it is ready, can be stopped, and be drawn again."""
    import gradio as gr

    image, color_map, shown_on = inputs[0], inputs[-1], outputs[0]

    def again(colors: str, request: gr.Request, **options: bool) -> Any:
        job = desk.shown(request.session_hash, name)
        return gr.skip() if job is None else draw(job, colors, **options)

    def stop(colors: str, request: gr.Request) -> Any:
        return again(colors, request, stopped=True)

    running = buttons[0].click(
        work,
        list(inputs),
        list(outputs),
        show_progress="minimal",
        show_progress_on=shown_on,
        **api,
        **SHARED,
    )
    buttons[1].click(stop, color_map, shown_on, cancels=[running], queue=False, **PRIVATE)
    color_map.input(again, color_map, shown_on, **PRIVATE)
    image.change(lambda: (nothing, None), None, list(outputs), cancels=[running], **PRIVATE)


def name_of(path: str) -> str:
    """Return the name of an upload for people and downloads: letters, digits, points, dashes."""
    stem = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in Path(path).stem
    )
    return stem.strip("_")[:60] or "image"
