"""Statistics of latency samples: percentiles, bootstrap intervals, paired ratios.

Samples come in rounds (one burst of one candidate each), and samples of one round share the machine's state. The
bootstrap therefore draws rounds, not samples: intervals that treat neighbouring runs as independent are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

#: Resamplings of a bootstrap, and the share of them inside an interval.
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class LatencyStatistics:
    """All in milliseconds but ``n``; ``std`` is the sample deviation (0 for one sample).

    ``p90_early_stopping`` is MLPerf LoadGen's conservative p90 (99 % confidence), None below 64 samples.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    min: float
    max: float
    n: int
    ci95_p50: tuple[float, float]
    p90_early_stopping: float | None

    def as_dict(self) -> dict:
        """Ready for JSON."""
        return asdict(self) | {"ci95_p50": list(self.ci95_p50)}


def latency_statistics(rounds: Sequence[np.ndarray], rng: np.random.Generator) -> LatencyStatistics:
    """Summarise the latencies (ms, float ``[n_i]``) of all rounds, nothing clipped. Raises ``ValueError`` on none."""
    samples = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds]) if len(rounds) else np.empty(0)
    if not samples.size:
        raise ValueError("no latency samples; let the measurement run for at least one round")
    p50, p90, p95, p99 = (float(v) for v in np.percentile(samples, [50, 90, 95, 99]))
    return LatencyStatistics(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=float(samples.mean()),
        std=float(samples.std(ddof=1)) if samples.size > 1 else 0.0,
        min=float(samples.min()),
        max=float(samples.max()),
        n=int(samples.size),
        ci95_p50=median_interval(rounds, rng),
        p90_early_stopping=early_stopping_p90(samples),
    )


def median_interval(rounds: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the median of all samples, whole rounds resampled."""
    samples = np.concatenate(rounds)
    order = np.argsort(samples)
    ordered, owner = samples[order], np.repeat(np.arange(len(rounds)), [len(r) for r in rounds])[order]
    medians = np.empty(RESAMPLES)
    for i, drawn in enumerate(_draws(len(rounds), rng)):
        # A round drawn twice counts twice: the median by cumulated weights, without copying samples.
        upto = np.cumsum(np.bincount(drawn, minlength=len(rounds))[owner])
        middle = np.searchsorted(upto, [(upto[-1] - 1) // 2, upto[-1] // 2], side="right")
        medians[i] = ordered[middle].mean()
    return _interval(medians)


def paired_ratio(
    numerator: Sequence[np.ndarray], denominator: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """Median over rounds of (median of the numerator's burst / median of the denominator's), and its interval.

    Round i of both ran within one turn of the interleaving, so that drift of the machine cancels.
    Raises ``ValueError`` when the rounds do not pair.
    """
    if len(numerator) != len(denominator) or not len(numerator):
        raise ValueError(f"rounds do not pair: {len(numerator)} and {len(denominator)}")
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(numerator, denominator, strict=True)])
    return float(np.median(ratios)), _interval(np.median(ratios[_draws(len(ratios), rng)], axis=1))


def early_stopping_p90(samples: np.ndarray, percentile: float = 0.90, confidence: float = 0.99) -> float | None:
    """LoadGen's early-stopping estimate: an upper bound of the percentile, or None with too few samples.

    With t the largest count for which P(Binomial(n, 1 - percentile) <= t) <= 1 - confidence, the t - 1 highest
    samples are dropped and the highest of the rest is reported; t must be at least 1 (n >= 64 at p90).
    """
    n, over = len(samples), 1 - percentile
    cumulative, t = 0.0, -1
    while True:
        k = t + 1
        log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        cumulative += math.exp(log_term + k * math.log(over) + (n - k) * math.log(percentile))
        if cumulative > 1 - confidence:
            break
        t = k
    return float(np.sort(samples)[n - t]) if t >= 1 else None


def _draws(count: int, rng: np.random.Generator) -> np.ndarray:
    """int ``[RESAMPLES, count]``: indices drawn with replacement."""
    return rng.integers(count, size=(RESAMPLES, count))


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
