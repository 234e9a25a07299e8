"""What the help of the command and of `register` says besides its flags."""

from __future__ import annotations

INTRODUCTION = """\
Diffeomorphic registration of medical images: a transform with a true inverse, in
patient space, and the numbers that prove it.

examples:
  diffeoreg register fixed.nii.gz moving.nii.gz -o out/
      bring `moving` onto `fixed`; everything found is written to out/
  diffeoreg register t1.nii.gz ct.nrrd -o out/ --preset multimodal --effort accurate
  diffeoreg apply out/transform.h5 labels.nii.gz --like fixed.nii.gz -o moved.nii.gz --labels
  diffeoreg shoot out/geodesic.safetensors -o half.h5 --time 0.5
      half of the way, after a run of lddmm, rdmm or transmorph-tvf
  diffeoreg evaluate --transform out/transform.h5 --fixed-seg a.nii.gz --moving-seg b.nii.gz
  diffeoreg evaluate --pairs pairs.csv --method svf -o scores/
      what a method is worth on many pairs, one row each
  diffeoreg train sitreg-brain-t1 --data brains/ -o run/      train a network
  diffeoreg methods        what can be chosen for --method and --preset
  diffeoreg device         which processor would be used, and why

Each command explains itself: diffeoreg register --help
"""

REGISTER = """\
Find the transform that brings MOVING onto FIXED and write to OUT:
  transform.h5   fixed point -> moving point (what resamples the moving image), ITK format
  inverse.h5     moving point -> fixed point
  moved.nii.gz   the moving image on the fixed grid; moved_seg.nii.gz with --moving-seg
  geodesic.safetensors, sigma_moving.nii.gz, sigma_fixed.nii.gz   with lddmm and rdmm: what
                 `diffeoreg shoot` reads; how wide the regulariser is, mm, at both ends of the way
  deformed.nii.gz, change.nii.gz, metamorphic.nii.gz, healthy.nii.gz   with --pathology: the moving image
                 deformed, what the lesion adds, their sum, and the patient as if without it
  velocities.safetensors   with --keep-path: what `diffeoreg shoot` reads after a run of transmorph-tvf
  report.json    every number; report.html the same as a page with pictures

Volumes: NIfTI, NRRD, MetaImage, a folder with one DICOM series, PNG and other 2D images.
"""

REGISTER_EXAMPLES = """\
examples:
  diffeoreg register inspiration.nii.gz expiration.nii.gz -o out/ --preset lung-ct \\
      --fixed-mask lung_in.nii.gz --moving-mask lung_ex.nii.gz
  diffeoreg register a.nii.gz b.nii.gz -o out/ --moving-mask tumour.nii.gz --exclude-moving-mask
      ignore what lies in the tumour mask
  diffeoreg register a.nii.gz b.nii.gz -o out/ --method rdmm-regions --regions b_parts.nii.gz \\
      --stiffness 3=soft --stiffness 4=0.1,0.4,0.5,0
      label 3 of the moving image bends easily, 4 as its shares of the kernels say, the rest hardly
  diffeoreg register patient.nii.gz atlas.nii.gz -o out/ --method metamorphosis --pathology tumour.nii.gz \\
      --pathology-classes 1,4
      labels 1 and 4 mark what the atlas has not: it is explained by a change of intensity, not by motion
  diffeoreg register a.nii.gz b.nii.gz -o out/ --fixed-seg a_seg.nii.gz --moving-seg b_seg.nii.gz
      the labels are moved along and compared afterwards; they do not guide
  diffeoreg register a.nii.gz b.nii.gz -o out/ --init rigid.tfm
      start from a transform made elsewhere (ITK, ANTs, Slicer)

exit status: 0 done, 2 unusable input or flag, 3 results cannot be written, 4 out of memory,
130 cancelled (Ctrl-C; nothing is left behind), 1 anything unexpected.
"""
