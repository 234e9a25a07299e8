"""What the papers report for the same kind of case, beside ours, and why the figures differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """One figure of a paper.  ours: rows of this project, (set, method, setting), that it stands beside.

    alike: the same kind of images; False = only the idea is the same, and the text says so.
    """

    what: str
    figure: str
    source: str
    ours: tuple[tuple[str, str, str], ...]
    why: str
    alike: bool = True


SITREG = "Honkamaa and Marttinen, MELBA 2024"
TVF = "TransMorph-TVF's paper, table 2 (Learn2Reg 2021, validation / test)"
RDMM = "Shen et al., NeurIPS 2019, figure 6 (OAI knee MR)"
GROUP = "van der Ouderaa et al., TIA 2020, table 1"
META = "Joshi and Hong, 2023, table 1"
REVISITED = (
    "Learn2Reg's OASIS brains as measured by 'Unsupervised DL-DIR Revisited' (MIDL 2025), 200 test pairs"
)
LUMIR = "LUMIR 2024, 590 test images (list of the organisers)"
LUNG250 = "Lung250M-4B, table of its authors"

OASIS_WHY = (
    "OASIS too, but 35 merged labels in place of 138 (small cortical parcels overlap less), about 400 "
    "persons "
    "in training in place of 20, whole GPU trainings in place of hours of one CPU core; start .576 there, "
    "see ours here"
)
REPORTED = (
    Reported("SITReg, OASIS brains", "Dice .823, HD95 1.81 mm, folds .027 %", REVISITED,
             (("brain", "sitreg-brain-t1", "network"), ("brain", "sitreg-brain-t1", "refined")), OASIS_WHY),
    Reported("greedy, OASIS brains", "Dice .807, HD95 2.02 mm, folds .0007 %", REVISITED,
             (("brain", "greedy", "default"), ("brain", "svf", "balanced")),
             "the same program on other labels: the distance from ours to greedy is what can be compared"),
    Reported("VoxelMorph, OASIS brains", "Dice .765, folds 1.27 %", REVISITED,
             (("brain", "tvf-brain-t1", "network"),), OASIS_WHY),
    Reported("TransMorph-TVF, OASIS brains", "Dice .869 / .824, SDlogJ .094 / .091", TVF,
             (("brain", "tvf-brain-t1", "network"), ("brain", "tvf-brain-t1", "refined")),
             OASIS_WHY + "; a network of the largest size with Dice in its loss; its SDlogJ is that of "
                         "Learn2Reg, "
             "which adds 3 to the determinant and comes out about four times smaller than ours"),
    Reported("TransMorph-TVF, LDDMM form", "Dice .833 (validation), SDlogJ .090", TVF,
             (("brain", "tvf-lddmm-brain-t1", "network"), ("brain", "tvf-lddmm-brain-t1", "refined")),
             "as above; the order (LDDMM form below TVF, and smoother) is the same"),
    Reported("ANTs SyN with correlation, LUMIR brains", "Dice .703, TRE 3.49 mm, folds 0", LUMIR,
             (("brain", "ants-syn", "default"),),
             "200x200x200 iterations of correlation there, antspyx' default (mutual information, 40x20x0) "
             "here"),
    Reported("SITReg, LUMIR brains", "Dice .785, TRE 3.09 mm, folds .0025 %", LUMIR,
             (("brain", "sitreg-brain-t1", "network"),), "3384 persons in training, other labels"),
    Reported("LDDMM, optimised", "Dice .677, folds 0, 457 s (SyN .657, 1330 s; Demons .635)", RDMM,
             (("brain", "lddmm", "balanced"), ("brain", "ants-syn", "default"),
              ("brain", "demons", "default")),
             "knees, cartilage labels: the images are not public without registration; here brains. Alike: "
             "LDDMM above SyN and demons", alike=False),
    Reported("RDMM, optimised", "Dice .682, 627 s, folds 17 (sum)", RDMM,
             (("brain", "rdmm", "balanced"), ("brain", "rdmm-regions", "balanced")),
             "knees there; on our brains the optimised regulariser gains nothing over LDDMM", alike=False),
    Reported("vSVF, LDDMM, RDMM networks", "Dice .676, .676, .679 in .6 to 1.1 s (refined in two "
        "steps)", RDMM,
             (("hippocampus", "vsvf-hippocampus", "network"), ("hippocampus", "lddmm-hippocampus", "network"),
              ("hippocampus", "rdmm-hippocampus", "network")),
             "knees there, hippocampi here; CPU here", alike=False),
    Reported("corrField; deeds; VoxelMorph++ with iterations", "TRE 1.45; 1.53; 2.26 mm", LUNG250,
             (("lung", "svf", "balanced"), ("lung", "elastix", "default"), ("lung", "greedy", "default")),
             "breathing states of many persons there; one person, two visits, 26 landmarks and a "
             "reconstructed "
             "follow-up here", alike=False),
    Reported("MetaRegNet; VM-CFM, brain slices", "SSD .08, .13 (x 1/10); folds 3.6, 88.6 voxels; 23, 21 "
        "ms", META,
             (("tumour", "metaregnet-brain-t1", "network"), ("tumour", "metaregnet-brain-t1", "refined")),
             "slices there, whole brains here: rebuilt in 2D in [results](results.md) "
             "(\"Table 1 of MetaRegNet's paper\")", alike=False),
    Reported("GroupMorph to the middle, breast MR", "RMSE 24.2 to 21.5, NMI .24 to .32, folds 2e-4 %; 2 s "
        "(elastix 23.4, .25, 652 s)",
             GROUP, (), "other scans with other intensities: only the drop can be compared", alike=False),
    Reported("GroupMorph, DIR-Lab chest CT", "1.83 to 1.08-1.52 mm (elastix 1.09)", GROUP, (),
             "registration needed for these images; livers with landmarks stand in", alike=False),
)  # fmt: skip
