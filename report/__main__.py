"""Report on a run: ``python -m report [RUN]``. ``--help`` lists the flags."""

from config import DATA_PATH_HELP
from runtime.arguments import Parser
from runtime.errors import run_command

if __name__ == "__main__":
    parser = Parser("python -m report", "Write report.html and its figures into the folder of a run.")
    run_help = "the run's folder, or its best.pt (default: the newest run in runs/, or else weights/)"
    parser.add_argument("run", nargs="?", metavar="RUN", help=run_help)
    parser.add_argument("--data-path", metavar="DIR", help=DATA_PATH_HELP)
    run_command("report", parser.values, "report.command")
