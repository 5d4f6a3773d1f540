/* The GPU by OpenCL, whose library is looked for when the program runs. */
#include "backend.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What is used of OpenCL 1.2; its headers are not needed. */
typedef struct Opaque *Handle;
enum {
  CL_TRUE_ = 1,
  CL_DEVICE_NAME = 0x102B,
  CL_DEVICE_VENDOR = 0x102C,
  CL_DRIVER_VERSION = 0x102D,
  CL_DEVICE_EXTENSIONS = 0x1030,
  CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002,
  CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
  CL_PROGRAM_BUILD_LOG = 0x1183,
  CL_KERNEL_WORK_GROUP_SIZE = 0x11B0,
  CL_DEVICE_IMAGE_SUPPORT = 0x1016,
  CL_DEVICE_IMAGE_MAX_BUFFER_SIZE = 0x1040,
  CL_MEM_OBJECT_IMAGE1D_BUFFER = 0x10F6,
  CL_RGBA = 0x10B5,
  CL_UNSIGNED_INT32 = 0x10DC,
  TEXEL_BYTES = 16,
  CL_OUT_OF_MEMORY_1 = -4,
  MAX_DEVICES = 16
};
static const uint64_t GPU = 1 << 2, ANY_DEVICE = 0xFFFFFFFF, READ_WRITE = 1,
                      READ_ONLY = 1 << 2, COPY = 1 << 5;

typedef struct { uint32_t order, type; } ImageFormat;
typedef struct {
  uint32_t type;
  size_t width, height, depth, array_size, row_pitch, slice_pitch;
  uint32_t mip_levels, samples;
  Handle buffer;
} ImageDesc;

static struct {
  int32_t (*clGetPlatformIDs)(uint32_t, Handle *, uint32_t *);
  int32_t (*clGetDeviceIDs)(Handle, uint64_t, uint32_t, Handle *, uint32_t *);
  int32_t (*clGetDeviceInfo)(Handle, uint32_t, size_t, void *, size_t *);
  Handle (*clCreateContext)(void *, uint32_t, Handle *, void *, void *, int32_t *);
  Handle (*clCreateCommandQueue)(Handle, Handle, uint64_t, int32_t *);
  Handle (*clCreateBuffer)(Handle, uint64_t, size_t, void *, int32_t *);
  Handle (*clCreateProgramWithSource)(Handle, uint32_t, const char **, size_t *, int32_t *);
  int32_t (*clBuildProgram)(Handle, uint32_t, Handle *, const char *, void *, void *);
  int32_t (*clGetProgramBuildInfo)(Handle, Handle, uint32_t, size_t, void *, size_t *);
  Handle (*clCreateKernel)(Handle, const char *, int32_t *);
  int32_t (*clGetKernelWorkGroupInfo)(Handle, Handle, uint32_t, size_t, void *, size_t *);
  int32_t (*clSetKernelArg)(Handle, uint32_t, size_t, const void *);
  int32_t (*clEnqueueNDRangeKernel)(Handle, Handle, uint32_t, const size_t *, const size_t *,
                                    const size_t *, uint32_t, void *, void *);
  int32_t (*clEnqueueReadBuffer)(Handle, Handle, uint32_t, size_t, size_t, void *, uint32_t,
                                 void *, void *);
  int32_t (*clEnqueueWriteBuffer)(Handle, Handle, uint32_t, size_t, size_t, const void *,
                                  uint32_t, void *, void *);
  int32_t (*clFinish)(Handle);
  int32_t (*clReleaseMemObject)(Handle);
  int32_t (*clReleaseKernel)(Handle);
  int32_t (*clReleaseProgram)(Handle);
  int32_t (*clReleaseCommandQueue)(Handle);
  int32_t (*clReleaseContext)(Handle);
  /* Without it textures are read as buffers. */
  Handle (*clCreateImage)(Handle, uint64_t, const ImageFormat *, const ImageDesc *, void *,
                          int32_t *);
} cl;

