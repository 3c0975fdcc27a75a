/* Prints the items of one FlexBuffer map: key, kind, integer, real; or the reader's error. */
#include <stdio.h>
#include <stdlib.h>

#include "flexbuffer.h"

int main(int argc, char **argv) {
    static unsigned char data[65536];
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!file) return 2;
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    irstd_flexmap map;
    irstd_flexitem item;
    const char *wrong = irstd_flexmap_open(data, size, &map);
    for (size_t i = 0; !wrong && i < map.count; i++)
        if (!(wrong = irstd_flexmap_item(&map, i, &item)))
            printf("%s %d %lld %a\n", item.key, (int)item.kind, (long long)item.integer, item.real);
    if (wrong) printf("error: %s\n", wrong);
    return 0;
}
