// Layer normalization of rows: the mean is taken away, and no row is added. The kernels are in norm.cuh and
// norm_backward.cuh.
#define CENTERED 1
#define ADDITION 0
#include <norm_backward.cuh>
