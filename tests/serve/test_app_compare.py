"""The Compare and Batch tabs without a server: what they do and what they show."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermlens.errors import DataError, UsageError
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.report.comparer import Comparer
from dermlens.report.comparison_view import matrix_table
from dermlens.serve import app_batch, app_page_results, app_style
from dermlens.serve.app_actions import Actions, Analysis, Wish
from dermlens.serve.app_desk import Desk, Job
from dermlens.serve.app_explaining import Explaining, Work, with_outline
from dermlens.serve.app_tabs import name_of
from dermlens.serve.app_tabs_compare import maps_file, report_of
from serving_support import text_of

METHODS = ["grad_cam", "integrated_gradients"]


@pytest.fixture(scope="module")
def analysis(desk: Desk, lesion: Path) -> Analysis:
    return desk.actions.analyze(lesion)


@pytest.fixture(scope="module")
def states(desk: Desk, analysis: Analysis) -> list[Work]:
    return list(desk.explaining.compare(analysis, METHODS, "mel", "vasc"))


def test_comparison_is_what_the_command_computes(
    desk: Desk, analysis: Analysis, states: list[Work]
) -> None:
    expected = Comparer(desk.bundle, METHODS).compare(analysis.image, target="mel", against="vasc")
    found = states[-1].comparison
    assert tuple(found.combined) == tuple(METHODS)
    for name in METHODS:
        np.testing.assert_allclose(
            found.combined[name].maps, expected.combined[name].maps, atol=1e-5
        )
    assert found.agreement is not None and expected.agreement is not None
    np.testing.assert_allclose(found.agreement.consensus, expected.agreement.consensus, atol=1e-6)
    assert found.reading.others == expected.reading.others
    assert found.summary == expected.summary
    loaded = np.load(io.BytesIO(maps_file(found)))
    np.testing.assert_array_equal(loaded["grad_cam"], found.combined["grad_cam"].maps[0])


def test_every_part_is_shown_when_it_is_ready(analysis: Analysis, states: list[Work]) -> None:
    assert [s.running for s in states] == [*METHODS, "agreement", "scales", "discrimination", None]
    assert [s.done for s in states] == [1, 2, 3, 4, 5, 6] and states[0].total == 6
    pages = [text_of(app_page_results.comparison(Job("", analysis, s))) for s in states]
    assert "2 of 6: Grad-CAM." in pages[0] and "1. Methods" not in pages[0]
    assert "1. Methods" in pages[1] and "2. How far" not in pages[2]
    assert "2. How far" in pages[3] and "3. Several" not in pages[3]
    assert "3. Several" in pages[4] and "4. Why" not in pages[4]
    assert "Complete." in pages[5] and "Summary" in pages[5]
    assert pages[5].index("Summary") < pages[5].index("1. Methods")
    stopped = text_of(app_page_results.comparison(Job("", analysis, states[2]), stopped=True))
    assert stopped.startswith("Stopped after 3 of 6 parts.")


def test_warnings_stand_before_the_sentences(analysis: Analysis, states: list[Work]) -> None:
    text = text_of(app_page_results.comparison(Job("", analysis, states[-1])))
    summary = states[-1].comparison.summary
    assert summary is not None and summary.doubts
    sentence = " ".join(summary.sentences["diagnosis"].replace("\xa0", " ").split())
    for doubt in summary.doubts:
        assert text.index(" ".join(doubt.text.replace("\xa0", " ").split())) < text.index(sentence)


def test_matrix_cells_are_readable_on_their_color() -> None:
    for value in np.linspace(-1, 1, 21):
        html = matrix_table(np.full((1, 1), value), ["A"], signed=True)
        ground, ink = html.split("background:rgb(")[1].split(")")[0], html.split(";color:")[1][:7]
        levels = [int(part) for part in ground.split(",")]
        text = (255, 255, 255) if ink.startswith("#fff") else (0, 0, 0)
        assert contrast(levels, text) >= 4.5


@pytest.mark.parametrize("block", [":root", ".dark"])
def test_words_are_readable_on_their_ground(block: str) -> None:
    rules = app_style.CSS.split(block + " {")[1].split("}")[0]
    named = dict(re.findall(r"--dl-([a-z-]+): (#[0-9a-f]{6})", rules))
    ground = "#ffffff" if block == ":root" else "#0b0f19"
    pairs = [(named[text], ground) for text in ("ink", "muted", "alarm", "bar", "doubt")]
    pairs += [(named[text], named["card"]) for text in ("ink", "muted", "doubt")]
    pairs += [(named["note-ink"], named["note"]), (named["doubt"], named["doubt-soft"])]
    pairs += [(named[text], named["alarm-soft"]) for text in ("ink", "alarm")]
    for text, behind in pairs:
        levels = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in (text, behind)]
        assert contrast(*levels) >= 4.5, (text, behind)


def contrast(first: Any, second: Any) -> float:
    """The contrast of two colors as WCAG 2 defines it."""

    def luminance(color: Any) -> float:
        share = np.array(color) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_wrong_choices_are_refused(desk: Desk, analysis: Analysis) -> None:
    for methods, target, against in (
        ([], PREDICTED, RUNNER_UP),
        (["magic"], PREDICTED, RUNNER_UP),
        (["grad_cam"], "moles", RUNNER_UP),
        (["grad_cam"], "mel", "mel"),
    ):
        with pytest.raises(UsageError):
            next(desk.explaining.compare(analysis, methods, target, against))


def test_one_visitor_waits_for_another(desk: Desk, analysis: Analysis) -> None:
    explaining = Explaining(desk.actions)
    steps = explaining.explain(analysis, ["grad_cam"])
    next(steps)
    assert not explaining._running.locked()
    first, second = (
        explaining.compare(analysis, ["grad_cam"]),
        explaining.compare(analysis, METHODS),
    )
    assert next(first).total == 5 and next(second).total == 6
    assert tuple(next(second).comparison.combined) == ("grad_cam",)


def test_desk_analyzes_an_image_once_per_session(
    desk: Desk, lesion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    analyze = desk.actions.analyze
    monkeypatch.setattr(desk.actions, "analyze", lambda path: calls.append(path) or analyze(path))
    desk.analyze("ann", str(lesion))
    *_, last = desk.explain("ann", str(lesion), ["grad_cam"], PREDICTED)
    assert len(calls) == 1 and desk.shown("ann", "explanation") is last
    list(desk.explain("bob", str(lesion), ["grad_cam"], PREDICTED))
    assert len(calls) == 2
    desk.forget("ann")
    assert desk.shown("ann", "analysis") is None and desk.shown("bob", "analysis") is not None
    with pytest.raises(UsageError, match="no image yet"):
        next(desk.explain("ann", None, ["grad_cam"], PREDICTED))


def test_names_of_downloads_are_harmless() -> None:
    assert name_of("/tmp/a/lesion 1.png") == "lesion_1"
    assert name_of('/tmp/"><script>.png') == "script"
    assert name_of("/tmp/\u200b.png") == "image"


def test_batch_table_and_csv(actions: Actions, lesion: Path, tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.png", tmp_path / "broken.png"
    Image.new("RGB", (300, 200), (200, 160, 150)).save(plain)
    broken.write_bytes(b"no image")
    files = [("lesion.png", lesion), ("=1+1.png", plain), ("../../broken.png", broken)]
    states = list(app_batch.analyze_many(actions, files))
    assert [len(rows) for rows in states] == [1, 2, 3]
    table = app_batch.shown_table(actions, states[-1])
    assert list(table.columns) == list(app_batch.columns(actions.bundle))
    assert list(table["No."]) == [1, 2, 3] and 'src="data:image/jpeg' in table.Picture[0]
    # What the page abstains on has no diagnosis, in the table or in the file, unless asked for.
    assert table["Most probable"][1] == "" and np.isnan(table.Melanoma[1])
    asked = app_batch.shown_table(actions, states[-1], anyway=True)
    assert asked["Most probable"][1] and 0 <= asked.Melanoma[1] <= 1
    assert list(table.Verdict) == ["answers", "abstains", "not read"]
    assert list(table.File) == ["lesion.png", "=1+1.png", "broken.png"]
    assert "No lesion stands out" in table.Remarks[1] and "cannot be decoded" in table.Remarks[2]
    expected = actions.analyze(lesion)
    assert table.Melanoma[0] == pytest.approx(expected.probabilities[4], abs=5e-4)
    rows = list(csv.DictReader(io.StringIO(app_batch.as_csv(actions, states[-1]))))
    assert rows[1]["file"] == "'=1+1.png" and rows[1]["abstain"] == "True"
    assert rows[1]["predicted"] == rows[1]["probability_mel"] == rows[1]["flag_melanoma"] == ""
    assert rows[2]["predicted"] == "" and rows[2]["error"].endswith(".")
    found = [float(rows[0][f"probability_{c}"]) for c in actions.bundle.classes]
    np.testing.assert_allclose(found, expected.probabilities, rtol=1e-5)
    assert app_batch.as_data(actions, states[-1])[0]["logits"]["mel"] == pytest.approx(
        float(expected.logits[4])
    )


def test_batches_are_measured_where_the_truth_is_known(
    actions: Actions, lesion: Path, tmp_path: Path
) -> None:
    said = actions.bundle.classes[actions.analyze(lesion).predicted]
    other = next(code for code in actions.bundle.classes if code != said)
    (tmp_path / "labels.csv").write_text(f"image_id,dx\na,{said}\nb,{other}\n")
    truths = app_batch.read_truths(actions.bundle, tmp_path / "labels.csv")
    files = [("a.png", lesion), ("b.png", lesion), ("c.png", lesion)]
    *_, rows = app_batch.analyze_many(actions, files, truths)
    assert [row.truth for row in rows] == [said, other, ""]
    first, inside, *alerts = (t.replace("\xa0", " ") for t in app_batch.measured(actions, rows))
    assert "truth of 2 answered images is known" in first and "is right for 50 %" in first
    assert "mean over 2 diagnoses 50 %" in first and "holds the truth for" in inside
    assert len(alerts) == 2 and "of 0 with it" not in alerts[0] + first
    page = app_batch.summary_page(actions, rows)
    assert "is right for 50" in page and page.count("data:image/jpeg") == 3
    assert app_batch.measured(actions, rows[2:]) == []
    (tmp_path / "labels.csv").write_text("image_id,dx\na,cat\n")
    with pytest.raises(DataError, match="The table of labels") as refused:
        app_batch.read_truths(actions.bundle, tmp_path / "labels.csv")
    assert str(tmp_path) not in str(refused.value)


def test_scales_are_left_out_unless_asked_for(desk: Desk, analysis: Analysis) -> None:
    *_, last = desk.explaining.compare(analysis, ["grad_cam"], scales=False)
    assert last.comparison.scales is None and last.total == 4
    text = text_of(app_page_results.comparison(Job("", analysis, last)))
    assert "Several scales" not in text and "3. Why" in text


def test_evidence_inside_an_outline_is_measured(desk: Desk, lesion: Path) -> None:
    desk.analyze("eve", str(lesion))
    with pytest.raises(UsageError, match="around the lesion"):
        desk.draw_outline("eve", [[0.1, 0.1], [0.9, 0.9]])
    desk.draw_outline("eve", [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
    wish = Wish(outline="drawn")
    *_, last = desk.compare("eve", str(lesion), ["grad_cam"], wish=wish, scales=False)
    state = last.work.comparison
    assert state.reading.lesion is not None
    # The crop keeps 8/9 of the height of a photograph of 3:4.
    assert state.reading.lesion.mean() == pytest.approx(0.25 * 9 / 8, abs=0.03)
    assert state.summary is not None and "inside the outline" in state.summary.sentences["evidence"]
    html = app_page_results.comparison(last, wish)
    assert "dl-lesion" in html and "of the picture" in text_of(html)
    bare = with_outline(last.work, None, synthetic=True).comparison
    assert bare.summary is not None and "No outline" in bare.summary.sentences["evidence"]
    # It belongs to the picture it was drawn on.
    shown = desk.shown("eve", "analysis")
    assert desk.outline("eve", replace(shown, path="another.png"), wish) is None
    assert desk.outline("eve", shown, Wish(outline="none")) is None


def test_what_the_page_abstains_on_is_not_explained(desk: Desk, tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    given = str(tmp_path / "skin.png")
    for work in (desk.explain, desk.compare):
        with pytest.raises(UsageError, match="abstains on this image"):
            next(work("fay", given, ["grad_cam"]))
    assert next(desk.explain("fay", given, ["grad_cam"], wish=Wish(anyway=True)))


def test_the_report_says_where_it_comes_from(desk: Desk, lesion: Path) -> None:
    *_, last = desk.compare("gil", str(lesion), METHODS, scales=False)
    html = report_of(desk, last, Wish(), "lesion")
    text = text_of(html.split("</style>")[1].split("<body>")[1].split("</body>")[0])
    for said in ("lesion", last.analysis.sha256, desk.bundle.identity["fingerprint"], "Melanoma"):
        assert said in text
    assert re.search(r"date \d{4}-\d\d-\d\d \d\d:\d\d", text)
    assert "Cannot be excluded" in text and "alignan" in text and "outline none" in text
    nameless = report_of(desk, last, Wish(), "")
    assert last.analysis.sha256 not in nameless and "lesion.png" not in nameless
    assert "size: A4" in html and "minmax(min(480px, 100%)" in html


def test_batches_have_limits(
    actions: Actions, lesion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="101 files were given; up to 100"):
        next(app_batch.analyze_many(actions, [("a.png", lesion)] * 101))
    monkeypatch.setattr(app_batch, "MAX_BATCH_BYTES", lesion.stat().st_size)
    with pytest.raises(UsageError, match="together"):
        next(app_batch.analyze_many(actions, [("a.png", lesion)] * 2))
