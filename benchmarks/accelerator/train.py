"""Train three later stages of a classifier on an accelerator, in the time there is.

    python benchmarks/accelerator/train.py FOLDER --out OUT --seconds densenet=80,large=48 \
        --deadline 316

FOLDER is what ``pack.py`` writes. A DenseNet169 is trained on large images; it and the start teach
a ResNet50 on large images; all three teach one on small images, which sees them made worse. Losses,
schedules and settings are those of ``dermlens train``; a stage gets as many epochs as fit into its
seconds, the last one into what is left until the deadline. Needs PyTorch, Pillow and NumPy.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from networks import Network
from pixels import augment, degrade, mixed
from torch import Tensor

BEGAN = time.monotonic()
SMALL, LARGE = (192, 256), (240, 320)


@dataclass(frozen=True)
class Stage:
    """One training; names are those of ``TrainingConfiguration``."""

    name: str
    backbone: str
    size: tuple[int, int]
    teachers: tuple[str, ...]
    seed: int
    teacher_share: float
    worse: bool
    pretrained_rate: float = 3e-4
    fresh_rate: float = 3e-4
    batch_size: int = 128
    mixup: float = 0.2
    average_decay: float = 0.992


STAGES = (
    Stage("densenet", "densenet169", LARGE, (), 31, 0.0, False, 2.4e-4, 1.6e-3),
    Stage("large", "resnet50", LARGE, ("densenet", "start"), 32, 0.7, True),
    Stage("student", "resnet50", SMALL, ("densenet", "large", "start"), 33, 0.8, True),
)


def say(*words: object) -> None:
    print(f"{time.monotonic() - BEGAN:7.1f}", *words, flush=True)


class Data:
    """Settings, and labels and pictures of both sizes on the accelerator."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.settings = json.loads((folder / "settings.json").read_text())
        with np.load(folder / "index.npz") as index:
            lengths, self.truth = index["lengths"], index["validation_labels"]
            self.labels = torch.tensor(index["labels"], dtype=torch.long, device=device)
            self.weights = torch.tensor(index["weights"], device=device)
        with np.load(folder / "hairs.npz") as hairs:
            self.hairs = tuple(torch.tensor(hairs[k], device=device) for k in hairs.files)
        pixels = decoded((folder / "pictures.bin").read_bytes(), lengths)
        count = len(self.labels)
        self.training = {k: torch.tensor(v[:count], device=device) for k, v in pixels.items()}
        self.validation = {k: torch.tensor(v[count:], device=device) for k, v in pixels.items()}


def decoded(content: bytes, lengths: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Return all pictures in both sizes, uint8 (N, H, W, 3)."""
    from PIL import AvifImagePlugin, Image

    # Pictures are decoded side by side; several threads each would be in each other's way.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pixels = {size: np.empty((len(lengths), *size, 3), np.uint8) for size in (SMALL, LARGE)}
    ends = np.cumsum(lengths)

    def decode(number: int) -> None:
        stored = content[ends[number] - lengths[number] : ends[number]]
        image = Image.open(io.BytesIO(stored)).convert("RGB")
        for size, into in pixels.items():
            into[number] = image.resize(size[::-1], Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(lengths))))
    return pixels


def figures(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the figures of validation that ``history.csv`` of a run holds, but for the AUC."""
    right = logits.argmax(1) == truth
    log_p = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 1).numpy()
    return {
        "validation_loss": float(-log_p[np.arange(len(truth)), truth].mean()),
        "validation_accuracy": float(right.mean()),
        "validation_balanced_accuracy": float(
            np.mean([right[truth == k].mean() for k in np.unique(truth)])
        ),
    }


def logits_of(network: Network, pixels: Tensor) -> np.ndarray:
    with torch.no_grad():
        found = [network(part.permute(0, 3, 1, 2).float()) for part in pixels.split(128)]
    return torch.cat(found).cpu().numpy()


