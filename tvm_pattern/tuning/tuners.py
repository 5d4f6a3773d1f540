"""Tuners: which configurations of a space to measure next.

Every tuner has ``propose(count)``, which returns indices not proposed before, and
``update(indices, seconds)``. Nothing here measures, so a tuner can be run on recorded times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from .cost_model import MeasuredSet, RankModel
from .features import ESTIMATE
from .space import Space

# Of a batch that nothing guides.
_BLIND_BATCH = 4
# What a measurement of the task itself counts against one of the warm start.
_OWN_WEIGHT = 10.0
# Points of the warm start that are learned from.
_WARM_POINTS = 2048


class Tuner(ABC):
    """Base of all tuners.

    Parameters
    ----------
    space : Space
    seed : int
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        self.space = space
        self.rng = np.random.default_rng(seed)
        self.measured: dict[int, float] = {}
        self._proposed: set[int] = set()

    def propose(self, count: int) -> list[int]:
        """Up to ``count`` new indices; fewer when the space is nearly used up."""
        free = len(self.space) - len(self._proposed)
        chosen: list[int] = []
        if free > 0:
            for index in self._candidates(min(count, free)):
                if index not in self._proposed and len(chosen) < count:
                    self._proposed.add(index)
                    chosen.append(index)
            chosen += self._fill(min(count, free) - len(chosen))
        return chosen

    def update(self, indices: Sequence[int], seconds: Sequence[float]) -> None:
        """Tell what was measured; infinite seconds is a failed trial.

        Points the tuner did not propose are welcome: resumed records enter this way.
        """
        for index, value in zip(indices, seconds, strict=True):
            self._proposed.add(index)
            self.measured[index] = min(value, self.measured.get(index, np.inf))

    @abstractmethod
    def _candidates(self, count: int) -> list[int]:
        """Indices in order of preference; ones proposed before are skipped."""

    def _unseen(self) -> np.ndarray:
        mask = np.ones(len(self.space), bool)
        mask[list(self._proposed)] = False
        return np.flatnonzero(mask)

    def _fill(self, count: int) -> list[int]:
        """Random new indices, marked as proposed."""
        if count <= 0:
            return []
        picked = [int(i) for i in self.rng.permutation(self._unseen())[:count]]
        self._proposed.update(picked)
        return picked


class RandomTuner(Tuner):
    """Uniformly at random, without repetition."""

    def _candidates(self, count: int) -> list[int]:
        return []


class GridTuner(Tuner):
    """Every point in the order of the space."""

    def _candidates(self, count: int) -> list[int]:
        return [int(i) for i in self._unseen()[:count]]


class GeneticTuner(Tuner):
    """The genetic search of PatDNN (ASPLOS'20, section 5.5): crossover and mutation of the fastest.

    Parameters
    ----------
    population : int
        Size of the first generation and of the set of parents.
    mutation : float
        Probability that a child is changed in a knob or two.
    """

    def __init__(
        self, space: Space, seed: int = 0, population: int = 16, mutation: float = 0.3
    ) -> None:
        super().__init__(space, seed)
        self.population = population
        self.mutation = mutation

    def _candidates(self, count: int) -> list[int]:
        parents = sorted(self.measured, key=self.measured.__getitem__)[: self.population]
        parents = [p for p in parents if np.isfinite(self.measured[p])]
        if len(self.measured) < self.population or len(parents) < 2:
            return []
        # Faster parents are drawn more often: weights 1, 1/2, 1/3, ...
        weights = 1.0 / np.arange(1, len(parents) + 1)
        weights /= weights.sum()
        children: list[int] = []
        for _ in range(8 * count):
            first, second = self.rng.choice(len(parents), size=2, replace=False, p=weights)
            child = self.space.cross(parents[first], parents[second], self.rng)
            if self.rng.random() < self.mutation:
                child = self.space.neighbour(child, self.rng)
            if child not in self._proposed and child not in children:
                children.append(child)
            if len(children) == count:
                break
        return children


