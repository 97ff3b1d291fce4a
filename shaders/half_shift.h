// The power of two that floats are multiplied by before they are rounded to half.
#ifndef OXB_HALF_SHIFT_H
#define OXB_HALF_SHIFT_H

// The exponent that brings the largest of some floats, whose bits without signs are at most `most`,
// to 2^14 or above; infinities and NaN stay what they are, and finite floats beside them finite.
inline int halves_shift(uint most) { return min(141 - int(min(most >> 23u, 254u)), 126); }

inline float power_of_two(int exponent) { return as_type<float>(uint(127 + exponent) << 23u); }

#endif
