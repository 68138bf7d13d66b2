"""Label sets: what comes with the package, what users write, and what cannot be one."""

import json
from pathlib import Path

import pytest

from dermlens.errors import UsageError
from dermlens.labels import (
    HAM10000,
    LabelSet,
    chosen,
    label_set,
    label_set_names,
    named_classes,
    numbered_classes,
)


def test_the_sets_of_the_package() -> None:
    assert label_set_names() == ("binary", "ham10000", "isic2019")
    assert HAM10000.codes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert HAM10000.malignant == ("akiec", "bcc", "mel")
    assert HAM10000.flags == {"malignant": ("akiec", "bcc", "mel"), "melanoma": ("mel",)}
    isic = label_set("isic2019")
    assert isic.codes == ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc")
    assert set(isic.malignant) == {"mel", "bcc", "ak", "scc"}
    assert label_set("binary").flags == {"malignant": ("malignant",)}
    for name in label_set_names():
        found = label_set(name)
        assert LabelSet.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert len({label.color for label in found.labels}) == len(found)


def test_names_alone_declare_nothing() -> None:
    pets = named_classes(["cat", "dog"])
    assert pets.codes == ("cat", "dog") and pets.flags == {} and pets.malignant == ()
    assert numbered_classes(3).codes == ("class 0", "class 1", "class 2")
    assert len({label.color for label in numbered_classes(16).labels}) == 16


def test_users_write_their_own(tmp_path: Path) -> None:
    content = {
        "name": "mine",
        "labels": [{"code": "a", "name": "Alpha"}, {"code": "b", "malignant": True}],
        "alerts": {"b alone": ["b"]},
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    mine = label_set(tmp_path / "mine.json")
    assert mine.of("a").name == "Alpha" and mine.of("b").name == "b" and mine.position("b") == 1
    assert mine.flags == {"malignant": ("b",), "b alone": ("b",)}
    (tmp_path / "names.txt").write_text("rose\ntulip\n\n")
    assert label_set(tmp_path / "names.txt").codes == ("rose", "tulip")
    assert label_set("rose, tulip").codes == ("rose", "tulip")


def test_known_codes_bring_what_is_known_of_them() -> None:
    assert label_set("benign,malignant") == label_set("binary")
    assert label_set(",".join(HAM10000.codes)) == HAM10000
    some = chosen(HAM10000, ("nv", "mel", "new"))
    assert some.of("mel").malignant and some.of("new").malignant is None
    assert some.alerts == {"melanoma": ("mel",)}
    assert chosen(HAM10000, ("nv", "bkl")).alerts == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"name": "x", "labels": []}, "it has no class"),
        ({"name": "x", "labels": [{"code": "a"}, {"code": "a"}]}, "the code 'a' stands twice"),
        ({"name": "x", "labels": [{"code": " "}]}, "a code is empty"),
        ({"name": "x", "labels": [{"code": "a", "color": "red"}]}, "is not like #0072B2"),
        ({"name": "x", "labels": [{"code": "a"}], "alerts": {"b": ["b"]}}, "alert code 'b'"),
        ({"labels": [{"code": "a"}]}, "name is missing"),
        ({"name": "x", "labels": [{"name": "a"}]}, r"labels\[0\]\.code is missing"),
        (["a"], "no label set"),
        ({"name": "x", "labels": 3}, "labels must be a valid array, not 3"),
        ({"name": "x", "labels": [{"code": 3}]}, r"labels\[0\]\.code must be a valid string"),
        ({"name": "x", "labels": [{"code": "a", "malign": True}]}, "malign is not known"),
        ({"name": "x", "labels": [{"code": "a", "malignant": "no"}]}, "malignant must be a valid"),
    ],
)
def test_what_cannot_be_one_is_refused(content: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LabelSet.from_json(content)


def test_unknown_names_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no label set 'nosuch'.*binary, ham10000, isic2019"):
        label_set("nosuch")
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(UsageError, match=r"damaged\.json is not valid JSON"):
        label_set(tmp_path / "damaged.json")
    with pytest.raises(UsageError, match=r"Unknown class 'scc'\. Use one of: akiec"):
        HAM10000.of("scc")
