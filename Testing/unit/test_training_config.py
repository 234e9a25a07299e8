"""Training settings: what a file may say, what is refused and with which words, and the losses they name."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, UnknownNameError
from DiffeoRegLib.losses.similarity import lncc, mse
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.config import (
    SIMILARITY_LOSSES,
    LossConfig,
    OptimiserConfig,
    as_plain,
    check_resumable,
    config_from,
    read_config,
)
from DiffeoRegLib.training.objective import Batch, Objective, inside, penalty
from Testing.sitreg_cases import moving_network, pictures
from Testing.training_cases import SETTINGS, Fields, blob, settings

YAML = """
method: sitreg
data: {source: brains, spacing_mm: [1, 2.5, 1]}
network:
  name: sitreg
  sizes: {encoder: [8, 16], heads: [8, 16]}
losses:
  - {name: lncc-squared, weight: 1, options: {window: 7}}
  - {name: gradient}
optimiser: {learning_rate: 1e-4, schedule: cosine}
steps: 10
precision: bf16
"""


def changed(place, value):
    """The settings with one value replaced or added, by dotted name."""
    content = copy.deepcopy(SETTINGS)
    *parents, last = place.split(".")
    inner = content
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return content


def test_a_yaml_file_becomes_settings_and_back(tmp_path):
    (tmp_path / "sitreg.yaml").write_text(YAML, encoding="utf-8")
    config = read_config(tmp_path / "sitreg.yaml")
    assert config.optimiser.learning_rate == 1e-4  # a text, says YAML 1.1
    assert config.data.spacing_mm == (1.0, 2.5, 1.0)
    assert config.losses[0] == LossConfig("lncc-squared", 1.0, {"window": 7})
    assert config.symmetric
    assert config.precision == "bf16"
    assert config_from(as_plain(config)) == config


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("stepz", 5, "Did you mean 'steps'"),
        ("data.sauce", "x", "no setting in data 'sauce'"),
        ("losses.0.wait", 1, "'wait'"),
        ("losses.0.name", "lnc", "Did you mean 'lncc'"),
        ("losses.0.weight", -1, "at least 0"),
        ("losses", [{"name": "gradient"}], "compares images or labels"),
        ("losses", [{"name": "mse"}, {"name": "mse"}], "once"),
        ("losses", 3, "losses must be a list"),
        ("steps", 0, "at least 1"),
        ("steps", 2.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("batch", "two", "a whole number"),
        ("optimiser.learning_rate", "fast", "must be a number, not 'fast'"),
        ("optimiser.learning_rate", 0, "greater than 0"),
        ("optimiser.betas", [0.9], "a list of 2"),
        ("optimiser.schedule", "cosin", "Did you mean 'cosine'"),
        ("precision", "fp16", "Known: bf16, fp32"),
        ("best", "dicee", "Did you mean 'dice'"),
        ("on_bad_data", "ignore", "Known: skip, stop"),
        ("data.spacing_mm", [1, -1], "above 0"),
        ("data", "brains", "data must hold settings by name"),
        ("symmetric", "yes", "true or false"),
    ],
)
def test_a_wrong_setting_is_named(place, value, words):
    with pytest.raises(SettingsError, match=words):
        config_from(changed(place, value))


def test_a_missing_setting_is_named():
    with pytest.raises(SettingsError, match="must set network, steps"):
        config_from({k: v for k, v in SETTINGS.items() if k not in ("network", "steps")})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 1\nsteps: 2\n", "sets steps twice"),
        ("a: {b: 1, b: 2}", "sets b twice"),
        ("a: [", "not YAML"),
        ("- a", "by name"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        read_config(tmp_path / "x.yaml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({"steps": 20}, True),
        ({"keep": 3, "log_every": 1, "data": {"source": "somewhere", "workers": 2}}, True),
        ({"seed": 4}, False),
        ({"optimiser": {"learning_rate": 1e-3}}, False),
        ({"data": {"source": "elsewhere"}}, False),
    ],
)
def test_only_harmless_settings_change_at_a_resume(change, fine):
    if fine:
        check_resumable(settings(), settings(**change))
    else:
        with pytest.raises(SettingsError, match=next(iter(change))):
            check_resumable(settings(), settings(**change))


def test_a_cosine_schedule_fixes_the_steps():
    cosine = {"schedule": "cosine"}
    with pytest.raises(SettingsError, match="steps"):
        check_resumable(settings(optimiser=cosine), settings(optimiser=cosine, steps=20))


def test_learning_rates():
    cosine = OptimiserConfig(learning_rate=2.0, schedule="cosine", warmup=3)
    assert [cosine.rate(step, 13) for step in range(3)] == [0.5, 1.0, 1.5]
    assert cosine.rate(3, 13) == 2.0
    assert cosine.rate(8, 13) == pytest.approx(1.0)
    assert cosine.rate(13, 13) == pytest.approx(0.0, abs=1e-12)
    assert OptimiserConfig(learning_rate=2.0).rate(12, 13) == 2.0


def test_the_network_named_is_built_with_its_precision():
    network = build_network(settings().network, "bf16")
    assert isinstance(network, SITReg)
    assert network.config.encoder == (2, 4)
    assert network.options.precision == "bfloat16"
    maps = network(*(image.expand(1, 1, 12, 14) for image in (blob((5, 6)), blob((6, 6)))))
    assert maps.u12.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "sitregg"}, "Did you mean 'sitreg'"),
        ({"name": "sitreg", "sizes": {"encoders": [2]}}, "Did you mean 'encoder'"),
        ({"name": "sitreg", "sizes": {"encoder": [3], "heads": [2]}}, "groups"),
        ({"name": "sitreg", "options": {"precision": "bfloat16"}}, "setting of the run"),
    ],
)
def test_a_network_that_cannot_be_is_refused(change, words):
    with pytest.raises(SettingsError, match=words):
        build_network(settings(network=change).network)


def shifted_batch(shift=2.0, **others):
    """A spot and the same moved by a whole number of voxels along axis 0."""
    moving, fixed = (blob(center)[None] for center in ((5.0 + shift, 7.0), (5.0, 7.0)))
    return Batch(moving, fixed, **others)


def constant(shift, shape=(12, 14)):
    """A field that moves everything along axis 0."""
    return torch.tensor([shift, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, *shape)


def test_both_directions_count_half_each_and_penalties_once():
    """u12 is right and costs nothing, u21 is left at zero: half of its mismatch remains."""
    batch = shifted_batch()
    maps = Fields(constant(2.0), constant(0.0))
    losses = [LossConfig("mse", 2.0), LossConfig("gradient", 3.0)]
    total, terms = Objective(losses)(maps, batch)
    assert float(total) == pytest.approx(float(2 * 0.5 * mse(batch.moving, batch.fixed)), rel=1e-6)
    assert set(terms) == {"mse", "gradient"}
    assert float(terms["gradient"]) == 0
    one_way, _ = Objective(losses, symmetric=False)(maps, batch)
    assert float(one_way) == pytest.approx(0, abs=1e-12)


def test_a_symmetric_loss_is_the_formula_and_exchanges_with_the_images():
    network = moving_network(dim=2, levels=2)
    moving, fixed = pictures((14, 18))
    losses = [LossConfig("lncc", 1.0, {"window": 5}), LossConfig("gradient", 0.7)]
    objective = Objective(losses, mask_outside=False)
    maps = network(moving, fixed)
    total = objective(maps, Batch(moving, fixed))[0].detach()
    images = lncc(fixed, warp(moving, maps.u12), 5) + lncc(moving, warp(fixed, maps.u21), 5)
    slopes = penalty("gradient", maps.u12) + penalty("gradient", maps.u21)
    assert float(total) == pytest.approx((0.5 * images + 0.35 * slopes).item(), rel=1e-6)
    swapped, _ = objective(network(fixed, moving), Batch(fixed, moving))
    assert float(swapped.detach()) == float(total)


def test_the_affine_part_is_not_penalised():
    network = moving_network(dim=2, levels=2, affine=True)
    with torch.no_grad():
        network.pyramid.affine.layers[-1].bias += 0.05
    moving, fixed = pictures((14, 18))
    # four more levels follow the second: 14 and 18 voxels become one
    maps = network(moving, fixed)
    _, terms = Objective([LossConfig("mse"), LossConfig("gradient")])(maps, Batch(moving, fixed))
    bare = (penalty("gradient", maps.deformable("12")) + penalty("gradient", maps.deformable("21"))) / 2
    assert float(terms["gradient"]) == pytest.approx(bare.item())
    assert float(terms["gradient"]) != pytest.approx(penalty("gradient", maps.u12).item(), rel=1e-3)


def test_the_gradient_penalty_is_the_published_one():
    """u_0 = 0.3 x_0: forward differences 0.3 in one of d components along one of d axes."""
    slope = 0.3 * torch.arange(6.0).reshape(1, 1, 6, 1).expand(1, 1, 6, 5)
    u_vox = torch.cat([slope, torch.zeros_like(slope)], 1)
    assert float(penalty("gradient", u_vox)) == pytest.approx(0.09 / 4)
    assert float(penalty("diffusion", u_vox, (2.0, 1.0))) == pytest.approx(0.09)
    with pytest.raises(UnknownNameError):
        penalty("elastic", u_vox)


def test_places_outside_do_not_count():
    u_vox = constant(4.0)
    held = inside(u_vox, (12, 14))
    assert held[0, 0, :8].all()
    assert not held[0, 0, 8:].any()
    with pytest.raises(NoOverlapError):
        inside(constant(40.0), (12, 14))
    moving, fixed = torch.rand(1, 1, 12, 14), torch.rand(1, 1, 12, 14)
    fixed[:, :, :8] = moving[:, :, 4:]
    maps = Fields(u_vox, -u_vox)
    assert float(Objective([LossConfig("mse")])(maps, Batch(moving, fixed))[0]) == pytest.approx(0, abs=1e-9)


def test_masks_of_the_images_limit_the_similarity():
    moving, fixed = torch.rand(1, 1, 12, 14), torch.rand(1, 1, 12, 14)
    fixed[:, :, :6, :5] = moving[:, :, :6, :5]
    first, second = torch.zeros(1, 1, 12, 14), torch.zeros(1, 1, 12, 14)
    first[:, :, :6] = 1
    second[:, :, :, :5] = 1
    maps = Fields(constant(0.0), constant(0.0))
    batch = Batch(moving, fixed, moving_mask=first, fixed_mask=second)
    assert float(Objective([LossConfig("mse")])(maps, batch)[0]) == pytest.approx(0, abs=1e-12)
    alone = Batch(moving, fixed, moving_mask=first)
    assert float(Objective([LossConfig("mse")])(maps, alone)[0]) > 0.01
    second[:, :, :6] = 0
    with pytest.raises(NoOverlapError, match="masks"):
        Objective([LossConfig("mse")])(maps, Batch(moving, fixed, moving_mask=first, fixed_mask=second))


def test_labels_overlap_where_the_map_is_right():
    labels = [(image > 0.5).long() for image in (shifted_batch().moving, shifted_batch().fixed)]
    batch = shifted_batch(moving_labels=labels[0], fixed_labels=labels[1])
    objective = Objective([LossConfig("dice")])
    right, _ = objective(Fields(constant(2.0), constant(-2.0)), batch)
    wrong, _ = objective(Fields(constant(-2.0), constant(2.0)), batch)
    assert float(right) == pytest.approx(0, abs=1e-6)
    assert float(wrong) > 0.5
    with pytest.raises(InputError, match="label maps"):
        objective(Fields(constant(0.0), constant(0.0)), shifted_batch())
    empty = torch.zeros_like(labels[0])
    nothing, _ = objective(Fields(constant(0.0), constant(0.0)),
                           shifted_batch(moving_labels=empty, fixed_labels=empty))  # fmt: skip
    assert float(nothing) == 0


@pytest.mark.parametrize("name", SIMILARITY_LOSSES)
def test_every_similarity_prefers_the_right_map_and_pulls_towards_it(name):
    batch = shifted_batch()
    objective = Objective([LossConfig(name)], symmetric=False)
    right, _ = objective(Fields(constant(2.0), None), batch)
    u_vox = constant(1.0).clone().requires_grad_()
    near, _ = objective(Fields(u_vox, None), batch)
    near.backward()
    assert right.item() < near.item()
    assert float(u_vox.grad[:, 0].sum()) < 0
    assert math.isfinite(float(u_vox.grad.sum()))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (LossConfig("lncc", 1.0, {"windows": 7}), "Did you mean 'window'"),
        (LossConfig("mse", 1.0, {"window": 7}), "no options"),
        (LossConfig("gradient", 1.0, {"mask": 7}), "no options"),
    ],
)
def test_an_option_a_loss_does_not_have_is_refused(loss, words):
    with pytest.raises(SettingsError, match=words):
        Objective([loss])
