/* Runs a kit: checks the outputs of each build of a network, then times the builds in turns.
 *
 *   runner [--runs N] [--warm-up N] [--cool-down SECONDS] [--cores big|little|all] [--threads N]
 *          [--name DEVICE] [--json FILE] [FOLDER]
 *
 * Exit code 0 done, 1 a wrong output or a failure, 2 wrong arguments.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "device_info.h"

/* Of the kit: name of a build -> its functions. Written beside the machine code. */
extern const struct { const char *name; const pattern_function *functions; } pattern_builds[];

enum { MAX_BUILDS = 4, MAX_TENSORS = 32, MAX_RUNS = 100000, KIT_FORMAT = 1 };

typedef struct {
  char name[MAX_NAME], file[MAX_NAME];
  double tolerance;
  void *data;
  size_t bytes;
} Expected;

typedef struct {
  char name[MAX_NAME];
  pattern_model *model;
  double *samples, error;
} Build;

static struct {
  const char *folder, *json, *name, *cores;
  int runs, warm_up, threads;
  double cool_down;
} options = {".", "result.json", "", "big", 50, 5, 0, 0.0};

static char kit_name[MAX_NAME], target[MAX_NAME], version[MAX_NAME], digest[MAX_NAME];
static char inputs[MAX_TENSORS][MAX_NAME];
static Expected expected[MAX_TENSORS];
static Build builds[MAX_BUILDS];
static int build_count, input_count, output_count, kit_threads = 1;

static int die(const char *reason) {
  fprintf(stderr, "error: %s\n", reason);
  return 1;
}

static void *read_file(const char *name, size_t *bytes) {
  char path[MAX_PATH_BYTES + MAX_NAME];
  snprintf(path, sizeof path, "%s/%s", options.folder, name);
  FILE *file = fopen(path, "rb");
  void *data = NULL;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
    long size = ftell(file);
    rewind(file);
    data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    *bytes = (size_t)size;
    if (data != NULL && fread(data, 1, *bytes, file) != *bytes) {
      free(data);
      data = NULL;
    }
  }
  if (file != NULL) fclose(file);
  if (data == NULL) pattern_fail("cannot read %s; copy the whole folder", path);
  return data;
}

static int read_kit(void) {
  char path[MAX_PATH_BYTES + MAX_NAME], word[MAX_NAME];
  snprintf(path, sizeof path, "%s/kit.txt", options.folder);
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    return pattern_fail("cannot read %s; run this in the kit's folder, or name it", path);
  }
  int format = 0, got = fscanf(file, "kit %d", &format), is_whole = 0;
  int is_good = got == 1 && format == KIT_FORMAT;
  while (is_good && !is_whole && fscanf(file, "%255s", word) == 1) {
    if (strcmp(word, "name") == 0) is_good = fscanf(file, "%255s", kit_name) == 1;
    else if (strcmp(word, "target") == 0) is_good = fscanf(file, "%255s", target) == 1;
    else if (strcmp(word, "version") == 0) is_good = fscanf(file, "%255s", version) == 1;
    else if (strcmp(word, "digest") == 0) is_good = fscanf(file, "%255s", digest) == 1;
    else if (strcmp(word, "threads") == 0) is_good = fscanf(file, "%d", &kit_threads) == 1;
    else if (strcmp(word, "build") == 0 && build_count < MAX_BUILDS) {
      is_good = fscanf(file, "%255s", builds[build_count++].name) == 1;
    } else if (strcmp(word, "input") == 0 && input_count < MAX_TENSORS) {
      is_good = fscanf(file, "%255s", inputs[input_count++]) == 1;
    } else if (strcmp(word, "output") == 0 && output_count < MAX_TENSORS) {
      Expected *e = &expected[output_count++];
      is_good = fscanf(file, "%255s %lf %255s", e->name, &e->tolerance, e->file) == 3;
    } else {
      is_whole = strcmp(word, "end") == 0;
      is_good = is_whole;
    }
  }
  fclose(file);
  if (is_good && is_whole && build_count > 0 && output_count > 0) return 0;
  return pattern_fail("%s is damaged or of another version; copy or make the kit again", path);
}

static double value_at(const pattern_spec *spec, const void *data, size_t i) {
  if (spec->code == 2 && spec->bits == 64) return ((const double *)data)[i];
  if (spec->code == 2 && spec->bits == 32) return ((const float *)data)[i];
  if (spec->code == 2 && spec->bits == 16) {
    uint16_t half = ((const uint16_t *)data)[i];
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                  : exponent == 0 ? ldexp(mantissa, -24)
                                  : ldexp(mantissa + 1024, exponent - 25);
    return half >> 15 ? -size : size;
  }
  int is_signed = spec->code == 0;
  if (spec->bits == 64) return (double)((const int64_t *)data)[i];
  if (spec->bits == 32) {
    return is_signed ? ((const int32_t *)data)[i] : (double)((const uint32_t *)data)[i];
  }
  if (spec->bits == 16) {
    return is_signed ? ((const int16_t *)data)[i] : ((const uint16_t *)data)[i];
  }
  return is_signed ? ((const int8_t *)data)[i] : ((const uint8_t *)data)[i];
}

