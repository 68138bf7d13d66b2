"""Serve the web interface: the same as ``dermlens app``.

    python deployment_script_tf.py [BUNDLE] [--host ADDRESS] [--port PORT] [--share]

Without BUNDLE the trained model that comes with dermlens is served.
Research and education only, not a medical device.
"""

import sys
from pathlib import Path

# Runs from a checkout, too, where the package is not installed.
sys.path.insert(0, str(Path(__file__).parent / "src"))


def main() -> None:
    """Pass the arguments on."""
    from dermlens.cli import main as dermlens

    dermlens(["app", *sys.argv[1:]])


if __name__ == "__main__":
    main()
