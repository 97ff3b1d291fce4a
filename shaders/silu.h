// x times its logistic sigmoid.
#ifndef OXB_SILU_H
#define OXB_SILU_H

// exp of a large negative x overflows to infinity, which makes the quotient 0.
inline float silu(float x) { return x / (1.0f + precise::exp(-x)); }

#endif
