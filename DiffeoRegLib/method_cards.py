"""The cards of all methods; those of trained models are in Models.json. No torch."""

from __future__ import annotations

from DiffeoRegLib.cards import Card

AFFINE_NETWORK = "affine-network"
"""The method whose models also start others: Settings.init = network:MODEL."""

_RDMM_PAPER = (
    "Shen Z, Vialard FX, Niethammer M. Region-specific diffeomorphic metric mapping. NeurIPS 2019;32."
)
_LDDMM_PAPER = (
    "Vialard FX, Risser L, Rueckert D, Cotter CJ. Diffeomorphic 3D image registration via geodesic shooting "
    "using an efficient adjoint calculation. Int J Comput Vis 2012;97:229-241."
)
_SVF_PAPERS = (
    "Arsigny V, Commowick O, Pennec X, Ayache N. A log-Euclidean framework for statistics on "
    "diffeomorphisms. MICCAI 2006; Avants BB et al. Symmetric diffeomorphic image registration "
    "with cross-correlation. Med Image Anal 2008;12:26-41."
)
METHOD_CARDS = (
    Card(
        name="affine",
        title="Rigid and affine alignment",
        use="Only rotation, translation, scale and shear; also the start of every other method.",
        citation="Multi-start rigid and affine registration on a resolution pyramid (DiffeoReg).",
        time_steps=False,
        refinable=False,
        deformable=False,
    ),
    Card(
        name="svf",
        title="Stationary velocity field (instance optimisation)",
        use="Any pair, no training: symmetric, diffeomorphic, exact inverse.",
        citation=_SVF_PAPERS,
        symmetric=True,
    ),
    Card(
        name="metamorphosis",
        title="Motion and change of appearance together (metamorphosis)",
        use="One image shows a lesion that the other has not: mark it, and get map, change and healthy look.",
        citation=(
            "Joshi A, Hong Y. MetaRegNet: Metamorphic image registration using flow-driven residual "
            f"networks. arXiv:2303.09088, 2023; {_SVF_PAPERS}"
        ),
        needs_pathology_mask=True,
        symmetric=True,
        appearance_change=True,
    ),
    Card(
        name="vsvf",
        title="Stationary velocity by its momentum (vSVF)",
        use="Like svf, but smooth by a kernel; the quick relative of LDDMM and RDMM.",
        citation=(
            "Shen Z, Han X, Xu Z, Niethammer M. Networks for joint affine and non-parametric image "
            "registration. CVPR 2019:4224-4233."
        ),
        kernels=True,
    ),
    Card(
        name="lddmm",
        title="Geodesic shooting (LDDMM)",
        use="Geodesics of one kernel for the whole image: motion at any time between, kept as a momentum.",
        citation=_LDDMM_PAPER,
        kernels=True,
        geodesic=True,
    ),
    Card(
        name="rdmm",
        title="Geodesics with a regulariser found on the way (RDMM)",
        use="How stiff each place is comes out together with the motion, and moves with the image.",
        citation=_RDMM_PAPER,
        kernels=True,
        geodesic=True,
    ),
    Card(
        name="rdmm-regions",
        title="Geodesics with a stiffness per region (RDMM)",
        use="You say which part of the moving image is soft and which is stiff, by a segmentation.",
        citation=_RDMM_PAPER,
        method="rdmm",
        needs_region_labels=True,
        kernels=True,
        geodesic=True,
    ),
    Card(
        name="sitreg",
        title="SITReg with weights of your own",
        use="Your own network, trained (diffeoreg train) or imported: both directions, exactly symmetric.",
        citation=(
            "Honkamaa J, Marttinen P. SITReg: Multi-resolution architecture for symmetric, inverse "
            "consistent, and topology preserving image registration. MELBA 2024;2:2148-2194."
        ),
        symmetric=True,
        halfway=True,
        own_weights=True,
    ),
    Card(
        name="voxelmorph",
        title="VoxelMorph with weights of your own",
        use="A network that you trained (diffeoreg train), plain or -diff, from fixed to moving: to compare.",
        citation=(
            "Dalca AV, Balakrishnan G, Guttag J, Sabuncu MR. Unsupervised learning of probabilistic "
            "diffeomorphic registration for images and surfaces. Med Image Anal 2019;57:226-236; "
            "Balakrishnan G, Zhao A, Sabuncu MR, Guttag J, Dalca AV. VoxelMorph: A learning framework "
            "for deformable medical image registration. IEEE Trans Med Imaging 2019;38:1788-1800."
        ),
        own_weights=True,
        networks=("voxelmorph-diff", "voxelmorph"),
    ),
    Card(
        name="metaregnet",
        title="MetaRegNet with weights of your own",
        use="A network that you trained (diffeoreg train): motion and change of a lesion that you marked.",
        citation=(
            "Joshi A, Hong Y. MetaRegNet: Metamorphic image registration using flow-driven residual "
            "networks. arXiv:2303.09088, 2023."
        ),
        needs_pathology_mask=True,
        appearance_change=True,
        own_weights=True,
    ),
    Card(
        name="groupmorph",
        title="GroupMorph with weights of your own",
        use="A network that you trained (diffeoreg train): a whole group at once, and how sure it is.",
        citation=(
            "van der Ouderaa TFA, Isgum I, Veldhuis WB, de Vos BD. Deep group-wise variational diffeomorphic "
            "image registration. TIA workshop, MICCAI 2020."
        ),
        needs_group=True,
        uncertainty=True,
        own_weights=True,
    ),
    Card(
        name="transmorph-tvf",
        title="TransMorph-TVF with weights of your own",
        use="A transformer that you trained (diffeoreg train): a velocity for every step, kept as a path.",
        citation=(
            "Chen J, Frey EC, Du Y. Unsupervised learning of diffeomorphic image registration via "
            "TransMorph. WBIR 2022, Lecture Notes in Computer Science 13386:96-102."
        ),
        own_weights=True,
        time_varying=True,
    ),
    Card(
        name="vsvf-network",
        title="vSVF network with weights of your own",
        use="Stationary velocities by a network that you trained (diffeoreg train), smooth by a kernel.",
        citation=(
            "Shen Z, Han X, Xu Z, Niethammer M. Networks for joint affine and non-parametric image "
            "registration. CVPR 2019:4224-4233."
        ),
        own_weights=True,
    ),
    Card(
        name="lddmm-network",
        title="LDDMM network with weights of your own",
        use="Geodesics by a network that you trained (diffeoreg train): a momentum at once.",
        citation=_RDMM_PAPER,
        own_weights=True,
        geodesic=True,
    ),
    Card(
        name="rdmm-network",
        title="RDMM network with weights of your own",
        use="Your own network (diffeoreg train) says how everything moves and how stiff each place is.",
        citation=_RDMM_PAPER,
        own_weights=True,
        geodesic=True,
    ),
    Card(
        name="affine-network",
        title="Affine network with weights of your own",
        use="Rotation, shift, scale and shear by your own network (diffeoreg train), then by a search.",
        citation=(
            "Shen Z, Han X, Xu Z, Niethammer M. Networks for joint affine and non-parametric image "
            "registration. CVPR 2019:4224-4233."
        ),
        time_steps=False,
        refinable=False,
        deformable=False,
        own_weights=True,
    ),
)
