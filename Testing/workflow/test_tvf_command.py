"""TransMorph-TVF through the command: register and keep the path, follow it, import published weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.cli.import_tvf import plain_sizes
from DiffeoRegLib.methods.transmorph_tvf import TransMorphTVFMethod
from DiffeoRegLib.networks.axes import Axes
from DiffeoRegLib.networks.tvf_weights import import_published_tvf
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from Testing.command import one_sentence, run
from Testing.halfway_cases import hostile_pair
from Testing.scenes import pair_of, points_of, texture
from Testing.tvf_cases import STEPS, WINDOW, PublishedTVF
from Testing.tvf_networks import constant, network_file, settings_for

YAML = """\
method: transmorph-tvf
network:
  name: transmorph-tvf
  sizes: {{embed: {embed}, depths: [1, 2, 1, 2], heads: [1, 1, 2, 2], window: [2, 2, 2], head_channels: 3,
          mlp_ratio: 2, steps: {steps}, order: {order}}}
data: {{source: data, spacing_mm: [2.0, 2.0, 2.0]}}
losses: [{{name: lncc}}]
steps: 1
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a pair, and weights that move everything by 4 x 0.25 x 2 x 2 mm to S."""
    folder = tmp_path_factory.mktemp("tvf")
    _, fixed, moving = hostile_pair()
    for name, volume in (("fixed", fixed), ("moving", moving)):
        write_volume(volume, folder / f"{name}.nii.gz")
    network_file(folder / "up.safetensors", constant([[0.25, 0.0, 0.0]] * 4), [2.0] * 3)
    return folder


@pytest.fixture(scope="module")
def kept(images):
    """The results of a run that kept its path."""
    assert run(*words_of(images, images / "out"), "--keep-path", "--extra", "order=residual") == 0
    return images / "out"


def words_of(images, out, method="transmorph-tvf"):
    words = ["register", images / "fixed.nii.gz", images / "moving.nii.gz", "-o", out, "--method", method]
    words += ["--weights", images / "up.safetensors"] if method == "transmorph-tvf" else []
    return [*words, "--init", "identity", "--effort", "fast", "--device", "cpu", "--quiet", "--no-html"]


def middle():
    """A point in the middle of the fixed image, (1, 3), RAS mm."""
    return points_of(hostile_pair()[1].grid).mean(axis=0, keepdims=True)


def numbers(path):
    """All numbers of a transform file."""
    parts = sitk.CompositeTransform(sitk.ReadTransform(str(path)))
    return [np.array(parts.GetNthTransform(n).GetParameters()) for n in range(parts.GetNumberOfTransforms())]


# ---------------------------------------------------------------- keep and follow


def test_the_path_is_kept_where_it_is_asked_for(images, kept):
    report = json.loads((kept / "report.json").read_text(encoding="utf-8"))
    assert report["steps"] == 4
    assert 0 < report["transform"]["velocities_mb"] < 1
    assert any("4 time steps of the order 'residual'" in note for note in report["notes"])
    assert run(*words_of(images, kept), "--overwrite") == 0
    assert not (kept / "velocities.safetensors").exists()
    assert run(*words_of(images, kept), "--overwrite", "--keep-path", "--extra", "order=residual") == 0


def test_the_end_of_the_path_is_the_transform_of_the_run(kept, tmp_path):
    words = ["-o", tmp_path / "t.h5", "--inverse-output", tmp_path / "i.h5", "--quiet"]
    assert run("shoot", kept / "velocities.safetensors", *words) == 0
    for mine, theirs in (("t.h5", "transform.h5"), ("i.h5", "inverse.h5")):
        pairs = list(zip(numbers(tmp_path / mine), numbers(kept / theirs), strict=True))
        assert len(pairs) > 0
        assert all(np.array_equal(one, other) for one, other in pairs)


def test_a_transform_after_every_step(kept, tmp_path, capsys):
    words = ["-o", tmp_path / "way.h5", "--each-step", "--json"]
    assert run("shoot", kept / "velocities.safetensors", *words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["times"], found["steps"]) == ([0.0, 0.25, 0.5, 0.75, 1.0], [4])
    points = middle()
    for number in range(5):
        moved = read_transform(tmp_path / f"way_{number:03d}.h5").map_points(points)
        np.testing.assert_allclose(moved, points + np.array([0, 0, number]), atol=0.02)


def test_other_steps_and_times(kept, tmp_path, capsys):
    words = ["-o", tmp_path / "half.nii.gz", "--time", "0.5", "--steps", "6"]
    assert run("shoot", kept / "velocities.safetensors", *words) == 0
    assert "6 of 4 velocities, order 'residual'" in capsys.readouterr().out
    moved = read_transform(tmp_path / "half.nii.gz").map_points(middle())
    np.testing.assert_allclose(moved, middle() + np.array([0, 0, 2.0]), atol=0.02)


def test_what_cannot_be_kept_or_followed(images, kept, tmp_path, capsys):
    velocities, shot = kept / "velocities.safetensors", ["-o", tmp_path / "t.h5", "--quiet"]
    cases = [
        ([*words_of(images, tmp_path / "r", "svf"), "--keep-path"], "change in time, and 'svf' is none"),
        ([*words_of(images, tmp_path / "r"), "--steps", "200"], "1 to 128 time steps"),
        (["shoot", velocities, *shot, "--time", "2"], "time 0 to time 1"),
        (["shoot", velocities, *shot, "--steps", "0"], "whole number"),
        (["shoot", velocities, *shot, "--each-step", "--times", "0,1"], "not allowed"),
        (["shoot", images / "up.safetensors", *shot], "holds no geodesic"),
        (["shoot", images / "no.safetensors", *shot], "no.safetensors"),
    ]
    for words, said in cases:
        assert run(*words) == 2
        assert said in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- published weights


@pytest.fixture
def published(tmp_path):
    """A synthetic file of the authors, its network, and a configuration like it."""
    state = PublishedTVF().state
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "tvf.pth.tar")
    (tmp_path / "like.yaml").write_text(YAML.format(embed=4, steps=STEPS, order="official"), encoding="utf-8")
    return tmp_path / "tvf.pth.tar", import_published_tvf(state, window=WINDOW), tmp_path / "like.yaml"


def test_the_written_network_is_the_published_one(published, tmp_path, capsys):
    source, expected, like = published
    out = tmp_path / "out.safetensors"
    words = ["--like", like, "--axes", "LIA", "--licence", "MIT"]
    assert run("import-weights", source, "-o", out, *words) == 0
    said = capsys.readouterr().out
    assert f"{STEPS} velocities, embedding 4" in said
    assert "--extra order=paper" in said
    network, description = read_network(out)
    assert network.config == expected.config
    assert description["network"]["sizes"] == plain_sizes(expected.config)
    assert (description["imported"]["axes"], description["imported"]["licence"]) == ("LIA", "MIT")
    assert str(tmp_path) not in json.dumps(description)
    one, other = texture((32, 36, 40), 1), texture((32, 36, 40), 2)
    with torch.no_grad():
        assert torch.equal(network(one, other).u12, expected(one, other).u12)


@pytest.mark.parametrize("shape", [(32, 36, 40), (33, 35, 37)])
def test_images_are_turned_to_the_axes_of_the_network(published, tmp_path, shape):
    """What the network says of images along L, I, A, told along S, A, R."""
    source, expected, like = published
    words = ["--like", like, "--axes", "LIA", "--quiet"]
    assert run("import-weights", source, "-o", tmp_path / "out.safetensors", *words) == 0
    fixed, moving = texture(shape, 1), texture(shape, 2)
    settings = settings_for(tmp_path / "out.safetensors")
    found = TransMorphTVFMethod().predict(pair_of(fixed, moving, [2.0] * 3), settings, lambda step: None)

    def stored(image):
        """(S, A, R) as the authors hold it: L, I, A; an odd axis gets its border once more."""
        missing = [side for n in reversed(shape) for side in (0, n % 2)]
        even = torch.nn.functional.pad(image, missing, "replicate")
        return even.flip([4, 2]).permute(0, 1, 4, 2, 3)

    with torch.no_grad():
        theirs = expected(stored(moving), stored(fixed)).velocities_vox
    assert found.velocity_vox.shape == (STEPS, 3, *(-(-n // 2) for n in shape))
    for mine, velocity in zip(found.velocity_vox / STEPS, theirs, strict=True):
        back = velocity[0].permute(0, 2, 3, 1).flip([3, 1])  # spatial axes I -> S, A, L -> R
        upwards, forward, rightwards = -back[1], back[2], -back[0]
        torch.testing.assert_close(mine, torch.stack([upwards, forward, rightwards]) / 2, rtol=0, atol=1e-5)
    assert float(found.velocity_vox.abs().max()) > 0.1


def test_turning_round_and_back_is_nothing():
    axes = Axes.named("PSL")
    field = torch.rand(1, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    back = torch.stack([axes.to_network(field[:, [axis]])[0, 0] for axis in range(3)])
    components = torch.empty_like(back)
    for own, (axis, sign) in enumerate(zip(axes.order, axes.signs, strict=True)):
        components[axis] = sign * back[own]
    assert torch.equal(axes.from_network(components[None]), field)
    assert axes.ours(("p", "s", "l")) == ("s", "p", "l")


def test_a_registration_runs_with_them(published, images, tmp_path):
    source, _, like = published
    out = tmp_path / "out.safetensors"
    assert run("import-weights", source, "-o", out, "--like", like, "--axes", "LIA", "--quiet") == 0
    words = [out if word == images / "up.safetensors" else word for word in words_of(images, tmp_path / "r")]
    assert run(*words, "--extra", "order=paper") == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert report["folds"]["folded_percent"] == 0
    assert report["steps"] % STEPS == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--like", "tvf-oasis"], "windows (5, 6, 7)"),
        (["--like", "wider.yaml", "--axes", "LIA"], "its embed is 4, not 8"),
        (["--like", "more.yaml", "--axes", "LIA"], f"its steps is {STEPS}, not 5"),
        (["--like", "like.yaml"], "--axes"),
        (["--like", "like.yaml", "--axes", "LIA", "--spacing-mm", "1,2"], "1 or 3 lengths"),
        (["--like", "nothing"], "tvf-oasis or the YAML file"),
    ],
)
def test_weights_that_are_not_like_that(published, tmp_path, words, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, embed, steps in (("wider", 8, STEPS), ("more", 4, 5)):
        text = YAML.format(embed=embed, steps=steps, order="official")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    assert run("import-weights", "tvf.pth.tar", "-o", "out.safetensors", *words, "--quiet") == 2
    assert said in one_sentence(capsys)
    assert not (tmp_path / "out.safetensors").exists()


def test_points_are_carried_as_the_report_says(kept):
    """The transform file of the run itself: 4 mm to S."""
    points = points_of(hostile_pair()[1].grid)[::97]
    moved = read_transform(kept / "transform.h5").map_points(points)
    np.testing.assert_allclose(moved - points, np.tile([0, 0, 4.0], (len(points), 1)), atol=0.02)
