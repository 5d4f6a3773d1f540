/* An OpenCL driver that computes nothing and has one fault, named by FAKE_FAULT, after FAKE_AFTER
 * calls of that kind that went well; FAKE_CODE is another error than the usual. Its device's name is
 * FAKE_NAME. Built with -DLACKING it has no clFinish. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
enum { GPU = 1 << 2, MEMORY = 1 << 20 };
static int one;

static int faulty(const char *what) {
  const char *fault = getenv("FAKE_FAULT");
  return fault != NULL && strcmp(fault, what) == 0;
}

/* The error of a call, or 0. */
static int32_t error_of(const char *what, int32_t code) {
  static int calls;
  if (!faulty(what)) return 0;
  const char *after = getenv("FAKE_AFTER"), *other = getenv("FAKE_CODE");
  if (after != NULL && calls++ < atoi(after)) return 0;
  calls = 0;
  return other != NULL ? atoi(other) : code;
}

static Handle made(const char *what, int32_t code, int32_t *result) {
  *result = error_of(what, code);
  return *result != 0 ? NULL : (Handle)&one;
}

static int32_t number(uint64_t number, size_t size, void *value) {
  if (value != NULL) memcpy(value, &number, size < sizeof number ? size : sizeof number);
  return 0;
}

static int32_t told(const char *text, size_t size, void *value, size_t *needed) {
  if (needed != NULL) *needed = strlen(text) + 1;
  if (value != NULL) strncpy(value, text, size);
  return 0;
}

int32_t clGetPlatformIDs(uint32_t n, Handle *ids, uint32_t *count) {
  if (n != 0) ids[0] = &one;
  if (count != NULL) *count = 1;
  return 0;
}
int32_t clGetDeviceIDs(Handle p, uint64_t kind, uint32_t n, Handle *ids, uint32_t *count) {
  (void)p;
  if (n != 0) ids[0] = &one;
  if (count != NULL) *count = 1;
  return faulty("devices") || !(kind & GPU) ? -1 : 0;
}
int32_t clGetDeviceInfo(Handle d, uint32_t what, size_t size, void *value, size_t *needed) {
  (void)d;
  switch (what) {
    case 0x1002: return number(2, size, value);          /* compute units */
    case 0x1010: return number(MEMORY / 4, size, value); /* largest buffer */
    case 0x101F: return number(MEMORY, size, value);
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
  return error_of("argument", -50);
}
int32_t clEnqueueNDRangeKernel(Handle a, Handle b, uint32_t c, const size_t *d, const size_t *e,
                               const size_t *f, uint32_t g, void *h, void *i) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i;
  return error_of("launch", -54);
}
int32_t clEnqueueReadBuffer(Handle a, Handle b, uint32_t c, size_t d, size_t bytes, void *to,
                            uint32_t e, void *f, void *g) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g;
  memset(to, 0, bytes);
  return error_of("read", -5);
}
int32_t clEnqueueWriteBuffer(Handle a, Handle b, uint32_t c, size_t d, size_t e, const void *f,
                             uint32_t g, void *h, void *i) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i;
  return error_of("write", -5);
}
#ifndef LACKING
int32_t clFinish(Handle a) {
  (void)a;
  return error_of("run", -36);
}
#endif
int32_t clReleaseMemObject(Handle a) { return a == NULL; }
int32_t clReleaseKernel(Handle a) { return a == NULL; }
int32_t clReleaseProgram(Handle a) { return a == NULL; }
int32_t clReleaseCommandQueue(Handle a) { return a == NULL; }
int32_t clReleaseContext(Handle a) { return a == NULL; }
/* What the runtime wants beside what kits do. */
int32_t clGetPlatformInfo(Handle p, uint32_t what, size_t size, void *value, size_t *needed) {
  (void)p, (void)what;
  return told("fake", size, value, needed);
}
Handle clCreateImage(Handle a, uint64_t b, const void *c, const void *d, void *e, int32_t *code) {
  (void)a, (void)b, (void)c, (void)d, (void)e;
  return made("image", -10, code);
}
int32_t clEnqueueCopyBuffer(Handle a, Handle b, Handle c, size_t d, size_t e, size_t f, uint32_t g,
                            const void *h, void *i) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i;
  return error_of("copy", -5);
}
int32_t clEnqueueMarkerWithWaitList(Handle a, uint32_t b, const void *c, Handle *event) {
  (void)a, (void)b, (void)c;
  *event = &one;
  return 0;
}
int32_t clGetEventProfilingInfo(Handle a, uint32_t b, size_t size, void *value, size_t *c) {
  (void)a, (void)b, (void)c;
  return number(0, size, value);
}
int32_t clReleaseEvent(Handle a) { return a == NULL; }
int32_t clFlush(Handle a) { return a == NULL; }
