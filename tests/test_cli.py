"""The program as its users meet it: what it prints, writes, refuses, and how it exits."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

from cli_support import Outcome, content, dermlens, printed_paths, refused
from conftest import HamSource, metadata
from dermlens.cli import app
from dermlens.labels import HAM10000
from tests_support import register_tiny_backbone

ISIC = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
TINY = (
    *("--preset", "scratch", "--backbone", "tiny", "--weights", "none", "--size", "32x40"),
    *("--imbalance", "none", "--batch-size", "8", "--fresh-rate", "5e-3"),
)


class Workshop(NamedTuple):
    """A folder in which every command has run once."""

    folder: Path
    outcomes: dict[str, Outcome]
    data: Path
    bundle: Path
    image: Path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The whole way from archives to explanations, through the command line alone."""
    register_tiny_backbone()
    folder = tmp_path_factory.mktemp("workshop")
    HamSource(folder / "source", metadata(per_class=9)).write_archives()
    data, bundle, image = (
        folder / "data",
        folder / "run" / "bundle",
        folder / "data" / "images" / "ISIC_0000001.jpg",
    )
    commands: dict[str, Sequence[object]] = {
        "prepare": ("data", "prepare", folder / "source", "--out", data),
        "split": ("data", "split", data),
        "audit": ("data", "audit", data),
        "explore": ("data", "explore", data, "--out", folder / "exploration"),
        "train": ("train", data, "--out", folder / "run", *TINY, "--epochs", 3),
        "evaluate": ("evaluate", bundle, data, "--out", folder / "test", "--resamples", 20),
        "predict": ("predict", bundle, data / "images", "--out", folder / "predictions.csv"),
        "explain": (
            *("explain", bundle, image, "--methods", "grad_cam,integrated_gradients"),
            *("--out", folder / "explanations"),
        ),
    }
    outcomes = {name: dermlens(*command) for name, command in commands.items()}
    return Workshop(folder, outcomes, data, bundle, image)


COMMANDS = ("prepare", "split", "audit", "explore", "train", "evaluate", "predict", "explain")


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_succeed_and_every_printed_path_exists(workshop: Workshop, name: str) -> None:
    outcome = workshop.outcomes[name]
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err and "Error" not in outcome.err
    paths = printed_paths(outcome.out)
    assert paths and all(path.exists() for path in paths)


def test_nothing_is_left_under_a_temporary_name(workshop: Workshop) -> None:
    for name in content(workshop.folder):
        assert not re.search(r"\.part\b|\.old\b|\.building\b", name), name


def test_prepare_says_what_it_found(workshop: Workshop) -> None:
    out = workshop.outcomes["prepare"].out
    assert "84 images of 63 lesions, 84 with an outline (84 new, 0 kept)." in out
    assert "akiec 12, bcc 12, bkl 12, df 12, mel 12, nv 12, vasc 12" in out
    summary = json.loads((workshop.data / "dataset.json").read_text())
    assert summary["n_images"] == 84 and summary["n_lesions"] == 63


def test_split_prints_the_table_it_wrote(workshop: Workshop) -> None:
    table = pd.read_csv(workshop.data / "manifest.csv")
    assert len(table) == 84 and set(table.split) == {"train", "validation", "test"}
    assert (table.groupby("lesion_id").split.nunique() == 1).all()
    lines = workshop.outcomes["split"].out.splitlines()
    counts = [int((table.split == s).sum()) for s in ("train", "validation", "test")]
    assert next(line for line in lines if line.startswith("All")).split()[1:] == [
        str(number) for number in (*counts, 84)
    ]


def test_audit_writes_its_table_and_finds_no_leak(workshop: Workshop) -> None:
    table = pd.read_csv(workshop.data / "audit.csv")
    assert list(table.dx) == [*HAM10000.codes, "all"]
    assert (table.leaking_here_percent == 0).all()
    assert "lesions in two splits: 0" in workshop.outcomes["audit"].out


