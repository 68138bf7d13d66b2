"""Training on several workers or GPUs: what each replica of the network computes, put together.

Every worker is a process with the whole network of its own. In each step all of them make the same
augmented batch, each replica computes the gradient of its slice, and one all-reduce gives all of
them the mean. What follows (clipping, the optimizer, the running average) is computed by every
worker alike, so their weights stay equal bit by bit, and are compared after each epoch.

Replicas find each other by TensorFlow's ``MultiWorkerMirroredStrategy`` (several processes) or
``MirroredStrategy`` (several GPUs of one). Variables live outside of the strategy: an optimizer
inside would clip each replica's gradient before they are summed up, which is another training.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dermlens.errors import ModelError, UsageError
from dermlens.progress import say

CLUSTER = "TF_CONFIG"
"""Environment variable by which workers know each other, as Ray, SLURM and Kubernetes set it."""
_LEGACY = "TF_USE_LEGACY_KERAS"


class Replicas:
    """The replicas that train together.

    Args:
        strategy: TensorFlow's; only its communication is used.
        rank: Of this worker, 0 is the first, the one that writes.
        workers: Number of workers.
    """

    def __init__(self, strategy: Any, rank: int = 0, workers: int = 1) -> None:
        self.strategy, self.rank, self.workers = strategy, rank, workers
        self.count = int(strategy.num_replicas_in_sync)
        self._senders: dict[str, Any] = {}

    @property
    def first(self) -> bool:
        """True for the worker that validates and writes."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raise UsageError unless a batch can be cut into equal slices."""
        if batch_size % self.count:
            raise UsageError(
                f"A batch of {batch_size} images cannot be shared equally by {self.count} "
                f"replicas. Use a --batch-size that is a multiple of {self.count}."
            )

    def share(self, whole: Any) -> Any:
        """Return this replica's slice of a batch (B, ...); to be called inside ``run``."""
        import tensorflow as tf

        size = tf.shape(whole)[0] // self.count
        place = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        return whole[place * size : (place + 1) * size]

    def mean(self, flat: Any) -> Any:
        """Return the mean of a vector over all replicas; to be called inside ``run``."""
        import tensorflow as tf

        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, flat)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Run a function on every replica; return what the first one of this worker returned."""
        import tensorflow as tf

        results = self.strategy.run(function, args=arguments)
        local = self.strategy.experimental_local_results
        return tf.nest.map_structure(lambda value: local(value)[0], results)

    def from_first(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the first worker's arrays; all workers call it, with arrays of the same shapes."""
        arrays = [np.asarray(value) for value in values]
        if self.workers == 1 or not arrays:
            return arrays
        found: list[np.ndarray] = [None] * len(arrays)  # type: ignore[list-item]
        for wide, kinds in ((np.float64, "f"), (np.int64, "iub")):
            chosen = [k for k, array in enumerate(arrays) if array.dtype.kind in kinds]
            if not chosen:
                continue
            # Half the traffic, and as exact, where no number is double.
            small = kinds == "f" and all(arrays[k].dtype.itemsize <= 4 for k in chosen)
            flat = np.concatenate([arrays[k].ravel().astype(wide) for k in chosen])
            sent = self._sent(flat.astype(np.float32) if small else flat)
            ends = np.cumsum([arrays[k].size for k in chosen])[:-1]
            for k, part in zip(chosen, np.split(sent, ends), strict=True):
                found[k] = part.astype(arrays[k].dtype).reshape(arrays[k].shape)
        return found

    def _sent(self, flat: np.ndarray) -> np.ndarray:
        """Return the first worker's vector."""
        import tensorflow as tf

        def add(values: Any) -> Any:
            context = tf.distribute.get_replica_context()
            # The others add nothing: a sum with zeros is exact.
            mine = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), values.dtype)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine * values)

        if flat.dtype.name not in self._senders:
            of_any_length = [tf.TensorSpec([None], flat.dtype)]
            self._senders[flat.dtype.name] = tf.function(
                lambda values: self.run(add, (values,)), input_signature=of_any_length
            )
        given = flat if self.first else np.zeros_like(flat)
        return np.asarray(self._senders[flat.dtype.name](given).numpy())

    def require_same(self, text: str, what: str) -> None:
        """Raise ModelError on a worker whose text differs from the first worker's.

        Args:
            text: What must be equal.
            what: What it describes, for the sentence.
        """
        mine = zlib.crc32(text.encode())
        if int(self.from_first([np.array([mine], np.int64)])[0][0]) != mine:
            raise ModelError(
                f"Worker {self.rank} has {what} than worker 0. Start all workers with the same "
                "options on the same data set."
            )

    def require_same_weights(self, checksum: int, epoch: int) -> None:
        """Raise ModelError if this worker's weights are not the first worker's."""
        theirs = int(self.from_first([np.array([checksum], np.int64)])[0][0])
        if theirs != checksum:
            raise ModelError(
                f"After epoch {epoch} the weights of worker {self.rank} differ from those of "
                "worker 0. Use the same versions of packages and the same kind of processor "
                "everywhere, and resume."
            )
        if self.workers > 1:
            say(f"Weights after epoch {epoch}: {checksum:08x}, as on worker 0.")

    def prepare(self, model: Any) -> None:
        """Make a network's normalization and dropout those of the whole batch.

        Normalization that learns takes its statistics from all slices together, and what dropout
        leaves out of an image is what one worker with the whole batch would.
        """
        import keras

        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
                layer.synchronized = True
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                layer.call = _dropout_of_whole_batch(layer, self)


