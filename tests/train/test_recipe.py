"""Every knob of the recipe does what it says; each of these fails when its knob does nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from raysft.data.epochs import KeptSplit
from raysft.data.ingest import Rows
from raysft.data.pixels import Preparer
from raysft.data.preparation import Preparation
from raysft.errors import TrialError
from raysft.job.recipe import Train
from raysft.train import learner as learners
from raysft.train.evaluate import evaluate
from raysft.train.features import compute_features
from raysft.train.learner import Learner, balanced_class_weights
from raysft.train.loop import Hooks, Splits, TrialPlan, run_trial
from raysft.train.metrics import MetricSums
from raysft.train.precision import compute_type
from raysft.train.smallnet import small_cnn
from raysft.train.team import Team
from tests.tiny import tiny

ALONE = Team(0, 1, torch.device("cpu"))
HOW = Preparation((0.5,) * 3, (0.25,) * 3)
CALM = {"flip": False, "crop_padding": 0}


def rows(counts: tuple[int, ...], seed: int = 0, spread: float = 40) -> KeptSplit:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.normal(90 + 30 * labels[:, None, None, None], spread, (len(labels), 8, 8, 3)).clip(
        0, 255
    )
    return KeptSplit(Rows(np.arange(len(labels)), images.astype(np.uint8), labels))


def small() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(3)


def head_of(net: nn.Module) -> str:
    return [name for name, m in net.named_modules() if isinstance(m, nn.Linear)][-1]


def trained(
    folder: Path,
    net: nn.Module,
    train: KeptSplit | None = None,
    val: KeptSplit | None = None,
    features=None,
    **knobs,
) -> list[dict]:
    """Train `net` (in place) with the knobs; returns its epochs."""
    spec = Train.model_validate(
        {"epochs": 2, "batch_size": 16, "augment": CALM, "optimizer": {"name": "sgd", "lr": 0.05}}
        | knobs
    )
    train, val = train or rows((20, 20, 20)), val or rows((10, 10, 10), seed=1)
    counts = tuple(np.bincount(train.rows.labels, minlength=3).tolist())
    recipe = TrialPlan(spec, 0, HOW, counts, "val_accuracy", folder / "t/checkpoints", head_of(net))
    seen: list[dict] = []

    def report(history, last):
        seen.append(history[-1])
        return True

    given = {} if features is None else {"features": features}
    hooks = Hooks(report, lambda *a: None)
    run_trial(recipe, net, Splits(train, val, **given), ALONE, hooks)
    return seen


def changed(before: dict, after: dict) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


# --- what is trained ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "stays"),
    [
        ("backbone", lambda key: not key.startswith("14.")),
        (["0.", "1."], lambda key: key.startswith(("0.", "1."))),
    ],
)
def test_frozen_tensors_are_bit_equal_after_training(tmp_path, freeze, stays):
    net = small()
    before = state(net)
    trained(tmp_path, net, freeze=freeze)
    assert changed(before, net.state_dict()) == {
        key for key in before if not stays(key)
    }  # batch statistics as well


def test_in_the_first_epochs_the_head_alone_learns(tmp_path):
    net = small()
    before = state(net)
    trained(tmp_path / "a", net, epochs=1, head_epochs=1)
    assert changed(before, net.state_dict()) == {"14.weight", "14.bias"}
    trained(tmp_path / "b", net, epochs=2, head_epochs=1)
    assert {"0.weight", "1.running_mean", "14.weight"} <= changed(before, net.state_dict())


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [(["layer9"], "no tensor begins with layer9"), ([""], "leaves nothing to train")],
)
def test_what_cannot_be_frozen_is_told(tmp_path, freeze, expected):
    with pytest.raises(TrialError, match=expected):
        trained(tmp_path, small(), freeze=freeze)


def test_earlier_layers_change_less_with_layer_decay(tmp_path):
    moved = {}
    for decay in (1.0, 0.1):
        net = small()
        first = net[0].weight.detach().clone()
        trained(tmp_path / str(decay), net, layer_decay=decay)
        moved[decay] = (net[0].weight - first).norm().item()
    assert moved[0.1] < 0.01 * moved[1.0]


def test_kept_features_give_same_numbers_as_images(tmp_path):
    knobs = {"freeze": "backbone", "epochs": 3}
    asked = []

    def features(split: str) -> KeptSplit | None:
        asked.append(split)
        source = {"train": rows((20, 20, 20)), "val": rows((10, 10, 10), seed=1)}[split]
        return compute_features(source, small(), "14", Preparer(HOW), ALONE, 1e9)

    with_images = trained(tmp_path / "a", small(), **knobs)
    with_features = trained(tmp_path / "b", small(), features=features, **knobs)
    assert asked
    for one, other in zip(with_images, with_features, strict=True):
        for key in ("train_loss", "val_loss", "val_accuracy", "train_accuracy"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    asked.clear()
    trained(tmp_path / "c", small(), features=features, freeze="backbone", augment={"flip": True})
    assert not asked  # images that change have no features to keep


def test_features_are_kept_only_where_they_suffice():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny(3)

        def forward(self, images):
            return 2 * self.net(images)  # something comes after the head

    split = rows((5, 5, 5))
    assert compute_features(split, tiny(3), "4", Preparer(HOW), ALONE, 1e9) is not None
    assert compute_features(split, tiny(3), "4", Preparer(HOW), ALONE, 100.0) is None
    assert compute_features(split, Scaled(), "net.4", Preparer(HOW), ALONE, 1e9) is None
    pooled = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert compute_features(split, pooled, "0", Preparer(HOW), ALONE, 1e9) is None


# --- the step ----------------------------------------------------------------------------------


def test_accumulated_parts_step_like_the_whole_batch(tmp_path):
    nets = []
    for parts in (1, 4):
        torch.manual_seed(0)
        net = tiny(3)
        trained(
            tmp_path / str(parts),
            net,
            accumulate=parts,
            class_weights="balanced",
            label_smoothing=0.1,
            precision="fp32",
        )
        nets.append(net)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_clipping_limits_the_step_to_its_norm(tmp_path):
    for clip, most in ((None, None), (0.01, 0.5 * 0.01)):
        net = tiny(3)
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        trained(
            tmp_path / str(clip),
            net,
            epochs=1,
            batch_size=60,
            clip_norm=clip,
            optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.0},
        )
        moved = (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm().item()
        assert moved == pytest.approx(most, rel=1e-3) if most else moved > 0.02


def test_label_smoothing_follows_its_formula():
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Learner(tiny(3), "4", Train(label_smoothing=0.2), (2, 2, 2), ALONE).loss(outputs, labels)
    log = F.log_softmax(outputs, dim=1)
    expected = -(0.8 * log[torch.arange(6), labels] + 0.2 * log.mean(1)).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [50, 10, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights((50, 10, 5), torch.device("cpu")).numpy() == pytest.approx(
        expected, rel=1e-6
    )


def test_class_weights_raise_balanced_accuracy_on_skewed_data(tmp_path):
    found = {}
    for weights in ("none", "balanced"):
        torch.manual_seed(0)
        history = trained(
            tmp_path / weights,
            tiny(3),
            train=rows((200, 10, 10)),
            val=rows((30, 30, 30), seed=1),
            epochs=8,
            class_weights=weights,
            optimizer={"name": "adam", "lr": 0.01},
        )
        found[weights] = history[-1]["val_balanced_accuracy"]
    assert found["balanced"] > found["none"] + 0.1


# --- what is delivered -------------------------------------------------------------------------


def test_moving_average_is_validated_and_delivered(tmp_path):
    net = small()
    history = trained(tmp_path, net, ema=0.99)
    folder = tmp_path / "t/checkpoints/epoch-0002"
    delivered, raw = load_file(folder / "model.safetensors"), load_file(folder / "raw.safetensors")
    assert changed(raw, net.state_dict()) == set()
    assert "0.weight" in changed(raw, delivered)
    averaged = small()
    averaged.load_state_dict(delivered)
    scores = evaluate(averaged, rows((10, 10, 10), seed=1), ALONE, Preparer(HOW), 3)
    assert scores["loss"] == pytest.approx(history[-1]["val_loss"])
    assert not (tmp_path / "none").exists()
    trained(tmp_path / "none", small())
    assert not list((tmp_path / "none").rglob("raw.safetensors"))


def test_average_of_short_training_leaves_first_weights():
    net = nn.Linear(1, 1, bias=False)
    average = learners.moving_average(net, 0.999)
    for step in range(20):
        with torch.no_grad():
            net.weight.fill_(step)
        average.update_parameters(net)
    assert 10 < average.module.weight.item() < 19


def test_patience_ends_a_trial_that_gets_no_better(tmp_path):
    frozen_rate = {"name": "sgd", "lr": 1e-12}
    assert len(trained(tmp_path / "a", tiny(3), epochs=9, optimizer=frozen_rate, patience=2)) == 3
    assert len(trained(tmp_path / "b", tiny(3), epochs=9, optimizer=frozen_rate)) == 9


# --- formats -----------------------------------------------------------------------------------


class Remembers(nn.Module):
    """Keeps the number format and the memory layout of what its layer makes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.types, self.layouts = set(), set()

    def forward(self, images):
        found = self.conv(images)
        if self.training:
            self.types.add(found.dtype)
            self.layouts.add(images.is_contiguous(memory_format=torch.channels_last))
        return self.head(found.mean((2, 3)))


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_training_computes_in_the_format_asked_for(tmp_path, precision, expected):
    net = Remembers()
    history = trained(tmp_path, net, precision=precision)
    assert net.types == {expected}
    assert next(net.parameters()).dtype == torch.float32
    assert np.isfinite(history[-1]["val_loss"])


