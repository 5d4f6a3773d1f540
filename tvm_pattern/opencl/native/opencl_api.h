// The part of the OpenCL 1.2 interface that the runtime uses, found in libOpenCL when it is first
// needed: neither the headers nor the library have to be there to compile, and a computer without a
// driver is told so instead of failing to load.
#ifndef TVM_PATTERN_OPENCL_API_H_
#define TVM_PATTERN_OPENCL_API_H_

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

using cl_int = int32_t;
using cl_uint = uint32_t;
using cl_ulong = uint64_t;
using cl_bool = cl_uint;
using cl_bitfield = cl_ulong;
using cl_platform_id = struct _cl_platform_id*;
using cl_device_id = struct _cl_device_id*;
using cl_context = struct _cl_context*;
using cl_command_queue = struct _cl_command_queue*;
using cl_mem = struct _cl_mem*;
using cl_program = struct _cl_program*;
using cl_kernel = struct _cl_kernel*;
using cl_event = struct _cl_event*;

// Names and values of the standard's headers; a test compares them where those are installed.
constexpr cl_int CL_SUCCESS = 0;
constexpr cl_int CL_DEVICE_NOT_FOUND = -1;
constexpr cl_int CL_MEM_OBJECT_ALLOCATION_FAILURE = -4;
constexpr cl_int CL_OUT_OF_RESOURCES = -5;
constexpr cl_int CL_OUT_OF_HOST_MEMORY = -6;
constexpr cl_int CL_PROFILING_INFO_NOT_AVAILABLE = -7;
constexpr cl_int CL_BUILD_PROGRAM_FAILURE = -11;
constexpr cl_int CL_INVALID_BUFFER_SIZE = -61;
constexpr cl_bool CL_TRUE = 1;
constexpr cl_bitfield CL_DEVICE_TYPE_CPU = 1 << 1;
constexpr cl_bitfield CL_DEVICE_TYPE_GPU = 1 << 2;
constexpr cl_bitfield CL_DEVICE_TYPE_ACCELERATOR = 1 << 3;
constexpr cl_uint CL_DEVICE_TYPE = 0x1000;
constexpr cl_uint CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002;
constexpr cl_uint CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004;
constexpr cl_uint CL_DEVICE_MAX_WORK_ITEM_SIZES = 0x1005;
constexpr cl_uint CL_DEVICE_MAX_CLOCK_FREQUENCY = 0x100C;
constexpr cl_uint CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010;
constexpr cl_uint CL_DEVICE_IMAGE2D_MAX_WIDTH = 0x1011;
constexpr cl_uint CL_DEVICE_IMAGE2D_MAX_HEIGHT = 0x1012;
constexpr cl_uint CL_DEVICE_IMAGE_SUPPORT = 0x1016;
constexpr cl_uint CL_DEVICE_GLOBAL_MEM_CACHE_SIZE = 0x101E;
constexpr cl_uint CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F;
constexpr cl_uint CL_DEVICE_LOCAL_MEM_TYPE = 0x1022;
constexpr cl_uint CL_DEVICE_LOCAL_MEM_SIZE = 0x1023;
constexpr cl_uint CL_DEVICE_NAME = 0x102B;
constexpr cl_uint CL_DEVICE_VENDOR = 0x102C;
constexpr cl_uint CL_DRIVER_VERSION = 0x102D;
constexpr cl_uint CL_DEVICE_VERSION = 0x102F;
constexpr cl_uint CL_DEVICE_EXTENSIONS = 0x1030;
constexpr cl_uint CL_PLATFORM_NAME = 0x0902;
constexpr cl_uint CL_DEVICE_IMAGE_MAX_BUFFER_SIZE = 0x1040;
constexpr cl_uint CL_LOCAL = 0x1;
constexpr cl_bitfield CL_QUEUE_PROFILING_ENABLE = 1 << 1;
constexpr cl_bitfield CL_MEM_READ_WRITE = 1 << 0;
constexpr cl_bitfield CL_MEM_READ_ONLY = 1 << 2;
constexpr cl_uint CL_MEM_OBJECT_IMAGE1D_BUFFER = 0x10F6;
constexpr cl_uint CL_RGBA = 0x10B5;
constexpr cl_uint CL_UNSIGNED_INT32 = 0x10DC;
constexpr cl_uint CL_PROGRAM_BUILD_LOG = 0x1183;
constexpr cl_uint CL_KERNEL_WORK_GROUP_SIZE = 0x11B0;
constexpr cl_uint CL_PROFILING_COMMAND_START = 0x1282;
constexpr cl_uint CL_PROFILING_COMMAND_END = 0x1283;

struct cl_image_format {
  cl_uint order, type;
};
struct cl_image_desc {
  cl_uint type;
  size_t width, height, depth, array_size, row_pitch, slice_pitch;
  cl_uint mip_levels, samples;
  cl_mem buffer;
};

