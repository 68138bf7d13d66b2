"""The page as a Hugging Face Space, or on any host that runs ``python app.py`` and a proxy."""

import os

from dermlens.cli import main

# The proxy hands requests on under the Space's own name, which the page must know.
name = os.environ.get("SPACE_HOST", "localhost")
main(["app", "--host", "0.0.0.0", "--port", "7860", "--allow-host", name])
