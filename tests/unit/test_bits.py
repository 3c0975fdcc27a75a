import itertools

import pytest
from small_networks import small_unet
from torch import nn

from irstd_edge.complexity import LayerCount, count_layers, measure_precision
from irstd_edge.models.resunet import ResUNet
from irstd_edge.training.bits import (
    PUBLISHED,
    BitTable,
    BitTableError,
    Block,
    find_blocks,
    matches,
    parse_bits,
    search_assignments,
    table_text,
)

SIZE = (256, 256)
#: Weights, inputs and MACs of each block of ResUNet "two" on three channels at 256 x 256, in per cent, worked out on
#: paper from the channels 8, 16, 32, 64, 128.
SHARES = {
    "conv0_0": (0.09, 8.92, 4.29), "conv1_0": (0.90, 10.19, 10.78), "conv2_0": (3.60, 5.10, 10.78),
    "conv3_0": (14.41, 2.55, 10.78), "conv4_0": (57.66, 1.27, 10.78), "conv3_1": (17.57, 4.46, 13.14),
    "conv2_2": (4.39, 8.92, 13.14), "conv1_3": (1.10, 17.83, 13.14), "conv0_4": (0.27, 35.67, 13.14),
    "final": (0.00, 5.10, 0.04),
}
EDGES = ("conv0_0.0.conv1", "conv0_0.0.shortcut.0", "final")


@pytest.fixture(scope="module")
def resunet_layers():
    return count_layers(ResUNet(in_channels=3), SIZE, 3)


def by_level(blocks, weight_bits, activation_bits):
    return {name: (weight_bits[b.level], activation_bits[b.level]) for b in blocks for name in b.layers}


def test_the_blocks_of_resunet_and_their_shares(resunet_layers):
    blocks = find_blocks(resunet_layers, SIZE)
    assert [b.name for b in blocks] == list(SHARES)
    assert [b.level for b in blocks] == [0, 1, 2, 3, 4, 3, 2, 1, 0, 0]
    assert [b.encoder for b in blocks] == [True] * 5 + [False] * 5
    counts = {layer.name: (layer.weights, layer.inputs, layer.macs) for layer in resunet_layers}
    totals = [sum(c[i] for c in counts.values()) for i in range(3)]
    for b in blocks:
        shares = [100 * sum(counts[name][i] for name in b.layers) / totals[i] for i in range(3)]
        assert shares == pytest.approx(SHARES[b.name], abs=0.006), b.name


@pytest.mark.parametrize("weight_bits", [(3, 3, 3, 3, 2), (8, 6, 6, 2, 2)])
def test_the_mean_of_assignments_by_hand(resunet_layers, weight_bits):
    blocks = find_blocks(resunet_layers, SIZE)
    activation_bits = (4, 4, 4, 2, 2)
    mean = measure_precision(resunet_layers, by_level(blocks, weight_bits, activation_bits))
    level = {b.name: b.level for b in blocks}
    for index, bits, got in ((0, weight_bits, mean.weight_bits_mean), (1, activation_bits, mean.activation_bits_mean)):
        by_hand = sum(bits[level[name]] * share[index] for name, share in SHARES.items()) / 100
        assert got == pytest.approx(by_hand, abs=2e-3)
    by_hand = sum(weight_bits[level[n]] * activation_bits[level[n]] * share[2] for n, share in SHARES.items()) / 100
    assert mean.mac_bits / mean.macs == pytest.approx(by_hand, abs=0.02)
    assert round(mean.weight_bits_mean, 2) == 2.42
    assert (mean.size_ratio, mean.compute_ratio) == pytest.approx((32 / 2.42, 1024 / by_hand), rel=2e-3)


def test_means_and_ratios_of_two_layers_by_hand():
    layers = [LayerCount("a", 10, 100, 1000, 32, 32, (8, 8)), LayerCount("b", 30, 100, 500, 32, 32, (4, 4))]
    p = measure_precision(layers, {"a": (8, 6), "b": (2, 4)})
    assert (p.weight_bits_mean, p.activation_bits_mean) == (3.5, 5.0)
    assert p.mac_bits == 1000 * 48 + 500 * 8
    assert (p.size_ratio, p.memory_ratio) == (32 / 3.5, 6.4)
    assert p.compute_ratio == 1024 * 1500 / 52000
    p = measure_precision(layers, {"a": None, "b": (2, 4)})
    assert (p.weight_bits_mean, p.activation_bits_mean, p.mac_bits) == (9.5, 18.0, 1000 * 1024 + 500 * 8)
    assert measure_precision([]).weight_bits_mean == 32


def test_the_search_finds_the_best_of_all(resunet_layers):
    """Against every combination, tried one by one."""
    blocks = find_blocks(resunet_layers, SIZE)
    losses = {(b.name, kind, n): (1 + i) * (4 - n) * (0.01 if kind == "weights" else 0.02) - 0.005 * (n == 4)
              for i, b in enumerate(blocks) for kind in ("weights", "activations") for n in (2, 3, 4)}
    fixed = dict.fromkeys(EDGES, (8, 8))
    found = search_assignments(resunet_layers, blocks, losses, fixed, max_weight_bits=2.6, max_activation_bits=3.6)
    best = {}
    for kind, ceiling, field in (("weights", 2.6, "weight_bits_mean"), ("activations", 3.6, "activation_bits_mean")):
        costs = []
        for bits in itertools.product((2, 3, 4), repeat=5):
            if list(bits) != sorted(bits, reverse=True):
                continue
            p = measure_precision(resunet_layers, by_level(blocks, bits, bits) | fixed)
            if getattr(p, field) <= ceiling:
                costs.append((round(sum(max(0, losses[b.name, kind, bits[b.level]]) for b in blocks
                                        if set(b.layers) - set(EDGES)), 9), -getattr(p, field), bits))
        best[kind] = min(costs)
    assert (found[0].weight_bits, found[0].activation_bits) == (best["weights"][2], best["activations"][2])
    assert found[0].loss == pytest.approx(best["weights"][0] + best["activations"][0])
    assert found[0].precision.weight_bits_mean <= 2.6 and found[0].precision.activation_bits_mean <= 3.6
    assert {found[0].table[name] for name in EDGES} == {(8, 8)}
    assert [a.loss for a in found] == sorted(a.loss for a in found) and len(found) == 5
    assert found[0].precision == measure_precision(resunet_layers, found[0].table)


