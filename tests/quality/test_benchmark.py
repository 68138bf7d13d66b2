"""The benchmark on a planted truth: resumable, ranked as it must be, sound statistics."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermlens.errors import DataError, UsageError
from dermlens.explainers.base import Explainer
from dermlens.explainers.superpixel_explainer import SuperpixelBank
from dermlens.files import read_json
from dermlens.labels import HAM10000, label_set
from dermlens.lesion.benchmark import LesionMeasures, select_pairs
from dermlens.model.bundle import Bundle
from dermlens.model.calibration import Calibration
from dermlens.model.classifier import Architecture
from dermlens.model.image_classifier import ImageClassifier
from dermlens.quality.agreement import structural_similarity
from dermlens.quality.benchmark import make_pieces, run_benchmark
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import BenchmarkPlan, Piece, load, select_items
from dermlens.quality.benchmark_tables import Store
from dermlens.quality.complexity import gini
from dermlens.quality.controls import ModelFreeMap
from dermlens.quality.randomization import randomization_curves, stage_steps
from dermlens.quality.readings import positive_part
from dermlens.report.benchmark_report import benchmark_page
from explain_networks import pooled_network, trained_like

SIZE = (24, 32)
PLAN = BenchmarkPlan(
    methods=("grad_cam", "lime", "gp_shap"),
    n=5,
    split="test",
    batch_size=8,
    n_samples=40,
    steps=5,
    squares=12,
    sets=12,
    robustness=1,
    randomization=1,
)


TABLES = ("measurements", "benchmark", "images", "randomization", "consistency", "shortcuts")


class Oracle(ModelFreeMap):
    """Exactly what the planted network adds up: redness."""

    name = "oracle"

    def draw(self, image: np.ndarray, seed: int) -> np.ndarray:
        return np.maximum(image[..., 0] - image[..., 1], 0)


def red_lesion(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gray skin, a darker lesion off the middle, a red structure inside: the class's reason."""
    generator = np.random.default_rng(seed)
    image = np.repeat(generator.uniform(150, 190, (*SIZE, 1)), 3, axis=2)
    rows, columns = np.indices(SIZE)
    top, left = generator.integers(2, 11), generator.integers(2, 15)
    lesion = (rows >= top) & (rows < top + 11) & (columns >= left) & (columns < left + 15)
    structure = (rows >= top + 2) & (rows < top + 8) & (columns >= left + 3) & (columns < left + 9)
    image[lesion] -= 60
    red = generator.uniform(60, 120, structure.sum())
    image[structure, 0] += red
    return np.clip(image, 0, 255).astype(np.uint8), lesion, structure


