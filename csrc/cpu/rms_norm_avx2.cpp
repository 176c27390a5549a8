// rms_norm for the avx2 level; compiled with its flags.
#include "rms_norm.inc"
