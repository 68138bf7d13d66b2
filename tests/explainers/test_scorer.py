"""The int8 copy: it agrees, it is kept and made again, and it is never used silently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import dermlens
from dermlens.errors import ExplanationError, ModelError, UsageError
from dermlens.explainers.lime import LIME
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.perturbation import MaskedModel
from dermlens.explainers.registry import create, create_several
from dermlens.explainers.superpixel_explainer import SuperpixelBank
from dermlens.files import read_json, write_json
from dermlens.model import int8_copy as copies
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.int8_copy import find_int8_copy, int8_copy
from dermlens.model.scorers import choose_scorers
from dermlens.quality.agreement import pearson
from dermlens.report.explanation import describe, explain_files
from dermlens.serve import scorer_agreement
from dermlens.serve.scorer_agreement import (
    agreement_lines,
    images_of_split,
    measure_scorer,
)
from explain_networks import linear_network, smooth_images
from serving_support import SIZE, picture, save_untrained, untrained_bundle

SMALL: dict[str, dict[str, Any]] = {
    "occlusion": {"patch_size": 12, "stride": 6},
    "lime": {"superpixels": 8, "n_samples": 60},
    "gp_shap": {"superpixels": 8, "n_samples": 60},
    "rise": {"n_samples": 60, "cells": 4},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test may write into the user's real cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("scorer") / "bundle")


@pytest.fixture(scope="module")
def bundle(saved: Path) -> Bundle:
    loaded = load_bundle(saved)
    int8_copy(loaded)
    return loaded


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return smooth_images(3, SIZE)


def test_logits_agree_and_do_not_depend_on_the_batch(bundle: Bundle, images: np.ndarray) -> None:
    scorer = int8_copy(bundle).scorer(bundle.model)
    made, exact = scorer.logits(images.astype(np.float32)), bundle.logits(images)
    assert made.shape == exact.shape and made.dtype == np.float32
    assert np.abs(made - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(made - exact).max() > 0, "this is not a copy in whole numbers"
    one_by_one = np.concatenate([scorer.logits(i[None].astype(np.float32)) for i in images])
    np.testing.assert_array_equal(made, one_by_one)


def test_nothing_is_said_on_the_console(
    bundle: Bundle, images: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    int8_copy(bundle).scorer(bundle.model).logits(images.astype(np.float32))
    assert "INFO" not in capfd.readouterr().err


def test_measured_agreement_is_kept_and_makes_the_copy_the_default(
    bundle: Bundle, images: np.ndarray
) -> None:
    assert choose_scorers(bundle, list(SMALL)) == {}, "nothing was measured yet"
    measured, path = measure_scorer(bundle, images, options=SMALL, batch_size=8)
    assert measured["images"] == 3 and set(measured["methods"]) == set(SMALL)
    for name, row in measured["methods"].items():
        assert row["pearson"] > 0.99, name
        assert row["lowest_pearson"] <= row["pearson"] < 1.0, "the model was compared with itself"
        assert 0.5 < row["top_20_iou"] <= 1.0
    assert path == bundle.path / "int8" / "agreement.json"
    assert len(agreement_lines(measured)) == 5
    assert set(choose_scorers(bundle, ["grad_cam", *SMALL])) == set(SMALL)

    stored = read_json(path)
    stored["methods"]["lime"]["pearson"] = 0.9899
    del stored["methods"]["rise"]
    write_json(path, stored)
    assert list(choose_scorers(bundle, list(SMALL))) == ["occlusion", "gp_shap"]
    assert choose_scorers(bundle, list(SMALL), "float32") == {}
    write_json(path, {**stored, "model_sha256": "of another copy"})
    assert list(choose_scorers(bundle, list(SMALL))) == []
    path.unlink()


@pytest.mark.parametrize("name", list(SMALL))
def test_result_names_what_evaluated_the_images(
    name: str, bundle: Bundle, images: np.ndarray
) -> None:
    scorer = choose_scorers(bundle, [name], "int8")[name]
    exact = create(name, bundle, **SMALL[name]).attribute(images[:1], "mel", batch_size=8)
    copied = create(name, bundle, scorer=scorer, **SMALL[name]).attribute(
        images[:1], "mel", batch_size=8
    )
    assert exact.scorer == describe(exact)["scorer"] == "float32"
    assert copied.scorer == describe(copied)["scorer"] == "int8"
    assert exact.cost.forward == copied.cost.forward
    assert pearson(exact.maps, copied.maps)[0] > 0.98
    assert not np.array_equal(exact.maps, copied.maps), "the scorer was accepted and ignored"


class Recording:
    """A scorer that notes what it is given."""

    name = "recording"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.copy())
        return images.sum(axis=(1, 2))

    def check(self, model: Any) -> None:
        pass


def test_masked_images_reach_the_scorer_batch_by_batch() -> None:
    """Exactly the covered images, none of the padding, never more than a batch at once."""
    recording = Recording()
    model = linear_network(np.zeros((8, 12, 3, 3)))
    explainer = Occlusion(model, patch_size=4, stride=4, baseline="black", scorer=recording)
    image = smooth_images(1, (8, 12)).astype(np.float32)
    result = explainer.attribute(image, 0, batch_size=3)
    assert [len(batch) for batch in recording.seen] == [3, 3, 1]
    expected = [image[0]]
    for top, left, bottom, right in result.boxes:
        covered = image[0].copy()
        covered[top:bottom, left:right] = 0.0
        expected.append(covered)
    np.testing.assert_allclose(np.concatenate(recording.seen), expected)
    blocks = image[0, ..., 0].reshape(2, 4, 3, 4).sum(axis=(1, 3))
    np.testing.assert_allclose(result.maps[0], np.kron(blocks, np.ones((4, 4))), rtol=1e-4)
    assert result.cost.forward == 7


def test_shared_masks_use_a_scorer_only_if_both_methods_have_it(bundle: Bundle) -> None:
    recording = Recording()
    pair = ("lime", "gp_shap")
    both = create_several(pair, bundle, scorers=dict.fromkeys(pair, recording))
    one = create_several(pair, bundle, scorers={"lime": recording})
    assert [explainer.scorer for explainer in both.values()] == [recording, recording]  # type: ignore[attr-defined]
    assert [explainer.scorer for explainer in one.values()] == [None, None]  # type: ignore[attr-defined]
    alone = create_several(("lime",), bundle, scorers={"lime": recording})["lime"]
    assert isinstance(alone, LIME) and alone.scorer is recording


def test_copy_is_reused_and_made_again_when_weights_change(
    bundle: Bundle, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = int8_copy(bundle)
    scorer = first.scorer(bundle.model)
    explainer = Occlusion(bundle, scorer=scorer, **SMALL["occlusion"])
    kernel = bundle.model.get_layer("logits").kernel
    before = kernel.numpy()
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_converted", lambda _: pytest.fail("made a second time"))
        assert int8_copy(bundle).facts == first.facts
    try:
        kernel.assign(before[:, ::-1])
        assert find_int8_copy(bundle) is None
        with pytest.raises(ExplanationError, match="weights have changed"):
            explainer.attribute(images[:1], "mel")
        with pytest.raises(ModelError, match="other weights"):
            first.scorer(bundle.model)
        again = int8_copy(bundle)
        assert again.folder == first.folder and again.facts != first.facts
        made = again.scorer(bundle.model).logits(images.astype(np.float32))
        exact = bundle.logits(images)
        assert np.abs(made - exact).max() < 0.05 * np.abs(exact).max()
    finally:
        kernel.assign(before)
        int8_copy(bundle)


def test_damaged_copy_is_not_used(bundle: Bundle) -> None:
    copy = int8_copy(bundle)
    (copy.folder / "model.tflite").write_bytes(b"no longer a model")
    assert find_int8_copy(bundle) is None
    assert int8_copy(bundle).facts["weights_sha256"] == copy.facts["weights_sha256"]
    assert find_int8_copy(bundle) is not None
    written = sorted(path.name for path in copy.folder.iterdir())
    assert written == [".dermlens", "copy.json", "model.tflite"]


def test_user_cache_where_the_bundle_cannot_be_written(
    saved: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    place = Path(shutil.copytree(saved, tmp_path / "read-only", ignore=lambda *_: {"int8"}))
    loaded = load_bundle(place)
    monkeypatch.setattr(copies.os, "access", lambda path, mode: Path(path) != place)
    monkeypatch.setattr(copies, "_converted", lambda _: b"content")
    made = int8_copy(loaded)
    assert made.folder.is_relative_to(cache) and not (place / "int8").exists()
    monkeypatch.setattr(copies, "_converted", lambda _: pytest.fail("made a second time"))
    assert int8_copy(loaded).folder == made.folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(copies, "_converted", lambda _: b"content")
    nowhere = untrained_bundle()
    assert int8_copy(nowhere).folder.is_relative_to(cache), "a bundle in memory has no folder"


def carrying(saved: Path, place: Path, measured: dict[str, Any]) -> Bundle:
    """Return a bundle handed on with a measurement but without the copy."""
    import shutil

    shutil.copytree(saved, place, ignore=lambda *_: {"int8"})
    write_json(place / "int8" / "agreement.json", measured)
    return load_bundle(place)


def test_bundle_can_bring_the_measurement_without_the_copy(
    bundle: Bundle, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = int8_copy(bundle).facts
    good = {
        "weights_sha256": facts["weights_sha256"],
        "model_sha256": facts["model_sha256"],
        "methods": {"occlusion": {"pearson": 0.995}, "lime": {"pearson": 0.98}},
    }
    loaded = carrying(saved, tmp_path / "good", good)
    place = loaded.path / "int8" / "model.tflite"
    # 166 passes are not worth the making of a copy, 100 times as many are.
    assert choose_scorers(loaded, list(SMALL)) == {} and not place.exists()
    assert list(choose_scorers(loaded, list(SMALL), images=100)) == ["occlusion"]
    assert place.exists() and read_json(place.with_name("agreement.json")) == good
    assert list(choose_scorers(loaded, list(SMALL))) == ["occlusion"], "now there is a copy"

    # A newer converter makes another copy, of which nothing is known.
    other = carrying(saved, tmp_path / "converter", {**good, "model_sha256": "another"})
    assert choose_scorers(other, list(SMALL), images=100) == {}
    assert find_int8_copy(other) is not None and choose_scorers(other, list(SMALL)) == {}

    monkeypatch.setattr(copies, "_converted", lambda _: pytest.fail("made without need"))
    weights = carrying(saved, tmp_path / "weights", {**good, "weights_sha256": "others"})
    assert choose_scorers(weights, list(SMALL), images=100) == {}
    bad = {**good, "methods": {"occlusion": {"pearson": 0.98}}}
    assert choose_scorers(carrying(saved, tmp_path / "bad", bad), list(SMALL), images=100) == {}

    def fails(_: Bundle) -> bytes:
        raise ModelError("It cannot be converted.")

    monkeypatch.setattr(copies, "_converted", fails)
    broken = carrying(saved, tmp_path / "broken", good)
    assert choose_scorers(broken, list(SMALL), images=100) == {}, "unasked, it is no error"
    with pytest.raises(ModelError, match="cannot be converted"):
        choose_scorers(broken, list(SMALL), "int8")


def test_the_page_makes_the_copy_before_anybody_waits(
    bundle: Bundle, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermlens.serve import app

    facts = int8_copy(bundle).facts
    keys = {name: facts[name] for name in ("weights_sha256", "model_sha256")}
    good = {**keys, "methods": {"occlusion": {"pearson": 0.995}}}
    place = carrying(saved, tmp_path / "served", good).path
    assert not (place / "int8" / "model.tflite").exists()

    class Built(Exception):
        """Ends the start where the page is built."""

    def build(bundle: Bundle, *_: Any) -> None:
        raise Built(find_int8_copy(bundle) is not None)

    monkeypatch.setattr(app, "build_app", build)
    # The real one changes the environment of the whole process.
    monkeypatch.setattr(app, "_upload_folder", lambda: app.Uploads(tmp_path, kept=tmp_path))
    with pytest.raises(Built, match="True"):
        app.launch(place, block=False)


def test_nothing_is_written_into_the_package(
    bundle: Bundle, saved: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = int8_copy(bundle).facts
    measured = {**facts, "methods": {"gp_shap": {"pearson": 0.999}}}
    shipped = carrying(saved, tmp_path / "shipped", measured)
    monkeypatch.setattr(copies, "SHIPPED", shipped.path)
    made = int8_copy(shipped)
    assert made.folder.is_relative_to(cache)
    assert [path.name for path in (shipped.path / "int8").iterdir()] == ["agreement.json"]
    assert list(choose_scorers(shipped, list(SMALL))) == ["gp_shap"]


def test_copy_of_another_input_size_is_another_copy(bundle: Bundle) -> None:
    from dermlens.model.classifier import Architecture, build_classifier

    known = bundle.architecture
    larger = build_classifier(Architecture(known.backbone, (SIZE[0] + 32, SIZE[1]), known.classes))
    larger.set_weights(bundle.model.get_weights())
    assert copies.weights_sha256(larger) != copies.weights_sha256(bundle.model)


def test_comparison_uses_the_scorer_and_names_it(
    bundle: Bundle, images: np.ndarray, tmp_path: Path
) -> None:
    from dermlens.report.comparer import Comparer

    assert all(getattr(e, "scorer", None) is None for e in Comparer(bundle).explainers.values())
    one = Comparer(bundle, ["lime"], scorer="int8").explainers["lime"]
    assert isinstance(one, LIME) and one.scorer is not None
    file = tmp_path / "photo.png"
    picture(0).save(file)
    done = dermlens(
        "compare", bundle.path, file, "--methods", "grad_cam,occlusion", "--scorer", "int8",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "photo" / "comparison.html").read_text()
    assert "int8 copy was used for Occlusion." in page
    facts = read_json(tmp_path / "out" / "photo" / "comparison.json")
    assert facts["methods"]["occlusion"]["scorer"] == "int8"


def test_explanations_of_files_name_the_scorer(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    picture(0).save(file)
    for choice, expected in ((None, "float32"), ("int8", "int8"), ("float32", "float32")):
        out = tmp_path / str(choice)
        explain_files(bundle, [file], out, methods="grad_cam,occlusion", scorer=choice)
        facts = json.loads((out / "photo" / "explanation.json").read_text())["methods"]
        assert facts["occlusion"]["scorer"] == expected
        assert "scorer" not in facts["grad_cam"]
    with pytest.raises(UsageError, match="Unknown scorer 'int4'"):
        explain_files(bundle, [file], tmp_path / "no", methods="occlusion", scorer="int4")


def test_many_files_are_said_to_be_many(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermlens.report import comparer, comparison_files, explanation

    class Asked(Exception):
        pass

    def ask(*arguments: Any, images: int) -> None:
        raise Asked(images)

    files = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, file in enumerate(files):
        picture(seed).save(file)
    for module in (explanation, comparer):
        monkeypatch.setattr(module, "choose_scorers", ask)
    for work in (explain_files, comparison_files.compare_files):
        with pytest.raises(Asked, match="3"):
            work(bundle, files, tmp_path / "out", methods="occlusion")


def test_the_page_says_what_was_evaluated(bundle: Bundle, images: np.ndarray) -> None:
    from dermlens.report.comparison_view import _cost

    for choice, words in (
        ("float32", " forward passes, "),
        ("int8", " forward passes of the int8 copy, "),
    ):
        scorer = choose_scorers(bundle, ["occlusion"], choice).get("occlusion")
        explainer = Occlusion(bundle, scorer=scorer, **SMALL["occlusion"])
        assert words in _cost(explainer.attribute(images[:1], "mel"), {})
    both = create_several(
        ["lime", "gp_shap"], bundle, bank=SuperpixelBank(bundle.model, **SMALL["lime"])
    )
    first, shared = (both[name].attribute(images[:1], "mel") for name in ("lime", "gp_shap"))
    results = {"lime": first, "gp_shap": shared}
    assert " forward passes, " in _cost(first, results)
    assert _cost(shared, results).startswith("Reused LIME's results, ")


def test_measuring_is_refused_where_it_means_nothing(
    bundle: Bundle, images: np.ndarray, prepared: Path
) -> None:
    with pytest.raises(UsageError, match="grad_cam"):
        measure_scorer(bundle, images, methods=["grad_cam"])
    with pytest.raises(UsageError, match="at least one"):
        measure_scorer(bundle, images[:0])
    chosen = images_of_split(prepared, "validation", 7, SIZE)
    assert chosen.shape == (7, *SIZE, 3) and chosen.dtype == np.uint8


def test_interrupted_measurement_goes_on(
    bundle: Bundle, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {name: SMALL[name] for name in ("occlusion", "lime")}
    arguments: dict[str, Any] = {"methods": list(options), "options": options, "batch_size": 8}
    expected, stored = measure_scorer(bundle, images, **arguments)
    part = stored.with_name("agreement.part.json")
    assert not part.exists()
    stored.unlink()
    done: list[str] = []
    compare = scorer_agreement._row

    def until_killed(pair: Any, *rest: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(pair[0].name)
        return compare(pair, *rest)

    monkeypatch.setattr(scorer_agreement, "_row", until_killed)
    with pytest.raises(KeyboardInterrupt):
        measure_scorer(bundle, images, **arguments)
    assert done == ["occlusion", "lime", "occlusion"] and not stored.exists()

    def counted(pair: Any, *rest: Any) -> Any:
        done.append(pair[0].name)
        return compare(pair, *rest)

    monkeypatch.setattr(scorer_agreement, "_row", counted)
    resumed, _ = measure_scorer(bundle, images, **arguments)
    assert len(done) == 6 and not part.exists(), "what was measured is not measured again"
    for name, row in resumed["methods"].items():
        for figure in ("pearson", "lowest_pearson", "top_20_iou", "forward_passes"):
            assert row[figure] == expected["methods"][name][figure]
    # Another seed is another measurement.
    part.write_text(json.dumps({"of": 1, "rows": {"occlusion 0": {"pearson": 2.0}}}))
    assert measure_scorer(bundle, images, **arguments, seed=1)[0]["seed"] == 1
    assert len(done) == 12
    stored.unlink()


def test_commands(saved: Path, bundle: Bundle, prepared: Path, tmp_path: Path) -> None:
    """The command measures, keeps and says it; explaining then uses the copy unasked."""
    file, stored = tmp_path / "photo.png", saved / "int8" / "agreement.json"
    picture(0).save(file)
    done = dermlens("scorer", saved, prepared, "--n", 2, "--methods", "occlusion")
    assert done.code == 0, done.err
    assert str(stored) in done.out and "strongest fifth" in done.out
    measured = read_json(stored)
    assert measured["images"] >= 2 and list(measured["methods"]) == ["occlusion"]
    stored_r = measured["methods"]["occlusion"]["pearson"]
    out = tmp_path / "out"
    done = dermlens("explain", saved, file, "--methods", "occlusion", "--out", out)
    assert done.code == 0, done.err
    facts = json.loads((out / "photo" / "explanation.json").read_text())["methods"]["occlusion"]
    assert facts["scorer"] == ("int8" if stored_r >= 0.99 else "float32")
    refused = dermlens("explain", saved, file, "--scorer", "int4", "--methods", "occlusion")
    assert refused.code == 2 and "Unknown scorer" in refused.err
    stored.unlink()


def test_pearson() -> None:
    flat, slope = np.zeros((1, 2, 3)), np.arange(6.0).reshape(1, 2, 3)
    assert pearson(flat, flat) == 1.0 and pearson(flat, slope) == 0.0
    assert pearson(slope, -slope) == pytest.approx(-1.0)


def test_scorer_is_traced_once_for_any_image() -> None:
    recording = Recording()
    masked = MaskedModel(
        linear_network(np.zeros((4, 6, 3, 3))),
        lambda shared, kept: 1.0 - shared[None] * kept[:, :1, None],
        Occlusion(linear_network(np.zeros((4, 6, 3, 3)))).network.cost,
        scorer=recording,
    )
    area = np.zeros((4, 6), np.float32)
    area[0] = 1.0
    for image in smooth_images(3, (4, 6)).astype(np.float32):
        masked.logits(image, np.zeros_like(image), area, np.ones((3, 1), np.float32), 2)
    assert masked.traces == 1 and masked.cost.forward == 9
    assert (np.concatenate(recording.seen)[:, 0] == 0).all()