/* Largest difference; infinite where one side alone is NaN or infinite. */
static double difference(const pattern_spec *spec, const void *got, const void *want) {
  double worst = 0.0;
  size_t width = (size_t)(spec->bits + 7) / 8, count = spec->bytes / width;
  for (size_t i = 0; i < count; ++i) {
    if (memcmp((const char *)got + i * width, (const char *)want + i * width, width) == 0) continue;
    double a = value_at(spec, got, i), b = value_at(spec, want, i);
    if (spec->code == 2 && ((isnan(a) && isnan(b)) || a == b)) continue;
    double error = isfinite(a) && isfinite(b) ? fabs(a - b) : INFINITY;
    if (error == 0) error = 1; /* integers of 64 bits may differ by less than a double tells */
    if (error > worst) worst = error;
  }
  return worst;
}

/* 0, or -1 after saying which output is wrong. */
static int check_outputs(Build *build) {
  int result = 0;
  if (pattern_run(build->model) != 0) return -1;
  if (pattern_output_count(build->model) != output_count) {
    return pattern_fail("%s has another number of outputs than the kit; copy it again",
                        build->name);
  }
  for (int i = 0; i < output_count; ++i) {
    pattern_spec spec = pattern_output(build->model, i);
    void *got = malloc(spec.bytes + 1);
    if (got == NULL) return pattern_fail("out of memory");
    int is_read = expected[i].bytes == spec.bytes &&
                  pattern_get_output(build->model, i, got, spec.bytes) == 0;
    double error = is_read ? difference(&spec, got, expected[i].data) : INFINITY;
    free(got);
    if (error > build->error) build->error = error;
    if (!(error <= expected[i].tolerance)) {
      fprintf(stderr, "WRONG: %s computes another %s here: it differs by %g, allowed are %g\n",
              build->name, expected[i].name, error, expected[i].tolerance);
      result = pattern_fail("the outputs are wrong on this device; its times mean nothing");
    }
  }
  return result;
}

static const pattern_function *functions_of(const char *name) {
  int i = 0;
  while (pattern_builds[i].name != NULL && strcmp(pattern_builds[i].name, name) != 0) ++i;
  return pattern_builds[i].functions;
}

static int open_build(Build *build) {
  char path[MAX_PATH_BYTES + MAX_NAME];
  snprintf(path, sizeof path, "%s/%s", options.folder, build->name);
  build->samples = calloc((size_t)options.runs, sizeof *build->samples);
  build->model = pattern_open(path, functions_of(build->name), options.threads);
  if (build->model == NULL || build->samples == NULL) return -1;
  for (int i = 0; i < input_count; ++i) {
    size_t bytes = 0;
    void *data = read_file(inputs[i], &bytes);
    int result = data == NULL ? -1 : pattern_set_input(build->model, i, data, bytes);
    free(data);
    if (result != 0) return -1;
  }
  return 0;
}

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void rest(double seconds) {
  struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  if (seconds > 0) nanosleep(&pause, NULL);
}

