"""The proof that an artefact computes what PyTorch computes: identical tensors first, then the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from irstd_edge.bundle import Bundle
from irstd_edge.data import Dataset
from irstd_edge.errors import ParityError
from irstd_edge.metrics import Accuracy, DetectionMetrics
from irstd_edge.opspec import DOMAIN
from irstd_edge.runtimes.detection import predict
from irstd_edge.runtimes.session import Session, open_session


@dataclass(frozen=True)
class Tolerance:
    """What an artefact may differ from PyTorch by.

    ``max_abs``: on the probability map. ``flipped_images``: largest share of the images in which any mask pixel may
    change sides of the threshold; it binds networks with ``irstd`` operators. In a plain float network a pixel can lie
    on the threshold to within ``max_abs``, so there flips are counted and reported, and ``max_abs`` alone binds.
    """

    max_abs: float
    flipped_images: float
    reason: str


_EXACT = (
    "operators of the irstd domain are integer arithmetic on a fixed-point grid, equal to the last bit in every "
    "runtime; what remains is the float32 head and sigmoid, about 1e-6"
)
#: Artefact kind -> tolerance: the one place.
TOLERANCES: dict[str, Tolerance] = {
    "torch": Tolerance(1e-5, 0.0, "the same network and code; another CPU may sum float convolutions in another order"),
    "onnx": Tolerance(1e-4, 0.01, _EXACT),
    "tflite": Tolerance(1e-4, 0.01, _EXACT + "; XNNPACK's sigmoid and bilinear sums differ from PyTorch's by ulps"),
    "native": Tolerance(1e-4, 0.01, _EXACT),
    "portable": Tolerance(1e-4, 0.01, _EXACT + "; convolutions of compressed layers sum int8 values exactly there"),
}
#: What stands in place of ``max_abs`` in a file whose float weights are stored in 16 bits.
HALF_MAX_ABS = 1e-2
HALF_REASON = "weights rounded to float16 are off by up to 1/2048 of themselves; the arithmetic is float32"
#: The same in a file with quantised layers.
QUANTISED_MAX_ABS = 1e-2
QUANTISED_REASON = (
    "quantised layers sum integers exactly, but the last bit of float arithmetic before one (resizing, attention, "
    "float layers) can decide a rounding, which moves one value by one step"
)


#: Probabilities below this count as none where directions are compared (cosine).
NOTHING = 1e-6


@dataclass(frozen=True)
class Parity:
    """One output against PyTorch's.

    ``max_abs``: largest difference (infinite where a value is not finite); ``cosine``: of the two maps as vectors,
    values below :data:`NOTHING` taken as 0;
    ``flipped_pixels``: pixels on different sides of the threshold.
    """

    max_abs: float
    cosine: float
    flipped_pixels: int


@dataclass
class ParitySummary:
    """:class:`Parity` over a set of images; add each with :meth:`add`.

    ``max_abs`` and ``cosine`` are those of the worst image, ``worst`` its name; ``flipped_pixels`` is the sum.
    """

    images: int = 0
    max_abs: float = 0.0
    cosine: float = 1.0
    flipped_pixels: int = 0
    images_with_flips: int = 0
    worst: str = ""
    violations: list[str] = field(default_factory=list)

    def add(self, parity: Parity, name: str) -> None:
        self.images += 1
        if parity.max_abs > self.max_abs or not self.worst:
            self.max_abs, self.worst = parity.max_abs, name
        self.cosine = min(self.cosine, parity.cosine)
        self.flipped_pixels += parity.flipped_pixels
        self.images_with_flips += parity.flipped_pixels > 0

    def as_dict(self) -> dict:
        """For JSON: ``max_abs`` is null where it is infinite, as JSON has no such number."""
        return self.__dict__ | {"max_abs": self.max_abs if np.isfinite(self.max_abs) else None}

    def judge(self, kind: str, limit: Tolerance) -> list[str]:
        """Fill and return ``violations``: a line for each of the limits that ``kind`` exceeds."""
        self.violations = []
        if not self.max_abs <= limit.max_abs:
            self.violations.append(f"{kind}: max-abs {self.max_abs:.3g} on {self.worst} exceeds {limit.max_abs:g}")
        allowed = int(limit.flipped_images * self.images)
        if self.images_with_flips > allowed:
            self.violations.append(
                f"{kind}: {self.flipped_pixels} mask pixels flipped in {self.images_with_flips} of {self.images} "
                f"images; allowed in {allowed} ({limit.flipped_images:.0%})")
        return self.violations


def compare(reference: np.ndarray, other: np.ndarray, threshold: float) -> Parity:
    """Compare two probability maps.

    Args:
        reference: PyTorch's, float32 of any shape.
        other: the artefact's, same shape.
        threshold: of the mask; target where > threshold.

    Raises :class:`~irstd_edge.errors.ParityError` when the shapes differ.
    """
    if reference.shape != other.shape:
        raise ParityError(f"output has shape {other.shape}, PyTorch's {reference.shape}")
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    difference = np.abs(a - b)
    max_abs = float(difference.max()) if difference.size and np.isfinite(difference).all() else float("inf")
    # The direction of a map without any probability worth the name is rounding noise.
    a, b = (np.where(np.abs(v) < NOTHING, 0.0, v) for v in (a, b))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(a @ b / norms) if norms > 0 else float(np.array_equal(a, b))
    # Two equal vectors can give 1 + 2e-16; a NaN gives 0.
    cosine = min(cosine, 1.0) if np.isfinite(cosine) else 0.0
    return Parity(max_abs, cosine, int(((reference > threshold) != (other > threshold)).sum()))


def compare_outputs(reference: Sequence[np.ndarray], other: Sequence[np.ndarray], threshold: float) -> Parity:
    """Compare all outputs of a network: the first as :func:`compare` does, of the others the largest difference.

    That counts against values of 1, or the largest value of the map where that is more: they need be no probabilities.
    Raises :class:`~irstd_edge.errors.ParityError` when numbers of outputs or shapes differ.
    """
    if [a.shape for a in reference] != [b.shape for b in other]:
        raise ParityError(f"outputs have shapes {[b.shape for b in other]}, PyTorch's {[a.shape for a in reference]}")
    first = compare(reference[0], other[0], threshold)
    scales = [max(1.0, float(np.abs(a).max(initial=0))) for a in reference[1:]]
    rest = [compare(a, b, threshold).max_abs / scale
            for a, b, scale in zip(reference[1:], other[1:], scales, strict=True)]
    return replace(first, max_abs=max([first.max_abs, *rest]))


def tolerance(bundle: Bundle, kind: str) -> Tolerance:
    """The row of :data:`TOLERANCES` that binds an artefact of a bundle.

    The rule on flipped pixels binds those with compressed layers; quantised ones, and weights in 16 bits, have a wider
    ``max_abs``.
    """
    limit = TOLERANCES[kind]
    layers = [layer for artefact in bundle.manifest.artefacts if kind in ("torch", artefact.kind)
              for layer in artefact.layers]
    if all(layer.requested in _FLOAT and not layer.operator.startswith(DOMAIN) for layer in layers):
        limit = replace(limit, flipped_images=1.0)
    elif kind != "torch" and any(layer.requested not in (*_FLOAT, _BINARY) for layer in layers):
        limit = replace(limit, max_abs=QUANTISED_MAX_ABS, reason=QUANTISED_REASON)
    if kind != "torch" and any(layer.realised == "float16" for layer in layers):
        limit = replace(limit, max_abs=HALF_MAX_ABS, flipped_images=1.0, reason=HALF_REASON)
    return limit


_FLOAT, _BINARY = ("float32", "float16"), "W1A1"


def check_vectors(bundle: Bundle, kinds: Iterable[str] | None = None, threads: int = 1) -> dict[str, ParitySummary]:
    """Run artefacts on the bundle's own test vectors; by default all of them.

    Raises :class:`~irstd_edge.errors.ParityError` naming artefact, figure and limit, and what opening raises.
    """
    kinds = list(bundle.kinds if kinds is None else kinds)
    summaries = _compare_vectors(bundle, {kind: open_session(bundle, kind, threads) for kind in kinds})
    _raise(_judge(bundle, summaries))
    return summaries


def _compare_vectors(bundle: Bundle, sessions: dict[str, Session]) -> dict[str, ParitySummary]:
    (inputs, _), expected = bundle.test_vectors(), bundle.expected_outputs()
    summaries = {kind: ParitySummary() for kind in sessions}
    for i in range(len(inputs)):
        for kind, session in sessions.items():
            name = f"test vector {i}"
            x = inputs[i:i + 1]
            outputs = session.run_all(x) if len(expected) > 1 else [session.run(x)]
            try:
                found = compare_outputs([y[i:i + 1] for y in expected], outputs, bundle.manifest.threshold)
            except ParityError as e:
                raise ParityError(f"{kind} on {name}: {e}") from e
            summaries[kind].add(found, name)
    return summaries


def _compare(kind: str, name: str, reference: np.ndarray, other: np.ndarray, bundle: Bundle) -> Parity:
    try:
        return compare(reference, other, bundle.manifest.threshold)
    except ParityError as e:
        raise ParityError(f"{kind} on {name}: {e}") from e


@dataclass
class Verification:
    """What :func:`verify` found, by artefact kind; ``torch`` is among them.

    ``tolerances``: what bound them. ``vectors``: on the bundle's test vectors, against the recorded outputs.
    ``images``: against PyTorch's output here, so without ``torch``. ``accuracy``: empty without a data set.
    """

    runtimes: dict[str, str] = field(default_factory=dict)
    tolerances: dict[str, Tolerance] = field(default_factory=dict)
    vectors: dict[str, ParitySummary] = field(default_factory=dict)
    images: dict[str, ParitySummary] = field(default_factory=dict)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises :class:`~irstd_edge.errors.ParityError` naming every violation."""
        _raise(self.violations)

    def as_dict(self) -> dict:
        return {
            "ok": not self.violations,
            "violations": self.violations,
            "tolerances": {kind: self.tolerances[kind].__dict__ for kind in self.vectors},
            "results": [
                {
                    "artefact": kind,
                    "runtime": runtime,
                    "test_vectors": self.vectors[kind].as_dict(),
                    "parity": self.images[kind].as_dict() if kind in self.images else None,
                    "accuracy": self.accuracy[kind].as_dict() if kind in self.accuracy else None,
                }
                for kind, runtime in self.runtimes.items()
            ],
        }


