/* Peak rate of dot products of bytes on one core, from registers, in 10^9 operations a second.
 *
 * A multiplication and an addition are two operations. Independent accumulators hide the latency;
 * the empty asm keeps the compiler from merging or removing the chains.
 */
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define STEP(i) a##i = DOT(a##i); __asm__ volatile("" : KEEP(a##i));
#define RUN(TYPE, LANES, ZERO)                                                          \
  double dot_gops(long n) {                                                             \
    TYPE a0 = ZERO, a1 = ZERO, a2 = ZERO, a3 = ZERO, a4 = ZERO, a5 = ZERO, a6 = ZERO,   \
         a7 = ZERO, a8 = ZERO, a9 = ZERO, a10 = ZERO, a11 = ZERO;                       \
    double start = now();                                                               \
    for (long i = 0; i < n; ++i) {                                                      \
      STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5)                                   \
      STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)                                 \
    }                                                                                   \
    return 2e-9 * 12 * 4 * LANES * (double)n / (now() - start);                         \
  }

#if defined(__AVX512VNNI__)
#define KEEP(r) "+v"(r)
#define DOT(a) _mm512_dpbusd_epi32(a, _mm512_set1_epi8(3), _mm512_set1_epi8(2))
RUN(__m512i, 16, _mm512_setzero_si512())
#elif defined(__AVXVNNI__)
#define KEEP(r) "+x"(r)
#define DOT(a) _mm256_dpbusd_avx_epi32(a, _mm256_set1_epi8(3), _mm256_set1_epi8(2))
RUN(__m256i, 8, _mm256_setzero_si256())
#elif defined(__AVX2__)
#define KEEP(r) "+x"(r)
#define DOT(a)                                                                              \
  _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(3),           \
                                                             _mm256_set1_epi8(2)),          \
                                        _mm256_set1_epi16(1)))
RUN(__m256i, 8, _mm256_setzero_si256())
#elif defined(__ARM_FEATURE_DOTPROD)
#define KEEP(r) "+w"(r)
#define DOT(a) vdotq_s32(a, vdupq_n_s8(3), vdupq_n_s8(2))
RUN(int32x4_t, 4, vdupq_n_s32(0))
#else
double dot_gops(long n) {
  (void)n;
  return 0.0;
}
#endif
