import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from irstd_edge import checkpoints, cli, errors, zoo
from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import (
    CheckpointError,
    FactoryError,
    PickleWarning,
    build_network,
    initial_weights,
    load_network,
    load_weights,
    open_bundle_network,
    read_checkpoint,
    save_weights,
)
from irstd_edge.data import Normalisation
from irstd_edge.errors import UnsupportedError, details
from irstd_edge.models.registry import UnknownModelError
from irstd_edge.nn.convert import Conversion, QuantLayer, convert
from irstd_edge.training.distillation import load_teacher
from irstd_edge.training.recipe import Distill
from irstd_edge.training.seen import training_recipes


def tensors():
    return {"a.weight": torch.arange(4.0).view(2, 2), "a.bias": torch.ones(2)}


def network():
    net = nn.Module()
    net.a = nn.Linear(2, 2)
    return net


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Wrapped(nn.Module):
    """Layers under ``model``, whose keys files have without that, and perhaps a new one beside it or in it."""

    def __init__(self, *more: nn.Module, head: bool = False):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 2, 1), *more)
        if head:
            self.head = nn.Conv2d(2, 1, 1)


@pytest.mark.parametrize("grown, new", [
    ({"head": True}, "head.*"), ({"more": [nn.Conv2d(2, 2, 1)]}, "model.1.*"), ({"more": [nn.Conv2d(2, 2, 1)]}, "*1.*"),
])
def test_new_layers_beside_or_in_a_wrapped_network(tmp_path, grown, new):
    first, network = Wrapped(), Wrapped(*grown.get("more", ()), head=grown.get("head", False))
    save_weights(first, tmp_path / "w.safetensors")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"2 missing .*; keys of layers that shall begin anew are named by --new"):
        initial_weights("a:b", tmp_path / "w.safetensors").load_into(network)
    initial_weights("a:b", tmp_path / "w.safetensors", new=[new]).load_into(network)
    for k, v in network.state_dict().items():
        assert torch.equal(v, first.state_dict().get(k, before[k]))


def test_safetensors_are_read_whatever_the_suffix(tmp_path):
    save_file(tensors(), tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth"), tensors())


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_prefixes_on_every_key_are_taken_off(tmp_path, prefix):
    save_file({prefix + k: v for k, v in tensors().items()}, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), tensors())


def test_a_prefix_on_some_keys_is_kept(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    save_file(mixed, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), mixed)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("layout", [
    lambda t: t,
    lambda t: {"epoch": 3, "state_dict": t, "total_loss": [0.5]},
    lambda t: {"net": t, "optimizer": {"state": {}}, "iou": 0.5},
    lambda t: {"state_dict": {"model." + k: v for k, v in t.items()}},
    lambda t: {"model": {"state_dict": t}},
])
def test_pickles_are_refused_unless_allowed(tmp_path, layout, new_format):
    path = tmp_path / "a.pth.tar"
    torch.save(layout(tensors()), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        read_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_checkpoint(path, allow_pickle=True), tensors())


def test_full_unpickling_is_never_silent(tmp_path):
    path = tmp_path / "a.pkl"
    torch.save(network().requires_grad_(False), path)
    with pytest.warns(PickleWarning, match="holds more than tensors"):
        assert read_checkpoint(path, allow_pickle=True).keys() == tensors().keys()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_refused_pickle_runs_nothing(tmp_path):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    torch.save({"state_dict": tensors(), "x": Evil(trace)}, path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\0\0\0\0\0\0\0{broken!", b"PK\x03\x04nothing"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PickleWarning)
        read_checkpoint(path, allow_pickle=True)


def test_absent_and_empty_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "absent")
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(tmp_path / "a.pth", allow_pickle=True)
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "b.pth", allow_pickle=True)


def test_wrong_keys_shapes_and_values_are_named_and_change_nothing():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError) as e:
        load_weights(net, {"a.weight": torch.ones(3, 2), "b": torch.ones(1), "c": torch.tensor([float("nan")])})
    message = str(e.value)
    for part in ("1 missing (a.bias)", "2 unexpected (b, c)", "a.weight [3, 2], network [2, 2]", "1 not finite (c)"):
        assert part in message
    assert same(net.state_dict(), before)
    with pytest.raises(CheckpointError, match=r"9 unexpected \(x0, x1, x2, x3, \.\.\.\)") as e:
        load_weights(net, tensors() | {f"x{i}": torch.ones(1) for i in range(9)})
    assert details(e.value) == ["\n".join(["unexpected:", *(f"  x{i}" for i in range(9))])]


def test_all_keys_that_do_not_fit_are_listed_below_the_line(synthetic, tmp_path, capsys):
    path = tmp_path / "part.safetensors"
    save_file({"stem.weight": torch.ones(1)}, path)
    assert cli.main(["evaluate", "resunet-one", "--checkpoint", str(path), "--mean", "0", "--std", "1", "--dataset",
                     "Synthetic", "--root", str(synthetic)]) == errors.USAGE
    lines = capsys.readouterr().err.splitlines()
    keys = [k for k in build_network("resunet-one").state_dict() if not k.endswith("num_batches_tracked")]
    assert lines[-len(keys) - 1:] == ["missing:", *(f"  {key}" for key in keys)]
    assert f"{path}: " in lines[-len(keys) - 2] and f"{len(keys)} missing" in lines[-len(keys) - 2]