/* The builds in turns, each first as often as the others. */
static int time_builds(void) {
  for (int i = 0; i < options.warm_up + options.runs; ++i) {
    rest(options.cool_down);
    for (int j = 0; j < build_count; ++j) {
      Build *build = &builds[(i + j) % build_count];
      double start = now_ms();
      if (pattern_run(build->model) != 0) return -1;
      if (i >= options.warm_up) build->samples[i - options.warm_up] = now_ms() - start;
    }
  }
  return 0;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double quantile(const double *sorted, double q) {
  double place = q * (options.runs - 1);
  int low = (int)place, high = low + 1 < options.runs ? low + 1 : low;
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

static void write_rows(FILE *json) {
  double medians[MAX_BUILDS], tenths[MAX_BUILDS];
  printf("%-12s %10s %10s %10s %6s %12s\n", "build", "median ms", "p10", "p90", "runs",
         "max error");
  for (int i = 0; i < build_count; ++i) {
    Build *b = &builds[i];
    fprintf(json, "%s\n  {\"engine\": ", i ? "," : "");
    write_json_text(json, b->name);
    fprintf(json, ", \"max_abs_error\": %.9g, \"samples_ms\": [", b->error);
    for (int j = 0; j < options.runs; ++j) fprintf(json, "%s%.6g", j ? ", " : "", b->samples[j]);
    qsort(b->samples, (size_t)options.runs, sizeof *b->samples, compare);
    medians[i] = quantile(b->samples, 0.5);
    tenths[i] = quantile(b->samples, 0.1);
    double p90 = quantile(b->samples, 0.9);
    fprintf(json, "], \"median_ms\": %.6g, \"p10_ms\": %.6g, \"p90_ms\": %.6g}", medians[i],
            tenths[i], p90);
    printf("%-12s %10.3f %10.3f %10.3f %6d %12.3g\n", b->name, medians[i], tenths[i], p90,
           options.runs, b->error);
  }
  for (int i = 1; i < build_count; ++i) {
    printf("%s / %s: %.2fx by medians, %.2fx by p10\n", builds[i].name, builds[0].name,
           medians[i] / medians[0], tenths[i] / tenths[0]);
  }
}

static int write_results(const CpuInfo *before, double warm_before) {
  CpuInfo after;
  read_cpus(&after);
  FILE *json = fopen(options.json, "w");
  if (json == NULL) return pattern_fail("cannot write %s; name another file by --json",
                                        options.json);
  fprintf(json, "{\"format\": %d, \"kit\": {\"name\": ", KIT_FORMAT);
  write_json_text(json, kit_name);
  fputs(", \"target\": ", json);
  write_json_text(json, target);
  fputs(", \"version\": ", json);
  write_json_text(json, version);
  fputs(", \"digest\": ", json);
  write_json_text(json, digest);
  fprintf(json, "},\n \"threads\": %d, \"runs\": %d, \"warm_up\": %d, \"cool_down_s\": %g,"
          " \"time\": %lld,\n \"device\": ", options.threads, options.runs, options.warm_up,
          options.cool_down, (long long)time(NULL));
  write_device(json, options.name, before, &after, warm_before, temperature());
  fputs(", \"gpu\": ", json);
  backend_describe(builds[0].model, json);
  fputs("},\n \"rows\": [", json);
  write_rows(json);
  fputs("]}\n", json);
  if (fclose(json) != 0) return pattern_fail("cannot write %s", options.json);
  printf("wrote %s; on the computer: tvm-pattern kit read %s\n", options.json, options.json);
  return 0;
}

static int number_option(const char *text, double low, double high, double *value) {
  char *end = NULL;
  *value = text ? strtod(text, &end) : -1.0;
  return text != NULL && end != text && *end == 0 && *value >= low && *value <= high;
}

static int count_option(const char *text, int low, int high, double *value) {
  return number_option(text, low, high, value) && *value == (int)*value;
}

/* 0, or 2 for wrong arguments. */
static int read_arguments(int count, char **arguments) {
  for (int i = 1; i < count; ++i) {
    const char *word = arguments[i], *next = i + 1 < count ? arguments[i + 1] : NULL;
    double value = 0.0;
    int is_good = next != NULL;
    if (word[0] != '-') {
      options.folder = word;
      continue;
    }
    if (strcmp(word, "--json") == 0) options.json = next;
    else if (strcmp(word, "--name") == 0) options.name = next;
    else if (strcmp(word, "--cores") == 0) options.cores = next;
    else if (strcmp(word, "--runs") == 0) is_good = count_option(next, 1, MAX_RUNS, &value);
    else if (strcmp(word, "--warm-up") == 0) is_good = count_option(next, 0, MAX_RUNS, &value);
    else if (strcmp(word, "--threads") == 0) is_good = count_option(next, 1, 1024, &value);
    else if (strcmp(word, "--cool-down") == 0) is_good = number_option(next, 0, 3600, &value);
    else is_good = 0;
    if (!is_good) {
      fprintf(stderr, "error: got %s %s; see the options in README.txt\n", word, next ? next : "");
      return 2;
    }
    if (strcmp(word, "--runs") == 0) options.runs = (int)value;
    if (strcmp(word, "--warm-up") == 0) options.warm_up = (int)value;
    if (strcmp(word, "--threads") == 0) options.threads = (int)value;
    if (strcmp(word, "--cool-down") == 0) options.cool_down = value;
    ++i;
  }
  return 0;
}

static int run_kit(void) {
  if (read_kit() != 0) return -1;
  if (options.threads == 0) options.threads = kit_threads;
  if (options.threads > kit_threads) {
    return pattern_fail("the kit is made for %d threads, got --threads %d; make it with --threads",
                        kit_threads, options.threads);
  }
  int cores = choose_cores(options.cores, options.threads);
  if (cores < 0) return pattern_fail("got --cores %s, expected big, little or all", options.cores);
  printf("%s for %s on %d of %d cores (%s), %d thread(s)\n", kit_name, target, options.threads,
         cores, options.cores, options.threads);
  for (int i = 0; i < output_count; ++i) {
    expected[i].data = read_file(expected[i].file, &expected[i].bytes);
    if (expected[i].data == NULL) return -1;
  }
  for (int i = 0; i < build_count; ++i) {
    if (open_build(&builds[i]) != 0 || check_outputs(&builds[i]) != 0) return -1;
  }
  CpuInfo before;
  read_cpus(&before);
  double warm = temperature();
  if (time_builds() != 0) return -1;
  return write_results(&before, warm);
}

int main(int count, char **arguments) {
  int result = read_arguments(count, arguments);
  if (result != 0) return result;
  result = run_kit();
  for (int i = 0; i < build_count; ++i) {
    pattern_close(builds[i].model);
    free(builds[i].samples);
  }
  for (int i = 0; i < output_count; ++i) free(expected[i].data);
  return result == 0 ? 0 : die(pattern_error());
}
