// A libcuda for machines without one: the functions that bigkern/cuda/libcuda.py calls, compiled against cuda.h, so
// that the compiler checks their types. It runs nothing; it notes each call in a log that a test reads, refuses what
// the real driver refuses, and fails where a test asks for it.
#include <cuda.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kDevices = 2, kDefaultShared = 48 * 1024, kMostShared = 227 * 1024 };

struct CUctx_st {
  int device;
};
struct CUmod_st {
  CUcontext context;
};
struct CUfunc_st {
  CUcontext context;
  char name[128];
  unsigned most_dynamic_shared;
};

static struct CUctx_st contexts[kDevices] = {{0}, {1}};
static _Thread_local CUcontext stack[16];
static _Thread_local int depth = 0;
static _Thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char log_text[1 << 20];
static size_t log_length = 0;
static char failing_call[64];
static int failing_code = 0;
static int capturing = 0;

const char* standin_log(void) { return log_text; }
void standin_clear(void) { log_text[log_length = 0] = 0; }
void standin_set_capturing(int on) { capturing = on; }
void standin_make_current(int device) { stack[depth = 0] = device < 0 ? NULL : &contexts[device]; }
int standin_depth(void) { return depth; }

void standin_fail(const char* call, int code) {
  snprintf(failing_call, sizeof(failing_call), "%s", call);
  failing_code = code;
}

static CUcontext current(void) { return stack[depth]; }

__attribute__((format(printf, 2, 3))) static CUresult note(const char* call, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&mutex);
  log_length += (size_t)snprintf(log_text + log_length, sizeof(log_text) - log_length, "%s ", call);
  log_length += (size_t)vsnprintf(log_text + log_length, sizeof(log_text) - log_length, format, arguments);
  log_length += (size_t)snprintf(log_text + log_length, sizeof(log_text) - log_length, "\n");
  pthread_mutex_unlock(&mutex);
  va_end(arguments);
  return strcmp(call, failing_call) == 0 ? (CUresult)failing_code : CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return note("cuInit", "%u", flags); }

CUresult cuDriverGetVersion(int* version) {
  *version = 13010;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : NULL;
  return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : NULL;
  return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal < 0 || ordinal >= kDevices ? CUDA_ERROR_INVALID_DEVICE : note("cuDeviceGet", "%d", ordinal);
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = kMostShared; break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return device < 0 || device >= kDevices ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = &contexts[device];
  return note("cuDevicePrimaryCtxRetain", "%d", device);
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current();
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  stack[++depth] = context;
  return note("cuCtxPushCurrent", "%d", context->device);
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  *context = stack[depth--];
  return note("cuCtxPopCurrent", "%d", (*context)->device);
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  CUstreamCaptureMode previous = capture_mode;
  capture_mode = *mode;
  *mode = previous;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
  if (capturing && capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (memcmp(image, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  *module = malloc(sizeof(**module));
  (*module)->context = current();
  return note("cuModuleLoadData", "on %d", current()->device);
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  if (strstr(name, "missing")) return CUDA_ERROR_NOT_FOUND;
  *function = calloc(1, sizeof(**function));
  (*function)->context = module->context;
  (*function)->most_dynamic_shared = kDefaultShared;
  snprintf((*function)->name, sizeof((*function)->name), "%s", name);
  return note("cuModuleGetFunction", "%s", name);
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = strstr(function->name, "static") ? 1024 : 0;
  if (attribute != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  function->most_dynamic_shared = (unsigned)(kDefaultShared - *value);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > kMostShared)
    return CUDA_ERROR_INVALID_VALUE;
  function->most_dynamic_shared = (unsigned)value;
  return note("cuFuncSetAttribute", "%s %d", function->name, value);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  if (current() != function->context) return CUDA_ERROR_INVALID_CONTEXT;
  if (parameters || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE ||
      extra[4] != CU_LAUNCH_PARAM_END || config->attrs || config->numAttrs)
    return CUDA_ERROR_INVALID_VALUE;
  if (!config->gridDimX || !config->gridDimY || !config->gridDimZ || config->blockDimX > 1024 ||
      config->blockDimY != 1 || config->blockDimZ != 1 || config->sharedMemBytes > function->most_dynamic_shared)
    return CUDA_ERROR_INVALID_VALUE;
  size_t length = *(const size_t*)extra[3];
  char hex[2 * 4096 + 1] = "";
  for (size_t i = 0; i < length; ++i) snprintf(hex + 2 * i, 3, "%02x", ((const uint8_t*)extra[1])[i]);
  return note("cuLaunchKernelEx", "%s grid %u %u %u block %u shared %u stream %p arguments %s", function->name,
              config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX, config->sharedMemBytes,
              (void*)config->hStream, hex);
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || rank < 1 || rank > 5) return CUDA_ERROR_INVALID_VALUE;
  char text[512] = "";
  size_t at = 0;
  for (cuuint32_t i = 0; i < rank; ++i) {
    unsigned long long stride = i ? strides[i - 1] : 0;
    if (stride % 16 || box[i] < 1 || box[i] > 256 || element_strides[i] != 1) return CUDA_ERROR_INVALID_VALUE;
    at += (size_t)snprintf(text + at, sizeof(text) - at, " %llu:%llu:%u", (unsigned long long)sizes[i], stride, box[i]);
  }
  memset(map, 0xA5, sizeof(*map));
  return note("cuTensorMapEncodeTiled", "type %d size:stride:box%s interleave %d swizzle %d promotion %d fill %d",
              (int)type, text, (int)interleave, (int)swizzle, (int)promotion, (int)fill);
}