def test_weights_are_loaded_without_counters_and_under_a_networks_own_prefix():
    net = nn.Sequential(nn.BatchNorm2d(2))
    load_weights(net, {k: v + 1 for k, v in net.state_dict().items() if "num_batches" not in k})
    assert net[0].weight.tolist() == [2, 2]
    wrapper = nn.Module()
    wrapper.model = network()
    load_weights(wrapper, tensors())
    assert torch.equal(wrapper.model.a.weight, tensors()["a.weight"])


@pytest.mark.parametrize("outer", ["module", "model"])
@pytest.mark.parametrize("inner", ["module", "model"])
def test_the_weights_of_a_network_wrapped_twice_are_read_back(tmp_path, outer, inner):
    net = network()
    for name in (inner, outer):
        wrapper = nn.Module()
        wrapper.add_module(name, net)
        net = wrapper
    save_weights(net, tmp_path / "a.safetensors")
    wanted = {k: v.clone() for k, v in net.state_dict().items()}
    for p in net.parameters():
        nn.init.zeros_(p)
    load_weights(net, read_checkpoint(tmp_path / "a.safetensors"))
    assert same(net.state_dict(), wanted)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"user_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(
        "from torch import nn\n"
        "def make():\n    net = nn.Sequential(nn.Conv2d(1, 1, 1))\n    net.size_multiple = 48\n    return net\n"
        "def number():\n    return 3\n"
        "def fails():\n    raise RuntimeError('no')\n"
        "value = 3\n"
    )
    return name


def test_a_users_factory_is_found_in_the_current_directory(user_module, tmp_path):
    loaded = load_network(None, model=f"{user_module}:make", mean=10, std=2)
    assert (loaded.name, loaded.factory, loaded.checkpoint_sha256) == ("make", f"{user_module}:make", None)
    assert (loaded.preprocessing.mean, loaded.preprocessing.std, loaded.preprocessing.size_multiple) == (10, 2, 96)
    assert not loaded.network.training
    path = tmp_path / "w.safetensors"
    save_file({"0.weight": torch.full((1, 1, 1, 1), 5.0), "0.bias": torch.zeros(1)}, path)
    loaded = load_network("mine", model=f"{user_module}:make", checkpoint=path, mean=10, std=2)
    assert loaded.name == "mine" and loaded.network[0].weight.item() == 5 and loaded.checkpoint_sha256 == sha256(path)


@pytest.mark.parametrize("reference, message", [
    ("{}:absent", "has no 'absent'"),
    ("{}:value", "is a int; it must be a function or class"),
    ("{}:number", "returned int; it must return a torch.nn.Module"),
    ("{}:fails", "RuntimeError: no"),
    ("absent_module:make", "no module 'absent_module'"),
    ("absent.package:make", "no module 'absent.package'"),
    ("os:abort", "standard library"),
    (":make", "write package.module:factory"),
    ("{}:", "write package.module:factory"),
])
def test_wrong_factories_are_named(user_module, reference, message):
    with pytest.raises(FactoryError, match=message):
        build_network(reference.format(user_module))


@pytest.mark.parametrize("text", [
    "def make():\n    return BinaryConv2d(1, 1, 33)\n", "make = BinaryConv2d(1, 1, 33)\n"])