def test_a_ceiling_out_of_reach_says_what_is(resunet_layers):
    blocks = find_blocks(resunet_layers, SIZE)
    losses = {(b.name, kind, 2): 0.0 for b in blocks for kind in ("weights", "activations")}
    least = 2 + 30 * 9 * 64 * 64 / sum(layer.weights for layer in resunet_layers)
    with pytest.raises(BitTableError, match=rf"mean of 2\.42 bits of weights: 2 bits everywhere make {least:.2f}"):
        search_assignments(resunet_layers, blocks, losses, {"conv3_0.0.conv2": None})


def test_what_is_published_is_kept_as_published():
    assert PUBLISHED == {"weight_bits_mean": 2.42, "activation_bits_mean": 3.82, "size_ratio": 13.0,
                         "memory_ratio": 4.6, "compute_ratio": 29.0}


def test_blocks_of_other_networks():
    def wrap(inner):
        return nn.Sequential(inner)

    small = [b.name for b in find_blocks(count_layers(small_unet(), (32, 32)), (32, 32))]
    assert small == ["down", "deep", "up", "head"]
    wrapped = find_blocks(count_layers(wrap(wrap(small_unet())), (32, 32)), (32, 32))
    assert [b.name for b in wrapped] == [f"0.0.{name}" for name in small]
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    assert find_blocks(count_layers(flat, (32, 32)), (32, 32)) == [Block("0", ("0",), 0, True), Block("1", ("1",), 0,
                                                                                                      False)]
    mixed = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1)), nn.Conv2d(2, 1, 1))
    assert [(b.name, b.level) for b in find_blocks(count_layers(mixed, (32, 32)), (32, 32))] == [
        ("0.0", 1), ("0.1", 2), ("1", 2)]
    pooled = [LayerCount("a.x", 1, 1, 1, 32, 32, (32, 32)), LayerCount("a.y", 1, 1, 1, 32, 32, (1, 1)),
              LayerCount("b", 1, 1, 1, 32, 32, (16, 16))]
    assert [(b.name, b.level) for b in find_blocks(pooled, (32, 32))] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize("value, bits", [
    ("float", None), (4, (4, 4)), ([6, 3], (6, 3)), ("6,3", (6, 3)), ("8", (8, 8)), ([5], (5, 5))])
def test_bits_are_read(value, bits):
    assert parse_bits(value, "x") == bits


@pytest.mark.parametrize("value", [0, 9, "fp32", [8, 8, 8], [], True, 2.5, "4,x", None, [4, "4"], "-1"])
def test_other_bits_are_refused_by_name(value):
    with pytest.raises(BitTableError, match="entry: bits are a number 1 to 8"):
        parse_bits(value, "entry")


def test_tables_are_read_and_the_last_rule_holds(tmp_path):
    (tmp_path / "t.toml").write_text('default = 4\n[layers]\n"conv0_*" = "float"\n"conv0_0.0.conv2" = [6, 3]\n')
    (tmp_path / "t.json").write_text('{"default": 4, "layers": {"conv0_*": "float", "conv0_0.0.conv2": [6, 3]}}')
    names = ["conv0_0.0.conv1", "conv0_0.0.conv2", "conv1_0.0.conv1"]
    want = {names[0]: None, names[1]: (6, 3), names[2]: (4, 4)}
    for name in ("t.toml", "t.json"):
        assert BitTable.read(tmp_path / name).resolve(names) == want
    (tmp_path / "again.toml").write_text(table_text(want))
    assert BitTable.read(tmp_path / "again.toml").resolve(names) == want


def test_patterns_match_layers_and_modules_around_them():
    assert matches("conv0_0", "conv0_0.0.conv1") and matches("*.conv1", "conv0_0.0.conv1")
    assert not matches("conv0", "conv0_0.0.conv1") and not matches("conv1", "conv0_0.0.conv1")


@pytest.mark.parametrize("text, message", [
    ("default = ", "t.toml"), ("bits = 3", "more or other"), ("layers = 3", "more or other"),
    ('default = 9', "t.toml: default: bits are"), ('[layers]\na = 0', "t.toml: a: bits are"),
])
def test_wrong_tables_name_file_and_entry(tmp_path, text, message):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(BitTableError, match=message):
        BitTable.read(tmp_path / "t.toml")


def test_absent_tables_and_patterns_of_nothing():
    with pytest.raises(BitTableError, match=r"absent\.toml"):
        BitTable.read("absent.toml")
    with pytest.raises(BitTableError, match=r"'deap' matches no convolution; they are down\.0, deep\.0"):
        BitTable((8, 8), (("deap", None),)).resolve(["down.0", "deep.0"])
