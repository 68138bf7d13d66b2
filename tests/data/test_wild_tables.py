"""The field's tables: five data sets as people download them, and tables of one's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import wild_datasets
from cli_support import dermlens, refused
from conftest import HamSource, jpeg_bytes
from dermlens.data.formats import FORMATS, Wanted
from dermlens.data.manifest import data_labels, read_manifest
from dermlens.data.preparation import prepare
from dermlens.data.splits import audit, split_data_set
from dermlens.data.tables import read_table
from dermlens.data.vocabulary import Vocabulary
from dermlens.errors import DataError, UsageError
from dermlens.files import read_json
from dermlens.labels import label_set
from wild_datasets import WILD, derm7pt, own_table

CLASSES = {
    "isic2019": ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc"),
    "isic2020": ("benign", "malignant"),
    "isic_archive": ("mel", "nv", "bcc", "ak", "bkl", "scc"),
    "pad_ufes": ("mel", "nv", "bcc", "ak", "bkl", "scc"),
    "folders": ("melanoma", "nevus", "seborrheic_keratosis"),
}
BY_PATIENT = {"isic2020", "isic_archive", "pad_ufes"}


@pytest.fixture(scope="module", params=WILD)
def wild(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Format, prepared and split data set, and what the program said."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "source").mkdir()
    source = WILD[request.param](folder / "source")
    outcome = dermlens("data", "prepare", source, "--out", folder / "data")
    assert outcome.code == 0, outcome.err
    split = dermlens("data", "split", folder / "data")
    assert split.code == 0, split.err
    return request.param, folder / "data", outcome.out


def test_each_data_set_is_recognized_and_keeps_its_classes(wild) -> None:
    name, data, _ = wild
    facts, labels = read_json(data / "dataset.json"), data_labels(data)
    assert facts["source"] == name and labels.codes == CLASSES[name]
    assert min(facts["per_class"].values()) > 0
    assert facts["license"] == next((one.license for one in FORMATS if one.name == name), "")
    if name != "folders":
        assert labels.malignant


def test_each_data_set_is_split_and_audited_without_leaks(wild) -> None:
    name, data, _ = wild
    table, leaks = audit(data)
    assert not any(leaks.values())
    assert ("patients_in_two_splits" in leaks) == ("patients" in table) == (name in BY_PATIENT)
    grouped = read_json(data / "dataset.json")["split"].get("grouped_by")
    assert grouped == ("patient" if name in BY_PATIENT else None)
    manifest = read_manifest(data)
    assert pd.crosstab(manifest.dx, manifest.split).to_numpy().min() > 0
    if name in BY_PATIENT:
        assert manifest.dropna(subset="patient_id").groupby("patient_id").split.nunique().max() == 1
        whole = table.set_index("dx").loc["all"]
        assert whole.patients_leaking_under_image_level_split_percent > 20
        assert whole.patients < whole.lesions
    outcome = dermlens("data", "audit", data)
    assert outcome.code == 0
    assert ("No patient, lesion, near-duplicate" in outcome.out) == (name in BY_PATIENT)


def test_each_data_set_has_a_card_of_its_own(wild) -> None:
    from dermlens.report.cards import data_card

    name, data, _ = wild
    card = data_card(data)
    group = "patient" if name in BY_PATIENT else "lesion"
    assert f"By {group}: all photographs of one {group} stand in one split" in card
    assert "HAM10000" not in card


def test_labels_without_a_class_are_listed_with_counts(wild) -> None:
    name, data, said = wild
    expected = {"isic2019": {"unk": 3}, "isic_archive": {"Scar": 1}}.get(name, {})
    assert read_json(data / "dataset.json")["unmapped_labels"] == expected
    for label, count in expected.items():
        assert f"with labels without a class: {label!r} {count}." in said


def test_isic_2019_takes_lesions_from_its_second_table(tmp_path) -> None:
    data = prepare(wild_datasets.isic_2019(tmp_path), tmp_path.parent / "data").data
    table = read_manifest(data)
    known = table.lesion_id.str.startswith("BCN_")
    assert known.any() and (table.lesion_id[~known] == table.image_id[~known]).all()
    assert table.image_id.str.endswith("_downsampled").any()
    assert set(table.age) == {50.0, 51.0} and set(table.localization) == {"anterior torso"}
    assert (table.dx == "scc").sum() == 12


def test_the_isic_archive_is_mapped_by_its_deepest_level(tmp_path) -> None:
    source = wild_datasets.isic_archive(tmp_path)
    table = read_manifest(prepare(source, tmp_path.parent / "data").data)
    # Actinic keratosis is "Indeterminate" at the first level, Bowen's disease known at the fourth.
    assert (table.dx == "ak").sum() == 9 and (table.dx == "scc").sum() == 9
    assert set(table.image_type) == {"dermoscopic", "clinical: close-up"}
    wanted = Wanted(image_type="dermoscopic")
    only = read_manifest(prepare(source, tmp_path.parent / "only", wanted=wanted).data)
    assert len(only) == len(table) - 6 and set(only.image_type) == {"dermoscopic"}


@pytest.mark.parametrize(
    ("build", "classes", "expected"),
    [
        (wild_datasets.isic_archive, "binary", {"benign": 19, "malignant": 36}),
        (wild_datasets.isic_2020, "isic2019", {"mel": 12, "nv": 36}),
        (wild_datasets.pad_ufes, "binary", {"benign": 20, "malignant": 40}),
        (wild_datasets.class_folders, "ham10000", {"mel": 8, "nv": 8, "bkl": 8}),
        (wild_datasets.class_folders, "binary", {"benign": 16, "malignant": 8}),
    ],
)
def test_any_data_set_can_be_mapped_to_another_label_set(
    tmp_path, build: Callable[[Path], Path], classes: str, expected: dict[str, int]
) -> None:
    done = prepare(build(tmp_path), tmp_path.parent / "data", wanted=Wanted(classes=classes))
    assert {k: v for k, v in done.summary["per_class"].items() if v} == expected
    assert done.summary["labels"]["name"] == classes


@pytest.mark.parametrize(
    ("word", "codes"),
    [
        # Words of the ISIC Archive, Derm7pt, PAD-UFES-20 and the challenges, and their class in
        # isic2019, ham10000 and binary.
        ("Melanoma, NOS", ("mel", "mel", "malignant")),
        ("melanoma (less than 0.76 mm)", ("mel", "mel", "malignant")),
        ("reed or spitz nevus", ("nv", "nv", "benign")),
        ("Melanocytic naevus", ("nv", "nv", "benign")),
        ("Squamous cell carcinoma, Invasive", ("scc", None, "malignant")),
        ("Squamous cell carcinoma in situ", ("scc", "akiec", "malignant")),
        ("ACK", ("ak", "akiec", "malignant")),
        ("akiec", ("ak", "akiec", "malignant")),
        ("SEK", ("bkl", "bkl", "benign")),
        ("Lichen planus like keratosis", ("bkl", "bkl", "benign")),
        ("vascular lesion", ("vasc", "vasc", "benign")),
        ("Benign", (None, None, "benign")),
        ("Indeterminate", (None, None, None)),
        ("unknown", (None, None, None)),
        ("Basal cell carcinoma", ("bcc", "bcc", "malignant")),
    ],
)
def test_words_of_the_field(word: str, codes: tuple[str | None, ...]) -> None:
    sets = ("isic2019", "ham10000", "binary")
    assert tuple(Vocabulary(label_set(name)).code_of(word) for name in sets) == codes


def test_derm7pt_has_several_images_in_a_row(tmp_path) -> None:
    source = derm7pt(tmp_path)
    done = prepare(source, tmp_path.parent / "data")
    table = read_manifest(done.data)
    assert len(table) == 24 and table.lesion_id.nunique() == 12
    assert dict(table.image_type.value_counts()) == {"clinical": 12, "dermoscopic": 12}
    assert done.summary["unmapped_labels"] == {"lentigo": 8}
    assert set(table.dx) == {"mel", "nv", "bcc"}
    one = prepare(source, tmp_path.parent / "one", wanted=Wanted(image_type="dermoscopic"))
    assert len(read_manifest(one.data)) == 12


def test_file_names_that_repeat_in_class_folders_are_kept_apart(tmp_path) -> None:
    table = read_manifest(
        prepare(wild_datasets.class_folders(tmp_path), tmp_path.parent / "d").data
    )
    assert len(table) == 24
    assert "train_melanoma_000" in set(table.image_id)


def test_folders_that_are_no_diagnoses_are_not_guessed(tmp_path) -> None:
    for folder in ("rot", "blau"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number in range(3):
            image = jpeg_bytes(number + len(folder))
            (tmp_path / "in" / folder / f"{folder}{number}.jpg").write_bytes(image)
    arguments = ("data", "prepare", tmp_path / "in", "--out", tmp_path / "data")
    refused(dermlens(*arguments), "give --format folders")
    outcome = dermlens(*arguments, "--format", "folders")
    assert outcome.code == 0 and "Images per diagnosis: blau 3, rot 3" in outcome.out


# Tables of one's own -----------------------------------------------------------------------------

COLUMNS = "image=Datei,label=Befund,lesion=Läsion,patient=Person,age=Alter"


def written(encoding: str, separator: str, mark: bytes = b"") -> Callable[[pd.DataFrame], bytes]:
    def text(table: pd.DataFrame) -> bytes:
        return mark + table.to_csv(index=False, sep=separator).encode(encoding)

    return text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("latin-1", b""),
    ],
)
def test_tables_of_every_program_are_read(tmp_path, separator, encoding, mark) -> None:
    labels = {"Melanom": "mel", "Nävus": "nv"}
    text = written(encoding, separator, mark)
    source = own_table(tmp_path / "own", labels=labels, text=text)
    mapping = tmp_path / "mapping.json"
    outcome = dermlens(
        *("data", "prepare", source, "--out", tmp_path / "data"),
        *("--columns", COLUMNS, "--mapping", mapping),
    )
    assert outcome.code == 0, outcome.err
    table = read_manifest(tmp_path / "data")
    assert list(table.age) == [85.0] + [42.5] * 11
    assert dict(table.dx.value_counts()) == {"mel": 6, "nv": 6}
    assert table.patient_id.nunique() == 6 and set(table.lesion_id) == {f"L{k}" for k in range(12)}
    assert data_labels(tmp_path / "data").of("mel").malignant


def test_a_line_that_names_the_separator_is_skipped() -> None:
    found = read_table(b"sep=;\r\na;b\r\n1;2\r\n", "t.csv")
    assert found.cells.to_dict("records") == [{"a": "1", "b": "2"}] and found.lines == [3]


def test_labels_of_ones_own_are_classes_and_a_mapping_lists_what_it_lacks(tmp_path) -> None:
    source = own_table(tmp_path / "own", labels={"Melanom": "mel", "Nävus": "nv", "Ekzem": ""})
    arguments = ("data", "prepare", source, "--out", tmp_path / "data", "--columns", COLUMNS)
    outcome = dermlens(*arguments)
    assert "Images per diagnosis: Ekzem 4, Melanom 4, Nävus 4" in outcome.out
    for mapping, words in (
        ('{"Melanom": "mel", "Nävus": "nv"}', "with labels without a class: 'Ekzem' 4."),
        ('{"Melanom": "mel", "Nävus": "nv", "Ekzem": ""}', "with labels not wanted: 'Ekzem' 4."),
    ):
        (tmp_path / "m.json").write_text(mapping)
        outcome = dermlens(*arguments, "--mapping", tmp_path / "m.json")
        assert outcome.code == 0, outcome.err
        assert words in outcome.out and "Images per diagnosis: mel 4, nv 4" in outcome.out
    (tmp_path / "m.csv").write_text("label;code\nMelanom;krebs\nNävus;gut\nEkzem;gut\n")
    outcome = dermlens(*arguments, "--mapping", tmp_path / "m.csv")
    assert "Images per diagnosis: krebs 4, gut 8" in outcome.out


def test_what_cannot_be_used_is_a_sentence(tmp_path) -> None:
    source = own_table(tmp_path / "own")
    arguments = ("data", "prepare", source, "--out", tmp_path / "data")
    refused(dermlens(*arguments), "say which columns are what: --columns image=…,label=….")
    refused(dermlens(*arguments, "--columns", "image=Datei"), "'label' is missing")
    refused(dermlens(*arguments, "--columns", "image=Datei,label=nix"), "lacks the column 'nix'")
    refused(dermlens(*arguments, "--columns", "image"), "Write word=column")
    refused(dermlens(*arguments, "--columns", "bild=Datei,label=Befund"), "'bild' is none of them")
    refused(dermlens(*arguments, "--format", "dicom"), "Unknown format 'dicom'")
    refused(dermlens(*arguments, "--format", "pad_ufes"), "lacks the column 'patient_id'")
    more = ("--columns", COLUMNS)
    refused(
        dermlens(*arguments, *more, "--classes", "binary"), "Give --mapping, or other --classes"
    )
    refused(dermlens(*arguments, *more, "--classes", "nonsense"), "There is no label set")
    (tmp_path / "m.json").write_text("[1]")
    refused(dermlens(*arguments, *more, "--mapping", tmp_path / "m.json"), "cannot be used")
    (tmp_path / "m.json").write_text('{"Melanom": "krebs"}')
    wrong = (*more, "--mapping", tmp_path / "m.json", "--classes", "binary")
    refused(dermlens(*arguments, *wrong), "leads to 'krebs', which is none of benign, malignant")
    refused(dermlens(*arguments, *more, "--table", "other.csv"), "There is no table other.csv")
    refused(dermlens(*arguments, *more, "--image-type", "dermoscopic"), "lists no image")
    assert not (tmp_path / "data").exists()


def test_two_tables_of_one_format_must_be_one(ham_source: HamSource, tmp_path) -> None:
    ham_source.write_archives()
    ham_source.write_metadata("HAM10000_metadata.tab", "\t")
    assert prepare(ham_source.folder, tmp_path / "data").summary["n_images"] == 56
    ham_source.table.loc[0, "dx"] = "bcc"
    ham_source.write_metadata("HAM10000_metadata.tab", "\t")
    with pytest.raises(DataError, match="are both tables of HAM10000, and differ"):
        prepare(ham_source.folder, tmp_path / "other")
    wanted = Wanted(table="HAM10000_metadata.tab")
    done = prepare(ham_source.folder, tmp_path / "other", wanted=wanted)
    assert done.summary["per_class"]["bcc"] == 9


def test_rows_that_repeat_are_said_and_rows_that_contradict_refused(tmp_path) -> None:
    source = own_table(tmp_path / "own")
    path = source / "befunde.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    arguments = ("data", "prepare", source, "--out", tmp_path / "data", "--columns", COLUMNS)
    outcome = dermlens(*arguments)
    assert "1 rows of" in outcome.out and "repeat another one" in outcome.out
    path.write_text("\n".join([*lines, lines[1].replace("Melanom", "Nävus")]) + "\n")
    refused(dermlens(*arguments), "lists image bild_000 twice")


def test_lesion_numbers_that_begin_anew_with_each_patient_are_kept_apart(tmp_path) -> None:
    source = own_table(tmp_path / "own")
    table = pd.read_csv(source / "befunde.csv")
    table["Läsion"] = [f"{k % 2 + 1}" for k in range(len(table))]
    table.to_csv(source / "befunde.csv", index=False)
    columns = {"image": "Datei", "label": "Befund", "lesion": "Läsion", "patient": "Person"}
    wanted = Wanted(columns=columns)
    done = prepare(source, tmp_path / "data", wanted=wanted)
    assert done.summary["n_lesions"] == 12
    assert any("begin anew with each patient" in note for note in done.summary["notes"])


def test_a_split_is_not_kept_when_patients_become_known(tmp_path) -> None:
    source = own_table(tmp_path / "own", count=24)
    columns = {"image": "Datei", "label": "Befund", "lesion": "Läsion"}
    data = prepare(source, tmp_path / "data", wanted=Wanted(columns=columns)).data
    split_data_set(data)
    prepare(source, data, wanted=Wanted(columns=columns))
    assert read_manifest(data).split.notna().all()
    prepare(source, data, wanted=Wanted(columns={**columns, "patient": "Person"}))
    assert read_manifest(data).split.isna().all()


def test_a_patient_with_a_rare_diagnosis_counts_for_it(tmp_path) -> None:
    data = prepare(wild_datasets.isic_2020(tmp_path), tmp_path.parent / "data").data
    table = split_data_set(data)
    counts = pd.crosstab(table.dx, table.split)
    # Twelve patients with a melanoma each: 70, 15 and 15 percent of them.
    assert list(counts.loc["malignant", ["train", "validation", "test"]]) == [8, 2, 2]


@pytest.mark.parametrize("name", ["null", "NA", "nan", "None", "1e5", "007"])
def test_an_image_may_be_called_like_a_missing_value_or_a_number(tmp_path, name) -> None:
    source = own_table(tmp_path / "own", count=24)
    (source / "bilder" / "bild_000.jpg").rename(source / "bilder" / f"{name}.jpg")
    path = source / "befunde.csv"
    path.write_text(path.read_text().replace("bild_000", name))
    wanted = Wanted(columns={"image": "Datei", "label": "Befund"})
    data = prepare(source, tmp_path / "data", wanted=wanted).data
    table = split_data_set(data)
    assert name in set(table.image_id) and (data / "images" / f"{name}.jpg").is_file()
    assert prepare(source, data, wanted=wanted).added == 0
    assert read_manifest(data).split.notna().all()


def test_what_a_table_now_says_is_written_though_the_images_are_the_same(
    ham_source: HamSource, tmp_path: Path
) -> None:
    ham_source.write_archives()
    data = prepare(ham_source.folder, tmp_path / "data").data
    split_data_set(data)
    before = read_json(data / "dataset.json")
    extra = ham_source.table.iloc[[0]].assign(image_id="ISIC_9999999")
    ham_source.table = pd.concat([ham_source.table, extra], ignore_index=True)
    ham_source.write_metadata()
    assert prepare(ham_source.folder, data).added == 0
    after = read_json(data / "dataset.json")
    changed = {"n_metadata_rows": 57, "n_missing_images": 1, "missing_images": ["ISIC_9999999"]}
    assert after == {**before, **changed}


# What is no table of images ----------------------------------------------------------------------


def pixels(folder: Path, name: str, columns: int) -> Path:
    folder.mkdir(exist_ok=True)
    header = ",".join([*(f"pixel{k:04d}" for k in range(columns)), "label"])
    row = ",".join(["7"] * (columns + 1))
    (folder / name).write_text(f"{header}\n{row}\n{row}\n")
    return folder


def test_pixel_tables_are_refused_clearly(tmp_path, ham_source: HamSource) -> None:
    folder = pixels(tmp_path / "kaggle", "hmnist_28_28_RGB.csv", 2352)
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    refused(outcome, "hmnist_28_28_RGB.csv holds pixels, not facts about images: its 2,353 columns")
    # Beside the proper table they do not matter.
    pixels(ham_source.write_archives().folder, "hmnist_8_8_L.csv", 64)
    assert prepare(ham_source.folder, tmp_path / "data").summary["n_images"] == 56
    as_labels = tmp_path / "labels.csv"
    as_labels.write_text((folder / "hmnist_28_28_RGB.csv").read_text())
    with pytest.raises(DataError, match="holds pixels"):
        read_table(as_labels.read_bytes(), "labels.csv")


def test_a_table_with_a_million_columns_is_refused_at_once(tmp_path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    header = ",".join(f"c{k}" for k in range(1_000_000))
    (folder / "metadata.csv").write_text(f"{header}\n{header}\n")
    refused(dermlens("data", "prepare", folder, "--out", tmp_path / "data"), "columns, more than")
    with pytest.raises(DataError, match="has 1,000,000 columns"):
        read_table((folder / "metadata.csv").read_bytes(), "metadata.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "is a workbook, not a text table"),
        (bytes(range(256)) * 4, "is no text"),
        (b"a,b\n1,2,3\n", "line 2: there are 3 cells under 2 column names"),
        (b"a,a\n1,2\n", "has two columns 'a'"),
        (b"", "is empty"),
        (b'a,b\n"' + b"x" * 200_000 + b'",2\n', "line 2: this cannot be read as a table"),
        (b"\xff\xfea", "is damaged text"),
    ],
)
def test_what_is_no_table_is_a_sentence(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_table(content, "t.csv")
    assert str(error.value).startswith("t.csv") and str(error.value).endswith(".")


def test_two_hundred_bent_tables_are_a_sentence_or_a_data_set(
    ham_source: HamSource, tmp_path: Path
) -> None:
    generator = np.random.default_rng(5)
    ham_source.table = ham_source.table.iloc[:6]
    for image_id, image in ham_source.images().items():
        (ham_source.folder / f"{image_id}.jpg").write_bytes(image)
    path = ham_source.write_metadata().folder / "HAM10000_metadata.csv"
    whole = path.read_bytes()
    outcomes = {"prepared": 0, "refused": 0}
    for number in range(200):
        bent = bytearray(whole)
        for _ in range(int(generator.choice([1, 1, 2, 8, 40]))):
            place, way = int(generator.integers(len(bent))), generator.random()
            if way < 0.6:
                bent[place] = int(generator.choice([0, 34, 44, 10, 59, 9, 255, 128, 61, 45]))
            elif way < 0.8:
                del bent[place : place + int(generator.integers(1, 30))]
            else:
                bent[place:place] = generator.bytes(int(generator.integers(1, 9)))
            if not bent:
                break
        path.write_bytes(bent)
        try:
            prepare(ham_source.folder, tmp_path / f"data{number}")
            outcomes["prepared"] += 1
        except (DataError, UsageError) as error:
            assert str(error).strip().endswith(".") and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
    assert not list(tmp_path.glob(".*"))


def test_mappings_are_read_in_both_forms(tmp_path) -> None:
    from dermlens.data.annotation_classes import read_mapping

    (tmp_path / "m.json").write_text(json.dumps({"a": "mel", "b": None}))
    (tmp_path / "m.csv").write_bytes("label;code\na;mel\nb;\n".encode("utf-16"))
    expected = {"a": "mel", "b": ""}
    assert read_mapping(tmp_path / "m.json") == read_mapping(tmp_path / "m.csv") == expected