def test_a_layer_that_no_operator_can_run_is_unsupported(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    name = f"layer_{abs(hash(text))}"
    Path(f"{name}.py").write_text("from irstd_edge.nn.binary import BinaryConv2d\n" + text)
    with pytest.raises(UnsupportedError, match=f"{name}.*kernel_h must be at most 31, got 33"):
        build_network(f"{name}:make")


@pytest.mark.parametrize("text", ["import absent_dependency\n", "1 / 0\n", "def (\n"])
def test_a_module_that_fails_to_import_is_told_from_an_absent_one(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    name = f"broken_{abs(hash(text))}"
    Path(f"{name}.py").write_text(text)
    with pytest.raises(FactoryError, match=f"importing {name} failed"):
        build_network(f"{name}:make")


@pytest.fixture
def empty_zoo(monkeypatch):
    monkeypatch.setattr(checkpoints, "zoo_weights", lambda name: None)
    monkeypatch.setattr(checkpoints, "zoo_card", lambda name: None)


def test_random_weights_only_by_request_and_always_the_same(empty_zoo):
    with pytest.raises(CheckpointError, match=r"give --checkpoint FILE, or --untrained"):
        load_network("biisnet-float", untrained=False)
    with pytest.raises(CheckpointError, match=r"give --checkpoint FILE$"):
        load_network("biisnet-float")
    state = torch.random.get_rng_state()
    a, b = (load_network("biisnet-float", untrained=True) for _ in range(2))
    assert same(a.network.state_dict(), b.network.state_dict()) and a.checkpoint_sha256 is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_zoo_weights_and_card_are_the_default(tmp_path, monkeypatch):
    path = tmp_path / "biisnet.safetensors"
    other = {k: v + 0 for k, v in build_network("biisnet").state_dict().items() if "num_batches" not in k}
    other["head.bias"] = torch.tensor([7.0])
    save_file(other, path)
    monkeypatch.setattr(checkpoints, "zoo_weights", lambda name: path)
    monkeypatch.setattr(checkpoints, "zoo_card",
                        lambda name: {"normalisation": {"mean": 3.0, "std": 4.0}, "threshold": 0.25})
    loaded = load_network("biisnet")
    assert loaded.network.head.bias.item() == 7 and loaded.checkpoint_sha256 == sha256(path)
    assert (loaded.preprocessing.mean, loaded.preprocessing.std, loaded.threshold) == (3, 4, 0.25)
    assert loaded.preprocessing.size_multiple == 32
    other_data = tmp_path / "elsewhere" / "biisnet.safetensors"
    other_data.parent.mkdir()
    other_data.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="--mean and --std"):
        load_network("biisnet", checkpoint=other_data)
    (tmp_path / "recipe.json").write_text('{"normalisation": {"mean": 5, "std": 6}}')
    assert load_network("biisnet", checkpoint=path).preprocessing.mean == 5
    assert load_network("biisnet", checkpoint=path, mean=1, std=2).preprocessing.mean == 1


def test_weights_for_one_data_set_go_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    for place, name in enumerate(("biisnet-float@Toy", "biisnet-float")):
        save_file({k: torch.full_like(v, place) for k, v in build_network("biisnet-float").state_dict().items()},
                  tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.json").write_text(json.dumps({
            "normalisation": {"mean": place, "std": 4.0}, "training": {
                    "recipe": {"dataset": name, "validation": 0.0}, "initial": None},
            "weights": {"sha256": sha256(tmp_path / f"{name}.safetensors")}}))
    assert zoo.zoo_names("biisnet-float") == ["biisnet-float", "biisnet-float@Toy"] and not zoo.zoo_names("biisnet")
    for place, name in enumerate(("biisnet-float@Toy", "biisnet-float")):
        loaded = load_network(name)
        assert (loaded.name, loaded.factory, loaded.preprocessing.mean) == (name, "biisnet-float", place)
        assert loaded.network.head.bias.item() == place
        assert [r["dataset"] for r in training_recipes(None, loaded.checkpoint_sha256)] == [name]
    assert load_teacher(Distill("biisnet-float@Toy", ("a=b",)), Normalisation(0, 1)).preprocessing.mean == 0
    with pytest.raises(CheckpointError, match=r"^biisnet-float@Other has no trained weights here: take biisnet-float "
                                              r"or biisnet-float@Toy, or give --checkpoint FILE$"):
        load_network("biisnet-float@Other")
    for options in ({"checkpoint": tmp_path / "biisnet-float.safetensors"}, {"untrained": True}):
        with pytest.raises(CheckpointError, match="biisnet-float@Toy names weights of the zoo: for others name "):
            load_network("biisnet-float@Toy", **options)
    with pytest.raises(UnknownModelError, match="biisnot"):
        load_network("biisnot@Toy")


def test_unknown_normalisation_must_be_given(empty_zoo, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(build_network("biisnet-float").state_dict(), path)
    with pytest.raises(CheckpointError, match="--mean and --std"):
        load_network("biisnet-float", checkpoint=path)
    for values in ({"mean": 1.0}, {"mean": 1.0, "std": 0.0}, {"mean": float("nan"), "std": 1.0}):
        with pytest.raises(CheckpointError, match="--mean"):
            load_network("biisnet-float", checkpoint=path, **values)


def test_wrong_weights_name_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(tensors(), path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: the checkpoint does not fit BiisNet: 1\d\d missing"):
        load_network("biisnet", checkpoint=path, mean=0, std=1)


def test_unknown_names():
    with pytest.raises(UnknownModelError):
        load_network("nonet")
    with pytest.raises(FactoryError, match="irstd-edge models"):
        load_network(None)


@dataclass
class FakeBundle:
    manifest: SimpleNamespace
    path: Path

    def weights(self):
        return self.path


def test_a_bundles_network_has_the_bundles_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    state = build_network("biisnet").state_dict()
    state["head.bias"] = torch.tensor([3.0])
    save_file(state, path)
    opened = open_bundle_network(FakeBundle(SimpleNamespace(factory="biisnet"), path))
    assert opened.head.bias.item() == 3 and not opened.training


def test_a_bundle_of_quantised_weights_opens_as_the_quantised_network(tmp_path):
    network = convert(build_network("resunet-one"), Conversion({}, {"final": QuantLayer(4, 3, False)})).eval()
    save_weights(network, tmp_path / "w.safetensors")
    opened = open_bundle_network(FakeBundle(SimpleNamespace(factory="resunet-one"), tmp_path / "w.safetensors"))
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(opened(x), network(x)) and opened.final.weight_bits == 4
