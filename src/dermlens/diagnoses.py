"""The seven diagnoses of HAM10000, in the one class order used everywhere.

Source: Tschandl, Rosendahl & Kittler, "The HAM10000 dataset", Scientific Data 5,
180161 (2018), doi:10.1038/sdata.2018.161.
"""

from dataclasses import dataclass

from dermlens.errors import UsageError


@dataclass(frozen=True)
class Diagnosis:
    """One class.

    Attributes:
        code: Lower-case code of HAM10000, such as ``"mel"``.
        name: Full name.
        malignant: True where the class is treated as malignant or pre-malignant
            in the operating points (``akiec``, ``bcc``, ``mel``).
        plain: One line in plain language.
        color: Hex color of the class in every figure (color-blind safe, Okabe & Ito).
    """

    code: str
    name: str
    malignant: bool
    plain: str
    color: str


DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis(
        "akiec",
        "Actinic keratosis / intraepithelial carcinoma",
        True,
        "Sun damage that can turn into skin cancer, or a cancer still confined to the top layer.",
        "#D55E00",
    ),
    Diagnosis(
        "bcc",
        "Basal cell carcinoma",
        True,
        "The most common skin cancer; grows slowly and rarely spreads.",
        "#E69F00",
    ),
    Diagnosis(
        "bkl",
        "Benign keratosis-like lesion",
        False,
        "Usually benign: age warts, sun spots and similar growths.",
        "#56B4E9",
    ),
    Diagnosis(
        "df", "Dermatofibroma", False, "Usually benign firm nodule, often on the legs.", "#009E73"
    ),
    Diagnosis(
        "mel",
        "Melanoma",
        True,
        "Skin cancer of the pigment cells; can spread, so early removal matters.",
        "#000000",
    ),
    Diagnosis("nv", "Melanocytic nevus", False, "A mole, usually benign.", "#0072B2"),
    Diagnosis(
        "vasc",
        "Vascular lesion",
        False,
        "Usually benign growth of blood vessels, such as a cherry angioma.",
        "#CC79A7",
    ),
)

CODES: tuple[str, ...] = tuple(diagnosis.code for diagnosis in DIAGNOSES)
MALIGNANT_CODES: tuple[str, ...] = tuple(d.code for d in DIAGNOSES if d.malignant)
_BY_CODE = {diagnosis.code: diagnosis for diagnosis in DIAGNOSES}


def by_code(code: str) -> Diagnosis:
    """Return the diagnosis with this code.

    Raises:
        UsageError: If the code is none of the seven.

    Example:
        >>> by_code("mel").name
        'Melanoma'
    """
    try:
        return _BY_CODE[code]
    except KeyError:
        raise UsageError(f"Unknown diagnosis {code!r}. Use one of: {', '.join(CODES)}.") from None
