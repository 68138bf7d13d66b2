"""What an explanation leaves on disk, and that it is what the explainers returned."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermlens.data.images import fit_box, load_image
from dermlens.errors import DataError, UsageError
from dermlens.explainers.base import Attribution, Cost
from dermlens.explainers.output import Contrast, Probability
from dermlens.explainers.registry import METHODS, create
from dermlens.labels import HAM10000
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.bundle import Bundle, save_bundle
from dermlens.model.calibration import Calibration
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.report.explanation import describe, explain_files
from dermlens.report.figures import overlay_on_photograph
from tests_support import register_tiny_backbone

CODES = HAM10000.codes

METHOD_NAMES = ("grad_cam", "integrated_gradients")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained network whose stored rule decides otherwise than the plain argmax."""
    register_tiny_backbone()
    architecture = Architecture("tiny", (32, 40))
    log_prior = tuple(np.log([0.1, 0.4, 0.1, 0.1, 0.02, 0.2, 0.08]))
    return save_bundle(
        tmp_path_factory.mktemp("model") / "bundle",
        model=build_classifier(architecture, seed=5),
        architecture=architecture,
        calibration=Calibration(temperature=2.0, balanced_rule=BalancedRule(1.0, log_prior)),
        training={},
        data={"synthetic": True},
        history=pd.DataFrame({"epoch": [1]}),
        split=pd.DataFrame({"image_id": ["a"]}),
        labels=HAM10000,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images larger than the network's input and of another shape."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = [folder / "one.png", folder / "two.png"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def written(
    bundle: Bundle, files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Both images explained by two methods, the most probable class being the target."""
    out = tmp_path_factory.mktemp("out") / "explanations"
    return explain_files(
        bundle, files, out, methods=",".join(METHOD_NAMES), opacity=0.6, seed=3, batch_size=4
    )


def explained(bundle: Bundle, path: Path, name: str, **options: object) -> Attribution:
    """What the explainer itself returns for a file."""
    image = load_image(path, bundle.input_size)
    decision = int(bundle.logits(image[None])[0].argmax())
    arguments = {"targets": decision, "seed": 3, "batch_size": 4} | options
    return create(name, bundle).attribute(image[None], **arguments)


def test_one_complete_folder_per_image(written: list[Path]) -> None:
    assert [path.name for path in written] == ["one", "two"]
    assert sorted(p.name for p in written[0].parent.iterdir()) == ["one", "two"]
    wanted = {".dermlens", "attributions.npz", "explanation.json", "all_methods.png"}
    for folder in written:
        names = {path.name for path in folder.iterdir()}
        assert names == wanted | {f"{name}.png" for name in METHOD_NAMES}


@pytest.mark.parametrize("position", [0, 1])
def test_arrays_are_what_the_explainers_return(
    bundle: Bundle, files: list[Path], written: list[Path], position: int
) -> None:
    with np.load(written[position] / "attributions.npz") as arrays:
        assert list(arrays) == list(METHOD_NAMES)
        for name in METHOD_NAMES:
            expected = explained(bundle, files[position], name).maps[0]
            assert arrays[name].dtype == np.float32 and arrays[name].shape == (32, 40)
            assert np.array_equal(arrays[name], expected)
            assert np.ptp(arrays[name]) > 0


def test_pictures_are_overlays_of_the_arrays(
    bundle: Bundle, files: list[Path], written: list[Path]
) -> None:
    for path, folder in zip(files, written, strict=True):
        photograph = load_image(path)
        with np.load(folder / "attributions.npz") as arrays:
            for name in METHOD_NAMES:
                expected = overlay_on_photograph(
                    photograph,
                    arrays[name],
                    fit_box(*photograph.shape[:2], bundle.input_size),
                    opacity=0.6,
                    signed=name == "integrated_gradients",
                )
                with Image.open(folder / f"{name}.png") as drawn:
                    assert drawn.mode == "RGB" and np.array_equal(np.asarray(drawn), expected)
                    assert drawn.width == photograph.shape[1]


def test_description_holds_the_answer_and_the_costs(
    bundle: Bundle, files: list[Path], written: list[Path]
) -> None:
    stored = json.loads((written[0] / "explanation.json").read_text())
    logits = bundle.logits(load_image(files[0], bundle.input_size)[None])
    decision = logits[0].argmax()
    # The default target is the most probable class, not what the balanced rule chooses.
    assert decision != bundle.calibration.balanced(logits)[0]
    assert stored["image"] == "one.png"
    assert stored["target"] == stored["predicted"] == CODES[decision]
    assert stored["prediction_set"] is None and set(stored["flags"]) == set()
    assert stored["input_size"] == [32, 40]
    assert list(stored["probabilities"]) == list(stored["logits"]) == list(CODES)
    probabilities = bundle.calibration.probabilities(logits)[0]
    assert list(stored["probabilities"].values()) == pytest.approx(list(probabilities), abs=1e-6)
    assert list(stored["logits"].values()) == pytest.approx(list(logits[0]), abs=1e-5)
    assert stored["note"] == "Research and education only, not a medical device."
    assert list(stored["methods"]) == list(METHOD_NAMES)
    for name in METHOD_NAMES:
        expected = explained(bundle, files[0], name)
        facts = stored["methods"][name]
        assert facts["question"] == METHODS[name].question
        assert facts["family"] == METHODS[name].family
        assert facts["output"] == "logit" and facts["signed"] == expected.signed
        assert facts["output_value"] == pytest.approx(logits[0, decision], abs=1e-5)
        assert facts["forward_passes"] == expected.cost.forward > 0
        assert facts["backward_passes"] == expected.cost.backward
        assert facts["seconds"] >= 0
    gap = explained(bundle, files[0], "integrated_gradients").facts()["convergence_delta"]
    assert stored["methods"]["integrated_gradients"]["convergence_delta"] == pytest.approx(gap)


@pytest.mark.parametrize(
    ("score", "value"),
    [
        ("logit", lambda logits: logits[5]),
        ("probability", lambda logits: np.exp(logits[5]) / np.exp(logits).sum()),
        ("contrast:mel", lambda logits: logits[5] - logits[4]),
    ],
)
def test_target_and_score_are_honored(
    bundle: Bundle, files: list[Path], tmp_path: Path, score: str, value: object
) -> None:
    (folder,) = explain_files(bundle, files[1:], tmp_path, target="nv", output=score)
    stored = json.loads((folder / "explanation.json").read_text())
    logits = bundle.logits(load_image(files[1], bundle.input_size)[None])[0]
    assert stored["target"] == "nv" != stored["predicted"]
    facts = stored["methods"]["grad_cam"]
    assert facts["output"] == score.partition(":")[0]
    assert callable(value)
    assert facts["output_value"] == pytest.approx(float(value(logits)), abs=1e-5)
    scores = {"probability": Probability(), "contrast:mel": Contrast(CODES.index("mel"))}
    expected = explained(bundle, files[1], "grad_cam", targets="nv", output=scores.get(score))
    with np.load(folder / "attributions.npz") as arrays:
        assert list(arrays) == ["grad_cam"]
        assert np.array_equal(arrays["grad_cam"], expected.maps[0])


def test_seed_is_honored(bundle: Bundle, files: list[Path], tmp_path: Path) -> None:
    maps = {}
    for seed in (1, 2):
        (folder,) = explain_files(
            bundle, files[:1], tmp_path / str(seed), methods="smooth_grad", seed=seed
        )
        with np.load(folder / "attributions.npz") as arrays:
            maps[seed] = arrays["smooth_grad"]
    expected = explained(bundle, files[0], "smooth_grad", seed=2, batch_size=16)
    assert np.array_equal(maps[2], expected.maps[0]) and not np.array_equal(maps[1], maps[2])


def test_second_run_replaces_the_first(bundle: Bundle, files: list[Path], tmp_path: Path) -> None:
    explain_files(bundle, files[:1], tmp_path, methods="grad_cam,hires_cam")
    (folder,) = explain_files(bundle, files[:1], tmp_path, methods="grad_cam")
    assert not (folder / "hires_cam.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_photographs_in_a_folder_of_the_same_name_are_not_replaced(
    bundle: Bundle, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    photo = tmp_path / "one" / "one.png"
    photo.write_bytes(files[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    # Refused before the work, which would fail here.
    monkeypatch.setattr("dermlens.report.explanation.create_several", None)
    with pytest.raises(DataError, match="one exists and is not an explanation, so it is not"):
        explain_files(bundle, [Path("one/one.png")], Path())
    assert [path.name for path in tmp_path.rglob("*")] == ["one", "one.png"]
    assert photo.read_bytes() == files[0].read_bytes()


def test_photograph_put_beside_an_explanation_is_not_lost(
    bundle: Bundle, files: list[Path], tmp_path: Path
) -> None:
    (folder,) = explain_files(bundle, files[:1], tmp_path)
    (folder / "photo.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"have changed since: photo\.png\."):
        explain_files(bundle, files[:1], tmp_path)
    assert (folder / "photo.png").read_bytes() == b"mine"


def test_damaged_image_is_refused_before_anything_is_written(
    bundle: Bundle, files: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(files[0].read_bytes()[:-500])
    with pytest.raises(DataError, match=r"damaged\.png cannot be decoded"):
        explain_files(bundle, [files[0], damaged], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(
    bundle: Bundle, files: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "one.png"
    other.write_bytes(files[1].read_bytes())
    with pytest.raises(DataError, match="both be written to the folder one"):
        explain_files(bundle, [files[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The same file twice is harmless.
    explain_files(bundle, [other, other], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": "grad_cam,nosuch"}, "Unknown method 'nosuch'"),
        ({"target": "scc"}, "Unknown target class 'scc'"),
        ({"output": "loss"}, "Unknown output 'loss'"),
        ({"opacity": 1.5}, "The opacity 1.5 is outside"),
        ({"batch_size": 0}, "The batch size must be at least 1"),
        ({"seed": -1}, "The seed must not be negative"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    bundle: Bundle, files: list[Path], tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        explain_files(bundle, files, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_failed_drawing_leaves_nothing(
    bundle: Bundle, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("dermlens.report.explanation.write_figure", fail)
    with pytest.raises(OSError, match="No space left"):
        explain_files(bundle, files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_description_says_what_the_method_asks_of_the_image_at_a_position() -> None:
    result = Attribution(
        maps=np.zeros((2, 3, 4), np.float32),
        method="lime",
        targets=np.array([1, 2]),
        values=np.array([0.5, -1.5], np.float32),
        output="logit",
        signed=True,
        cost=Cost(10, 0, 1.23456),
    )
    facts = describe(result, 1)
    assert facts["question"] == METHODS["lime"].question and facts["output_value"] == -1.5
    assert facts["seconds"] == 1.235 and facts["forward_passes"] == 10
    assert facts["family"] == "perturbation" and "maps" not in facts
