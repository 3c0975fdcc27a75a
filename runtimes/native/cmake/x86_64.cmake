include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
irstd_toolchain(x86_64 x86_64-linux-gnu x86_64-linux "")
