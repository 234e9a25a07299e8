"""Lesions put into brains (3D): where each method believes the tissue was, with right and with wrong marks.

    PYTHONPATH=. python Testing/benchmarks/lesion_brains.py --cases FOLDER/cases --out build/brains.json
        [--metaregnet WEIGHTS] [--vm-cfm WEIGHTS] [--ways none,svf,...] [--sets known-3d other-3d]
    PYTHONPATH=. python Testing/benchmarks/lesion_brains.py --wrong --cases ... --out build/wrong.json
    PYTHONPATH=. python Testing/benchmarks/lesion_brains.py --show build/brains.json

FOLDER is what `lesion_data.py` wrote: persons whom no training has seen.  known-3d: both images are of one
brain, bent, and the true map is known; other-3d: the moving image is of another person, with labels.  The
images of other-3d are aligned with one brain already; those of known-3d are first aligned with each other
(affine), as `register` does it, for all ways alike.
Every way runs through its method, on the 2 mm grid of the cases: none (the alignment alone); svf, as if
both images were healthy; svf-left-out, without the lesion (cost function masking); vm-cfm and metaregnet,
the networks alone; metaregnet-refined; metamorphosis.  All get the same marks; only the last one gives them a
soft edge.  --wrong tells the ways that take marks what `wrong_marks` makes of them; scores take the right
ones.  Weights: of the last step of a training, None = those that come along.
Columns: see `lesion_networks.py`; error in mm.  What is in the file is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.losses.source import smooth_source
from DiffeoRegLib.methods import method_named
from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.methods.appearance import CHANGE_RHO_MM2
from DiffeoRegLib.methods.base import Motion, Progress
from DiffeoRegLib.methods.finish import finish
from DiffeoRegLib.methods.metamorphosis import healthy_part
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.volumes.intensity import resample_affine
from DiffeoRegLib.volumes.pair import Pair
from DiffeoRegLib.volumes.pathology import EDGE_MM
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks.lesion_data import Case, cases
from Testing.benchmarks.lesion_networks import Found, Row, Way, measured, table
from Testing.benchmarks.lesion_scores import wrong_marks
from Testing.benchmarks.metamorphosis import pair_of

Results = dict[str, dict[str, dict[str, Row]]]
"""Rows by set, way and case."""
SETS = ("known-3d", "other-3d")
WRONG_WAYS = ("metamorphosis", "metaregnet-refined")
"""The map of the network alone does not depend on any marks."""
BRAINS = Settings(preset="brain-mr", working_spacing_mm=1.0)


def ways_of(metaregnet: Path | None, vm_cfm: Path | None) -> dict[str, Way]:
    """All ways by name; VM-CFM where there are weights."""
    network = BRAINS.with_changes(
        method="metaregnet" if metaregnet else "metaregnet-brain-t1",
        weights=str(metaregnet) if metaregnet else None,
    )
    ways: dict[str, Way] = {
        "none": unmoved,
        "svf": partial(by_method, BRAINS, marks="none"),
        "svf-left-out": partial(by_method, BRAINS, marks="left out"),
    }
    if vm_cfm:
        masked = BRAINS.with_changes(method="voxelmorph", weights=str(vm_cfm), effort="fast")
        ways["vm-cfm"] = partial(by_method, masked, marks="none")
    ways["metaregnet"] = partial(by_method, network.with_changes(effort="fast"), marks="given")
    ways["metaregnet-refined"] = partial(by_method, network, marks="given")
    ways["metamorphosis"] = partial(by_method, BRAINS.with_changes(method="metamorphosis"), marks="given")
    return ways


def by_method(settings: Settings, case: Case, marks: str) -> Found:
    """The displacement of a method, its change of appearance, and CPU seconds.

    marks: `none` = the method hears of no lesion; `left out` = nothing is compared there; `given`.  Marks
    that mark nothing are none.
    """

    def quiet(_: Progress) -> None:
        """Nobody watches."""

    case, affine = aligned(case)
    begun = time.process_time()
    pair = pair_of(case, EDGE_MM if settings.method == "metamorphosis" else 0.0)
    if marks == "none" or not bool(case.pathology.any()):
        pair = dataclasses.replace(pair, pathology=None)
    elif marks == "left out":
        pair = healthy_part(pair)
    method = method_named(settings.method)
    motion = method.refine(method.predict(pair, settings, quiet), pair, settings, quiet)
    flow, motion = finish(motion, pair.grid, pair.grid, settings)
    u_vox = change_grid(flow.forward_vox, flow.grid, pair.grid)
    seconds = time.process_time() - begun
    change_of_it = None if pair.pathology is None else change(motion, pair, case, u_vox)
    return after(u_vox, affine), change_of_it, seconds


def unmoved(case: Case) -> Found:
    """The alignment alone."""
    case, affine = aligned(case)
    return after(case.fixed.new_zeros(1, 3, *case.fixed.shape[2:]), affine), None, 0.0


def aligned(case: Case) -> tuple[Case, Matrix]:
    """A case whose moving image is read through an alignment, and that one: between voxels, (4, 4).

    Only cases with a known truth need one.
    """
    if case.truth_vox is None:
        return case, np.eye(4)
    grid = pair_of(case, 0.0).grid
    moving = Volume(case.moving[0, 0], grid, case.name)
    matrix = alignment(Volume(case.fixed[0, 0], grid, case.name), moving)
    between = np.linalg.inv(grid.world_from_voxel) @ matrix @ grid.world_from_voxel
    return dataclasses.replace(case, moving=resample_affine(moving, grid, matrix)), between


_alignments: dict[str, Matrix] = {}


def alignment(fixed: Volume, moving: Volume) -> Matrix:
    """Affine, RAS mm, fixed to moving; found once per name of the fixed image."""
    if fixed.name not in _alignments:
        _alignments[fixed.name] = initial_alignment(fixed, moving, Settings(init="affine"))
    return _alignments[fixed.name]


def after(u_vox: Tensor, affine: Matrix) -> Tensor:
    """Displacement of x to A(x + u(x)), voxels."""
    start = identity_vox(u_vox.shape[2:], torch.float64, u_vox.device)
    matrix = torch.tensor(affine)
    ends = torch.einsum("ab,nb...->na...", matrix[:3, :3], start + u_vox.double())
    return (ends + matrix[:3, 3].view(1, 3, 1, 1, 1) - start).float()


def change(motion: Motion, pair: Pair, case: Case, u_vox: Tensor) -> Tensor:
    """What is added to the moving image within the marks: a network's word, or the best for this motion."""
    if motion.source is None:
        residual = case.fixed - warp(case.moving, u_vox)
        source = smooth_source(residual, case.pathology, case.spacing, CHANGE_RHO_MM2)
    else:
        source = change_grid_of(motion, pair)
    return source * case.pathology


