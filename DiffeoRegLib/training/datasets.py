"""From the data section of a training configuration to the pairs of training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.plain import build
from DiffeoRegLib.training.augment import Augmentation, AugmentedPairs
from DiffeoRegLib.training.batches import Pairs
from DiffeoRegLib.training.config import SYNTHETIC, DataConfig
from DiffeoRegLib.training.contrasts import ContrastOptions
from DiffeoRegLib.training.groups import GroupDataset, GroupOptions, Members, Population
from DiffeoRegLib.training.lesion_pairs import LesionPairs
from DiffeoRegLib.training.lesions import LesionOptions
from DiffeoRegLib.training.pairs import PairDataset, onto_patients
from DiffeoRegLib.training.series import Series, SeriesStore, divided, series_from
from DiffeoRegLib.training.shapes import ShapeOptions
from DiffeoRegLib.training.sources import collection_from
from DiffeoRegLib.training.splits import divide
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Collection, Subject
from DiffeoRegLib.training.synthesis import Synthesis, SyntheticPairs

MEASURED_BY = {"dice": "labels", "tre_mm": "points"}
"""Metrics that the images alone do not give, and what they need of them."""
VALIDATION_SEED = 1_000_003
"""Added to the seed of synthetic training pairs, so that validation shows others."""


@dataclass(frozen=True)
class ImageOptions:
    """Options of images from files.

    shape: voxels of the working grid.  reference: image to align to, None = the first training subject.
    alignment, window: see `Preparation`.  images ... same_person: see `collection_from`.
    share, held_out: whom to validate on where source and validation are one: a share, or names.
    cache: folder for prepared images.  in_memory: how many of them to keep in memory.
    pairs_per_epoch: None = all ordered pairs.  validation_pairs: most of them.
    lesions: put into the fixed image of every pair that has no pathology of its own; None = nowhere.
    groups: of images in place of pairs; None = pairs.  Of series each has its own grid; shape is not used.
    """

    shape: tuple[int, ...]
    reference: str | None = None
    alignment: str = "affine"
    window: tuple[float, float] | None = None
    images: str | None = None
    labels: str | None = None
    masks: str | None = None
    points: str | None = None
    pathologies: str | None = None
    person: str | None = None
    same_person: tuple[tuple[str, ...], ...] = ()
    share: float = 0.2
    held_out: tuple[str, ...] = ()
    cache: str | None = None
    in_memory: int = 0
    pairs_per_epoch: int | None = None
    validation_pairs: int = 50
    augmentation: Augmentation | None = None
    lesions: LesionOptions | None = None
    groups: GroupOptions | None = None


@dataclass(frozen=True)
class SyntheticOptions:
    """Options of synthetic pairs; see `Synthesis`."""

    shape: tuple[int, ...]
    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    contrasts: ContrastOptions = field(default_factory=ContrastOptions)
    pairs_per_epoch: int = 1000
    validation_pairs: int = 20


@dataclass(frozen=True)
class TrainingData:
    """Pairs to train on, to validate on (or None), and sentences on how they came about.

    measures: which of MEASURED_BY some of the validation images can be measured by.
    """

    training: Pairs
    validation: Pairs | None
    notes: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()


def data_options(config: DataConfig) -> ImageOptions | SyntheticOptions:
    """The checked options of a data section, before anything is read or computed; raises SettingsError."""
    if config.source == SYNTHETIC:
        synthetic = build(SyntheticOptions, config.options, "data.options")
        Synthesis(synthetic.shape, synthetic.shapes, synthetic.contrasts)
        if config.validation not in (None, SYNTHETIC):
            raise SettingsError(
                "A network trained on synthetic pairs is validated on synthetic pairs, or not at all."
            )
        return synthetic
    if config.validation == SYNTHETIC:
        raise SettingsError("Validation on synthetic pairs goes with training on them: set data.source, too.")
    options = build(ImageOptions, config.options, "data.options")
    _preparation(config, options, Path())
    return options


def training_data(config: DataConfig, *, seed: int = 0, base: Path | None = None) -> TrainingData:
    """The pairs a configuration asks for; file names in it are relative to `base`.

    validation: another data set; the same as source = persons of it held out; `synthetic` with a synthetic
    source; None = no validation.
    Raises SettingsError for options that make no sense, InputError for data that cannot be used.
    """
    base = base or Path()
    options = data_options(config)
    if isinstance(options, SyntheticOptions):
        return _synthetic(config, options, seed)
    if options.groups is not None:
        return _groups(config, options, options.groups, seed, base)
    collection = _collections(config, options, seed, base)
    store = _store(config, options, collection, base)
    training: Pairs = PairDataset(
        collection.subjects,
        store,
        pairs=collection.pairs,
        pairs_per_epoch=options.pairs_per_epoch,
        seed=seed,
    )
    if options.lesions is not None:
        training = LesionPairs(training, options.lesions, seed=seed)
    if options.augmentation is not None:
        training = AugmentedPairs(training, options.augmentation, seed=seed, spacing=store.grid.spacing)
    validation: Pairs | None = None
    if config.validation is not None:
        pairs = collection.validation_pairs or onto_patients(collection.validation)
        count = len(collection.validation)
        most = min(len(pairs) or count * (count - 1), options.validation_pairs)
        validation = PairDataset(collection.validation, store, pairs=pairs, pairs_per_epoch=most, seed=seed)
        if options.lesions is not None:
            validation = LesionPairs(validation, options.lesions, seed=seed + VALIDATION_SEED)
    return TrainingData(training, validation, collection.notes, _measures(collection.validation))


def _measures(held_out: Sequence[Subject | Series]) -> tuple[str, ...]:
    """What two of the images held out, or the frames of a series, come with."""
    found = []
    for metric, kind in MEASURED_BY.items():
        given = [getattr(one, kind, None) for one in held_out]
        if sum(file is not None for one in given for file in (one if isinstance(one, tuple) else (one,))) > 1:
            found.append(metric)
    return tuple(found)


def _groups(
    config: DataConfig, options: ImageOptions, groups: GroupOptions, seed: int, base: Path
) -> TrainingData:
    """Groups of images, to train and to validate on."""
    sides: list[Members | None]
    notes: tuple[str, ...] = ()
    whole: Sequence[Subject | Series]
    if groups.of == "series":
        spacing = config.spacing_mm or (1.0,) * len(options.shape)
        training = list(series_from(base / config.source))
        held_out = [] if config.validation is None else training
        if config.validation == config.source:
            training, held_out = divided(training, options.held_out, options.share, seed)
        elif config.validation is not None:
            held_out = list(series_from(base / config.validation))
        whole = held_out
        sides = [
            SeriesStore(side, spacing, window=options.window, in_memory=options.in_memory) if side else None
            for side in (training, held_out)
        ]
    else:
        collection = _collections(config, options, seed, base)
        whole = collection.validation
        store, notes = _store(config, options, collection, base), collection.notes
        by_person = groups.of == "person"
        sides = [
            Population(side, store, by_person=by_person, fewest=groups.fewest) if side else None
            for side in (collection.subjects, collection.validation)
        ]
    first, second = sides
    if first is None:
        raise InputError("There is no group to train on.")
    augmented = GroupDataset(first, groups, augmentation=options.augmentation, seed=seed)
    validation = None if second is None else GroupDataset(second, groups, seed=seed, validation=True)
    return TrainingData(augmented, validation, notes, _measures(whole))


def _synthetic(config: DataConfig, options: SyntheticOptions, seed: int) -> TrainingData:
    what = Synthesis(options.shape, options.shapes, options.contrasts)
    training = SyntheticPairs(what, pairs_per_epoch=options.pairs_per_epoch, seed=seed)
    if config.validation is None:
        return TrainingData(training, None)
    held_out = SyntheticPairs(what, pairs_per_epoch=options.validation_pairs, seed=seed + VALIDATION_SEED)
    return TrainingData(training, held_out, measures=("dice",))


def _collections(config: DataConfig, options: ImageOptions, seed: int, base: Path) -> Collection:
    """Training and validation side by side; nobody is on both."""
    source = _read(base / config.source, options)
    if config.validation is None:
        return source
    if config.validation == config.source:
        return divide(source, options.held_out or options.share, seed)
    other = _read(base / config.validation, options)
    held_out = (*other.subjects, *other.validation)
    files = {one.image.resolve() for one in held_out}
    shared = [one.name for one in source.subjects if one.image.resolve() in files]
    if shared:
        raise InputError(
            f"'{shared[0]}' is in the training and in the validation data: take it out of one of them."
        )
    pairs = (*other.pairs, *other.validation_pairs)
    return Collection(source.subjects, source.pairs, held_out, pairs, (*source.notes, *other.notes))


def _read(source: Path, options: ImageOptions) -> Collection:
    same_person: Sequence[Sequence[str]] = options.same_person
    patterns = {
        key: value
        for key in ("images", "labels", "masks", "points", "pathologies", "person")
        if (value := getattr(options, key)) is not None
    }
    return collection_from(source, same_person=same_person, **patterns)


def _store(config: DataConfig, options: ImageOptions, collection: Collection, base: Path) -> Store:
    reference = collection.subjects[0].image if options.reference is None else base / options.reference
    preparation = _preparation(config, options, reference)
    cache = None if options.cache is None else base / options.cache
    return Store(preparation, cache, in_memory=options.in_memory)


def _preparation(config: DataConfig, options: ImageOptions, reference: Path) -> Preparation:
    return Preparation(
        shape=options.shape,
        spacing_mm=config.spacing_mm or (1.0,) * len(options.shape),
        reference=reference,
        alignment=options.alignment,
        window=options.window,
    )
