/* Reads a plan, the list of a network's calls with their tensors, and runs it. */
#include "backend.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT = 1 << 20, FORMAT = 1 };
/* Bytes of a tensor. */
#define LARGEST ((long long)(sizeof(size_t) > 4 ? (long long)1 << 40 : (long long)1 << 30))

static char last_error[8192];

const char *pattern_error(void) { return last_error; }

int pattern_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return -1;
}

void pattern_read_path(const pattern_model *model, const char *name, char *path, size_t size) {
  snprintf(path, size, "%s/%s", model->folder, name);
}

/* Room for one more of `size` bytes; the new one is zero. NULL without memory. */
static void *grow(void **array, int *count, int *capacity, size_t size) {
  if (*count >= *capacity) {
    int wanted = *capacity ? 2 * *capacity : 16;
    void *larger = wanted > LIMIT ? NULL : realloc(*array, (size_t)wanted * size);
    if (larger == NULL) {
      pattern_fail("out of memory while reading the plan");
      return NULL;
    }
    *array = larger;
    *capacity = wanted;
  }
  void *item = (char *)*array + (size_t)(*count)++ * size;
  memset(item, 0, size);
  return item;
}

#define ADD(model, field, number, capacity_index)                                          \
  grow((void **)&(model)->field, &(model)->number, &(model)->capacity[capacity_index],     \
       sizeof *(model)->field)

static int number(FILE *file, long long low, long long high, long long *value) {
  if (fscanf(file, "%lld", value) != 1 || *value < low || *value > high) {
    return pattern_fail("a number is missing or out of range");
  }
  return 0;
}

static int integer(FILE *file, int low, int high, int *value) {
  long long wide;
  if (number(file, low, high, &wide) != 0) return -1;
  *value = (int)wide;
  return 0;
}

static int size_of(FILE *file, size_t *value) {
  long long wide;
  if (number(file, 0, LARGEST, &wide) != 0) return -1;
  *value = (size_t)wide;
  return 0;
}

static int name_of(FILE *file, char *name) {
  return fscanf(file, "%255s", name) == 1 ? 0 : pattern_fail("a name is missing");
}

static int read_storage(pattern_model *m, FILE *file) {
  size_t *bytes = ADD(m, storages, storage_count, 0);
  return bytes == NULL ? -1 : size_of(file, bytes);
}

static int read_spec(FILE *file, pattern_spec *spec) {
  if (integer(file, 0, 6, &spec->code) || integer(file, 1, 64, &spec->bits) ||
      integer(file, 0, PATTERN_MAX_DIMS, &spec->ndim)) {
    return -1;
  }
  long long bytes = (spec->bits + 7) / 8;
  for (int i = 0; i < spec->ndim; ++i) {
    long long dim;
    if (number(file, 0, LARGEST, &dim) != 0) return -1;
    spec->shape[i] = dim;
    if (dim != 0 && bytes > LARGEST / dim) return pattern_fail("a tensor is too large");
    bytes *= dim;
  }
  spec->bytes = (size_t)bytes;
  return 0;
}

/* A tensor lies in a storage, in the weights, or is an input; views share their place. */
static int read_tensor(pattern_model *m, FILE *file) {
  char place[MAX_NAME];
  Tensor *t = ADD(m, tensors, tensor_count, 1);
  if (t == NULL || name_of(file, place) != 0) return -1;
  if (strcmp(place, "storage") == 0) {
    t->place = IN_STORAGE;
    if (integer(file, 0, m->storage_count - 1, &t->base)) return -1;
  } else if (strcmp(place, "weights") == 0) {
    t->place = IN_WEIGHTS;
    if (size_of(file, &t->offset)) return -1;
  } else if (strcmp(place, "input") == 0) {
    t->place = IS_INPUT;
    if (integer(file, 0, m->input_count, &t->base)) return -1;
  } else {
    return pattern_fail("no tensor lies in %s", place);
  }
  if (read_spec(file, &t->spec) != 0) return -1;
  if (t->place == IN_WEIGHTS &&
      (t->offset > m->weights_bytes || t->spec.bytes > m->weights_bytes - t->offset)) {
    return pattern_fail("a tensor lies beyond the end of the weights");
  }
  if (t->place == IN_STORAGE && t->spec.bytes > m->storages[t->base]) {
    return pattern_fail("a tensor is larger than its storage");
  }
  if (t->place == IS_INPUT && t->base == m->input_count) {
    int *input = ADD(m, inputs, input_count, 2);
    if (input == NULL) return -1;
    *input = m->tensor_count - 1;
  } else if (t->place == IS_INPUT && t->spec.bytes != m->tensors[m->inputs[t->base]].spec.bytes) {
    return pattern_fail("a view of an input has another size");
  }
  return 0;
}

