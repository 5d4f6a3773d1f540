/* What model.c and a backend (cpu.c or opencl.c) know of each other. */
#ifndef PATTERN_BACKEND_H_
#define PATTERN_BACKEND_H_

#include <stdio.h>

#include "pattern_model.h"

enum { MAX_ARGUMENTS = 64, MAX_NAME = 256, MAX_PATH_BYTES = 4096 };

typedef enum { IN_STORAGE, IN_WEIGHTS, IS_INPUT } Place;

/* Layout of DLTensor: what compiled functions take. */
typedef struct {
  void *data;
  struct { int32_t type, id; } device;
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct {
  pattern_spec spec;
  Place place;
  int base;       /* which storage, or which input */
  size_t offset;  /* bytes in the weights */
  void *memory;   /* the backend's: bytes, or a buffer of the GPU */
  DLTensor dl;
} Tensor;

typedef struct {
  char name[MAX_NAME];
  int program;
  size_t groups[3], items[3];
  int count, arguments[MAX_ARGUMENTS];
  uint64_t textures; /* a bit for each argument that can be read as an image */
  void *code; /* the backend's: a function, or a kernel */
} Step;

struct pattern_model {
  char folder[MAX_PATH_BYTES], device[32];
  int needs_half;
  size_t *storages, weights_bytes;
  Tensor *tensors;
  Step *steps;
  char (*programs)[MAX_NAME];
  int *inputs, *outputs;
  int storage_count, tensor_count, step_count, program_count, input_count, output_count;
  int capacity[5];
  unsigned char *weights;
  void *state; /* the backend's */
};

/* Keeps a message for pattern_error; returns -1. */
int pattern_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void pattern_read_path(const pattern_model *model, const char *name, char *path, size_t size);

int backend_open(pattern_model *model, const pattern_function *functions, int threads);
void backend_close(pattern_model *model);
int backend_write(pattern_model *model, Tensor *tensor, const void *data);
int backend_read(pattern_model *model, Tensor *tensor, void *data);
int backend_run(pattern_model *model);
/* The GPU as a JSON object, or null. */
void backend_describe(const pattern_model *model, FILE *file);

#endif
