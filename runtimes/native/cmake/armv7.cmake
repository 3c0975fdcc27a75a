# Hard float. The baseline has no NEON: the files that use it say so, and dispatch asks the CPU.
include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
irstd_toolchain(armv7l arm-linux-gnueabihf arm-linux qemu-arm)