class Training:
    """One stage at work."""

    def __init__(
        self, stage: Stage, network: Network, teachers: Sequence[Network], data: Data
    ) -> None:
        self.stage, self.network, self.teachers, self.data = stage, network, teachers, data
        self.device = data.labels.device
        self._draws = torch.Generator(self.device).manual_seed(stage.seed)
        self._shares = np.random.default_rng([stage.seed, 99])
        self.names = network.trained
        network.fold(self.names)
        self._learned = [network.values[name].requires_grad_() for name in self.names]
        self.average = [value.detach().clone() for value in self._learned]
        self._optimizer = self._adamw()
        self.per_epoch = len(data.labels) // stage.batch_size

    def _adamw(self) -> Any:
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, value in zip(self.names, self._learned, strict=True):
            fresh = name.startswith("logits") and not self.stage.teachers
            groups.setdefault((fresh, value.ndim < 2), []).append(value)
        settings = [
            {
                "params": values,
                "peak": self.stage.fresh_rate if fresh else self.stage.pretrained_rate,
                "weight_decay": 0.0 if plain else self.data.settings["weight_decay"],
            }
            for (fresh, plain), values in groups.items()
        ]
        return torch.optim.AdamW(settings, lr=0.0, eps=1e-7, fused=self.device.type == "cuda")

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return images made worse, truth, weights and what the teachers say of the images."""
        stage, data = self.stage, self.data
        count = len(rows)
        draws = torch.rand((count, 16), generator=self._draws, device=self.device)
        worse = torch.rand((count, 10), generator=self._draws, device=self.device)
        drawn = self._shares.beta(stage.mixup, stage.mixup, count)
        share = torch.tensor(np.maximum(drawn, 1 - drawn), dtype=torch.float32).to(self.device)
        seen = {}
        for size in {self.network.size, *(teacher.size for teacher in self.teachers)}:
            pixels = data.training[size][rows].permute(0, 3, 1, 2).float()
            seen[size] = mixed(augment(pixels, draws, data.settings["augmentation"]), share)
        classes = self.network.values["logits__bias"].shape[0]
        truth = mixed(functional.one_hot(data.labels[rows], classes).float(), share)
        said = [teacher(seen[teacher.size]) for teacher in self.teachers]
        taught = torch.stack(said).mean(0) if said else None
        how = data.settings["degradation"] if stage.worse else None
        images = degrade(seen[self.network.size], worse, how, data.hairs)
        return images, truth, mixed(data.weights[rows], share), taught

    def _loss(self, logits: Tensor, truth: Tensor, weights: Tensor, taught: Tensor | None) -> Any:
        by_labels = (-(truth * functional.log_softmax(logits, 1)).sum(1) * weights).mean()
        if taught is None:
            return by_labels
        soft, share = self.data.settings["teacher_temperature"], self.stage.teacher_share
        log_q = functional.log_softmax(taught / soft, 1)
        divergence = (log_q.exp() * (log_q - functional.log_softmax(logits / soft, 1))).sum(1)
        return (1 - share) * by_labels + share * (divergence * weights).mean() * soft**2

    def step(self, rows: Tensor, factor: float, number: int, learn: bool = True) -> Tensor:
        """Take a step at a share of the peak rates; return its loss."""
        stage = self.stage
        with torch.no_grad():
            images, truth, weights, taught = self._batch(rows)
            width = self.network.values["logits__kernel"].shape[0]
            kept = torch.rand((len(rows), width), generator=self._draws, device=self.device)
            dropout = self.data.settings["dropout"]
            keep = (kept >= dropout).float() / (1 - dropout)
        loss = self._loss(self.network(images, keep), truth, weights, taught)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if learn:
            for group in self._optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            clip = self.data.settings["clip_norm"]
            torch.nn.utils.clip_grad_norm_(self._learned, clip, foreach=True)
            self._optimizer.step()
            share = 1 - min(stage.average_decay, (1 + number) / (10 + number))
            torch._foreach_lerp_(self.average, [v.detach() for v in self._learned], share)
        return loss.detach()

    def validated(self) -> np.ndarray:
        """Return the logits of validation with the averages in place."""
        self._swap()
        found = logits_of(self.network, self.data.validation[self.network.size])
        self._swap()
        return found

    def _swap(self) -> None:
        with torch.no_grad():
            for value, average in zip(self._learned, self.average, strict=True):
                kept = value.detach().clone()
                value.copy_(average)
                average.copy_(kept)

    def epochs_in(self, seconds: float) -> int:
        """Try some steps without learning; return how many epochs fit."""
        began = time.monotonic()
        rows = torch.arange(self.stage.batch_size, device=self.device)
        for trial in range(9):
            if trial == 3:
                float(self.step(rows, 0.0, 0, learn=False))
                steady = time.monotonic()
            loss = self.step(rows, 0.0, 0, learn=False)
        float(loss)
        each = (time.monotonic() - steady) / 6 * 1.08
        left = seconds - (time.monotonic() - began)
        say(f"{self.stage.name}: {self.stage.batch_size / each:.0f} images per second")
        return max(int(left / (each * self.per_epoch + 0.5)), 2)

    def settle(self, best: Mapping[str, Tensor]) -> None:
        """Put weights in place for good."""
        with torch.no_grad():
            for name in self.names:
                self.network.values[name].requires_grad_(False).copy_(best[name])
        self.network.fold()


def factor_at(number: int, warmup: int, total: int) -> float:
    """Return the share of the peak rate, as ``optimization.learning_rate_factor``."""
    if number < warmup:
        return (number + 1) / warmup
    done = (number - warmup) / max(total - warmup, 1)
    return float(0.5 * (1 + np.cos(np.pi * min(done, 1.0))))


def run(training: Training, seconds: float, out: Path) -> None:
    """Train; keep the epoch of the lowest validation loss in the network and in ``out``."""
    stage, data, per_epoch = training.stage, training.data, training.per_epoch
    epochs = training.epochs_in(seconds)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    best_epoch, best_logits = 0, np.empty(0)
    for epoch in range(epochs):
        began, losses = time.monotonic(), []
        order = np.random.default_rng([stage.seed, epoch]).permutation(len(data.labels))
        rows = torch.tensor(order[: per_epoch * stage.batch_size], device=training.device)
        for index, chosen in enumerate(rows.split(stage.batch_size)):
            number = epoch * per_epoch + index
            factor = factor_at(number, per_epoch, epochs * per_epoch)
            losses.append(training.step(chosen, factor, number))
        logits = training.validated()
        row = {"epoch": epoch + 1, "step": (epoch + 1) * per_epoch}
        row |= {"learning_rate": stage.pretrained_rate * factor}
        row |= {"train_loss": float(torch.stack(losses).mean()), **figures(logits, data.truth)}
        history.append(row | {"seconds": time.monotonic() - began})
        say(stage.name, {k: round(v, 4) for k, v in history[-1].items()})
        if not np.isfinite(row["train_loss"]):
            raise SystemExit("The loss is no longer a number.")
        if row["validation_loss"] <= min(past["validation_loss"] for past in history):
            best_epoch, best_logits = epoch + 1, logits
            pairs = zip(training.names, training.average, strict=True)
            best = {name: value.clone() for name, value in pairs}
    training.settle(best)
    np.savez(out / f"{stage.name}.npz", **training.network.stored({}))
    np.save(out / f"{stage.name}_logits.npy", best_logits)
    facts = {**asdict(stage), "epochs": epochs, "best_epoch": best_epoch, "history": history}
    (out / f"{stage.name}.json").write_text(json.dumps(facts))


def read_weights(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", default="densenet=80,large=48")
    parser.add_argument("--deadline", type=float, default=316, help="seconds from the start")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = {k: float(v) for k, v in (one.split("=") for one in options.seconds.split(","))}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 4
    data = Data(options.folder, device)
    weights = {name: read_weights(options.folder / f"{name}.npz") for name in ("densenet", "start")}
    networks = {"start": Network("resnet50", SMALL, weights["start"], device)}
    networks["start"].fold()
    for stage in STAGES:
        start = weights["start" if stage.teachers else "densenet"]
        networks[stage.name] = Network(stage.backbone, stage.size, start, device)
        teachers = [networks[name] for name in stage.teachers]
        left = options.deadline - (time.monotonic() - BEGAN)
        training = Training(stage, networks[stage.name], teachers, data)
        run(training, seconds.get(stage.name, left), options.out)


if __name__ == "__main__":
    main()
