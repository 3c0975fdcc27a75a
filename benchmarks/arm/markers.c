/* The markers as functions, for programs that are not C. */
#include "../../runtimes/native/tools/markers.h"

void mark_start(void) { IRSTD_MARK_START(); }
void mark_stop(void) { IRSTD_MARK_STOP(); }
