"""Predict what pictures show: ``python -m predict IMAGE…``. ``--help`` lists the flags."""

from config import WEIGHTS_HELP
from runtime.arguments import Parser, folder
from runtime.errors import run_command

if __name__ == "__main__":
    parser = Parser("python -m predict", "Predict each picture's class: a digit, with the included weights.")
    help = "picture of a digit, a number or a thing, in any size, colours and format that Pillow opens; "
    help += "or a folder of pictures; -: standard input"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array, one object for each picture that can be read"
    )
    help = "new or empty folder for a PNG of each picture: what the network was shown, and its answers"
    parser.add_argument("--save", type=folder, metavar="DIR", help=help)
    run_command("predict", parser.values, "predict.command")
