"""Checkpoints: read weights safely, load them into a network, and find a network by name or factory."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from irstd_edge.bundle import Bundle, Preprocessing, sha256
from irstd_edge.data import DATASETS, PAD_MULTIPLE
from irstd_edge.errors import UnsupportedError
from irstd_edge.files import replacing
from irstd_edge.layouts import LAYOUTS, convert
from irstd_edge.metrics import THRESHOLD
from irstd_edge.models.registry import get_model
from irstd_edge.nn.convert import Conversion, ConversionError
from irstd_edge.nn.convert import convert as convert_network
from irstd_edge.opspec import OpSpecError
from irstd_edge.zoo import network_of, zoo_card, zoo_names, zoo_weights

#: Keys under which training scripts keep the state_dict (BasicIRSTD, DNANet, MSHNet and others).
WRAPPERS = ("state_dict", "net", "network", "model", "model_state_dict")
#: Prefixes that wrappers (DataParallel, BasicIRSTD's Net) leave on every key.
PREFIXES = ("module.", "model.", "_orig_mod.")
#: Counts steps and means nothing at inference; may be absent.
_IGNORED = "num_batches_tracked"
_SHOWN = 4
#: What a quantiser leaves beside the weights of a training that goes on from there.
QUANTISED = "quantised.safetensors"
#: Key of a safetensors file's metadata: how the float network was quantised, see :mod:`irstd_edge.nn.convert`.
_CONVERSION = "irstd_edge.conversion"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the network; the message says why and the way out."""


class FactoryError(ValueError):
    """``package.module:factory`` does not name a callable that returns a network; the message says which part."""


class PickleWarning(UserWarning):
    """A checkpoint was unpickled in full, as asked: code inside it could run."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights and what it needs to be run.

    ``network`` is the training form in evaluation mode; ``factory`` the registry name or ``package.module:factory``
    that builds it; ``checkpoint_sha256`` None where no weights file was read.
    """

    name: str
    factory: str
    network: nn.Module
    preprocessing: Preprocessing
    threshold: float
    checkpoint_sha256: str | None


def read_checkpoint(path: Path, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint by name, wrappers and prefixes taken off, on the CPU.

    Safetensors files (told by content, not suffix) are always read. Every other torch format is a pickle, which can
    run code when opened: it is refused unless ``allow_pickle``. Then torch's restricted unpickler (tensors and plain
    containers) is tried first; where the file needs more it is unpickled in full, with a :class:`PickleWarning`.

    Raises :class:`CheckpointError`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    # Safetensors: a 64-bit header length, then JSON. torch.save: a zip archive or, before torch 1.6, a bare pickle.
    if head[8:] == b"{":
        try:
            return _strip_prefixes(load_file(path))
        except (SafetensorError, OSError, ValueError) as e:
            raise CheckpointError(f"{path}: damaged safetensors file ({e})") from e
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: no checkpoint; expected a safetensors file (or one of torch.save)")
    if not allow_pickle:
        raise CheckpointError(
            f"{path}: pickled checkpoint refused, opening it can run code inside it; convert it to safetensors, "
            "or give --allow-pickle if you trust its source"
        )
    return _strip_prefixes(_unwrap(_unpickle(path), path))


