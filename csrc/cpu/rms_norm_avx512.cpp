// rms_norm for the avx512 level; compiled with its flags.
#include "rms_norm.inc"
