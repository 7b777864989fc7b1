"""The ground floor: errors, files and speed. It knows nothing of data, settings or the experiment."""
