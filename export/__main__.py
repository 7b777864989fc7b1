"""Write a trained network as ONNX, C and a web page: ``python -m export``. ``--help`` lists the flags."""

from collections.abc import Sequence
from pathlib import Path

from config import DATA_PATH_HELP, WEIGHTS_HELP
from runtime.arguments import Parser, folder
from runtime.errors import run_command

FILES = {"onnx": "net.onnx", "c": "net.h", "c-int8": "net_int8.h", "web": "net.html"}


def parse_args(argv: Sequence[str] | None = None) -> tuple[list[str], str | None, Path | None, str | None]:
    """Read the command line: formats, weights file, output folder, and folder of the data set."""
    parser = Parser("python -m export", "Write a trained network to files that run without PyTorch.")
    files = "; ".join(f"{name}: {file}" for name, file in FILES.items())
    formats_help = f"{files} (default: all; web only for MNIST)"
    output_help = "folder for the files (default: that of the weights)"
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=formats_help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--output-dir", type=folder, metavar="DIR", help=output_help)
    parser.add_argument("--data-path", metavar="DIR", help=DATA_PATH_HELP)
    args = parser.parse_args(argv)
    for name in args.formats:
        if name not in FILES:
            parser.error(f"argument FORMAT: must be one of {', '.join(FILES)}, not {name!r}")
    return args.formats, args.weights, args.output_dir, args.data_path


if __name__ == "__main__":
    run_command("export", parse_args, "export.command")
