include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
irstd_toolchain(aarch64 aarch64-linux-gnu aarch64-linux qemu-aarch64)
