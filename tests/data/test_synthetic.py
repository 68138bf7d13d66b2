import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import label

from dermlens import leftovers
from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import fingerprint, read_manifest
from dermlens.data.splits import read_checks, split_data_set
from dermlens.data.synthetic import WEIGHTS, camera_view, draw, draw_view, make_synthetic
from dermlens.data.synthetic_canvas import Canvas, SmoothNoise, View
from dermlens.errors import DataError, UsageError
from dermlens.files import read_json
from dermlens.labels import HAM10000
from dermlens.leftovers import is_alive

SIZE = (48, 64)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "data"
    make_synthetic(out, images=70, size=SIZE, seed=3, workers=1)
    return out


@pytest.mark.parametrize("dx", HAM10000.codes)
def test_draw_gives_image_and_nested_masks(dx: str) -> None:
    for seed in range(4):
        image, lesion, structure = draw(dx, seed, (96, 128))
        assert image.shape == (96, 128, 3) and image.dtype == np.uint8
        assert lesion.shape == structure.shape == (96, 128)
        assert lesion.dtype == structure.dtype == bool
        assert lesion[structure].all()
        assert 0.08 < lesion.mean() < 0.75
        assert 0.15 < structure.sum() / lesion.sum() < 1


@pytest.mark.parametrize("dx", HAM10000.codes)
def test_draw_depends_on_the_seed_alone(dx: str) -> None:
    first, again, other = draw(dx, 5, SIZE), draw(dx, 5, SIZE), draw(dx, 6, SIZE)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).mean() > 0.5


def test_body_color_is_independent_of_the_class() -> None:
    """The same lesion seed gives the same skin and outline whatever the class is."""
    outlines = {}
    for dx in ("nv", "akiec", "bcc", "vasc"):
        image, lesion, _ = draw_view((dx,), (4, 4), (4, 4, 1), (96, 128))
        outlines[dx] = (image[:6].astype(int), lesion)
    for dx in ("akiec", "bcc", "vasc"):
        assert (outlines[dx][1] == outlines["nv"][1]).mean() > 0.99
        assert np.abs(outlines[dx][0] - outlines["nv"][0]).mean() < 1


@pytest.mark.parametrize("dx", HAM10000.codes)
def test_views_show_the_same_structure_from_elsewhere(dx: str) -> None:
    """Carried over by the two views' coordinates, the structure masks cover each other."""
    size, seeds = (144, 192), [(1, 2, view) for view in range(2)]
    views = [camera_view(np.random.default_rng(seed), size) for seed in seeds]
    drawn = [draw_view((dx,), (1, 2), seed, size) for seed in seeds]
    u, v = views[0].coordinates()
    places = views[1].to_pixels(np.stack([u.ravel(), v.ravel()], axis=1)).round().astype(int)
    x, y = np.clip(places, 0, [size[1] - 1, size[0] - 1]).T
    for mask in (1, 2):
        carried = drawn[1][mask][y, x].reshape(size)
        both = (carried & drawn[0][mask]).sum() / (carried | drawn[0][mask]).sum()
        assert both > 0.85
    assert (drawn[0][0] != drawn[1][0]).mean() > 0.5


def test_structure_mask_marks_what_the_class_adds() -> None:
    """Two classes drawn on one lesion differ inside the union of their structures only."""
    first, _, one = draw_view(("nv",), (8, 8), (8, 8, 1), (96, 128))
    second, _, two = draw_view(("bkl",), (8, 8), (8, 8, 1), (96, 128))
    difference = np.abs(first.astype(int) - second).max(axis=2)
    inside = difference[one | two].mean()
    outside = difference[~(one | two)].mean()
    assert inside > 8 * outside


def test_vasc_draws_several_separate_lacunae() -> None:
    """Pale septa part the blobs: dark parts of the structure fall into several pieces."""
    image, _, structure = draw("vasc", 2, (192, 256))
    gray = image.mean(axis=2)
    dark = structure & (gray < (np.percentile(gray[structure], 20) * 1.15))
    _, pieces = label(dark)
    sizes = np.bincount(label(dark)[0].ravel())[1:]
    assert (sizes > 80).sum() >= 4, pieces


