/* What device this is, for the results: whatever its system lets one read. */
#ifndef DEVICE_INFO_H_
#define DEVICE_INFO_H_

#include <stdio.h>

enum { MAX_CPUS = 64 };

typedef struct {
  int count;
  struct { long max_khz, khz; int is_used; char governor[32], part[64]; } cpus[MAX_CPUS];
} CpuInfo;

void read_cpus(CpuInfo *info);
/* Binds the process to the fastest cores ("big") or the slowest ("little"), `least` of them and those
 * that are as fast, or leaves it ("all"); the number of cores that it may use, or -1. */
int choose_cores(const char *which, int least);
/* Degrees Celsius of the warmest sensor; 0 if none can be read. */
double temperature(void);
void write_json_text(FILE *file, const char *text);
/* The device as a JSON object without its last brace. */
void write_device(FILE *file, const char *name, const CpuInfo *before, const CpuInfo *after,
                  double warm_before, double warm_after);

#endif
