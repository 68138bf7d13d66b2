"""How concentrated is an explanation? Metrics of the map alone.

Both look at absolute values and do not know the image: a single wrong pixel is perfectly sparse.
They describe, and do not rank.

* Gini index: Chalasani et al., "Concise explanations of neural networks using adversarial
  training", ICML 2020; Hurley & Rickard, IEEE Transactions on Information Theory 2009.
* Entropy: Bhatt, Weller & Moura, IJCAI 2020.
"""

import numpy as np

from dermlens.quality.inputs import checked_maps, unit_scale


def _shares(maps: np.ndarray) -> np.ndarray:
    """Return absolute values as shares of their sum, float64 (N, H * W); an empty map is even."""
    flat = unit_scale(np.abs(checked_maps(maps).astype(np.float64)).reshape(len(maps), -1))
    return np.divide(flat, flat.sum(axis=1, keepdims=True))


def gini(maps: np.ndarray) -> np.ndarray:
    """Return the Gini index, float64 (N,): 0 all alike (also all zero), near 1 one pixel."""
    rising = np.sort(_shares(maps), axis=1)
    count = rising.shape[1]
    weights = (2 * np.arange(1, count + 1) - count - 1) / count
    # Not a matrix product: its rounding depends on how many maps there are.
    return np.maximum((rising * weights).sum(axis=1), 0.0)


def entropy(maps: np.ndarray) -> np.ndarray:
    """Return the entropy of shares, in nats, float64 (N,): 0..log(H * W) (also all zero)."""
    from scipy.special import entr

    return entr(_shares(maps)).sum(axis=1)
