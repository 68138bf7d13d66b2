"""How docstrings are read for the site: ``Example:`` holds doctests, and ``::`` begins code."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Has the sections of examples drawn as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Adapt the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