def change_grid_of(motion: Motion, pair: Pair) -> Tensor:
    """The network's change, (1, 1, *shape); raises ValueError where its grid is not that of the case."""
    assert motion.source is not None
    if not motion.source.grid.same_as(pair.grid):
        raise ValueError("The cases have the voxels of the network's training: 2 mm.")
    return motion.source.data[None, None]


# ---------------------------------------------------------------- runs


def run(ways: dict[str, Way], names: list[str], options: argparse.Namespace) -> Results:
    """Everything that is not in the file yet."""
    out: Path = options.out
    results: Results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for one in options.sets:
        for case in islice(cases(options.cases / one), options.most):
            told: dict[str, Tensor | None] = {"": None}
            if options.wrong:
                told = {f", {kind}": m for kind, m in wrong_marks(case.pathology, case.spacing).items()}
            for name, (end, marks) in product(names, told.items()):
                own = results.setdefault(one, {}).setdefault(name + end, {})
                if case.name not in own:
                    own[case.name] = measured(ways[name], case, marks)
                    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                    print(one, name + end, case.name, own[case.name], flush=True)
    return results


def show(results: Results) -> None:
    """Tables of the cases that all ways have."""
    for one, ways in results.items():
        common = sorted(set.intersection(*(set(rows) for rows in ways.values())))
        chosen = {way: [rows[case] for case in common] for way, rows in ways.items()}
        print(f"\n{one}, {len(common)} cases\n\n{table(chosen)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--metaregnet", type=Path, help="weights; without, those that come along")
    parser.add_argument("--vm-cfm", type=Path, help="weights; without, this way is left out")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--ways")
    parser.add_argument("--most", type=int, help="cases of each set; without, all")
    parser.add_argument("--wrong", action="store_true", help="tell the ways wrong marks")
    parser.add_argument("--show", type=Path, nargs="+")
    options = parser.parse_args()
    if options.show:
        for path in options.show:
            show(json.loads(path.read_text(encoding="utf-8")))
        return
    if options.cases is None or options.out is None:
        parser.error("--cases and --out are needed, or --show")
    torch.set_num_threads(1)
    ways = ways_of(options.metaregnet, options.vm_cfm)
    names = list(WRONG_WAYS) if options.wrong else list(ways)
    if options.ways:
        names = options.ways.split(",")
    show(run(ways, names, options))


if __name__ == "__main__":
    main()