def load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into a network, every key and shape checked first; nothing is changed on an error.

    Batch counters (``num_batches_tracked``) may be absent. Raises :class:`CheckpointError` naming the missing and
    unexpected keys, the shapes that differ and the tensors that hold NaN or infinity.
    """
    own = network.state_dict()
    # A network that wraps others has prefixes on all its own keys: give back what reading took off.
    wrapped = dict(zip(_strip_prefixes(own), own, strict=True))
    tensors = {wrapped.get(k, k): v for k, v in tensors.items()}
    missing = [k for k in own if k not in tensors and not k.endswith(_IGNORED)]
    unexpected = [k for k in tensors if k not in own]
    shapes = [f"{k} {list(tensors[k].shape)}, network {list(own[k].shape)}"
              for k in own if k in tensors and tensors[k].shape != own[k].shape]
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("not finite", broken))
    problems = [f"{len(found)} {what} ({_first(found)})" for what, found in groups if found]
    if problems:
        error = CheckpointError(f"the checkpoint does not fit {type(network).__name__}: {'; '.join(problems)}")
        for what, found in groups:
            if len(found) > _SHOWN:
                error.add_note("\n".join([f"{what}:", *(f"  {name}" for name in found)]))
        raise error
    network.load_state_dict(dict(tensors), strict=False)


def weights_metadata(network: nn.Module) -> dict[str, str]:
    """What a safetensors file must say besides the tensors, so that :func:`restore` builds the network."""
    conversion = getattr(network, "conversion", None)
    return {} if conversion is None else {_CONVERSION: conversion.to_json()}


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of a network, whole or not at all. Raises :class:`~irstd_edge.data.DataError`."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.endswith(_IGNORED)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, weights_metadata(network))


def restore(network: nn.Module, path: Path, allow_pickle: bool = False) -> nn.Module:
    """The network with the weights of a checkpoint; a quantised copy where the file says that it holds one's.

    Raises :class:`CheckpointError`.
    """
    tensors = read_checkpoint(path, allow_pickle)
    try:
        return _fit(network, tensors, path)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e


def form_of(network: nn.Module, path: Path) -> nn.Module:
    """The network, or its quantised copy where a checkpoint's metadata says so. Raises :class:`CheckpointError`."""
    try:
        if (text := _metadata(path).get(_CONVERSION)) is not None:
            return convert_network(network, Conversion.from_json(text))
    except ConversionError as e:
        raise CheckpointError(str(e)) from e
    return network


