"""The Evidence tab: what there is to say of an answer beside maps, a section for each kind.

A section is a function that lays itself out and connects itself; ``SECTIONS`` is their order on
the page. What needs more than a moment belongs behind ``app_tabs.LongJob`` or ``Jobs.stoppable``.
"""

from collections.abc import Callable
from typing import Any

from dermlens.files import plain
from dermlens.report import cases_view
from dermlens.report.facts import words
from dermlens.report.verdict import caption
from dermlens.serve import app_tabs as tabs
from dermlens.serve.app_actions import Wish
from dermlens.serve.app_desk import Desk

EMPTY_CASES = """
<div class="dl-empty">Which lesions that the model learned from look most like this one to it?
Press <em>Find cases</em>.</div>
"""


def evidence_tab(desk: Desk, picture: tabs.Picture) -> None:
    """Lay out and connect the Evidence tab."""
    for section in SECTIONS:
        section(desk, picture)


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
        return part(cases_view.TITLE, text, content), plain(found.to_json())

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
    # Cases of another image, or of one on which the model abstains again, must not stay.
    for change in (picture.image.change, picture.anyway.input):
        change(lambda: (EMPTY_CASES, None), None, [drawn, facts], queue=False, **tabs.PRIVATE)


def part(heading: str, text: str, content: str) -> str:
    """Return a section's result: its heading, a paragraph of plain text, and HTML."""
    return f'<section class="dl-part"><h3>{heading}</h3>{caption(text)}{content}</section>'


SECTIONS: tuple[Callable[[Desk, tabs.Picture], None], ...] = (cases_section,)
