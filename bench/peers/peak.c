/* What the vector units of this processor can do: multiply-accumulates a cycle, from registers.
 *
 * Twelve independent chains, no memory. INT8 before VNNI: pmaddubsw, pmaddwd, paddd, as oneDNN's
 * loops do it. Cycles are those of a chain of imul + add beside each loop, 3 + 1 cycles a step.
 * Prints JSON: {"SSE41": {"int8": 15.9, "fp32": 7.9}, ...}; levels the processor lacks are left out.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define CHAINS 12
#define STEPS 4000000L

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double hertz(void) {
    uint64_t x = 3, factor = 5;
    double start = now();
    for (long k = 0; k < 10000000L; k++) {
        x = x * factor + factor;
        __asm__ volatile("" : "+r"(x), "+r"(factor));
    }
    return 4e7 / (now() - start);
}

#define EACH(DO, STEP) DO(a0, STEP) DO(a1, STEP) DO(a2, STEP) DO(a3, STEP) DO(a4, STEP) \
    DO(a5, STEP) DO(a6, STEP) DO(a7, STEP) DO(a8, STEP) DO(a9, STEP) DO(a10, STEP) DO(a11, STEP)

/* One step of one chain. The empty asm makes x another value for the compiler each time: or it
 * would multiply once for all twelve. Only the addition waits for the step before. */
#define ONE(a, STEP)                       \
    a = STEP(a);                           \
    __asm__ volatile("" : "+x"(a), "+x"(x));
#define CLEAR(a, ZERO) a = ZERO;

#define LOOP(NAME, TARGET, TYPE, ZERO, STEP)                                     \
    __attribute__((target(TARGET))) static double NAME(void) {                   \
        TYPE a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, x = ZERO, w = ZERO; \
        EACH(CLEAR, ZERO)                                                        \
        double start = now();                                                    \
        for (long step = 0; step < STEPS; step++) {                              \
            __asm__ volatile("" : "+x"(x), "+x"(w));                             \
            EACH(ONE, STEP)                                                      \
        }                                                                        \
        return (double)STEPS * CHAINS / (now() - start);                         \
    }

#define BYTES_128(a) _mm_add_epi32(a, _mm_madd_epi16(_mm_maddubs_epi16(x, w), w))
#define BYTES_256(a) _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), w))
#define FLOATS_128(a) _mm_add_ps(a, _mm_mul_ps(x, w))
#define FLOATS_256(a) _mm256_add_ps(a, _mm256_mul_ps(x, w))
#define FUSED_256(a) _mm256_fmadd_ps(x, w, a)
#define FUSED_512(a) _mm512_fmadd_ps(x, w, a)
#define DOTS_256(a) _mm256_dpbusd_avx_epi32(a, x, w)
#define DOTS_512(a) _mm512_dpbusd_epi32(a, x, w)

LOOP(int8_sse, "sse4.1", __m128i, _mm_setzero_si128(), BYTES_128)
LOOP(fp32_sse, "sse4.1", __m128, _mm_setzero_ps(), FLOATS_128)
LOOP(int8_avx, "avx", __m128i, _mm_setzero_si128(), BYTES_128)
LOOP(fp32_avx, "avx", __m256, _mm256_setzero_ps(), FLOATS_256)
LOOP(int8_avx2, "avx2", __m256i, _mm256_setzero_si256(), BYTES_256)
LOOP(fp32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), FUSED_256)
LOOP(int8_vnni, "avx2,avxvnni", __m256i, _mm256_setzero_si256(), DOTS_256)
LOOP(int8_512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), DOTS_512)
LOOP(fp32_512, "avx512f", __m512, _mm512_setzero_ps(), FUSED_512)

static int written;

/* Median of five: a neighbour on the machine slows the loop or the chain that counts cycles. */
static double median(double (*loop)(void), int width) {
    double found[5];
    for (int k = 0; k < 5; k++) {
        double before = hertz(), steps = loop(), after = hertz();
        double value = steps * width / (before > after ? before : after);
        int at = k;
        for (; at > 0 && found[at - 1] > value; at--) found[at] = found[at - 1];
        found[at] = value;
    }
    return found[2];
}

static void report(const char *level, double (*int8)(void), int bytes, double (*fp32)(void),
                   int floats) {
    printf("%s\"%s\": {\"int8\": %.1f, \"fp32\": %.1f}", written++ ? ", " : "{", level,
           median(int8, bytes), median(fp32, floats));
}

int main(void) {
    __builtin_cpu_init();
    report("SSE41", int8_sse, 16, fp32_sse, 4);
    if (__builtin_cpu_supports("avx")) report("AVX", int8_avx, 16, fp32_avx, 8);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        report("AVX2", int8_avx2, 32, fp32_avx2, 8);
        if (__builtin_cpu_supports("avxvnni")) report("AVX2_VNNI", int8_vnni, 32, fp32_avx2, 8);
    }
    if (__builtin_cpu_supports("avx512vnni")) report("native", int8_512, 64, fp32_512, 16);
    puts("}");
    return 0;
}