def planted_bundle() -> Bundle:
    """Melanoma is redness, and nothing else; the other classes have no evidence."""
    # Blocks of 4x4 pixels are averaged, so class activation maps are coarser than the truth.
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[..., 0, :] = np.array([1, -1]) / 16
    kernel[..., 1, :] = np.array([-1, 1]) / 16
    head = np.zeros((2, 7), np.float32)
    head[0, HAM10000.codes.index("mel")] = 0.8
    head[1, HAM10000.codes.index("nv")] = 0.8
    model = pooled_network(kernel, head, SIZE)
    facts = {"data": {"synthetic": True}, "sha256": {"weights.h5": "planted"}}
    return Bundle(Path("bundle"), Architecture("tiny", SIZE), Calibration(), facts, model)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("planted")
    rows = []
    for name in ("images", "masks", "structures"):
        (folder / name).mkdir()
    for number in range(12):
        image, lesion, structure = red_lesion(number)
        image_id = f"P{number:02d}"
        Image.fromarray(image).save(folder / "images" / f"{image_id}.png")
        for name, suffix, mask in (
            ("masks", "segmentation", lesion),
            ("structures", "structure", structure),
        ):
            # The last image's mask is empty: nothing to find there.
            shown = mask if number < 11 or name == "structures" else np.zeros_like(mask)
            picture = Image.fromarray(shown.astype(np.uint8) * 255)
            picture.save(folder / name / f"{image_id}_{suffix}.png")
        rows.append(
            {
                "image_id": image_id,
                "path": f"images/{image_id}.png",
                "mask_path": f"masks/{image_id}_segmentation.png",
                "lesion_id": f"L{number // 2}",
                "dx": ("mel", "nv", "bcc")[number // 2 % 3],
                "dx_type": "histo",
                "age": 40.0,
                "sex": "male",
                "localization": "back",
                "split": "test",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def more(bundle: Bundle) -> dict[str, Any]:
    """What is measured beside the plan."""
    return {"extra": extra(bundle), "extension": LesionMeasures(pairs=2, probes=1)}


def extra(bundle: Bundle) -> dict[str, Explainer]:
    return {"oracle": Oracle(bundle)}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark that ran from start to end."""
    out = tmp_path_factory.mktemp("finished")
    bundle = planted_bundle()
    run_benchmark(bundle, data, out, PLAN, **more(bundle))
    return out


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    return read_json(finished / "summary.json")


def test_summary_names_the_model(summary: dict[str, Any]) -> None:
    assert summary["model"] == planted_bundle().identity


def test_killed_in_the_middle_and_started_again_ends_with_the_identical_tables(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    made = 0

    def dies(pieces: Sequence[Piece], store: Store) -> None:
        """Stop in the middle of images, then of the rest, leaving half a file behind."""
        nonlocal made
        for piece in pieces:
            if store.has(piece.kind, piece.name):
                continue
            if made in (2, 6):
                made += 1
                (store.folder / piece.kind).mkdir(exist_ok=True)
                (store.folder / piece.kind / f".{piece.name}.1.part.json").write_text("{")
                raise KeyboardInterrupt
            content = piece.make(lambda method: None)
            store.write(piece.kind, piece.name, content)
            made += 1

    out = tmp_path / "out"
    for _ in range(2):
        bundle = planted_bundle()
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(bundle, data, out, PLAN, **more(bundle), make=dies)
        assert not (out / "benchmark.csv").exists()
    bundle = planted_bundle()
    kept = {p: p.stat().st_mtime_ns for p in (out / "pieces").rglob("P*.json")}
    assert len(kept) >= 5
    run_benchmark(bundle, data, out, PLAN, **more(bundle))
    assert all(p.stat().st_mtime_ns == time for p, time in kept.items()), "nothing is made twice"
    for name in TABLES:
        assert (out / f"{name}.csv").read_bytes() == (finished / f"{name}.csv").read_bytes(), name
    ours, theirs = read_json(out / "summary.json"), read_json(finished / "summary.json")
    for one in (ours, theirs):
        for cost in one["cost"]["per_image"].values():
            cost.pop("seconds")
    assert ours == theirs


def test_pieces_in_reverse_order_end_with_the_identical_tables(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    def reverse(pieces: Sequence[Piece], store: Store) -> None:
        make_pieces(pieces[::-1], store)

    bundle = planted_bundle()
    run_benchmark(bundle, data, tmp_path, PLAN, **more(bundle), make=reverse)
    for name in TABLES:
        assert (tmp_path / f"{name}.csv").read_bytes() == (finished / f"{name}.csv").read_bytes()


def test_randomization_by_batches_is_that_of_all_images_at_once(data: Path, tmp_path: Path) -> None:
    plan = BenchmarkPlan(
        methods=("grad_cam", "lime"), n=5, batch_size=2, n_samples=20, steps=2, squares=3, sets=3,
        robustness=0, randomization=3, controls=False,
    )  # fmt: skip
    bundle = planted_bundle()
    run_benchmark(bundle, data, tmp_path, plan)
    steps = ("first-00", "cascading-01", "independent-01")
    made = {path.stem for path in (tmp_path / "pieces" / "randomization").iterdir()}
    assert made == {f"{step}-{start:04d}" for step in steps for start in (0, 2)}
    table = pd.read_csv(tmp_path / "randomization.csv")
    bench = Bench(bundle, plan)
    items = select_items(pd.read_csv(data / "manifest.csv"), data, HAM10000.codes, 3, 0)
    images = np.stack([load(item, SIZE).image for item in items])
    targets = np.concatenate([bench.case(load(item, SIZE))[0].targets for item in items])
    for name in plan.methods:
        explain = partial(bench.finite, name, images, targets, fixed=True)
        for order in plan.orders:
            curves = randomization_curves(bundle.model, explain, stage_steps(bundle.model, order))
            rows = table[(table.method == name) & (table.order == order)]
            assert rows.image_id.tolist() == [item.image_id for item in items] * 2
            for measure, values in curves.items():
                assert np.allclose(rows[measure], values.ravel(), atol=1e-6), (name, order)


def test_a_bank_with_fewer_masks_than_asked_for_serves_every_order() -> None:
    bank = SuperpixelBank(planted_bundle(), superpixels=2, n_samples=40)
    image = np.zeros((*SIZE, 3), np.float32)
    known = bank.evaluations(image, 0, 8)
    assert len(known.logits) == len(known.coalitions.masks) == 4
    assert bank.evaluations(image, 0, 8) is known


def test_any_classifier_without_masks_and_lesions_of_its_own_classes(tmp_path: Path) -> None:
    """No bundle, no outlines: photographs of two kinds, in the order of the classifier."""
    from PIL import Image

    (tmp_path / "data" / "images").mkdir(parents=True)
    rows = []
    for number in range(2):
        image, _, _ = red_lesion(number)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{number}.png")
        rows.append({"image_id": f"{number}", "path": f"images/{number}.png", "split": "test",
                     "dx": ("nv", "bcc")[number % 2]})  # fmt: skip
    blank = dict.fromkeys(["mask_path", "lesion_id", "dx_type", "age", "sex", "localization"])
    table = pd.DataFrame([{**row, **blank} for row in rows])
    table.to_csv(tmp_path / "data" / "manifest.csv", index=False)
    classifier = ImageClassifier(
        trained_like(SIZE, nested=True, classes=2), ["nv", "bcc"], value_range=(0, 1)
    )
    plan = BenchmarkPlan(methods=("grad_cam", "lime"), n=2, n_samples=20, steps=3, squares=4,
                         sets=4, robustness=1, randomization=1, target="truth")  # fmt: skip
    out = tmp_path / "out"
    run_benchmark(classifier, tmp_path / "data", out, plan, extension=LesionMeasures(2, 2))
    long, images = (pd.read_csv(out / f"{name}.csv") for name in ("measurements", "images"))
    assert images.target.tolist() == images.dx.tolist() and set(images.dx) == {"nv", "bcc"}
    assert "zone_core" not in set(long.metric) and "asymmetry" not in images
    assert not (out / "consistency.csv").exists()
    assert long.groupby("metric").size()["insertion"] == 2 * 7
    assert long[long.metric == "randomization_ssim"].value.notna().all()
    found = read_json(out / "summary.json")
    assert found["zones"] == {} and found["watched"] is None
    assert "change of p(predicted)" in benchmark_page(found).html()
    with pytest.raises(DataError, match="no image to measure"):
        run_benchmark(
            classifier, tmp_path / "data", tmp_path / "other", plan, labels=label_set("binary")
        )


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_benchmark import PLAN, more, planted_bundle
from dermlens.quality.benchmark import run_benchmark
bundle = planted_bundle()
run_benchmark(bundle, Path({data!r}), Path({out!r}), PLAN, **more(bundle))
"""


def test_a_process_that_is_killed_loses_nothing_that_was_finished(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """kill -9 gives no chance to tidy up: what lies there must be whole."""
    out, here = tmp_path / "out", Path(__file__).resolve().parent
    script = SCRIPT.format(path=[str(here), str(here.parent)], data=str(data), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None:
        if len(list((out / "pieces").rglob("P*.json"))) >= 2:
            process.kill()
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL, "killed, not finished"
    assert not (out / "benchmark.csv").exists()
    bundle = planted_bundle()
    run_benchmark(bundle, data, out, PLAN, **more(bundle))
    for name in TABLES:
        assert (out / f"{name}.csv").read_bytes() == (finished / f"{name}.csv").read_bytes(), name


def test_the_planted_truth_ranks_first_and_random_last(summary: dict[str, Any]) -> None:
    for family in ("overall", "faithfulness", "localization"):
        order = [row["method"] for row in summary["ranking"][family]]
        assert order[0] == "oracle", (family, order)
        # A uniform map is removed in random order: it is random in all but name. Darkness is
        # wrong on purpose here: the structure is the brightest of the lesion.
        assert set(order[-2:]) <= {"random", "uniform", "untrained_grad_cam", "darkness"}, order
        methods = [order.index(name) for name in PLAN.methods]
        assert max(methods) < min(order.index("random"), order.index("uniform")), (family, order)
        assert order.index("random") > order.index("grad_cam")


def test_the_table_has_every_image_method_and_metric(finished: Path) -> None:
    table = pd.read_csv(finished / "benchmark.csv")
    long = pd.read_csv(finished / "measurements.csv")
    assert list(long) == ["image_id", "method", "metric", "value"]
    assert not long.duplicated(["image_id", "method", "metric"]).any()
    for row in long[long.metric == "insertion"].itertuples():
        same = table[(table.image_id == row.image_id) & (table.method == row.method)]
        assert same.insertion.item() == row.value
    names = ["grad_cam", "lime", "gp_shap", "oracle", "uniform", "random", "centered_gaussian"]
    names += ["darkness", "untrained_grad_cam"]
    assert table.method.tolist() == names * 5 and table.image_id.nunique() == 5
    assert table.predicted.eq("mel").all() and table.control.sum() == 5 * 5
    oracle = table[table.method == "oracle"]
    seen = oracle[oracle.relevance_mass.notna()]
    np.testing.assert_allclose(seen.relevance_mass, 1.0)
    np.testing.assert_allclose(oracle.structure_pixel_auc, 1.0)
    np.testing.assert_allclose(oracle.structure_relevance_rank, 1.0)
    assert oracle.infidelity.max() < 0.2 and oracle.mufidelity.min() > 0.8
    # The class that is explained is the most probable one: of another class Grad-CAM knows nothing.
    assert table[table.method == "grad_cam"].structure_enrichment.min() > 2
    measured = table[["max_sensitivity", "randomization_ssim"]].notna().groupby(table.image_id)
    assert measured.any().sum().tolist() == [1, 1], "expensive metrics on one image each"


def test_empty_masks_are_excluded_and_counted(data: Path, tmp_path: Path) -> None:
    bundle = planted_bundle()
    plan = BenchmarkPlan(
        methods=("grad_cam",), n=12, n_samples=40, steps=2, squares=3, sets=3,
        robustness=0, randomization=0, batch_size=8, controls=False,
    )  # fmt: skip
    run_benchmark(bundle, data, tmp_path, plan, extension=LesionMeasures(0, 0))
    found = read_json(tmp_path / "summary.json")
    mass = found["metrics"]["relevance_mass"]["grad_cam"]
    assert (mass["count"], mass["excluded"]) == (11, 1)
    assert found["metrics"]["deletion"]["grad_cam"]["count"] == 12
    assert found["n_lesions"] == 6 and found["per_class"] == {"bcc": 4, "mel": 4, "nv": 4}
    assert not found["shortcuts"] and not found["randomization"]
    table = pd.read_csv(tmp_path / "benchmark.csv")
    empty = table[table.image_id == "P11"]
    assert empty.relevance_mass.isna().all() and empty.zone_core.isna().all()
    assert empty.structure_relevance_mass.notna().all()


def test_statistics_of_the_summary(summary: dict[str, Any], finished: Path) -> None:
    table = pd.read_csv(finished / "benchmark.csv")
    grad_cam = table[table.method == "grad_cam"]
    one = summary["metrics"]["insertion"]["grad_cam"]
    assert one["mean"] == pytest.approx(grad_cam.insertion.mean())
    assert one["low"] <= one["mean"] <= one["high"] and one["count"] == 5
    pairs = summary["comparisons"]["insertion"]
    # Four methods (with the oracle) among each other, and with five controls.
    assert len(pairs) == 6 + 4 * 5
    first = next(p for p in pairs if {p["first"], p["second"]} == {"grad_cam", "oracle"})
    oracle = table[table.method == "oracle"]
    expected = grad_cam.insertion.to_numpy() - oracle.insertion.to_numpy()
    assert first["difference"] == pytest.approx(expected.mean())
    assert all(p["p_holm"] >= p["p"] for p in pairs)


def test_cost_is_that_of_each_method_alone(summary: dict[str, Any]) -> None:
    cost = summary["cost"]["per_image"]
    assert cost["lime"]["forward"] == cost["gp_shap"]["forward"] == 40
    assert cost["grad_cam"]["forward"] == 1 and cost["darkness"]["forward"] == 0
    # 3 images every map shares, 24 covered parts and the image, and 2 * 4 + 18 for each of 9 maps.
    assert summary["cost"]["metric_passes_per_image"] == 3 + 25 + 9 * (2 * 4 + 18)


def test_another_plan_is_refused(finished: Path, data: Path) -> None:
    from dataclasses import replace

    bundle = planted_bundle()
    with pytest.raises(UsageError, match=r"differs in: .*seed\. Choose"):
        run_benchmark(bundle, data, finished, replace(PLAN, seed=1), **more(bundle))


def test_selection_is_stratified_nested_and_seeded(data: Path) -> None:
    table = pd.read_csv(data / "manifest.csv")
    six, nine = (select_items(table, data, HAM10000.codes, n, seed=3) for n in (6, 9))
    assert six == nine[:6] and sorted(item.dx for item in six) == sorted(["mel", "nv", "bcc"] * 2)
    assert select_items(table, data, HAM10000.codes, 6, seed=4) != six
    assert len(select_items(table, data, HAM10000.codes, 100, seed=3)) == 12
    pairs = select_pairs(table, data, HAM10000.codes, 5, seed=0)
    assert len(pairs) == 5 and all(a.lesion_id == b.lesion_id for a, b in pairs)
    assert {a.dx for a, _ in pairs[:3]} == {"mel", "nv", "bcc"}
    assert all(item.structure is not None and item.mask is not None for item in six)


def test_measures_do_not_depend_on_other_images(data: Path) -> None:
    table = pd.read_csv(data / "manifest.csv")
    opened = [load(item, SIZE) for item in select_items(table, data, HAM10000.codes, 2, seed=0)]
    plan = BenchmarkPlan(methods=("grad_cam",), n_samples=40, steps=3, squares=4, sets=4)

    def values(bench: Bench, number: int) -> dict[str, Any]:
        rows = bench.measure_image(opened[number])["rows"]
        return {name: row["values"] for name, row in rows.items()}

    shared = Bench(planted_bundle(), plan)
    values(shared, 0)
    assert values(shared, 1) == values(Bench(planted_bundle(), plan), 1)


def test_unsafe_names_get_files_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 1})
    for name in ("a/b", "a_b", "../a", "é"):
        store.write("images", name, {"name": name})
    assert all(store.read("images", n)["name"] == n for n in ("a/b", "a_b", "../a", "é"))
    inside = [path for path in tmp_path.rglob("*.json") if path.name != "plan.json"]
    assert len(inside) == 4 and all(path.parent == tmp_path / "images" for path in inside)


@pytest.mark.parametrize(
    "bad", [{"n": 0}, {"target": "second"}, {"orders": ("up",)}, {"methods": ("grad",)}]
)
def test_bad_plans_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BenchmarkPlan(**bad)


def test_maps_of_pixels_are_read_and_also_measured_as_they_are(data: Path) -> None:
    table = pd.read_csv(data / "manifest.csv")
    opened = load(select_items(table, data, HAM10000.codes, 1, seed=0)[0], SIZE)
    methods = ("integrated_gradients", "grad_cam")
    plan = BenchmarkPlan(methods=methods, steps=3, squares=4, sets=4, controls=False)
    bench = Bench(planted_bundle(), plan)
    rows = bench.measure_image(opened)["rows"]
    assert list(rows) == ["integrated_gradients", "integrated_gradients: as it is", "grad_cam"]
    case, _ = bench.case(opened)
    map_ = bench.explainers["integrated_gradients"].attribute(opened.image[None], "predicted").maps
    for name, read in (
        ("integrated_gradients", positive_part(map_)),
        ("integrated_gradients: as it is", map_),
    ):
        measured = rows[name]["values"]["sparseness"]
        assert measured == gini(read)[0], name
    assert "cost" not in rows["integrated_gradients: as it is"]
    np.testing.assert_array_equal(
        bench.explain("integrated_gradients", opened.image[None], case.targets), positive_part(map_)
    )


def test_robustness_of_both_readings_asks_for_each_map_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(data / "manifest.csv")
    opened = load(select_items(table, data, HAM10000.codes, 1, seed=0)[0], SIZE)
    methods = ("integrated_gradients", "grad_cam")
    bench = Bench(planted_bundle(), BenchmarkPlan(methods=methods, controls=False))
    explainer, asked = bench.explainers["integrated_gradients"], []
    attribute = explainer.attribute

    def counting(images: np.ndarray, targets: np.ndarray, **how: Any) -> Any:
        asked.append((images.copy(), targets.copy()))
        return attribute(images, targets, **how)

    monkeypatch.setattr(explainer, "attribute", counting)
    rows = bench.measure_robustness(opened)
    assert list(rows) == ["integrated_gradients", "integrated_gradients: as it is", "grad_cam"]
    # The image, weak noise, the three symmetries of a rectangle, and another class.
    assert [len(images) for images, _ in asked] == [1, 4, 3, 1]
    (image, target), (_, other) = asked[0], asked[-1]
    assert (target != other).all()
    here, there = (attribute(image, one, batch_size=16, seed=0).maps for one in (target, other))
    for name, read in (
        ("integrated_gradients", positive_part),
        ("integrated_gradients: as it is", np.asarray),
    ):
        expected = structural_similarity(read(here), read(there))[0]
        assert rows[name]["random_logit"] == pytest.approx(expected, abs=1e-6), name
