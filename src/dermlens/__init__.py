"""dermlens: train, explain and measure a classifier of dermatoscopic images.

Importing the package is cheap: TensorFlow, matplotlib and Gradio are imported
by the modules that need them, when they are needed.
"""

__version__ = "0.1.0"
