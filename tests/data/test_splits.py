"""Lesion-grouped splits, near-duplicates and the leakage audit."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermlens.data.duplicates import hash_pairs, near_duplicates
from dermlens.data.images import perceptual_hash
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.data.splits import assign, audit, connected_groups, read_checks, split_data_set
from dermlens.errors import DataError
from dermlens.labels import HAM10000


def manifest(lesions: int, per_lesion: int = 1, dx: str = "nv") -> pd.DataFrame:
    """A table of lesions with several images each."""
    return pd.DataFrame(
        [
            {"image_id": f"{dx}_{lesion}_{view}", "lesion_id": f"L_{dx}_{lesion}", "dx": dx}
            for lesion in range(lesions)
            for view in range(per_lesion)
        ]
    )


def test_lesions_are_never_divided():
    table = pd.concat([manifest(40, 3), manifest(20, 2, "mel")], ignore_index=True)
    split = assign(table, connected_groups(table))
    assert table.assign(split=split).groupby("lesion_id").split.nunique().max() == 1


def test_proportions_per_diagnosis():
    table = pd.concat([manifest(100), manifest(200, 1, "mel")], ignore_index=True)
    counts = pd.crosstab(table.dx, assign(table, connected_groups(table)))
    assert counts.loc["nv"].to_dict() == {"train": 70, "validation": 15, "test": 15}
    assert counts.loc["mel"].to_dict() == {"train": 140, "validation": 30, "test": 30}


def test_split_ignores_row_order_and_follows_the_seed():
    table = manifest(60, 2)
    first = dict(zip(table.image_id, assign(table, connected_groups(table), seed=3), strict=True))
    mixed = table.sample(frac=1, random_state=1).reset_index(drop=True)
    second = dict(zip(mixed.image_id, assign(mixed, connected_groups(mixed), seed=3), strict=True))
    assert first == second
    other = dict(zip(table.image_id, assign(table, connected_groups(table), seed=4), strict=True))
    assert first != other


def test_split_is_the_same_on_every_machine():
    table = manifest(12)
    split = assign(table, connected_groups(table), seed=0)
    assert "".join(s[0:2] for s in split) == "trvatrtetrtrtrvatrtetrtr"


def test_smallest_class_reaches_every_split():
    table = pd.concat([manifest(50), manifest(3, 1, "df")], ignore_index=True)
    split = assign(table, connected_groups(table))
    assert sorted(split[(table.dx == "df").to_numpy()]) == ["test", "train", "validation"]


def test_too_few_lesions_are_refused():
    table = pd.concat([manifest(50), manifest(2, 5, "df")], ignore_index=True)
    with pytest.raises(DataError, match="df has only 2 lesion"):
        assign(table, connected_groups(table))


def test_pairs_join_lesions_transitively():
    table = manifest(5)
    groups = connected_groups(table, [("nv_0_0", "nv_3_0"), ("nv_3_0", "nv_4_0")])
    assert list(groups) == ["L_nv_0", "L_nv_1", "L_nv_2", "L_nv_0", "L_nv_0"]


def test_hash_pairs_equal_a_plain_count_of_bits():
    generator = np.random.default_rng(0)
    hashes = [generator.bytes(4).hex() for _ in range(50)]
    first, second, distance = hash_pairs(hashes, 12, block=7)
    expected = [
        (i, j, (int(hashes[i], 16) ^ int(hashes[j], 16)).bit_count())
        for i in range(50)
        for j in range(i + 1, 50)
    ]
    found = list(zip(first.tolist(), second.tolist(), distance.tolist(), strict=True))
    assert sorted(found) == [row for row in expected if row[2] <= 12]


def test_hash_hardly_changes_with_scale_and_brightness():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 200, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)
    smaller = Image.fromarray(np.uint8(np.asarray(image.resize((200, 150))) * 0.8 + 20))
    other = Image.fromarray(generator.integers(0, 200, (9, 12, 3), dtype=np.uint8)).resize(
        (400, 300), Image.Resampling.BICUBIC
    )

    def distance(a, b):
        return (int(perceptual_hash(a), 16) ^ int(perceptual_hash(b), 16)).bit_count()

    assert distance(image, smaller) <= 20
    assert distance(image, other) > 80


@pytest.fixture
def with_twin(ham_source, tmp_path):
    """A prepared data set in which two lesions share one photograph, recolored and shifted."""
    generator = np.random.default_rng(5)
    fine = generator.integers(60, 190, (150, 200, 3), dtype=np.uint8)
    photo = Image.fromarray(fine).resize((400, 300), Image.Resampling.BICUBIC)
    images = dict(ham_source.images())
    ham_source.write_metadata()
    folder = ham_source.folder / "HAM10000_images"
    folder.mkdir()
    for image_id, content in images.items():
        (folder / f"{image_id}.jpg").write_bytes(content)
    photo.save(folder / "ISIC_0000001.jpg", quality=95)
    shifted = np.roll(np.asarray(photo), 4, axis=1)
    Image.fromarray(np.uint8(shifted * 0.85 + (20, 5, 0))).save(
        folder / "ISIC_0000050.jpg", quality=95
    )
    return prepare(ham_source.folder, tmp_path / "data").data


def test_near_duplicates_are_found_and_stay_together(with_twin):
    table = read_manifest(with_twin)
    pairs = near_duplicates(with_twin, table, read_checks(with_twin))
    twin = pairs[(pairs.image_a == "ISIC_0000001") & (pairs.image_b == "ISIC_0000050")]
    assert len(twin) == 1
    for seed in range(5):
        split = split_data_set(with_twin, seed=seed).set_index("image_id").split
        assert split["ISIC_0000001"] == split["ISIC_0000050"]


def test_audit_of_a_grouped_split_finds_nothing(prepared):
    table, leaks = audit(prepared)
    assert leaks == {
        "lesions_in_two_splits": 0,
        "near_duplicates_in_two_splits": 0,
        "images_in_two_splits": 0,
    }
    assert (table.leaking_here_percent == 0).all()
    assert list(table.dx) == [*HAM10000.codes, "all"]
    # A third of the lesions has two images: half of all images share their lesion.
    assert table.images_sharing_a_lesion.iloc[-1] == 42
    assert 25 < table.leaking_under_image_level_split_percent.iloc[-1] < 45


def test_audit_notices_a_leak(ham_source, tmp_path):
    data = prepare(ham_source.write_archives().folder, tmp_path / "data").data
    table = split_data_set(data)
    shared = table.lesion_id[table.lesion_id.duplicated()].iloc[0]
    rows = table.index[table.lesion_id == shared]
    table.loc[rows[0], "split"], table.loc[rows[1], "split"] = "train", "test"
    table.to_csv(data / "manifest.csv", index=False)
    figures, leaks = audit(data)
    assert leaks["lesions_in_two_splits"] == 1
    assert figures.leaking_here_percent.iloc[-1] > 0


def test_audit_needs_a_split(ham_source, tmp_path):
    data = prepare(ham_source.write_archives().folder, tmp_path / "data").data
    with pytest.raises(DataError, match="not split yet"):
        audit(data)
