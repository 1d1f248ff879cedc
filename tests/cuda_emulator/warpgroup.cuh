// csrc/cuda/warpgroup.cuh for the CPU.
#pragma once

#include <ptx.cuh>
