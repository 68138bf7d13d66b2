"""The four experiments on one image: what is computed, what it costs, what the page shows."""

import base64
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermlens.errors import DataError, UsageError
from dermlens.explainers.base import Attribution, Cost
from dermlens.explainers.contrast import ClassContrast
from dermlens.explainers.multiscale import MultiScaleResult, ScaleMap
from dermlens.explainers.registry import METHODS, SIX, create
from dermlens.files import read_json
from dermlens.folders import folder_beside
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.calibration import Calibration
from dermlens.quality.agreement import smoothed, spearman
from dermlens.quality.localization import relevance_mass
from dermlens.report.comparer import Comparer, available, chosen_methods
from dermlens.report.comparison import (
    Comparison,
    agreement_of_scales,
    compare_methods,
    contrast_by_area,
    densest_zone,
    facts_of,
)
from dermlens.report.comparison_files import (
    About,
    Source,
    compare_files,
    comparison_maps,
    comparison_numbers,
    comparison_page,
    costs_table,
    write_comparison,
)
from dermlens.report.comparison_view import parts
from dermlens.report.explanation import KIND as EXPLANATION
from dermlens.report.facts import class_name
from dermlens.report.figures import colorize
from dermlens.report.layers import Canvas
from serving_support import SIZE, adopted_bundle, picture, text_of, untrained_bundle

MASK = np.zeros(SIZE, bool)
MASK[8:24, 12:36] = True
IMAGE = np.asarray(picture(3, *SIZE))


@pytest.fixture(scope="module")
def comparer() -> Comparer:
    """The six methods on a network whose balanced rule is not the most probable class."""
    bundle = untrained_bundle()
    prior = np.log([0.3, 0.2, 0.2, 1e-3, 1e-6, 0.2, 0.1])
    bundle.calibration = Calibration(temperature=1.7, balanced_rule=BalancedRule(1.0, tuple(prior)))
    return Comparer(bundle, SIX, batch_size=8)


@pytest.fixture(scope="module")
def states(comparer: Comparer) -> list[Comparison]:
    """Every state of a comparison against a class that is not the runner-up."""
    return list(comparer.steps(IMAGE, lesion=MASK, against="df", seed=2))


@pytest.fixture(scope="module")
def complete(states: list[Comparison]) -> Comparison:
    """The finished comparison."""
    return states[-1]


def test_parts_are_ready_one_after_the_other(comparer: Comparer, states: list[Comparison]) -> None:
    ready = [
        (len(s.combined), s.agreement is not None, s.scales is not None, s.summary is not None)
        for s in states
    ]
    assert ready == [
        *((count, False, False, False) for count in range(7)),
        (6, True, False, False),
        (6, True, True, False),
        (6, True, True, True),
    ]
    assert states[-1].discrimination is not None
    assert comparer.pieces == ("reading", *SIX, "agreement", "scales", "discrimination")
    assert len(states) == len(comparer.pieces)


def test_reading_is_the_bundles(comparer: Comparer, complete: Comparison) -> None:
    bundle, reading = comparer.bundle, complete.reading
    logits = bundle.logits(IMAGE[None])
    assert reading.logits == pytest.approx(logits[0], abs=1e-4)
    assert reading.predicted == reading.target == logits.argmax()
    assert bundle.calibration.balanced(logits)[0] != reading.predicted
    order = np.argsort(-logits[0])
    assert reading.prediction_set is None
    assert reading.others == (order[1], bundle.classes.index("df"))
    assert reading.probabilities.sum() == pytest.approx(1.0)


def test_every_method_gives_what_it_gives_alone(comparer: Comparer, complete: Comparison) -> None:
    assert tuple(complete.combined) == SIX
    for name in ("grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion"):
        alone = create(name, comparer.bundle).attribute(
            IMAGE[None], complete.reading.target, seed=2
        )
        assert complete.combined[name].maps == pytest.approx(alone.maps, rel=1e-3, abs=1e-4)


def test_work_is_shared(complete: Comparison) -> None:
    costs = complete.costs()
    assert (costs["reading"].forward, costs["reading"].backward) == (1, 0)
    assert costs["lime"].forward == 500 and costs["gp_shap"].forward == 0
    # Superpixels at the default granularity and patches at the default size are known already.
    coarse = complete.scales.of_kind("superpixels")[:2]
    pieces = [int(one.label.split()[0]) for one in coarse]
    expected = (
        1
        + 1
        + _boxes(complete)
        + sum(min(2**m, samples) for m, samples in zip(pieces, (120, 250), strict=True))
    )
    assert (costs["scales"].forward, costs["scales"].backward) == (expected, 1)
    # Only Integrated Gradients of the two other classes were still missing.
    assert (costs["discrimination"].forward, costs["discrimination"].backward) == (36, 32)
    total = costs_table(complete).iloc[-1]
    assert total["forward"] == sum(cost.forward for cost in costs.values())


