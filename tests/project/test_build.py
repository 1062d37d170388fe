"""What setup.py builds, by what the compiler can do; nothing is compiled but its probes."""

from __future__ import annotations

import os
import platform
import shutil

import pytest
from support.helpers import ROOT, run_python

# Runs setup.py up to where extensions would be compiled, and prints which.
PROBES = f"""
import os, runpy, setuptools, setuptools.command.build_ext, Cython.Build
os.chdir({str(ROOT)!r})
Cython.Build.cythonize = lambda extensions, **options: extensions
setuptools.command.build_ext.build_ext.build_extensions = lambda self: print(
    *(extension.name.rpartition(".")[2] for extension in self.extensions))
whole = setuptools.setup
setuptools.setup = lambda **given: whole(script_name="setup.py", script_args=["-q", "build_ext"], **given)
runpy.run_path("setup.py")
"""

# Ignores flags with a warning, as cl does.
IGNORANT = """#!/bin/sh
for flag; do
    shift
    case $flag in
    -march=* | -mprefer-vector-width=* | -fopenmp) echo "warning: $flag is unknown" >&2 ;;
    *) set -- "$@" "$flag" ;;
    esac
done
exec gcc "$@"
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="this CPU is no x86-64, or there is no gcc",
)
@pytest.mark.slow
def test_no_backend_is_named_for_flags_that_were_ignored(tmp_path):
    """An exit status doesn't tell: else v3 and v4 would be baseline under other names."""
    ignorant = tmp_path / "ignorant"
    ignorant.write_text(IGNORANT)
    ignorant.chmod(0o755)
    done = run_python(PROBES, CC=str(ignorant), FASTGD_BACKENDS="")
    assert done.returncode == 0, done.stderr
    assert "no OpenMP here" in done.stdout
    assert done.stdout.split()[-5:] == ["_engine", "_baseline", "_watch", "c_api", "_series"]
    assert "_x86_64_v4" in run_python(PROBES, CC="gcc", FASTGD_BACKENDS="").stdout.split()


# Runs setup.py as `make build` does, but that modules are files of a word, and prints what is built.
BUILDS = r"""
import pathlib, runpy, setuptools, setuptools.command.build_ext, Cython.Build
Cython.Build.cythonize = lambda extensions, **options: extensions

def build(self, extension):
    file = pathlib.Path(self.get_ext_fullpath(extension.name))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("built")
    os.write(1, extension.name.rpartition(".")[2].encode() + b"\n")  # whole lines, from threads

setuptools.command.build_ext.build_ext.build_extension = build
whole = setuptools.setup
setuptools.setup = lambda **given: whole(
    script_name="setup.py", script_args=["-q", "build_ext", "--inplace"], **given)
runpy.run_path("setup.py")
"""


@pytest.mark.slow
def test_modules_are_built_anew_that_are_made_of_something_else(tmp_path):
    for name in ("fastgd", "src_c"):
        ignored = shutil.ignore_patterns("*.so", "*.c" if name == "fastgd" else "", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)

    script = f"import os\nos.chdir({str(tmp_path)!r})\n{BUILDS}"

    def built(openmp="1", **others):
        done = run_python(script, FASTGD_BACKENDS="baseline", FASTGD_OPENMP=openmp, **others)
        assert done.returncode == 0, done.stderr
        return sorted(line for line in done.stdout.splitlines() if " " not in line)

    kernels = tmp_path / "fastgd" / "kernels"
    everything = ["_baseline", "_engine", "_series", "_watch", "c_api"]
    ignorant = tmp_path / "ignorant"  # a compiler that learns of OpenMP later
    ignorant.write_text(
        IGNORANT.replace("exec", f'[ -e {tmp_path}/knows ] && set -- "$@" -fopenmp\nexec')
    )
    ignorant.chmod(0o755)
    assert built(CC=str(ignorant)) == everything
    (tmp_path / "knows").touch()
    assert built(CC=str(ignorant)) == ["_engine"]
    assert built() == everything
    with (kernels / "_watch.pyx").open("a") as file:
        file.write("# something else\n")
    next(kernels.glob("_series.*.so")).unlink()
    assert built() == ["_series", "_watch"]
    assert built(openmp="0") == everything
    with (tmp_path / "src_c" / "numeric.h").open("a") as file:
        file.write("/* something else */\n")
    assert built(openmp="0") == everything

    code = kernels / "_watch.c"  # Cython's, or left over from a build that was interrupted
    code.write_text("of these sources")
    (kernels / "_watch.pyx").write_text("# others\n")
    assert built(openmp="0") == ["_watch"]
    for text, touched in (("of these sources", True), ("of others", False)):
        code.write_text(text)
        os.utime(code, (1, 1))
        assert built(openmp="0") == []
        assert (code.stat().st_mtime > 1) == touched
