"""`diffeoreg import-weights`: published weights run as they did, or one sentence says why not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.cli.import_weights import sizes_of
from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.networks.published import PUBLISHED, places_of
from DiffeoRegLib.networks.pyramid import PyramidConfig, parameter_count
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_affine import affine_matrix
from DiffeoRegLib.networks.sitreg_turned import turned, turned_weights
from DiffeoRegLib.networks.sitreg_weights import published_names, read_published
from DiffeoRegLib.networks.weights import network_for, read_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.config import read_config
from DiffeoRegLib.training.start import shipped_configs
from DiffeoRegLib.volumes.files import write_volume
from Testing.command import one_sentence, run
from Testing.halfway_cases import hostile_pair
from Testing.published_cases import ENCODER, HEADS, Published
from Testing.sitreg_cases import moving_network, pictures

PARAMETERS = {"oasis": 1_196_820, "oasis-raw": 2_464_872, "lpba40": 1_847_745, "lung": 1_541_180,
              "lumir": 15_076_110}  # fmt: skip
"""As the authors' configurations count."""
YAML = """\
method: sitreg
network: {{name: sitreg, sizes: {{encoder: {encoder}, heads: {heads}, dim: {dim}, head_groups: {groups}}}}}
data: {{source: data, spacing_mm: {spacing}}}
losses: [{{name: lncc}}]
steps: 1
"""


@pytest.fixture
def like(tmp_path):
    """A training configuration for networks like those of `Published`."""

    def written(dim=3, groups=0, encoder=ENCODER, heads=HEADS, name="like.yaml", spacing=True):
        sizes = [2.0, 2.5, 3.0][:dim] if spacing else "null"
        text = YAML.format(encoder=list(encoder), heads=list(heads), dim=dim, groups=groups, spacing=sizes)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return written


def checkpoint(path, state):
    torch.save({"registration_network": state, "optimizer": {"state": {}}, "epoch": 3}, path)
    return path


def published_state(known, recent=True):
    """A whole state of an author's network, by our names for its parts."""
    order = "conv-norm-act" if recent else "conv-act-norm"
    config = PyramidConfig(
        known.encoder, known.heads, groups=known.groups, head_groups=known.head_groups, affine=known.affine,
        order=order, affine_layers=1 if recent else 2,
    )  # fmt: skip
    torch.manual_seed(0)
    own = SITReg(config).state_dict()
    return {theirs: own[mine] for mine, theirs in published_names(config)}


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(("recent", "groups"), [(False, 0), (True, 0), (True, 2)])
def test_the_written_network_is_the_published_one(recent, groups, like, tmp_path, capsys):
    source = checkpoint(tmp_path / "model.pt", Published(recent, affine=False, head_groups=groups).state)
    out = tmp_path / "out.safetensors"
    words = ["--like", like(groups=groups), "--axes", "SAR", "--licence", "MIT"]
    assert run("import-weights", source, "-o", out, *words) == 0
    said = capsys.readouterr().out
    assert ("code of 2024" if recent else "code of 2023") in said
    assert "2 x 2.5 x 3 mm" in said
    assert f"{groups or 'none'} in the heads" in said
    expected = read_published(source, head_groups=groups)
    network, description = read_network(out)
    unused = {"affine_layers": network.config.affine_layers}
    assert network.config == dataclasses.replace(expected.config, **unused)
    images = pictures((12, 16, 14))
    with torch.no_grad():
        assert torch.equal(network(*images).u12, expected(*images).u12)
    assert description["imported"]["licence"] == "MIT"
    assert description["imported"]["axes"] == "SAR"
    assert description["imported"]["file"] == "model.pt"
    assert str(tmp_path) not in json.dumps(description)
    found = network_for(card("sitreg"), Settings(method="sitreg", weights=str(out)))[1]
    assert found["config"]["data"]["spacing_mm"] == [2.0, 2.5, 3.0]


def test_a_registration_runs_with_them(like, tmp_path):
    """From the authors' file to a transform by two commands."""
    source = checkpoint(tmp_path / "model.pt", Published(True, affine=False).state)
    out = tmp_path / "out.safetensors"
    words = ["--like", like(), "--axes", "LIA", "--spacing-mm", "2", "--quiet"]
    assert run("import-weights", source, "-o", out, *words) == 0
    _, fixed, moving = hostile_pair()
    files = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    for volume, path in zip((fixed, moving), files, strict=True):
        write_volume(volume, path)
    words = ["--method", "sitreg", "--weights", out, "--device", "cpu", "--init", "mass", "--effort", "fast"]
    assert run("register", *files, "-o", tmp_path / "r", *words, "--quiet", "--no-html") == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert report["folds"]["folded_percent"] == 0
    assert (tmp_path / "r" / "transform.h5").is_file()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "lumir"])
