"""benchmarks/export.py: the figures of the exported files."""

import shutil
from pathlib import Path

import pytest
from exported import WEIGHTS, needs_cc, trained_net

from benchmarks import export as benchmark
from export import c_code
from runtime.errors import UserError

needs_size = pytest.mark.skipif(shutil.which("size") is None, reason="needs size: apt-get install binutils")


@needs_cc
@needs_size
@pytest.mark.slow
def test_table_has_a_row_for_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    benchmark.main(str(WEIGHTS))
    title, _, *table = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{WEIGHTS} (epoch ") and "'torch': " in title
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(row) for row in rows} == {5}
    assert [row[0] for row in rows[2:]] == ["PyTorch", "onnx", "c", "c-int8"]
    assert all(0 < float(row[4]) < 1000 for row in rows[2:])
    assert int(rows[5][2].replace(",", "")) < 16 * 1024 and rows[5][3] == "3,564"


@needs_cc
@needs_size
def test_memory_is_that_of_weights_code_and_scratch() -> None:
    header = c_code.write(trained_net())
    flash, ram = benchmark.measure_memory(header, "net", 10)
    assert 4 * 9798 < flash < 4 * 9798 + 8192  # float32 weights, and some code
    assert ram == 4 * (28 * 28 + 14 * 14 * 10 + 16 * 3 * 10 + 30 * 3 * 10 + 28 * 16 + 14 * 16)


@needs_cc
def test_other_columns_of_size_give_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    columns = (
        "__TEXT\\t__DATA\\t__OBJC\\tothers\\tdec\\thex\\n16384\\t0\\t0\\t4295000064\\t4295016448\\t10000c000"
    )
    (tmp_path / "size").write_text(f"#!/bin/sh\nprintf '{columns}\\n'")
    (tmp_path / "size").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="columns text, data and bss"):
        benchmark.measure_memory(c_code.write(trained_net()), "net", 10)