static int read_arguments(pattern_model *m, FILE *file, Step *step) {
  if (integer(file, 0, MAX_ARGUMENTS, &step->count) != 0) return -1;
  for (int i = 0; i < step->count; ++i) {
    if (integer(file, 0, m->tensor_count - 1, &step->arguments[i]) != 0) return -1;
  }
  return 0;
}

static int read_step(pattern_model *m, FILE *file, int is_kernel) {
  Step *step = ADD(m, steps, step_count, 3);
  if (step == NULL || name_of(file, step->name) != 0) return -1;
  step->program = -1;
  if (is_kernel) {
    if (integer(file, 0, m->program_count - 1, &step->program)) return -1;
    for (int i = 0; i < 3; ++i) {
      if (size_of(file, &step->groups[i])) return -1;
    }
    for (int i = 0; i < 3; ++i) {
      if (size_of(file, &step->items[i])) return -1;
    }
  }
  return read_arguments(m, file, step);
}

/* An argument of the kernel that was read last. */
static int read_texture(pattern_model *m, FILE *file) {
  Step *step = m->step_count > 0 ? &m->steps[m->step_count - 1] : NULL;
  int argument;
  if (step == NULL) return pattern_fail("a texture comes before any kernel");
  if (integer(file, 0, step->count - 1, &argument) != 0) return -1;
  step->textures |= (uint64_t)1 << argument;
  return 0;
}

static int read_output(pattern_model *m, FILE *file) {
  static const char message[] = "out of memory while reading the plan";
  int *outputs = realloc(m->outputs, (size_t)(m->output_count + 1) * sizeof *outputs);
  if (outputs == NULL) return pattern_fail(message);
  m->outputs = outputs;
  return integer(file, 0, m->tensor_count - 1, &outputs[m->output_count++]);
}

static int read_program(pattern_model *m, FILE *file) {
  char(*name)[MAX_NAME] = ADD(m, programs, program_count, 4);
  return name == NULL ? -1 : name_of(file, *name);
}

static int read_statement(pattern_model *m, FILE *file, const char *word) {
  char name[MAX_NAME];
  if (strcmp(word, "storage") == 0) return read_storage(m, file);
  if (strcmp(word, "tensor") == 0) return read_tensor(m, file);
  if (strcmp(word, "call") == 0) return read_step(m, file, 0);
  if (strcmp(word, "kernel") == 0) return read_step(m, file, 1);
  if (strcmp(word, "texture") == 0) return read_texture(m, file);
  if (strcmp(word, "program") == 0) return read_program(m, file);
  if (strcmp(word, "output") == 0) return read_output(m, file);
  if (strcmp(word, "weights") == 0) {
    if (m->tensor_count > 0) return pattern_fail("the weights come after tensors");
    return size_of(file, &m->weights_bytes);
  }
  if (strcmp(word, "half") == 0) return integer(file, 0, 1, &m->needs_half);
  if (strcmp(word, "device") == 0) {
    if (name_of(file, name) != 0) return -1;
    snprintf(m->device, sizeof m->device, "%.31s", name);
    return 0;
  }
  return pattern_fail("the word %s is unknown", word);
}

static int read_plan(pattern_model *m) {
  char path[MAX_PATH_BYTES + 16], word[MAX_NAME], reason[sizeof last_error];
  pattern_read_path(m, "plan.txt", path, sizeof path);
  FILE *file = fopen(path, "r");
  if (file == NULL) return pattern_fail("cannot read %s; copy the whole folder", path);
  int format = 0, result = 0, is_whole = 0;
  if (fscanf(file, "plan %d", &format) != 1 || format != FORMAT) {
    result = pattern_fail("it begins with another format, expected plan %d", FORMAT);
  }
  while (result == 0 && !is_whole && fscanf(file, "%255s", word) == 1) {
    is_whole = strcmp(word, "end") == 0;
    if (!is_whole) result = read_statement(m, file, word);
  }
  fclose(file);
  if (result == 0 && (!is_whole || m->output_count == 0)) result = pattern_fail("it is cut off");
  if (result != 0) {
    memcpy(reason, last_error, sizeof reason);
    pattern_fail("%s is damaged: %s; make the kit again", path, reason);
  }
  return result;
}