static const struct { const char *name; size_t offset; } FUNCTIONS[] = {
#define TABLE(name) {#name, __builtin_offsetof(__typeof__(cl), name)}
    TABLE(clGetPlatformIDs),      TABLE(clGetDeviceIDs),        TABLE(clGetDeviceInfo),
    TABLE(clCreateContext),       TABLE(clCreateCommandQueue),  TABLE(clCreateBuffer),
    TABLE(clCreateProgramWithSource), TABLE(clBuildProgram),    TABLE(clGetProgramBuildInfo),
    TABLE(clCreateKernel),        TABLE(clGetKernelWorkGroupInfo), TABLE(clSetKernelArg),
    TABLE(clEnqueueNDRangeKernel), TABLE(clEnqueueReadBuffer),  TABLE(clEnqueueWriteBuffer),
    TABLE(clFinish),              TABLE(clReleaseMemObject),    TABLE(clReleaseKernel),
    TABLE(clReleaseProgram),      TABLE(clReleaseCommandQueue), TABLE(clReleaseContext),
};

static const char *const LIBRARIES[] = {
    "libOpenCL.so.1", "libOpenCL.so", "/vendor/lib64/libOpenCL.so",
    "/vendor/lib64/egl/libGLES_mali.so", "/vendor/lib64/libGLES_mali.so",
    "/system/vendor/lib64/libOpenCL.so", "libOpenCL-pixel.so",
};

typedef struct {
  Handle device, context, queue;
  Handle *storages, *inputs, *programs, *images;
  int image_count;
  size_t image_texels; /* the largest image of a buffer; 0 without images */
  char name[256], vendor[256], driver[256];
  uint32_t units;
  uint64_t memory; /* bytes of the device */
  uint64_t held;   /* bytes of this network's buffers */
} State;

static int load(void) {
  const char *own = getenv("PATTERN_OPENCL");
  void *library = own != NULL ? dlopen(own, RTLD_NOW) : NULL;
  size_t count = own != NULL ? 0 : sizeof LIBRARIES / sizeof *LIBRARIES;
  for (size_t i = 0; library == NULL && i < count; ++i) library = dlopen(LIBRARIES[i], RTLD_NOW);
  if (library == NULL) {
    return pattern_fail("no OpenCL driver (%s); install it, or name its library by the variable"
                        " PATTERN_OPENCL", dlerror());
  }
  for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; ++i) {
    void *function = dlsym(library, FUNCTIONS[i].name);
    if (function == NULL) return pattern_fail("the OpenCL driver lacks %s", FUNCTIONS[i].name);
    memcpy((char *)&cl + FUNCTIONS[i].offset, &function, sizeof function);
  }
  void *image = dlsym(library, "clCreateImage");
  memcpy(&cl.clCreateImage, &image, sizeof image);
  return 0;
}

static int is_ok(const State *state, int32_t code, const char *what) {
  if (code == 0) return 1;
  if (code == CL_OUT_OF_MEMORY_1 || code == -5 || code == -6 || code == -61) {
    pattern_fail("the GPU is out of memory (%s, OpenCL error %d): this build has %" PRIu64
                 " bytes there, the GPU %" PRIu64 " in all; make the kit for a smaller batch, of a"
                 " float16 network or of a smaller one", what, code, state->held, state->memory);
  } else {
    pattern_fail("%s: OpenCL error %d", what, code);
  }
  return 0;
}

/* The devices of a kind, of all platforms. */
static uint32_t devices_of(uint64_t kind, Handle *devices) {
  Handle platforms[MAX_DEVICES];
  uint32_t platform_count = 0, count = 0;
  if (cl.clGetPlatformIDs(MAX_DEVICES, platforms, &platform_count) != 0) return 0;
  for (uint32_t i = 0; i < platform_count && i < MAX_DEVICES; ++i) {
    uint32_t more = 0;
    if (count < MAX_DEVICES &&
        cl.clGetDeviceIDs(platforms[i], kind, MAX_DEVICES - count, devices + count, &more) == 0) {
      count += more < MAX_DEVICES - count ? more : MAX_DEVICES - count;
    }
  }
  return count;
}

