"""Predict what pictures show: ``python -m predict IMAGE…``. ``--help`` lists the flags."""

from collections.abc import Sequence

from config import WEIGHTS_HELP, Parser
from runtime.errors import run_command


def parse_args(argv: Sequence[str] | None = None) -> tuple[list[str], str | None, bool]:
    """Read the command line: pictures, file of the weights, and whether the answers are JSON."""
    parser = Parser(
        "python -m predict", "Predict the class of each picture: with the included weights, its digit."
    )
    help = (
        "picture of one digit or thing, in any size, colours and format that Pillow opens; -: standard input"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON array, with an object for each picture"
    )
    args = parser.parse_args(argv)
    return args.images, args.weights, args.json


if __name__ == "__main__":
    run_command("predict", parse_args, "predict.command")
