"""Predict and explain images with an exported artifact; nothing of dermlens is needed.

    python inference.py ARTIFACT IMAGE_OR_FOLDER_OR_GLOB... [--json F] [--csv F] [--explain DIR]

ARTIFACT is what 'dermlens export' wrote: the folder saved_model (needs tensorflow) or the file
model.tflite (needs ai-edge-litert). Besides, only numpy and pillow are needed.

Exit codes: 0 all images were predicted; 1 some could not be read, the others were predicted;
2 nothing could be done (no such artifact, a package is missing, no image found).

Research and education only, not a medical device.
"""

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
MAX_PIXELS = 100_000_000
NOTE = "Research and education only, not a medical device."

# The perceptually uniform color map "inferno" (CC0), every fifth of its 256 colors.
_COLORS = (
    "00000402020c0504170a072210092d160b391e0c45260c512f0a5b380962400a67490b6a510e6c59106e"
    "61136e69166e71196e781c6d801f6c88226a902568982766a02a63a82e5fb0315bb73557bf3952c63d4d"
    "cc4248d34743d94d3ddf5337e45a31e9612bed6925f1711ff47918f78212f98b0bfa9407fb9d07fca60c"
    "fcb014fbba1ffac42af8cd37f6d746f4e156f2ea69f2f27df5f992fcffa4"
)


MapReader = Callable[[np.ndarray], np.ndarray]


class Stop(Exception):
    """Nothing can be done; the message says why and what to do."""


class Unreadable(Exception):
    """One image cannot be used; the message says why."""


