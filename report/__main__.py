"""Report on a run: ``python -m report RUN``. ``--help`` lists the flags."""

import base64
import logging
import warnings
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from checkpoint import Run
from config import DATA_PATH_HELP
from datasets import load_test
from model import count_parameters
from report import scores
from runtime.arguments import Parser
from runtime.errors import UserError, run_command, warn
from runtime.files import replace_file
from trained import Trained, load_trained

MAX_MISTAKES = 150  # images in their figure; the included weights make 47 mistakes, bad ones thousands


def fill_page(run: Run, counts: Tensor, **values: Any) -> bytes:
    """Fill page.html with ``run``, its confusion matrix ``counts``, int64 (N, N), and more ``values``."""
    correct, total = counts.diagonal(), counts.sum(dim=1)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    html = environment.from_string(page).render(
        run=run,
        by_class=list(zip(run.dataset.classes, total.tolist(), correct.tolist(), strict=True)),
        interval=scores.wilson(correct.sum(), total.sum()),
        max_mistakes=MAX_MISTAKES,
        **values,
    )
    return html.encode(errors="backslashreplace")  # a name of a file may be no Unicode


def make_report(trained: Trained) -> tuple[dict[str, bytes], str]:
    """Evaluate a run's best weights. Return the report's files by name, and a line on the result."""
    from matplotlib import style  # here, so that a missing package is one line

    from report import figures

    run, classes = trained.run, trained.dataset.classes
    if run is None or run.best is None:
        raise UserError(f"{trained.path} holds weights alone: name a folder with a run's best.pt")
    images, labels = load_test(trained.dataset)
    confidence, predictions = trained.log_probs(images).double().exp().max(dim=1)
    counts = scores.confusion_matrix(labels, predictions, len(classes))
    calibration = scores.calibration(confidence, predictions == labels)
    wrong = scores.mistakes(labels, predictions, confidence)[:MAX_MISTAKES]
    shown = images[wrong], labels[wrong], predictions[wrong], confidence[wrong]
    with style.context([*figures.STYLE]), warnings.catch_warnings(record=True) as caught:
        plots = {
            "curves": figures.curves(run),
            "confusion": figures.confusion_matrix(counts, classes),
            "accuracy_by_class": figures.accuracy_by_class(counts, classes),
            "calibration": figures.calibration(calibration),
            "mistakes": figures.mistakes(*shown, classes),
            "filters": figures.filters(trained.model.conv1.weight.detach()),
        }
    if any("Glyph" in str(warning.message) for warning in caught):
        warn("no font that matplotlib finds has all characters of the class names: the figures show boxes")
    files = {f"{name}.png": plot.png for name, plot in plots.items()}
    parameters = count_parameters(trained.model)
    files["report.html"] = fill_page(run, counts, parameters=parameters, calibration=calibration, plots=plots)
    correct, total = int(counts.trace()), len(labels)
    result = f"{correct:,} of {total:,} test images right ({correct / total:.2%}), epoch {run.best.epoch}"
    return files, result


def main() -> None:
    """Write the report, and print its result. An error before everything is drawn changes no file."""
    parser = Parser("python -m report", "Write report.html, with figures of a run and its results.")
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its best.pt")
    parser.add_argument("--output-dir", metavar="DIR", help="folder for the report (default: the run's)")
    parser.add_argument("--data-path", metavar="DIR", help=DATA_PATH_HELP)
    args = parser.parse_args()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not its remarks on fonts
    trained = load_trained(args.run, args.data_path or "")
    print(f"Weights: {trained}", flush=True)
    files, result = make_report(trained)
    folder = Path(args.output_dir or trained.path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / name, content)
    print(f"{folder / 'report.html'}: {result}", flush=True)


if __name__ == "__main__":
    run_command(main)
