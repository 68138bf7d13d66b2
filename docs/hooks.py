"""What the site needs beyond Markdown: formulas as MathML, so that nothing is loaded to read them.

Formulas stand in fenced blocks named ``math``, which GitHub draws too.
"""

import re
from typing import Any

_FORMULA = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn every block of formulas of a page into MathML."""
    return _FORMULA.sub(_mathml, markdown)


def _mathml(block: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    drawn = convert(" ".join(block[1].split()), display="block")
    return f'<div class="formula">{drawn}</div>'