// Name and type of each function. Callbacks are never used here and stand as void*.
#define TVM_PATTERN_OPENCL_FUNCTIONS(X)                                                           \
  X(clGetPlatformIDs, cl_int(cl_uint, cl_platform_id*, cl_uint*))                                 \
  X(clGetPlatformInfo, cl_int(cl_platform_id, cl_uint, size_t, void*, size_t*))                   \
  X(clGetDeviceIDs, cl_int(cl_platform_id, cl_bitfield, cl_uint, cl_device_id*, cl_uint*))        \
  X(clGetDeviceInfo, cl_int(cl_device_id, cl_uint, size_t, void*, size_t*))                       \
  X(clCreateContext, cl_context(const intptr_t*, cl_uint, const cl_device_id*, void*, void*, cl_int*)) \
  X(clCreateCommandQueue, cl_command_queue(cl_context, cl_device_id, cl_bitfield, cl_int*))       \
  X(clCreateBuffer, cl_mem(cl_context, cl_bitfield, size_t, void*, cl_int*))                      \
  X(clCreateImage, cl_mem(cl_context, cl_bitfield, const cl_image_format*, const cl_image_desc*,  \
                          void*, cl_int*))                                                        \
  X(clReleaseMemObject, cl_int(cl_mem))                                                           \
  X(clEnqueueReadBuffer, cl_int(cl_command_queue, cl_mem, cl_bool, size_t, size_t, void*,         \
                                cl_uint, const cl_event*, cl_event*))                             \
  X(clEnqueueWriteBuffer, cl_int(cl_command_queue, cl_mem, cl_bool, size_t, size_t, const void*,  \
                                 cl_uint, const cl_event*, cl_event*))                            \
  X(clEnqueueCopyBuffer, cl_int(cl_command_queue, cl_mem, cl_mem, size_t, size_t, size_t,         \
                                cl_uint, const cl_event*, cl_event*))                             \
  X(clCreateProgramWithSource, cl_program(cl_context, cl_uint, const char**, const size_t*, cl_int*)) \
  X(clBuildProgram, cl_int(cl_program, cl_uint, const cl_device_id*, const char*, void*, void*))  \
  X(clGetProgramBuildInfo, cl_int(cl_program, cl_device_id, cl_uint, size_t, void*, size_t*))     \
  X(clReleaseProgram, cl_int(cl_program))                                                         \
  X(clCreateKernel, cl_kernel(cl_program, const char*, cl_int*))                                  \
  X(clReleaseKernel, cl_int(cl_kernel))                                                           \
  X(clSetKernelArg, cl_int(cl_kernel, cl_uint, size_t, const void*))                              \
  X(clGetKernelWorkGroupInfo, cl_int(cl_kernel, cl_device_id, cl_uint, size_t, void*, size_t*))   \
  X(clEnqueueNDRangeKernel, cl_int(cl_command_queue, cl_kernel, cl_uint, const size_t*,           \
                                   const size_t*, const size_t*, cl_uint, const cl_event*,        \
                                   cl_event*))                                                    \
  X(clEnqueueMarkerWithWaitList, cl_int(cl_command_queue, cl_uint, const cl_event*, cl_event*))   \
  X(clGetEventProfilingInfo, cl_int(cl_event, cl_uint, size_t, void*, size_t*))                   \
  X(clReleaseEvent, cl_int(cl_event))                                                             \
  X(clFlush, cl_int(cl_command_queue))                                                            \
  X(clFinish, cl_int(cl_command_queue))

namespace tvm_pattern {

// The functions of the library that was found; `problem` says why there is none.
struct OpenCL {
  template <typename T>
  using Pointer = T*;
#define TVM_PATTERN_DECLARE(NAME, ...) Pointer<__VA_ARGS__> NAME = nullptr;
  TVM_PATTERN_OPENCL_FUNCTIONS(TVM_PATTERN_DECLARE)
#undef TVM_PATTERN_DECLARE
  std::string problem;

  // TVM_PATTERN_LIBOPENCL names another library than the system's.
  static OpenCL Open() {
    OpenCL cl;
    const char* named = std::getenv("TVM_PATTERN_LIBOPENCL");
    const char* names[] = {named ? named : "libOpenCL.so.1", named ? named : "libOpenCL.so"};
    void* library = nullptr;
    for (const char* name : names) {
      library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
    }
    if (library == nullptr) {
      cl.problem = std::string(names[0]) + " cannot be loaded";
      return cl;
    }
#define TVM_PATTERN_FIND(NAME, ...)                                                     \
  cl.NAME = reinterpret_cast<Pointer<__VA_ARGS__>>(dlsym(library, #NAME));              \
  if (cl.NAME == nullptr) cl.problem = std::string(names[0]) + " has no function " #NAME;
    TVM_PATTERN_OPENCL_FUNCTIONS(TVM_PATTERN_FIND)
#undef TVM_PATTERN_FIND
    return cl;
  }
};

inline const OpenCL& Api() {
  static const OpenCL* cl = new OpenCL(OpenCL::Open());  // used by destructors at exit: never freed
  return *cl;
}

}  // namespace tvm_pattern

#endif  // TVM_PATTERN_OPENCL_API_H_