def _boxes(complete: Comparison) -> int:
    from dermlens.explainers.multiscale import PatchPyramid

    pyramid = PatchPyramid(untrained_bundle().model, (1 / 3, 1 / 12))
    return len(pyramid.boxes(SIZE))


def test_agreement_compares_areas(complete: Comparison) -> None:
    agreement = complete.agreement
    maps = smoothed(np.stack([result.maps[0] for result in complete.combined.values()]))
    expected = spearman(maps[:1], maps[2:3])[0]
    assert agreement.matrices["spearman"][0, 2] == pytest.approx(expected)
    assert agreement.families[:3] == ("activation", "activation", "gradient")
    closest, farthest = agreement.extremes()
    values = agreement.matrices["spearman"][np.triu_indices(6, 1)]
    assert closest[2] == pytest.approx(values.max()) and farthest[2] == pytest.approx(values.min())
    one, two = (agreement.methods.index(name) for name in closest[:2])
    assert agreement.matrices["spearman"][one, two] == pytest.approx(closest[2])


def test_contrasts_are_differences_and_turn_with_the_question(
    comparer: Comparer, complete: Comparison
) -> None:
    second, chosen = complete.reading.others
    found = complete.discrimination.contrasts
    names = [one.method for one in found[second]]
    assert names == [name for name in SIX if name != "grad_cam_plus_plus"]
    assert list(complete.discrimination.left_out) == ["grad_cam_plus_plus"]
    for one in (*found[second], *found[chosen]):
        assert 0 <= one.discrimination <= 1 and 0 <= one.share_for_other <= 1
    turned = comparer.compare(IMAGE, target=chosen, against=complete.reading.target, seed=2)
    back = turned.discrimination.contrasts[complete.reading.target]
    for one, other in zip(found[chosen], back, strict=True):
        scale = np.abs(one.values).max()
        assert one.values / scale == pytest.approx(-other.values / scale, abs=1e-3), one.method


def test_facts_are_the_numbers_of_the_maps(complete: Comparison) -> None:
    facts = facts_of(complete)
    maps = {name: result.maps[0] for name, result in complete.combined.items()}
    expected = {n: relevance_mass(m[None], MASK[None])[0] for n, m in maps.items()}
    assert facts.inside == pytest.approx(expected)
    assert facts.lesion_area == pytest.approx(MASK.mean())
    assert sum(facts.zones.values()) == pytest.approx(1.0)
    assert set(facts.against) == {"integrated_gradients", "occlusion", "lime", "gp_shap"}
    assert facts.r2 == pytest.approx(complete.combined["lime"].facts()["r2"])
    shares = complete.reading.probabilities
    second = complete.reading.others[0]
    assert facts.odds == pytest.approx(shares[complete.reading.target] / shares[second])
    assert [one.other for one in facts.contrasts] == [complete.classes[second], "df"]


def test_without_an_outline_the_ring_alone_is_known(complete: Comparison) -> None:
    for lesion in (None, np.zeros(SIZE, bool)):
        facts = facts_of(replace(complete, reading=replace(complete.reading, lesion=lesion)))
        assert facts.inside == {} and facts.zones == {} and facts.against_zone == ""
        assert len(facts.ring) == 6 and 0 < facts.ring_area < 1


def test_densest_zone() -> None:
    zones = np.array([[0, 1, 1, 1, 2, 3]])
    assert densest_zone([np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])], zones) == "core"
    assert densest_zone([np.array([[0.0, 1.0, 1.0, 0.0, 0.9, 0.0]])], zones) == "skin"
    assert densest_zone([np.zeros((1, 6)), -np.ones((1, 6))], zones) == ""


def test_agreement_of_scales_counts_pairs_of_different_kinds() -> None:
    values = np.random.default_rng(0).normal(size=(24, 36))

    def scales(*pairs: tuple[str, np.ndarray]) -> MultiScaleResult:
        maps = tuple(ScaleMap(kind, "", 1.0, one, True) for kind, one in pairs)
        return MultiScaleResult(maps, values, Cost())

    assert agreement_of_scales(scales(("depth", values), ("patch", values))) == pytest.approx(1)
    opposite = scales(("depth", values), ("depth", values), ("patch", -values))
    assert agreement_of_scales(opposite) == pytest.approx(-1)
    assert np.isnan(agreement_of_scales(scales(("depth", values)))) and np.isnan(
        agreement_of_scales(None)
    )