static int read_weights(pattern_model *m) {
  char path[MAX_PATH_BYTES + 16];
  pattern_read_path(m, "weights.bin", path, sizeof path);
  if (posix_memalign((void **)&m->weights, 64, m->weights_bytes + 64) != 0) {
    return pattern_fail("out of memory: the weights take %zu bytes", m->weights_bytes);
  }
  FILE *file = fopen(path, "rb");
  if (file == NULL) return pattern_fail("cannot read %s; copy the whole folder", path);
  size_t got = fread(m->weights, 1, m->weights_bytes, file);
  int more = fgetc(file);
  fclose(file);
  if (got != m->weights_bytes || more != EOF) {
    return pattern_fail("%s has another size than %zu bytes; copy it again", path,
                        m->weights_bytes);
  }
  return 0;
}

static void describe_tensors(pattern_model *m) {
  for (int i = 0; i < m->tensor_count; ++i) {
    Tensor *t = &m->tensors[i];
    t->dl.device.type = 1;
    t->dl.ndim = t->spec.ndim;
    t->dl.dtype.code = (uint8_t)t->spec.code;
    t->dl.dtype.bits = (uint8_t)t->spec.bits;
    t->dl.dtype.lanes = 1;
    t->dl.shape = t->spec.shape;
  }
}

pattern_model *pattern_open(const char *folder, const pattern_function *functions, int threads) {
  pattern_model *m = calloc(1, sizeof *m);
  if (m == NULL || strlen(folder) >= sizeof m->folder) {
    pattern_fail(m == NULL ? "out of memory" : "the folder's name is too long");
    free(m);
    return NULL;
  }
  strcpy(m->folder, folder);
  if (threads < 1 || threads > 1024) {
    pattern_fail("got %d threads, expected 1 to 1024", threads);
  } else if (read_plan(m) == 0 && read_weights(m) == 0) {
    describe_tensors(m);
    if (backend_open(m, functions, threads) == 0) return m;
  }
  pattern_close(m);
  return NULL;
}

void pattern_close(pattern_model *m) {
  if (m == NULL) return;
  backend_close(m);
  free(m->weights);
  free(m->storages);
  free(m->tensors);
  free(m->steps);
  free(m->programs);
  free(m->inputs);
  free(m->outputs);
  free(m);
}

int pattern_input_count(const pattern_model *m) { return m->input_count; }
int pattern_output_count(const pattern_model *m) { return m->output_count; }

static int check_index(const char *what, int index, int count) {
  if (index >= 0 && index < count) return 0;
  return pattern_fail("no %s %d, there are %d", what, index, count);
}

pattern_spec pattern_input(const pattern_model *m, int i) {
  static const pattern_spec none;
  return check_index("input", i, m->input_count) ? none : m->tensors[m->inputs[i]].spec;
}

pattern_spec pattern_output(const pattern_model *m, int i) {
  static const pattern_spec none;
  return check_index("output", i, m->output_count) ? none : m->tensors[m->outputs[i]].spec;
}

static int check_place(const char *what, int index, int count, size_t got, size_t bytes) {
  if (check_index(what, index, count) != 0) return -1;
  if (got != bytes) return pattern_fail("%s %d has %zu bytes, got %zu", what, index, bytes, got);
  return 0;
}

int pattern_set_input(pattern_model *m, int index, const void *data, size_t bytes) {
  size_t wanted = pattern_input(m, index).bytes;
  if (check_place("input", index, m->input_count, bytes, wanted) != 0) return -1;
  return backend_write(m, &m->tensors[m->inputs[index]], data);
}

int pattern_run(pattern_model *m) { return backend_run(m); }

int pattern_get_output(pattern_model *m, int index, void *data, size_t bytes) {
  size_t wanted = pattern_output(m, index).bytes;
  if (check_place("output", index, m->output_count, bytes, wanted) != 0) return -1;
  return backend_read(m, &m->tensors[m->outputs[index]], data);
}
