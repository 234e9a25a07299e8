"""One peer, one pair, one process: `PEER_PYTHON peer_runners.py JOB.json`, started by peers.py.

Every program gets the same initial alignment and hands back files whose composition maps fixed to moving
points. Greedy, ANTs, elastix and FireANTs take the initial transform themselves; demons and ConvexAdam
cannot, so for them the moving image is pulled through it once (linear) and the scorer composes the two again.
`register_seconds` runs from images in memory to transform in memory: reading, that pulling (tenths of a
second) and writing are outside it, for every program alike.

Settings are each program's documented ones: greedy `-m NCC 2x2x2 -n 100x50x10`, `-m NMI` between modalities
(there NCC ends far below the start); ANTs `SyNOnly` defaults (mutual information, 40x20x0); elastix' default
`bspline` map; demons as in the SimpleITK notebooks (two or four levels, field smoothing 1.5 voxels, histogram
matching unless CT); ConvexAdam's MIND defaults; FireANTs' greedy scheme, scales 4-2-1 below two million
voxels, else 4-2. This file needs nothing of DiffeoReg.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ITK-elastix and SimpleITK are imported inside each runner: two ITK builds in one process disturb each other.
Job = dict[str, Any]
Answer = dict[str, Any]


class NotForThisPairError(Exception):
    """The program makes no sense on this pair; reported in the table instead of a number."""


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        """Start now."""
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def register(self) -> Answer:
        """The two entries of an answer that say what registering cost."""
        return {
            "register_seconds": time.perf_counter() - self.began,
            "register_cpu_seconds": time.process_time() - self.cpu_began,
        }


def start_matrix(path: str) -> NDArray[np.float64]:
    """4x4 matrix fixed point -> moving point (LPS) of an ITK text transform, read without ITK."""
    entries = dict(
        line.split(":", 1) for line in Path(path).read_text(encoding="utf-8").splitlines() if ":" in line
    )
    values = np.array(entries["Parameters"].split(), dtype=np.float64)
    if values.size != 12:
        raise ValueError(f"{path}: expected an affine transform with 12 parameters.")
    linear, centre = values[:9].reshape(3, 3), np.array(entries["FixedParameters"].split(), dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = values[9:] + centre - linear @ centre
    return matrix


def greedy(job: Job, iterations: str, extra: str = "") -> Answer:
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    out = Path(job["out"])
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # greedy's matrix files are RAS
    np.savetxt(out / "start_ras.txt", flip @ start_matrix(job["start"]) @ flip)
    images = {key: sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving")}
    masks = "-gm fixed_mask -mm moving_mask " if job.get("fixed_mask") else ""
    for key in ("fixed_mask", "moving_mask") if masks else ():
        images[key] = sitk.ReadImage(job[key], sitk.sitkFloat32)
    metric = "NCC 2x2x2" if job["one_modality"] else "NMI"
    program = Greedy3D()
    command = (
        f"-i fixed moving -it {out / 'start_ras.txt'} -m {metric} -n {iterations} {extra} {masks}"
        f"-threads {job['threads']} -o warp"
    )
    clock = Clock()
    program.execute(command, **images, warp=None)
    cost = clock.register()
    sitk.WriteImage(sitk.Cast(program["warp"], sitk.sitkVectorFloat32), str(out / "warp.mha"))
    clock = Clock()
    program.execute(f"-iw {out / 'warp.mha'} {out / 'inverse.mha'} -threads {job['threads']}")
    return {
        **cost,
        "inverse_cpu_seconds": clock.register()["register_cpu_seconds"],
        "command": command,
        "forward": [job["start"], str(out / "warp.mha")],
        "inverse": [str(out / "inverse.mha"), {"inverse_of": job["start"]}],
    }


def ants_syn(job: Job, **options: Any) -> Answer:
    import ants

    fixed, moving = (ants.image_read(job[key]) for key in ("fixed", "moving"))
    if job.get("fixed_mask"):
        read = {"mask": job["fixed_mask"], "moving_mask": job["moving_mask"]}
        options.update({key: ants.image_read(path) for key, path in read.items()})
    clock = Clock()
    result = ants.registration(
        fixed, moving, initial_transform=job["start"], outprefix=str(Path(job["out"]) / "ants_"), **options
    )
    cost = clock.register()
    warp, inverse = (
        str(Path(job["out"]) / "ants_1Warp.nii.gz"),
        str(Path(job["out"]) / "ants_1InverseWarp.nii.gz"),
    )
    if warp not in result["fwdtransforms"]:
        warp, inverse = warp.replace("_1", "_0"), inverse.replace("_1", "_0")
    return {
        **cost,
        "files_reported": [str(path) for path in result["fwdtransforms"]],
        "forward": [job["start"], warp],
        "inverse": [inverse, {"inverse_of": job["start"]}],
    }


def _pulled(job: Job) -> tuple[Any, Any]:
    import SimpleITK as sitk

    fixed, moving = (sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving"))
    start = sitk.ReadTransform(job["start"])
    return fixed, sitk.Resample(moving, fixed, start, sitk.sitkLinear, job["outside"])


def _halved(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    size = [max(8, round(n / factor)) for n in image.GetSize()]
    step = [s * n / m for s, n, m in zip(image.GetSpacing(), image.GetSize(), size, strict=True)]
    shift = [(new - old) / 2 for new, old in zip(step, image.GetSpacing(), strict=True)]
    direction = np.reshape(image.GetDirection(), (3, 3))
    origin = np.array(image.GetOrigin()) + direction @ np.array(shift)
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * s for s in step])
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, origin.tolist(), step, image.GetDirection()
    )


def demons(job: Job, levels: list[int], iterations: list[int]) -> Answer:
    import SimpleITK as sitk

    if not job["one_modality"]:
        raise NotForThisPairError("one modality only")
    fixed, moving = _pulled(job)
    clock = Clock()
    if job["outside"] == 0:  # CT numbers already mean the same in both images
        moving = sitk.HistogramMatching(moving, fixed, 1024, 7, True)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetSmoothDisplacementField(True)
    method.SetStandardDeviations(1.5)
    field = None
    for factor, count in zip(levels, iterations, strict=True):
        pair = [_halved(image, factor) if factor > 1 else image for image in (fixed, moving)]
        method.SetNumberOfIterations(count)
        if field is None:
            field = method.Execute(*pair)
        else:
            edge = [sitk.VectorIndexSelectionCast(field, axis) for axis in range(3)]
            grown = [
                sitk.Resample(part, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkUnknown, True)
                for part in edge
            ]
            field = method.Execute(*pair, sitk.Compose(grown))
    cost = clock.register()
    path = Path(job["out"]) / "warp.mha"
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(path))
    return {**cost, "forward": [job["start"], str(path)]}


def elastix(job: Job, **options: list[str]) -> Answer:
    import itk

    out = Path(job["out"])
    fixed, moving = (itk.imread(job[key], itk.F) for key in ("fixed", "moving"))
    matrix = start_matrix(job["start"])
    values = " ".join(f"{value:.17g}" for value in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    (out / "start.txt").write_text(
        '(Transform "AffineTransform")\n(NumberOfParameters 12)\n'
        f"(TransformParameters {values})\n(CenterOfRotationPoint 0.0 0.0 0.0)\n"
        '(InitialTransformParameterFileName "NoInitialTransform")\n(HowToCombineTransforms "Compose")\n'
        "(FixedImageDimension 3)\n(MovingImageDimension 3)\n" + _elastix_geometry(fixed),
        encoding="utf-8",
    )
    parameters = itk.ParameterObject.New()
    table = parameters.GetDefaultParameterMap("bspline")
    table["WriteResultImage"] = ["false"]
    table["DefaultPixelValue"] = [str(job["outside"])]
    for key, value in options.items():
        table[key] = value
    parameters.AddParameterMap(table)
    keywords: dict[str, Any] = {}
    if job.get("fixed_mask"):
        keywords = {key: itk.imread(job[key], itk.UC) for key in ("fixed_mask", "moving_mask")}
    clock = Clock()
    _, result = itk.elastix_registration_method(
        fixed,
        moving,
        parameter_object=parameters,
        initial_transform_parameter_file_name=str(out / "start.txt"),
        **keywords,
    )
    cost = clock.register()
    field = itk.transformix_deformation_field(moving, result)
    itk.imwrite(field, str(out / "total.mha"))
    return {**cost, "forward": [{"total": str(out / "total.mha")}]}


def _elastix_geometry(image: Any) -> str:
    direction = np.array(image.GetDirection()).T.ravel()
    rows = {
        "Size": image.GetLargestPossibleRegion().GetSize(),
        "Index": (0, 0, 0),
        "Spacing": image.GetSpacing(),
        "Origin": image.GetOrigin(),
        "Direction": direction,
    }
    lines = [f"({key} {' '.join(f'{float(v):.12g}' for v in values)})" for key, values in rows.items()]
    return "\n".join(lines) + '\n(UseDirectionCosines "true")\n'


def convexadam(job: Job) -> Answer:
    import SimpleITK as sitk
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(job["threads"])
    fixed, moving = _pulled(job)
    arrays = [sitk.GetArrayFromImage(image) for image in (fixed, moving)]
    clock = Clock()
    shift_vox = convex_adam_pt(*arrays, device=torch.device("cpu"), dtype=torch.float32)
    cost = clock.register()
    world = np.reshape(fixed.GetDirection(), (3, 3)) @ np.diag(fixed.GetSpacing())
    field = sitk.GetImageFromArray((shift_vox[..., ::-1] @ world.T).astype(np.float32), isVector=True)
    field.CopyInformation(fixed)
    path = Path(job["out"]) / "warp.mha"
    sitk.WriteImage(field, str(path))
    return {**cost, "forward": [job["start"], str(path)]}


def fireants(job: Job) -> Answer:
    import SimpleITK as sitk
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(job["threads"])
    images = [sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving")]
    small = images[0].GetNumberOfPixels() < 2_000_000
    clock = Clock()
    batches = [BatchedImages([Image(image, device="cpu")]) for image in images]
    method = GreedyRegistration(
        scales=[4, 2, 1] if small else [4, 2],
        iterations=[200, 100, 50] if small else [200, 100],
        fixed_images=batches[0],
        moving_images=batches[1],
        loss_type="cc" if job["one_modality"] else "mi",
        cc_kernel_size=5,
        optimizer="Adam",
        optimizer_lr=0.5,
        deformation_type="compositive",
        smooth_grad_sigma=1.0,
        smooth_warp_sigma=0.5,
        progress_bar=False,
        init_affine=torch.tensor(start_matrix(job["start"]), dtype=torch.float32)[None],
    )
    method.optimize()
    cost = clock.register()
    path = str(Path(job["out"]) / "total.nii.gz")
    method.save_as_ants_transforms(path)
    return {**cost, "forward": [{"total": path}]}


RUNNERS: dict[str, tuple[str, Callable[[Job], Answer]]] = {
    "greedy": ("picsl_greedy", lambda job: greedy(job, "100x50x10")),
    "greedy-fast": ("picsl_greedy", lambda job: greedy(job, "100x50x0", "-float")),
    "greedy-sv": ("picsl_greedy", lambda job: greedy(job, "100x50x10", "-sv")),
    "ants-syn": ("ants", lambda job: ants_syn(job, type_of_transform="SyNOnly")),
    "ants-syncc": (
        "ants",
        lambda job: ants_syn(job, type_of_transform="SyNOnly", syn_metric="CC", syn_sampling=2),
    ),
    "demons": ("SimpleITK", lambda job: demons(job, [8, 4, 2, 1], [100, 100, 60, 25])),
    "demons-fast": ("SimpleITK", lambda job: demons(job, [4, 2], [60, 40])),
    "elastix": ("itk", elastix),
    "convexadam": ("convexAdam", convexadam),
    "fireants": ("fireants", fireants),
}


def main() -> int:
    """Run the job file's method; 3 = package not installed, 4 = not for this pair, others are crashes."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    package, run = RUNNERS[job["method"]]
    try:
        __import__(package)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 3
    if package in ("picsl_greedy", "SimpleITK", "convexAdam", "fireants"):
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(job["threads"])
    try:
        answer = run(job)
    except NotForThisPairError as reason:
        print(reason, file=sys.stderr)
        return 4
    (Path(job["out"]) / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
