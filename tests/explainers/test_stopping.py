"""Work that is no longer wanted ends before its next batch, and leaves nothing half-made."""

from typing import Any

import numpy as np
import pytest

from dermlens.explainers.attribution import counted
from dermlens.explainers.registry import create
from dermlens.explainers.stopping import Stopped, stop_point, stoppable
from dermlens.model.bundle import Bundle
from serving_support import picture, untrained_bundle

MANY_BATCHES: dict[str, dict[str, Any]] = {
    "lime": {"n_samples": 120},
    "gp_shap": {"n_samples": 120},
    "occlusion": {"patch_size": 12},
    "rise": {"n_samples": 60},
    "integrated_gradients": {"tolerance": None},
    "smooth_grad": {"n_samples": 15},
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return untrained_bundle()


def test_stop_points_do_nothing_where_all_is_wanted() -> None:
    stop_point()
    with stoppable(lambda: False):
        stop_point()
    with pytest.raises(Stopped), stoppable(lambda: True):
        stop_point()
    stop_point()


@pytest.mark.parametrize("name", MANY_BATCHES)
def test_methods_end_before_their_next_batch(bundle: Bundle, name: str) -> None:
    explainer, fresh = (create(name, bundle, **MANY_BATCHES[name]) for _ in range(2))
    image = np.asarray(picture(4, 32, 48))[None]
    asked = 0

    def unwanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with pytest.raises(Stopped), stoppable(unwanted), counted() as cost:
        explainer.attribute(image, 4, batch_size=4)
    # Two batches were allowed, and the third not begun.
    assert asked == 3 and cost.forward <= 8
    after = explainer.attribute(image, 4, batch_size=4)
    np.testing.assert_allclose(
        after.maps, fresh.attribute(image, 4, batch_size=4).maps, rtol=1e-4, atol=1e-5
    )
