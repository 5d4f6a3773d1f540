"""The learned cost model: gradient-boosted trees that rank configurations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xgboost

_PARAMETERS = {
    "objective": "rank:pairwise",
    "max_depth": 5,
    "eta": 0.2,
    "min_child_weight": 0.5,
    "subsample": 0.9,
    "lambda": 1.0,
    "nthread": 1,
    "verbosity": 0,
}
_ROUNDS = 60


class RankModel:
    """Ranks configurations by how fast they are, learned from measurements.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int = 0) -> None:
        self._parameters = {**_PARAMETERS, "seed": seed}
        self._booster: xgboost.Booster | None = None

    @property
    def trained(self) -> bool:
        """Whether :meth:`fit` had anything to learn from."""
        return self._booster is not None

    def fit(self, sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Learn from measured sets; configurations are compared within a set only.

        Parameters
        ----------
        sets : sequence of (numpy.ndarray, numpy.ndarray)
            Features ``[n, features]`` and times in seconds ``[n]`` (infinite: failed), one pair per
            task and device.
        """
        sets = [(x, t) for x, t in sets if len(t) > 1 and np.isfinite(t).any()]
        if not sets:
            return
        features = np.concatenate([x for x, _ in sets])
        # The speed relative to the fastest of its set: 1 is the fastest, 0 a failure.
        labels = np.concatenate([np.nanmin(t[np.isfinite(t)]) / t for _, t in sets])
        data = xgboost.DMatrix(features, label=labels)
        data.set_group([len(t) for _, t in sets])
        self._booster = xgboost.train(self._parameters, data, _ROUNDS)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores ``[n]``; higher is faster.

        Raises
        ------
        RuntimeError
            If the model was not trained.
        """
        if self._booster is None:
            raise RuntimeError("the cost model is not trained; call fit with measurements first")
        return self._booster.predict(xgboost.DMatrix(features))
