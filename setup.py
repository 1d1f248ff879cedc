"""Builds bigkern._C: csrc/ compiled once per instruction set, as bigkern/_C/<instruction_set>.so.

Everything else about the package is in pyproject.toml. Separate modules, and not one with several copies inside: the
linker keeps one copy of each inline function, and must not keep the AVX-512 one for a machine that has none.
"""

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
# BIGKERN_INSTRUCTION_SETS="baseline avx2" builds only these: for builds that never leave this machine.
BUILT = os.environ.get("BIGKERN_INSTRUCTION_SETS", " ".join(INSTRUCTION_SETS)).split()

# BIGKERN_CXXFLAGS adds to these: "-fsanitize=address", for one.
COMMON_FLAGS = (
    "-std=c++17 -O3 -g0 -fopenmp -fvisibility=hidden -fno-math-errno -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
).split()
EXTRA_FLAGS = os.environ.get("BIGKERN_CXXFLAGS", "").split()
PACKAGE = ("bigkern", "_C")
SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


class BuildPerInstructionSet(build_ext):
    """Compiles files in parallel; a machine without a compiler still gets the package, and the reason in build.json."""

    def build_extensions(self):
        built, error = [], None
        for extension in self.extensions:
            try:
                self.build_extension(extension)
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

    def build_extension(self, extension):
        instruction_set = extension.name.rpartition(".")[2]
        flags = COMMON_FLAGS + INSTRUCTION_SETS[instruction_set] + EXTRA_FLAGS
        macros = [("BIGKERN_INSTRUCTION_SET", instruction_set)]
        object_dir = os.path.join(self.build_temp, instruction_set)

        def compile_one(source):
            # Kernels earn -O3; the bindings only cost compile time.
            level = ["-O1"] if source.endswith("bindings.cpp") else []
            return self.compiler.compile(
                [source],
                output_dir=object_dir,
                macros=macros,
                include_dirs=[get_include()],
                extra_postargs=flags + level,
            )[0]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, extension.sources))
        # Linked without -fopenmp: the OpenMP calls bind at load time to the one runtime that the process already has.
        sanitizers = [flag for flag in EXTRA_FLAGS if flag.startswith("-fsanitize")]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), extra_postargs=sanitizers, target_lang="c++"
        )


setup(
    ext_modules=[Extension(f"bigkern._C.{name}", SOURCES, depends=HEADERS, language="c++") for name in BUILT],
    cmdclass={"build_ext": BuildPerInstructionSet},
)
