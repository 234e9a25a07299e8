"""The flags of `diffeoreg batch` besides those of `register`, and the columns of its table."""

from __future__ import annotations

import argparse

BATCH = """\
Register every row of a table, several at a time, and write to OUT:
  NAME/          what `diffeoreg register` writes, for every row; it appears when the row is finished
  status/        who tried which row when, one small JSON file a row
  summary.csv, summary.html   the numbers of all rows, their spread, and links to their reports

PAIRS is .csv or .tsv; file names in it are relative to it. Columns: fixed and moving; as known, name (of the
row and of its folder), fixed_labels, moving_labels, fixed_points, moving_points, fixed_mask, moving_mask,
fixed_pathology, moving_pathology, initial (an alignment or a transform file), moving_person; and any flag
of `diffeoreg register` by its name, as in method, effort, levels, regions, exclude_moving_mask (yes or no),
stiffness (several parted by ;). A cell goes before the flag of this command; an empty one says nothing.

After a stop of any kind, the same command with --resume does what is not finished, and nothing twice.
"""

BATCH_EXAMPLES = """\
examples:
  diffeoreg batch pairs.csv -o cohort/ --effort fast --workers 4
  diffeoreg batch pairs.csv -o cohort/ --effort fast --workers 4 --resume
  diffeoreg batch pairs.csv -o cohort/ --scheduler tcp://node1:8786
      workers started with `dask worker tcp://node1:8786 --nworkers 1`; they see OUT and the images under
      the same names. Whoever reaches a Dask scheduler can run code on it: keep it in a trusted network.
  diffeoreg batch pairs.csv -o cohort/ --scheduler slurm --workers 20 --queue gpu --walltime 02:00:00 \\
      --memory 16GB --cores 8 --slurm-option=--gres=gpu:1 --show-job-script
      without the last flag, 20 jobs are submitted; each registers row after row

exit status: 0 all rows done, 2 unusable input, a row failed or no scheduler, 3 results cannot be written,
130 cancelled (Ctrl-C; finished rows are kept), 1 anything unexpected.
"""


def batch_flags(parser: argparse.ArgumentParser) -> None:
    """The table, the folder, and who does the work."""
    parser.add_argument("pairs", metavar="PAIRS", help="table of the registrations, .csv or .tsv")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    parser.add_argument(
        "--resume", action="store_true", help="go on in OUT: finished rows stay, all others are done"
    )
    parser.add_argument(
        "--redo-changed",
        action="store_true",
        help="with --resume: replace finished rows whose settings or files have changed since",
    )
    parser.add_argument(
        "--bids-names",
        action="store_true",
        help="folders and files as in a BIDS derivative: sub-01/from-T1w_to-MNI152/sub-01_from-T1w_to-MNI152_"
        "mode-image_xfm.h5",
    )
    work = parser.add_argument_group("who does the work")
    work.add_argument(
        "--scheduler",
        default="local",
        metavar="WHERE",
        help="local (processes of this computer), tcp://HOST:PORT (of Dask), or slurm (default local)",
    )
    work.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="rows at a time (default: one for each GPU, or for every 4 cores; all there are behind tcp://)",
    )
    work.add_argument(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a row is tried again after its worker died (default 2)",
    )
    work.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long a scheduler behind tcp:// may be without workers (default 60)",
    )
    slurm = parser.add_argument_group("with --scheduler slurm, for each job")
    slurm.add_argument("--queue", metavar="NAME", help="partition")
    slurm.add_argument("--account", metavar="NAME", help="whom the time is charged to")
    slurm.add_argument("--walltime", default="04:00:00", metavar="H:M:S", help="limit (default 04:00:00)")
    slurm.add_argument("--memory", default="16GB", metavar="SIZE", help="main memory (default 16GB)")
    slurm.add_argument("--cores", type=int, default=4, metavar="N", help="cores (default 4)")
    slurm.add_argument(
        "--slurm-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of sbatch, as in --slurm-option=--gres=gpu:1; may be repeated",
    )
    slurm.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before the worker starts, as in 'module load python'; may be repeated",
    )
    slurm.add_argument("--show-job-script", action="store_true", help="show it and submit nothing")
