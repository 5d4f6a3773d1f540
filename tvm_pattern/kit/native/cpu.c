/* The CPU: threads, memory, and what compiled functions call back. */
#include "backend.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Turns of waiting before a thread sleeps: between two layers it should not. */
enum { SPINS = 30000, TENSOR_ARGUMENT = 7, ALIGNMENT = 64 };

typedef struct { void *sync; int32_t num_task; } ParallelEnv;
typedef int (*ParallelBody)(int, ParallelEnv *, void *);
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union { int64_t integer; void *pointer; } value;
} Argument;

typedef struct {
  int threads;
  pthread_t *workers;
  int started;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  atomic_uint turn;
  atomic_int pending, failed, is_over;
  ParallelBody body;
  void *data;
} Pool;

typedef struct { Pool *pool; int task; } Seat;

typedef struct {
  Pool pool;
  Seat *seats;
  void **storages, **inputs;
} State;

/* Whose threads compiled code gets: those of the model that runs. */
static Pool *current;

static int do_task(Pool *pool, int task) {
  ParallelEnv env = {NULL, pool->threads};
  return pool->body(task, &env, pool->data);
}

static unsigned next_turn(Pool *pool, unsigned last) {
  for (int i = 0; i < SPINS; ++i) {
    if (atomic_load_explicit(&pool->turn, memory_order_acquire) != last) break;
    if (i % 64 == 63) sched_yield();
  }
  if (atomic_load(&pool->turn) == last) {
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->turn) == last) pthread_cond_wait(&pool->wake, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
  }
  return atomic_load_explicit(&pool->turn, memory_order_acquire);
}

static void *work(void *argument) {
  Seat *seat = argument;
  Pool *pool = seat->pool;
  for (unsigned turn = 0;;) {
    turn = next_turn(pool, turn);
    if (atomic_load(&pool->is_over)) return NULL;
    if (do_task(pool, seat->task) != 0) atomic_store(&pool->failed, 1);
    atomic_fetch_sub_explicit(&pool->pending, 1, memory_order_release);
  }
}

static void announce(Pool *pool) {
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->turn, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static int launch(ParallelBody body, void *data, int num_task) {
  Pool *pool = current;
  (void)num_task; /* 0: as many as there are threads; our schedules ask for nothing else */
  pool->body = body;
  pool->data = data;
  if (pool->threads == 1) return do_task(pool, 0);
  atomic_store(&pool->failed, 0);
  atomic_store(&pool->pending, pool->threads - 1);
  announce(pool);
  int result = do_task(pool, 0);
  for (int i = 1; atomic_load_explicit(&pool->pending, memory_order_acquire) > 0; ++i) {
    if (i % 64 == 0) sched_yield();
  }
  return result != 0 || atomic_load(&pool->failed) ? -1 : 0;
}

static void *take(int type, int id, uint64_t bytes, int code, int bits) {
  void *memory = NULL;
  (void)type, (void)id, (void)code, (void)bits;
  return posix_memalign(&memory, ALIGNMENT, bytes + ALIGNMENT) == 0 ? memory : NULL;
}

static int give(int type, int id, void *memory) {
  (void)type, (void)id;
  free(memory);
  return 0;
}

/* Compiled code reaches the runtime by these; its own definitions are weak. */
void *__TVMBackendParallelLaunch = (void *)launch;
void *__TVMBackendAllocWorkspace = (void *)take;
void *__TVMBackendFreeWorkspace = (void *)give;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  char text[1024] = "";
  for (int32_t i = 0; i < count; ++i) {
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s", parts[i] ? parts[i] : "");
  }
  pattern_fail("%s: %s", kind, text);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

static int start_threads(State *state, int threads) {
  Pool *pool = &state->pool;
  pool->threads = threads;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  state->seats = calloc((size_t)threads, sizeof *state->seats);
  if (pool->workers == NULL || state->seats == NULL) return pattern_fail("out of memory");
  for (int i = 1; i < threads; ++i) {
    state->seats[i] = (Seat){pool, i};
    if (pthread_create(&pool->workers[i], NULL, work, &state->seats[i]) != 0) {
      return pattern_fail("cannot start %d threads", threads);
    }
    pool->started = i;
  }
  return 0;
}

static void *memory_of(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, bytes + ALIGNMENT) != 0) {
    pattern_fail("out of memory: %zu bytes wanted", bytes);
    return NULL;
  }
  memset(memory, 0, bytes + ALIGNMENT);
  return memory;
}