def test_noise_of_neighboring_pixels_is_not_evidence_for_the_other() -> None:
    generator = np.random.default_rng(0)
    area = np.zeros((48, 64))
    area[12:36, 16:48] = 1.0
    noisy = area + generator.choice([-6.0, 6.0], size=area.shape)
    found = contrast_by_area("integrated_gradients", noisy, np.zeros_like(noisy))
    assert found.share_for_other < 0.35 < (noisy < 0).mean()
    assert found.values == pytest.approx(noisy)


def test_page_holds_everything_and_refers_to_nothing(
    comparer: Comparer, complete: Comparison
) -> None:
    page = made(comparer, complete)
    assert not re.search(r"https?:|src=\"(?!data:)|<script|<link|url\(", page)
    text = html.unescape(page)
    assert "Research and education only, not a medical device." in page
    for name in SIX:
        assert METHODS[name].title in text and METHODS[name].question in text
    for heading in ("Methods side by side", "How far they agree", "Several scales", "Why this"):
        assert heading in page
    scales, found = complete.scales, complete.discrimination
    contrasts = sum(map(len, found.contrasts.values()))
    assert page.count('class="dl-map"') == 6 + 2 + 1 + len(scales.maps) + contrasts
    # The outline of the lesion is drawn on the image and on every map.
    assert page.count('<svg class="dl-lesion"') == 1 + page.count('class="dl-map"')
    for sentence in (*complete.summary.sentences.values(), complete.summary.verdict):
        assert sentence in text
    for doubt in complete.summary.doubts:
        assert doubt.text in text
    assert len(complete.summary.doubts) > 0
    assert "Without a contrast: Grad-CAM++ (only evidence" in page


def made(comparer: Comparer, state: Comparison) -> str:
    """The page of a comparison of the image."""
    canvas = Canvas(IMAGE, lesion=state.reading.lesion)
    return comparison_page(comparer.bundle, state, canvas, About("a"))


def test_page_and_numbers_name_the_model(comparer: Comparer, complete: Comparison) -> None:
    bundle = comparer.bundle
    assert bundle.label in made(comparer, complete)
    assert comparison_numbers(complete, "a")["model"] == bundle.identity


def test_page_of_a_running_comparison_shows_what_is_ready(
    comparer: Comparer, states: list[Comparison]
) -> None:
    first, some = made(comparer, states[0]), made(comparer, states[2])
    assert "What the model says" in first and 'class="dl-map"' not in first
    assert some.count('class="dl-map"') == 2 and "Shapley values" not in some


def test_folder_holds_page_maps_and_numbers(
    comparer: Comparer, complete: Comparison, tmp_path: Path
) -> None:
    page = written(comparer, tmp_path / "one", complete, tmp_path / "one.png")
    assert sorted(path.name for path in page.parent.iterdir()) == [
        ".dermlens",
        "attributions.npz",
        "comparison.html",
        "comparison.json",
    ]
    with np.load(page.parent / "attributions.npz") as arrays:
        assert set(arrays.files) == set(comparison_maps(complete))
        assert np.array_equal(arrays["gp_shap"], complete.combined["gp_shap"].maps[0])
        assert np.array_equal(arrays["outline"], MASK)
        assert all(arrays[name].shape == SIZE for name in arrays.files)
        second = complete.classes[complete.reading.others[0]]
        expected = complete.discrimination.contrasts[complete.reading.others[0]][0].values
        assert np.array_equal(arrays[f"contrast__{second}__grad_cam"], expected)
    numbers = read_json(page.parent / "comparison.json")
    json.dumps(numbers, allow_nan=False)
    assert numbers["target"] == complete.target
    assert numbers["agreement"]["matrices"]["ssim"][0][0] == 1.0
    assert numbers["cost"]["lime"]["forward"] == 500
    assert [w["name"] for w in numbers["warnings"]] == [d.name for d in complete.summary.doubts]
    assert set(numbers["discrimination"]) == {second, "df"}
    assert numbers["note"].startswith("Research and education only")


def test_comparison_replaces_neither_an_explanation_nor_photographs(
    comparer: Comparer, complete: Comparison, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "one.png").write_bytes(b"mine")
    with pytest.raises(DataError, match="one exists and is not a comparison, so it is not"):
        written(comparer, tmp_path / "one", complete, tmp_path / "photo.png")
    with folder_beside(tmp_path / "two", EXPLANATION) as building:
        (building / "explanation.json").write_text("{}")
    with pytest.raises(DataError, match="is not a comparison but an explanation"):
        written(comparer, tmp_path / "two", complete, tmp_path / "photo.png")
    assert (tmp_path / "one" / "one.png").read_bytes() == b"mine"
    assert (tmp_path / "two" / "explanation.json").read_text() == "{}"