static int choose_device(State *state) {
  Handle devices[MAX_DEVICES];
  uint32_t count = devices_of(GPU, devices);
  if (count == 0) count = devices_of(ANY_DEVICE, devices);
  const char *wanted = getenv("PATTERN_OPENCL_DEVICE");
  uint32_t number = wanted != NULL ? (uint32_t)atoi(wanted) : 0;
  if (number >= count) {
    return pattern_fail("no OpenCL device %u, the driver has %u; see that the GPU's driver is"
                        " installed", number, count);
  }
  state->device = devices[number];
  cl.clGetDeviceInfo(state->device, CL_DEVICE_NAME, sizeof state->name - 1, state->name, NULL);
  cl.clGetDeviceInfo(state->device, CL_DEVICE_VENDOR, sizeof state->vendor - 1, state->vendor,
                     NULL);
  cl.clGetDeviceInfo(state->device, CL_DRIVER_VERSION, sizeof state->driver - 1, state->driver,
                     NULL);
  cl.clGetDeviceInfo(state->device, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof state->units,
                     &state->units, NULL);
  cl.clGetDeviceInfo(state->device, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof state->memory,
                     &state->memory, NULL);
  uint32_t has_images = 0;
  cl.clGetDeviceInfo(state->device, CL_DEVICE_IMAGE_SUPPORT, sizeof has_images, &has_images, NULL);
  const char *images = getenv("PATTERN_OPENCL_IMAGES"); /* 0: buffers, to compare */
  if (has_images && cl.clCreateImage != NULL && (images == NULL || strcmp(images, "0") != 0)) {
    cl.clGetDeviceInfo(state->device, CL_DEVICE_IMAGE_MAX_BUFFER_SIZE, sizeof state->image_texels,
                       &state->image_texels, NULL);
  }
  return 0;
}

/* Whether a name holds a word, whatever the case. */
static int names(const char *text, const char *word) {
  for (; *text != 0; ++text) {
    if (strncasecmp(text, word, strlen(word)) == 0) return 1;
  }
  return 0;
}

static int check_device(const pattern_model *m, const State *state) {
  static const char *const gpus[] = {"mali", "adreno"};
  for (int i = 0; i < 2; ++i) {
    if (names(state->name, gpus[i]) && strcmp(m->device, gpus[i]) != 0) {
      return pattern_fail("the kit is for %s, the device here is %s; make one with --target"
                          " pattern/%s", m->device, state->name, gpus[i]);
    }
  }
  if (!m->needs_half) return 0;
  size_t size = 0;
  cl.clGetDeviceInfo(state->device, CL_DEVICE_EXTENSIONS, 0, NULL, &size);
  char *extensions = calloc(size + 1, 1);
  if (extensions == NULL) return pattern_fail("out of memory");
  cl.clGetDeviceInfo(state->device, CL_DEVICE_EXTENSIONS, size, extensions, NULL);
  int has_half = strstr(extensions, "cl_khr_fp16") != NULL;
  free(extensions);
  return has_half ? 0
                  : pattern_fail("the kit computes in float16, which %s lacks; make one of the"
                                 " float32 network", state->name);
}

static Handle buffer(State *state, size_t bytes, const void *data) {
  int32_t code;
  uint64_t flags = READ_WRITE | (data != NULL ? COPY : 0);
  union { const void *from; void *to; } bytes_of = {data};
  Handle result = cl.clCreateBuffer(state->context, flags, bytes ? bytes : 1, bytes_of.to, &code);
  char what[64];
  snprintf(what, sizeof what, "a buffer of %zu bytes", bytes);
  if (!is_ok(state, code, what)) return NULL;
  state->held += bytes;
  return result;
}

static int place_tensors(pattern_model *m, State *state) {
  state->storages = calloc((size_t)m->storage_count + 1, sizeof(Handle));
  state->inputs = calloc((size_t)m->input_count + 1, sizeof(Handle));
  if (state->storages == NULL || state->inputs == NULL) return pattern_fail("out of memory");
  for (int i = 0; i < m->storage_count; ++i) {
    if ((state->storages[i] = buffer(state, m->storages[i], NULL)) == NULL) return -1;
  }
  for (int i = 0; i < m->input_count; ++i) {
    if ((state->inputs[i] = buffer(state, pattern_input(m, i).bytes, NULL)) == NULL) return -1;
  }
  for (int i = 0; i < m->tensor_count; ++i) {
    Tensor *t = &m->tensors[i];
    t->memory = t->place == IN_STORAGE ? state->storages[t->base]
                : t->place == IS_INPUT ? state->inputs[t->base]
                                       : buffer(state, t->spec.bytes, m->weights + t->offset);
    if (t->memory == NULL) return -1;
  }
  return 0;
}