def test_every_network_of_the_authors_by_its_name(name, tmp_path, capsys):
    known = PUBLISHED[name]
    recent = name != "oasis"
    source = checkpoint(tmp_path / "model.pt", published_state(known, recent))
    more = [] if known.axes else ["--axes", "RAS"]
    more += [] if known.spacing_mm else ["--spacing-mm", "1"]
    out = tmp_path / "out.safetensors"
    assert run("import-weights", source, "-o", out, "--like", name, *more, "--json") == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    # One hidden layer of the affine stage reaches nothing in the code of 2024.
    dead = 176 * 177 if name == "oasis-raw" else 0
    assert answer["parameters"] == PARAMETERS[name] - dead
    assert answer["spacing_mm"] == [known.spacing_mm or 1.0] * 3
    assert answer["imported"]["axes"] == (known.axes or "RAS")
    assert answer["imported"]["licence"] == "not stated"


def test_lumir_is_the_large_network():
    known = PUBLISHED["lumir"]
    config = PyramidConfig(known.encoder, known.heads, groups=known.groups, head_groups=known.head_groups)
    assert parameter_count(SITReg(config)) == PARAMETERS["lumir"]


def test_training_goes_on_from_them(tmp_path):
    """The sizes are written as the shipped configuration states them."""
    source = checkpoint(tmp_path / "model.pt", published_state(PUBLISHED["oasis"], recent=False))
    out, shipped = tmp_path / "out.safetensors", shipped_configs()["sitreg-published"]
    words = ["--like", shipped, "--axes", "LIA", "--quiet"]
    assert run("import-weights", source, "-o", out, *words) == 0
    assert read_network(out)[1]["network"]["sizes"] == dict(read_config(shipped).network.sizes)
    assert read_network(out, wanted=read_config(shipped).network)


def test_sizes_say_what_is_not_usual():
    config = PyramidConfig((4, 8), (4,), groups=4, affine=True, affine_layers=1)
    assert sizes_of(config) == {"encoder": [4, 8], "heads": [4], "groups": 4, "affine": True,
                                "affine_layers": 1}  # fmt: skip
    assert sizes_of(dataclasses.replace(config, groups=2, affine=False)) == {"encoder": [4, 8], "heads": [4]}


# ---------------------------------------------------------------- axes

WAYS = [((2, 0, 1), (-1, 1, 1)), ((1, 2, 0), (-1, 1, -1)), ((0, 2, 1), (1, 1, -1))]


def test_letters_become_places():
    assert places_of("SAR") == ((0, 1, 2), (1, 1, 1))
    assert places_of("LIA") == ((1, 2, 0), (-1, 1, -1))
    assert places_of("ras") == ((2, 1, 0), (1, 1, 1))
    for wrong in ("", "RA", "RASS", "RRA", "LRA", "XYZ"):
        with pytest.raises(SettingsError, match="three letters"):
            places_of(wrong)


@torch.no_grad()
@pytest.mark.parametrize(("order", "signs", "affine"), [*[(*way, False) for way in WAYS], (*WAYS[0], True)])
def test_a_turned_network_gives_the_turned_motion(order, signs, affine):
    """Images as the authors hold them, and the same along our axes."""
    shape = (64, 64, 64) if affine else (16, 24, 20)  # even at every level
    network = moving_network(strength=20.0, affine=affine)
    ours = SITReg(network.config).eval()
    ours.load_state_dict(turned_weights(network, order, signs))
    images = pictures(shape)
    expected, found = network(*images), ours(*[turned(image, order, signs) for image in images])
    sign = torch.tensor(signs).view(1, 3, 1, 1, 1)
    for way in ("u12", "u21"):
        u_vox = turned(getattr(expected, way), order, signs)[:, list(order)] * sign
        difference = (getattr(found, way) - u_vox).abs()
        assert u_vox.abs().max() > 1.0
        assert difference.max() < 0.05  # the inverses' tolerance is 0.01 voxels
        assert difference.mean() < 1e-4


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_affine_parameters_turn_on_both_sides(order, signs):
    """Every parameter alone, through the matrix it means."""
    network = moving_network(affine=True)
    ours = SITReg(network.config)
    last = network.pyramid.affine.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, (place, sign) in enumerate(zip(order, signs, strict=True)):
        turn[axis, place] = sign
    for number in range(12):
        parameters = torch.zeros(1, 12)
        parameters[0, number] = 0.3
        with torch.no_grad():
            last.bias.copy_(parameters[0])
        ours.load_state_dict(turned_weights(network, order, signs))
        found = affine_matrix(ours.pyramid.affine.layers[-1].bias.detach()[None], 3)[0].numpy()
        expected = turn @ affine_matrix(parameters, 3)[0].numpy() @ turn.T
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_network_of_slices_is_not_turned_as_volumes():
    with pytest.raises(ShapeError, match="2 axes"):
        turned_weights(moving_network(dim=2), (0, 1, 2), (1, 1, 1))


