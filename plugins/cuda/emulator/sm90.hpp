// What only sm_90 has: mbarrier, bulk copies by tensor map, wgmma, named barriers, setmaxnreg.
#pragma once
#include "emulator.hpp"
#include "sm90_barriers.hpp"
#include "sm90_copy.hpp"
#include "sm90_memory.hpp"
#include "sm90_wgmma.hpp"
