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
    "dermlens.api": ("benchmark", "compare", "evaluate", "explain", "load"),
    "dermlens.labels": ("HAM10000", "Label", "LabelSet", "label_set"),
    "dermlens.model.image_classifier": ("ImageClassifier",),
    "dermlens.model.foreign": ("adopt",),
    "dermlens.explainers.grad_cam": ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"),
    "dermlens.explainers.integrated_gradients": ("IntegratedGradients",),
    "dermlens.explainers.occlusion": ("Occlusion",),
    "dermlens.explainers.lime": ("LIME",),
    "dermlens.explainers.shap": ("GaussianProcessSHAP", "KernelSHAP"),
    "dermlens.explainers.sampled_gradients": ("GradientSHAP", "SmoothGrad"),
    "dermlens.explainers.rise": ("RISE",),
    "dermlens.explainers.output": ("Contrast", "Logit", "Probability"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [*sorted(_MODULE_OF), "metrics"]


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
        benchmark as benchmark,
    )
    from dermlens.api import (
        compare as compare,
    )
    from dermlens.api import (
        evaluate as evaluate,
    )
    from dermlens.api import (
        explain as explain,
    )
    from dermlens.api import (
        load as load,
    )
    from dermlens.explainers.grad_cam import (
        GradCAM as GradCAM,
    )
    from dermlens.explainers.grad_cam import (
        GradCAMPlusPlus as GradCAMPlusPlus,
    )
    from dermlens.explainers.grad_cam import (
        HiResCAM as HiResCAM,
    )
    from dermlens.explainers.grad_cam import (
        LayerCAM as LayerCAM,
    )
    from dermlens.explainers.integrated_gradients import IntegratedGradients as IntegratedGradients
    from dermlens.explainers.lime import LIME as LIME
    from dermlens.explainers.occlusion import Occlusion as Occlusion
    from dermlens.explainers.output import (
        Contrast as Contrast,
    )
    from dermlens.explainers.output import (
        Logit as Logit,
    )
    from dermlens.explainers.output import (
        Probability as Probability,
    )
    from dermlens.explainers.rise import RISE as RISE
    from dermlens.explainers.sampled_gradients import (
        GradientSHAP as GradientSHAP,
    )
    from dermlens.explainers.sampled_gradients import (
        SmoothGrad as SmoothGrad,
    )
    from dermlens.explainers.shap import (
        GaussianProcessSHAP as GaussianProcessSHAP,
    )
    from dermlens.explainers.shap import (
        KernelSHAP as KernelSHAP,
    )
    from dermlens.labels import (
        HAM10000 as HAM10000,
    )
    from dermlens.labels import (
        Label as Label,
    )
    from dermlens.labels import (
        LabelSet as LabelSet,
    )
    from dermlens.labels import (
        label_set as label_set,
    )
    from dermlens.model.foreign import adopt as adopt
    from dermlens.model.image_classifier import ImageClassifier as ImageClassifier
    from dermlens.quality import metrics as metrics
