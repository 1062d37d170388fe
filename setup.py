"""Builds the extensions: the engine, and one module of kernels for each backend.

BACKENDS is the list of instruction sets; everything else about the package is in pyproject.toml.
"""

import hashlib
import multiprocessing
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from importlib import import_module
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86_64 = platform.machine() in {"x86_64", "AMD64"} and sys.maxsize > 2**32

# The flags of each backend beside the common ones; x86_64_v4 wants whole ZMM registers.
BACKENDS = {"baseline": []}
if X86_64:
    BACKENDS["x86_64_v3"] = ["-march=x86-64-v3"]
    BACKENDS["x86_64_v4"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
# What compilers define that take these flags.  An exit status tells nothing: cl only warns of flags
# that it doesn't know, and would build for SSE2 what is then called x86_64_v4.
DEFINED = {"x86_64_v3": "__AVX2__", "x86_64_v4": "__AVX512BW__"}
# FASTGD_BACKENDS=baseline or the like builds these alone, for a look at one of them.
if os.environ.get("FASTGD_BACKENDS"):
    BACKENDS = {name: BACKENDS[name] for name in os.environ["FASTGD_BACKENDS"].split(",")}

# The numeric contract: no contraction to FMA, no reassociation, but let square roots vectorise.
# -ffast-math is not for us: linking with it flips the whole process to flush-to-zero.
IEEE = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# Python's own flags may bring -g, which takes a third of the compiler's time and makes modules six
# times as large; CFLAGS=-g asks for it.
DEBUG = [] if " -g" in f" {os.environ.get('CFLAGS', '')}" else ["-g0"]
# Else a header that was taken for another one builds, and fails at import.
STRICT = ["-Werror=implicit-function-declaration"]

# The same in the words of cl.  `/fp:precise` contracts nothing from Visual Studio 2022 (1930) on,
# but does in clang-cl, which FASTGD_CC=clang-cl picks.  By the documentation: untested but in
# workflows.
MSVC = {
    "-O3": ["/O2", "/std:c11"],
    "-ffp-contract=off": ["/fp:precise"],
    "-march=x86-64-v3": ["/arch:AVX2"],
    "-march=x86-64-v4": ["/arch:AVX512"],
    "-fopenmp": ["/openmp"],
}
CLANG_CL = {**MSVC, "-ffp-contract=off": ["/fp:precise", "/clang:-ffp-contract=off"]}
KEEPS_THE_CONTRACT = """#if defined(_MSC_VER) && _MSC_VER < 1930 && !defined(__clang__)
#error "this cl contracts products and sums"
#endif
int main(void) { return 0; }"""

# clang by itself leaves calls in some loops, which then are not vectorised: 8-bit states took 4 to
# 17 times the time to store.  (An attribute on all that is inline would inline too early for clang
# to see what can't overlap.)
INLINE = ["-mllvm", "-inline-threshold=5000"]

MEANS_THE_FLAGS = """#ifndef {}
#error "the flags were ignored"
#endif
int main(void) {{ return 0; }}"""

# Ways to ask for OpenMP, the last that of Apple's clang.
OPENMP = [["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]]
OPENMP = [] if os.environ.get("FASTGD_OPENMP") == "0" else OPENMP
USES_OPENMP = """#ifndef _OPENMP
#error "the flag was ignored"
#endif
#include <omp.h>
int main(void) { return omp_get_max_threads() == 0; }"""

# FASTGD_SANITIZE=address,undefined or thread: what tests/tools/sanitizers/run builds.  Python's own
# flags bring -fwrapv, which would define the signed overflow that is to be found.
SANITIZE = []
if os.environ.get("FASTGD_SANITIZE"):
    SANITIZE = [f"-fsanitize={os.environ['FASTGD_SANITIZE']}", "-fno-sanitize-recover=all"]
    SANITIZE += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"]
    if "undefined" in os.environ["FASTGD_SANITIZE"]:
        SANITIZE += ["-fsanitize=float-cast-overflow"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,  # a check for zero in a loop keeps it from being vectorised
    "embedsignature": True,
    "freethreading_compatible": True,
}

KERNELS = "fastgd/kernels"
# First of all, as the sources that it writes are among those listed next.
sys.path.insert(0, "src_c")
import_module("generate").write()
# An edit to any of these rebuilds everything.
DEPENDS = sorted(
    [
        *glob("src_c/*.h"),
        *glob("fastgd/include/*.h"),
        *glob(f"{KERNELS}/**/*.px[di]", recursive=True),
        *glob("fastgd/optimizers/*.pxi"),
    ]
)

# Where it is noted what a module beside the sources was made of.
NOTES = Path("build", f"made-of-{sysconfig.get_config_var('SOABI')}")
# What it follows from beside sources, flags and versions.  The compiler's own version isn't asked.
TOLD = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "CPATH", "C_INCLUDE_PATH",
        "LIBRARY_PATH", "ARCHFLAGS", "MACOSX_DEPLOYMENT_TARGET", "FASTGD_CC",
        "FASTGD_OPENMP")  # fmt: skip


def made_of(extension):
    """A digest of what a module is made of."""
    versions = sys.version, Cython.__version__  # and any NumPy: modules go with all from 2.0 on
    told = [os.environ.get(name) for name in TOLD]
    digest = hashlib.sha256(repr((versions, told, SANITIZE)).encode())
    for file in ["setup.py", *extension.sources, *extension.depends]:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def noted(name):
    """What was noted of a module: digests of its sources, of its C file, and of its flags."""
    note = NOTES / name
    return (note.read_text().split("\n") if note.exists() else []) + [""] * 3


def code_of(name):
    """The C file of a module, and its digest."""
    code = Path(*name.split(".")).with_suffix(".c")
    return code, hashlib.sha256(code.read_bytes()).hexdigest() if code.exists() else "none"


class BuildExtensions(build_ext):
    """Build in parallel: with OpenMP, and the backends, that the compiler knows.

    Beside the sources, by `make build` and by pip, a module stays if it was made of the same.
    Times of files don't tell: pip brings a new Cython each time, whose files are new.
    """

    def run(self):
        """Build, and note what modules beside the sources were made of."""
        beside = self.inplace
        self.keeps = beside and not self.force
        self.force = self.force or beside
        super().run()
        if beside:
            NOTES.mkdir(parents=True, exist_ok=True)
            for extension in self.extensions:
                parts = (
                    MADE_OF[extension.name],
                    code_of(extension.name)[1],
                    self.flags_of(extension),
                )
                (NOTES / extension.name).write_text("\n".join(parts))

    def flags_of(self, extension):
        """A digest of what a module is compiled and linked with, which was partly found out."""
        own = extension.extra_compile_args, extension.extra_link_args
        given = self.debug, self.define, self.undef, self.libraries
        return hashlib.sha256(repr((own, given)).encode()).hexdigest()

    def build_extension(self, extension):
        """Build a module, or take the one beside the sources."""
        there = Path(self.get_ext_filename(extension.name))
        sources, _, flags, *_ = noted(extension.name)
        same = (sources, flags) == (MADE_OF[extension.name], self.flags_of(extension))
        if self.keeps and same and there.exists():
            self.mkpath(str(Path(self.build_lib, there).parent))
            self.copy_file(str(there), str(Path(self.build_lib, there)))
        else:
            (NOTES / extension.name).unlink(missing_ok=True)
            super().build_extension(extension)

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.speak_msvc()
        openmp = next((f for f in OPENMP if self.builds(USES_OPENMP, f)), [])
        if not openmp:
            print("fastgd: no OpenMP here; the engine will use one thread")
        inline = INLINE if self.is_clang() else []
        for extension in list(self.extensions):
            module = extension.name.rpartition("._")[2]
            if module in BACKENDS:
                extension.extra_compile_args += inline
            if module == "engine":
                extension.extra_compile_args += openmp[:2]
                extension.extra_link_args += openmp
                continue
            macro = DEFINED.get(module, "__FILE__")
            if not self.builds(MEANS_THE_FLAGS.format(macro), extension.extra_compile_args):
                print(f"fastgd: {extension.name} is left out, as the compiler lacks its flags")
                self.extensions.remove(extension)
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def speak_msvc(self):
        """Say in the words of cl, or of clang-cl, what extensions are compiled with."""
        global OPENMP
        self.compiler.initialize()
        words = MSVC
        if os.environ.get("FASTGD_CC") == "clang-cl":
            self.compiler.cc, words = "clang-cl", CLANG_CL
        for extension in self.extensions:
            given = extension.extra_compile_args
            extension.extra_compile_args = [word for flag in given for word in words.get(flag, ())]
        OPENMP = [words["-fopenmp"]] if OPENMP else []
        if not self.builds(KEEPS_THE_CONTRACT, []):
            raise SystemExit("fastgd: Visual Studio 2022 or later is needed, or clang-cl")

    def is_clang(self):
        """Whether the compiler says that it is one."""
        command = getattr(self.compiler, "compiler_so", None) or [self.compiler.cc]
        said = subprocess.run([*command, "--version"], capture_output=True, text=True)
        return "clang" in said.stdout

    def builds(self, source, flags):
        """Whether a program compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "probe.c"
            file.write_text(source + "\n")
            try:
                objects = self.compiler.compile(
                    [str(file)], output_dir=folder, extra_postargs=flags[:]
                )
                self.compiler.link_executable(
                    objects, str(Path(folder) / "probe"), extra_postargs=flags
                )
            except Exception:  # each compiler fails with an exception of its own
                return False
        return True


def extension(module, sources, flags=()):
    return Extension(
        f"fastgd.kernels.{module}",
        [f"{KERNELS}/{module}.pyx", *sources],
        include_dirs=["src_c", "fastgd/include", numpy.get_include()],
        depends=DEPENDS,
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=[*IEEE, *DEBUG, *STRICT, *flags, *SANITIZE],
        extra_link_args=SANITIZE[:],
    )


EXTENSIONS = [extension("_engine", ["src_c/cpu.c"])]
EXTENSIONS += [extension(f"_{name}", [], flags) for name, flags in BACKENDS.items()]
EXTENSIONS += [extension(name, []) for name in ("_watch", "c_api", "_series")]

MADE_OF = {each.name: made_of(each) for each in EXTENSIONS}
ANNOTATE = os.environ.get("FASTGD_ANNOTATE") == "1"
for name, digest in MADE_OF.items():
    code, found = code_of(name)
    if noted(name)[:2] == [digest, found] and code.exists() and not ANNOTATE:
        code.touch()  # else Cython, which goes by times, would write it anew

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        compiler_directives=DIRECTIVES,
        annotate=ANNOTATE,
        # Where processes begin as copies: others would run this file again.
        nthreads=os.cpu_count() if multiprocessing.get_start_method() == "fork" else 0,
    ),
    cmdclass={"build_ext": BuildExtensions},
)
