"""What the build writes of the families of optimizers; see `write`."""

from __future__ import annotations

from pathlib import Path

from generate import arithmetic, c_level, families, hyper_rows, loops, powers, sizes, stubs

NOTE = "Written by src_c/generate when the package is built."


def write() -> None:
    """Write all files where they differ from what is there, so that little is rebuilt."""
    found = families.read()
    coefficients = c_level.coefficient_functions(found)
    files = {
        f"{loops.FOLDER}/_rules.pxi": loops.rules(found, NOTE),
        f"{loops.FOLDER}/_fused_rules.pxi": loops.fused_rules(found, NOTE),
        f"{loops.FOLDER}/_fused_table.pxi": loops.fused_table(found, NOTE),
        f"{loops.FOLDER}/_fused_codecs.pxi": loops.fused_codecs(found, NOTE),
        arithmetic.PATH: arithmetic.text(found, NOTE),
        hyper_rows.PATH: hyper_rows.text(found, coefficients, NOTE),
        "src_c/_sizes.h": sizes.header(NOTE),
        "src_c/_powers.h": powers.header(NOTE),
        "fastgd/optimizers/__init__.pyi": stubs.optimizers(found, NOTE),
        **c_level.files(found, coefficients, NOTE),
    }
    for path, text in files.items():
        file = Path(path)
        file.parent.mkdir(exist_ok=True)
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
