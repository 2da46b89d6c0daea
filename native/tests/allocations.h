/* Counts what the library takes from the heap. The linker puts these between library and heap:
 *
 *     -Wl,--wrap=malloc -Wl,--wrap=calloc -Wl,--wrap=free
 *
 * Include in one source file of a program. Not for threads. */
#ifndef HILUM_ALLOCATIONS_H
#define HILUM_ALLOCATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* What opening may take beyond the file's own size. */
#define ALLOCATION_ALLOWANCE_BYTES 1048576u

void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t n, size_t size);
void __wrap_free(void *memory);

static bool allocations_counted;   /* set to count; allocations_start does */
static uint64_t allocations_bytes; /* asked for since, whether freed again or not */
static uint64_t allocations_most;  /* a request beyond this sum is noted ... */
static bool allocations_too_many;  /* ... here, and answered with NULL: nothing so large is tried */
static int64_t allocations_alive;  /* blocks not freed yet */
static void (*allocations_hook)(void); /* called at each one, unless NULL */

static void allocations_start(uint64_t most_bytes) {
  allocations_counted = true;
  allocations_bytes = 0;
  allocations_most = most_bytes;
  allocations_too_many = false;
  allocations_alive = 0;
}

static void allocations_stop(void) { allocations_counted = false; }

static bool allocations_allow(size_t n, size_t size) {
  if (!allocations_counted) return true;
  if (allocations_hook != NULL) allocations_hook();
  const uint64_t left = allocations_most - allocations_bytes;
  if (size != 0 && n > left / size) {
    allocations_too_many = true;
    return false;
  }
  allocations_bytes += (uint64_t)n * size;
  allocations_alive++;
  return true;
}

void *__wrap_malloc(size_t n_bytes) {
  return allocations_allow(1, n_bytes) ? __real_malloc(n_bytes) : NULL;
}

void *__wrap_calloc(size_t n, size_t size) {
  return allocations_allow(n, size) ? __real_calloc(n, size) : NULL;
}

void __wrap_free(void *memory) {
  if (allocations_counted && memory != NULL) allocations_alive--;
  __real_free(memory);
}

#endif