def test_auto_takes_bf16_only_where_hardware_supports_it(monkeypatch):
    for has, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has: has)
        assert compute_type("auto", torch.device("cpu")) is expected
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    for capability, expected in (((7, 5), torch.float16), ((6, 1), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert compute_type("auto", gpu) is expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert compute_type("auto", gpu) is torch.bfloat16


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_applies_to_images_not_weights(tmp_path, wanted):
    net = Remembers()
    trained(tmp_path, net, channels_last=wanted)
    assert net.conv.weight.is_contiguous()
    assert net.layouts == {wanted}


def test_the_network_is_compiled_on_request(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    Learner(tiny(3), "4", Train(), (1, 1, 1), ALONE)
    assert not compiled
    assert Learner(tiny(3), "4", Train(compile=True), (1, 1, 1), ALONE).net in compiled


# --- metrics -----------------------------------------------------------------------------------


def test_metrics_are_those_of_scikit_learn():
    from sklearn import metrics as sk

    torch.manual_seed(0)
    labels = torch.randint(0, 6, (200,)).clamp(max=5)
    labels[labels == 4] = 3  # a class that does not occur
    outputs = torch.randn(200, 7) + 1.5 * F.one_hot(labels, 7)
    sums = MetricSums(7, torch.device("cpu"))
    for part in range(0, 200, 64):
        sums.add(outputs[part : part + 64], labels[part : part + 64])
    found, guess = sums.metrics(), outputs.argmax(1)
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert found["macro_f1"] == pytest.approx(
        sk.f1_score(labels, guess, average="macro", labels=labels.unique())
    )
    expected = sk.recall_score(labels, guess, average="macro", labels=labels.unique())
    assert found["balanced_accuracy"] == pytest.approx(expected)
    assert found["top5_accuracy"] == pytest.approx(
        sk.top_k_accuracy_score(labels, outputs, k=5, labels=range(7))
    )
    trust, bins = outputs.softmax(1).max(1).values.numpy(), np.linspace(0, 1, 16)
    right, at = (guess == labels).numpy(), np.digitize(trust, bins[1:-1])
    gaps = [
        abs(trust[at == b].mean() - right[at == b].mean()) * (at == b).mean() for b in np.unique(at)
    ]
    assert found["calibration_error"] == pytest.approx(sum(gaps), rel=1e-5)


def test_five_classes_have_no_top_five():
    sums = MetricSums(5, torch.device("cpu"))
    sums.add(torch.randn(4, 5), torch.tensor([0, 1, 2, 3]))
    assert "top5_accuracy" not in sums.metrics()
