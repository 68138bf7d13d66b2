"""Small data sets in the layouts that people download, for tests to prepare, split and train on.

Each builder fills an empty folder and returns it. Pictures are 30x40 pixels, their shade follows
the diagnosis, so that even a tiny network learns something.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from conftest import jpeg_bytes, mask_bytes

ISIC_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
PAD_UFES = ("BCC", "SCC", "ACK", "NEV", "MEL", "SEK")
ARCHIVE: dict[str, tuple[str | None, ...]] = {
    "mel": ("Malignant", "Malignant melanocytic proliferations (Melanoma)", "Melanoma Invasive"),
    "nv": ("Benign", "Benign melanocytic proliferations", "Nevus", "Nevus, Atypical", None),
    "bcc": (
        *("Malignant", "Malignant adnexal epithelial proliferations - Follicular"),
        *("Basal cell carcinoma", "Basal cell carcinoma, Nodular"),
    ),
    "ak": ("Indeterminate", "Indeterminate epidermal proliferations", "Solar or actinic keratosis"),
    "bkl": ("Benign", "Benign epidermal proliferations", "Seborrheic keratosis"),
    "scc": (
        *("Malignant", "Malignant epidermal proliferations", "Squamous cell carcinoma in situ"),
        "Squamous cell carcinoma in situ, Bowens disease",
    ),
}
"""Levels of the ISIC Archive's diagnoses, the general first, by the code they stand for."""


def shaded(seed: int, group: int) -> bytes:
    """A picture whose shade tells its class."""
    return jpeg_bytes(seed, shade=15 + 25 * (group % 8))


def isic_2019(folder: Path, per_class: int = 9, unknown: int = 2) -> Path:
    """ISIC 2019: one-hot with SCC and UNK, a second table with lesions, half of them known."""
    rows, facts = [], []
    with zipfile.ZipFile(folder / "ISIC_2019_Training_Input.zip", "w") as archive:
        for group, code in enumerate(ISIC_2019):
            for number in range(unknown if code == "UNK" else per_class):
                for view in range(2 if number % 3 == 0 else 1):
                    name = f"ISIC_{len(rows):07d}" + ("_downsampled" if number % 4 == 1 else "")
                    rows.append({"image": name, **{c: float(c == code) for c in ISIC_2019}})
                    lesion = f"BCN_{group}{number:04d}" if number % 3 < 2 else ""
                    facts.append((name, 50.0 + view, "anterior torso", lesion, "female"))
                    content = shaded(len(rows), group)
                    archive.writestr(f"ISIC_2019_Training_Input/{name}.jpg", content)
    pd.DataFrame(rows).to_csv(folder / "ISIC_2019_Training_GroundTruth.csv", index=False)
    columns = ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    table = pd.DataFrame(facts, columns=columns)
    table.to_csv(folder / "ISIC_2019_Training_Metadata.csv", index=False)
    return folder