static char *read_text(const char *path) {
  FILE *file = fopen(path, "rb");
  char *text = NULL;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
    long size = ftell(file);
    rewind(file);
    text = size >= 0 ? calloc((size_t)size + 1, 1) : NULL;
    if (text != NULL && fread(text, 1, (size_t)size, file) != (size_t)size) {
      free(text);
      text = NULL;
    }
  }
  if (file != NULL) fclose(file);
  if (text == NULL) pattern_fail("cannot read %s; copy the whole folder", path);
  return text;
}

/* Whether the textures of all steps of a program can be images. */
static int has_images(const pattern_model *m, const State *state, int program) {
  int found = 0;
  for (int i = 0; i < m->step_count; ++i) {
    const Step *step = &m->steps[i];
    for (int j = 0; step->program == program && j < step->count; ++j) {
      if (!(step->textures >> j & 1)) continue;
      size_t texels = m->tensors[step->arguments[j]].spec.bytes / TEXEL_BYTES;
      if (texels == 0 || texels > state->image_texels) return 0;
      found = 1;
    }
  }
  return found;
}

/* An image of a tensor's memory; it is closed with the model. */
static Handle image_of(State *state, const Tensor *tensor) {
  ImageFormat format = {CL_RGBA, CL_UNSIGNED_INT32};
  ImageDesc desc = {.type = CL_MEM_OBJECT_IMAGE1D_BUFFER,
                    .width = tensor->spec.bytes / TEXEL_BYTES,
                    .buffer = tensor->memory};
  int32_t code;
  Handle *images = realloc(state->images, (size_t)(state->image_count + 1) * sizeof *images);
  if (images == NULL) return pattern_fail("out of memory"), NULL;
  state->images = images;
  Handle image = cl.clCreateImage(state->context, READ_ONLY, &format, &desc, NULL, &code);
  if (!is_ok(state, code, "an image of a buffer")) return NULL;
  return state->images[state->image_count++] = image;
}

static Handle build(pattern_model *m, State *state, int number) {
  const char *name = m->programs[number];
  const char *options = has_images(m, state, number) ? "-DTVM_PATTERN_IMAGES" : "";
  char path[MAX_PATH_BYTES + MAX_NAME], log[4096] = "";
  int32_t code;
  pattern_read_path(m, name, path, sizeof path);
  char *text = read_text(path);
  if (text == NULL) return NULL;
  const char *source = text;
  Handle program = cl.clCreateProgramWithSource(state->context, 1, &source, NULL, &code);
  free(text);
  if (!is_ok(state, code, name)) return NULL;
  if (cl.clBuildProgram(program, 1, &state->device, options, NULL, NULL) != 0) {
    cl.clGetProgramBuildInfo(program, state->device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log,
                             NULL);
    pattern_fail("%s does not build on %s: %s", name, state->name, log);
    cl.clReleaseProgram(program);
    return NULL;
  }
  return program;
}

static int make_kernel(pattern_model *m, State *state, Step *step) {
  int32_t code;
  size_t limit = 0, items = step->items[0] * step->items[1] * step->items[2];
  Handle kernel = cl.clCreateKernel(state->programs[step->program], step->name, &code);
  if (!is_ok(state, code, step->name)) return -1;
  step->code = kernel;
  cl.clGetKernelWorkGroupInfo(kernel, state->device, CL_KERNEL_WORK_GROUP_SIZE, sizeof limit,
                              &limit, NULL);
  if (limit != 0 && items > limit) {
    return pattern_fail("%s of %s wants work_groups of %zu work_items, %s allows %zu; make the kit"
                        " for a target with a smaller max_num_threads", step->name,
                        m->programs[step->program], items, state->name, limit);
  }
  int images = has_images(m, state, step->program);
  for (int i = 0; i < step->count; ++i) {
    const Tensor *tensor = &m->tensors[step->arguments[i]];
    int is_image = images && (step->textures >> i & 1);
    Handle memory = is_image ? image_of(state, tensor) : tensor->memory;
    if (memory == NULL) return -1;
    if (!is_ok(state, cl.clSetKernelArg(kernel, (uint32_t)i, sizeof memory, &memory), step->name)) {
      return -1;
    }
  }
  return 0;
}

static int make_kernels(pattern_model *m, State *state) {
  state->programs = calloc((size_t)m->program_count + 1, sizeof(Handle));
  if (state->programs == NULL) return pattern_fail("out of memory");
  for (int i = 0; i < m->program_count; ++i) {
    if ((state->programs[i] = build(m, state, i)) == NULL) return -1;
  }
  for (int i = 0; i < m->step_count; ++i) {
    if (m->steps[i].program < 0) return pattern_fail("the plan calls %s", m->steps[i].name);
    if (make_kernel(m, state, &m->steps[i]) != 0) return -1;
  }
  return 0;
}

