"""Registration methods, one file per published method."""

from __future__ import annotations

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.methods.base import Method
from DiffeoRegLib.methods.lddmm import LDDMM
from DiffeoRegLib.methods.learned_momentum import LearnedLDDMM, LearnedRDMM, LearnedVSVF
from DiffeoRegLib.methods.metamorphosis import Metamorphosis
from DiffeoRegLib.methods.metaregnet import MetaRegNetMethod
from DiffeoRegLib.methods.rdmm import RDMM
from DiffeoRegLib.methods.sitreg import SITRegMethod
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.methods.transmorph_tvf import TransMorphTVFMethod
from DiffeoRegLib.methods.vector_momentum import VectorMomentumVelocity
from DiffeoRegLib.methods.voxelmorph import VoxelMorphMethod

METHODS: dict[str, type[Method]] = {
    "lddmm": LDDMM,
    "lddmm-network": LearnedLDDMM,
    "metamorphosis": Metamorphosis,
    "metaregnet": MetaRegNetMethod,
    "rdmm": RDMM,
    "rdmm-network": LearnedRDMM,
    "sitreg": SITRegMethod,
    "svf": StationaryVelocity,
    "transmorph-tvf": TransMorphTVFMethod,
    "voxelmorph": VoxelMorphMethod,
    "vsvf": VectorMomentumVelocity,
    "vsvf-network": LearnedVSVF,
}


def method_named(name: str) -> Method:
    """The deformable method of a card; raises UnknownNameError."""
    known = CARDS[name].method if name in CARDS else name
    if known not in METHODS:
        raise UnknownNameError("deformable method", name, METHODS)
    return METHODS[known]()
