"""dermlens: train, explain and measure image classifiers, made for dermatoscopic images.

Everything that a program needs is here::

    import dermlens as dl

    classifier = dl.load()  # the model that comes with the package; or a folder, or a .keras file
    results = dl.explain(classifier, "photo.jpg", methods="six")

Importing the package is cheap: what stands in ``__all__`` is imported when it is first used, and
TensorFlow, matplotlib and Gradio with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "dermlens.api": (
        "benchmark",
        "changes",
        "compare",
        "criteria",
        "evaluate",
        "explain",
        "load",
        "nearest_cases",
        "stress",
    ),
    "dermlens.labels": ("HAM10000", "Label", "LabelSet", "label_set"),
    "dermlens.model.image_classifier": ("ImageClassifier",),
    "dermlens.model.foreign": ("adopt",),
    "dermlens.explainers.grad_cam": ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"),
    "dermlens.explainers.fused_cam": ("FinerCAM", "FusedCAM", "GatedCAM"),
    "dermlens.explainers.integrated_gradients": ("IntegratedGradients",),
    "dermlens.explainers.regions": ("Consensus", "RegionGradients"),
    "dermlens.explainers.occlusion": ("MultiOcclusion", "Occlusion"),
    "dermlens.explainers.lime": ("LIME",),
    "dermlens.explainers.shap": ("GaussianProcessSHAP", "KernelSHAP"),
    "dermlens.explainers.sampled_gradients": ("GradientSHAP", "SmoothGrad"),
    "dermlens.explainers.rise": ("RISE",),
    "dermlens.explainers.output": ("Contrast", "Logit", "Probability"),
    "dermlens.scale.reader": ("read_shards",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
# What type checkers read.
__all__ = [
    "HAM10000", "LIME", "RISE", "Consensus", "Contrast", "FinerCAM", "FusedCAM", "GatedCAM",
    "GaussianProcessSHAP", "GradCAM", "GradCAMPlusPlus", "GradientSHAP", "HiResCAM",
    "ImageClassifier", "IntegratedGradients", "KernelSHAP", "Label", "LabelSet", "LayerCAM",
    "Logit", "MultiOcclusion", "Occlusion", "Probability", "RegionGradients", "SmoothGrad", "adopt",
    "benchmark", "changes", "compare", "criteria", "evaluate", "explain", "label_set", "load",
    "metrics", "nearest_cases", "read_shards", "stress",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("dermlens.quality.metrics")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dermlens' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if TYPE_CHECKING:
    from dermlens.api import (
        benchmark,
        changes,
        compare,
        criteria,
        evaluate,
        explain,
        load,
        nearest_cases,
    )
    from dermlens.explainers.fused_cam import FinerCAM, FusedCAM, GatedCAM
    from dermlens.explainers.grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
    from dermlens.explainers.integrated_gradients import IntegratedGradients
    from dermlens.explainers.lime import LIME
    from dermlens.explainers.occlusion import MultiOcclusion, Occlusion
    from dermlens.explainers.output import Contrast, Logit, Probability
    from dermlens.explainers.regions import Consensus, RegionGradients
    from dermlens.explainers.rise import RISE
    from dermlens.explainers.sampled_gradients import GradientSHAP, SmoothGrad
    from dermlens.explainers.shap import GaussianProcessSHAP, KernelSHAP
    from dermlens.labels import HAM10000, Label, LabelSet, label_set
    from dermlens.model.foreign import adopt
    from dermlens.model.image_classifier import ImageClassifier
    from dermlens.quality import metrics
    from dermlens.scale.reader import read_shards
