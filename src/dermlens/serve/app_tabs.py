"""The picture beside the tabs, and the Analyze and Explain tabs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermlens.explainers.registry import METHODS
from dermlens.explainers.target import PREDICTED
from dermlens.report.facts import of_skin, title
from dermlens.report.layers import COLOR_MAPS
from dermlens.report.verdict import caption, verdict
from dermlens.serve import app_style
from dermlens.serve.app_actions import Wish
from dermlens.serve.app_desk import Desk, Job, Shown
from dermlens.serve.app_explaining import with_outline
from dermlens.serve.app_page import empty, evidence
from dermlens.serve.app_page_results import EMPTY_EXPLANATION, WAITING, cards

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events that only the page itself needs."""
EXPLAINING = "explaining"
SHARED: dict[str, Any] = {"concurrency_id": EXPLAINING, "concurrency_limit": 1}
"""Of events that use the explainers, which work for one visitor at a time."""
_FIRST_METHODS = ["grad_cam", "grad_cam_plus_plus", "integrated_gradients"]


@dataclass(frozen=True)
class Picture:
    """The components beside the tabs: the image, and how it and its maps are shown.

    ``drawing`` is the event of an outline that was drawn in the viewer.
    """

    image: Any
    folded: Any
    viewer: Any
    drawing: Any
    color_map: Any
    outline: Any
    anyway: Any

    @property
    def wishes(self) -> list[Any]:
        """What ``wish_of`` takes."""
        return [self.color_map, self.outline, self.anyway]


def wish_of(color_map: str, outline: str, anyway: bool) -> Wish:
    """Return how a visitor wants to see things, from the values of ``Picture.wishes``."""
    return Wish(color_map, outline, bool(anyway))


def picture_of(desk: Desk, examples: Sequence[tuple[str, str]]) -> Picture:
    """Make the image, the examples (file, caption), and what is chosen about maps.

    Viewer and choices are placed by ``place_viewer``.
    """
    import gradio as gr

    called = desk.actions.words.image
    with gr.Accordion(title(called), open=True, elem_id="dl-folded") as folded:
        image = gr.File(
            label=f"{title(called)}: drop, click or paste", height=120, elem_id="dl-upload"
        )
        receives_files(image, lambda payload: None if payload is None else payload.path)
        if examples:
            gallery = gr.Gallery(
                list(examples), label="Examples", columns=5, height="auto", allow_preview=False,
                object_fit="cover", buttons=[], elem_id="dl-examples", interactive=False,
            )  # fmt: skip
            files = [path for path, _ in examples]

            def pick(event: gr.SelectData) -> str:
                return files[event.index]

            gallery.select(pick, None, image, **PRIVATE)
    color_map = gr.Dropdown(
        [(name.capitalize(), name) for name in COLOR_MAPS],
        value=COLOR_MAPS[0],
        label="Colors of the maps",
        render=False,
    )
    outlines = [("None", "none"), ("Found by color", "automatic"), ("Drawn", "drawn")]
    skin = of_skin(desk.bundle.labels)
    outline = gr.Radio(
        outlines if skin else [outlines[0], outlines[2]],
        value=outlines[skin][1],
        label=f"Outline of the {desk.actions.words.lesion}",
        render=False,
    )
    anyway = gr.Checkbox(False, label="Show it anyway", visible=False, render=False)
    viewer = app_style.viewer()

    def drawn(event: gr.EventData, request: gr.Request) -> str:
        desk.draw_outline(request.session_hash, event.points)
        return "drawn"

    drawing = viewer.submit(drawn, None, outline, **PRIVATE)
    return Picture(image, folded, viewer, drawing, color_map, outline, anyway)


def place_viewer(picture: Picture) -> None:
    """Lay out the viewer and what is chosen about maps."""
    import gradio as gr

    picture.viewer.render()
    with gr.Row():
        picture.color_map.render()
        picture.outline.render()


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