static int place_tensors(pattern_model *m, State *state) {
  state->storages = calloc((size_t)m->storage_count + 1, sizeof *state->storages);
  state->inputs = calloc((size_t)m->input_count + 1, sizeof *state->inputs);
  if (state->storages == NULL || state->inputs == NULL) return pattern_fail("out of memory");
  for (int i = 0; i < m->storage_count; ++i) {
    if ((state->storages[i] = memory_of(m->storages[i])) == NULL) return -1;
  }
  for (int i = 0; i < m->input_count; ++i) {
    if ((state->inputs[i] = memory_of(pattern_input(m, i).bytes)) == NULL) return -1;
  }
  for (int i = 0; i < m->tensor_count; ++i) {
    Tensor *t = &m->tensors[i];
    t->memory = t->place == IN_WEIGHTS   ? m->weights + t->offset
                : t->place == IN_STORAGE ? state->storages[t->base]
                                         : state->inputs[t->base];
    t->dl.data = t->memory;
  }
  return 0;
}

static int find_functions(pattern_model *m, const pattern_function *functions) {
  for (int i = 0; i < m->step_count; ++i) {
    const pattern_function *f = functions;
    while (f != NULL && f->name != NULL && strcmp(f->name, m->steps[i].name) != 0) ++f;
    if (f == NULL || f->name == NULL || m->steps[i].program >= 0) {
      return pattern_fail("the plan calls %s, which the program does not have; link the object file"
                          " beside the plan", m->steps[i].name);
    }
    m->steps[i].code = (void *)f->call;
  }
  return 0;
}

int backend_open(pattern_model *m, const pattern_function *functions, int threads) {
  State *state = calloc(1, sizeof *state);
  if (state == NULL) return pattern_fail("out of memory");
  m->state = state;
  if (m->device[0] != 0 && strcmp(m->device, "cpu") != 0) {
    return pattern_fail("this program runs networks for a CPU, the plan is for %s", m->device);
  }
  if (find_functions(m, functions) != 0 || place_tensors(m, state) != 0) return -1;
  return start_threads(state, threads);
}

void backend_close(pattern_model *m) {
  State *state = m->state;
  if (state == NULL) return;
  Pool *pool = &state->pool;
  if (pool->started > 0) {
    atomic_store(&pool->is_over, 1);
    announce(pool);
  }
  for (int i = 1; i <= pool->started; ++i) pthread_join(pool->workers[i], NULL);
  for (int i = 0; state->storages != NULL && i < m->storage_count; ++i) free(state->storages[i]);
  for (int i = 0; state->inputs != NULL && i < m->input_count; ++i) free(state->inputs[i]);
  free(state->storages);
  free(state->inputs);
  free(state->seats);
  free(pool->workers);
  free(state);
  m->state = NULL;
}

int backend_write(pattern_model *m, Tensor *tensor, const void *data) {
  (void)m;
  memcpy(tensor->memory, data, tensor->spec.bytes);
  return 0;
}

int backend_read(pattern_model *m, Tensor *tensor, void *data) {
  (void)m;
  memcpy(data, tensor->memory, tensor->spec.bytes);
  return 0;
}

int backend_run(pattern_model *m) {
  typedef int (*Function)(void *, const Argument *, int32_t, Argument *);
  current = &((State *)m->state)->pool;
  for (int i = 0; i < m->step_count; ++i) {
    Step *step = &m->steps[i];
    Argument arguments[MAX_ARGUMENTS], result = {0};
    for (int j = 0; j < step->count; ++j) {
      arguments[j] = (Argument){TENSOR_ARGUMENT, 0, {0}};
      arguments[j].value.pointer = &m->tensors[step->arguments[j]].dl;
    }
    if (((Function)step->code)(NULL, arguments, step->count, &result) != 0) {
      char reason[1024];
      snprintf(reason, sizeof reason, "%s", pattern_error());
      return pattern_fail("%s failed: %s", step->name, reason);
    }
  }
  return 0;
}

void backend_describe(const pattern_model *m, FILE *file) {
  (void)m;
  fputs("null", file);
}
