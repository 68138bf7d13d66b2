"""The Evidence tab: what there is to say of an answer beside maps, a section for each kind."""

from collections.abc import Callable, Iterator
from typing import Any

from dermlens.files import plain
from dermlens.report import cases_view
from dermlens.report.comparison_view import Part
from dermlens.report.facts import of_skin, words
from dermlens.serve import app_tabs as tabs
from dermlens.serve.app_actions import Wish
from dermlens.serve.app_desk import Desk
from dermlens.serve.app_page_results import WAITING, finished, section

EMPTY_CASES = """
<div class="dl-empty">Which lesions that the model learned from look most like this one to it?
Press <em>Find cases</em>.</div>
"""


EMPTY_CHANGES = """
<div class="dl-empty">What would have to be different in the picture for another answer? The network
is asked up to 150 times; press <em>Find changes</em>. An outline that you draw is used.</div>
"""
EMPTY_CRITERIA = """
<div class="dl-empty">Asymmetry, border, colors and size, measured from outline and pixels, and what
the network makes of them: press <em>Measure</em>. An outline that you draw is used.</div>
"""


Ask = Callable[[str | None, str | None, Wish], tuple[Part, Any]]
"""From session, upload and wish to what is shown and the same as data."""


def evidence_tab(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect the Evidence tab."""
    several = words(desk.bundle.labels).several
    _at_once(picture, "Find cases", "cases", EMPTY_CASES, _cases_of(desk), (
        "The training lesions most like an image to the model, of its two most probable "
        f"{several}. Returns them as HTML, and as data: similarity, distance, and how each label "
        "was established; and how many of the nearest agree."
    ))  # fmt: skip
    _changes_section(desk, picture)
    # What is asked of a lesion has no answer for other things.
    if of_skin(desk.bundle.labels):
        _at_once(picture, "Measure", "criteria", EMPTY_CRITERIA, desk.criteria, (
            "Asymmetry, border, colors and size of the lesion, measured from outline and pixels. "
            "Returns a table as HTML, and the values as data; empty where no outline is sure."
        ))  # fmt: skip


def _cases_of(desk: Desk) -> Ask:
    def ask(session: str | None, image: str | None, wish: Wish) -> tuple[Part, Any]:
        (found, pictures), labels = desk.cases(session, image, wish), desk.bundle.labels
        content = cases_view.cases_html(found, labels, pictures)
        return Part(cases_view.TITLE, cases_view.about(found, labels), content), found.to_json()

    return ask


def _at_once(
    picture: tabs.Picture, label: str, name: str, nothing: str, ask: Ask, description: str
) -> None:
    """Lay out and connect a section that is ready in about a second."""
    import gradio as gr

    button = gr.Button(label, variant="primary")
    outputs = _outputs(picture, name, nothing)

    def answer(image: str | None, anyway: bool, request: gr.Request) -> tuple[str, Any]:
        found, data = ask(request.session_hash, image, Wish(anyway=bool(anyway)))
        return section(found), plain(data)

    button.click(
        answer,
        [picture.image, picture.anyway],
        outputs,
        api_name=name,
        api_description=description,
        show_progress="minimal",
        show_progress_on=outputs[0],
        concurrency_limit=2,
    )


def _changes_section(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect what would change the answer."""
    import gradio as gr

    start, stop = tabs.start_and_stop("Find changes")
    outputs = _outputs(picture, "changes", EMPTY_CHANGES)

    def changes(image: str | None, anyway: bool, request: gr.Request) -> Iterator[tuple[str, Any]]:
        found, numbers = desk.changes(request.session_hash, image, Wish(anyway=bool(anyway)))
        yield section(found), plain(numbers)

    def stopped(*_: Any) -> tuple[str, Any]:
        return finished("Stopped."), None

    def stop_all(request: gr.Request) -> str:
        desk.jobs.stop(request.session_hash, tabs.EXPLAINING)
        return finished("Stopped.")

    start.click(lambda: WAITING, None, outputs[0], queue=False, **tabs.PRIVATE).then(
        desk.jobs.stoppable(changes, stopped),
        [picture.image, picture.anyway],
        outputs,
        api_name="changes",
        api_description=(
            "What would have to be different in the picture for another answer: the lesion erased, "
            "the smallest necessary and sufficient regions found, and the colors of the runner-up. "
            "Returns them as HTML, and as data: probabilities, areas and passes."
        ),
        show_progress="hidden",
        trigger_mode="multiple",
        **tabs.SHARED,
    ).failure(lambda: (EMPTY_CHANGES, None), None, outputs, **tabs.PRIVATE)
    stop.click(stop_all, None, outputs[0], queue=False, **tabs.PRIVATE)


def _outputs(picture: tabs.Picture, name: str, nothing: str) -> list[Any]:
    """Lay out where results of a section stand, and clear those of another image or outline."""
    import gradio as gr

    drawn = gr.HTML(nothing, elem_id=f"dl-{name}")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")
    for change in (picture.image.change, picture.anyway.input, picture.drawing.success):
        change(lambda: (nothing, None), None, [drawn, facts], queue=False, **tabs.PRIVATE)
    return [drawn, facts]
