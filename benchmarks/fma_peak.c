/* Peak rate of float fused multiply-adds on one core, from registers.
 *
 * Independent accumulators hide the latency: at least (2 units) x (5 cycles). The empty asm keeps
 * the compiler from merging or removing the chains.
 */
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define STEP(i, FMA) a##i = FMA(a##i); __asm__ volatile("" : KEEP(a##i));
#define RUN(NAME, TYPE, LANES, SET, FMA)                                                     \
  static double NAME(long n) {                                                               \
    TYPE a0 = SET(0.1f), a1 = SET(0.2f), a2 = SET(0.3f), a3 = SET(0.4f), a4 = SET(0.5f),     \
         a5 = SET(0.6f), a6 = SET(0.7f), a7 = SET(0.8f), a8 = SET(0.9f), a9 = SET(1.0f),     \
         a10 = SET(1.1f), a11 = SET(1.2f);                                                   \
    const TYPE x = SET(0.999f), y = SET(1e-4f);                                              \
    double start = now();                                                                    \
    for (long i = 0; i < n; ++i) {                                                           \
      STEP(0, FMA) STEP(1, FMA) STEP(2, FMA) STEP(3, FMA) STEP(4, FMA) STEP(5, FMA)          \
      STEP(6, FMA) STEP(7, FMA) STEP(8, FMA) STEP(9, FMA) STEP(10, FMA) STEP(11, FMA)        \
    }                                                                                        \
    return 2e-9 * 12 * LANES * (double)n / (now() - start);                                  \
  }

#if defined(__AVX512F__)
#define KEEP(r) "+v"(r)
#define FMA512(a) _mm512_fmadd_ps(a, x, y)
RUN(fma512, __m512, 16, _mm512_set1_ps, FMA512)
#endif
#if defined(__FMA__)
#ifndef KEEP
#define KEEP(r) "+x"(r)
#endif
#define FMA256(a) _mm256_fmadd_ps(a, x, y)
RUN(fma256, __m256, 8, _mm256_set1_ps, FMA256)
#elif defined(__aarch64__)
#define KEEP(r) "+w"(r)
#define FMA128(a) vfmaq_f32(y, a, x)
RUN(fma128, float32x4_t, 4, vdupq_n_f32, FMA128)
#endif

/* GFLOP/s over n rounds of 12 vector FMAs at a width of `bits`; 0 where the machine has none. */
double fma_gflops(int bits, long n) {
#if defined(__AVX512F__)
  if (bits == 512) return fma512(n);
#endif
#if defined(__FMA__)
  if (bits == 256) return fma256(n);
#elif defined(__aarch64__)
  if (bits == 128) return fma128(n);
#endif
  return 0.0;
}
