#define _GNU_SOURCE
#include "device_info.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static int read_line(const char *path, char *line, size_t size) {
  FILE *file = fopen(path, "r");
  line[0] = 0;
  if (file == NULL) return 0;
  if (fgets(line, (int)size, file) == NULL) line[0] = 0;
  fclose(file);
  line[strcspn(line, "\n")] = 0;
  return line[0] != 0;
}

static long read_number(const char *path) {
  char line[64];
  return read_line(path, line, sizeof line) ? atol(line) : 0;
}

/* Model of each CPU: a name, or ARM's numbers of implementer and part. */
static void read_parts(CpuInfo *info) {
  FILE *file = fopen("/proc/cpuinfo", "r");
  char line[512], implementer[16] = "";
  int cpu = -1;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    char *value = strchr(line, ':');
    if (value == NULL) continue;
    value += value[1] == ' ' ? 2 : 1;
    value[strcspn(value, "\n")] = 0;
    if (strncmp(line, "processor", 9) == 0) cpu = atoi(value);
    if (cpu < 0 || cpu >= info->count) continue;
    if (strncmp(line, "model name", 10) == 0) {
      snprintf(info->cpus[cpu].part, sizeof info->cpus[cpu].part, "%.63s", value);
    } else if (strncmp(line, "CPU implementer", 15) == 0) {
      snprintf(implementer, sizeof implementer, "%.15s", value);
    } else if (strncmp(line, "CPU part", 8) == 0) {
      snprintf(info->cpus[cpu].part, sizeof info->cpus[cpu].part, "%s %.40s", implementer, value);
    }
  }
  if (file != NULL) fclose(file);
}

void read_cpus(CpuInfo *info) {
  memset(info, 0, sizeof *info);
  long count = sysconf(_SC_NPROCESSORS_CONF);
  info->count = count < 1 ? 1 : count > MAX_CPUS ? MAX_CPUS : (int)count;
  cpu_set_t allowed;
  int is_known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  for (int i = 0; i < info->count; ++i) {
    char path[128];
    const char *folder = "/sys/devices/system/cpu/cpu%d/cpufreq/%s";
    snprintf(path, sizeof path, folder, i, "cpuinfo_max_freq");
    info->cpus[i].max_khz = read_number(path);
    snprintf(path, sizeof path, folder, i, "scaling_cur_freq");
    info->cpus[i].khz = read_number(path);
    snprintf(path, sizeof path, folder, i, "scaling_governor");
    read_line(path, info->cpus[i].governor, sizeof info->cpus[i].governor);
    info->cpus[i].is_used = !is_known || CPU_ISSET(i, &allowed);
  }
  read_parts(info);
}

static int by_speed(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x < y) - (x > y);
}

int choose_cores(const char *which, int least) {
  CpuInfo info;
  read_cpus(&info);
  int is_big = strcmp(which, "big") == 0, is_little = strcmp(which, "little") == 0, count = 0;
  if (!is_big && !is_little && strcmp(which, "all") != 0) return -1;
  long speeds[MAX_CPUS];
  for (int i = 0; i < info.count; ++i) {
    if (info.cpus[i].is_used) speeds[count++] = info.cpus[i].max_khz;
  }
  if (count == 0 || (!is_big && !is_little)) return count;
  qsort(speeds, (size_t)count, sizeof *speeds, by_speed);
  int last = (least < count ? least : count) - 1;
  long limit = speeds[is_big ? last : count - 1 - last];
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  count = 0;
  for (int i = 0; i < info.count; ++i) {
    long khz = info.cpus[i].max_khz;
    if (info.cpus[i].is_used && (is_big ? khz >= limit : khz <= limit)) {
      CPU_SET(i, &chosen);
      ++count;
    }
  }
  sched_setaffinity(0, sizeof chosen, &chosen);
  return count;
}

double temperature(void) {
  long warmest = 0;
  for (int i = 0; i < 100; ++i) {
    char path[96];
    snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", i);
    long now = read_number(path);
    if (now < 200000 && now > warmest) warmest = now;
  }
  return (double)warmest / 1000.0;
}

/* Bytes of the UTF-8 character at `text`; 0 if it is none. */
static int character(const unsigned char *text) {
  int more = text[0] < 0x80 ? 0 : text[0] < 0xc2 ? -1 : text[0] < 0xe0 ? 1 : text[0] < 0xf0 ? 2
             : text[0] < 0xf5 ? 3 : -1;
  for (int i = 1; i <= more; ++i) {
    if ((text[i] & 0xc0) != 0x80) return 0;
  }
  /* Too long, a surrogate, or beyond the last one. */
  if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] >= 0xa0) ||
      (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] >= 0x90)) {
    return 0;
  }
  return more + 1;
}

void write_json_text(FILE *file, const char *text) {
  fputc('"', file);
  for (const unsigned char *c = (const unsigned char *)text; *c != 0;) {
    int bytes = character(c);
    if (bytes == 0) fputc('?', file);
    if (bytes == 1 && (*c == '"' || *c == '\\')) fputc('\\', file);
    if (bytes > 1 || (bytes == 1 && *c >= 0x20 && *c != 0x7f)) fwrite(c, 1, (size_t)bytes, file);
    c += bytes == 0 ? 1 : bytes;
  }
  fputc('"', file);
}

static void write_field(FILE *file, const char *key, const char *text) {
  fprintf(file, "\"%s\": ", key);
  write_json_text(file, text);
  fputs(", ", file);
}

void write_device(FILE *file, const char *name, const CpuInfo *before, const CpuInfo *after,
                  double warm_before, double warm_after) {
  char hardware[256];
  struct utsname system;
  memset(&system, 0, sizeof system);
  uname(&system);
  read_line("/sys/firmware/devicetree/base/model", hardware, sizeof hardware);
  fputc('{', file);
  write_field(file, "name", name[0] ? name : hardware[0] ? hardware : system.nodename);
  write_field(file, "hardware", hardware);
  write_field(file, "machine", system.machine);
  write_field(file, "system", system.sysname);
  write_field(file, "release", system.release);
  fprintf(file, "\"celsius_before\": %.1f, \"celsius_after\": %.1f, \"cpus\": [", warm_before,
          warm_after);
  for (int i = 0; i < before->count; ++i) {
    fprintf(file, "%s\n   {", i ? "," : "");
    write_field(file, "part", before->cpus[i].part);
    write_field(file, "governor", before->cpus[i].governor);
    fprintf(file, "\"used\": %s, \"max_khz\": %ld, \"khz_before\": %ld, \"khz_after\": %ld}",
            before->cpus[i].is_used ? "true" : "false", before->cpus[i].max_khz,
            before->cpus[i].khz, after->cpus[i].khz);
  }
  fputs("]", file);
}
