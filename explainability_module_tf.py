"""Explain images and compare methods.

Run ``python explainability_module_tf.py BUNDLE IMAGE... --methods six --out DIR``; the same as
``dermlens explain``. Everything it does can be imported from ``dermlens.explain``.
"""

import sys

from dermlens.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["explain"]
    main()
