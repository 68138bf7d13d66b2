"""Phase two: fine-tuning the network itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.augmentation import mix
from dermlens.data.degradation import degrade
from dermlens.data.pipeline import epoch_order, training_batches
from dermlens.errors import ModelError
from dermlens.model.checkpoint import read_state, restore_state, save_state, stored_value
from dermlens.model.classifier import backbone_layers, head_layers, stage_start
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.distillation import Teachers
from dermlens.model.history import History
from dermlens.model.lite import weights_checksum
from dermlens.model.optimization import (
    RunningAverage,
    TwoRateOptimizer,
    classification_loss,
    distillation_loss,
    learning_rate_factor,
    loss_settings,
)
from dermlens.model.prediction import Predictor
from dermlens.model.replicas import Replicas
from dermlens.model.training_data import TrainingData, training_set
from dermlens.model.weights import Coverage
from dermlens.progress import progress, say

_WORSE_KEY = 15_485_863
FRESH_MOMENTUM = 0.9
"""Of moving statistics that start from nothing: Keras' 0.99 would still remember its
initialization after the few hundred steps of a short training. The running average of weights
smooths what a shorter memory leaves noisy."""


def choose_trainable(
    model: Any, coverage: Coverage, train_from: str
) -> tuple[list[Any], list[Any]]:
    """Freeze what stays, and return the variables to train: (pretrained, fresh).

    Layers before ``train_from`` stay as they are, except those without pretrained weights.
    Pretrained batch normalization runs in inference mode (its statistics are better than those
    of small batches); fresh batch normalization learns, with a shorter memory.
    """
    import keras

    start = stage_start(model, train_from)
    covered = set(coverage.covered)
    pretrained: list[Any] = []
    fresh: list[Any] = []
    for position, layer in enumerate(backbone_layers(model)):
        known = layer.name in covered
        frozen = known and (position < start or isinstance(layer, keras.layers.BatchNormalization))
        layer.trainable = not frozen
        if not known and isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = FRESH_MOMENTUM
        (pretrained if known else fresh).extend(layer.trainable_variables)
    for layer in head_layers(model):
        fresh.extend(layer.trainable_variables)
    return pretrained, fresh


class Finetuning:
    """The second phase of a run in the folder ``out``; picks up where a stored state left off.

    The model takes images of any size; ``teach`` gives the logits to learn from beside the
    labels, or None; ``replicas`` are what trains together, None for this process alone. Of several
    workers the first alone reads and writes files and validates.
    """

    def __init__(
        self,
        model: Any,
        coverage: Coverage,
        configuration: TrainingConfiguration,
        data: TrainingData,
        out: Path,
        history: History,
        teach: Teachers | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self._model, self._teach, self._replicas = model, teach, replicas
        self._first = replicas is None or replicas.first
        self._configuration, self._data, self._history = configuration, data, history
        self._state_path = Path(out) / "checkpoint" / "state.npz"
        self._best_path = Path(out) / "checkpoint" / "best.npz"
        pretrained, fresh = choose_trainable(model, coverage, configuration.train_from)
        self._optimizer = TwoRateOptimizer(
            pretrained,
            fresh,
            pretrained_rate=configuration.pretrained_rate,
            fresh_rate=configuration.fresh_rate,
            weight_decay=configuration.weight_decay,
            clip_norm=configuration.clip_norm,
        )
        statistics = [
            v
            for layer in model.layers
            if layer.trainable and layer.weights
            for v in layer.non_trainable_weights
            if "float" in str(v.dtype)
        ]
        self._average = RunningAverage(
            [*self._optimizer.trained, *statistics], configuration.average_decay
        )
        self._lowest_loss, self._best_epoch = float(np.finfo(np.float32).max), -1
        if replicas is not None:
            replicas.prepare(model)
        self._step = self._make_step() if replicas is None else self._make_shared_step(replicas)
        self._predictor = Predictor(model, batch_size=configuration.batch_size)

    def _make_step(self) -> Any:
        import tensorflow as tf

        model, optimizer, average = self._model, self._optimizer, self._average
        sources = [variable.value for variable in optimizer.trained]
        classes = len(self._configuration.architecture.classes)

        @tf.function(autograph=False, reduce_retracing=True)
        def step(images: Any, labels: Any, weights: Any, number: Any, *others: Any) -> Any:
            truth = tf.one_hot(labels, classes)
            others = self._mixed_too(others, number)
            images, truth, weights = self._mixed(images, truth, weights, number)
            # Outside the tape: nothing of the teachers is to be kept for gradients.
            taught = None if self._teach is None else self._teach(images, others)
            images = self._worse(images, number)
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = self._loss(truth, logits, weights, taught)
            optimizer.apply(tape.gradient(loss, sources))
            average.update(number)
            right = tf.argmax(logits, 1) == tf.argmax(truth, 1)
            return loss, tf.reduce_mean(tf.cast(right, tf.float32))

        return step

    def _make_shared_step(self, replicas: Replicas) -> Any:
        """Return a step like the other, whose batch is shared by all replicas."""
        import tensorflow as tf

        model, optimizer, average = self._model, self._optimizer, self._average
        learned, kept = model.trainable_variables, model.non_trainable_variables
        places = {id(variable): place for place, variable in enumerate(learned)}
        order = [places[id(variable)] for variable in optimizer.trained]
        classes = len(self._configuration.architecture.classes)
        moved: list[int] = []

        def on_replica(values: Any, fixed: Any, *batch: Any) -> Any:
            images, worse, truth, weights, *others = (replicas.share(one) for one in batch)
            taught = None if self._teach is None else self._teach(images, others)
            with tf.GradientTape() as tape:
                tape.watch(values)
                # Nothing is assigned here: replicas on one machine share the variables.
                logits, rest = model.stateless_call(values, fixed, worse, training=True)
                loss = self._loss(truth, logits, weights, taught)
            none = tf.UnconnectedGradients.ZERO
            gradients = tape.gradient(loss, values, unconnected_gradients=none)
            right = tf.cast(tf.argmax(logits, 1) == tf.argmax(truth, 1), tf.float32)
            figures = [tf.reshape(loss, [1]), tf.reshape(tf.reduce_mean(right), [1])]
            flat = [tf.reshape(gradients[place], [-1]) for place in order]
            # Statistics of normalization and the state of dropout, not the frozen layers.
            moved[:] = [k for k, value in enumerate(rest) if value is not fixed[k]]
            return replicas.mean(tf.concat([*flat, *figures], 0)), [rest[k] for k in moved]

        @tf.function(reduce_retracing=True)
        def step(images: Any, labels: Any, weights: Any, number: Any, *others: Any) -> Any:
            truth = tf.one_hot(labels, classes)
            others = self._mixed_too(others, number)
            images, truth, weights = self._mixed(images, truth, weights, number)
            now = [[tf.convert_to_tensor(v.value) for v in group] for group in (learned, kept)]
            batch = (images, self._worse(images, number), truth, weights, *others)
            flat, rest = replicas.run(on_replica, (*now, *batch))
            for place, value in zip(moved, rest, strict=True):
                kept[place].assign(value)
            sizes = [int(np.prod(variable.shape)) for variable in optimizer.trained]
            *parts, loss, right = tf.split(flat, [*sizes, 1, 1])
            shaped = zip(parts, optimizer.trained, strict=True)
            optimizer.apply([tf.reshape(part, variable.shape) for part, variable in shaped])
            average.update(number)
            return loss[0], right[0]

        return step

    def _mixed(self, images: Any, truth: Any, weights: Any, number: Any) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        alpha = self._configuration.mixup
        if alpha == 0:
            return images, truth, weights
        seed = tf.stack([tf.constant(self._configuration.seed % 2**31, tf.int32), number])
        return mix(images, truth, weights, seed, alpha)

    def _mixed_too(self, others: tuple[Any, ...], number: Any) -> tuple[Any, ...]:
        """Return images in other sizes, mixed as those of the student are."""
        import tensorflow as tf

        unused = tf.ones(self._configuration.batch_size)
        return tuple(self._mixed(one, unused, unused, number)[0] for one in others)

    def _worse(self, images: Any, number: Any) -> Any:
        """Return the images as the network gets to see them; teachers saw them as they are."""
        import tensorflow as tf

        # Another key than that of mixing, so that neither decides the other.
        key = (self._configuration.seed + _WORSE_KEY) % 2**31
        seed = tf.stack([tf.constant(key, tf.int32), number])
        return degrade(images, seed, self._configuration.degradation)

    def _loss(self, truth: Any, logits: Any, weights: Any, taught: Any | None) -> Any:
        """Return the loss by the labels, or partly by the teacher's logits."""
        configuration = self._configuration
        by_labels = classification_loss(truth, logits, weights, **loss_settings(configuration))
        if taught is None:
            return by_labels
        share, temperature = configuration.teacher_share, configuration.teacher_temperature
        by_teacher = distillation_loss(taught, logits, weights, temperature=temperature)
        return (1.0 - share) * by_labels + share * by_teacher

    def run(self) -> None:
        """Train the remaining epochs, storing the state after each.

        Raises:
            ModelError: If the loss is no longer a number.
        """
        patience = self._configuration.patience
        for epoch in range(self._start(), self._configuration.epochs):
            waited = epoch - 1 - self._best_epoch
            if patience > 0 and self._best_epoch >= 0 and waited >= patience:
                say(f"Stopping early: no lower validation loss for {waited} epochs.")
                break
            self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        configuration = self._configuration
        size = configuration.size_at(epoch)
        training = training_set(self._data, configuration, size)
        classes = len(configuration.architecture.classes)
        order = epoch_order(
            training.labels, configuration.imbalance, classes, configuration.seed, epoch
        )
        batches = training_batches(
            training,
            order,
            batch_size=configuration.batch_size,
            augmentation=configuration.augmentation,
            seed=configuration.seed,
            epoch=epoch,
            others=self._other_images(),
        )
        figures = self._steps(batches, epoch)
        loss = self._validate(epoch, size, figures, started) if self._first else 0.0
        if self._replicas is not None:
            self._replicas.require_same_weights(weights_checksum(self._model), epoch + 1)
            loss = float(self._replicas.from_first([np.array(loss)])[0])
        # Small images are a warm-up: their losses do not compete for the best epoch.
        if size == configuration.architecture.input_size:
            self._keep_best(loss, epoch)
        if self._first:
            self._store(epoch)

    def _other_images(self) -> list[Any]:
        sizes = () if self._teach is None else self._teach.sizes
        return [training_set(self._data, self._configuration, size).images for size in sizes]

    def _validate(
        self, epoch: int, size: tuple[int, int], figures: dict[str, float], started: float
    ) -> float:
        """Record an epoch, and return its loss on validation."""
        with self._averaged():
            images, rows = self._data.images(size), self._data.rows["validation"]
            logits = self._predictor.logits(images, rows)
        figures["seconds"] = time.monotonic() - started
        row = self._history.add("finetuning", epoch, figures, logits)
        return float(row["validation_loss"])

    def _steps(self, batches: Any, epoch: int) -> dict[str, float]:
        import tensorflow as tf

        per_epoch = self._data.count // self._configuration.batch_size
        warmup = max(round(self._configuration.warmup_epochs * per_epoch), 1)
        total = self._configuration.epochs * per_epoch
        sums = np.zeros(2)
        title = f"Epoch {epoch + 1}/{self._configuration.epochs}"
        with progress(title, per_epoch) as advance:
            for index, (images, labels, weights, *others) in enumerate(batches):
                number = epoch * per_epoch + index
                self._optimizer.scale_rates(learning_rate_factor(number, warmup, total))
                place = tf.constant(number, tf.int32)
                outcome = self._step(images, labels, weights, place, *others)
                sums += [float(value) for value in outcome]
                advance(1, f"loss {sums[0] / (index + 1):.3f}")
        if not np.isfinite(sums[0]):
            raise ModelError(
                f"Training went astray: the loss of epoch {epoch + 1} is not a number. Use lower "
                "learning rates (--pretrained-rate, --fresh-rate) and another --out."
            )
        return {
            "step": float((epoch + 1) * per_epoch),
            "learning_rate": self._optimizer.rate,
            "train_loss": sums[0] / per_epoch,
            "train_accuracy": sums[1] / per_epoch,
        }

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averages in the place of the weights for a while."""
        swap = self._average.swap if self._configuration.average_decay > 0 else int
        swap()
        try:
            yield
        finally:
            swap()

    def _keep_best(self, loss: float, epoch: int) -> None:
        # Balanced accuracy would be decided by the few images of the rarest classes.
        if not loss < self._lowest_loss:  # Neither one that is no number.
            return
        self._lowest_loss, self._best_epoch = loss, epoch
        if self._first:
            with self._averaged():
                save_state(self._best_path, {"weights": self._model.get_weights()}, {})

    def _groups(self) -> dict[str, list[Any]]:
        # model.variables holds the dropout's random state too, which weights leave out.
        return {
            "model": list(self._model.variables),
            "optimizer": self._optimizer.variables,
            "average": self._average.averages,
        }

    def _store(self, epoch: int) -> None:
        facts = {
            "next_epoch": epoch + 1,
            "lowest_loss": self._lowest_loss,
            "best_epoch": self._best_epoch,
            "history": [
                {k: (None if v != v else v) for k, v in row.items()} for row in self._history.rows
            ],
        }
        save_state(self._state_path, self._groups(), facts)

    def _start(self) -> int:
        """Return the epoch to go on with; every worker begins with what the first one holds."""
        epoch = self._restore() if self._first else 0
        if self._replicas is None:
            return epoch
        found = self._replicas.from_first([np.array([epoch, self._lowest_loss, self._best_epoch])])
        self._lowest_loss, self._best_epoch = float(found[0][1]), int(found[0][2])
        for variables in self._groups().values():
            arrays = self._replicas.from_first([stored_value(one) for one in variables])
            for variable, value in zip(variables, arrays, strict=True):
                variable.assign(value)
        return int(found[0][0])

    def _restore(self) -> int:
        if not self._state_path.is_file():
            return 0
        state = restore_state(self._state_path, self._groups())
        self._lowest_loss, self._best_epoch = state.lowest_loss, state.best_epoch
        self._history.rows = [
            {k: (float("nan") if v is None else v) for k, v in row.items()} for row in state.history
        ]
        say(f"Resuming after epoch {state.next_epoch} of {self._configuration.epochs}.")
        return state.next_epoch

    @property
    def best_epoch(self) -> int:
        """The kept epoch; 1 is the first."""
        return self._best_epoch + 1

    def best_weights(self) -> list[np.ndarray]:
        """Return the averaged weights of the best epoch, in the model's order."""
        return read_state(self._best_path)[1]["weights"]