def verify(
    bundle: Bundle,
    images: Iterable[tuple[str, np.ndarray]] = (),
    kinds: Sequence[str] | None = None,
    threads: int = 1,
    dataset: Dataset | None = None,
    on_image: Callable[[str], None] = lambda name: None,
) -> Verification:
    """Compare artefacts with PyTorch: on the bundle's test vectors, on images, then the metrics on a data set.

    Args:
        bundle: an opened bundle.
        images: name and float32 ``[H, W]`` on the 0..255 scale, of any sizes.
        kinds: artefacts; by default all of the bundle. PyTorch itself is always run, as the reference.
        threads: of every runtime.
        dataset: its images are compared like ``images``, and IoU, nIoU, Pd and Fa must come out: Pd identical.
        on_image: called after each image with its name.

    Violations are collected, not raised: see :meth:`Verification.check`. Raises what opening an artefact raises.
    """
    kinds = [kind for kind in (bundle.kinds if kinds is None else kinds) if kind != "torch"]
    sessions = {kind: open_session(bundle, kind, threads) for kind in ("torch", *kinds)}
    preprocessing, threshold = bundle.manifest.preprocessing, bundle.manifest.threshold
    result = Verification({kind: session.runtime for kind, session in sessions.items()},
                          {kind: tolerance(bundle, kind) for kind in sessions})
    result.vectors = _compare_vectors(bundle, sessions)
    result.violations += _judge(bundle, result.vectors)
    summaries = {kind: ParitySummary() for kind in kinds}
    metrics = {kind: DetectionMetrics() for kind in sessions}

    def run(name: str, image: np.ndarray, mask: np.ndarray | None = None) -> None:
        outputs = {kind: predict(session, image, preprocessing) for kind, session in sessions.items()}
        for kind in kinds:
            summaries[kind].add(_compare(kind, name, outputs["torch"], outputs[kind], bundle), name)
        if mask is not None:
            for kind, output in outputs.items():
                metrics[kind].update(output, mask, threshold)
        on_image(name)

    for name, image in images:
        run(name, image)
    for i in range(0 if dataset is None else len(dataset)):
        sample = dataset[i]
        run(sample.name, sample.image, sample.mask)

    if any(summary.images for summary in summaries.values()):
        result.images = summaries
        result.violations += _judge(bundle, summaries)
    if dataset is not None:
        result.accuracy = {kind: m.result() for kind, m in metrics.items()}
        pd = result.accuracy["torch"].pd
        result.violations += [f"{kind}: Pd {result.accuracy[kind].pd:.6f} differs from PyTorch's {pd:.6f}"
                              for kind in kinds if result.accuracy[kind].pd != pd]
    return result


def _judge(bundle: Bundle, summaries: dict[str, ParitySummary]) -> list[str]:
    return [line for kind, summary in summaries.items() for line in summary.judge(kind, tolerance(bundle, kind))]


def _raise(violations: list[str]) -> None:
    if violations:
        raise ParityError("; ".join(violations))
