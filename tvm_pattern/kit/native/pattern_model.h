/* A compiled network in an app: no Python, no TVM, one C compiler.
 *
 *   pattern_model *model = pattern_open("folder/of/the/plan", pattern_functions_sparse, 4);
 *   if (model == NULL) fail(pattern_error());
 *   pattern_set_input(model, 0, pixels, sizeof pixels);
 *   if (pattern_run(model) != 0) fail(pattern_error());
 *   pattern_get_output(model, 0, scores, sizeof scores);
 *   pattern_close(model);
 *
 * Link model.c, and cpu.c or opencl.c: what the network was compiled for. For a CPU the machine code
 * is an object file beside the plan, whose table of functions is named after it
 * (pattern_functions_NAME); a GPU's kernels are text beside the plan, and the table is NULL.
 * A model is to be used by one thread at a time. One model runs at a time per process on a CPU.
 */
#ifndef PATTERN_MODEL_H_
#define PATTERN_MODEL_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PATTERN_MAX_DIMS = 8 };

typedef struct pattern_model pattern_model;

/* A compiled function under the name that the plan calls it by; a table ends with NULL. */
typedef struct {
  const char *name;
  int (*call)(void *, const void *, int32_t, void *);
} pattern_function;

/* Codes of DLPack: 0 signed, 1 unsigned, 2 float, 6 bool. */
typedef struct {
  int32_t code, bits, ndim;
  int64_t shape[PATTERN_MAX_DIMS];
  size_t bytes;
} pattern_spec;

/* NULL if it cannot be had: see pattern_error. `threads` counts the caller; a GPU ignores it. */
pattern_model *pattern_open(const char *folder, const pattern_function *functions, int threads);
void pattern_close(pattern_model *model);

int pattern_input_count(const pattern_model *model);
int pattern_output_count(const pattern_model *model);
/* All zero for an index that there is not, with a message in pattern_error. */
pattern_spec pattern_input(const pattern_model *model, int index);
pattern_spec pattern_output(const pattern_model *model, int index);

/* 0, or -1 with a message in pattern_error. `bytes` has to be what the spec says. */
int pattern_set_input(pattern_model *model, int index, const void *data, size_t bytes);
int pattern_run(pattern_model *model);
int pattern_get_output(pattern_model *model, int index, void *data, size_t bytes);

/* What went wrong last, in this process. */
const char *pattern_error(void);

#ifdef __cplusplus
}
#endif
#endif
