/* CRC-32C (Castagnoli; RFC 3720 appendix B.4): reflected polynomial 0x82F63B78, initial value and
 * final inversion 0xFFFFFFFF. */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__) || defined(_M_X64)
#define HILUM_HAS_SSE42_PATH 1
#include <nmmintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#endif
#endif

/* ---- slice by 8 ------------------------------------------------------------------------ */

/* TABLE[k][n] is the remainder of byte n followed by k zero bytes. Remainders are linear over
 * GF(2), so the eight of single bits give all 256, and the compiler computes the table:
 * constant data needs no initialisation that threads could race for. */
#define LINEAR(n, b0, b1, b2, b3, b4, b5, b6, b7)                                        \
  (((n) & 1 ? b0 : 0u) ^ ((n) & 2 ? b1 : 0u) ^ ((n) & 4 ? b2 : 0u) ^ ((n) & 8 ? b3 : 0u) ^ \
   ((n) & 16 ? b4 : 0u) ^ ((n) & 32 ? b5 : 0u) ^ ((n) & 64 ? b6 : 0u) ^ ((n) & 128 ? b7 : 0u))
#define B0(n) \
  LINEAR(n, 0xF26B8303u, 0xE13B70F7u, 0xC79A971Fu, 0x8AD958CFu, \
         0x105EC76Fu, 0x20BD8EDEu, 0x417B1DBCu, 0x82F63B78u)
#define B1(n) \
  LINEAR(n, 0x13A29877u, 0x274530EEu, 0x4E8A61DCu, 0x9D14C3B8u, \
         0x3FC5F181u, 0x7F8BE302u, 0xFF17C604u, 0xFBC3FAF9u)
#define B2(n) \
  LINEAR(n, 0xA541927Eu, 0x4F6F520Du, 0x9EDEA41Au, 0x38513EC5u, \
         0x70A27D8Au, 0xE144FB14u, 0xC76580D9u, 0x8B277743u)
#define B3(n) \
  LINEAR(n, 0xDD45AAB8u, 0xBF672381u, 0x7B2231F3u, 0xF64463E6u, \
         0xE964B13Du, 0xD725148Bu, 0xABA65FE7u, 0x52A0C93Fu)
#define B4(n) \
  LINEAR(n, 0x38116FACu, 0x7022DF58u, 0xE045BEB0u, 0xC5670B91u, \
         0x8F2261D3u, 0x1BA8B557u, 0x37516AAEu, 0x6EA2D55Cu)
#define B5(n) \
  LINEAR(n, 0xEF306B19u, 0xDB8CA0C3u, 0xB2F53777u, 0x6006181Fu, \
         0xC00C303Eu, 0x85F4168Du, 0x0E045BEBu, 0x1C08B7D6u)
#define B6(n) \
  LINEAR(n, 0x68032CC8u, 0xD0065990u, 0xA5E0C5D1u, 0x4E2DFD53u, \
         0x9C5BFAA6u, 0x3D5B83BDu, 0x7AB7077Au, 0xF56E0EF4u)
#define B7(n) \
  LINEAR(n, 0x493C7D27u, 0x9278FA4Eu, 0x211D826Du, 0x423B04DAu, \
         0x847609B4u, 0x0D006599u, 0x1A00CB32u, 0x34019664u)
#define ROW4(f, n) f(n), f((n) + 1), f((n) + 2), f((n) + 3)
#define ROW16(f, n) ROW4(f, n), ROW4(f, (n) + 4), ROW4(f, (n) + 8), ROW4(f, (n) + 12)
#define ROW64(f, n) ROW16(f, n), ROW16(f, (n) + 16), ROW16(f, (n) + 32), ROW16(f, (n) + 48)
#define ROW256(f) {ROW64(f, 0), ROW64(f, 64), ROW64(f, 128), ROW64(f, 192)}

static const uint32_t TABLE[8][256] = {ROW256(B0), ROW256(B1), ROW256(B2), ROW256(B3),
                                       ROW256(B4), ROW256(B5), ROW256(B6), ROW256(B7)};

uint32_t hilum_crc32c_software(uint32_t crc, const void *bytes, uint64_t n_bytes) {
  const unsigned char *next = bytes;
  crc = ~crc;
  for (; n_bytes >= 8; n_bytes -= 8, next += 8) {
    uint64_t word;
    memcpy(&word, next, sizeof word);
    word ^= crc;
    crc = TABLE[7][word & 255] ^ TABLE[6][(word >> 8) & 255] ^ TABLE[5][(word >> 16) & 255] ^
          TABLE[4][(word >> 24) & 255] ^ TABLE[3][(word >> 32) & 255] ^
          TABLE[2][(word >> 40) & 255] ^ TABLE[1][(word >> 48) & 255] ^ TABLE[0][word >> 56];
  }
  for (; n_bytes > 0; n_bytes--) crc = TABLE[0][(crc ^ *next++) & 255] ^ (crc >> 8);
  return ~crc;
}

/* ---- SSE4.2 ---------------------------------------------------------------------------- */

#ifdef HILUM_HAS_SSE42_PATH

#if defined(__GNUC__) || defined(__clang__)
/* Only this function may hold the instruction: the rest must run on a CPU without it. */
__attribute__((target("sse4.2")))
#endif
uint32_t hilum_crc32c_hardware(uint32_t crc, const void *bytes, uint64_t n_bytes) {
  const unsigned char *next = bytes;
  uint64_t wide = ~crc;
  for (; n_bytes >= 8; n_bytes -= 8, next += 8) {
    uint64_t word;
    memcpy(&word, next, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = (uint32_t)wide;
  for (; n_bytes > 0; n_bytes--) crc = _mm_crc32_u8(crc, *next++);
  return ~crc;
}

bool hilum_crc32c_has_hardware(void) {
#if defined(__GNUC__)
  /* A load and a test: the compiler's runtime asked the CPU before main. */
  return __builtin_cpu_supports("sse4.2") != 0;
#else
  /* cpuid may cost a trap into a hypervisor, hence asked once. Racing threads store the same. */
  static volatile long answer = 0; /* 1 no, 2 yes */
  if (answer == 0) {
    int registers[4];
    __cpuid(registers, 1);
    answer = (registers[2] >> 20 & 1) ? 2 : 1;
  }
  return answer == 2;
#endif
}

#else

uint32_t hilum_crc32c_hardware(uint32_t crc, const void *bytes, uint64_t n_bytes) {
  return hilum_crc32c_software(crc, bytes, n_bytes);
}

bool hilum_crc32c_has_hardware(void) { return false; }

#endif

uint32_t hilum_crc32c(uint32_t crc, const void *bytes, uint64_t n_bytes) {
  if (bytes == NULL) return crc;
  return hilum_crc32c_has_hardware() ? hilum_crc32c_hardware(crc, bytes, n_bytes)
                                     : hilum_crc32c_software(crc, bytes, n_bytes);
}