def test_the_page_says_what_the_model_says(comparer: Comparer, complete: Comparison) -> None:
    told = About("one.png", "ab" * 32, ["Too dark."], ["A doubt."], {"seed": "7"})
    page = comparison_page(comparer.bundle, complete, Canvas(IMAGE), told)
    text = text_of(page.split("<main>")[1].split("</main>")[0])
    assert "The model abstains" in text and "Too dark." in text and "A doubt." in text
    assert f"Most probable: {complete.labels.of(complete.target).name}" in text
    for said in ("one.png", "ab" * 32, complete.model["fingerprint"], "seed 7", "Grad-CAM++"):
        assert said in text, said


def written(comparer: Comparer, folder: Path, complete: Comparison, path: Path) -> Path:
    """Write a comparison of a photograph that is made."""
    picture(3, 60, 80).save(path)
    return write_comparison(comparer.bundle, folder, complete, Source(path))


def test_an_interrupted_comparison_keeps_what_it_has(
    comparer: Comparer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(3, 60, 80).save(tmp_path / "one.png")
    steps = Comparer.steps

    def interrupted(self: Comparer, *arguments: object, **options: object) -> Iterator[Comparison]:
        yield from islice(steps(self, *arguments, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparer, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_files(
            comparer.bundle,
            [tmp_path / "one.png"],
            tmp_path / "out",
            methods="grad_cam,layer_cam,hires_cam",
        )
    stored = read_json(tmp_path / "out" / "one" / "comparison.json")
    assert list(stored["methods"]) == ["grad_cam", "layer_cam"] and "summary" not in stored
    assert "Layer-CAM" in (tmp_path / "out" / "one" / "comparison.html").read_text()


def test_outlines_of_another_size_fit_if_they_have_the_shape(
    comparer: Comparer, tmp_path: Path
) -> None:
    picture(3, 300, 400).save(tmp_path / "one.png")
    mask = np.zeros((450, 600), np.uint8)
    mask[150:300, 200:400] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ([tmp_path / "one.png"], tmp_path / "out")
    options = {"methods": "grad_cam", "scales": False}
    (page,) = compare_files(comparer.bundle, *given, mask=tmp_path / "mask.png", **options)
    stored = read_json(page.with_name("comparison.json"))
    # A ninth of the photograph; of its height eight ninths are seen.
    assert stored["outline"]["area"] == pytest.approx(1 / 8, abs=0.01)
    assert "scales" not in stored
    Image.fromarray(mask[:400]).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="another shape"):
        compare_files(comparer.bundle, *given, mask=tmp_path / "mask.png", **options)


def test_the_most_probable_diagnosis_to_contrast_with_is_no_error(
    comparer: Comparer, complete: Comparison
) -> None:
    first = next(comparer.steps(IMAGE, against=complete.target))
    assert first.reading.others == complete.reading.others[:1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "nv", "against": "nv"}, "cannot be contrasted with itself"),
        ({"target": "flu"}, "flu"),
        ({"lesion": np.zeros((5, 5), bool)}, "does not fit"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparer: Comparer, options, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        comparer.compare(IMAGE, **options)


def test_one_method_is_enough_and_none_is_not() -> None:
    bundle = untrained_bundle()
    result = Comparer(bundle, ["grad_cam_plus_plus"], batch_size=8).compare(IMAGE, target=1)
    assert np.isnan(result.agreement.between_families) and result.agreement.extremes() is None
    # Grad-CAM of all classes comes for free, so there is a contrast all the same.
    (contrasts,) = result.discrimination.contrasts.values()
    assert [one.method for one in contrasts] == ["grad_cam"]
    assert "Grad-CAM++" in comparison_page(bundle, result, Canvas(IMAGE), About("x"))
    with pytest.raises(UsageError, match="at least one"):
        Comparer(bundle, [])


def attribution(values: np.ndarray, name: str) -> Attribution:
    known = {"targets": np.zeros(1), "values": np.zeros(1), "output": "logit", "signed": True}
    return Attribution(maps=values[None], method=name, **known)


@pytest.fixture
def drawn() -> Iterator[dict[str, np.ndarray]]:
    """A gray image and two opposite maps."""
    ramp = np.linspace(-1, 1, 24 * 36).reshape(24, 36)
    yield {"image": np.full((24, 36, 3), 100, np.uint8), "one": ramp, "two": -ramp}


def drawn_part(state: Comparison, heading: str, image: np.ndarray) -> str:
    """The HTML of one part of a comparison."""
    (part,) = (one for one in parts(Canvas(image), state) if heading in one.title)
    return part.content


def pixels(shown: str, text: str) -> np.ndarray:
    """The colors and opacities of a map, found by its alternative text."""
    found = re.search(f'src="data:image/png;base64,([^"]+)" alt="{re.escape(text)}"', shown)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_matrices_write_their_values(drawn, complete: Comparison) -> None:
    agreement = compare_methods(
        {
            "occlusion": attribution(drawn["one"], "occlusion"),
            "lime": attribution(drawn["two"], "lime"),
        }
    )
    shown = drawn_part(replace(complete, agreement=agreement), "2. ", drawn["image"])
    first = shown.split("<table")[1]
    assert re.findall(r">(-?[0-9.]+)</td>", first) == ["1.00", "-1.00", "-1.00", "1.00"]
    assert re.findall(r'<th scope="row">([^<]+)<', first) == ["Occlusion", "LIME"]
    for heading in ("Rank correlation", "Structural similarity", "Overlap of strongest 20 %"):
        assert heading in text_of(shown)


def test_consensus_has_a_fixed_scale(drawn, complete: Comparison) -> None:
    half = np.full((24, 36), 0.5)
    agreement = replace(complete.agreement, consensus=half, disagreement=half)
    shown = drawn_part(replace(complete, agreement=agreement), "2. ", drawn["image"])
    consensus = pixels(shown, "Consensus of the methods")[..., :3]
    assert np.array_equal(consensus, colorize(half))
    # 0.5 is the largest spread there is.
    disagreement = pixels(shown, "Disagreement of the methods")[..., :3]
    assert np.array_equal(disagreement, colorize(2 * half))


def test_every_scale_and_the_fused_map_are_shown(drawn, complete: Comparison) -> None:
    maps = tuple(
        ScaleMap(kind, f"{kind} {n}", 1.0, drawn["one"], kind != "depth")
        for kind, count in (("depth", 4), ("patch", 2), ("superpixels", 1))
        for n in range(count)
    )
    scales = MultiScaleResult(maps, drawn["two"], Cost())
    shown = drawn_part(replace(complete, scales=scales), "3. ", drawn["image"])
    titles = re.findall(r'<article class="dl-card"><h4>([^<]+)</h4>', shown)
    assert titles == ["All scales fused", *(one.label for one in maps)]


def test_contrasts_say_for_whom(drawn, complete: Comparison) -> None:
    one = ClassContrast("lime", drawn["one"], 0.5, 0.25)
    other = complete.classes[complete.reading.others[0]]
    found = replace(complete.discrimination, contrasts={complete.reading.others[0]: (one,)})
    shown = drawn_part(replace(complete, discrimination=found), "4. ", drawn["image"])
    named, against = (class_name(complete.labels, code) for code in (complete.target, other))
    text = text_of(shown)
    assert f"for {against} (-1) for {named} (1)" in text
    assert f"Discrimination 0.50; 25 % for {against}." in text
    alt = f"LIME: where the image speaks for {named} rather than {against}"
    colors = pixels(shown, alt)[..., :3]
    assert np.array_equal(
        colors[[0, -1], [0, -1]], colorize(np.array([[-1.0, 1.0]]), signed=True)[0]
    )


def test_a_model_without_feature_maps_is_compared_by_the_other_methods() -> None:
    bundle = adopted_bundle(subclassed=True)
    image = np.asarray(picture(3, *bundle.input_size))
    assert available(bundle, ["grad_cam", "occlusion", "lime"]) == ["occlusion", "lime"]
    assert "grad_cam" not in chosen_methods(bundle, "six") and chosen_methods(bundle, "grad_cam")
    result = Comparer(bundle, ["occlusion", "integrated_gradients"], batch_size=8).compare(image)
    assert list(result.combined) == ["occlusion", "integrated_gradients"]
    assert (result.scales is None and "layers cannot be found" in result.missing["scales"]) or (
        "feature maps" in result.missing["scales"]
    )
    page = comparison_page(bundle, result, Canvas(image), About("x"))
    assert "3. Several scales" in page and "Left out." in page
    assert "not calibrated" in page and comparison_numbers(result, "x")["calibrated"] is False
    # The methods' own questions stand elsewhere.
    kept_out = r'base64,[^"]+|<style>.*?</style>|<p class="dl-question">.*?</p>'
    said = re.sub(kept_out, "", page, flags=re.S)
    for word in ("diagnos", "lesion", "skin", "malignan", "melanom"):
        assert word not in said, word
