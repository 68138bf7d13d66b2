"""The web interface: upload an image, see the prediction and why.

Run ``python deployment_script_tf.py [BUNDLE] [--host --port --share]``; the same as
``dermlens app``. Without a bundle, the newest one in ``demo/run`` or ``runs/*`` is served.
"""

import sys

from dermlens.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["app"]
    main()
