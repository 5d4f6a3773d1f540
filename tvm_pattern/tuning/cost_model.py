"""The learned cost model: a straight line through the features, and boosted trees that rank.

The logarithm of a time is nearly linear in the logarithms of what causes it, so a ridge regression
knows the good region after a handful of measurements, where trees only know the points they saw.
XGBoost's pairwise ranking starts from that line's scores and learns what it gets wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xgboost

#: Features ``[n, features]`` and seconds ``[n]`` (infinite: failed) of one task and device.
MeasuredSet = tuple[np.ndarray, np.ndarray]

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
_RIDGE = 1.0
# Score of being twice as fast by the line; ranking losses saturate a few units from zero.
_UNITS_PER_OCTAVE = 5.0
# A failure is taken for this many times the slowest success.
_FAILURE = 2.0


class Line:
    """Ridge regression of log2(seconds), every set with a level of its own.

    Parameters
    ----------
    sets : sequence of MeasuredSet
        At least one; each with a finite time.
    weights : sequence of float
        Of the measurements of each set.
    """

    def __init__(self, sets: Sequence[MeasuredSet], weights: Sequence[float]) -> None:
        every = np.concatenate([x for x, _ in sets]).astype(np.float64)
        self._mean, spread = every.mean(0), every.std(0)
        self._spread = np.where(spread < 1e-6, 1.0, spread)
        rows, targets = [], []
        for (x, seconds), weight in zip(sets, weights, strict=True):
            z, y = self._standard(x), np.log2(_finite(seconds))
            rows.append(np.sqrt(weight) * (z - z.mean(0)))
            targets.append(np.sqrt(weight) * (y - y.mean()))
        a, b = np.concatenate(rows), np.concatenate(targets)
        self._slope = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ b)

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) / self._spread

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores ``[n]``; higher is faster."""
        return -_UNITS_PER_OCTAVE * (self._standard(features) @ self._slope)


def _finite(seconds: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(seconds), seconds, _FAILURE * seconds[np.isfinite(seconds)].max())


class RankModel:
    """Ranks configurations by how fast they are, learned from measurements.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int = 0) -> None:
        self._parameters = {**_PARAMETERS, "seed": seed}
        self._booster: xgboost.Booster | None = None
        self._line: Line | None = None

    @property
    def trained(self) -> bool:
        """Whether :meth:`fit` had anything to learn from."""
        return self._booster is not None

    def fit(self, sets: Sequence[MeasuredSet], weights: Sequence[float] | None = None) -> None:
        """Learn from measured sets; configurations are compared within a set only.

        Parameters
        ----------
        sets : sequence of (numpy.ndarray, numpy.ndarray)
            Features ``[n, features]`` and times in seconds ``[n]`` (infinite: failed), one pair per
            task and device. Sets without two points and a success say nothing and are left out.
        weights : sequence of float, optional
            How much a measurement of each set counts; default 1.
        """
        weights = [1.0] * len(sets) if weights is None else weights
        useful = [
            (x, t, w)
            for (x, t), w in zip(sets, weights, strict=True)
            if len(t) > 1 and np.isfinite(t).any()
        ]
        if not useful:
            return
        features = np.concatenate([x for x, _, _ in useful])
        self._line = Line([(x, t) for x, t, _ in useful], [w for _, _, w in useful])
        # The speed relative to the fastest of its set: 1 is the fastest, 0 a failure.
        labels = np.concatenate([t[np.isfinite(t)].min() / t for _, t, _ in useful])
        data = xgboost.DMatrix(features, label=labels, base_margin=self._line.scores(features))
        data.set_group([len(t) for _, t, _ in useful])
        data.set_weight([w for _, _, w in useful])
        self._booster = xgboost.train(self._parameters, data, _ROUNDS)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores ``[n]``; higher is faster.

        Raises
        ------
        RuntimeError
            If the model was not trained.
        """
        if self._booster is None or self._line is None:
            raise RuntimeError("the cost model is not trained; call fit with measurements first")
        margin = self._line.scores(features)
        return self._booster.predict(xgboost.DMatrix(features, base_margin=margin))
