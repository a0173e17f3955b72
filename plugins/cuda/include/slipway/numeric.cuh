#pragma once
#include "slipway/ptx.cuh"
