"""The ground floor: errors, files and speed. It knows nothing of data, settings or the experiment."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # a later line would fail with an error that names no version
    sys.exit(f"error: Python 3.10 or later is needed, not {sys.version_info[0]}.{sys.version_info[1]}")
