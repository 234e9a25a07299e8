"""What the benchmark of TransMorph-TVF computes and draws, on small made-up brains."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from Testing.benchmarks.tvf_brains import Pair, means, of_network, of_steps, scores, table
from Testing.benchmarks.tvf_figure import draw, limits

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once
SIZES = {"embed": 4, "depths": [1] * 4, "heads": [1] * 4, "window": [2, 2, 2], "steps": 2}


@pytest.fixture
def pair():
    """A box, and the same one 3 voxels further on along the first axis; the voxels are 2 mm wide."""
    labels = torch.zeros(2, 1, 1, 20, 16, 16, dtype=torch.int32)
    labels[0, ..., 4:12, 4:12, 4:12] = 7
    labels[1, ..., 7:15, 4:12, 4:12] = 7
    fixed, moving = labels.float().mul(0.1).unbind(0)
    return Pair("a_b", fixed, moving, labels[0], labels[1], (2.0, 2.0, 2.0))


def test_scores_of_a_shift(pair):
    u_vox = torch.zeros(1, 3, 20, 16, 16)
    still = scores(pair, u_vox)
    assert still["dice"] == pytest.approx(5 / 8)
    assert still["hd95_mm"] == 6.0
    u_vox[:, 0] = 3.0
    right = scores(pair, u_vox, surfaces=False)
    assert right["dice"] == 1.0
    assert "hd95_mm" not in right
    assert right["folded_percent"] == right["sd_log_jacobian"] == 0.0


def test_rows_of_networks_and_steps_become_tables_and_a_figure(pair, tmp_path):
    torch.manual_seed(0)
    network = build_network(NetworkConfig("transmorph-tvf", SIZES)).eval()
    with torch.no_grad():
        for step in network.steps:
            step.head.weight.mul_(3e3)
    rows = [{"pair": "a_b", "name": "start", **scores(pair, torch.zeros(1, 3, 20, 16, 16))}]
    rows += [of_network(pair, "tvf", network), *of_steps(pair, "tvf", network)]
    trained = next(row for row in rows if row.get("steps") == 2)
    assert trained["dice"] == rows[1]["dice"]
    assert trained["inverse_mean_mm"] == rows[1]["inverse_mean_mm"]
    assert [row["steps"] for row in rows[2:]] == [1, 2, 4, 8, 16]
    assert rows[1]["sd_log_jacobian"] > 0.01
    errors = [row["per_step_mean_mm"] for row in rows[2:]]
    assert errors[0] > errors[-1] > 0
    found = means([*rows, {**rows[0], "dice": rows[0]["dice"] + 0.2}])
    assert [row["pairs"] for row in found] == [2, 1, 1, 1, 1, 1, 1]
    assert found[0]["dice"] == pytest.approx(rows[0]["dice"] + 0.1)
    assert found[0]["dice_sd"] == pytest.approx(0.1)
    text = table(found)
    assert "| start | - | 2 | 0.7250 |" in text
    assert "| tvf | 16 | 1 |" in text
    draw(tmp_path / "steps.png", found)
    assert 5_000 < (tmp_path / "steps.png").stat().st_size < 100_000


def test_the_axis_for_dice_ends_beyond_its_values_and_magnifies_no_noise():
    assert limits([0.5, 0.6]) == pytest.approx((0.49, 0.61))
    assert limits([0.5, 0.502, 0.501]) == pytest.approx((0.491, 0.511))
    assert limits([0.5]) == pytest.approx((0.49, 0.51))
