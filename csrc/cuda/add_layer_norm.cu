// Layer normalization of residual + dropout(input). The kernels are in norm.cuh and norm_backward.cuh.
#define CENTERED 1
#define ADDITION 1
#include <norm_backward.cuh>