def test_unknown_diagnosis_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown class 'mole'"):
        draw("mole", 0)


def test_view_maps_points_onto_their_own_coordinates() -> None:
    for mirrored in (False, True):
        view = View((40, 60), (31.0, 17.0), 9.0, 0.7, mirrored)
        u, v = view.coordinates()
        points = np.array([[u[5, 44], v[5, 44]], [u[33, 2], v[33, 2]]])
        np.testing.assert_allclose(view.to_pixels(points), [[44, 5], [2, 33]], atol=1e-3)


def test_canvas_paints_spots_and_lines_where_told() -> None:
    canvas = Canvas(
        View((40, 60), (30.0, 20.0), 10.0, 0.0, False), SmoothNoise(np.random.default_rng(0))
    )
    spots = canvas.spots(np.array([[1.0, 0.5]]), np.array([0.4]))
    assert spots[25, 40] == 1 and spots[25, 48] == 0 and spots[25, 32] == 0
    lines = canvas.lines([np.array([[-2.0, -1.0], [2.0, -1.0]])], [0.4])
    assert lines[10, 30] == 1 and lines[16, 30] == 0 and lines[10, 5] == 0
    canvas.paint((1.0, 0.5, 0.0), spots)
    np.testing.assert_allclose(canvas.image[25, 40], [1, 0.5, 0])
    canvas.shade(0.5, spots)
    np.testing.assert_allclose(canvas.image[25, 40], [0.5, 0.25, 0])


def test_prepared_layout(data: Path) -> None:
    table, facts, checks = read_manifest(data), read_json(data / "dataset.json"), read_checks(data)
    assert len(table) == 70 and table.image_id.iloc[0] == "SYN_0000000"
    assert table.split.isna().all()
    assert table.lesion_id.str.fullmatch(r"SYNL_\d{7}").all()
    for row in table.itertuples():
        assert load_image(data / row.path).shape == (*SIZE, 3)
        lesion = np.asarray(Image.open(data / row.mask_path))
        assert lesion.shape == SIZE and set(np.unique(lesion)) == {0, 255}
        structure = load_mask(data / "structures" / f"{row.image_id}_structure.png")
        assert (lesion[structure] == 255).all()
    assert facts["synthetic"] is True and facts["source"] == "synthetic"
    assert facts["n_images"] == facts["n_masks"] == 70
    assert facts["n_lesions"] == table.lesion_id.nunique()
    assert facts["per_class"] == {code: int((table.dx == code).sum()) for code in HAM10000.codes}
    assert facts["fingerprint"] == fingerprint(table, checks)
    assert facts["missing_images"] == [] and facts["n_missing_images"] == 0
    assert (facts["seed"], facts["size"]) == (3, list(SIZE))
    assert set(path.name for path in data.parent.iterdir()) == {"data"}


def test_classes_lesions_and_metadata_are_plausible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = (np.zeros((32, 40, 3), np.uint8), *[np.zeros((32, 40), bool)] * 2)
    monkeypatch.setattr("dermlens.data.synthetic.draw_view", lambda *_: blank)
    table = make_synthetic(tmp_path / "d", images=400, size=(32, 40), seed=1, workers=1)
    shares = table.dx.value_counts(normalize=True)
    for code, weight in WEIGHTS.items():
        assert abs(shares[code] - weight) < 0.01
    views = table.lesion_id.value_counts()
    assert views.max() == 3 and 0.15 < (views > 1).mean() < 0.35
    per_lesion = table.groupby("lesion_id")[["dx", "age", "sex", "localization", "dx_type"]]
    assert (per_lesion.nunique() <= 1).all().all()
    assert table.age.dropna().between(5, 85).all()
    assert set(table.sex.dropna()) == {"female", "male"}
    assert set(table.dx_type[table.dx == "mel"]) == {"histo"}
    for column in ("age", "sex", "localization"):
        assert 0 < table[column].isna().mean() < 0.1