class XGBTuner(Tuner):
    """Learned cost model, proposals by its scores, epsilon-greedy.

    The first batch is the level-0 configuration, the best of the schedule's own estimate, and
    random points; from then on a :class:`RankModel` is fitted to every measurement so far. A space
    of up to ``exhaustive`` points is scored as a whole, a larger one by simulated annealing.

    Parameters
    ----------
    warm_start : sequence of (numpy.ndarray, numpy.ndarray)
        Features and times measured elsewhere: other layers, another target. They choose the first
        batch.
    epsilon : float
        Fraction of a batch that is random.
    chains, steps : int
        Of the annealing.
    prior : bool
        Use what the schedule knows: its default and its estimates as the first candidates, and the
        estimate as a feature. False learns from measurements alone, to see what learning gives.
    exhaustive : int
        Largest space that is scored as a whole.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        warm_start: Sequence[MeasuredSet] = (),
        epsilon: float = 0.1,
        chains: int = 64,
        steps: int = 60,
        *,
        prior: bool = True,
        exhaustive: int = 4096,
    ) -> None:
        super().__init__(space, seed)
        self.prior = prior
        self.model = RankModel(seed)
        self.warm_start = [(self._columns(x), times) for x, times in self._thinned(warm_start)]
        self.epsilon = epsilon
        self.chains = chains
        self.steps = steps
        self.exhaustive = exhaustive

    def propose(self, count: int) -> list[int]:
        """See :meth:`Tuner.propose`; blind guesses come in small batches, to learn from soon."""
        blind = not (self.prior or self.warm_start or np.isfinite([*self.measured.values()]).any())
        return super().propose(min(count, _BLIND_BATCH) if blind else count)

    def _candidates(self, count: int) -> list[int]:
        explore = self._draw_explore(count)
        own = list(self.measured)
        sets, weights = [*self.warm_start], [1.0] * len(self.warm_start)
        if own:
            sets.append((self._features(own), np.array([self.measured[i] for i in own])))
            weights.append(_OWN_WEIGHT)
        self.model.fit(sets, weights)
        greedy = count - explore
        if not self.model.trained:
            if not self.prior:
                return []
            default = [] if self.space.default is None else [self.space.default]
            order = np.argsort(self.space.estimates, kind="stable")
            waiting = self._proposed - self.measured.keys()
            by_estimate = [int(i) for i in order if i not in waiting]
            return [*default, *by_estimate][: max(1, greedy * 3 // 4)]
        if len(self.space) <= self.exhaustive:
            unseen = self._unseen()
            scores = self.model.predict(self._features(unseen))
            found = [int(i) for i in unseen[np.argsort(-scores, kind="stable")[: count + 1]]]
        else:
            found = self._anneal(4 * count)
        if self.prior and not own and self.space.default is not None:
            found.insert(0, self.space.default)
        return found[:greedy]

    def _thinned(self, sets: Sequence[MeasuredSet]) -> list[MeasuredSet]:
        """So few of the points that fitting stays quick, the same share of every set."""
        share = _WARM_POINTS / max(1, sum(len(times) for _, times in sets))
        if share >= 1:
            return list(sets)
        chosen = []
        for x, times in sets:
            picked = self.rng.permutation(len(times))[: max(2, round(share * len(times)))]
            chosen.append((x[picked], times[picked]))
        return chosen

    def _draw_explore(self, count: int) -> int:
        expected = self.epsilon * count
        return int(expected) + int(self.rng.random() < expected - int(expected))

    def _anneal(self, keep: int) -> list[int]:
        """The highest scores that annealed chains met, best first."""
        best = sorted(self.measured, key=self.measured.__getitem__)[: self.chains // 4]
        starts = list(best)
        if self.prior:
            by_estimate = np.argsort(self.space.estimates, kind="stable")[: self.chains // 4]
            starts += [int(i) for i in by_estimate]
        missing = max(0, self.chains - len(starts))
        points = [*starts, *(int(i) for i in self.rng.integers(len(self.space), size=missing))]
        scores: dict[int, float] = {}
        self._score(points, scores)
        spread = float(np.std(list(scores.values()))) or 1.0
        for step in range(self.steps):
            temperature = spread * (1.0 - step / self.steps)
            moved = [self.space.neighbour(p, self.rng) for p in points]
            self._score(moved, scores)
            gain = np.array([scores[b] - scores[a] for a, b in zip(points, moved, strict=True)])
            accept = self.rng.random(len(gain)) < np.exp(
                np.minimum(0.0, gain) / max(temperature, 1e-9)
            )
            points = [b if ok else a for a, b, ok in zip(points, moved, accept, strict=True)]
        fresh = [i for i in scores if i not in self._proposed]
        return sorted(fresh, key=lambda i: -scores[i])[:keep]

    def _columns(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.prior else np.delete(rows, ESTIMATE, axis=1)

    def _features(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._columns(self.space.features([int(i) for i in indices]))

    def _score(self, points: list[int], scores: dict[int, float]) -> None:
        new = [i for i in dict.fromkeys(points) if i not in scores]
        if new:
            scores.update(zip(new, self.model.predict(self._features(new)), strict=True))


TUNERS: dict[str, type[Tuner]] = {
    "xgb": XGBTuner,
    "random": RandomTuner,
    "grid": GridTuner,
    "genetic": GeneticTuner,
}


def make_tuner(name: str, space: Space, seed: int, **options: object) -> Tuner:
    """A tuner by name; ``options`` are those of its class.

    Raises
    ------
    ValueError
        If there is no tuner of that name.
    """
    if name not in TUNERS:
        raise ValueError(f"unknown tuner {name!r}; expected one of {sorted(TUNERS)}")
    return TUNERS[name](space, seed, **options)
