// Root-mean-square normalization of rows. The kernels are in norm.cuh and norm_backward.cuh.
#define CENTERED 0
#define ADDITION 0
#include <norm_backward.cuh>
