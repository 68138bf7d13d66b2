"""Explain images by several methods: the same as ``dermlens explain``.

    python explainability_module_tf.py BUNDLE IMAGE... --methods six --out explanations

Writes attributions, overlays and a description for each image. ``--help`` lists all options.
Research and education only, not a medical device.
"""

import sys
from pathlib import Path

# Runs from a checkout, too, where the package is not installed.
sys.path.insert(0, str(Path(__file__).parent / "src"))


def main() -> None:
    """Pass the arguments on."""
    from dermlens.cli import main as dermlens

    dermlens(["explain", *sys.argv[1:]])


if __name__ == "__main__":
    main()
