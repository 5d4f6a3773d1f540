/* Runs a plan, a list of calls of compiled TVM functions, without Python and without TVM.
 *
 *   run_plan LIBRARY.so PLAN
 *
 * A plan has one statement per line; tensors are numbered from 0:
 *   tensor ID CODE BITS NDIM DIM... FILE   a tensor of a DLPack type, read from FILE ("-": zeros)
 *   call SYMBOL COUNT ID...                call a function with these tensors
 *   save ID FILE                           write a tensor's bytes
 *
 * The library's calls of the runtime (threads, workspace, errors) end in this file, on one thread.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_TENSORS = 4096, MAX_DIMS = 8, MAX_ARGUMENTS = 64, TENSOR_ARGUMENT = 7 };

typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DataType;
typedef struct {
  void *data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union { int64_t integer; double number; void *pointer; } value;
} Argument;
typedef int (*Function)(void *, const Argument *, int32_t, Argument *);
typedef struct { void *sync; int32_t num_task; } ParallelEnv;
typedef int (*ParallelBody)(int, ParallelEnv *, void *);

static Tensor tensors[MAX_TENSORS];
static int64_t shapes[MAX_TENSORS][MAX_DIMS];

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
  fputc('\n', stderr);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  fprintf(stderr, "%s: %s\n", kind, message);
}

static void die(const char *what, const char *detail) {
  fprintf(stderr, "run_plan: %s: %s\n", what, detail);
  exit(2);
}

/* Memory between two pages that nobody may touch: it begins right after the first. */
static void *allocate(size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
  char *base = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(base + page, inside, PROT_READ | PROT_WRITE) != 0) {
    die("cannot allocate", "out of memory");
  }
  return base + page;
}

static int launch(ParallelBody body, void *data, int num_task) {
  ParallelEnv env = {NULL, 1};
  (void)num_task;
  return body(0, &env, data);
}

static void *take(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return allocate(bytes);
}

static int give(int type, int id, void *data) {
  (void)type, (void)id, (void)data;  /* the process ends soon */
  return 0;
}

static void set_hook(void *library, const char *name, void *target) {
  void **slot = dlsym(library, name);
  if (slot != NULL) *slot = target;
}

static size_t size_of(const Tensor *tensor) {
  size_t bytes = tensor->dtype.bits / 8;
  for (int32_t i = 0; i < tensor->ndim; ++i) bytes *= (size_t)tensor->shape[i];
  return bytes;
}

static int tensor_id(FILE *plan) {
  int id = -1;
  if (fscanf(plan, "%d", &id) != 1 || id < 0 || id >= MAX_TENSORS) die("plan", "bad tensor");
  return id;
}

static void read_tensor(FILE *plan) {
  int id = tensor_id(plan), code, bits, ndim;
  char path[4096];
  if (fscanf(plan, "%d %d %d", &code, &bits, &ndim) != 3 || ndim > MAX_DIMS) {
    die("plan", "bad type");
  }
  for (int i = 0; i < ndim; ++i) {
    long long dim;
    if (fscanf(plan, "%lld", &dim) != 1) die("plan", "bad shape");
    shapes[id][i] = dim;
  }
  if (fscanf(plan, "%4095s", path) != 1) die("plan", "no file");
  Tensor *t = &tensors[id];
  *t = (Tensor){NULL, {1, 0}, ndim, {(uint8_t)code, (uint8_t)bits, 1}, shapes[id], NULL, 0};
  size_t bytes = size_of(t);
  t->data = allocate(bytes);
  if (strcmp(path, "-") == 0) {
    memset(t->data, 0, bytes);
    return;
  }
  FILE *file = fopen(path, "rb");
  if (file == NULL || fread(t->data, 1, bytes, file) != bytes) die("cannot read", path);
  fclose(file);
}

static void call(FILE *plan, void *library) {
  char symbol[512];
  int count;
  if (fscanf(plan, "%511s %d", symbol, &count) != 2 || count > MAX_ARGUMENTS) {
    die("plan", "bad call");
  }
  Argument arguments[MAX_ARGUMENTS] = {{0}}, result = {0};
  for (int i = 0; i < count; ++i) {
    arguments[i].type_index = TENSOR_ARGUMENT;
    arguments[i].value.pointer = &tensors[tensor_id(plan)];
  }
  Function function = (Function)dlsym(library, symbol);
  if (function == NULL) die("no such function", symbol);
  if (function(NULL, arguments, count, &result) != 0) die("failed", symbol);
}

static void save(FILE *plan) {
  const Tensor *t = &tensors[tensor_id(plan)];
  char path[4096];
  if (fscanf(plan, "%4095s", path) != 1) die("plan", "no file");
  FILE *file = fopen(path, "wb");
  if (file == NULL || fwrite(t->data, 1, size_of(t), file) != size_of(t)) die("cannot write", path);
  if (fclose(file) != 0) die("cannot write", path);
}

int main(int argc, char **argv) {
  if (argc != 3) die("usage", "run_plan LIBRARY.so PLAN");
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) die("cannot load", dlerror());
  set_hook(library, "__TVMBackendParallelLaunch", (void *)launch);
  set_hook(library, "__TVMBackendAllocWorkspace", (void *)take);
  set_hook(library, "__TVMBackendFreeWorkspace", (void *)give);
  set_hook(library, "__TVMFFIErrorSetRaisedFromCStrParts",
           (void *)TVMFFIErrorSetRaisedFromCStrParts);
  FILE *plan = fopen(argv[2], "r");
  if (plan == NULL) die("cannot read", argv[2]);
  char word[16];
  while (fscanf(plan, "%15s", word) == 1) {
    if (strcmp(word, "tensor") == 0) read_tensor(plan);
    else if (strcmp(word, "call") == 0) call(plan, library);
    else if (strcmp(word, "save") == 0) save(plan);
    else die("unknown statement", word);
  }
  return 0;
}
