"""The engines: which environment and adapter each uses, and what it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from irstd_edge.benchmarks.peers.works import WORKS, Work

#: The engine that all others of a family are compared with.
BASE = "ort-fp32"
#: Largest deviation from the reference, as a share of the reference's own deviation (root mean squares). With random
#: weights int8 is far from exact: this asks whether an engine computes the network at all.
TOLERANCES = {"fp32": 1e-3, "int8": 0.4, "binary": 1e-2, "mixed": 1e-2}

_FLOAT = tuple(name for name, work in WORKS.items() if work.factory)
_LAYERS = tuple(name for name, work in WORKS.items() if work.is_layer)
_NETWORKS = tuple(name for name in _FLOAT if name not in _LAYERS)


@dataclass(frozen=True)
class Engine:
    """One row per work.

    ``environment`` is None for ours, whose ``adapter`` is the artefact's kind; ``forms``: of works, what is run in
    place of the float network, by name or ``module:factory``.
    """

    name: str
    environment: str | None
    adapter: str
    precision: str
    works: tuple[str, ...]
    note: str | None = None
    forms: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.environment is None

    def runs(self, work: Work) -> bool:
        return work.name in self.works


_MODELS = f"{__package__}.models"


def _ours(name: str, precision: str, *works: str, note: str | None = None, **forms: str) -> Engine:
    kind = name.split("-")[1]
    return Engine(name, None, kind, precision, works, note, forms)


def _peer(name: str, precision: str, note: str | None = None) -> Engine:
    return Engine(f"{name}-{precision}", name, name, precision, _FLOAT, note)


ENGINES: dict[str, Engine] = {
    e.name: e
    for e in (
        _ours("irstd-native", "binary", "biisnet", "unet", *_LAYERS, unet=f"{_MODELS}:binary_unet"),
        _ours("irstd-onnx", "binary", "biisnet", "unet", unet=f"{_MODELS}:binary_unet"),
        _ours("irstd-tflite", "binary", "biisnet", "unet", unet=f"{_MODELS}:binary_unet"),
        _ours("irstd-native-fp32", "fp32", *_NETWORKS, **{w: f"{_MODELS}:{WORKS[w].factory}" for w in _NETWORKS}),
        _ours("irstd-native-int8", "int8", *_NETWORKS, **{w: f"{_MODELS}:{WORKS[w].factory}_int8" for w in _NETWORKS}),
        _ours("irstd-native-spmix", "mixed", "resunet", resunet="resunet-spmix", note="2.2 bits by 3.7 on average"),
        _peer("ort", "fp32"),
        _peer("ort", "int8", "float in and out"),
        _peer("litert", "fp32"),
        _peer("litert", "int8"),
        _peer("openvino", "fp32"),
        _peer("openvino", "int8", "float in and out"),
        _peer("mnn", "fp32"),
        _peer("ncnn", "fp32", "reads the input and copies the output within the timed call"),
        _peer("executorch", "fp32", "copies the output within the timed call"),
        _peer("executorch", "int8", "float in and out; copies the output within the timed call"),
        Engine("lce", "lce", "lce", "binary", ("biisnet", *_LAYERS),
               note="a twin of its own: sign, binary convolution padded with +1, BN, PReLU, shortcut; float in and "
                    "out, copied within the timed call"),
    )
}  # fmt: skip
