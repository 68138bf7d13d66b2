"""Sentences say what the numbers say, and doubts appear exactly when a threshold is crossed."""

from dataclasses import replace

import pytest

from dermlens.labels import HAM10000, named_classes
from dermlens.report import trust
from dermlens.report.facts import NO_BREAK, ContrastFacts, Facts, class_name, percent
from dermlens.report.summary import summarize

CONTRAST = ContrastFacts(
    "nv", {"gp_shap": 0.2, "lime": 0.4}, {"gp_shap": 0.5, "lime": 0.7}, "border"
)
SOUND = Facts(
    labels=HAM10000,
    target="mel",
    predicted="mel",
    other="nv",
    probabilities={code: 0.04 for code in HAM10000.codes} | {"mel": 0.62, "nv": 0.18},
    odds=4.0,
    prediction_set=("mel", "nv"),
    flags={"malignant": False, "melanoma": True},
    inside={"grad_cam": 0.9, "gp_shap": 0.6},
    lesion_area=0.25,
    zones={"core": 0.5, "border": 0.25, "skin": 0.2, "ring": 0.05},
    zone_areas={"core": 0.15, "border": 0.2, "skin": 0.5, "ring": 0.15},
    ring={"grad_cam": 0.02, "gp_shap": 0.08},
    ring_area=0.15,
    agreement=0.5,
    closest=("lime", "gp_shap", 0.9),
    farthest=("grad_cam", "gp_shap", 0.4),
    against={"gp_shap": 0.1, "lime": 0.3},
    against_zone="skin",
    contrasts=(CONTRAST,),
    scale_agreement=0.5,
    convergence_delta=0.05,
    r2=0.9,
    titles={"grad_cam": "Grad-CAM", "gp_shap": "Kernel SHAP", "lime": "LIME"},
)


def sentences(facts: Facts) -> dict[str, str]:
    """Sentences with ordinary spaces."""
    return {k: v.replace(NO_BREAK, " ") for k, v in summarize(facts).sentences.items()}


def names(facts: Facts) -> list[str]:
    return [doubt.name for doubt in summarize(facts).doubts]


def test_sentences_word_for_word() -> None:
    said = sentences(SOUND)
    assert list(said) == [
        "diagnosis",
        "evidence",
        "place",
        "agreement",
        "against",
        "contrast_nv",
    ]
    assert said["diagnosis"] == (
        "Most probable: melanoma, 62 %. Cannot be excluded: melanocytic nevus, 18 %. "
        "Flagged: melanoma. It is contrasted with melanocytic nevus, 18 %."
    )
    assert said["evidence"] == (
        "On average 75 % of the evidence for melanoma lies inside the outline, which covers "
        "25 % of the image: 3.0 times its share (from 60 % by Kernel SHAP to 90 % by Grad-CAM)."
    )
    assert said["place"] == (
        "It lies 50 % in the core of the lesion (15 % of the image), 25 % along its border (20 % "
        "of the image), 20 % on the surrounding skin (50 % of the image) and 5 % on the image's "
        "border ring (15 % of the image)."
    )
    assert said["agreement"] == (
        "Methods of different families agree in part: mean rank correlation 0.50 (1 same order, 0 "
        "unrelated, -1 opposite); closest are LIME and Kernel SHAP (0.90), farthest apart Grad-CAM "
        "and Kernel SHAP (0.40)."
    )
    assert said["against"] == (
        "By the 2 methods that can tell, 20 % of all evidence speaks against melanoma, most "
        "densely on the surrounding skin."
    )
    assert said["contrast_nv"] == (
        "Where melanoma and melanocytic nevus differ, 30 % of the evidence speaks for "
        "melanocytic nevus, most densely along its border. 60 % of the evidence for the two "
        "lies in different places (median over methods; 0 % same places, 100 % no place in common)."
    )


def test_a_sound_explanation_raises_no_doubt_and_is_not_called_right() -> None:
    summary = summarize(SOUND)
    assert summary.doubts == ()
    assert "no proof that it is right" in summary.verdict


BELOW, ABOVE = -1e-9, 1e-9
CASES = {
    "near_tie": (lambda v: {"odds": v}, trust.NEAR_TIE_ODDS, BELOW),
    "low_agreement": (lambda v: {"agreement": v}, trust.LOW_AGREEMENT, BELOW),
    "outside_the_lesion": (
        lambda v: {"inside": {"gp_shap": v * SOUND.lesion_area}},
        trust.CHANCE_ENRICHMENT + 1e-6,
        -2e-6,
    ),
    "border_ring": (
        lambda v: {"ring": {"gp_shap": v * SOUND.ring_area}},
        trust.RING_ENRICHMENT - 1e-6,
        2e-6,
    ),
    "convergence_delta": (
        lambda v: {"convergence_delta": v},
        trust.LARGE_COMPLETENESS_GAP,
        ABOVE,
    ),
    "low_r2": (lambda v: {"r2": v}, trust.LOW_R2, BELOW),
    "low_discrimination_nv": (
        lambda v: {"contrasts": (replace(CONTRAST, discrimination={"gp_shap": v}),)},
        trust.LOW_DISCRIMINATION,
        BELOW,
    ),
    "scales_differ": (lambda v: {"scale_agreement": v}, trust.LOW_SCALE_AGREEMENT, BELOW),
}