int backend_open(pattern_model *m, const pattern_function *functions, int threads) {
  (void)functions, (void)threads;
  int32_t code;
  State *state = calloc(1, sizeof *state);
  if (state == NULL) return pattern_fail("out of memory");
  m->state = state;
  if (load() != 0 || choose_device(state) != 0 || check_device(m, state) != 0) return -1;
  state->context = cl.clCreateContext(NULL, 1, &state->device, NULL, NULL, &code);
  if (!is_ok(state, code, "a context")) return -1;
  state->queue = cl.clCreateCommandQueue(state->context, state->device, 0, &code);
  if (!is_ok(state, code, "a queue")) return -1;
  return place_tensors(m, state) != 0 || make_kernels(m, state) != 0 ? -1 : 0;
}

static void release(int32_t (*function)(Handle), Handle handle) {
  if (handle != NULL) function(handle);
}

void backend_close(pattern_model *m) {
  State *state = m->state;
  if (state == NULL) return;
  for (int i = 0; i < m->step_count; ++i) release(cl.clReleaseKernel, m->steps[i].code);
  for (int i = 0; state->programs != NULL && i < m->program_count; ++i) {
    release(cl.clReleaseProgram, state->programs[i]);
  }
  for (int i = 0; i < state->image_count; ++i) release(cl.clReleaseMemObject, state->images[i]);
  for (int i = 0; i < m->tensor_count; ++i) {
    if (m->tensors[i].place == IN_WEIGHTS) release(cl.clReleaseMemObject, m->tensors[i].memory);
  }
  for (int i = 0; state->storages != NULL && i < m->storage_count; ++i) {
    release(cl.clReleaseMemObject, state->storages[i]);
  }
  for (int i = 0; state->inputs != NULL && i < m->input_count; ++i) {
    release(cl.clReleaseMemObject, state->inputs[i]);
  }
  release(cl.clReleaseCommandQueue, state->queue);
  release(cl.clReleaseContext, state->context);
  free(state->storages);
  free(state->inputs);
  free(state->programs);
  free(state->images);
  free(state);
  m->state = NULL;
}

int backend_write(pattern_model *m, Tensor *tensor, const void *data) {
  State *state = m->state;
  return is_ok(state, cl.clEnqueueWriteBuffer(state->queue, tensor->memory, CL_TRUE_, 0,
                                       tensor->spec.bytes, data, 0, NULL, NULL), "an input")
             ? 0
             : -1;
}

int backend_read(pattern_model *m, Tensor *tensor, void *data) {
  State *state = m->state;
  return is_ok(state, cl.clEnqueueReadBuffer(state->queue, tensor->memory, CL_TRUE_, 0,
                                      tensor->spec.bytes, data, 0, NULL, NULL), "an output")
             ? 0
             : -1;
}

int backend_run(pattern_model *m) {
  State *state = m->state;
  for (int i = 0; i < m->step_count; ++i) {
    const Step *step = &m->steps[i];
    size_t size[3];
    for (int axis = 0; axis < 3; ++axis) size[axis] = step->groups[axis] * step->items[axis];
    int32_t code = cl.clEnqueueNDRangeKernel(state->queue, step->code, 3, NULL, size, step->items,
                                             0, NULL, NULL);
    if (!is_ok(state, code, step->name)) return -1;
  }
  return is_ok(state, cl.clFinish(state->queue), "a run") ? 0 : -1;
}

static void write_text(FILE *file, const char *key, const char *text) {
  fprintf(file, "\"%s\": \"", key);
  for (; *text != 0; ++text) {
    if ((unsigned char)*text >= 0x20 && *text != '"' && *text != '\\') fputc(*text, file);
  }
  fputs("\", ", file);
}

void backend_describe(const pattern_model *m, FILE *file) {
  const State *state = m->state;
  fputc('{', file);
  write_text(file, "name", state->name);
  write_text(file, "vendor", state->vendor);
  write_text(file, "driver", state->driver);
  fprintf(file, "\"compute_units\": %u, \"images\": %d}", state->units, state->image_count);
}
