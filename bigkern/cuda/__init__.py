"""Launchers of the kernels in csrc/cuda: one file per op, of the same name and the same functions as in kernels/.

A launcher chooses the variant, its macros, grid, block and shared memory, and hands them to the `Machine` of its
tensors: a GPU (`driver.py`), the tests' emulator, or a `Recorder` that only notes what would be compiled.
"""
