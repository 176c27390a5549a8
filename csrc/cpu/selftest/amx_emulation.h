// AMX in software, so that a processor without it can run the machine code of the level avx512_amx.
#pragma once

namespace quire {

// From now on an AMX instruction that the processor refuses is carried out here; any other illegal instruction still ends the
// process. False where that cannot be done (not x86-64 Linux).
bool emulate_amx();

}  // namespace quire
