/* A main for compilers without libFuzzer: gives files to the target, and mutants of them. It does
 * not learn which mutants reach new code; half of them come from the fuzzer's own mutator.
 *
 *     open_fuzz [-m MUTANTS] FILE...
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "splitmix64.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* libFuzzer's default for containers. */
enum { MOST_BYTES = 16384 };

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *stream = fopen(path, "rb");
  if (stream == NULL) return NULL;
  uint8_t *bytes = NULL;
  if (fseek(stream, 0, SEEK_END) == 0) {
    const long end = ftell(stream);
    rewind(stream);
    if (end >= 0 && (bytes = malloc((size_t)end + 1)) != NULL) {
      *size = fread(bytes, 1, (size_t)end, stream);
    }
  }
  fclose(stream);
  return bytes;
}

/* Up to four bytes changed, most of them in the used parts of the header, where the meaning is. */
static void mutate(uint8_t *bytes, size_t size, uint64_t *state) {
  static const uint8_t EDGES[] = {0, 1, 2, 3, 4, 16, 0x7F, 0x80, 0xFE, 0xFF};
  const uint64_t n = 1 + draw(state) % 4;
  for (uint64_t i = 0; i < n; i++) {
    const uint64_t part = draw(state) % 8;
    const size_t range = part < 3 ? 120 : part < 6 ? 1536 : size;
    const size_t at = (size_t)(draw(state) % (range < size ? range : size));
    bytes[at] = draw(state) % 2 == 0 ? EDGES[draw(state) % sizeof EDGES] : (uint8_t)draw(state);
  }
}

/* What libFuzzer would offer the mutator. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
  static uint64_t state = 2;
  (void)max_size;
  if (size > 0) mutate(data, size, &state);
  return size;
}

int main(int argc, char **argv) {
  unsigned long n_mutants = 0;
  int first = 1;
  if (argc > 2 && strcmp(argv[1], "-m") == 0) {
    n_mutants = strtoul(argv[2], NULL, 10);
    first = 3;
  }
  if (first >= argc) {
    fprintf(stderr, "usage: open_fuzz [-m MUTANTS] FILE...\n");
    return 2;
  }
  if (LLVMFuzzerInitialize(&argc, &argv) != 0) return 1;
  uint64_t state = 1;
  for (int i = first; i < argc; i++) {
    size_t size = 0;
    uint8_t *bytes = read_file(argv[i], &size);
    if (bytes == NULL) {
      fprintf(stderr, "cannot read %s\n", argv[i]);
      return 1;
    }
    LLVMFuzzerTestOneInput(bytes, size);
    const size_t room = size > MOST_BYTES ? size : MOST_BYTES;
    uint8_t *mutant = malloc(room);
    for (unsigned long n = 0; mutant != NULL && size > 0 && n < n_mutants; n++) {
      memcpy(mutant, bytes, size);
      size_t mutant_size = size;
      if (n % 2 == 0) {
        mutant_size = LLVMFuzzerCustomMutator(mutant, size, room, (unsigned)draw(&state));
      } else {
        mutate(mutant, size, &state);
        if (draw(&state) % 16 == 0) mutant_size = (size_t)(draw(&state) % size);
      }
      LLVMFuzzerTestOneInput(mutant, mutant_size);
    }
    free(mutant);
    free(bytes);
  }
  printf("%d files, %lu mutants of each: no fault\n", argc - first, n_mutants);
  return 0;
}
