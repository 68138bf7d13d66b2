"""Labels of folders that a model is evaluated on, in the field's forms."""

from pathlib import Path

import pytest

from dermlens.data.label_table import read_labels
from dermlens.errors import DataError
from dermlens.labels import HAM10000, label_set
from wild_datasets import isic_2019, isic_2020, isic_archive, pad_ufes


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_image_and_diagnosis(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = [
        ("Image", "DX", "Age", "Sex"),
        ("a.jpg", "MEL", "85+", "männlich"),
        ("b", "nv", "42,5", ""),
    ]
    text = "\r\n".join(separator.join(f'"{cell}"' for cell in row) for row in rows)
    table = read_labels(written(tmp_path, text, encoding), HAM10000)
    assert table.fillna("").to_dict("list") == {
        "image_id": ["a", "b"],
        "age": [85.0, 42.5],
        "sex": ["männlich", ""],
        "dx": ["mel", "nv"],
    }


def test_one_column_per_class(tmp_path: Path) -> None:
    names = ",".join(reversed(HAM10000.codes)).upper()
    table = read_labels(written(tmp_path, f"image,{names}\na,0,0,0,0,0,0,1.0\n"), HAM10000)
    assert table.to_dict("records") == [{"image_id": "a", "dx": "akiec"}]
    for marks, count in (("0,0,0,0,0,0,0", 0), ("1,1,0,0,0,0,0", 2)):
        path = written(tmp_path, f"image,{names}\na,{marks}\n")
        with pytest.raises(DataError, match=f"line 2: image a has {count} classes marked"):
            read_labels(path, HAM10000)


def test_tables_of_the_field_list_what_has_no_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    isic_2019(tmp_path)
    path = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    table = read_labels(path, label_set("isic2019"))
    assert (table.dx == "scc").sum() == 12
    assert "labels have no class here: 'unk' 3." in capsys.readouterr().out
    table = read_labels(path, HAM10000)
    assert (table.dx == "akiec").sum() == 12 and len(table) == 12 * 7
    assert "labels have no class here: 'scc' 12, 'unk' 3." in capsys.readouterr().out


@pytest.mark.parametrize("build", [isic_2020, pad_ufes])
def test_other_tables_of_the_field(tmp_path: Path, build) -> None:
    table = read_labels(next(build(tmp_path).glob("*.csv")), label_set("binary"))
    assert set(table.dx) == {"benign", "malignant"}
    assert not table.image_id.str.contains(".png", regex=False).any()


def test_an_export_of_the_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(isic_archive(tmp_path) / "ISIC-images.zip") as archive:
        archive.extract("metadata.csv", tmp_path)
    table = read_labels(tmp_path / "metadata.csv", label_set("isic2019"))
    assert (table.dx == "ak").sum() == 9 and (table.lesion_id.notna()).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as a table of labels"),
        ("a,b\n1,2\n", "has no column image_id or image"),
        ("image,mel,nv\na,1,0\n", "has neither a column dx nor one column for each"),
        ("image_id,dx\na,scc\n", "holds the diagnosis 'scc', none of"),
        ("image_id,dx\na,mel\na,nv\n", "lists image a twice"),
        ("image_id,dx\n../a,mel\n", "leads outside"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_labels(written(tmp_path, text), HAM10000)