def _fit(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    """Load the tensors of a file into the network, or into its quantised copy where the file's metadata says so."""
    network = form_of(network, path)
    load_weights(network, tensors)
    return network


def load_network(
    reference: str | None,
    *,
    checkpoint: Path | None = None,
    model: str | None = None,
    allow_pickle: bool = False,
    mean: float | None = None,
    std: float | None = None,
    untrained: bool | None = None,
    from_layout: str | None = None,
) -> LoadedNetwork:
    """A network ready for evaluation or export, in evaluation mode on the CPU.

    Args:
        reference: a name of the registry, with ``@DATASET`` for the zoo's weights for one data set; or a label for a
            network given by ``model``.
        checkpoint: weights; default those of the zoo. A network of ``model`` may do without: its weights are then
            as its factory made them.
        model: the user's ``package.module:factory``, searched in the current directory too.
        allow_pickle: see :func:`read_checkpoint`.
        mean, std: normalisation on the 0..255 scale. Default: that of the training run (``recipe.json``, or
            ``quantisation.json``, beside the checkpoint); of the zoo's own weights that of their card.
        untrained: without a checkpoint, take random weights (seed 0) rather than those of the zoo. None where the
            caller's user has no such choice.
        from_layout: a key of :data:`irstd_edge.layouts.LAYOUTS`: whose public checkpoint it is.

    Raises :class:`CheckpointError`, and what :func:`build_network` raises.
    """
    if reference is None and model is None:
        raise FactoryError("name a network (irstd-edge models lists them) or give --model package.module:factory")
    factory = model or network_of(reference)
    if factory != reference and not model and (checkpoint or untrained):
        raise CheckpointError(f"{reference} names weights of the zoo: for others name {factory}")
    network = build_network(factory)
    if from_layout is not None:
        _check_layout(from_layout, factory, checkpoint)
    card = None if model else zoo_card(reference)
    if checkpoint is None and not model and not untrained:
        checkpoint = zoo_weights(reference)
        if checkpoint is None:
            there = zoo_names(factory)
            raise CheckpointError(f"{reference} has no trained weights here: "
                                  + (f"take {' or '.join(there)}, or " if there else "") + "give --checkpoint FILE"
                                  + (", or --untrained for random ones" if untrained is not None else ""))
    digest = None
    if checkpoint is not None:
        tensors = read_checkpoint(checkpoint, allow_pickle)
        if from_layout is not None:
            tensors, known = convert(tensors, network.state_dict(), LAYOUTS[from_layout], *_given(mean, std))
            mean, std = known or (mean, std)
        with _naming(checkpoint, factory, from_layout):
            network = _fit(network, tensors, checkpoint)
        digest = sha256(Path(checkpoint))
    known = card["normalisation"] if card and checkpoint == zoo_weights(reference) else None  # others' may differ
    mean, std = _normalisation(factory, checkpoint, known, mean, std, untrained)
    multiple = padding_of(network)
    threshold = THRESHOLD if card is None else card.get("threshold", THRESHOLD)
    name = reference or model.partition(":")[2]
    return LoadedNetwork(name, factory, network.eval(), Preprocessing(mean, std, multiple), threshold, digest)


def padding_of(network: nn.Module) -> int:
    """Heights and widths of images are padded to multiples of this: 32, and the network's own ``size_multiple``."""
    return math.lcm(PAD_MULTIPLE, getattr(network, "size_multiple", 1))


@contextmanager
def _naming(checkpoint: Path, factory: str, from_layout: str | None) -> Iterator[None]:
    """Adds the file, and the layouts that it may be in, to the error of weights that do not fit."""
    try:
        yield
    except CheckpointError as e:
        layouts = [name for name, layout in LAYOUTS.items() if factory in layout.networks and not from_layout]
        hint = f"; a public one needs --from-layout {' or '.join(layouts)}" if layouts else ""
        raise CheckpointError(f"{checkpoint}: {e}{hint}") from e


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a file to start a training from, under the names of the network; not checked against it yet.

    ``new`` are patterns (``*.path.weight``) of keys that the file may lack: those begin as the network made them.
    """

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    factory: str
    checkpoint: Path
    from_layout: str | None = None
    new: tuple[str, ...] = ()

    def load_into(self, network: nn.Module) -> None:
        """:func:`load_weights`. Raises :class:`CheckpointError` that names the file."""
        own = network.state_dict()
        # Reading took prefixes off; new layers beside a wrapped network have none, so each name is looked at alone.
        bare = {next(iter(_strip_prefixes({k: v}))): k for k, v in own.items()}
        tensors = {k if k in own else bare.get(k, k): v for k, v in self.tensors.items()}
        lacking = [k for k in own if k not in tensors and not k.endswith(_IGNORED)]
        fresh = {}
        for pattern in self.new:
            found = fnmatch.filter(lacking, pattern)
            fresh |= {k: own[k] for k in found}
            if not found:
                raise CheckpointError(
                    f"{self.checkpoint}: lacks no key like {pattern} of {self.factory}: leave it out of --new"
                    + (f"; it lacks {_first(lacking)}" if lacking else ""))
        with _naming(self.checkpoint, self.factory, self.from_layout):
            try:
                load_weights(network, {**tensors, **fresh})
            except CheckpointError as e:
                if all(k in fresh for k in lacking):
                    raise
                raise CheckpointError(f"{e}; keys of layers that shall begin anew are named by --new") from e

    @property
    def record(self) -> dict[str, str | list[str] | None]:
        """What a run's record tells of them."""
        return {"file": Path(self.checkpoint).name, "sha256": sha256(Path(self.checkpoint)),
                "from_layout": self.from_layout} | ({"new": list(self.new)} if self.new else {})


def initial_weights(factory: str, checkpoint: Path, allow_pickle: bool = False, from_layout: str | None = None,
                    new: Iterable[str] = ()) -> InitialWeights:
    """Read weights to start a training from.

    ``new`` is that of :class:`InitialWeights`, the others are those of :func:`load_network`. A foreign first
    convolution expects the layout's normalisation; what the training set's own differs by is left to the training.
    Raises :class:`CheckpointError`.
    """
    tensors = read_checkpoint(checkpoint, allow_pickle)
    if from_layout is not None:
        _check_layout(from_layout, factory, checkpoint)
        tensors = convert(tensors, build_network(factory).state_dict(), LAYOUTS[from_layout])[0]
    return InitialWeights(tensors, factory, checkpoint, from_layout, tuple(new))


def open_bundle_network(bundle: Bundle) -> nn.Module:
    """The PyTorch network of a bundle (training form, evaluation mode) with the bundle's own weights.

    Runs the code that the bundle's manifest names, see :func:`build_network`, whose errors it raises, besides
    :class:`CheckpointError` and :class:`~irstd_edge.bundle.BundleError`.
    """
    return restore(build_network(bundle.manifest.factory), bundle.weights()).eval()


def build_network(factory: str, seed: int = 0) -> nn.Module:
    """Call a factory by registry name or ``package.module:factory``; random weights are those of ``seed``.

    ``package.module`` is imported, the current directory first, and the factory is called: both run whatever code is
    there. Trust a bundle that names one, as every bundle may, like code. Names in the standard library are refused, as
    no network is made there; that protects from nothing else.

    Raises :class:`FactoryError`, :class:`~irstd_edge.models.registry.UnknownModelError`, and
    :class:`~irstd_edge.errors.UnsupportedError` where a layer of the network breaks the operator specification.
    """
    make = _import_factory(factory) if ":" in factory else get_model(factory).factory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = make()
        except OpSpecError as e:
            raise UnsupportedError(f"{factory} has a layer that no operator here can run: {e}") from e
        except Exception as e:
            if ":" not in factory:
                raise
            raise FactoryError(f"{factory}() failed: {type(e).__name__}: {e}") from e
    if not isinstance(network, nn.Module):
        raise FactoryError(f"{factory}() returned {type(network).__name__}; it must return a torch.nn.Module")
    return network


def _import_factory(reference: str):
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise FactoryError(f"{reference!r} is no factory; write package.module:factory")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise FactoryError(f"{reference}: the standard library holds no network factory")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is not None and (module_name == e.name or module_name.startswith(e.name + ".")):
            raise FactoryError(f"no module {module_name!r} in the current directory or on Python's path") from e
        raise FactoryError(f"importing {module_name} failed: {e}") from e
    except OpSpecError as e:
        raise UnsupportedError(f"{module_name} has a layer that no operator here can run: {e}") from e
    except Exception as e:
        raise FactoryError(f"importing {module_name} failed: {type(e).__name__}: {e}") from e
    finally:
        if here in sys.path:
            sys.path.remove(here)
    target = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise FactoryError(f"module {module_name!r} has no {attribute!r}")
        target = getattr(target, part)
    if not (inspect.isfunction(target) or inspect.isclass(target) or isinstance(target, functools.partial)):
        raise FactoryError(f"{reference} is a {type(target).__name__}; it must be a function or class that returns "
                           "a torch.nn.Module")
    return target


def _check_layout(name: str, factory: str, checkpoint: Path | None) -> None:
    layout = LAYOUTS.get(name)
    if layout is None:
        raise CheckpointError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    if checkpoint is None:
        raise CheckpointError(f"--from-layout {name} says how to read a checkpoint: give --checkpoint FILE too")
    if factory not in layout.networks:
        raise CheckpointError(f"checkpoints of {layout.source} hold {', '.join(layout.networks)}, not {factory}")


def _given(mean: float | None, std: float | None) -> tuple[float, float] | tuple[None, None]:
    """``--mean`` and ``--std`` if they are there and make sense."""
    if (mean is None) != (std is None):
        raise CheckpointError("give --mean and --std together")
    if mean is None:
        return None, None
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointError(f"--mean must be finite and --std positive, got {mean} and {std}")
    return float(mean), float(std)


def _normalisation(factory, checkpoint, known, mean, std, untrained) -> tuple[float, float]:
    mean, std = _given(mean, std)
    if mean is not None:
        return mean, std
    found = None
    if checkpoint is not None:
        found = recorded_normalisation(checkpoint)
    found = found or known
    if found is None and untrained:
        found = DATASETS["NUAA-SIRST"].normalisation.__dict__
    if found is None:
        raise CheckpointError(f"the normalisation that {factory} was trained with is unknown: give --mean and --std "
                              "on the 0..255 scale (irstd-edge data lists those of the public sets)")
    return float(found["mean"]), float(found["std"])


def recorded_normalisation(checkpoint: Path) -> dict | None:
    """``mean`` and ``std`` of the training run, or the quantisation, in whose folder a checkpoint lies, or None."""
    records = ("recipe.json", "quantisation.json")
    # Training may go on in the folder of what was quantised.
    for name in reversed(records) if Path(checkpoint).name == QUANTISED else records:
        try:
            found = json.loads((Path(checkpoint).parent / name).read_text())["normalisation"]
            return {"mean": float(found["mean"]), "std": float(found["std"])}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:  # a pickle
        return {}


def _unpickle(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        warnings.warn(f"{path} holds more than tensors: unpickled in full, as --allow-pickle asked; "
                      "code inside it could run", PickleWarning, stacklevel=3)
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as e:
        raise CheckpointError(f"{path}: cannot be unpickled ({type(e).__name__}: {e})") from e


def _unwrap(value, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(len(WRAPPERS)):
        if isinstance(value, nn.Module):
            value = value.state_dict()
        inner = next((value[k] for k in WRAPPERS if isinstance(value.get(k), Mapping | nn.Module)), None) \
            if isinstance(value, Mapping) else None
        if inner is None:
            break
        value = inner
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected tensors by name")
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name, neither bare nor under {', '.join(WRAPPERS)}")
    return {k: v.detach() for k, v in tensors.items()}


def _strip_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((p for p in PREFIXES if tensors and all(k.startswith(p) for k in tensors)), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
