"""Small CUDA sources of the tests' own, in a folder with the project's headers."""

import shutil
from pathlib import Path

from bigkern.cuda import source_files

ROOT = Path(__file__).parent.parent

SCALE = """
#include <common.cuh>
#ifndef SCALAR
#define SCALAR float
#endif
KERNEL scale_kernel(const SCALAR* input, SCALAR* output, float factor, int64 count) {
  const int64 first = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * kWidest<SCALAR>;
  if (first >= count) return;
  auto vector = load_vector<kWidest<SCALAR>>(input + first);
  for (int i = 0; i < kWidest<SCALAR>; ++i) vector.values[i] = from_float<SCALAR>(to_float(vector.values[i]) * factor);
  store_vector(output + first, vector);
}
"""


def use_folder(folder, monkeypatch, **sources):
    """Makes `folder` the place of the CUDA sources: the project's headers, and `<name>.cu` of the given texts."""
    for header in (ROOT / "csrc/cuda").glob("*.cuh"):
        shutil.copy(header, folder)
    for name, text in sources.items():
        (folder / f"{name}.cu").write_text(text)
    monkeypatch.setattr(source_files, "FOLDER", folder)
    source_files.read.cache_clear()
    source_files.with_headers.cache_clear()