@pytest.mark.parametrize("name", CASES)
def test_each_doubt_appears_exactly_when_its_threshold_is_crossed(name: str) -> None:
    change, threshold, beyond = CASES[name]
    assert names(replace(SOUND, **change(threshold))) == []
    facts = replace(SOUND, **change(threshold + beyond))
    (doubt,) = summarize(facts).doubts
    assert doubt.name == name
    assert doubt.value == pytest.approx(threshold, abs=1e-5)
    assert doubt.threshold == pytest.approx(threshold, abs=1e-5)
    assert "1 check gives a reason" in summarize(facts).verdict
    text = doubt.text.replace(NO_BREAK, " ")
    written = {f"{doubt.threshold:g}", percent(doubt.threshold).replace(NO_BREAK, " ")}
    assert any(f"(threshold {one}" in text for one in written), text
    assert text.endswith(".")


def test_what_is_not_known_raises_no_doubt_and_gets_no_sentence() -> None:
    bare = Facts(HAM10000, "mel", "mel", "nv", SOUND.probabilities, 4.0)
    assert names(bare) == [] and list(sentences(bare)) == ["diagnosis"]


def test_a_target_that_is_not_the_most_probable() -> None:
    other = replace(
        SOUND, target="bkl", odds=0.2, probabilities=SOUND.probabilities | {"bkl": 0.001}
    )
    # Another diagnosis is more probable: that is no tie.
    assert names(other) == ["not_the_most_probable"]
    said = sentences(other)["diagnosis"]
    assert said.startswith("Most probable: melanoma, 62 %.")
    assert "Explained here is benign keratosis-like lesion, under 1 %." in said


def test_sets_of_one_and_bundles_without_sets() -> None:
    alone = replace(SOUND, prediction_set=("mel",), flags={})
    assert "Cannot be excluded: nothing else." in sentences(alone)["diagnosis"]
    unknown = replace(SOUND, prediction_set=None, flags={})
    assert "excluded" not in sentences(unknown)["diagnosis"]
    assert "Flagged" not in sentences(unknown)["diagnosis"]


def test_without_an_outline_only_the_ring_is_spoken_of() -> None:
    nothing = replace(SOUND, inside={}, lesion_area=float("nan"), zones={}, zone_areas={})
    said = sentences(nothing)
    assert "place" not in said
    assert "No outline of the lesion was given" in said["evidence"]
    assert "border ring, 15 % of the image, lies 5 % of it" in said["evidence"]
    assert names(nothing) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.29, "hardly agree"), (0.3, "agree in part"), (0.59, "in part"), (0.6, "agree well")],
)
def test_words_for_agreement(value: float, words: str) -> None:
    assert words in sentences(replace(SOUND, agreement=value))["agreement"]


def test_methods_of_one_family_prove_little() -> None:
    said = sentences(replace(SOUND, agreement=float("nan")))["agreement"]
    assert "All methods are of one family" in said


def test_several_doubts_are_counted_and_keep_their_order() -> None:
    bad = replace(SOUND, odds=1.1, agreement=-0.2, r2=0.1, synthetic=True)
    assert names(bad) == ["near_tie", "low_agreement", "low_r2", "synthetic_model"]
    assert "4 checks give reasons" in summarize(bad).verdict


def test_every_contrast_has_its_sentence_and_its_doubt() -> None:
    alike = ContrastFacts("bkl", {"gp_shap": 0.5}, {"gp_shap": 0.02})
    facts = replace(SOUND, contrasts=(CONTRAST, alike))
    said = sentences(facts)
    assert {"contrast_nv", "contrast_bkl"} <= set(said)
    assert "most densely" not in said["contrast_bkl"]
    assert names(facts) == ["low_discrimination_bkl"]


def test_numbers_for_people() -> None:
    assert percent(0.0049) == f"under 1{NO_BREAK}%" and percent(0.006) == f"1{NO_BREAK}%"
    assert percent(0.005) == f"under 1{NO_BREAK}%" and percent(0.0) == f"0{NO_BREAK}%"
    assert percent(0.9951) == f"over 99{NO_BREAK}%" and percent(1.0) == f"100{NO_BREAK}%"
    assert class_name(HAM10000, "akiec").startswith("actinic")
    gap = replace(SOUND, convergence_delta=5e4)
    assert "misses more than 100 %" in summarize(gap).doubts[0].text


ANIMALS = replace(
    SOUND,
    labels=named_classes(["cat", "dog", "Great Dane"]),
    target="cat",
    predicted="cat",
    other="dog",
    probabilities={"cat": 0.62, "dog": 0.3, "Great Dane": 0.08},
    prediction_set=None,
    flags={},
    contrasts=(replace(CONTRAST, other="dog"),),
    calibrated=False,
)


def test_classes_that_are_no_diagnoses_are_not_called_so() -> None:
    said = sentences(ANIMALS)
    assert said["diagnosis"] == (
        "Most probable: cat, 62 % (not calibrated). It is contrasted with dog, 30 %."
    )
    assert "in the core of the object (15 % of the image)" in said["place"]
    assert "20 % on the background" in said["place"]
    bad = replace(
        ANIMALS, target="dog", inside={"lime": 0.1}, ring={"lime": 0.9}, r2=0.1, synthetic=True
    )
    everything = " ".join([*sentences(bad).values(), *(d.text for d in summarize(bad).doubts)])
    assert "The object counts no more than the background" in everything
    for word in ("diagnos", "lesion", "skin", "malignan", "melanom", "ruler", "gel"):
        assert word not in everything
