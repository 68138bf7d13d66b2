"""What the benchmarks share: the machine in words, fair timing, images, and where results go."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError, UsageError
from dermlens.files import written_beside

PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "ai-edge-litert",
    "shap",
    "lime",
    "tf-keras-vis",
    "xplique",
)
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def machine() -> str:
    """Return processor, cores and versions in one sentence."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    flags = ""
    if information.is_file():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in information.read_text().splitlines()
            if ":" in line
        )
        model = fields.get("model name", model)
        known = [f for f in ("avx2", "avx512f", "avx512_vnni") if f in fields.get("flags", "")]
        flags = f" ({', '.join(known)})" if known else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"{name} {installed}" for name in PACKAGES if (installed := _version(name))]
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}{flags}, {cores} cores{load}; Python {platform.python_version()}, "
        f"{', '.join(found)}; {time.strftime('%Y-%m-%d')}."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def alternating(works: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Return seconds (repeats, works), every work once per round after one that does not count.

    In turn, so that whatever else the machine does meanwhile meets all of them alike.
    """
    for work in works:
        work()
    seconds = np.zeros((repeats, len(works)))
    for row in seconds:
        for position, work in enumerate(works):
            start = time.perf_counter()
            work()
            row[position] = time.perf_counter() - start
    return seconds


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean Pearson correlation of maps (N, H, W)."""
    from dermlens.quality.agreement import pearson

    return float(pearson(np.asarray(first), np.asarray(second)).mean())


def given_images(data: Path | None, count: int, size: tuple[int, int]) -> np.ndarray:
    """Return validation images of a prepared data set, or drawn ones: uint8 (N, H, W, 3)."""
    if data is not None:
        from dermlens.serve.scorer_agreement import images_of_split

        return images_of_split(data, "validation", count, size)[:count]
    from dermlens.data.synthetic import draw
    from dermlens.labels import HAM10000

    return np.stack([draw(HAM10000.codes[i % 7], i, size)[0] for i in range(count)])


def given_model(bundle: Path | None, size: tuple[int, int]) -> Any:
    """Return a bundle's network for images of a size, or a ResNet50 with untrained weights."""
    from dermlens.model.bundle import load_bundle
    from dermlens.model.classifier import Architecture, build_classifier

    if bundle is None:
        return build_classifier(Architecture("resnet50", size))
    loaded = load_bundle(bundle)
    if loaded.input_size == size:
        return loaded.model
    model = build_classifier(Architecture(loaded.architecture.backbone, size, loaded.classes))
    model.set_weights(loaded.model.get_weights())
    return model


def model_and_scorer(
    path: Path | None, size: tuple[int, int], choice: str
) -> tuple[Any, Any | None]:
    """Return the network as ``given_model`` does, and a bundle's int8 copy if that is the choice.

    Raises:
        UsageError: If the copy is asked for without a bundle.
    """
    model = given_model(path, size)
    if choice == "float32":
        return model, None
    from dermlens.model.bundle import load_bundle
    from dermlens.model.int8_copy import int8_copy

    if path is None:
        raise UsageError("An int8 scorer belongs to a bundle. Give --bundle.")
    bundle = load_bundle(path)
    if bundle.input_size != size:
        # The folder's copy is of the bundle's own size.
        shape = replace(bundle.architecture, input_size=size)
        bundle = replace(bundle, path=Path("resized"), architecture=shape, model=model)
    return model, int8_copy(bundle).scorer(model)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    head = f"| {' | '.join(map(str, table.columns))} |"
    rule = f"|{'---|' * len(table.columns)}"
    rows = [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)]
    return "\n".join([head, rule, *rows])


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of a page.

    Raises:
        DataError: If the page has no such place.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    content = page.read_text()
    if begin not in content or end not in content:
        raise DataError(f"{page} has no place for {name}. Add {begin} and {end}.")
    before, rest = content.split(begin, 1)
    with written_beside(page) as building:
        building.write_text(f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks of explanations take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bundle", type=Path, help="default: a ResNet50 with untrained weights")
    parser.add_argument("--data", type=Path, help="prepared data set; default: drawn images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="small budgets; figures mean nothing")
    parser.add_argument("--out", type=Path, help="folder; default docs/performance.md and images")
    return parser


def publish(out: Path | None, name: str, text: str, figure: Any) -> None:
    """Write a section and its figure into a folder, or into the documentation."""
    from dermlens.report.evaluation_report import write_figure

    folder = PAGE.parent / "images" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    write_figure(folder / f"performance_{name}.png", figure)
    if out is None:
        write_section(PAGE, name, f"{text}\n\n![{name}](images/performance_{name}.png)")
    else:
        with written_beside(out / f"{name}.md") as building:
            building.write_text(text + "\n")
    print(text)
