"""The Evidence tab without a server, and known cases in a comparison."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cases_support import give_index
from dermlens.data.images import perceptual_hash
from dermlens.data.manifest import read_manifest
from dermlens.errors import UsageError
from dermlens.explainers.nearest_cases import CaseFinder
from dermlens.labels import HAM10000
from dermlens.model.bundle import load_bundle
from dermlens.model.case_index import FILE
from dermlens.report import cases_view
from dermlens.report.cases_view import CasePictures
from dermlens.report.comparer import Comparer
from dermlens.report.comparison_files import comparison_numbers
from dermlens.report.comparison_view import parts
from dermlens.report.evidence_files import EvidenceMaker, lesion_in
from dermlens.report.facts import class_name
from dermlens.report.layers import Canvas
from dermlens.serve import app_examples
from dermlens.serve.app_actions import Actions, Wish
from dermlens.serve.app_desk import Desk
from serving_support import SIZE, picture, save_untrained, text_of

IMAGE = np.asarray(picture(3, *SIZE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_untrained(tmp_path_factory.mktemp("evidence") / "bundle")
    give_index(made)
    return made


@pytest.fixture(scope="module")
def with_cases(folder: Path) -> Desk:
    return Desk(load_bundle(folder))


def test_cases_are_those_of_the_command_without_another_pass(
    with_cases: Desk, lesion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = with_cases.analyze("ann", str(lesion))
    expected = CaseFinder(with_cases.bundle).find(shown.image, photograph=shown.display)
    monkeypatch.setattr(with_cases.actions, "_pass", None)
    found, pictures = with_cases.cases("ann", str(lesion))
    assert pictures == {}
    for one, other in zip(found.leading, expected.leading, strict=True):
        assert [case.image_id for case in one.nearest] == [c.image_id for c in other.nearest]
        assert one.nearest[0].similarity == pytest.approx(other.nearest[0].similarity, abs=1e-4)


def test_every_statement_carries_its_number(with_cases: Desk, lesion: Path) -> None:
    found, _ = with_cases.cases("ann", str(lesion))
    labels = with_cases.bundle.labels
    text = text_of(cases_view.cases_html(found, labels))
    tally = found.measured.agreeing[found.agreeing]
    share = f"{100 * tally.right / tally.images:.0f} %"
    assert f"{found.agreeing} of the 5 most similar known lesions" in text
    assert f"Of 10 test images with as many, {share} were answered rightly" in text
    assert "of all 60, 55 %" in text
    for case in found.nearest:
        others = sum(one.dx == case.dx for one in found.nearest)
        listed = f"{class_name(labels, case.dx)} ({others})"
        assert (listed in text.split("The others:")[-1]) == (case.dx != found.answer)
    for one in found.leading:
        assert HAM10000.of(one.code).name in text
        for case in one.nearest:
            assert f"Similarity {case.similarity:.2f} {case.image_id}" in text
            assert f"lesion {case.lesion_id} by histopathology" in text
    known = replace(found, known="ISIC_1")
    assert "learned from this very photograph (ISIC_1)" in text_of(
        cases_view.cases_html(known, labels)
    )
    none = replace(found, leading=tuple(replace(one, close=0) for one in found.leading))
    text = text_of(cases_view.cases_html(none, labels))
    assert "No close case of" in text and "reaches for 93 % of test images" in text
    assert "Of 8 test images whose answer had none, 25 % were" in text and "Similarity" not in text
    empty = replace(found.leading[1], close=0, nearest=())
    assert "No case of" in text_of(
        cases_view.cases_html(replace(found, leading=(found.leading[0], empty)), labels)
    )


def test_no_diagnosis_where_the_model_abstains(with_cases: Desk, tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    given = str(tmp_path / "skin.png")
    with pytest.raises(UsageError, match="abstains on this image"):
        with_cases.cases("bob", given)
    assert with_cases.cases("bob", given, Wish(anyway=True))[0].leading
    with pytest.raises(UsageError, match="no image yet"):
        with_cases.cases("bob", None)


def test_without_an_index_a_sentence_without_a_path(actions: Actions, lesion: Path) -> None:
    with pytest.raises(UsageError, match="has no index of known cases") as refused:
        actions.cases(actions.analyze(lesion))
    assert str(actions.bundle.path) not in str(refused.value).replace("BUNDLE", "")


def test_pictures_come_from_the_data_set_alone(
    with_cases: Desk, lesion: Path, prepared: Path
) -> None:
    found, _ = with_cases.cases("ann", str(lesion))
    table = read_manifest(prepared)
    first = found.leading[0].nearest
    renamed = (replace(first[0], image_id=table.image_id[0]), *first[1:])
    found = replace(found, leading=(replace(found.leading[0], nearest=renamed),))
    pictures = CasePictures(prepared).of(found)
    assert set(pictures) == {c.image_id for c in renamed} & set(table.image_id)
    assert max(pictures[table.image_id[0]].shape) <= 240
    html = cases_view.cases_html(found, with_cases.bundle.labels, pictures)
    assert html.count("data:image/jpeg") == len(pictures) and text_of(html)
    far = replace(found, leading=(replace(found.leading[0], close=0),))
    assert CasePictures(prepared).of(far) == {} and CasePictures().of(found) == {}


def test_the_data_set_of_the_examples_is_used(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert app_examples.data_set(None) is None and app_examples.data_set(prepared) == prepared
    (tmp_path / "dermlens").mkdir()
    remembered = tmp_path / "dermlens" / "examples.txt"
    remembered.write_text(f"{prepared}\n")
    assert app_examples.data_set(None) == prepared
    remembered.write_text(f"{tmp_path / 'gone'}\n")
    assert app_examples.data_set(None) is None


def test_a_comparison_holds_them_too(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    *_, state = Comparer(bundle, ["grad_cam"], scales=False).steps(IMAGE)
    expected = CaseFinder(bundle).find(IMAGE)
    assert state.cases == expected and state.reading.cost.forward == 2
    tall = np.pad(IMAGE, ((40, 40), (0, 0), (0, 0)))
    known = np.frombuffer(bytes.fromhex(perceptual_hash(Image.fromarray(tall))), np.uint8)
    shutil.copytree(folder, tmp_path / "known")
    give_index(tmp_path / "known", hashes=np.tile(known, (42, 1)))
    comparer = Comparer(load_bundle(tmp_path / "known"), ["grad_cam"], scales=False)
    told = [next(comparer.steps(IMAGE, photograph=one)).cases for one in (None, tall)]
    assert [one.known for one in told if one is not None] == ["", "ISIC_0000000"]
    last = parts(Canvas(IMAGE), state)[-1]
    assert last.title == "4. Known cases like this one" and "Similarity" in text_of(last.content)
    assert comparison_numbers(state, "a")["cases"] == expected.to_json()
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / FILE).unlink()
    *_, state = Comparer(load_bundle(tmp_path / "plain"), ["grad_cam"], scales=False).steps(IMAGE)
    assert state.cases is None and parts(Canvas(IMAGE), state)[-1].title.startswith("3. Why")
    assert "cases" not in comparison_numbers(state, "a")


@pytest.mark.parametrize("drawn", [False, True])
def test_changes_and_criteria_are_those_of_the_commands(
    with_cases: Desk, lesion: Path, drawn: bool
) -> None:
    shown = with_cases.analyze("eve", str(lesion))
    if drawn:
        with_cases.draw_outline("eve", [(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)])
    outline = with_cases.results.get("eve", "outline")[1] if drawn else None
    found = lesion_in(Image.fromarray(shown.display), outline)
    maker = EvidenceMaker(with_cases.bundle)
    part, values = with_cases.criteria("eve", str(lesion))
    expected, theirs = maker.criteria(found)
    assert values == theirs and part == expected and ("given" in part.content) == drawn
    part, numbers = with_cases.changes("eve", str(lesion))
    assert numbers["passes"] <= 150 and "changes of the picture, not of the skin" in part.text
    assert numbers["answer"] == with_cases.bundle.classes[shown.predicted]
    assert ("lesion_erased" in numbers["changes"]) == (found.mask is not None)


def test_neither_changes_nor_criteria_where_the_model_abstains(
    with_cases: Desk, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    for ask in (with_cases.changes, with_cases.criteria):
        with pytest.raises(UsageError, match="abstains on this image"):
            ask("bob", str(tmp_path / "skin.png"))
