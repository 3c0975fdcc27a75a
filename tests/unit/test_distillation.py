"""Distillation between networks of this file: values worked out by hand, then small runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from irstd_edge.bundle import Preprocessing
from irstd_edge.checkpoints import LoadedNetwork, load_network
from irstd_edge.data import Normalisation
from irstd_edge.errors import UnsupportedError
from irstd_edge.training.distillation import (
    BALANCE_EVERY,
    Distillation,
    DistillationError,
    SemanticFit,
    as_map,
    load_teacher,
    spatial_attention,
    weighted_feature_error,
)
from irstd_edge.training.loop import TrainingError, read_curve, train
from irstd_edge.training.recipe import Distill, Recipe

SAME = Normalisation(0.0, 1.0)


class Small(nn.Module):
    def __init__(self, width=4, stride=1):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, stride=stride), nn.BatchNorm2d(width), nn.ReLU())
        self.unused, self.listed = nn.Identity(), nn.ModuleList([nn.Identity()])
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x):
        y = self.head(self.encoder(x))
        return torch.sigmoid(nn.functional.interpolate(y, x.shape[2:], mode="bilinear"))


class Transformer(nn.Module):
    """Patches of 8 x 8, a class token, one self-attention layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        y = self.patch(x)
        n, _, h, w = y.shape
        tokens = torch.cat([self.token.expand(n, -1, -1), y.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        y = torch.sigmoid(self.head(tokens[:, 1:])).transpose(1, 2).reshape(n, 1, h, w)
        return nn.functional.interpolate(y, x.shape[2:], mode="bilinear")


def teacher_network():
    return Small(6, stride=2)


def loaded(network, mean=0.0, std=1.0):
    return LoadedNetwork("t", "x:t", network.eval(), Preprocessing(mean, std, 32), 0.5, None)


def recipe(features, **changes):
    settings = {k: changes.pop(k) for k in list(changes) if k in Distill.__dataclass_fields__}
    distill = Distill("test_distillation:teacher_network", features, **settings)
    return Recipe("test_distillation:Small", "Synthetic", epochs=6, batch=4, crop=32, learning_rate=5e-3, average=0.5,
                  validation=0.2, validate_every=2, distill=distill, **changes)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    torch.manual_seed(7)
    save_file(teacher_network().state_dict(), tmp_path / "teacher.safetensors")
    return str(tmp_path / "teacher.safetensors")


def test_attention_by_hand():
    feature = torch.zeros(1, 1, 3, 3)
    feature[0, 0, 1, 1] = 3.0
    # G = 9 in the middle. Window 1: 9 - 9/9 there, 1 after division. Window 3 against 9 (all nine pixels: 1): corners
    # see 9/4 - 1 = 1.25, edges 9/6 - 1 = 0.5, the middle 0; divided by 1.25. Windows 5 and 7 see all: 0.
    expected = torch.tensor([[1, 0.4, 1], [0.4, 1, 0.4], [1, 0.4, 1]]) / 4
    torch.testing.assert_close(spatial_attention(feature)[0, 0], expected)
    assert spatial_attention(torch.full((2, 3, 5, 4), 0.7)).abs().max() == 0
    assert spatial_attention(torch.zeros(1, 1, 4, 4)).abs().max() == 0


def test_feature_error_by_hand():
    # Flat maps have no attention: unit vectors (1, 0) and (0, 1) are sqrt 2 apart; lengths do not count.
    teacher = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    student = torch.tensor([0.0, 5.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert weighted_feature_error(teacher, student).item() == pytest.approx(2.0)
    assert weighted_feature_error(teacher, teacher * 3).item() == pytest.approx(0.0, abs=1e-6)
    # Teacher: energy 9 in the middle of 3 x 3, attention as above; student flat. Signs differ in the middle alone.
    teacher = torch.ones(1, 1, 3, 3) * 1e-3
    teacher[0, 0, 1, 1] = 3.0
    student = torch.ones(1, 1, 3, 3)
    student[0, 0, 1, 1] = -1.0
    # Weights (1 + g A)(1 + A), A = 1/4 in five places, 1/10 in four; distance 4 in the middle.
    for g in (1.0, 3.0):
        quarter, tenth = (1 + g / 4) * 1.25, (1 + g / 10) * 1.1
        assert weighted_feature_error(teacher, student, g).item() == pytest.approx(
            4 * quarter / (5 * quarter + 4 * tenth), rel=1e-4)


def test_the_weights_carry_no_gradient():
    student = torch.randn(1, 2, 5, 5, requires_grad=True)
    weighted_feature_error(student.detach() * 2, student).backward()
    assert student.grad.abs().max() < 1e-6  # same direction everywhere: nothing to learn from attention


def test_semantic_loss_by_hand():
    fit = SemanticFit(2, 2)
    with torch.no_grad():
        fit.fit.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        fit.query.weight.zero_()
        fit.key.weight.zero_()
        fit.value.weight.zero_()
    # Two tokens, normalised to (1, -1) and (-1, 1) up to epsilon. T T' / sqrt 2 = +-sqrt 2.
    teacher = torch.tensor([[3.0, -2.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    a = 1 / (1 + math.exp(-2 * math.sqrt(2)))
    kl = a * math.log(2 * a) + (1 - a) * math.log(2 * (1 - a))
    assert fit(teacher, teacher).item() == pytest.approx(kl, abs=1e-4)
    # The student the other way round: every value off by 2.
    assert fit(teacher, teacher.flip(3)).item() == pytest.approx(kl + 4, abs=1e-3)


def test_tokens_become_maps():
    tokens = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    expected = tokens.transpose(1, 2).reshape(2, 3, 2, 2)
    assert torch.equal(as_map(tokens, "a"), expected)
    assert torch.equal(as_map(torch.cat([torch.zeros(2, 1, 3), tokens], 1), "a"), expected)
    for wrong in (torch.zeros(2, 7, 3), torch.zeros(2, 3), "text"):
        with pytest.raises(DistillationError, match=r"a gives .*; features are maps"):
            as_map(wrong, "a")


def test_gradients_are_balanced_at_first_and_followed():
    torch.manual_seed(0)
    student, x, target = Small(), torch.randn(2, 1, 16, 16), (torch.rand(2, 1, 16, 16) > 0.9).float()
    objective = Distillation(Distill("x:t", ("encoder=encoder",), weight=0.5), loaded(teacher_network()), student, SAME,
                             "soft_iou", 16)
    losses = objective(student, x, target)

    def norm(loss):
        grads = torch.autograd.grad(loss, student.parameters(), retain_graph=True, allow_unused=True)
        return math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))

    assert norm(objective.beta * losses["distillation"]) == pytest.approx(0.5 * norm(losses["task"]), rel=1e-4)
    beta = objective.beta
    assert losses["loss"].item() == pytest.approx(losses["task"].item() + beta * losses["distillation"].item())
    for _ in range(BALANCE_EVERY - 1):
        objective(student, x * 2, target)
    assert objective.beta == beta
    losses = objective(student, x * 2, target)
    wanted = 0.5 * norm(losses["task"]) / norm(losses["distillation"])
    assert objective.beta == pytest.approx(beta ** 0.7 * wanted ** 0.3) and objective.beta != beta


def test_the_teacher_sees_its_own_normalisation():
    seen = []

    class Spy(Small):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    student = Small()
    objective = Distillation(Distill("x:t", ("encoder=encoder",)), loaded(Spy(), mean=100.0, std=20.0), student,
                             Normalisation(110.0, 40.0), "soft_iou", 16)
    x = torch.full((2, 1, 16, 16), 0.5)  # grey 130
    objective(student, x, torch.zeros_like(x))
    torch.testing.assert_close(seen[-1], torch.full_like(x, (130 - 100) / 20))


def test_a_run_lowers_the_distillation_loss_and_leaves_the_plain_network(synthetic, tmp_path, checkpoint):
    settings = recipe(("encoder.0=encoder.0", "encoder=encoder"), checkpoint=checkpoint, weight=5.0)
    out = train(replace(settings, learning_rate=0.02), synthetic, tmp_path / "run")
    rows = read_curve(out / "curves.csv")
    assert float(rows[-1]["distillation"]) < 0.8 * float(rows[0]["distillation"]) and float(rows[-1]["task"]) > 0
    record = json.loads((out / "recipe.json").read_text())
    assert record["distill"]["features"] == ["encoder.0=encoder.0", "encoder=encoder"]
    assert record["teacher"]["name"] == "test_distillation:teacher_network" and len(record["teacher"]["sha256"]) == 64
    assert load_file(out / "last.safetensors").keys() == {
        k for k in Small().state_dict() if not k.endswith("num_batches_tracked")}
    plain = load_network(None, model="test_distillation:Small", checkpoint=out / "best.safetensors").network
    assert plain(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_a_resumed_distillation_equals_an_unbroken_one_bit_for_bit(synthetic, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("irstd_edge.training.distillation.BALANCE_EVERY", 3)
    settings = recipe(("encoder=encoder",), checkpoint=checkpoint)
    train(settings, synthetic, tmp_path / "whole")
    train(settings, synthetic, tmp_path / "broken", minutes=0)
    train(settings, synthetic, tmp_path / "broken", resume=True)
    a, b = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    other = replace(settings, distill=replace(settings.distill, weight=0.25))
    with pytest.raises(TrainingError, match=r"recipe, distill\.weight is 1\.0 there, 0\.25 here: use that recipe"):
        train(other, synthetic, tmp_path / "broken", resume=True)


def test_semantic_distillation_from_a_transformer(synthetic, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    torch.manual_seed(3)
    save_file(Transformer().state_dict(), tmp_path / "t.safetensors")
    settings = recipe(("blocks.0=encoder",), checkpoint=str(tmp_path / "t.safetensors"), method="semantic")
    settings = replace(settings, distill=replace(settings.distill, teacher="test_distillation:Transformer"))
    out = train(settings, synthetic, tmp_path / "run")
    rows = read_curve(out / "curves.csv")
    assert float(rows[-1]["distillation"]) < float(rows[0]["distillation"])
    assert load_file(out / "last.safetensors").keys() == {
        k for k in Small().state_dict() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("pair, message", [
    ("encodr=encoder", "the teacher has no layer 'encodr'; nearest: encoder"),
    ("encoder=encoder.9", "the student has no layer 'encoder.9'; nearest: encoder"),
    ("head=encoder", "the teacher's layer 'head': one channel"),
    ("encoder=unused", "the student's layer 'unused' is not called itself: name another"),
    ("encoder=listed", "the student's layer 'listed' is not called itself: name one of listed.0"),
])
def test_wrong_layers_are_named_with_the_nearest(synthetic, tmp_path, checkpoint, pair, message):
    with pytest.raises(DistillationError, match=message):
        train(recipe((pair,), checkpoint=checkpoint), synthetic, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_teachers_are_named(synthetic, tmp_path, checkpoint):
    with pytest.raises(DistillationError, match="test_distillation:teacher_network has no trained weights here: give "
                                                "--teacher-checkpoint"):
        load_teacher(Distill("test_distillation:teacher_network", ("a=b",)), SAME)
    with pytest.raises(DistillationError, match="biisnet-float has no trained weights"):
        load_teacher(Distill("biisnet-float", ("a=b",)), SAME)
    with pytest.raises(ValueError, match="unknown model 'biisne'"):
        load_teacher(Distill("biisne", ("a=b",)), SAME)

    class Colour(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return self.a(x)

    with pytest.raises(UnsupportedError, match=r"the teacher does not run on an input \[2, 1, 16, 16\]"):
        Distillation(Distill("x:t", ("a=encoder",)), loaded(Colour()), Small(), SAME, "soft_iou", 16)


def test_a_teacher_of_the_zoo_has_its_own_normalisation():
    teacher = load_teacher(Distill("biisnet", ("a=b",)), SAME)
    assert teacher.preprocessing.std > 1 and teacher.checkpoint_sha256


def test_a_weight_of_zero_is_plain_training(synthetic, tmp_path, checkpoint):
    settings = recipe(("encoder=encoder",), checkpoint=checkpoint, weight=0.0)
    distilled = load_file(train(settings, synthetic, tmp_path / "distilled") / "last.safetensors")
    plain = load_file(train(replace(settings, distill=None), synthetic, tmp_path / "plain") / "last.safetensors")
    assert all(torch.equal(distilled[k], plain[k]) for k in plain)


def compiled_and_not(settings, root, folder):
    """The curves of a run compiled and of one that is not."""
    return [read_curve(train(settings, root, folder / str(how), compile_network=how) / "curves.csv")
            for how in (True, False)]


def test_a_compiled_student_is_distilled_alike(synthetic, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("irstd_edge.training.distillation.BALANCE_EVERY", 3)
    settings = recipe(("encoder=encoder",), checkpoint=checkpoint)
    # First without a teacher: its code, compiled for the same class, watches nothing.
    plain = train(replace(settings, distill=None, epochs=1), synthetic, tmp_path / "plain", compile_network=True)
    assert len(read_curve(plain / "curves.csv")) == 1
    for a, b in zip(*compiled_and_not(settings, synthetic, tmp_path), strict=True):
        for column in ("loss", "task", "distillation"):
            assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-3), column


@pytest.mark.slow
def test_a_compiled_network_whose_buffers_torch_would_give_away_is_distilled(synthetic, tmp_path, checkpoint):
    """MDPNet's backward may overwrite what it saved, unless told that it is run more than once."""
    settings = replace(recipe(("encoder=stages.2",), checkpoint=checkpoint), network="mdpnet", epochs=1)
    (a,), (b,) = compiled_and_not(settings, synthetic, tmp_path)
    # Dropout draws otherwise in compiled code.
    assert float(a["distillation"]) == pytest.approx(float(b["distillation"]), rel=0.05)


def test_nothing_of_a_distillation_is_left_on_the_network(synthetic, tmp_path, checkpoint):
    network = Small()
    settings = recipe(("encoder=encoder",), checkpoint=checkpoint)
    train(replace(settings, epochs=1), synthetic, tmp_path / "run", network=network)
    assert not any(m._forward_hooks for m in network.modules())

    class Broken(Small):
        def forward(self, x):
            super().forward(x)
            raise MemoryError("no more")

    student = Small()
    objective = Distillation(Distill("x:t", ("encoder=encoder",)), loaded(teacher_network()), student, SAME,
                             "soft_iou", 16)
    student.__class__ = Broken
    x = torch.zeros(2, 1, 16, 16)
    with objective.watching(student):
        with pytest.raises(MemoryError):
            objective(student, x, x)
        assert objective._felt == {}  # the features, and with them their graph, are let go