def test_small_sets_can_be_split(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    make_synthetic(copy, images=70, size=SIZE, seed=3, workers=1)
    assert digest(copy) == digest(data)
    table = split_data_set(copy)
    assert set(table.split) == {"train", "validation", "test"}
    assert set(table.dx[table.split == "test"]) == set(HAM10000.codes)


def test_same_bytes_for_any_number_of_workers(data: Path, tmp_path: Path) -> None:
    make_synthetic(tmp_path / "d", images=70, size=SIZE, seed=3, workers=2)
    assert digest(tmp_path / "d") == digest(data)


def test_script_from_standard_input_draws_without_workers(data: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from dermlens.data.synthetic import make_synthetic
make_synthetic(Path({str(tmp_path / "d")!r}), images=70, size={SIZE}, seed=3, workers=2)
"""
    subprocess.run([sys.executable, "-"], input=script, text=True, check=True, capture_output=True)
    assert digest(tmp_path / "d") == digest(data)


def test_same_request_is_kept_and_another_replaces(tmp_path: Path) -> None:
    out = tmp_path / "d"
    make_synthetic(out, images=8, size=(32, 40), seed=1, workers=1)
    (out / "note.txt").write_text("kept")
    table = make_synthetic(out, images=8, size=(32, 40), seed=1, workers=1)
    assert (out / "note.txt").exists() and len(table) == 8
    for other in ({"images": 9}, {"size": (32, 48)}, {"seed": 2}):
        request = {"images": 8, "size": (32, 40), "seed": 1} | other
        (out / "note.txt").write_text("kept")
        before = digest(out)
        with pytest.raises(DataError, match=r"have changed since: note\.txt\. Move them away"):
            make_synthetic(out, workers=1, **request)
        assert digest(out) == before
        (out / "note.txt").unlink()
        table = make_synthetic(out, workers=1, **request)
        assert len(table) == request["images"] and digest(out) != before


def test_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not a synthetic data set"):
        make_synthetic(out, images=4, size=(32, 40), workers=1)
    assert digest(out).keys() == {"thesis.txt"}
    (out / "dataset.json").write_text('{"source": "ham10000"}')
    with pytest.raises(DataError, match="is not a synthetic data set"):
        make_synthetic(out, images=4, size=(32, 40), workers=1)


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> pd.DataFrame:
        raise OSError("disk full")

    monkeypatch.setattr("dermlens.data.synthetic.write_manifest", broken)
    with pytest.raises(OSError, match="disk full"):
        make_synthetic(tmp_path / "d", images=2, size=(32, 40), workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("images", "size"), [(0, (48, 64)), (3, (16, 64))])
def test_impossible_request_is_refused(tmp_path: Path, images: int, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="Cannot draw"):
        make_synthetic(tmp_path / "d", images=images, size=size)


DRAWING = """
import multiprocessing, os, signal, sys
from pathlib import Path
from dermlens.data import synthetic

if __name__ == "__main__":
    def killed(tasks, processes, real=synthetic._results):
        rows = real(tasks, processes)
        yield next(rows)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    synthetic._results = killed
    synthetic.make_synthetic(Path(sys.argv[1]), images=400, size=(96, 128), workers=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_killed_parent_and_the_next_run_sweeps(tmp_path: Path) -> None:
    script = tmp_path / "draw.py"
    script.write_text(DRAWING)
    out = tmp_path / "out" / "d"
    command = [sys.executable, str(script), str(out)]
    # Workers hold the other end of this pipe: reading to its end waits for them to be gone.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        said, _ = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGKILL
    workers = [int(word) for word in said.split()]
    assert len(workers) == 2 and not any(is_alive(pid) for pid in workers)
    assert any(path.name.startswith(".d.dermlens-") for path in out.parent.iterdir())
    leftovers._swept.clear()
    make_synthetic(out, images=2, size=(32, 40), workers=1)
    assert [path.name for path in out.parent.iterdir()] == ["d"]
