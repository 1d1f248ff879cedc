"""Builds bigkern._C: csrc/ compiled once per instruction set, as bigkern/_C/<instruction_set>.so.

Everything else about the package is in pyproject.toml. Separate modules, and not one with several copies inside: the
linker keeps one copy of each inline function, and must not keep the AVX-512 one for a machine that has none.
"""

import importlib.util
import json
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11 import get_include
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

X86_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512".split(),
}
INSTRUCTION_SETS = X86_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}


def supported_here():
    """The instruction sets that this processor runs, weakest first."""
    spec = importlib.util.spec_from_file_location("kernel_loader", Path(__file__).parent / "bigkern/_C/__init__.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    features = loader.cpu_features()
    return [name for name in INSTRUCTION_SETS if features.issuperset(loader.REQUIRED_FEATURES[name])]


def chosen():
    """All, for a wheel that goes elsewhere. BIGKERN_INSTRUCTION_SETS="baseline avx2" builds only these, and "local" the
    lowest and the best that this machine runs, in two thirds of the time."""
    names = os.environ.get("BIGKERN_INSTRUCTION_SETS", "").split() or list(INSTRUCTION_SETS)
    if names == ["local"]:
        names = list(dict.fromkeys(("baseline", supported_here()[-1])))
    if unknown := [name for name in names if name not in INSTRUCTION_SETS]:
        known = ", ".join(("local", *INSTRUCTION_SETS))
        raise SystemExit(f"BIGKERN_INSTRUCTION_SETS: {', '.join(unknown)} is none of {known}")
    return names


# BIGKERN_CXXFLAGS adds to these: "-fsanitize=address", for one.
COMMON_FLAGS = (
    "-std=c++17 -g0 -fopenmp -fvisibility=hidden -fno-math-errno -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
).split()
EXTRA_FLAGS = os.environ.get("BIGKERN_CXXFLAGS", "").split()
PACKAGE = ("bigkern", "_C")
BINDINGS = os.path.join("csrc", "bindings.cpp")
KERNELS = [str(path) for path in sorted(Path("csrc/cpu").glob("*.cpp"), key=lambda path: -path.stat().st_size)]
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))

# Measured faster at -O3, by 1.05x to 2.5x. For the others it only takes longer to build, up to three times.
FASTER_AT_O3 = {"adam", "add_layer_norm", "cross_entropy", "int8_linear", "layer_norm", "rms_norm"}


def optimization(source):
    if source == BINDINGS:
        return "-O1"
    return "-O3" if Path(source).stem in FASTER_AT_O3 else "-O2"


class BuildPerInstructionSet(build_ext):
    """Compiles all files in parallel; without a compiler the package installs, with the reason in build.json.

    The bindings, which call kernels and hold none, are compiled once and linked into every module.
    """

    def build_extensions(self):
        built, error = [], None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bindings = pool.submit(self.compile_one, BINDINGS, "bindings", [])
            kernels = {
                extension.name: [
                    pool.submit(self.compile_one, source, name, INSTRUCTION_SETS[name]) for source in KERNELS
                ]
                for extension in self.extensions
                for name in [extension.name.rpartition(".")[2]]
            }
            for extension in self.extensions:
                try:
                    self.link(extension, [future.result() for future in (bindings, *kernels[extension.name])])
                    built.append(extension)
                except (BaseError, CompileError, LinkError) as failure:
                    error = f"{type(failure).__name__}: {failure}"
                    self.warn(f"{extension.name} was not built ({error}); bigkern installs without it")
        self.extensions = built  # what is copied and recorded from here on
        self.write_report(Path(self.build_lib, *PACKAGE), error)

    def write_report(self, folder, error):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.json").write_text(json.dumps({"error": error}) + "\n")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib, *PACKAGE, "build.json"), Path(*PACKAGE))

    def compile_one(self, source, folder, flags):
        return self.compiler.compile(
            [source],
            output_dir=os.path.join(self.build_temp, folder),
            include_dirs=[get_include()],
            extra_postargs=[*COMMON_FLAGS, *flags, optimization(source), *EXTRA_FLAGS],
        )[0]

    def link(self, extension, objects):
        # Linked without -fopenmp: the OpenMP calls bind at load time to the one runtime that the process already has.
        sanitizers = [flag for flag in EXTRA_FLAGS if flag.startswith("-fsanitize")]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), extra_postargs=sanitizers, target_lang="c++"
        )


setup(
    ext_modules=[
        Extension(f"bigkern._C.{name}", [BINDINGS, *KERNELS], depends=HEADERS, language="c++") for name in chosen()
    ],
    cmdclass={"build_ext": BuildPerInstructionSet},
)