def analyze_tab(desk: Desk, picture: Picture) -> None:
    """Lay out and connect the Analyze tab."""
    import gradio as gr

    answer = gr.HTML(empty(desk.bundle), elem_id="dl-answer")
    picture.anyway.render()
    target = gr.Dropdown(
        desk.actions.target_choices(), value=PREDICTED, label="Show the evidence for"
    )
    overlay = gr.HTML("", elem_id="dl-overlay")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def drawn(session: str | None, shown: Shown, target: str, wish: Wish) -> tuple[Any, ...]:
        found = shown.analysis
        goal = desk.actions.target(found, target)
        return (
            verdict(
                desk.bundle,
                found,
                reasons=found.reasons,
                remarks=found.remarks,
                anyway=wish.anyway,
                truth=desk.truths.get(found.sha256, ""),
            ),
            evidence(desk.actions, found, goal, wish, desk.outline(session, shown, wish)),
            desk.actions.facts(found, anyway=wish.anyway),
        )

    nothing = (empty(desk.bundle), "", None, PREDICTED)

    def analyze(
        image: str | None, color_map: str, outline: str, request: gr.Request
    ) -> tuple[Any, ...]:
        if image is None:
            desk.results.drop(request.session_hash, "analysis")
            return nothing
        session = request.session_hash
        shown = Shown(image, desk.analyze(session, image))
        return (*drawn(session, shown, PREDICTED, Wish(color_map, outline)), PREDICTED)

    def fold(request: gr.Request) -> tuple[Any, Any]:
        shown = desk.shown(request.session_hash, "analysis")
        abstains = shown is not None and shown.analysis.abstains
        return gr.update(open=shown is None), gr.update(value=False, visible=abstains)

    def show(target: str, color_map: str, outline: str, anyway: bool, request: gr.Request) -> Any:
        shown = desk.shown(request.session_hash, "analysis")
        if shown is None:
            return nothing[:3]
        return drawn(request.session_hash, shown, target, wish_of(color_map, outline, anyway))

    results = [answer, overlay, facts]
    beside = [picture.folded, picture.anyway]
    analyzing = picture.image.change(
        analyze,
        [picture.image, picture.color_map, picture.outline],
        [*results, target],
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
    analyzing.success(fold, None, beside, **PRIVATE).success(
        None, None, None, js=app_style.TO_TOP, api_visibility="private"
    )
    # An older answer must not stand beside an image that could not be read.
    analyzing.failure(lambda: (*nothing, None), None, [*results, target, picture.image], **PRIVATE)
    gr.on(
        [target.input, *(one.input for one in picture.wishes)],
        show,
        [target, *picture.wishes],
        results,
        api_name="show",
        api_description=(
            "Draw the last analysis of this session again: of another class, in other colors, "
            "with another outline, or although the model abstains. Returns verdict, maps and data."
        ),
        show_progress="hidden",
    )
    picture.drawing.success(show, [target, *picture.wishes], results, **PRIVATE)


def explain_tab(desk: Desk, picture: Picture) -> None:
    """Lay out and connect the Explain tab."""
    import gradio as gr

    methods = methods_choice(
        desk, _FIRST_METHODS, "Methods that cover or cut the image need hundreds of passes."
    )
    target = target_choice(desk)
    buttons = start_and_stop("Explain")
    drawn = gr.HTML(EMPTY_EXPLANATION, elem_id="dl-explained")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def explain(
        image: str | None,
        methods: list[str],
        target: str,
        color_map: str,
        outline: str,
        anyway: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        wish = wish_of(color_map, outline, anyway)
        for job in desk.explain(request.session_hash, image, methods, target, wish):
            yield cards(job, wish), desk.explaining.facts(job.work)

    LongJob("explanation", explain, cards, EMPTY_EXPLANATION).connect(
        desk,
        picture,
        [methods, target],
        buttons,
        [drawn, facts],
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

    label = f"{title(desk.actions.words.one)} to explain"
    return gr.Dropdown(desk.actions.target_choices(), value=PREDICTED, label=label)


def start_and_stop(start: str) -> tuple[Any, Any]:
    """Lay out the buttons of a long job."""
    import gradio as gr

    with gr.Row():
        return gr.Button(start, variant="primary", scale=3), gr.Button("Stop", scale=1)


@dataclass(frozen=True)
class LongJob:
    """A job that shows each result when it is ready, can be stopped, and be drawn again.

    Attributes:
        name: Under which the desk keeps it.
        work: What yields results.
        draw: Draws a ``Job``.
        nothing: What stands where there is no result.
    """

    name: str
    work: Callable[..., Any]
    draw: Callable[..., str]
    nothing: str

    def connect(
        self,
        desk: Desk,
        picture: Picture,
        choices: Sequence[Any],
        buttons: tuple[Any, Any],
        outputs: Sequence[Any],
        **api: str,
    ) -> None:
        """Connect the buttons, and what changes how results are drawn."""
        import gradio as gr

        shown_on = outputs[0]

        def again(session: str | None, wish: Wish, *, stopped: bool = False) -> Any:
            job: Job | None = desk.shown(session, self.name)
            if job is None:
                return self.nothing
            lesion = desk.outline(session, job, wish)
            work = with_outline(job.work, lesion, synthetic=desk.bundle.synthetic)
            job = replace(job, work=work)
            if work.running is None:
                desk.results.put(session, self.name, job)
            return self.draw(job, wish, stopped=stopped)

        def redraw(color_map: str, outline: str, anyway: bool, request: gr.Request) -> Any:
            return again(request.session_hash, wish_of(color_map, outline, anyway))

        def stop(color_map: str, outline: str, anyway: bool, request: gr.Request) -> Any:
            wish = wish_of(color_map, outline, anyway)
            return again(request.session_hash, wish, stopped=True)

        def stop_all(color_map: str, outline: str, anyway: bool, request: gr.Request) -> Any:
            desk.jobs.stop(request.session_hash, EXPLAINING)
            return stop(color_map, outline, anyway, request)

        def failed(color_map: str, outline: str, anyway: bool, request: gr.Request) -> Any:
            wish, session = wish_of(color_map, outline, anyway), request.session_hash
            return again(session, wish, stopped=not desk.jobs.busy(session, EXPLAINING))

        def stopped(*given: Any) -> tuple[Any, Any]:
            *_, color_map, outline, anyway, request = given
            return stop(color_map, outline, anyway, request), gr.skip()

        def clear(request: gr.Request) -> tuple[str, None]:
            desk.jobs.stop(request.session_hash, EXPLAINING)
            desk.results.drop(request.session_hash, self.name)
            return self.nothing, None

        # No event is canceled in the browser: it would swallow the click that comes next.
        buttons[0].click(lambda: WAITING, None, shown_on, queue=False, **PRIVATE).then(
            desk.jobs.stoppable(self.work, stopped),
            [picture.image, *choices, *picture.wishes],
            list(outputs),
            show_progress="hidden",
            trigger_mode="multiple",
            **api,
            **SHARED,
        ).failure(failed, picture.wishes, shown_on, **PRIVATE)
        buttons[1].click(stop_all, picture.wishes, shown_on, queue=False, **PRIVATE)
        for change in (picture.color_map.input, picture.outline.input, picture.drawing.success):
            change(redraw, picture.wishes, shown_on, **PRIVATE)
        picture.image.change(clear, None, list(outputs), queue=False, **PRIVATE)


def name_of(path: str) -> str:
    """Return the name of an upload for people and downloads: letters, digits, points, dashes."""
    stem = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in Path(path).stem
    )
    return stem.strip("_")[:60] or "image"