def test_audit_of_a_leaking_split_exits_with_1(workshop: Workshop, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(workshop.data, data, ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(data / "manifest.csv")
    twice = table.lesion_id[table.lesion_id.duplicated()].iloc[0]
    table.loc[table.lesion_id == twice, "split"] = ["train", "test"]
    table.to_csv(data / "manifest.csv", index=False)
    outcome = dermlens("data", "audit", data)
    assert outcome.code == 1
    assert "lesions in two splits: 1" in outcome.out and "This split leaks." in outcome.out


def test_training_leaves_what_the_design_promises(workshop: Workshop) -> None:
    run = workshop.folder / "run"
    names = {path.name for path in run.iterdir()}
    assert {"bundle", "history.csv", "logs", "configuration.json", "split.csv"} <= names
    assert {"training_curves.png", "augmentation.png"} <= names and "checkpoint" not in names
    history = pd.read_csv(run / "history.csv")
    assert list(history.epoch) == [1, 2, 3]
    facts = json.loads((run / "bundle" / "bundle.json").read_text())
    assert facts["architecture"]["backbone"] == "tiny"
    assert facts["architecture"]["input_size"] == [32, 40]
    assert facts["architecture"]["classes"] == list(HAM10000.codes)
    assert facts["training"]["epochs"] == 3 and facts["training"]["batch_size"] == 8
    assert facts["training"]["fresh_rate"] == 5e-3
    fingerprint = json.loads((workshop.data / "dataset.json").read_text())["fingerprint"]
    assert facts["data"]["fingerprint"] == fingerprint


def test_evaluation_measures_the_test_split(workshop: Workshop) -> None:
    out = workshop.folder / "test"
    manifest = pd.read_csv(workshop.data / "manifest.csv")
    table = pd.read_csv(out / "predictions.csv")
    assert list(table.image_id) == list(manifest.image_id[manifest.split == "test"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n_images"] == len(table)
    assert metrics["accuracy"] == pytest.approx((table.dx == table.predicted).mean())
    assert metrics["confidence_intervals"]["resamples"] == 20
    assert f"accuracy {metrics['accuracy']:.3f}" in workshop.outcomes["evaluate"].out
    submission = pd.read_csv(out / "submission.csv")
    assert list(submission.columns) == ["image", *ISIC]


def test_evaluation_of_a_labelled_folder_gives_the_same_figures(
    workshop: Workshop, tmp_path: Path
) -> None:
    table = pd.read_csv(workshop.data / "manifest.csv")
    labels = table.loc[table.split == "test", ["image_id", "dx", "lesion_id"]]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    outcome = dermlens(
        *("evaluate", workshop.bundle, "--images", workshop.data / "images"),
        *("--labels", tmp_path / "labels.csv", "--out", tmp_path / "out", "--resamples", 5),
    )
    assert outcome.code == 0, outcome.err
    here = pd.read_csv(tmp_path / "out" / "predictions.csv")
    there = pd.read_csv(workshop.folder / "test" / "predictions.csv")
    assert list(here.image_id) == list(there.image_id)
    for code in HAM10000.codes:
        assert np.allclose(here[f"logit_{code}"], there[f"logit_{code}"], atol=1e-5)


def test_prediction_has_one_row_per_image_in_order(workshop: Workshop) -> None:
    table = pd.read_csv(workshop.folder / "predictions.csv")
    assert list(table.path) == [str(p) for p in sorted((workshop.data / "images").iterdir())]
    assert table.error.isna().all() and set(table.predicted) <= set(HAM10000.codes)
    total = table[[f"probability_{code}" for code in HAM10000.codes]].sum(axis=1)
    assert np.allclose(total, 1)
    out = workshop.outcomes["predict"].out
    assert "… and 64 more in the file." in out
    assert "Research and education only, not a medical device." in out


def test_prediction_with_a_damaged_file_exits_with_1(workshop: Workshop, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(workshop.image.read_bytes()[:-200])
    outcome = dermlens(
        "predict", workshop.bundle, workshop.image, damaged, "--out", tmp_path / "out.csv"
    )
    assert outcome.code == 1
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.predicted.isna().tolist() == [False, True]
    assert "damaged.jpg cannot be decoded" in table.error[1]
    assert "damaged.jpg cannot be decoded" in outcome.out


def test_explanation_holds_one_array_per_method(workshop: Workshop) -> None:
    folder = workshop.folder / "explanations" / "ISIC_0000001"
    assert {path.name for path in folder.iterdir()} == {
        *(".dermlens", "attributions.npz", "explanation.json", "all_methods.png"),
        *("grad_cam.png", "integrated_gradients.png"),
    }
    with np.load(folder / "attributions.npz") as arrays:
        assert set(arrays) == {"grad_cam", "integrated_gradients"}
        for name in arrays:
            assert arrays[name].shape == (32, 40) and arrays[name].dtype == np.float32
    stored = json.loads((folder / "explanation.json").read_text())
    assert stored["target"] == stored["predicted"]
    assert set(stored["methods"]) == {"grad_cam", "integrated_gradients"}


@pytest.fixture(scope="module")
def broken(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that are wrong: bundles, weights, data sets, images and labels."""
    import h5py

    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(workshop.bundle, folder / "changed")
    weights = bytearray((folder / "changed" / "weights.h5").read_bytes())
    weights[-1] ^= 1
    (folder / "changed" / "weights.h5").write_bytes(bytes(weights))
    with h5py.File(folder / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"elsewhere"]
        group = file.create_group("elsewhere")
        group.attrs["weight_names"] = [b"elsewhere/kernel:0"]
        group.create_dataset("elsewhere/kernel:0", data=np.zeros((3, 3), np.float32))
    (folder / "notes.h5").write_text("These are notes.")
    for name in ("no_df", "unsplit", "damaged"):
        shutil.copytree(workshop.data, folder / name, ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(workshop.data / "manifest.csv")
    table.assign(split=np.nan).to_csv(folder / "unsplit" / "manifest.csv", index=False)
    table[(table.dx != "df") | (table.split != "validation")].to_csv(
        folder / "no_df" / "manifest.csv", index=False
    )
    (folder / "damaged" / "images" / "ISIC_0000004.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "damaged.jpg").write_bytes(workshop.image.read_bytes()[:-200])
    (folder / "again").mkdir()
    shutil.copy(workshop.image, folder / "again" / workshop.image.name)
    (folder / "empty.csv").write_text("")
    (folder / "foreign.csv").write_text("image_id,dx\nISIC_0000001,scc\n")
    (folder / "elsewhere.csv").write_text("image_id,dx\nISIC_9999999,mel\n")
    return folder


TRAIN = ("train", "{data}", *TINY)
EVALUATE = ("evaluate", "{bundle}", "{data}")
EXPLAIN = ("explain", "{bundle}", "{image}")
LABELLED = ("evaluate", "{bundle}", "--images", "{data}/images", "--labels")
BAD: tuple[tuple[tuple[str, ...], str], ...] = (
    ((*TRAIN, "--backbone", "nosuch"), "Unknown backbone 'nosuch'. Use one of: resnet50,"),
    ((*TRAIN, "--weights", "{broken}/other.h5"), "holds the weights of another network"),
    ((*TRAIN, "--weights", "{broken}/notes.h5"), "cannot be read as HDF5 weights"),
    ((*TRAIN, "--weights", "{broken}/none.h5"), "none.h5 is missing"),
    ((*TRAIN, "--train-from", "nosuch"), "No layer of dermlens_tiny starts with 'nosuch'"),
    ((*TRAIN, "--size", "32"), "'32' is no size. Write height x width"),
    ((*TRAIN, "--size", "16x20"), "The input size 16x20 is too small"),
    ((*TRAIN, "--preset", "best"), "Unknown preset 'best'"),
    ((*TRAIN, "--imbalance", "much"), "Unknown imbalance handling 'much'"),
    ((*TRAIN, "--precision", "float8"), "precision must be 'float32' or 'mixed_bfloat16', not"),
    ((*TRAIN, "--epochs", "-1"), "epochs must be at least 0, not -1"),
    ((*TRAIN, "--epochs", "many"), "Invalid value for '--epochs'"),
    ((*TRAIN, "--batch-size", "0"), "batch_size must be at least 1, not 0"),
    ((*TRAIN, "--fresh-rate", "-1"), "fresh_rate must be at least 0, not -1.0"),
    ((*TRAIN, "--seed", "-1"), "seed must be at least 0, not -1"),
    (("train", "{broken}/no_df", *TINY), "The validation split holds no image of df"),
    (("train", "{broken}/unsplit", *TINY), "The data set is not split yet"),
    (("train", "{broken}/again", *TINY), "is not a prepared data set"),
    (("train", "{data}", *TINY, "--out", "{image}"), "ISIC_0000001.jpg is a file, not a folder"),
    (("evaluate", "{broken}/again", "{data}"), "is not a bundle: it holds no bundle.json"),
    (("evaluate", "{broken}/nosuch", "{data}"), "is not a bundle: it holds no bundle.json"),
    (("evaluate", "{broken}/changed", "{data}"), "weights.h5 has changed since it was saved"),
    (("evaluate", "{bundle}", "{broken}/unsplit"), "The data set is not split yet"),
    (("evaluate", "{bundle}"), "Give either DATA, or both --images and --labels"),
    ((*LABELLED[:-1],), "Give either DATA, or both --images and --labels"),
    ((*LABELLED, "{broken}/empty.csv"), "cannot be read as a table of labels"),
    ((*LABELLED, "{broken}/nosuch.csv"), "cannot be read as a table of labels"),
    ((*LABELLED, "{broken}/foreign.csv"), "holds the diagnosis 'scc'"),
    ((*LABELLED, "{broken}/elsewhere.csv"), "None of the 1 labelled images"),
    ((*EVALUATE, "--split", "nosuch"), "Unknown split 'nosuch'"),
    ((*EVALUATE, "--tta-views", "3"), "3 views are not possible. Use 1, 4 or 8"),
    ((*EVALUATE, "--batch-size", "0"), "The batch size must be at least 1, not 0"),
    ((*EVALUATE, "--seed", "-1"), "no negative seed"),
    ((*EVALUATE, "--resamples", "0"), "at least 1 resample"),
    (("predict", "{broken}/changed", "{image}"), "weights.h5 has changed since it was saved"),
    (("predict", "{bundle}", "{broken}/nosuch.jpg"), "nosuch.jpg does not exist"),
    (("predict", "{bundle}", "{bundle}"), "bundle is a bundle. Give one bundle at most"),
    (("predict", "{bundle}", "{image}", "--out", "{data}"), "Is a directory"),
    (("explain", "{broken}/changed", "{image}"), "weights.h5 has changed since it was saved"),
    (("explain", "{bundle}", "{broken}/nosuch.jpg"), "nosuch.jpg does not exist"),
    ((*EXPLAIN, "{broken}/damaged.jpg"), "damaged.jpg cannot be decoded"),
    ((*EXPLAIN, "{broken}/again"), "would both be written to the folder ISIC_0000001"),
    ((*EXPLAIN, "--methods", "nosuch"), "Unknown method 'nosuch'. Use some of: grad_cam,"),
    ((*EXPLAIN, "--methods", ","), "No method given"),
    ((*EXPLAIN, "--target", "scc"), "Unknown target class 'scc'. Use one of: akiec, bcc,"),
    ((*EXPLAIN, "--output", "nosuch"), "Unknown output 'nosuch'. Use logit, probability"),
    ((*EXPLAIN, "--output", "contrast:scc"), "Unknown target class 'scc'"),
    ((*EXPLAIN, "--opacity", "2"), "The opacity 2.0 is outside 0..1"),
    ((*EXPLAIN, "--batch-size", "0"), "The batch size must be at least 1, not 0"),
    (("data", "split", "{broken}/again"), "is not a prepared data set"),
    (("data", "audit", "{broken}/unsplit"), "is not split yet"),
    (("data", "explore", "{broken}/again"), "is not a prepared data set"),
    (("data", "synthetic", "--images", "0"), "Ask for at least one image"),
    (("data", "synthetic", "--seed", "-1"), "The seed must not be negative"),
    (("data", "synthetic", "--size", "64"), "'64' is no size"),
    (("data", "synthetic", "--out", "{data}"), "is not a synthetic data set"),
    (("data", "download", "--only", "nosuch"), "Unknown group 'nosuch'"),
    (("demo", "--from-scratch", "--epochs", "0"), "needs pretrained weights and head_epochs"),
    (("nosuch",), "No such command 'nosuch'"),
)


@pytest.mark.parametrize(("line", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_arguments_are_refused_and_leave_nothing(
    workshop: Workshop,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "data": workshop.data,
        "bundle": workshop.bundle,
        "image": workshop.image,
        "broken": broken,
    }
    arguments = [part.format(**places) for part in line]
    if "--out" not in line and line[:2] not in (("data", "split"), ("data", "audit"), ("nosuch",)):
        arguments += ["--out", "out.csv" if line[0] == "predict" else "out"]
    before = content(workshop.folder), content(broken)
    refused(dermlens(*arguments), words)
    assert content(tmp_path) == {}
    assert (content(workshop.folder), content(broken)) == before


def test_image_damaged_after_preparation_stops_training_before_it_starts(
    workshop: Workshop, broken: Path, tmp_path: Path
) -> None:
    outcome = dermlens("train", broken / "damaged", "--out", tmp_path / "run", *TINY)
    refused(outcome, "ISIC_0000004.jpg cannot be decoded")
    assert content(tmp_path) == {}
    assert not any(".part" in name for name in content(broken))


def test_second_training_into_the_same_folder_is_refused(workshop: Workshop) -> None:
    before = content(workshop.folder)
    again = ("train", workshop.data, "--out", workshop.folder / "run", *TINY, "--epochs", 3)
    refused(dermlens(*again), "already holds a run. Use --resume to continue it")
    assert content(workshop.folder) == before


def test_interruption_says_how_to_go_on(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dermlens.model.bundle.load_bundle", interrupt)
    outcome = dermlens("predict", workshop.bundle, workshop.image)
    assert outcome.code == 130
    assert "continues with --resume" in outcome.err and "Traceback" not in outcome.err


def test_full_disk_is_a_sentence_whatever_library_meets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ResourceExhaustedError(Exception):
        """What TensorFlow raises, which is no OSError."""

    def full(*_: object, **__: object) -> None:
        raise ResourceExhaustedError("variables.index; No space left on device [Op:SaveV2]")

    monkeypatch.setattr("dermlens.data.synthetic.make_synthetic", full)
    outcome = dermlens("data", "synthetic", "--out", tmp_path / "d")
    refused(outcome, "Error: The disk is full. Free some space and run this again.")
    assert list(tmp_path.iterdir()) == []


def test_version() -> None:
    from dermlens import __version__

    assert dermlens("--version") == (0, f"dermlens {__version__}\n", "")


def every_command() -> list[list[str]]:
    """The words of each command of the program."""
    commands = []
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        commands += [[name]] if inner is None else [[name, part] for part in inner]
    return commands


def test_help_lists_every_command() -> None:
    helped = dermlens("--help")
    assert helped.code == 0
    for name in {words[0] for words in every_command()}:
        assert re.search(rf"^│ {name} ", helped.out, re.MULTILINE), name
    assert {"train", "evaluate", "predict", "explain", "demo", "data"} <= {
        words[0] for words in every_command()
    }


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    outcome = dermlens(*command, "--help")
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    assert re.search(rf"Example: dermlens {' '.join(command)}\b", words)


def test_program_starts_without_the_heavy_packages() -> None:
    script = (
        "import sys, dermlens.cli\n"
        "heavy = 'tensorflow keras gradio matplotlib sklearn skimage seaborn pydantic pandas'\n"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