def _dropout_of_whole_batch(layer: Any, replicas: Replicas) -> Callable[..., Any]:
    """Return a dropout layer's ``call``: masks are drawn for the whole batch, and sliced."""

    def call(inputs: Any, training: bool = False) -> Any:
        import keras
        import tensorflow as tf

        if not training:
            return inputs
        shape = tf.shape(inputs)
        whole = tf.ones(tf.concat([shape[:1] * replicas.count, shape[1:]], 0), inputs.dtype)
        static = [None, *inputs.shape[1:]]
        kept = keras.random.dropout(
            tf.ensure_shape(whole, static),
            layer.rate,
            noise_shape=layer.noise_shape,
            seed=layer.seed_generator,
        )
        return inputs * replicas.share(kept)

    return call


def cluster_of(
    addresses: str | None, rank: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[list[str], int] | None:
    """Return the addresses of all workers and the rank of this one; None for one worker.

    Args:
        addresses: ``HOST:PORT,HOST:PORT,…`` as given; None to look at the environment.
        rank: Position of this worker among them.
        environment: Where ``TF_CONFIG`` may stand.

    Raises:
        UsageError: If they cannot be understood.

    Example:
        >>> cluster_of("a:7000,b:7000", 1, {})
        (['a:7000', 'b:7000'], 1)
        >>> cluster_of(None, None, {}) is None
        True
    """
    if addresses is None and rank is None:
        return _from_environment(environment.get(CLUSTER, ""))
    named = [part.strip() for part in (addresses or "").split(",") if part.strip()]
    if len(named) < 2 or rank is None or not 0 <= rank < len(named):
        raise UsageError(
            "Give all workers with --workers HOST:PORT,HOST:PORT, at least two, and with --rank "
            "which of them this one is: 0 for the first."
        )
    return _checked(named), rank


def _from_environment(text: str) -> tuple[list[str], int] | None:
    if not text:
        return None
    try:
        told = json.loads(text)
        cluster, task = told.get("cluster", {}), told.get("task", {})
        chiefs, workers = list(cluster.get("chief", [])), list(cluster.get("worker", []))
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{CLUSTER} cannot be read ({error}). Unset it, or set it right."
        ) from None
    if len(chiefs) + len(workers) < 2:
        return None
    rank = index if kind == "chief" else len(chiefs) + index
    if kind not in ("chief", "worker") or not 0 <= rank < len(chiefs) + len(workers):
        raise UsageError(f"{CLUSTER} names no worker for this process. Unset it, or set it right.")
    return _checked([*chiefs, *workers]), rank


def _checked(addresses: list[str]) -> list[str]:
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"{address!r} is no address. Write HOST:PORT, such as node1:7000.")
    if len(set(addresses)) < len(addresses):
        raise UsageError("Two workers have the same address. Give each a port of its own.")
    return addresses


def join_workers(addresses: Sequence[str], rank: int) -> Replicas:
    """Wait for the other workers and return all of them; before TensorFlow has done anything.

    The port of this worker is then open to whoever reaches it, without a password.

    Args:
        addresses: ``HOST:PORT`` of all workers.
        rank: Position of this one.

    Raises:
        ModelError: If TensorFlow is in use already, or the others cannot be reached.
    """
    # Ray sets it for Keras 2, which dermlens does not use, and TensorFlow would look for it.
    os.environ.pop(_LEGACY, None)
    task = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    os.environ[CLUSTER] = json.dumps(task)
    import tensorflow as tf

    say(f"Worker {rank} of {len(addresses)}: waiting for the others.")
    with lost_workers():
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"The workers cannot be joined ({error}). Join them before TensorFlow is used for "
                "anything else in this process."
            ) from error
    return Replicas(strategy, rank, len(addresses))


def replicas_here() -> Replicas | None:
    """Return the GPUs of this machine as replicas, None if there is none or one."""
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU")
    if len(devices) < 2:
        return None
    say(f"Training on {len(devices)} GPUs; CUDA_VISIBLE_DEVICES chooses among them.")
    return Replicas(tf.distribute.MirroredStrategy([device.name for device in devices]))


@contextmanager
def lost_workers() -> Iterator[None]:
    """Turn TensorFlow's errors of a lost connection into one sentence."""
    import tensorflow as tf

    lost = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    try:
        yield
    except lost as error:
        reason = " ".join(str(error.message).split())[:160]
        raise ModelError(
            f"Another worker has ended or cannot be reached ({reason}). Start all workers again "
            "with --resume; the last finished epoch is kept."
        ) from error
