/* One tanhf for both machines: those of their C libraries differ in the last bit. */
#include <math.h>

float __wrap_tanhf(float x);
float __wrap_tanhf(float x) { return (float)tanh(x); }
