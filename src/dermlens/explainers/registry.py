"""The methods by name: what they answer, what they cost, how to build them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dermlens.errors import UsageError
from dermlens.explainers.base import Explainer, Family
from dermlens.model.image_classifier import as_classifier

if TYPE_CHECKING:
    from dermlens.explainers.perturbation import Scorer
    from dermlens.explainers.superpixel_explainer import SuperpixelBank


@dataclass(frozen=True)
class Method:
    """One explanation method.

    Attributes:
        name: Name on the command line, in files and in tables.
        title: Name for people.
        family: ``"activation"``, ``"gradient"`` or ``"perturbation"``.
        forward: Forward passes per image at default settings and 3:4; about as many where
            ``fixed`` holds options.
        backward: Backward passes per image, likewise.
        question: The question it answers, in one plain sentence.
        defined: Module and class in this package.
        fixed: Options under which every image costs the same; empty where it does anyway.
        superpixels: True if it fits evaluations of masked superpixels, of which one set serves all
            methods that do.
        pixels: True if it answers for each pixel on its own (``quality.readings``).
    """

    name: str
    title: str
    family: Family
    forward: int
    backward: int
    question: str
    defined: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    superpixels: bool = False
    pixels: bool = False

    @property
    def cost(self) -> str:
        """The passes in words."""
        about, back = "about " if self.fixed else "", f", {self.backward:,} backward"
        return f"{about}{self.forward:,} forward{back if self.backward else ''}"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("grad_cam", "Grad-CAM", "activation", 1, 0,
            "Which coarse regions hold the features that raise the output of this class?",
            "grad_cam.GradCAM"),
        Method("grad_cam_plus_plus", "Grad-CAM++", "activation", 1, 0,
            "The same, counting every occurrence of a helpful feature, not only the strongest.",
            "grad_cam.GradCAMPlusPlus"),
        Method("integrated_gradients", "Integrated Gradients", "gradient", 22, 64,
            "How much does each pixel add to the output on the way from a plain image to this one?",
            "integrated_gradients.IntegratedGradients", {"tolerance": None}, pixels=True),
        Method("occlusion", "Occlusion", "perturbation", 166, 0,
            "How much does the output drop when a patch is covered with the color of the border?",
            "occlusion.Occlusion"),
        Method("lime", "LIME", "perturbation", 500, 0,
            "Which pieces of the image, kept or removed at random, does the output follow most?",
            "lime.LIME", superpixels=True),
        Method("gp_shap", "Shapley values (Gaussian process)", "perturbation", 500, 0,
            "What is each piece's fair share of the output, over all orders of adding pieces?",
            "shap.GaussianProcessSHAP", superpixels=True),
        Method("kernel_shap", "Kernel SHAP", "perturbation", 500, 0,
            "The same by the published least squares, which need more samples for the same error.",
            "shap.KernelSHAP", superpixels=True),
        Method("layer_cam", "Layer-CAM", "activation", 1, 0,
            "Which places, each by its own gradient, hold features that raise the output?",
            "grad_cam.LayerCAM"),
        Method("hires_cam", "HiRes-CAM", "activation", 1, 0,
            "Which places does the output provably draw on in the last feature maps?",
            "grad_cam.HiResCAM"),
        Method("smooth_grad", "SmoothGrad", "gradient", 26, 25,
            "Which pixels would change the output most if they changed a little?",
            "sampled_gradients.SmoothGrad", pixels=True),
        Method("gradient_shap", "GradientSHAP", "gradient", 51, 50,
            "How much does each pixel add to the output, averaged over several plain backgrounds?",
            "sampled_gradients.GradientSHAP", pixels=True),
        Method("rise", "RISE", "perturbation", 1001, 0,
            "How much higher is the output on average when a place is visible?",
            "rise.RISE"),
        Method("fused_cam", "Scale-fused CAM", "activation", 2, 1,
            "Which places, seen at several depths of the network, raise the output?",
            "fused_cam.FusedCAM"),
        Method("gated_cam", "Gated CAM", "activation", 2, 1,
            "Which finer places raise the output, inside of what the last stage marks?",
            "fused_cam.GatedCAM"),
        Method("finer_cam", "Finer-CAM", "activation", 1, 0,
            "Which regions speak for this class more than for the classes most like it?",
            "fused_cam.FinerCAM"),
        Method("multi_occlusion", "Occlusion, several sizes", "perturbation", 154, 0,
            "How much does the output drop when patches of several sizes are covered or blurred?",
            "occlusion.MultiOcclusion"),
        Method("region_gradients", "Integrated Gradients by region", "gradient", 44, 40,
            "Through which regions does the change of the output from a plain image run?",
            "regions.RegionGradients"),
        Method("consensus", "Consensus", "activation", 46, 41,
            "Which regions do feature maps and gradients both mark?",
            "regions.Consensus"),
    )
}  # fmt: skip


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        UsageError: If there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"Unknown method {name!r}. Use some of: {', '.join(METHODS)}.")
    return METHODS[name]


def parse_methods(text: str) -> list[str]:
    """Turn ``"grad_cam,lime"``, ``"six"`` or ``"all"`` into names.

    Raises:
        UsageError: If a name is unknown or none is given.
    """
    if text in ("all", "six"):
        return list(METHODS if text == "all" else SIX)
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"No method given. Use some of: {', '.join(METHODS)}; or six; or all.")
    return [method(name).name for name in dict.fromkeys(names)]


SIX: tuple[str, ...] = (
    "grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion", "lime", "gp_shap",
)  # fmt: skip
"""The six methods the project is about."""


def create(name: str, model: Any, **options: Any) -> Explainer:
    """Build an explainer by name.

    Args:
        name: Key of ``METHODS``.
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        **options: Arguments of the method's class.

    Raises:
        UsageError: If there is no such method.
        ExplanationError: If the method cannot explain this model.
    """
    module, _, kind = method(name).defined.partition(".")
    explainer: type[Explainer] = getattr(import_module(f"dermlens.explainers.{module}"), kind)
    return explainer(model, **options)


def create_several(
    names: Sequence[str],
    model: Any,
    *,
    scorers: Mapping[str, "Scorer"] | None = None,
    bank: "SuperpixelBank | None" = None,
) -> dict[str, Explainer]:
    """Build explainers that share what they can: masked superpixels are evaluated once.

    Args:
        names: Keys of ``METHODS``.
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        scorers: What evaluates changed images in place of the model, by method. A shared set uses
            a scorer only if every method that shares it has one.
        bank: Evaluations to share; default one of their own if several methods can share it.
    """
    model, sharing = as_classifier(model), sharing_methods(names)
    if bank is None and len(sharing) > 1:
        bank = shared_bank(model, names, scorers)
    options: dict[str, Any] = {name: {"scorer": one} for name, one in (scorers or {}).items()}
    if bank is not None:
        options |= {name: {"bank": bank} for name in sharing}
    return {name: create(name, model, **options.get(name, {})) for name in names}


def sharing_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the methods that fit masked superpixels, and so share evaluations."""
    return tuple(name for name in names if name in METHODS and METHODS[name].superpixels)


def shared_bank(
    model: Any, names: Sequence[str], scorers: Mapping[str, "Scorer"] | None = None, **options: Any
) -> "SuperpixelBank | None":
    """Return what keeps the masked evaluations that methods share, None if none of them does.

    ``options`` are those of ``SuperpixelBank``. A scorer is used only if every method that shares
    has one.
    """
    from dermlens.explainers.superpixel_explainer import SuperpixelBank

    found = [(scorers or {}).get(name) for name in sharing_methods(names)]
    if not found:
        return None
    return SuperpixelBank(model, scorer=None if None in found else found[0], **options)
