"""Report on a run: ``python -m report [RUN]``. ``--help`` lists the flags."""

from collections.abc import Sequence

from config import DATA_PATH_HELP
from runtime.arguments import Parser
from runtime.errors import run_command


def parse_args(argv: Sequence[str] | None = None) -> tuple[str | None, str | None]:
    """Read the command line: the run, and the folder of its data set."""
    parser = Parser("python -m report", "Write report.html and its figures into the folder of a run.")
    run_help = "the run's folder, or its best.pt (default: the newest run in runs/, or else weights/)"
    parser.add_argument("run", nargs="?", metavar="RUN", help=run_help)
    parser.add_argument("--data-path", metavar="DIR", help=DATA_PATH_HELP)
    args = parser.parse_args(argv)
    return args.run, args.data_path


if __name__ == "__main__":
    run_command("report", parse_args, "report.command")
