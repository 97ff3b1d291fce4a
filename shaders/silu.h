// The logistic sigmoid, and x times it.
#ifndef OXB_SILU_H
#define OXB_SILU_H

inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// exp of a large negative x overflows to infinity, which makes the quotient 0.
inline float silu(float x) { return x / (1.0f + precise::exp(-x)); }

#endif
