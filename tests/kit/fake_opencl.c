/* An OpenCL driver that computes nothing and has one fault, named by FAKE_FAULT; its device's name is
 * FAKE_NAME. Built with -DLACKING it has no clFinish. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
static int one;

static int faulty(const char *what) {
  const char *fault = getenv("FAKE_FAULT");
  return fault != NULL && strcmp(fault, what) == 0;
}

static Handle made(const char *what, int32_t code, int32_t *result) {
  *result = faulty(what) ? code : 0;
  return &one;
}

static int32_t told(const char *text, size_t size, void *value, size_t *needed) {
  if (needed != NULL) *needed = strlen(text) + 1;
  if (value != NULL) strncpy(value, text, size);
  return 0;
}

int32_t clGetPlatformIDs(uint32_t n, Handle *ids, uint32_t *count) {
  (void)n;
  ids[0] = &one;
  *count = 1;
  return 0;
}
int32_t clGetDeviceIDs(Handle p, uint64_t kind, uint32_t n, Handle *ids, uint32_t *count) {
  (void)p, (void)kind, (void)n;
  ids[0] = &one;
  *count = 1;
  return faulty("devices") ? -1 : 0;
}
int32_t clGetDeviceInfo(Handle d, uint32_t what, size_t size, void *value, size_t *needed) {
  (void)d;
  if (what == 0x1002) {
    *(uint32_t *)value = 2;
    return 0;
  }
  const char *name = getenv("FAKE_NAME");
  return told(what == 0x102B && name != NULL ? name : "fake", size, value, needed);
}
Handle clCreateContext(void *a, uint32_t b, Handle *c, void *d, void *e, int32_t *code) {
  (void)a, (void)b, (void)c, (void)d, (void)e;
  return made("context", -6, code);
}
Handle clCreateCommandQueue(Handle a, Handle b, uint64_t c, int32_t *code) {
  (void)a, (void)b, (void)c;
  return made("queue", -35, code);
}
Handle clCreateBuffer(Handle a, uint64_t b, size_t c, void *d, int32_t *code) {
  (void)a, (void)b, (void)c, (void)d;
  return made("buffer", -4, code);
}
Handle clCreateProgramWithSource(Handle a, uint32_t b, const char **c, size_t *d, int32_t *code) {
  (void)a, (void)b, (void)c, (void)d;
  return made("program", -30, code);
}
int32_t clBuildProgram(Handle a, uint32_t b, Handle *c, const char *d, void *e, void *f) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
  return faulty("build") ? -11 : 0;
}
int32_t clGetProgramBuildInfo(Handle a, Handle b, uint32_t c, size_t size, void *value,
                              size_t *needed) {
  (void)a, (void)b, (void)c;
  return told("line 3: no such word", size, value, needed);
}
Handle clCreateKernel(Handle a, const char *b, int32_t *code) {
  (void)a, (void)b;
  return made("kernel", -46, code);
}
int32_t clGetKernelWorkGroupInfo(Handle a, Handle b, uint32_t c, size_t d, void *value, size_t *e) {
  (void)a, (void)b, (void)c, (void)d, (void)e;
  *(size_t *)value = faulty("groups") ? 2 : 1024;
  return 0;
}
int32_t clSetKernelArg(Handle a, uint32_t b, size_t c, const void *d) {
  (void)a, (void)b, (void)c, (void)d;
  return faulty("argument") ? -50 : 0;
}
int32_t clEnqueueNDRangeKernel(Handle a, Handle b, uint32_t c, const size_t *d, const size_t *e,
                               const size_t *f, uint32_t g, void *h, void *i) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i;
  return faulty("launch") ? -54 : 0;
}
int32_t clEnqueueReadBuffer(Handle a, Handle b, uint32_t c, size_t d, size_t bytes, void *to,
                            uint32_t e, void *f, void *g) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g;
  memset(to, 0, bytes);
  return faulty("read") ? -5 : 0;
}
int32_t clEnqueueWriteBuffer(Handle a, Handle b, uint32_t c, size_t d, size_t e, const void *f,
                             uint32_t g, void *h, void *i) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i;
  return faulty("write") ? -5 : 0;
}
#ifndef LACKING
int32_t clFinish(Handle a) {
  (void)a;
  return faulty("run") ? -36 : 0;
}
#endif
int32_t clReleaseMemObject(Handle a) { return a == NULL; }
int32_t clReleaseKernel(Handle a) { return a == NULL; }
int32_t clReleaseProgram(Handle a) { return a == NULL; }
int32_t clReleaseCommandQueue(Handle a) { return a == NULL; }
int32_t clReleaseContext(Handle a) { return a == NULL; }
