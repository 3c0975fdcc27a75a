/* A window of three instructions, one of five, and three empty ones in a loop. */
#include "../../runtimes/native/tools/markers.h"

int main(void) {
    IRSTD_MARK_START();
    __asm__ volatile("nop\n\tnop\n\tnop");
    IRSTD_MARK_STOP();
    __asm__ volatile("nop");
    IRSTD_MARK_START();
    __asm__ volatile("nop\n\tnop\n\tnop\n\tnop\n\tnop");
    IRSTD_MARK_STOP();
    for (int i = 0; i < 3; i++) {
        IRSTD_MARK_START();
        IRSTD_MARK_STOP();
    }
    return 0;
}
