# Cross-compiles for 64-bit Arm on Debian and Ubuntu (package g++-aarch64-linux-gnu). What it makes runs under qemu-aarch64.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
