/* Feeds damaged FlexBuffers to the reader; every buffer has its exact size on the heap, so that AddressSanitizer
 * sees any read beyond it. Arguments: random mutations per seed, then seed files. Prints the buffers tried. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flexbuffer.h"

static unsigned long tried, accepted;
static volatile double sink;

static void feed(const unsigned char *data, size_t size) {
    unsigned char *exact = malloc(size ? size : 1);
    memcpy(exact, data, size);
    irstd_flexmap map;
    irstd_flexitem item;
    tried++;
    if (!irstd_flexmap_open(size ? exact : NULL, size, &map)) {
        accepted++;
        for (size_t i = 0; i <= map.count; i++)
            if (!irstd_flexmap_item(&map, i, &item)) sink += (double)strlen(item.key) + item.real;
    }
    free(exact);
}

static unsigned long long state = 88172645463325252ull;
static unsigned random_below(unsigned n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % n;
}

int main(int argc, char **argv) {
    int rounds = atoi(argv[1]);
    for (int a = 2; a < argc; a++) {
        static unsigned char seed[65536], work[65536];
        FILE *file = fopen(argv[a], "rb");
        if (!file) return 2;
        size_t size = fread(seed, 1, sizeof seed, file);
        fclose(file);
        for (size_t n = 0; n <= size; n++) {
            feed(seed, n);               /* truncated at the end */
            feed(seed + n, size - n);    /* and at the start */
        }
        for (size_t i = 0; i < size; i++)
            for (int v = 0; v < 256; v++) {
                memcpy(work, seed, size);
                work[i] = (unsigned char)v;
                feed(work, size);
            }
        for (int r = 0; r < rounds; r++) {
            memcpy(work, seed, size);
            for (unsigned k = 1 + random_below(6); size && k; k--)
                work[random_below((unsigned)size)] = (unsigned char)random_below(256);
            feed(work, size);
            size_t n = random_below(40);
            for (size_t i = 0; i < n; i++) work[i] = (unsigned char)random_below(256);
            feed(work, n);
        }
    }
    printf("%lu %lu\n", tried, accepted);
    return 0;
}
