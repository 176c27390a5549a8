// rms_norm for the generic level; compiled with its flags.
#include "rms_norm.inc"
