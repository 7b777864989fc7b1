"""Predict what pictures show: ``python -m predict IMAGE…``. ``--help`` lists the flags."""

from collections.abc import Sequence

from config import WEIGHTS_HELP, Parser
from runtime.errors import run_command


def parse_args(argv: Sequence[str] | None = None) -> tuple[list[str], str | None, bool, str | None]:
    """Return the pictures and folders, ``--weights``, whether to print JSON, and ``--save``."""
    parser = Parser("python -m predict", "Predict each picture's class: a digit, with the included weights.")
    help = "picture of a digit, a number or a thing, in any size, colours and format that Pillow opens; "
    help += "or a folder of pictures; -: standard input"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object for each picture")
    help = "folder to write a PNG to for each IMAGE: what the network was shown, and its answers"
    parser.add_argument("--save", metavar="DIR", help=help)
    args = parser.parse_args(argv)
    return args.images, args.weights, args.json, args.save


if __name__ == "__main__":
    run_command("predict", parse_args, "predict.command")