def isic_2020(folder: Path, patients: int = 24) -> Path:
    """ISIC 2020: benign or malignant, three images of a patient, every second has a melanoma."""
    (folder / "train").mkdir()
    rows = []
    for patient in range(patients):
        for image in range(3):
            malignant = patient % 2 == 0 and image == 1
            name = f"ISIC_{len(rows):07d}"
            diagnosis = "melanoma" if malignant else ("nevus", "unknown")[image // 2]
            rows.append(
                {
                    "image_name": name,
                    "patient_id": f"IP_{patient:07d}",
                    "sex": "male",
                    "age_approx": 45.0,
                    "anatom_site_general_challenge": "torso",
                    "diagnosis": diagnosis,
                    "benign_malignant": "malignant" if malignant else "benign",
                    "target": int(malignant),
                }
            )
            content = shaded(len(rows), 6 if malignant else 1)
            (folder / "train" / f"{name}.jpg").write_bytes(content)
    pd.DataFrame(rows).to_csv(folder / "ISIC_2020_Training_GroundTruth.csv", index=False)
    return folder


def isic_archive(folder: Path, per_class: int = 9) -> Path:
    """An export of the ISIC Archive, one zip with images and metadata.csv in it."""
    rows = []
    with zipfile.ZipFile(folder / "ISIC-images.zip", "w") as archive:
        for group, (code, levels) in enumerate(ARCHIVE.items()):
            for number in range(per_class):
                filled = (*levels, None, None, None)[:5]
                rows.append(
                    {
                        "isic_id": f"ISIC_{len(rows):07d}",
                        "attribution": "A clinic, a city",
                        "copyright_license": "CC-BY",
                        "age_approx": 55,
                        "anatom_site_general": "lower extremity",
                        **{f"diagnosis_{k + 1}": level for k, level in enumerate(filled)},
                        "diagnosis_confirm_type": "histopathology",
                        "image_type": "clinical: close-up" if number == 8 else "dermoscopic",
                        "lesion_id": f"IL_{code}{number // 2:04d}",
                        "patient_id": f"IP_{group}{number // 4:06d}" if number % 5 else None,
                        "sex": "male",
                    }
                )
                archive.writestr(f"{rows[-1]['isic_id']}.jpg", shaded(len(rows), group))
        strange = {**rows[0], "isic_id": "ISIC_9000000", "lesion_id": None, "patient_id": None}
        for level, word in enumerate(("Benign", "Benign soft tissue proliferations", "Scar"), 1):
            strange[f"diagnosis_{level}"] = word
        archive.writestr("ISIC_9000000.jpg", shaded(999, 7))
        text = pd.DataFrame([*rows, strange]).to_csv(index=False)
        archive.writestr("metadata.csv", text)
    return folder


def pad_ufes(folder: Path, per_class: int = 8) -> Path:
    """PAD-UFES-20: smartphone photographs as PNG, several lesions of a patient."""
    from io import BytesIO

    from PIL import Image

    rows = []
    for part in (1, 2):
        (folder / "images" / f"imgs_part_{part}").mkdir(parents=True)
    for group, code in enumerate(PAD_UFES):
        for number in range(per_class):
            patient, lesion = 100 + len(rows) // 2, 1000 + len(rows)
            for image in range(2 if number % 4 == 0 else 1):
                name = f"PAT_{patient}_{lesion}_{len(rows) * 7 % 1000 + image}.png"
                rows.append(
                    {
                        "patient_id": f"PAT_{patient}",
                        "lesion_id": lesion,
                        "smoke": "False",
                        "age": 60,
                        "gender": "FEMALE",
                        "region": "FACE",
                        "diagnostic": code,
                        "img_id": name,
                        "biopsed": "True",
                    }
                )
                place = folder / "images" / f"imgs_part_{1 + len(rows) % 2}" / name
                Image.open(BytesIO(shaded(len(rows), group))).save(place)
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def class_folders(folder: Path, per_class: int = 8) -> Path:
    """Folders named by class, the same file names in each, and masks in a folder of their own."""
    for group, name in enumerate(("melanoma", "nevus", "seborrheic_keratosis")):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(per_class):
            content = shaded(100 * group + number, 2 * group)
            (folder / "train" / name / f"{number:03d}.jpg").write_bytes(content)
    return folder


WILD: dict[str, Callable[[Path], Path]] = {
    "isic2019": isic_2019,
    "isic2020": isic_2020,
    "isic_archive": isic_archive,
    "pad_ufes": pad_ufes,
    "folders": class_folders,
}
"""The five builders by the format they must be recognized as."""


def derm7pt(folder: Path, per_class: int = 4) -> Path:
    """Derm7pt: a dermatoscopic and a clinical image in each row, in folders by author."""
    rows = []
    words = ("melanoma (less than 0.76 mm)", "clark nevus", "basal cell carcinoma", "lentigo")
    for group, word in enumerate(words):
        for number in range(per_class):
            author = ("NEL", "Fal")[number % 2]
            (folder / "images" / author).mkdir(parents=True, exist_ok=True)
            names = [f"{author}/{author.title()}{len(rows):03d}{kind}.jpg" for kind in "dc"]
            for name in names:
                (folder / "images" / name).write_bytes(shaded(hash_of(name), group))
            facts = {"case_num": len(rows) + 1, "diagnosis": word, "sex": "female"}
            rows.append({**facts, "location": "back", "clinic": names[1].upper(), "derm": names[0]})
    (folder / "meta").mkdir()
    pd.DataFrame(rows).to_csv(folder / "meta" / "meta.csv", index=False)
    return folder


def hash_of(text: str) -> int:
    """A small number that depends on a text, the same in every process."""
    return sum(ord(letter) * place for place, letter in enumerate(text, 1)) % 10_000


def own_table(
    folder: Path,
    *,
    labels: dict[str, str] | None = None,
    count: int = 12,
    text: Callable[[pd.DataFrame], bytes] | None = None,
) -> Path:
    """A table of somebody's own, German column names, and its images."""
    words = list((labels or {"Melanom": "mel", "Nävus": "nv"}).keys())
    rows = []
    (folder / "bilder").mkdir(parents=True)
    for number in range(count):
        name = f"bild_{number:03d}.jpg"
        word = words[number % len(words)]
        (folder / "bilder" / name).write_bytes(shaded(number, number % len(words) * 3))
        rows.append(
            {
                "Datei": name,
                "Befund": word,
                "Läsion": f"L{number}",
                "Person": f"P{number // 2}",
                "Alter": "42,5" if number else "85+",
            }
        )
    table = pd.DataFrame(rows)
    content = text(table) if text else table.to_csv(index=False).encode()
    (folder / "befunde.csv").write_bytes(content)
    if labels:
        (folder.parent / "mapping.json").write_text(json.dumps(labels))
    return folder


def with_outline(image: str, name: str, folder: Path, values: np.ndarray | None = None) -> None:
    """Write an image and the file of its outline below a folder."""
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / image).write_bytes(shaded(hash_of(image), 1))
    if values is None:
        (folder / name).write_bytes(mask_bytes())
        return
    from PIL import Image

    Image.fromarray(values).save(folder / name)
