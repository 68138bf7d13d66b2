"""What the field's tables call a diagnosis, and which class of a label set that is."""

import re
from collections.abc import Mapping

from dermlens.labels import LabelSet, label_set

BINARY = ("benign", "malignant")
_TRAILING = re.compile(r",? (nos|not otherwise specified)$")

# For each diagnosis its codes in the sets that come with the package, and the words for it: of
# the ISIC Archive, the ISIC challenges, HAM10000, PAD-UFES-20 and Derm7pt.
_WORDS: dict[tuple[str, ...], str] = {
    ("mel",): """
        mel; melanoma; melanoma invasive; melanoma in situ; melanoma metastasis;
        metastatic melanoma; malignant melanoma; melanoma (in situ); melanoma (less than 0.76 mm);
        melanoma (0.76 to 1.5 mm); melanoma (more than 1.5 mm); lentigo maligna;
        lentigo maligna melanoma; superficial spreading melanoma; nodular melanoma;
        acral lentiginous melanoma; melanoma in situ, lentigo maligna type;
        melanoma invasive, superficial spreading; melanoma invasive, nodular;
        melanoma invasive, on chronically sun exposed skin or lentigo maligna melanoma
    """,
    ("nv",): """
        nv; nev; nevus; melanocytic nevus; melanocytic nevi; nevi; mole; blue nevus; clark nevus;
        combined nevus; congenital nevus; dermal nevus; compound nevus; junctional nevus;
        recurrent nevus; reed or spitz nevus; reed nevus; spitz nevus; dysplastic nevus;
        atypical nevus; nevus spilus; halo nevus
    """,
    ("bcc",): """
        bcc; basal cell carcinoma; nodular basal cell carcinoma; superficial basal cell carcinoma;
        pigmented basal cell carcinoma
    """,
    ("ak", "akiec"): """
        ak; ack; akiec; actinic keratosis; actinic keratoses; solar keratosis;
        solar or actinic keratosis
    """,
    ("scc", "akiec"): """
        squamous cell carcinoma in situ; bowen disease; bowens disease; bowen's disease;
        intraepithelial carcinoma; squamous cell carcinoma in situ, bowens disease
    """,
    ("scc",): """
        scc; squamous cell carcinoma; squamous cell carcinoma invasive; keratoacanthoma;
        squamous cell carcinoma, invasive; squamous cell carcinoma, keratoacanthoma
    """,
    ("bkl",): """
        bkl; sek; benign keratosis; benign keratosis like lesion; pigmented benign keratosis;
        seborrheic keratosis; seborrhoeic keratosis; solar lentigo; lichenoid keratosis;
        lichen planus like keratosis; ink spot lentigo
    """,
    ("df",): "df; dermatofibroma",
    ("vasc",): """
        vasc; vascular lesion; vascular; hemangioma; haemangioma; angioma; cherry angioma;
        angiokeratoma; pyogenic granuloma; hemorrhage; lymphangioma
    """,
    ("benign",): "benign; 0; 0.0",
    ("malignant",): "malignant; 1; 1.0",
}


def plain(word: str) -> str:
    """Return how a word is looked up: one spelling of case, gaps and endings.

    Example:
        >>> plain("Melanoma, NOS"), plain("melanocytic_naevus")
        ('melanoma', 'melanocytic nevus')
    """
    text = re.sub(r"[\s_-]+", " ", word.strip().lower()).replace("naev", "nev")
    return _TRAILING.sub("", text)


def _known_words() -> dict[str, tuple[str, ...]]:
    return {
        plain(word): codes for codes, words in _WORDS.items() for word in words.split(";") if word
    }


class Vocabulary:
    """Finds the class of a word.

    Args:
        labels: The classes.
        own: What words of the user's stand for: a code, or "" for what is left out on purpose.
    """

    def __init__(self, labels: LabelSet, own: Mapping[str, str] | None = None) -> None:
        self.labels = labels
        self._own = {plain(word): code for word, code in (own or {}).items()}
        self._names = {plain(label.name): label.code for label in labels.labels}
        self._names |= {plain(code): code for code in labels.codes}
        self._known = _known_words()
        self._malignant = {
            label.code: bool(label.malignant)
            for name in ("isic2019", "ham10000")
            for label in label_set(name).labels
        }

    def code_of(self, word: str) -> str | None:
        """Return the class of a word, "" for what is left out on purpose, None if it has none.

        Example:
            >>> from dermlens.labels import label_set
            >>> Vocabulary(label_set("ham10000")).code_of("Solar or actinic keratosis")
            'akiec'
            >>> Vocabulary(label_set("binary")).code_of("Solar or actinic keratosis")
            'malignant'
        """
        word = plain(word)
        if word in self._own:
            return self._own[word]
        if word in self._names:
            return self._names[word]
        candidates = self._known.get(word, ())
        for code in candidates:
            if code in self.labels.codes:
                return code
        if set(self.labels.codes) == set(BINARY) and candidates and candidates[0] not in BINARY:
            return BINARY[self._malignant[candidates[0]]]
        return None
