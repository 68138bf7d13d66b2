"""The Evidence tab: what there is to say of an answer beside maps, a section for each kind."""

from collections.abc import Iterator
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


def evidence_tab(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect the Evidence tab."""
    cases_section(desk, picture)
    changes_section(desk, picture)
    # What is asked of a lesion has no answer for other things.
    if of_skin(desk.bundle.labels):
        criteria_section(desk, picture)


def cases_section(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect known cases like the image."""
    import gradio as gr

    button = gr.Button("Find cases", variant="primary")
    drawn = gr.HTML(EMPTY_CASES, elem_id="dl-cases")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def cases(image: str | None, anyway: bool, request: gr.Request) -> tuple[str, Any]:
        wish, labels = Wish(anyway=bool(anyway)), desk.bundle.labels
        found, pictures = desk.cases(request.session_hash, image, wish)
        text = cases_view.about(found, labels)
        content = cases_view.cases_html(found, labels, pictures)
        return section(Part(cases_view.TITLE, text, content)), plain(found.to_json())

    button.click(
        cases,
        [picture.image, picture.anyway],
        [drawn, facts],
        api_name="cases",
        api_description=(
            "The training lesions most like an image to the model, of its two most probable "
            f"{words(desk.bundle.labels).several}. Returns them as HTML, and as data: similarity, "
            "distance, and how each label was established; and how many of the nearest agree."
        ),
        show_progress="minimal",
        show_progress_on=drawn,
        concurrency_limit=2,
    )
    _forget_with(picture, (EMPTY_CASES, None), [drawn, facts])


def changes_section(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect what would change the answer."""
    import gradio as gr

    start, stop = tabs.start_and_stop("Find changes")
    drawn = gr.HTML(EMPTY_CHANGES, elem_id="dl-changes")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def changes(image: str | None, anyway: bool, request: gr.Request) -> Iterator[tuple[str, Any]]:
        found, numbers = desk.changes(request.session_hash, image, Wish(anyway=bool(anyway)))
        yield section(found), plain(numbers)

    def stopped(*_: Any) -> tuple[str, Any]:
        return finished("Stopped."), None

    def stop_all(request: gr.Request) -> str:
        desk.jobs.stop(request.session_hash, tabs.EXPLAINING)
        return finished("Stopped.")

    start.click(lambda: WAITING, None, drawn, queue=False, **tabs.PRIVATE).then(
        desk.jobs.stoppable(changes, stopped),
        [picture.image, picture.anyway],
        [drawn, facts],
        api_name="changes",
        api_description=(
            "What would have to be different in the picture for another answer: the lesion erased, "
            "the smallest necessary and sufficient regions found, and the colors of the runner-up. "
            "Returns them as HTML, and as data: probabilities, areas and passes."
        ),
        show_progress="hidden",
        trigger_mode="multiple",
        **tabs.SHARED,
    ).failure(lambda: (EMPTY_CHANGES, None), None, [drawn, facts], **tabs.PRIVATE)
    stop.click(stop_all, None, drawn, queue=False, **tabs.PRIVATE)
    _forget_with(picture, (EMPTY_CHANGES, None), [drawn, facts])


def criteria_section(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect the measurable criteria."""
    import gradio as gr

    button = gr.Button("Measure", variant="primary")
    drawn = gr.HTML(EMPTY_CRITERIA, elem_id="dl-criteria")
    with gr.Accordion("As data", open=False):
        facts = gr.JSON(label="Result")

    def criteria(image: str | None, anyway: bool, request: gr.Request) -> tuple[str, Any]:
        found, numbers = desk.criteria(request.session_hash, image, Wish(anyway=bool(anyway)))
        return section(found), plain(numbers)

    button.click(
        criteria,
        [picture.image, picture.anyway],
        [drawn, facts],
        api_name="criteria",
        api_description=(
            "Asymmetry, border, colors and size of the lesion, measured from outline and pixels. "
            "Returns a table as HTML, and the values as data; empty where no outline is sure."
        ),
        show_progress="minimal",
        show_progress_on=drawn,
        concurrency_limit=2,
    )
    _forget_with(picture, (EMPTY_CRITERIA, None), [drawn, facts])


def _forget_with(picture: tabs.Picture, nothing: tuple[str, None], outputs: list[Any]) -> None:
    """Clear results of another image, or of one on which the model abstains again."""
    for change in (picture.image.change, picture.anyway.input):
        change(lambda: nothing, None, outputs, queue=False, **tabs.PRIVATE)
