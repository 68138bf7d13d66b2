"""The record of a training run: CSV, TensorBoard, and one line per epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.files import write_csv
from dermlens.model import metrics
from dermlens.model.calibration import negative_log_likelihood, probabilities
from dermlens.model.training_data import TrainingData
from dermlens.progress import duration, say

COLUMNS: tuple[str, ...] = (
    "phase",
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_balanced_accuracy",
    "validation_macro_auc",
    "seconds",
)


class History:
    """Collects one row per epoch, in ``out/history.csv``; ``keep`` goes on from the rows there."""

    def __init__(self, out: Path, data: TrainingData, keep: bool) -> None:
        self._path = Path(out) / "history.csv"
        self._logs = Path(out) / "logs"
        self._truth = data.labels[data.rows["validation"]]
        self._writer: Any = None
        self.rows: list[dict[str, Any]] = []
        if keep and self._path.is_file():
            stored = pd.read_csv(self._path).to_dict("records")
            self.rows = [{str(k): v for k, v in row.items()} for row in stored]

    def add(
        self, phase: str, epoch: int, figures: dict[str, float], logits: np.ndarray
    ) -> dict[str, Any]:
        """Add an epoch (0 is the first) with its validation logits; return the whole row."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS, float("nan"))
        row |= {"phase": phase, "epoch": epoch + 1, **figures, **_validation(logits, self._truth)}
        self.rows = [r for r in self.rows if (r["phase"], r["epoch"]) != (phase, epoch + 1)]
        self.rows.append(row)
        write_csv(self._path, self.table())
        self._log(row)
        seconds = row["seconds"]
        took = f", {duration(seconds)}" if np.isfinite(seconds) else ""
        say(
            f"{phase} {epoch + 1}: train loss {row['train_loss']:.3f}, accuracy "
            f"{row['train_accuracy']:.3f}; validation loss {row['validation_loss']:.3f}, "
            f"accuracy {row['validation_accuracy']:.3f}, balanced accuracy "
            f"{row['validation_balanced_accuracy']:.3f}, AUC {row['validation_macro_auc']:.3f}"
            f"{took}"
        )
        return row

    def _log(self, row: dict[str, Any]) -> None:
        """Write TensorBoard scalars (with ``tf.summary.write``, which needs no TensorBoard)."""
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._logs))
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "scalars"
        metadata.data_class = 1
        before = {"head": 0, "finetuning": sum(r["phase"] == "head" for r in self.rows)}
        step = before[row["phase"]] + row["epoch"]
        with self._writer.as_default():
            for name, value in row.items():
                if isinstance(value, float) and np.isfinite(value):
                    scalar = tf.constant(value, tf.float32)
                    tf.summary.write(name, scalar, step=step, metadata=metadata)
        self._writer.flush()

    def table(self) -> pd.DataFrame:
        """Return all rows."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))


def _validation(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of the uncalibrated model at argmax."""
    one, shares = np.ones((1, len(truth))), probabilities(logits)
    classes, predicted = shares.shape[1], logits.argmax(axis=1)
    decided = metrics.label_metrics(metrics.confusion_matrices(truth, predicted, classes, one))
    areas = metrics.probability_metrics(shares, truth, one)["macro_auc"]
    return {
        "validation_loss": negative_log_likelihood(logits, truth),
        "validation_accuracy": float(decided["accuracy"][0]),
        "validation_balanced_accuracy": float(decided["balanced_accuracy"][0]),
        "validation_macro_auc": float(areas[0]),
    }