# Reading images ------------------------------------------------------------------------------


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file completely into an upright RGB image.

    EXIF orientation is applied; palette, gray, CMYK and 16-bit images become RGB; transparency is
    laid over white.

    Raises:
        Unreadable: If the file is missing, damaged, too large or an animation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Unreadable(
                        f"has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}"
                    )
                if getattr(image, "is_animated", False) and image.format in ("GIF", "WEBP", "PNG"):
                    raise Unreadable("is an animation, not one image")
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"has far more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("is empty, or no image of a known format") from None
    except FileNotFoundError:
        raise Unreadable("does not exist") from None
    except Exception as error:  # Damaged files make decoders fail in many ways.
        reason = str(error).replace(str(path), "the file").strip() or type(error).__name__
        raise Unreadable(f"cannot be decoded as an image ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any mode into RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        levels = np.clip(values / top, 0, 1) * 255 + 0.5
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        upper = image.convert("RGBA")
        white = Image.new("RGBA", upper.size, "white")
        return Image.alpha_composite(white, upper).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scale and center-crop to (height, width), aspect ratio kept; uint8 (height, width, 3)."""
    height, width = size
    kept_width, kept_height = float(image.width), float(image.height)
    if image.height * width <= image.width * height:
        kept_width = image.height * width / height
    else:
        kept_height = image.width * height / width
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def find_images(patterns: list[str]) -> list[Path]:
    """Return files for paths, folders (searched through) and globs; a missing path stays in.

    Raises:
        Stop: If there is no file at all.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = path.rglob("*")
            found += sorted(p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            inside = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            found += sorted(p for p in inside if p.is_file()) or [path]
    found = list(dict.fromkeys(found))
    if not any(path.is_file() for path in found):
        raise Stop(f"No image found in {', '.join(patterns)}. Check the path.")
    return found


# Running artifacts ---------------------------------------------------------------------------


class SavedModel:
    """A TensorFlow SavedModel written by 'dermlens export'."""

    batch = 16

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            import tensorflow as tf
        except ImportError:
            raise Stop(
                "A SavedModel needs TensorFlow. Install it: pip install tensorflow"
            ) from None
        self.facts = read_facts(path / "metadata.json")
        self._signatures = tf.saved_model.load(str(path)).signatures
        self._tf = tf

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, C) of uint8 images (N, H, W, 3)."""
        outputs = self._signatures["serving_default"](images=self._tf.constant(images))
        return outputs["probabilities"].numpy()

    def explained(self, images: np.ndarray) -> tuple[np.ndarray, MapReader]:
        """Return probabilities, and a function from targets (N,) to maps (N, H, W)."""

        def maps(targets: np.ndarray) -> np.ndarray:
            outputs = self._signatures["explain_grad_cam"](
                images=self._tf.constant(images), targets=self._tf.constant(targets)
            )
            return outputs["maps"].numpy()

        return self.probabilities(images), maps


class LiteRT:
    """A .tflite file written by 'dermlens export'."""

    batch = 1

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise Stop(
                "A .tflite file needs LiteRT. Install it: pip install ai-edge-litert"
            ) from None
        self.facts = read_facts(path.with_suffix(".json"))
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
            self._run = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            raise Stop(f"{path} is no valid .tflite file ({error}). Export it again.") from error

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (1, C) of one uint8 image (1, H, W, 3)."""
        return self._run(image=images.astype(np.float32))["probabilities"]

    def explained(self, images: np.ndarray) -> tuple[np.ndarray, MapReader]:
        """Return probabilities, and a function from the target (1,) to the map (1, H, W)."""
        outputs = self._run(image=images.astype(np.float32))
        return outputs["probabilities"], lambda targets: outputs["maps"][:, targets[0]]


def read_facts(path: Path) -> dict:
    """Read the metadata beside an artifact."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Stop(
            f"{path} is missing or damaged. Copy it together with the artifact, as "
            "'dermlens export' wrote it."
        ) from None


def load(path: Path) -> SavedModel | LiteRT:
    """Load an artifact.

    Raises:
        Stop: If there is none, or the package that runs it is missing.
    """
    if (path / "saved_model.pb").is_file():
        return SavedModel(path)
    if path.is_file() and path.suffix == ".tflite":
        return LiteRT(path)
    raise Stop(f"{path} is neither a SavedModel folder nor a .tflite file. Check the path.")


# Predicting ----------------------------------------------------------------------------------


def predict(
    artifact: SavedModel | LiteRT,
    files: list[Path],
    explain: Path | None = None,
    target: str | None = None,
) -> Iterator[dict]:
    """Yield one record per file, in order; a file that cannot be read has an ``error``.

    Args:
        artifact: From ``load``.
        files: Images.
        explain: Folder for Grad-CAM overlays, or None.
        target: Code of the diagnosis to explain; default the decision.
    """
    facts = artifact.facts
    size = (int(facts["input_size"][0]), int(facts["input_size"][1]))
    names: set[str] = set()
    batches = [files[at : at + artifact.batch] for at in range(0, len(files), artifact.batch)]
    for part, pictures in ahead(lambda part: [read_or_error(path, size) for path in part], batches):
        records = [
            {"path": str(path), "error": picture if isinstance(picture, str) else ""}
            for path, picture in zip(part, pictures, strict=True)
        ]
        good = [record for record in records if not record["error"]]
        if good:
            images = np.stack([picture for picture in pictures if not isinstance(picture, str)])
            predict_batch(artifact, images, good, explain, target, names)
        yield from records


def read_or_error(path: Path, size: tuple[int, int]) -> np.ndarray | str:
    """Return an image file as uint8 (height, width, 3), or the sentence that says why not."""
    try:
        return fit(read_rgb(path), size)
    except Unreadable as error:
        return f"{path} {error}."


def ahead(work: Callable, items: list) -> Iterator[tuple]:
    """Yield (item, work(item)) in order, worked out in another thread up to two items ahead.

    Files are decoded while the model computes, and never more than three batches are held.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = deque((item, pool.submit(work, item)) for item in items[:2])
        for item in [*items[2:], None, None][: len(items)]:
            first, future = waiting.popleft()
            if item is not None:
                waiting.append((item, pool.submit(work, item)))
            yield first, future.result()


def predict_batch(
    artifact: SavedModel | LiteRT,
    images: np.ndarray,
    records: list[dict],
    explain: Path | None,
    target: str | None,
    names: set[str],
) -> None:
    """Fill in the records of readable images and write their overlays."""
    codes = [entry["code"] for entry in artifact.facts["classes"]]
    if explain is None:
        probabilities = artifact.probabilities(images)
    else:
        probabilities, maps = artifact.explained(images)
    decisions = decide(probabilities, artifact.facts)
    for record, row, decision in zip(records, probabilities, decisions, strict=True):
        record |= describe(row.astype(float), int(decision), artifact.facts)
    if explain is not None:
        chosen = decisions if target is None else np.full_like(decisions, codes.index(target))
        for record, image, values, goal in zip(records, images, maps(chosen), chosen, strict=True):
            path = explain / free_name(Path(record["path"]).stem, names)
            Image.fromarray(overlay(image, values)).save(path)
            record["explained"], record["overlay"] = codes[goal], str(path)


def decide(probabilities: np.ndarray, facts: dict) -> np.ndarray:
    """Return the class positions that the stored decision rule chooses, int32 (N,)."""
    rule = facts["decision_rule"]
    adjusted = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    adjusted -= rule["tau"] * np.asarray(rule["log_prior"])
    return adjusted.argmax(axis=1).astype(np.int32)


def describe(probabilities: np.ndarray, decision: int, facts: dict) -> dict:
    """Return decision, probabilities and flags of one image."""
    codes = [entry["code"] for entry in facts["classes"]]
    flags = {}
    for name, point in facts["operating_points"].items():
        score = sum(probabilities[codes.index(code)] for code in point["codes"])
        flags[name] = bool(score >= point["threshold"])
    return {
        "decision": codes[decision],
        "name": facts["classes"][decision]["name"],
        "probabilities": dict(zip(codes, map(float, probabilities), strict=True)),
        "flags": flags,
    }


# Overlays ------------------------------------------------------------------------------------


def overlay(image: np.ndarray, values: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lay an attribution map over an image: brighter means more evidence for the diagnosis.

    Args:
        image: uint8 RGB (H, W, 3).
        values: Raw map (H, W); the brightest 0.5 percent are clipped.
        opacity: Of the map, 0..1.
    """
    values = np.nan_to_num(values.astype(np.float64))
    values = values - values.min()
    top = np.percentile(values, 99.5) or values.max()
    level = np.clip(values / top, 0, 1) * 255 if top > 0 else values
    anchors = np.frombuffer(bytes.fromhex("".join(_COLORS)), np.uint8).reshape(-1, 3)
    places = np.arange(len(anchors)) * 5
    colors = np.stack([np.interp(level, places, anchors[:, k]) for k in range(3)], axis=-1)
    mixed = (1 - opacity) * image + opacity * colors
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def free_name(stem: str, taken: set[str]) -> str:
    """Return a file name that no other image of this run has."""
    name, number = f"{stem}_grad_cam.png", 2
    while name.lower() in taken:
        name, number = f"{stem}_{number}_grad_cam.png", number + 1
    taken.add(name.lower())
    return name


# Command line --------------------------------------------------------------------------------


def line(record: dict) -> str:
    """Return one line for people."""
    if record["error"]:
        return f"error: {record['error']}"
    probability = record["probabilities"][record["decision"]]
    text = f"{record['path']}: {record['name']} ({record['decision']}), p = {probability:.3f}"
    if record["flags"].get("melanoma") and record["decision"] != "mel":
        text += f"; melanoma not excluded (p = {record['probabilities']['mel']:.3f})"
    return text


def csv_row(record: dict, facts: dict) -> dict:
    """Return a record as one flat row."""
    row = {key: record.get(key, "") for key in ("path", "decision", "name", "error", "overlay")}
    for entry in facts["classes"]:
        row[f"probability_{entry['code']}"] = record.get("probabilities", {}).get(entry["code"], "")
    for name in facts["operating_points"]:
        row[f"flag_{name}"] = record.get("flags", {}).get(name, "")
    return row


def write(path: Path, text: str) -> None:
    """Write a text file under its final name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, path)


def write_tables(options: argparse.Namespace, records: list[dict], facts: dict) -> None:
    """Write the files asked for."""
    if options.json:
        about = {key: facts.get(key) for key in ("artifact", "dermlens_version", "license")}
        content = {**about, "note": NOTE, "images": records}
        write(Path(options.json), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        print(f"Wrote {options.json}")
    if options.csv:
        stream = io.StringIO()
        rows = [csv_row(record, facts) for record in records]
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(Path(options.csv), stream.getvalue())
        print(f"Wrote {options.csv}")


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", metavar="ARTIFACT", help="saved_model folder or .tflite file")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image, folder or glob")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the results as a table")
    parser.add_argument("--explain", metavar="DIR", help="write Grad-CAM overlays")
    parser.add_argument("--target", metavar="CODE", help="explain this diagnosis, such as mel")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run; return the exit code."""
    options = arguments(given)
    try:
        files = find_images(options.images)
        artifact = load(Path(options.artifact))
        codes = [entry["code"] for entry in artifact.facts["classes"]]
        if options.target is not None and options.target not in codes:
            raise Stop(f"Unknown diagnosis {options.target!r}. Use one of: {', '.join(codes)}.")
        explain = Path(options.explain) if options.explain else None
        if explain is not None:
            explain.mkdir(parents=True, exist_ok=True)
        records = []
        for record in predict(artifact, files, explain, options.target):
            print(line(record), flush=True)
            records.append(record)
        write_tables(options, records, artifact.facts)
    except (Stop, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if artifact.facts.get("synthetic"):
        print("This model was trained on drawn images only; real images mean nothing to it.")
    print(NOTE)
    return 1 if any(record["error"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