# ---------------------------------------------------------------- what is refused


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def refused(like, tmp_path, capsys):
    """Runs the command on a checkpoint; what it said, once nothing has been written."""
    out = tmp_path / "out.safetensors"

    def said(*words, state=None, source=None, status=2):
        if source is None:
            state = Published(True, affine=False).state if state is None else state
            source = checkpoint(tmp_path / "model.pt", state)
        usual = {"-o": out, "--like": like(), "--axes": "LIA"}
        given = dict(zip(words[::2], words[1::2], strict=True))
        flat = [word for pair in (usual | given).items() for word in pair if pair[1] is not None]
        assert run("import-weights", source, *flat, "--quiet") == status
        sentence = one_sentence(capsys)
        assert not out.exists()
        return sentence

    return said


def test_nothing_in_a_file_runs(refused, tmp_path):
    victim = tmp_path / "victim"
    torch.save({"registration_network": {"a": Harmful(victim)}}, tmp_path / "harmful.pt")
    assert "never loaded" in refused(source=tmp_path / "harmful.pt")
    assert not victim.exists()


def test_files_that_hold_no_such_weights(refused, tmp_path):
    (tmp_path / "text.pt").write_text("weights", encoding="utf-8")
    torch.save({"model": {}}, tmp_path / "other.pt")
    assert "damaged" in refused(source=tmp_path / "text.pt")
    assert "not a checkpoint" in refused(source=tmp_path / "other.pt")
    assert "No such file" in refused(source=tmp_path / "nothing.pt")
    broken = dict(Published(True, affine=False).state)
    broken.pop("_feature_extractor.initial_projection.bias")
    assert "lack" in refused(state=broken)
    bad = {name: value * float("nan") for name, value in Published(True, affine=False).state.items()}
    assert "not finite" in refused(state=bad)


def test_flags_that_do_not_fit(refused, like, tmp_path):
    wrong = like(name="wrong.yaml", encoder=(4, 6, 6))
    unknown = like(name="unknown.yaml", spacing=False)
    other = tmp_path / "other.yaml"
    other.write_text(like().read_text(encoding="utf-8").replace("name: sitreg, sizes", "name: unet, sizes"),
                     encoding="utf-8")  # fmt: skip
    cases = {
        ("--like", "oasis"): "its encoder is (4, 6, 8), not (8, 40, 40, 40)",
        ("--like", wrong): "its encoder is (4, 6, 8), not (4, 6, 6)",
        ("--like", "brains"): "oasis, oasis-raw, lpba40, lung, lumir, tvf-oasis or the YAML file",
        ("--like", other): "trains 'unet'",
        ("--like", unknown): "give --spacing-mm",
        ("--like", "lpba40", "--spacing-mm", "1", "--axes", None): "give --axes",
        ("--axes", None): "give --axes",
        ("--axes", "LIR"): "three letters",
        ("--spacing-mm", "1,2"): "1 or 3 lengths",
        ("--spacing-mm", "0"): "above 0",
        ("--spacing-mm", "one"): "expected numbers",
        ("--like", None): "--like",
        ("-o", tmp_path / "out.pt"): ".safetensors",
    }
    for words, sentence in cases.items():
        assert sentence in refused(*words), words
    assert "no folder" in refused("-o", tmp_path / "none" / "out.safetensors", status=3)
    state = Published(True, affine=True).state
    assert "its affine is True, not False" in refused(state=state)


def test_networks_of_slices_keep_their_axes(refused, like, tmp_path):
    state = Published(True, dim=2, affine=False).state
    flat = like(dim=2, name="flat.yaml")
    assert "slices keep" in refused("--like", flat, state=state)
    out = tmp_path / "flat.safetensors"
    assert run("import-weights", tmp_path / "model.pt", "-o", out, "--like", flat, "--quiet") == 0
    assert read_network(out)[1]["imported"]["axes"] is None


def test_an_old_file_stays_unless_told(like, tmp_path, capsys):
    source = checkpoint(tmp_path / "model.pt", Published(True, affine=False).state)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    words = ["import-weights", source, "-o", out, "--like", like(), "--axes", "RAS", "--quiet"]
    assert run(*words) == 3
    assert "--overwrite" in one_sentence(capsys)
    assert out.read_bytes() == b"precious"
    assert run(*words, "--overwrite") == 0
    assert read_network(out)
